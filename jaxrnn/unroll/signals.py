"""What `update` sees of input and past, and how the traced program of a cell shows it.

`update(carry, drive, pull)` may use drive and pull each for itself, as a GRU's candidate does, or their
sum alone, as every gate of an LSTM does. In the second case the sum is all that has to be stored and
differentiated: one array in place of two. Nobody has to declare it: the traced program shows whether one
addition is all that becomes of the two. It shows as well whether `update` keeps its promise to use no
weights.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.typing import Carry, SplitCell, Step


@dataclasses.dataclass(frozen=True)
class Signals:
    """How drive and pull are joined into the signal that `update` sees.

    Attributes:
      summed: the signal is drive + pull, one array [*B, P]; otherwise it is the pair.
      bytes: memory of one step's signal.
      intensity: weights of the cell per value of a signal: what it costs to compute one again.
    """

    summed: bool
    bytes: int
    intensity: float

    def join(self, drive: Any, pull: Any) -> Any:
        """Return the signal."""
        return drive + pull if self.summed else (drive, pull)

    def update(self, cell: SplitCell, carry: Carry, signal: Any) -> Carry:
        """Return the next carry."""
        if self.summed:
            return cell.update(carry, signal, jnp.zeros_like(signal))
        return cell.update(carry, *signal)

    def drive(self, d_signal: Any) -> Any:
        """Return the drive's part of a signal's cotangent."""
        return d_signal if self.summed else d_signal[0]

    def pull(self, d_signal: Any) -> Any:
        """Return the pull's part of a signal's cotangent."""
        return d_signal if self.summed else d_signal[1]


def signals_of(cell: Step, carry: Carry, x: Any) -> Signals | None:
    """Return how a cell's `update` takes its signals.

    None where a step is not split as `jaxrnn.typing.SplitCell` has it: one array of floats each for input,
    drive and pull, a tree of floats for weights and carry, and no weights in `update`.

    Args:
      cell: the cell.
      carry: a carry of one step, leaves [*B, H].
      x: an input of one step [*B, F].
    """
    if not isinstance(cell, SplitCell) or getattr(cell, "num_feature_axes", 1) != 1:
        return None
    if not all(map(_is_float, jax.tree.leaves((cell, carry)))) or not _is_float(x):
        return None
    drive, pull = jax.eval_shape(cell.project, x), jax.eval_shape(cell.mix, carry)
    if not (_is_float(drive) and _is_float(pull) and drive.shape == pull.shape):
        return None
    program = jax.make_jaxpr(lambda cell, *step: cell.update(*step))(cell, carry, drive, drive)
    *others, drive_var, pull_var = program.jaxpr.invars
    weights = others[: len(jax.tree.leaves(cell))]
    if any(_readers(program.jaxpr, weight) for weight in weights):
        return None
    summed = _sums(program.jaxpr, drive_var, pull_var)
    values = math.prod(drive.shape) * (1 if summed else 2)
    width = drive.shape[-1] * (1 if summed else 2)
    parameters = sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(cell))
    return Signals(summed, values * drive.dtype.itemsize, parameters / width)


def _is_float(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)


def _sums(program: Any, drive: Any, pull: Any) -> bool:
    """Tell whether one addition is the only reader of both variables."""
    readers = _readers(program, drive)
    return (
        len(readers) == 1
        and readers == _readers(program, pull)
        and getattr(readers[0].primitive, "name", None) == "add"
    )


def _readers(program: Any, var: Any) -> list[Any]:
    """Return what reads a variable: equations, and the program itself where the variable is a result."""
    readers = [eqn for eqn in program.eqns if any(v is var for v in eqn.invars)]
    return readers + [program] * any(v is var for v in program.outvars)
