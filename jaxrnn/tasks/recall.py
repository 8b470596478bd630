"""Tasks of memory: something is shown, time passes, and the network must answer what it was.

Each sets one demand apart. Copying keeps much for long; selective copying also decides what to keep; recall
of the first token keeps one thing through noise that looks alike; the flip-flop keeps and overwrites;
association finds by content; delayed and look-ahead labels ask for the past and for the future at every
step.

All are drawn on the device, new ones at every step, so that nothing can be learnt by heart.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.tasks.base import Batch, Task
from jaxrnn.tasks.flip_flop import flip_flop as draw_flip_flop
from jaxrnn.tasks.objectives import accuracy, mse, nats
from jaxrnn.tasks.synthetic import synthetic
from jaxrnn.typing import Key


@checked
def copy_memory(delay: int = 100, symbols: int = 10, alphabet: int = 8) -> Task:
    """Repeat a string of symbols after a long delay.

    Symbols, blanks, a sign, blanks; in the last steps the symbols are to be repeated, before them blanks
    (Hochreiter & Schmidhuber 1997; in this form Arjovsky, Shah & Bengio 2016). Chance knows when to answer,
    and guesses: symbols · ln(alphabet) / (delay + 2 symbols) nats a step.

    Args:
      delay: steps from the last symbol to the sign, and with it.
      symbols: how many to remember.
      alphabet: how many different ones there are.
    """
    checks.counts(delay=delay, symbols=symbols, alphabet=alphabet)
    chance = symbols * math.log(alphabet) / (delay + 2 * symbols)
    return synthetic(
        "copy-memory",
        functools.partial(_copy, delay, symbols, alphabet),
        source="Arjovsky, Shah & Bengio 2016",
        answers="step",
        outputs=alphabet + 1,
        in_features=alphabet + 2,
        loss="cross_entropy",
        metric=nats,
        chance=chance,
        solved=chance / 20,
    )


def _copy(delay: int, symbols: int, alphabet: int, key: Key, batch: int) -> Batch:
    string = jax.random.randint(key, (symbols, batch), 1, alphabet + 1)
    blank = functools.partial(jnp.zeros, dtype=string.dtype)
    sign = jnp.full((1, batch), alphabet + 1, string.dtype)
    shown = jnp.concatenate([string, blank((delay - 1, batch)), sign, blank((symbols, batch))])
    asked = jnp.concatenate([blank((delay + symbols, batch)), string])
    return Batch(jax.nn.one_hot(shown, alphabet + 2), asked, jnp.ones(asked.shape, bool))


@checked
def selective_copy(length: int = 100, symbols: int = 10, alphabet: int = 8) -> Task:
    """Repeat the symbols of a string in which they stand at random places, in their order.

    Where a fixed delay can be counted out, here the input itself decides what is kept (Gu & Dao 2023).

    Args:
      length: steps in which the symbols are strewn.
      symbols: how many there are.
      alphabet: how many different ones.
    """
    checks.counts(length=length, symbols=symbols, alphabet=alphabet)
    if symbols > length:
        checks.refuse("symbols", symbols, f"at most the {length} steps")
    return synthetic(
        "selective-copy",
        functools.partial(_selective, length, symbols, alphabet),
        source="Gu & Dao 2023",
        answers="step",
        outputs=alphabet,
        in_features=alphabet + 2,
        loss="cross_entropy",
        metric=accuracy,
        chance=1 / alphabet,
        solved=0.99,
    )


def _selective(length: int, symbols: int, alphabet: int, key: Key, batch: int) -> Batch:
    which, where = jax.random.split(key)
    string = jax.random.randint(which, (symbols, batch), 0, alphabet)
    ranks = jnp.argsort(jax.random.uniform(where, (length, batch)), axis=0)
    places = jnp.sort(ranks[:symbols], axis=0)
    shown = jnp.zeros((length, batch), string.dtype)
    shown = shown.at[places, jnp.arange(batch)[None]].set(string + 1)
    sign = jnp.full((symbols, batch), alphabet + 1, string.dtype)
    asked = jnp.concatenate([jnp.zeros_like(shown), string])
    mask = jnp.arange(length + symbols) >= length
    inputs = jax.nn.one_hot(jnp.concatenate([shown, sign]), alphabet + 2)
    return Batch(inputs, asked, jnp.broadcast_to(mask[:, None], asked.shape))


@checked
def first_token(length: int = 100, alphabet: int = 8) -> Task:
    """Name the first token of a sequence after the last one.

    All later tokens are of the same kind, so that what is to be kept must be told from noise by its place
    alone.

    Args:
      length: steps.
      alphabet: how many different tokens there are.
    """
    checks.counts(length=length, alphabet=alphabet)
    return synthetic(
        "first-token",
        functools.partial(_first, length, alphabet),
        source="first-token recall, as in the latching problem of Bengio, Simard & Frasconi 1994",
        answers="sequence",
        outputs=alphabet,
        in_features=alphabet,
        loss="cross_entropy",
        metric=accuracy,
        chance=1 / alphabet,
        solved=0.9,
    )


def _first(length: int, alphabet: int, key: Key, batch: int) -> Batch:
    tokens = jax.random.randint(key, (length, batch), 0, alphabet)
    return Batch(jax.nn.one_hot(tokens, alphabet), tokens[0], jnp.ones(batch, bool))


@checked
def flip_flop(length: int = 100, bits: int = 3, probability: float = 0.1) -> Task:
    """Hold the last pulse that came in each of some channels.

    The standard network of fixed-point analysis (Sussillo & Barak 2013). Chance answers 0 where the memory is
    +1 or −1: a mean squared error of 1.

    Args:
      length: steps.
      bits: channels.
      probability: of a pulse, in each channel and step.
    """

    def draw(key: Key, batch: int) -> Batch:
        inputs, targets = draw_flip_flop(
            key, steps=length, batch=batch, bits=bits, probability=probability
        )
        return Batch(inputs, targets, jnp.ones(targets.shape[:2], bool))

    return synthetic(
        "flip-flop",
        draw,
        source="Sussillo & Barak 2013",
        answers="step",
        outputs=bits,
        in_features=bits,
        loss="mse",
        metric=mse,
        chance=1.0,
        solved=0.05,
    )


@checked
def agreement(gap: int = 20, fillers: int = 20, cues: int = 2) -> Task:
    """Choose the verb that a cue at the beginning of a sentence asks for, after a gap of other words.

    "Today, … , I have" but "last year, … , I had": the cue, words that say nothing, a subject; the answer is
    the verb. What an n-gram cannot do once the gap is longer than n.

    Args:
      gap: words between the cue and the subject.
      fillers: how many different ones there are.
      cues: how many cues there are, each with a verb of its own.
    """
    checks.counts(gap=gap, fillers=fillers, cues=cues)
    return synthetic(
        "agreement",
        functools.partial(_agreement, gap, fillers, cues),
        source="cue–gap–verb agreement, after Linzen, Dupoux & Goldberg 2016",
        answers="sequence",
        outputs=cues,
        tokens=cues + fillers + 1,
        loss="cross_entropy",
        metric=accuracy,
        chance=1 / cues,
        solved=0.9,
    )


def _agreement(gap: int, fillers: int, cues: int, key: Key, batch: int) -> Batch:
    which, words = jax.random.split(key)
    cue = jax.random.randint(which, (1, batch), 0, cues)
    between = jax.random.randint(words, (gap, batch), cues, cues + fillers)
    subject = jnp.full((1, batch), cues + fillers, cue.dtype)
    sentence = jnp.concatenate([cue, between, subject])
    return Batch(sentence, cue[0], jnp.ones(batch, bool))


@checked
def shifted_labels(shift: int = 10, length: int = 100, alphabet: int = 4) -> Task:
    """Name, at every step, the token of some steps ago, or of some steps ahead.

    A shift above 0 asks for the past, which takes a memory of that many tokens; one below 0 asks for the
    future, which a network that reads forwards cannot know.

    Args:
      shift: steps from the token to its label; below 0 the label comes first.
      length: steps.
      alphabet: how many different tokens there are.
    """
    checks.counts(length=length, alphabet=alphabet)
    if not abs(shift) < length:
        checks.refuse("shift", shift, f"fewer than the {length} steps, forwards or backwards")
    return synthetic(
        "shifted-labels",
        functools.partial(_shifted, shift, length, alphabet),
        source="labels delayed or ahead, after Schuster & Paliwal 1997 and Graves & Schmidhuber 2005",
        answers="step",
        outputs=alphabet,
        in_features=alphabet,
        loss="cross_entropy",
        metric=accuracy,
        chance=1 / alphabet,
        solved=0.99,
    )


def _shifted(shift: int, length: int, alphabet: int, key: Key, batch: int) -> Batch:
    tokens = jax.random.randint(key, (length, batch), 0, alphabet)
    origin = jnp.arange(length) - shift
    defined = (origin >= 0) & (origin < length)
    mask = jnp.broadcast_to(defined[:, None], tokens.shape)
    return Batch(jax.nn.one_hot(tokens, alphabet), jnp.roll(tokens, shift, axis=0), mask)


@checked
def associative_recall(pairs: int = 8, keys: int = 26, values: int = 10) -> Task:
    """Name the value that stood beside a key, among pairs of keys and values.

    A letter, its digit, a letter, its digit, …, and one of the letters again: which was its digit? (Ba et al.
    2016.) No key comes twice.

    Args:
      pairs: how many pairs a sequence shows.
      keys: how many different keys there are.
      values: how many different values.
    """
    checks.counts(pairs=pairs, keys=keys, values=values)
    if pairs > keys:
        checks.refuse("pairs", pairs, f"at most the {keys} keys")
    return synthetic(
        "associative-recall",
        functools.partial(_associative, pairs, keys, values),
        source="Ba et al. 2016",
        answers="sequence",
        outputs=values,
        in_features=keys + values,
        loss="cross_entropy",
        metric=accuracy,
        chance=1 / values,
        solved=0.99,
    )


def _associative(pairs: int, keys: int, values: int, key: Key, batch: int) -> Batch:
    order, which, asked = jax.random.split(key, 3)
    shown = jnp.argsort(jax.random.uniform(order, (keys, batch)), axis=0)[:pairs]
    beside = jax.random.randint(which, (pairs, batch), 0, values)
    wanted = jax.random.randint(asked, (1, batch), 0, pairs)
    rows = jnp.stack([shown, keys + beside.astype(shown.dtype)], axis=1).reshape(-1, batch)
    query = jnp.take_along_axis(shown, wanted, axis=0)
    answer = jnp.take_along_axis(beside, wanted, axis=0)[0]
    return Batch(
        jax.nn.one_hot(jnp.concatenate([rows, query]), keys + values), answer, jnp.ones(batch, bool)
    )
