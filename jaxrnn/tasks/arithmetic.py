"""Long time lags with little to remember: two marked numbers, or the order of two marked symbols."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.tasks.base import Batch, Task
from jaxrnn.tasks.objectives import accuracy, mse
from jaxrnn.tasks.synthetic import synthetic
from jaxrnn.typing import Key


@checked
def adding(length: int = 200) -> Task:
    """Add the two numbers of a sequence that are marked, one in each half.

    Numbers are uniform in 0 … 1; always answering 1, their mean sum, has a mean squared error of 1/6
    (Hochreiter & Schmidhuber 1997; in this form Le, Jaitly & Hinton 2015).

    Args:
      length: steps, at least 2.
    """
    _check_length(length, 2)
    return synthetic(
        "adding",
        functools.partial(_adding, length),
        source="Hochreiter & Schmidhuber 1997",
        answers="sequence",
        outputs=1,
        in_features=2,
        loss="mse",
        metric=mse,
        chance=1 / 6,
        solved=0.01,
    )


def _adding(length: int, key: Key, batch: int) -> Batch:
    numbers, early, late = jax.random.split(key, 3)
    half = length // 2
    values = jax.random.uniform(numbers, (length, batch))
    first = jax.random.randint(early, (batch,), 0, half)
    second = jax.random.randint(late, (batch,), half, length)
    steps = jnp.arange(length)[:, None]
    marks = ((steps == first[None]) | (steps == second[None])).astype(values.dtype)
    inputs = jnp.stack([values, marks], axis=-1)
    return Batch(inputs, (values * marks).sum(axis=0)[:, None], jnp.ones(batch, bool))


@checked
def temporal_order(length: int = 100) -> Task:
    """Name the order of two symbols, X or Y each, that stand far apart among distractors.

    The first stands in the second tenth of the sequence, the other in the sixth, so the shortest lag is three
    tenths of the length (problem 6a of Hochreiter & Schmidhuber 1997; in this form Pascanu, Mikolov & Bengio
    2013). Four classes: XX, XY, YX, YY.

    Args:
      length: steps, at least 10.
    """
    _check_length(length, 10)
    return synthetic(
        "temporal-order",
        functools.partial(_order, length),
        source="Hochreiter & Schmidhuber 1997, problem 6a; Pascanu, Mikolov & Bengio 2013",
        answers="sequence",
        outputs=4,
        in_features=6,
        loss="cross_entropy",
        metric=accuracy,
        chance=0.25,
        solved=0.99,
    )


def _order(length: int, key: Key, batch: int) -> Batch:
    symbols, early, late, which = jax.random.split(key, 4)
    tokens = jax.random.randint(symbols, (length, batch), 2, 6)  # four distractors
    marked = jax.random.randint(which, (2, batch), 0, 2)
    first = jax.random.randint(early, (batch,), length // 10, 2 * length // 10)
    second = jax.random.randint(late, (batch,), 5 * length // 10, 6 * length // 10)
    sequences = jnp.arange(batch)
    tokens = tokens.at[first, sequences].set(marked[0]).at[second, sequences].set(marked[1])
    return Batch(jax.nn.one_hot(tokens, 6), 2 * marked[0] + marked[1], jnp.ones(batch, bool))


def _check_length(length: int, least: int) -> None:
    checks.count("length", length)
    if length < least:
        checks.refuse("length", length, f"at least {least} steps")
