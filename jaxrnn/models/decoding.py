"""Search for the target that an encoder–decoder finds most probable.

    greedy    at every step the most probable token
    beam      of all extensions of K hypotheses by one token, the K of the highest score

    score(t_1 … t_n) = log p(t_1 … t_n | x) / n^α

The end token counts as one of the n. With α = 0 the score is the log-probability, which prefers short
targets, since every token costs; α = 1 is the mean over tokens (Graves 2012; Cho et al. 2014 and Wu et al.
2016 divide likewise). A hypothesis that has ended keeps its place with its score and is not extended.
A beam of one is greedy; a beam that holds every sequence is exact. In between neither is promised, and a
wider beam can find likelier targets that are worse translations (Koehn & Knowles 2017). Sums are taken in
float32 at least: in half precision a long target's sum would swallow the differences between tokens.

Weakness: always `steps` steps, also where every hypothesis has ended before.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.models.attention import Memory
from jaxrnn.models.encoder_decoder import EncoderDecoder, State, checked_sequences
from jaxrnn.steps import compiled
from jaxrnn.typing import ArrayLike, Lengths, Size, at_least_float32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hypotheses:
    """Targets that were found.

    Attributes:
      tokens: [steps, *B], after beam search [steps, *B, K], the best first; end tokens from the first on.
      lengths: number of tokens, the end token among them; `steps` where none came.
      log_probabilities: log p(tokens up to the length | source), in nats.
    """

    tokens: Int[Array, "T *B"]
    lengths: Int[Array, "*B"]
    log_probabilities: Float[Array, "*B"]


@checked
def greedy_search(
    model: EncoderDecoder,
    sources: Int[ArrayLike, "L *B"] | Any,
    steps: int,
    *,
    seq_lengths: Lengths | Any = None,
) -> Hypotheses:
    """Write the most probable token at every step (the first of equals).

    For the contexts and attention weights along the way, hand the result back to the model:
    ``model(sources, found.tokens, target_lengths=found.lengths)``.

    Args:
      model: the encoder–decoder.
      sources: tokens [L, *B].
      steps: the largest number of tokens, the end token among them.
      seq_lengths: valid steps of each source [*B].

    Raises:
      InputError: an argument out of its range; the message names it.
    """
    sources, lengths = _checked(model, sources, steps, seq_lengths)
    return _greedy(model, sources, lengths, steps=steps)


@checked
def beam_search(
    model: EncoderDecoder,
    sources: Int[ArrayLike, "L *B"] | Any,
    steps: int,
    *,
    width: int,
    length_penalty: float = 1.0,
    seq_lengths: Lengths | Any = None,
) -> Hypotheses:
    """Keep the `width` hypotheses of the highest score at every step.

    Args:
      model: the encoder–decoder.
      sources: tokens [L, *B].
      steps: the largest number of tokens, the end token among them.
      width: number K of hypotheses.
      length_penalty: α; 0 compares probabilities, 1 their geometric mean over the tokens.
      seq_lengths: valid steps of each source [*B].

    Returns:
      Hypotheses [*B, K], the best first. Where there are fewer than K sequences, the rest have a
      log-probability of −∞, and mean nothing.

    Raises:
      InputError: an argument out of its range; the message names it.
    """
    sources, lengths = _checked(model, sources, steps, seq_lengths)
    checks.count("width", width)
    checks.not_negative("length_penalty", length_penalty)
    batch = sources.shape[1:]
    flat = sources.reshape(sources.shape[0], -1)
    lengths = None if lengths is None else lengths.reshape(-1)
    found = _beam(model, flat, lengths, length_penalty, steps=steps, width=width)
    return Hypotheses(
        found.tokens.reshape(steps, *batch, width),
        found.lengths.reshape(*batch, width),
        found.log_probabilities.reshape(*batch, width),
    )


def _checked(model: EncoderDecoder, sources: Any, steps: int, seq_lengths: Any) -> tuple[Any, Any]:
    checks.count("steps", steps)
    checks.sequences("sources", sources)
    return checked_sequences("sources", sources, model.source.tokens, "seq_lengths", seq_lengths)


class _Search(NamedTuple):
    """Hypotheses on their way: where the decoder stands, and what has been written."""

    state: State
    token: Any
    ended: Any
    length: Any
    log_probability: Any


def _begin(model: EncoderDecoder, state: State, batch: tuple[Size, ...]) -> _Search:
    return _Search(
        state=state,
        token=jnp.full(batch, model.start, jnp.int32),
        ended=jnp.zeros(batch, bool),
        length=jnp.zeros(batch, jnp.int32),
        log_probability=jnp.zeros(batch, at_least_float32(state[1].dtype)),
    )


def _gains(
    model: EncoderDecoder, memory: Memory | None, search: _Search
) -> tuple[State, Float[Array, "*B V"]]:
    """Take a step; return the state after it, and what every token adds to log p of each hypothesis.

    What has ended can be extended by another end token alone, which is free.
    """
    state, written = model.write(memory, search.state, model.target(search.token))
    logits = model.logits(written)
    gain = jax.nn.log_softmax(logits.astype(at_least_float32(logits.dtype)))
    free = jnp.where(jnp.arange(gain.shape[-1]) == model.end, 0.0, -jnp.inf).astype(gain.dtype)
    return state, jnp.where(search.ended[..., None], jnp.broadcast_to(free, gain.shape), gain)


@compiled
def _greedy(model: EncoderDecoder, sources: Any, lengths: Any, *, steps: int) -> Hypotheses:
    memory, state = model.encode(sources, seq_lengths=lengths)

    def write(search: _Search, nothing: None):
        del nothing  # the loop has no inputs
        state, gain = _gains(model, memory, search)
        # Of the gain alone: the sum has fewer digits left to tell the tokens apart.
        token = jnp.argmax(gain, axis=-1).astype(jnp.int32)
        gained = jnp.take_along_axis(gain, token[..., None], axis=-1)[..., 0]
        log_probability = search.log_probability + gained
        length = jnp.where(search.ended, search.length, search.length + 1)
        ended = search.ended | (token == model.end)
        return _Search(state, token, ended, length, log_probability), token

    start = _begin(model, state, sources.shape[1:])
    search, tokens = jax.lax.scan(write, start, length=steps)
    return Hypotheses(tokens, search.length, search.log_probability)


@compiled
def _beam(
    model: EncoderDecoder,
    sources: Any,
    lengths: Any,
    length_penalty: Any,
    *,
    steps: int,
    width: int,
) -> Hypotheses:
    """Search for one axis of sources [L, N]; hypotheses are [N, K]."""
    memory, state = model.encode(sources, seq_lengths=lengths)
    shape = (sources.shape[1], width)
    rows = jnp.arange(shape[0])[:, None]

    def extend(search: _Search, nothing: None):
        del nothing  # the loop has no inputs
        state, gain = _gains(model, memory, search)
        extended = search.log_probability[..., None] + gain
        length = jnp.where(search.ended, search.length, search.length + 1)
        scores = extended / (length[..., None].astype(extended.dtype) ** length_penalty)
        _, chosen = jax.lax.top_k(scores.reshape(shape[0], -1), width)
        parent, token = chosen // scores.shape[-1], chosen % scores.shape[-1]
        kept = _Search(
            state=jax.tree.map(lambda leaf: leaf[rows, parent], state),
            token=token,
            ended=search.ended[rows, parent] | (token == model.end),
            length=length[rows, parent],
            log_probability=extended[rows, parent, token],
        )
        return kept, (parent, token)

    memory = jax.tree.map(lambda leaf: leaf[:, :, None], memory)
    start = _begin(model, jax.tree.map(lambda leaf: _repeated(leaf, width), state), shape)
    # All hypotheses begin alike, so only the first may be extended by the first token.
    log_probability = start.log_probability.at[:, 1:].set(-jnp.inf)
    search, links = jax.lax.scan(
        extend, start._replace(log_probability=log_probability), length=steps
    )
    return Hypotheses(_traced(links), search.length, search.log_probability)


def _repeated(leaf: Array, width: int) -> Array:
    return jnp.repeat(leaf[:, None], width, axis=1)


def _traced(links: tuple[Array, Array]) -> Int[Array, "T N K"]:
    """Follow every last hypothesis back through its parents; return its tokens in order."""

    def back(place, link):
        parent, token = (jnp.take_along_axis(part, place, axis=1) for part in link)
        return parent, token

    parents, _ = links
    last = jnp.broadcast_to(jnp.arange(parents.shape[2], dtype=parents.dtype), parents.shape[1:])
    _, tokens = jax.lax.scan(back, last, links, reverse=True)
    return tokens
