"""Formal languages: train on short strings, test on longer ones.

What a network has learnt of a rule shows on lengths that it has not seen. Regular languages (parity, even
pairs, cycle) need a finite memory, aⁿbⁿ a counter, Dyck languages and reversal a stack, ListOps a stack and
arithmetic: one step of Chomsky's hierarchy after the other (Delétang et al. 2023).

Strings are drawn on the device; those of one batch differ in length and are padded to the longest possible.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.tasks.base import Batch, Task
from jaxrnn.tasks.objectives import accuracy, exact
from jaxrnn.tasks.synthetic import synthetic
from jaxrnn.typing import Key

Range = tuple[int, int]
"""Least and largest length."""


@checked
def parity(longest: int = 40, tested: int = 500) -> Task:
    """Tell whether a string of a's and b's has an odd number of b's.

    Args:
      longest: the longest training string; lengths are uniform on 1 … longest.
      tested: longest of the strings to test on; each is longer than all of the training.
    """
    return _regular(
        "parity", 2, 2, lambda tokens, valid: (tokens * valid).sum(0) % 2, longest, tested
    )


@checked
def even_pairs(longest: int = 40, tested: int = 500) -> Task:
    """Tell whether the pairs ab and ba of a string come to an even number together.

    They do when its first letter is its last.

    Args:
      longest: of the strings to train on.
      tested: longest of the strings to test on; each is longer than all of the training.
    """

    def differs(tokens: Any, valid: Any) -> Any:
        last = jnp.take_along_axis(tokens, valid.sum(0)[None] - 1, axis=0)[0]
        return (tokens[0] != last).astype(tokens.dtype)

    return _regular("even-pairs", 2, 2, differs, longest, tested)


@checked
def cycle(longest: int = 40, tested: int = 500) -> Task:
    """Tell where on a circle of five places one stands after steps of +1, −1 and 0.

    Args:
      longest: of the walks to train on.
      tested: longest of the walks to test on; each is longer than all of the training.
    """
    return _regular(
        "cycle", 3, 5, lambda tokens, valid: ((tokens - 1) * valid).sum(0) % 5, longest, tested
    )


def _regular(
    name: str,
    letters: int,
    classes: int,
    answer: Callable[[Any, Any], Any],
    longest: int,
    tested: int,
) -> Task:
    """Return the task of naming the class that a regular language gives a string."""

    def draw(lengths: Range, key: Key, batch: int) -> Batch:
        which, size = jax.random.split(key)
        each = jax.random.randint(size, (batch,), lengths[0], lengths[1] + 1)
        tokens = jax.random.randint(which, (lengths[1], batch), 0, letters)
        valid = (jnp.arange(lengths[1])[:, None] < each[None]).astype(tokens.dtype)
        inputs = jax.nn.one_hot(tokens, letters)
        return Batch(inputs, answer(tokens, valid), jnp.ones(batch, bool), each)

    _check_lengths(longest, tested)
    return synthetic(
        name,
        functools.partial(draw, (1, longest)),
        draw_test=functools.partial(draw, (longest + 1, tested)),
        source="Delétang et al. 2023",
        answers="sequence",
        outputs=classes,
        in_features=letters,
        loss="cross_entropy",
        metric=accuracy,
        chance=1 / classes,
        solved=0.9,
    )


@checked
def reverse_string(longest: int = 40, tested: int = 500) -> Task:
    """Repeat a string of a's and b's backwards, after it has ended.

    Args:
      longest: of the strings to train on.
      tested: longest of the strings to test on; each is longer than all of the training.
    """
    _check_lengths(longest, tested)
    return synthetic(
        "reverse-string",
        functools.partial(_reversed, (1, longest)),
        draw_test=functools.partial(_reversed, (longest + 1, tested)),
        source="Delétang et al. 2023",
        answers="step",
        outputs=2,
        in_features=3,
        loss="cross_entropy",
        metric=accuracy,
        chance=0.5,
        solved=0.9,
    )


def _reversed(lengths: Range, key: Key, batch: int) -> Batch:
    which, size = jax.random.split(key)
    each = jax.random.randint(size, (batch,), lengths[0], lengths[1] + 1)[None]
    tokens = jax.random.randint(which, (lengths[1], batch), 0, 2)
    steps = jnp.arange(2 * lengths[1])[:, None]
    origin = jnp.clip(2 * each - 1 - steps, 0, lengths[1] - 1)
    shown = jnp.where(steps < each, jnp.pad(tokens, ((0, lengths[1]), (0, 0))), 2)
    asked = jnp.take_along_axis(tokens, origin, axis=0)
    mask = (steps >= each) & (steps < 2 * each)
    return Batch(jax.nn.one_hot(shown, 3), asked, mask, 2 * each[0])


@checked
def anbn(longest: int = 50, tested: int = 100) -> Task:
    """Read aⁿbⁿ and say after each letter which ones may follow: a, b, or the end.

    While a's come, an a or a b may follow; from the first b on everything is determined, and only a counter
    knows when the end comes. A string counts as right when all its answers are (Gers & Schmidhuber 2001;
    Weiss, Goldberg & Yahav 2018).

    Args:
      longest: largest n to train on.
      tested: largest n to test on; each n is larger than all of the training.
    """
    _check_lengths(longest, tested)
    return synthetic(
        "anbn",
        functools.partial(_anbn, (1, longest)),
        draw_test=functools.partial(_anbn, (longest + 1, tested)),
        source="Gers & Schmidhuber 2001; Weiss, Goldberg & Yahav 2018",
        answers="step",
        outputs=3,
        in_features=2,
        loss="bernoulli",
        metric=exact,
        chance=0.0,
        solved=0.99,
    )


def _anbn(lengths: Range, key: Key, batch: int) -> Batch:
    n = jax.random.randint(key, (1, batch), lengths[0], lengths[1] + 1)
    steps = jnp.arange(2 * lengths[1])[:, None]
    among_a, ended = steps < n, steps == 2 * n - 1
    letters = jax.nn.one_hot(jnp.where(among_a, 0, 1), 2)
    allowed = jnp.stack([among_a, ~ended, ended], axis=-1).astype(letters.dtype)
    return Batch(letters, allowed, steps < 2 * n, 2 * n[0])


@checked
def dyck(kinds: int = 2, longest: int = 50, tested: int = 100, depth: int = 10) -> Task:
    """Read well-nested brackets and say which may follow: those that open, and the one that closes.

    Every opening bracket may follow at any time, so what is asked is the kind of the innermost open one,
    which only a stack knows. A string counts as right when all its answers are (Suzgun et al. 2019).

    Args:
      kinds: of brackets.
      longest: the most brackets of a training string, which has at least 2.
      tested: longest of the strings to test on; each is longer than all of the training.
      depth: how many brackets may be open at once.
    """
    _check_lengths(longest, tested)
    checks.counts(kinds=kinds, depth=depth)
    if longest % 2 or tested % 2:
        checks.refuse("longest, tested", (longest, tested), "even numbers: brackets come in pairs")
    return synthetic(
        "dyck",
        functools.partial(_dyck, kinds, (2, longest), depth),
        draw_test=functools.partial(_dyck, kinds, (longest + 2, tested), depth),
        source="after Suzgun, Gehrmann, Belinkov & Shieber 2019",
        answers="step",
        outputs=2 * kinds,
        in_features=2 * kinds,
        loss="bernoulli",
        metric=exact,
        chance=0.0,
        solved=0.99,
    )


def _dyck(kinds: int, lengths: Range, depth: int, key: Key, batch: int) -> Batch:
    sequences, length = jnp.arange(batch), lengths[1]
    coins, which, size = jax.random.split(key, 3)
    each = 2 * jax.random.randint(size, (batch,), lengths[0] // 2, length // 2 + 1)

    def step(state: Any, drawn: Any) -> Any:
        stack, height = state
        coin, kind, left = drawn
        opens = (coin & (height < jnp.minimum(depth, left))) | (height == 0)
        top = stack[sequences, jnp.maximum(height - 1, 0)]
        bracket = jnp.where(opens, kind, kinds + top)
        place = jnp.where(opens, height, depth)  # a write past the end is none
        stack = stack.at[sequences, place].set(kind, mode="drop")
        height = jnp.where(opens, height + 1, height - 1)
        innermost = stack[sequences, jnp.maximum(height - 1, 0)]
        closes = jax.nn.one_hot(innermost, kinds) * (height > 0)[:, None].astype(jnp.float32)
        return (stack, height), (bracket, jnp.concatenate([jnp.ones_like(closes), closes], axis=-1))

    steps = jnp.arange(length)[:, None]
    drawn = (
        jax.random.bernoulli(coins, 0.5, (length, batch)),
        jax.random.randint(which, (length, batch), 0, kinds),
        each[None] - steps,
    )
    start = (jnp.zeros((batch, depth), jnp.int32), jnp.zeros(batch, jnp.int32))
    _, (brackets, allowed) = jax.lax.scan(step, start, drawn)
    return Batch(jax.nn.one_hot(brackets, 2 * kinds), allowed, steps < each[None], each)


_OPERATORS = ("max", "min", "median", "sum modulo 10")
_CLOSE = 10 + len(_OPERATORS)


@checked
def listops(length: int = 100, depth: int = 5, most: int = 5) -> Task:
    """Give the value, a digit, of nested lists such as [max 2 9 [min 4 7] 0].

    Operators are maximum, minimum, median (the lower one of an even number) and sum modulo 10; lists hold 2
    to `most` values, digits or lists (Nangia & Bowman 2018).

    Args:
      length: tokens of an expression at most.
      depth: lists within lists at most.
      most: values of a list at most, at least 2.
    """
    checks.counts(length=length, depth=depth, most=most)
    if most < 2 or length < 4:
        checks.refuse("most, length", (most, length), "at least 2 values, 4 tokens")
    draw = functools.partial(_listops, length, depth, most)
    return synthetic(
        "listops",
        draw,
        source="Nangia & Bowman 2018",
        answers="sequence",
        outputs=10,
        tokens=_CLOSE + 1,
        loss="cross_entropy",
        metric=accuracy,
        chance=_commonest(draw),
        solved=0.9,
    )


def _commonest(draw: Callable[[Any, int], Batch]) -> float:
    """Return the share of the commonest answer."""
    answers = jax.jit(draw, static_argnums=1)(jax.random.key(0), 8_192).targets
    return float(jnp.bincount(answers, length=10).max() / len(answers))


def _listops(length: int, depth: int, most: int, key: Key, batch: int) -> Batch:
    """Draw expressions token by token, with a stack of the values of the lists that are open."""
    sequences = jnp.arange(batch)

    def step(state: Any, drawn: Any) -> Any:
        counts, operators, height, value = state
        choice, digit, operator, left = drawn
        done = (height == 0) & (value >= 0)
        top = jnp.maximum(height - 1, 0)
        held = counts[sequences, top].sum(axis=-1)
        # To end in time: a list that is open may need a digit and its bracket once the lists within it are
        # closed, a new one an operator, two digits and a bracket.
        must_close = (held >= 2) & ((held >= most) | (left < 2 * height))
        room = (height < depth) & (left >= 2 * height + 4)
        opens = ~done & ((height == 0) | (~must_close & room & (choice < 0.25)))
        closes = ~done & ~opens & (must_close | ((held >= 2) & (choice > 0.8)))
        writes = ~done & ~opens & ~closes

        result = _value(counts[sequences, top], operators[sequences, top])
        token = jnp.where(opens, 10 + operator, jnp.where(closes, _CLOSE, digit))
        height = height + jnp.where(opens, 1, jnp.where(closes, -1, 0))
        value = jnp.where(closes & (height == 0), result, value)
        # What a digit or a closed list adds goes to the list that is innermost now.
        row = jnp.where(writes | (closes & (height > 0)), height - 1, depth)
        counts = counts.at[sequences, row, jnp.where(closes, result, digit)].add(1, mode="drop")
        fresh = jnp.where(opens, height - 1, depth)
        counts = counts.at[sequences, fresh].set(0, mode="drop")
        operators = operators.at[sequences, fresh].set(operator, mode="drop")
        return (counts, operators, height, value), (token, ~done)

    keys = jax.random.split(key, 3)
    shape = (length, batch)
    drawn = (
        jax.random.uniform(keys[0], shape),
        jax.random.randint(keys[1], shape, 0, 10),
        jax.random.randint(keys[2], shape, 0, len(_OPERATORS)),
        jnp.arange(length, 0, -1),
    )
    zero = jnp.zeros(batch, jnp.int32)
    start = (jnp.zeros((batch, depth, 10), jnp.int32), jnp.zeros((batch, depth), jnp.int32), zero)
    (*_, value), (tokens, valid) = jax.lax.scan(step, (*start, zero - 1), drawn)
    tokens = jnp.where(valid, tokens, 0)
    return Batch(tokens, value, jnp.ones(batch, bool), valid.sum(axis=0, dtype=jnp.int32))


def _value(counts: Any, operators: Any) -> Any:
    """Return what an operator makes of digits, given how often each comes [B, 10]."""
    digits = jnp.arange(10)
    held = counts.sum(axis=-1, keepdims=True)
    present = counts > 0
    largest = jnp.max(jnp.where(present, digits[None], -1), axis=-1)
    smallest = jnp.min(jnp.where(present, digits[None], 10), axis=-1)
    below = 2 * jnp.cumsum(counts, axis=-1)
    median = (jnp.argmax(below >= held, axis=-1) + jnp.argmax(below > held, axis=-1)) // 2
    total = (counts * digits[None]).sum(axis=-1) % 10
    each = jnp.stack([largest, smallest, median.astype(total.dtype), total])
    return jnp.take_along_axis(each, operators[None], axis=0)[0]


def _check_lengths(longest: int, tested: int) -> None:
    checks.counts(longest=longest, tested=tested)
    if tested <= longest:
        checks.refuse("tested", tested, f"more than the {longest} of the training")
