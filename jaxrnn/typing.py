"""The words of the house: axes, array aliases and the two contracts.

Axis legend, used in every shape of this package:

    T  time steps             B  batch (``*B``: any number of leading axes, none included)
    F  input features         H  hidden features (units)
    S  state size: the whole carry, its leaves flattened and concatenated in pytree order
    G  gates of a cell        P  pull size, G·H
    Y  output features        K  kept entries: lags, exponents, hypotheses of a beam
    V  tokens of a vocabulary L  steps of a source that a decoder attends to
    C  classes

Two contracts, and a small third, hold the house together.

**Step.** Anything that maps ``(carry, x) -> (carry, y)``: a cell of ours, a Flax NNX cell, a Linen
cell bound to its weights, a plain function. Every tool of this package takes a `Step`.

**SplitCell.** How a cell of ours is made inside. One step is four parts,

    drive = project(x)                    all that needs no carry: input weights and biases
    pull  = mix(carry)                    all recurrent weights, affine in the carry
    carry = update(carry, drive, pull)    weight-free arithmetic, each unit for itself
    y     = readout(carry)

and each part promises something. `project` may be applied to all steps in one product. `mix` is
affine, so its derivative is one constant matrix M; where that is a weight, `multiplies_by` says so. `update`
works *unit by unit*: entry j of the new carry depends on entry j of each carry leaf and of each of the G
gates, so its derivatives are diagonals. From these promises follow the fast gradient and the O(S²) step
Jacobian,

    ∂carry'/∂carry = ∂update/∂carry + ∂update/∂pull · M .

The names alone promise nothing: `jaxrnn.contract` reads from traced programs whether a step is its parts, and
whether these keep their promises. A step that does not is a plain `Step`, whatever its class. It takes the
general path in every analysis; `unroll` finds by its traced program what of it can leave the loop.

A weight that is itself computed from parameters, as an orthogonal matrix is from a skew-symmetric one, is
a **DerivedWeight** of its cell: `unroll` and the analyses compute it once for all steps
(`prepared`), a loop around the cell itself, ``nnx.RNN``'s too, at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, PRNGKeyArray, Shaped

ArrayLike = jax.Array | np.ndarray
"""An array of JAX's or of NumPy's."""

Carry = Any
"""A pytree of arrays [*B, H]: what a cell hands to its next step."""

Size = Any
"""A size of an array: a whole number, or an expression where ``jax.export`` leaves it open."""

Step = Annotated[
    Callable[[Any, Any], tuple[Any, Any]], "a cell, or a function (carry, x) -> (carry, y)"
]
"""``(carry, x) -> (carry, y)``."""

StepLike = Annotated[Callable[..., Any], "a cell, or a function (carry, x) -> (carry, y)"]
"""A step, or what stands for one in an analysis: a layer, or a function of the carry alone."""

Key = Annotated[PRNGKeyArray, "a random key, such as jax.random.key(0)"]
"""A typed random key, as made by ``jax.random.key``."""

Lengths = Int[Array, "*B"]
"""Valid steps of each sequence, 0 to T."""

Loss = Annotated[Callable[[Any], Any], "a function of the outputs"]
"""Outputs [T, *B, Y] -> a scalar, or one value per sequence [*B]."""

Initializer = Annotated[
    Callable[..., Shaped[Array, "..."]], "an initialiser, such as jax.nn.initializers.normal()"
]
"""``(key, shape, dtype) -> Array``, as in ``jax.nn.initializers``."""


@runtime_checkable
class SplitCell(Protocol):
    """A cell whose step is split into project, mix, update and readout (see the module's text)."""

    def project(self, x: Any) -> Any:
        """Map inputs [*B, F] to the drive [*B, P]."""
        ...

    def mix(self, carry: Any) -> Any:
        """Map the carry, leaves [*B, H], to the pull [*B, P]; affine."""
        ...

    def update(self, carry: Any, drive: Any, pull: Any) -> Any:
        """Return the next carry; unit by unit, free of weights."""
        ...

    def readout(self, carry: Any) -> Any:
        """Return the output [*B, Y] of a carry."""
        ...

    def __call__(self, carry: Any, x: Any) -> tuple[Any, Any]:
        """Take one step."""
        ...


def multiplies_by(weight: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Note on a `mix` that it multiplies h, the last leaf of the carry, by a weight, plus a constant at most.

    To find M by differentiation is to multiply the weight by the identity. The note names the function that
    it is on: another `mix` is not taken for it, though it be wrapped around this one.

    Args:
      weight: name of the attribute that holds the weight [H, P].
    """

    def noted(mix: Callable[..., Any]) -> Callable[..., Any]:
        mix.note = (mix, weight)  # pyright: ignore[reportFunctionMemberAccess]
        return mix

    return noted


def weight_of_mix(cell: SplitCell) -> jax.Array | None:
    """Return the weight [H, P] that a cell's `mix` is noted to multiply h by; None where it has no note."""
    function = getattr(cell.mix, "__func__", None)
    noted, weight = getattr(function, "note", (None, ""))
    return None if function is None or noted is not function else getattr(cell, weight)[...]


@runtime_checkable
class DerivedWeight(Protocol):
    """A module in the place of a weight, which is computed from its parameters."""

    def derive(self) -> Any:
        """Return the weight."""
        ...

    def __getitem__(self, key: Any) -> Any:
        """Return a part of the weight, as a parameter does."""
        ...


def prepared(cell: Any) -> Any:
    """Return a step with every derived weight computed, or a list of such steps.

    What `jaxrnn.steps.compiled` compiles gets its cell like this, so no loop computes a weight at every step.
    """
    if isinstance(cell, list):
        return [prepared(each) for each in cell]
    if not isinstance(cell, nnx.Module):
        return cell
    modules = {name: part for name, part in vars(cell).items() if isinstance(part, nnx.Module)}
    if not modules:
        return cell
    ready = jax.tree.map(lambda leaf: leaf, cell)  # a copy
    for name, part in modules.items():
        derived = isinstance(part, DerivedWeight)
        setattr(ready, name, nnx.Param(part.derive()) if derived else prepared(part))
    return ready


def at_least_float32(dtype: Any) -> Any:
    """Return the dtype in which to factorise and to take logarithms: half precision can do neither."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)
