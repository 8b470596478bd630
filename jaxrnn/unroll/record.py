"""What an unrolling takes and gives, whichever method carries it out."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped

from jaxrnn.typing import Carry, Step


class Frames(NamedTuple):
    """Everything a step needs beside its carry, stacked over time; absent parts are None.

    Attributes:
      x: inputs [T, *B, F].
      valid: False where a step is padding: the carry is held and the output is zero.
      reset: True where a step starts from the initial carry.
    """

    x: Any
    valid: Bool[Array, "*TB"] | None
    reset: Bool[Array, "*TB"] | None


class Method(abc.ABC):
    """A way to carry a step through time; every method gives the numbers of `Scan`."""

    @abc.abstractmethod
    def __call__(
        self, cell: Step, carry: Carry, frames: Frames, *, length: int, reverse: bool
    ) -> Unrolled:
        """Take `length` steps from `carry`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Unrolled:
    """A cell carried through time.

    Attributes:
      outputs: what the cell gave at each step, [T, *B, Y]; zero at padded steps.
      carry: the carry after each sequence's last valid step (with ``reverse``, its first).
      carries: the carry after every step, leaves [T, *B, H].
      method: the method that ran.
    """

    outputs: Any
    carry: Carry
    carries: Carry
    method: Method = dataclasses.field(metadata={"static": True})


def where(condition: Shaped[Array, "..."], chosen: Any, other: Any) -> Any:
    """Select between two trees by a condition [*B] over the leading axes of their leaves."""

    def select(a, b):
        trailing = jnp.ndim(a) - jnp.ndim(condition)
        return jnp.where(condition.reshape(condition.shape + (1,) * trailing), a, b)

    return jax.tree.map(select, chosen, other)


def framed_step(cell: Step, initial: Carry) -> Step:
    """Return the step over `Frames`: `cell` with padding and resets taken into account.

    An invalid step's input is replaced by zeros *before* the cell sees it: selecting the result alone
    would leave NaN in the gradient, for 0 · ∂(NaN) is NaN.
    """

    def step(carry: Carry, frame: Frames) -> tuple[Carry, Any]:
        x = frame.x
        if frame.valid is not None:
            x = where(frame.valid, x, jax.tree.map(jnp.zeros_like, x))
        start = carry if frame.reset is None else where(frame.reset, initial, carry)
        moved, y = cell(start, x)
        if frame.valid is not None:
            moved = where(frame.valid, moved, carry)
            y = where(frame.valid, y, jax.tree.map(jnp.zeros_like, y))
        return moved, y

    return step
