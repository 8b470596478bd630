"""The parts of a step that `Blocked` treats apart, whoever says what they are.

    drives   = what comes from the input          many steps at once
    signals  = drives, products of the past with weights: what gates are functions of
    carry'   = what gates make of their signals    step by step

A cell that keeps the contract of `jaxrnn.typing` says so itself (`jaxrnn.unroll.split`); of any other step
the traced program tells (`jaxrnn.unroll.traced`).
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.typing import Carry


def is_float(x: Any) -> bool:
    """Tell whether something is an array of real floats, or has the form of one."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)


def vjp_by(
    asked: Any, function: Callable[..., Any], *arguments: Any, has_aux: bool = False
) -> tuple[Any, ...]:
    """Return what `jax.vjp` does, by some leaves of the arguments alone; cotangents of others are zero.

    They are closed over rather than stopped: derivatives of this derivative go on through them.

    Args:
      asked: for each leaf of the arguments, whether its cotangent is asked for.
      function: of the arguments.
      arguments: trees of arrays.
      has_aux: as in `jax.vjp`.
    """
    leaves, structure = jax.tree.flatten(arguments)
    chosen = structure.flatten_up_to(asked)

    def whole(some: Any, other: Callable[[Any], Any]) -> Any:
        remaining, pairs = iter(some), zip(leaves, chosen, strict=True)
        return structure.unflatten([next(remaining) if yes else other(leaf) for leaf, yes in pairs])

    def of_some(some: Any) -> Any:
        return function(*whole(some, lambda leaf: leaf))

    some = [leaf for leaf, yes in zip(leaves, chosen, strict=True) if yes]
    out, pull, *aux = jax.vjp(of_some, some, has_aux=has_aux)

    def back(cotangent: Any) -> Any:
        (found,) = pull(cotangent)
        return whole(found, jnp.zeros_like)

    return out, back, *aux


class Results(NamedTuple):
    """What a step returns; `y` is None where the output is read from the carry."""

    carry: Carry
    y: Any


class Block(NamedTuple):
    """A block of n steps on the way back.

    Attributes:
      signals: of its steps [n, *B, …].
      fixed: what the steps read of their input that has no cotangent, such as indices [n, *B, …].
      back: from what the steps back found (`Cotangents.signal`) to the cotangents of the weights and of the
        inputs [n, *B, F].
    """

    signals: Any
    fixed: Any
    back: Callable[[Any], tuple[Any, Any]]


class Cotangents(NamedTuple):
    """What a step back finds.

    Attributes:
      carry: cotangents of the carry before the step.
      signal: of its signals, or of what they are joined from.
      read: of what the step reads of the weights beside its products, as `Parts.read` has it.
    """

    carry: Carry
    signal: Any
    read: Any


class Parts(abc.ABC):
    """How a step is taken apart. It holds no arrays: `weights` come with every call.

    Attributes:
      rows: rows that a product of one step has.
      numbers: numbers in the signals of one step.
      bytes: of these, and of what else a step back reads.
      widest: the longest row of a drive or signal, of which gates are slices.
      width: the longest row of a leaf of the carry.
      features: the longest row of an input.
      slices: arrays of that width that the step back reads, or thereabouts.
      drives_alone: whether the signals are the drives, and no weights meet the carry.
    """

    rows: int
    numbers: int
    bytes: int
    widest: int
    width: int
    features: int
    slices: int
    drives_alone: bool

    @abc.abstractmethod
    def weights(self, held: Any) -> Any:
        """Return the weights from the arrays that the step holds."""

    @abc.abstractmethod
    def by(self, weights: Any, carry: Carry, x: Any) -> Parts:
        """Return parts that differentiate by no more than a plain scan would.

        Args:
          weights: for each weight, whether its cotangent is asked for.
          carry: the same for each leaf of the carry before the first step, or after a reset.
          x: the same for each leaf of the input.
        """

    @abc.abstractmethod
    def drives(self, weights: Any, xs: Any) -> Any:
        """Return what comes from inputs [n, *B, F]."""

    @abc.abstractmethod
    def drive(self, weights: Any, x: Any) -> Any:
        """Return what comes from one input [*B, F]."""

    @abc.abstractmethod
    def step(self, weights: Any, carry: Carry, drive: Any) -> tuple[Results, Any]:
        """Take one step; return its signals too: all that a step back needs beside `Block.fixed`."""

    @abc.abstractmethod
    def outputs(self, weights: Any, carries: Carry, ys: Any) -> Any:
        """Return the outputs [T, *B, Y] that belong to carries [T, *B, H]."""

    @abc.abstractmethod
    def read(self, weights: Any) -> Any:
        """Return what the step reads of the weights beside its products, the same at every step."""

    @abc.abstractmethod
    def turned(self, weights: Any) -> Any:
        """Return the weights as products on the way back want them: matrices transposed."""

    @abc.abstractmethod
    def block(self, weights: Any, xs: Any, starts: Carry, signals: Any) -> Block:
        """Return a block of steps [n, *B, …] on the way back; computes its signals if None is given."""

    @abc.abstractmethod
    def back(
        self, weights: Any, turned: Any, start: Carry, signal: Any, fixed: Any, cotangents: Results
    ) -> Cotangents:
        """Go back through one step; `turned` may be None."""

    @abc.abstractmethod
    def with_read(self, weights: Any, d_weights: Any, d_read: Any) -> Any:
        """Add cotangents of what `read` returned to those of the weights."""
