"""What an unrolling takes and gives, whichever method carries it out."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxrnn.typing import Carry, Size, Step


class Frames(NamedTuple):
    """Everything a step needs beside its carry, stacked over time; absent parts are None.

    Attributes:
      x: inputs [T, *B, F].
      valid: False where a step is padding: the carry is held and the output is zero.
      reset: True where a step starts from the carry that resets go back to.
    """

    x: Any
    valid: Bool[Array, "*TB"] | None
    reset: Bool[Array, "*TB"] | None


class Method(abc.ABC):
    """A way to carry a step through time; what it can do at all, it does with the numbers of `Scan`.

    Attributes:
      any_mask: it takes every mask, and resets; otherwise padding on the right alone.
      nests: it can run inside another method, which needs any mask and has no place for a `Convergence`.
    """

    any_mask: ClassVar[bool] = True
    nests: ClassVar[bool] = True

    @abc.abstractmethod
    def __call__(
        self, cell: Step, carry: Carry, frames: Frames, *, initial: Carry, length: Size
    ) -> Unrolled:
        """Take `length` steps from `carry`; a reset goes back to `initial`."""

    def rounds(self, length: int, convergence: Convergence | None) -> int | Int[Array, ""]:
        """Return how many rounds, each of which waits for the one before, `length` steps took."""
        del convergence
        return length


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Convergence:
    """How an iterative method fared.

    Attributes:
      iterations: how many it took, one number for the whole batch.
      residual: the largest |carry_t − step(carry_t−1)| that was left.
      converged: whether that was below the tolerance. Where it was not, what is returned was computed step
        by step, at the price of both.
    """

    iterations: Int[Array, ""]
    residual: Float[Array, ""]
    converged: Bool[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Unrolled:
    """A cell carried through time.

    Attributes:
      outputs: what the cell gave at each step, [T, *B, Y]; zero at padded steps.
      carry: the carry after each sequence's last valid step (with ``reverse``, its first).
      carries: the carry after every step, leaves [T, *B, H].
      method: the method that ran.
      convergence: how an iterative method fared; None for the others.
    """

    outputs: Any
    carry: Carry
    carries: Carry
    method: Method = dataclasses.field(metadata={"static": True})
    convergence: Convergence | None = None

    @property
    def rounds(self) -> int | Int[Array, ""]:
        """How many rounds of operations waited for one another.

        One a time step in a loop; 2 ⌊log₂ T⌋ in `Associative`, the dependent combinations of its scan; as
        many for each iteration of `Newton`, and the loop's T on top where it did not converge.
        """
        length = jax.tree.leaves(self.carries)[0].shape[0]
        return self.method.rounds(length, self.convergence)


def where(condition: Shaped[Array, "..."], chosen: Any, other: Any) -> Any:
    """Select between two trees by a condition [*B] over the leading axes of their leaves.

    A leaf that does not begin with these axes, such as a time step or a counter that all sequences share, has
    no part that belongs to one sequence: there all of `chosen` is taken.
    """

    def select(a, b):
        if jnp.shape(a)[: condition.ndim] != condition.shape:
            return a
        trailing = jnp.ndim(a) - condition.ndim
        return jnp.where(condition.reshape(condition.shape + (1,) * trailing), a, b)

    return jax.tree.map(select, chosen, other)


def restarted(reset: Bool[Array, "..."], initial: Any, carry: Any) -> Any:
    """Return `initial` where `reset` is True, and `carry` elsewhere and in leaves without batch axes."""
    return where(~reset, carry, initial)


def seen(tree: Any, valid: Any) -> Any:
    """Return a tree with zeros wherever a step is padding; as it is, where `valid` is None.

    Random keys, which have no zero and can be no NaN, and leaves without batch axes stay as they are.
    """
    if valid is None:
        return tree

    def kept(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return leaf if is_key else where(valid, leaf, jnp.zeros_like(leaf))

    return jax.tree.map(lambda leaf: kept(jnp.asarray(leaf)), tree)


def framed_step(cell: Step, initial: Carry) -> Step:
    """Return the step over `Frames`: `cell` with padding and resets taken into account.

    An invalid step's input is replaced by zeros *before* the cell sees it: selecting the result alone
    would leave NaN in the gradient, for 0 · ∂(NaN) is NaN.
    """

    def step(carry: Carry, frame: Frames) -> tuple[Carry, Any]:
        start = carry if frame.reset is None else restarted(frame.reset, initial, carry)
        moved, y = cell(start, seen(frame.x, frame.valid))
        if frame.valid is not None:
            moved = where(frame.valid, moved, carry)
        return moved, seen(y, frame.valid)

    return step
