"""What `update` sees of input and past, and how the traced program of a cell shows it.

`update(carry, drive, pull)` may use drive and pull each for itself, as a GRU's candidate does, or their
sum alone, as every gate of an LSTM does; or there is no pull, as in a minGRU. But for the first case one
array is all that has to be stored and differentiated, in place of two. Nobody has to declare it: the traced
program shows whether one addition is all that becomes of the two. It shows as well whether `update` keeps
its promise to use no weights.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxrnn.typing import Carry, SplitCell, Step
from jaxrnn.unroll.parts import is_float


class Signals(abc.ABC):
    """How drive [*B, D] and pull [*B, P] are joined into the signal that `update` sees.

    Attributes:
      arrays: how many arrays a signal is.
    """

    arrays: ClassVar[int]

    @abc.abstractmethod
    def join(self, drive: Any, pull: Any) -> Any:
        """Return the signal."""

    @abc.abstractmethod
    def update(self, cell: SplitCell, carry: Carry, signal: Any) -> Carry:
        """Return the next carry."""

    @abc.abstractmethod
    def parts(self, d_signal: Any) -> tuple[Any, Any]:
        """Return the cotangents of drive and pull that belong to a signal's."""


@dataclasses.dataclass(frozen=True)
class Sum(Signals):
    """The signal is drive + pull."""

    arrays: ClassVar[int] = 1

    def join(self, drive: Any, pull: Any) -> Any:
        """Return drive + pull."""
        return drive + pull

    def update(self, cell: SplitCell, carry: Carry, signal: Any) -> Carry:
        """Return the next carry: nothing but the sum counts, so one part may be all of it."""
        return cell.update(carry, signal, jnp.zeros_like(signal))

    def parts(self, d_signal: Any) -> tuple[Any, Any]:
        """Return the same for both."""
        return d_signal, d_signal


@dataclasses.dataclass(frozen=True)
class Drive(Signals):
    """The signal is the drive: no weights meet the carry, and the pull is empty."""

    arrays: ClassVar[int] = 1

    def join(self, drive: Any, pull: Any) -> Any:
        """Return the drive."""
        del pull
        return drive

    def update(self, cell: SplitCell, carry: Carry, signal: Any) -> Carry:
        """Return the next carry."""
        return cell.update(carry, signal, signal[..., :0])

    def parts(self, d_signal: Any) -> tuple[Any, Any]:
        """Return all for the drive, and nothing for the pull."""
        return d_signal, d_signal[..., :0]


@dataclasses.dataclass(frozen=True)
class Pair(Signals):
    """The signal is the pair of drive and pull."""

    arrays: ClassVar[int] = 2

    def join(self, drive: Any, pull: Any) -> Any:
        """Return (drive, pull)."""
        return drive, pull

    def update(self, cell: SplitCell, carry: Carry, signal: Any) -> Carry:
        """Return the next carry."""
        return cell.update(carry, *signal)

    def parts(self, d_signal: Any) -> tuple[Any, Any]:
        """Return each its own."""
        return d_signal


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
    if not all(map(is_float, jax.tree.leaves((cell, carry)))) or not is_float(x):
        return None
    drive, pull = jax.eval_shape(cell.project, x), jax.eval_shape(cell.mix, carry)
    if not (is_float(drive) and is_float(pull)):
        return None
    program = jax.make_jaxpr(lambda cell, *step: cell.update(*step))(cell, carry, drive, pull)
    *others, drive_var, pull_var = program.jaxpr.invars
    weights = others[: len(jax.tree.leaves(cell))]
    if any(_readers(program.jaxpr, weight) for weight in weights):
        return None
    if not pull.shape[-1]:
        return Drive()
    return Sum() if _sums(program.jaxpr, drive_var, pull_var) else Pair()


def _sums(program: Any, drive: Any, pull: Any) -> bool:
    """Tell whether one addition is the only reader of both variables."""
    readers = {id(reader): reader for var in (drive, pull) for reader in _readers(program, var)}
    (first, *others) = readers.values() or (program,)
    added = not others and first is not program and first.primitive.name == "add"
    return added and {*map(id, first.invars)} == {id(drive), id(pull)}


def _readers(program: Any, var: Any) -> list[Any]:
    """Return what reads a variable: equations, and the program itself where the variable is a result."""
    readers = [eqn for eqn in program.eqns if any(v is var for v in eqn.invars)]
    return readers + [program] * any(v is var for v in program.outvars)
