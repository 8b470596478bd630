"""Word vectors from a text alone: skip-gram with negative sampling.

    J(w, c) = −log σ(u_c · v_w) − Σ_k log σ(−u_n_k · v_w)        n_k ~ count^¾ / Σ count^¾

Mikolov et al. 2013, "Distributed Representations of Words and Phrases and their Compositionality", equations
4 and 5. Every word w of the text is to tell the words c around it from K words drawn at random. Frequent
words are thinned out first: a word of relative frequency f is dropped with probability 1 − √(t/f), and
windows reach over the gaps. As in the authors' program, each word's window is drawn from 1 to `window`, v
starts uniform in ±1/(2F) and u at zero; a negative may by chance be the context itself. Words that stand in
like contexts come to lie in like directions.

The paper takes one pair at a time by gradient descent; here a step is a batch of pairs, and Adam.
Weakness: each step updates both tables whole, and the pairs of an epoch are laid out in memory, about
N·(window + 1) of them, which is for texts of millions of words, not billions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.models.embeddings import check_tokens
from jaxrnn.typing import ArrayLike, Key


class Tables(NamedTuple):
    """The vectors that are learnt.

    Attributes:
      words: v, of a word in the middle of a window [V, F]: the word vectors.
      contexts: u, of a word around it [V, F].
    """

    words: Float[Array, "V F"]
    contexts: Float[Array, "V F"]


@checked
@dataclasses.dataclass(frozen=True)
class SkipGram:
    """How to train word vectors.

    Attributes:
      features: size F of a vector.
      window: the largest distance of a context word from its word.
      negatives: words K drawn at random for every pair.
      threshold: t, the relative frequency from which words are thinned out; the paper's is 1e-5, for
        billions of words.
      epochs: passes over the text.
      batch_size: pairs a step.
      learning_rate: of Adam.
    """

    features: int = 100
    window: int = 5
    negatives: int = 5
    threshold: float = 1e-3
    epochs: int = 5
    batch_size: int = 1024
    learning_rate: float = 2.5e-3

    def check(self) -> None:
        """Refuse settings with which nothing can be trained."""
        for field in ("features", "window", "negatives", "epochs", "batch_size"):
            checks.count(field, getattr(self, field))
        for field in ("threshold", "learning_rate"):
            checks.positive(field, getattr(self, field))


@checked
def train_skip_gram(
    tokens: Int[ArrayLike, "N"] | Sequence[int] | Any,
    vocabulary_size: int,
    config: SkipGram,
    *,
    key: Key,
    progress: Callable[[int, float], None] | None = None,
) -> Float[Array, "V F"]:
    """Learn word vectors from one long text.

    Args:
      tokens: the text, as word numbers.
      vocabulary_size: V; a word that never comes keeps its random vector.
      config: how to train.
      key: draws the first vectors, windows, order and negatives.
      progress: called after every epoch with its number, from 1, and its mean loss in nats a pair.

    Returns:
      The word vectors v [V, F], float32.

    Raises:
      InputError: settings out of range, or a text with fewer pairs than a batch.

    Example:
      >>> import jax
      >>> from jaxrnn.models import SkipGram, train_skip_gram
      >>> text = jax.random.randint(jax.random.key(0), (200,), 0, 10)
      >>> config = SkipGram(features=4, epochs=1, batch_size=32, threshold=1.0)
      >>> train_skip_gram(text, 10, config, key=jax.random.key(1)).shape
      (10, 4)
    """
    config.check()
    checks.count("vocabulary_size", vocabulary_size)
    text = np.asarray(tokens)
    check_tokens("tokens", text, vocabulary_size)
    checks.shape("tokens", text, (text.size,), "one text [N]")
    first, order, draws = jax.random.split(key, 3)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(order)))
    optimizer = optax.adam(config.learning_rate)
    tables = _first_tables(first, vocabulary_size, config.features)
    counts = np.bincount(text, minlength=vocabulary_size)
    state = (tables, optimizer.init(tables))
    step = jax.jit(_step(optimizer, noise(counts), config.negatives))
    done = 0
    for epoch in range(1, config.epochs + 1):
        losses = []
        for batch in _batches(rng, text, counts, config):
            state, loss = step(state, jnp.asarray(batch), jax.random.fold_in(draws, done))
            losses.append(loss)
            done += 1
        if progress is not None:
            progress(epoch, float(np.mean([float(loss) for loss in losses])))
    return state[0].words


def skip_gram_loss(
    tables: Tables,
    words: Int[ArrayLike, "B"],
    contexts: Int[ArrayLike, "B"],
    negatives: Int[ArrayLike, "B K"],
) -> Float[Array, ""]:
    """Return the mean of J over pairs of a word and a context, each with its negatives, in nats a pair."""
    v = tables.words[words]
    true = jnp.sum(v * tables.contexts[contexts], axis=-1)
    false = jnp.sum(v[:, None] * tables.contexts[negatives], axis=-1)
    return -jnp.mean(jax.nn.log_sigmoid(true) + jax.nn.log_sigmoid(-false).sum(axis=-1))


def noise(counts: Int[np.ndarray, "V"]) -> Float[np.ndarray, "V"]:
    """Return the distribution of negatives, count^¾ / Σ count^¾."""
    weights = counts.astype(np.float64) ** 0.75
    return weights / weights.sum()


def draw_negatives(
    key: Key, cumulative: Float[Array, "V"], shape: tuple[int, ...]
) -> Int[Array, "..."]:
    """Draw words from a distribution that is given by its running sums, in log V a word."""
    # The last sum is 1 but for rounding; what is drawn must stay below it.
    height = jax.random.uniform(key, shape, cumulative.dtype) * cumulative[-1]
    drawn = jnp.searchsorted(cumulative, height, side="right")
    return jnp.minimum(drawn, len(cumulative) - 1)


def kept_share(counts: Int[np.ndarray, "V"], threshold: float) -> Float[np.ndarray, "V"]:
    """Return the probability min(1, √(t/f)) with which each word stays when frequent ones are thinned."""
    frequency = np.maximum(counts, 1) / counts.sum()
    return np.minimum(1.0, np.sqrt(threshold / frequency))


def window_pairs(text: Int[np.ndarray, "N"], reach: Int[np.ndarray, "N"]) -> Int[np.ndarray, "M 2"]:
    """Return all pairs of a word and a context no further from it than its `reach`, on either side."""
    pairs = [np.empty((0, 2), text.dtype)]
    for distance in range(1, min(int(reach.max(initial=0)), len(text) - 1) + 1):
        early, late = text[:-distance], text[distance:]
        ahead, back = reach[:-distance] >= distance, reach[distance:] >= distance
        pairs.append(np.stack([early[ahead], late[ahead]], axis=1))
        pairs.append(np.stack([late[back], early[back]], axis=1))
    return np.concatenate(pairs)


def _batches(
    rng: np.random.Generator,
    text: Int[np.ndarray, "N"],
    counts: Int[np.ndarray, "V"],
    config: SkipGram,
) -> Iterator[Int[np.ndarray, "B 2"]]:
    """Yield the pairs of an epoch in random order; what does not fill a batch is left out."""
    kept = text[rng.random(len(text)) < kept_share(counts, config.threshold)[text]]
    reach = rng.integers(1, config.window, size=len(kept), endpoint=True)
    pairs = rng.permutation(window_pairs(kept, reach))
    if len(pairs) < config.batch_size:
        expected = f"at most the {len(pairs)} pairs that this text gives"
        checks.refuse("batch_size", config.batch_size, expected)
    whole = len(pairs) - len(pairs) % config.batch_size
    yield from pairs[:whole].reshape(-1, config.batch_size, 2)


def _first_tables(key: Key, tokens: int, features: int) -> Tables:
    shape, half = (tokens, features), 0.5 / features
    words = jax.random.uniform(key, shape, jnp.float32, -half, half)
    return Tables(words, jnp.zeros(shape, jnp.float32))


def _step(
    optimizer: optax.GradientTransformation,
    distribution: Float[np.ndarray, "V"],
    negatives: int,
) -> Callable[..., Any]:
    """Return the function that takes one step: ``(state, pairs, key) -> (state, loss)``."""
    cumulative = jnp.asarray(np.cumsum(distribution), jnp.float32)

    def step(state, pairs, key):
        tables, moments = state
        false = draw_negatives(key, cumulative, (len(pairs), negatives))
        loss, gradient = jax.value_and_grad(skip_gram_loss)(tables, pairs[:, 0], pairs[:, 1], false)
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies floats with integers
            change, moments = optimizer.update(gradient, moments, tables)
        return (optax.apply_updates(tables, change), moments), loss

    return step
