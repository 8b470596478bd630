"""The inputs and results that all methods of unrolling share."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxrnn.typing import Carry, Size, Step


class Frames(NamedTuple):
    """Everything a step needs besides its carry, stacked over time; absent parts are None.

    Attributes:
      x: inputs [T, *B, F].
      valid: False where a step is padding: the carry is held and the output is zero.
      reset: True where a step starts from the reset carry.
    """

    x: Any
    valid: Bool[Array, "*TB"] | None
    reset: Bool[Array, "*TB"] | None


class Method(abc.ABC):
    """A method of unrolling a step; where it applies, its results agree with those of `Scan`.

    Attributes:
      any_mask: whether it supports all masks and resets; otherwise only padding on the right.
      nests: whether it can run inside another method. That requires `any_mask` and no `Convergence`.
    """

    any_mask: ClassVar[bool] = True
    nests: ClassVar[bool] = True

    @abc.abstractmethod
    def __call__(
        self, cell: Step, carry: Carry, frames: Frames, *, initial: Carry, length: Size
    ) -> Unrolled:
        """Take `length` steps from `carry`; a reset goes back to `initial`."""

    def rounds(self, length: int, convergence: Convergence | None) -> int | Int[Array, ""]:
        """Return how many sequentially dependent rounds `length` steps took."""
        del convergence
        return length


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Convergence:
    """The convergence of an iterative method.

    Attributes:
      iterations: the number of iterations, one for the whole batch.
      residual: the largest |carry_t − step(carry_t−1)| after the last iteration.
      converged: whether the residual met the tolerance. Where it did not, the result was computed step by
        step, in addition to the iterations.
    """

    iterations: Int[Array, ""]
    residual: Float[Array, ""]
    converged: Bool[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Unrolled:
    """The results of unrolling a cell.

    Attributes:
      outputs: the cell's output at each step [T, *B, Y]; zero at padded steps.
      carry: the carry after each sequence's last valid step (with ``reverse``, its first).
      carries: the carry after every step, leaves [T, *B, H].
      method: the method that ran.
      convergence: the convergence of an iterative method; None for other methods.
    """

    outputs: Any
    carry: Carry
    carries: Carry
    method: Method = dataclasses.field(metadata={"static": True})
    convergence: Convergence | None = None

    @property
    def rounds(self) -> int | Int[Array, ""]:
        """The number of sequentially dependent rounds of operations.

        A loop takes one round per time step. `Associative` takes 2 ⌊log₂ T⌋, the dependent combinations of
        its scan. `Newton` takes 2 ⌊log₂ T⌋ for each iteration, and T more where it did not converge.
        """
        length = jax.tree.leaves(self.carries)[0].shape[0]
        return self.method.rounds(length, self.convergence)


def where(condition: Shaped[Array, "..."], chosen: Any, other: Any) -> Any:
    """Select between two trees by a condition [*B] over the leading axes of their leaves.

    Leaves that do not begin with these axes, such as a time step or a counter that all sequences share, are
    taken from `chosen` as a whole.
    """

    def select(a, b):
        if jnp.shape(a)[: condition.ndim] != condition.shape:
            return a
        trailing = jnp.ndim(a) - condition.ndim
        return jnp.where(condition.reshape(condition.shape + (1,) * trailing), a, b)

    return jax.tree.map(select, chosen, other)


def restarted(reset: Bool[Array, "..."], initial: Any, carry: Any) -> Any:
    """Return `initial` where `reset` is True; elsewhere, and in leaves without batch axes, return `carry`."""
    return where(~reset, carry, initial)


def seen(tree: Any, valid: Any) -> Any:
    """Return a tree with zeros at padded steps, or unchanged where `valid` is None.

    Random keys, which have no zero and cannot be NaN, and leaves without batch axes stay unchanged.
    """
    if valid is None:
        return tree

    def kept(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return leaf if is_key else where(valid, leaf, jnp.zeros_like(leaf))

    return jax.tree.map(lambda leaf: kept(jnp.asarray(leaf)), tree)


def framed_step(cell: Step, initial: Carry) -> Step:
    """Return the step over `Frames`: `cell` with padding and resets taken into account.

    The input of a padded step is replaced by zeros *before* the cell reads it. Selecting only the result
    would leave NaN in the gradient, because 0 · ∂(NaN) is NaN.
    """

    def step(carry: Carry, frame: Frames) -> tuple[Carry, Any]:
        start = carry if frame.reset is None else restarted(frame.reset, initial, carry)
        moved, y = cell(start, seen(frame.x, frame.valid))
        if frame.valid is not None:
            moved = where(frame.valid, moved, carry)
        return moved, seen(y, frame.valid)

    return step
