"""The table of cells: one row per cell, used by the command line, the documentation and the tests.

A row says how to make the cell and what its paper states. Properties that can be computed (parameters, state
size, cost) are computed from the cell itself, and a test compares the two.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells import initializers
from jaxrnn.cells.antisymmetric import AntisymmetricCell
from jaxrnn.cells.clockwork import ClockworkCell
from jaxrnn.cells.cornn import CoRNNCell
from jaxrnn.cells.ctrnn import CTRNNCell
from jaxrnn.cells.elman import ElmanCell
from jaxrnn.cells.gru import GRUCell, OGRUCell, ResetBeforeGRUCell
from jaxrnn.cells.indrnn import IndRNNCell
from jaxrnn.cells.jordan import JordanCell
from jaxrnn.cells.lem import LEMCell
from jaxrnn.cells.lipschitz import LipschitzCell
from jaxrnn.cells.lstm import LSTMCell, PeepholeLSTMCell, ProjectedLSTMCell
from jaxrnn.cells.mgu import MGUCell
from jaxrnn.cells.minimal import MinGRUCell, MinLSTMCell
from jaxrnn.cells.orthogonal import OrthogonalCell
from jaxrnn.cells.rg_lru import RGLRUCell
from jaxrnn.cells.sru import SRUCell
from jaxrnn.cells.state_space import LRUCell, S5Cell
from jaxrnn.cells.unitary import UnitaryCell
from jaxrnn.cells.xlstm import MLSTMCell, SLSTMCell
from jaxrnn.typing import prepared

Count = Callable[[int, int], int]
"""A number as a function of F and H."""


@dataclasses.dataclass(frozen=True)
class CellEntry:
    """A row of the table: the properties of one cell.

    Attributes:
      name: the cell's name on the command line.
      make: ``make(in_features, hidden_features, rngs=...)`` returns the cell.
      equations: the step in one line.
      parameters: the paper's count as a function of F and H.
      paper: the reference.
      jacobian: what the step Jacobian ∂s'/∂s depends on: nothing, the input, or the state too.
      parallel: whether `jaxrnn.Associative` can compute all steps at once.
      outputs: size Y of the output as a function of H.
    """

    name: str
    make: Callable[..., Any]
    equations: str
    parameters: Count
    paper: str
    jacobian: Literal["constant", "input", "state"] = "state"
    parallel: bool = False
    outputs: Callable[[int], int] = lambda h: h

    @checked
    def cost(self, in_features: int, hidden_features: int) -> CellCost:
        """Return the sizes of the cell with F features and H units."""
        make = partial(self.make, in_features, hidden_features)
        cell: Any = jax.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
        carry = jax.eval_shape(lambda: cell.initialize_carry((in_features,)))
        x = jax.ShapeDtypeStruct((in_features,), jnp.float32)
        ready = jax.eval_shape(prepared, cell)
        counts: Any = (
            jax.jit(lambda cell, *step: cell(*step)).lower(ready, carry, x).cost_analysis()
        )
        return CellCost(_scalars(carry), _scalars(cell), int(counts["flops"]))


@dataclasses.dataclass(frozen=True)
class CellCost:
    """The sizes of a cell.

    Attributes:
      state: S, the number of entries in the whole carry.
      parameters: the number of entries in the weights.
      flops: floating-point operations of one step of one sequence, as XLA counts them in the program before
        compilation. They exclude transcendental functions, and the cost of derived weights, which are
        computed once for all steps.
    """

    state: int
    parameters: int
    flops: int


def _dense(gates: int, extra: int = 0) -> Count:
    """Return the parameter count of `gates` maps from F + H + 1 to H, and `extra` vectors of size H."""
    return lambda f, h: gates * h * (f + h + 1) + extra * h


def _from_input(gates: int, extra: int = 0) -> Count:
    """Return the parameter count of `gates` maps from F + 1 to H, and `extra` vectors of size H."""
    return lambda f, h: gates * h * (f + 1) + extra * h


def _projected(f: int, h: int) -> int:
    y = max(1, h // 2)
    return 4 * h * (f + y + 1) + h * y


def _clockwork(f: int, h: int) -> int:
    """Count one map from F + 1 to H, and the recurrent weights from units of the same or a slower group."""
    groups = [h // 4 + (g < h % 4) for g in range(4)]
    return h * (f + 1) + sum(groups[g] * sum(groups[g:]) for g in range(4))


_ELMAN = "h' = φ(W x + U h + b)"

CELLS: dict[str, CellEntry] = {
    entry.name: entry
    for entry in (
        CellEntry("elman-tanh", ElmanCell, f"{_ELMAN}, φ = tanh", _dense(1), "Elman 1990"),
        CellEntry(
            "elman-relu",
            partial(ElmanCell, activation_fn=jax.nn.relu),
            f"{_ELMAN}, φ = ReLU",
            _dense(1),
            "Elman 1990, with ReLU",
        ),
        CellEntry(
            "elman-sigmoid",
            partial(ElmanCell, activation_fn=jax.nn.sigmoid),
            f"{_ELMAN}, φ = σ",
            _dense(1),
            "Elman 1990",
        ),
        CellEntry(
            "irnn",
            partial(
                ElmanCell,
                activation_fn=jax.nn.relu,
                kernel_init=jax.nn.initializers.normal(1e-3),
                recurrent_kernel_init=initializers.identity(),
            ),
            f"{_ELMAN}, φ = ReLU, at the start U = I and W ~ N(0, 0.001²)",
            _dense(1),
            "Le, Jaitly & Hinton 2015",
        ),
        CellEntry(
            "jordan",
            JordanCell,
            "h' = tanh(W x + U y + b),  y' = tanh(V h' + d)",
            lambda f, h: h * (f + 2 * h + 2),
            "Jordan 1986",
        ),
        CellEntry(
            "lstm",
            LSTMCell,
            "c' = σ(f) c + σ(i) tanh(g),  h' = σ(o) tanh(c')",
            _dense(4),
            "Hochreiter & Schmidhuber 1997; Gers et al. 2000",
        ),
        CellEntry(
            "lstm-peephole",
            PeepholeLSTMCell,
            "as lstm, i and f see p c, o sees p c'",
            _dense(4, extra=3),
            "Gers & Schmidhuber 2000",
        ),
        CellEntry(
            "lstm-projected",
            ProjectedLSTMCell,
            "as lstm, h' = P (σ(o) tanh(c'))",
            _projected,
            "Sak, Senior & Beaufays 2014",
            outputs=lambda h: max(1, h // 2),
        ),
        CellEntry(
            "gru",
            GRUCell,
            "h' = z h + (1 − z) tanh(W x + b + r (U h + v))",
            _dense(3, extra=1),
            "Cho et al. 2014 (reset after the product)",
        ),
        CellEntry(
            "gru-reset-before",
            ResetBeforeGRUCell,
            "h' = z h + (1 − z) tanh(W x + b + U (r h))",
            _dense(3),
            "Cho et al. 2014",
        ),
        CellEntry(
            "ogru",
            OGRUCell,
            "as gru-reset-before, z = σ(W x + b + U (r h))",
            _dense(3),
            "Wang et al. 2019 (our reading of its abstract)",
        ),
        CellEntry(
            "mgu",
            MGUCell,
            "h' = (1 − f) h + f tanh(W x + b + U (f h))",
            _dense(2),
            "Zhou et al. 2016",
        ),
        CellEntry(
            "ctrnn",
            CTRNNCell,
            "h' = (1 − α) h + α tanh(W x + U h + b)",
            _dense(1),
            "Funahashi & Nakamura 1993",
        ),
        CellEntry(
            "clockwork",
            ClockworkCell,
            "group g: h' = tanh(W x + U h + b) every T_g steps",
            _clockwork,
            "Koutník et al. 2014",
        ),
        CellEntry(
            "indrnn",
            IndRNNCell,
            "h' = ReLU(W x + u h + b)",
            _from_input(1, extra=1),
            "Li et al. 2018",
        ),
        CellEntry(
            "orthogonal",
            OrthogonalCell,
            "h' = modReLU(exp(A) h + W x, b), A = −Aᵀ",
            lambda f, h: h * f + h * (h - 1) // 2 + h,
            "Lezcano-Casado & Martínez-Rubio 2019",
        ),
        CellEntry(
            "unitary",
            UnitaryCell,
            "h' = modReLU(D₃ R₂ F⁻¹ D₂ Π R₁ F D₁ h + V x, b)",
            lambda f, h: 2 * f * h + 8 * h,
            "Arjovsky, Shah & Bengio 2016",
            outputs=lambda h: 2 * h,
        ),
        CellEntry(
            "antisymmetric",
            AntisymmetricCell,
            "h' = h + ε tanh((A − γ I) h + W x + b), A = −Aᵀ",
            lambda f, h: h * (f + 1) + h * (h - 1) // 2,
            "Chang et al. 2019",
        ),
        CellEntry(
            "lipschitz",
            LipschitzCell,
            "h' = h + ε (A h + tanh(U h + W x + b))",
            lambda f, h: h * (f + 1) + 2 * h * h,
            "Erichson et al. 2021",
        ),
        CellEntry(
            "cornn",
            CoRNNCell,
            "z' = z + Δt (tanh(U y + V z + W x + b) − γ y − ε z),  y' = y + Δt z'",
            lambda f, h: h * (f + 2 * h + 1),
            "Rusch & Mishra 2021",
        ),
        CellEntry(
            "lem",
            LEMCell,
            "z' = (1 − Δ) z + Δ tanh(U y + …),  y' = (1 − Δ̄) y + Δ̄ tanh(U z' + …)",
            _dense(4),
            "Rusch et al. 2022",
        ),
        CellEntry(
            "slstm",
            SLSTMCell,
            "c' = σ(f) c + exp(i) tanh(z),  n' = σ(f) n + exp(i),  h' = σ(o) c' / n'",
            _dense(4),
            "Beck et al. 2024",
        ),
        CellEntry(
            "mlstm",
            MLSTMCell,
            "C' = σ(f) C + exp(i) v kᵀ,  y = σ(o) C' q / max(|n' q|, 1)",
            lambda f, h: (4 * h + 2) * (f + 1),
            "Beck et al. 2024",
        ),
        CellEntry(
            "sru",
            SRUCell,
            "c' = f c + (1 − f) n,  h' = r c' + (1 − r) W x",
            _from_input(4, extra=2),
            "Lei et al. 2018",
        ),
        CellEntry(
            "mingru",
            MinGRUCell,
            "h' = (1 − z) h + z n",
            _from_input(2),
            "Feng et al. 2024",
            jacobian="input",
            parallel=True,
        ),
        CellEntry(
            "minlstm",
            MinLSTMCell,
            "h' = (f h + i n) / (f + i)",
            _from_input(3),
            "Feng et al. 2024",
            jacobian="input",
            parallel=True,
        ),
        CellEntry(
            "lru",
            LRUCell,
            "s' = λ s + γ B x, |λ| = exp(−e^ν)",
            lambda f, h: 2 * f * h + 3 * h,
            "Orvieto et al. 2023",
            jacobian="constant",
            parallel=True,
            outputs=lambda h: 2 * h,
        ),
        CellEntry(
            "s5",
            S5Cell,
            "s' = exp(Λ Δ) s + Λ⁻¹ (exp(Λ Δ) − 1) B x",
            lambda f, h: 2 * f * h + 3 * h,
            "Smith, Warrington & Linderman 2023",
            jacobian="constant",
            parallel=True,
            outputs=lambda h: 2 * h,
        ),
        CellEntry(
            "rg-lru",
            RGLRUCell,
            "h' = a h + √(1 − a²) i (W x + b),  a = σ(Λ)^(8 r)",
            _from_input(3, extra=1),
            "De et al. 2024",
            jacobian="input",
            parallel=True,
        ),
    )
}


@checked
def make_cell(
    name: str, in_features: int, hidden_features: int, *, rngs: nnx.Rngs, **options
) -> Any:
    """Make the cell with a given name in the table.

    Raises:
      InputError: there is no such cell; the message lists the names and suggests the nearest.

    Example:
      >>> from flax import nnx
      >>> import jaxrnn
      >>> type(jaxrnn.make_cell("gru", 3, 8, rngs=nnx.Rngs(0))).__name__
      'GRUCell'
    """
    checks.choice("cell", name, CELLS)
    return CELLS[name].make(in_features, hidden_features, rngs=rngs, **options)


@checked
def count_parameters(module: nnx.Module) -> int:
    """Return the number of scalars in a module's parameters."""
    return _scalars(module)


def _scalars(tree: Any) -> int:
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree))
