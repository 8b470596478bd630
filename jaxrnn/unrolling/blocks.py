"""Helpers to cut time into blocks of steps, shared by the methods that work block by block."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Segment:
    """Consecutive blocks of one size, which one compiled loop can run through.

    Attributes:
      first: the step at which the first block begins.
      blocks: the number of blocks.
      size: steps in each block.
    """

    first: int
    blocks: int
    size: int

    @property
    def starts(self) -> jax.Array:
        """The first step of each block [blocks]."""
        return self.first + self.size * jnp.arange(self.blocks, dtype=jnp.int32)

    def cut(self, tree: Any) -> Any:
        """Return the segment's part of arrays [T, ...] as blocks [blocks, size, ...]."""
        last = self.first + self.blocks * self.size
        return jax.tree.map(
            lambda a: a[self.first : last].reshape(self.blocks, self.size, *a.shape[1:]), tree
        )

    def scan(
        self,
        run: Callable[[Any, Any], tuple[Any, Any]],
        state: Any,
        blocks: Any,
        *,
        reverse: bool = False,
    ) -> tuple[Any, Any]:
        """Scan over the blocks, as ``lax.scan`` does.

        Args:
          run: ``(state, block) -> (state, results [size, ...])``.
          state: where to begin.
          blocks: arrays with the blocks on their first axis, or a tree without arrays.
          reverse: begin with the last block.

        Returns:
          The last state, and the results in the order of time [blocks·size, ...].
        """
        if self.blocks == 1:  # no loop is needed, which saves its compilation
            return run(state, jax.tree.map(lambda a: a[0], blocks))
        state, results = jax.lax.scan(run, state, blocks, length=self.blocks, reverse=reverse)
        steps = self.blocks * self.size
        return state, jax.tree.map(lambda a: a.reshape(steps, *a.shape[2:]), results)


def segments(length: int, block: int) -> list[Segment]:
    """Cut `length` steps into blocks of `block` steps, the last one shorter where `block` is no divisor."""
    whole, rest = divmod(length, block)
    cut = [Segment(0, whole, block), Segment(whole * block, 1, rest)]
    return [segment for segment in cut if segment.blocks * segment.size]


def scan_blocks(
    run: Callable[[Any, Any], tuple[Any, Any]],
    state: Any,
    arrays: Any,
    *,
    length: int,
    block: int,
    of_blocks: Any = None,
) -> tuple[Any, Any]:
    """Scan over T steps, one block of steps at a time.

    Args:
      run: ``(state, (of_block, arrays [size, ...])) -> (state, results [size, ...])``.
      state: where to begin.
      arrays: arrays over the T steps [T, ...].
      length: T.
      block: steps in a block; the last block may be shorter.
      of_blocks: arrays with one entry per block.

    Returns:
      The last state, and the results of all steps [T, ...].
    """
    done, stretches = 0, []
    for segment in segments(length, block):
        own = jax.tree.map(itemgetter(slice(done, done + segment.blocks)), of_blocks)
        state, stretch = segment.scan(run, state, (own, segment.cut(arrays)))
        stretches.append(stretch)
        done += segment.blocks
    return state, joined(stretches)


def even(length: int, block: int) -> int:
    """Return the size nearest to `block`, within a factor of 2, that divides `length`; else `block`.

    A shorter last block would be compiled separately, at the same cost as all the others together.
    """
    if block >= length:
        return length
    fitting = [size for size in range((block + 1) // 2, 2 * block + 1) if length % size == 0]
    return min(fitting, key=lambda size: abs(size - block), default=block)


def joined(parts: list[Any]) -> Any:
    """Concatenate arrays over consecutive stretches of time [T_1, ...], [T_2, ...]."""
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *p: jnp.concatenate(p), *parts)


def at(tree: Any, t: Any) -> Any:
    """Return step `t` of arrays [T, ...]."""
    return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, t, keepdims=False), tree)


def before_blocks(carry: Any, carries: Any, block: int) -> Any:
    """Return the carry before each block of steps [blocks, ...].

    Where `block` divides the number of steps, the last carry follows as one more entry.
    """
    return jax.tree.map(
        lambda c, after: jnp.concatenate([c[None], after[block - 1 :: block]]), carry, carries
    )


def before_each(carry: Any, carries: Any) -> Any:
    """Return the carry before each of T steps [T, ...]: `carry`, then all of `carries` but the last."""
    return jax.tree.map(lambda c, after: jnp.concatenate([c[None], after[:-1]]), carry, carries)
