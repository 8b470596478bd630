"""A language model: what token comes next, given all that came before.

    x_t = E[token_t]        y_t = body(x_1 … x_t)        log p(token_t+1 = v) = log softmax(V y_t + d)_v

Mikolov et al. 2010, "Recurrent neural network based language model". With tied weights V = Eᵀ (Press & Wolf
2017; Inan et al. 2017): a token that reads alike is predicted alike, and the larger of the two tables is
saved. The body reads forwards only, so the whole past is in its carry, and generation costs one step a
token however long the text is. The first token of a sequence has no past and is not predicted; put a start
token before it where its probability matters.

Weakness: the full softmax costs V products a token. Generation has no memory of what it has said but the
carry, and at temperature 0 falls into loops (Holtzman et al. 2020).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells import initializers
from jaxrnn.cells.base import affine
from jaxrnn.layers import RNN, Stack
from jaxrnn.models.bodies import reads_forwards, sizes
from jaxrnn.models.embeddings import Embedding, check_embedding, checked_tokens
from jaxrnn.models.encoder import last_step
from jaxrnn.models.readouts import cross_entropy
from jaxrnn.steps import compiled
from jaxrnn.typing import ArrayLike, Carry, Key, Lengths, at_least_float32
from jaxrnn.unrolling import padding_mask
from jaxrnn.unrolling.record import seen


class LanguageModel(nnx.Module):
    """An embedding, a body that reads forwards, and a readout over the vocabulary.

    Args:
      embedding: the table [V, F] of the tokens; F is the body's number of input features.
      body: `RNN` or `Stack`, of any cells.
      tied: read the outputs with the embedding's own table; the body must then give F features.
      rngs: ``nnx.Rngs`` whose ``params`` stream draws the readout.

    Attributes:
      kernel: the readout's weights [Y, V]; None where they are tied.
      bias: the readout's biases [V].

    Raises:
      InputError: a body that reads backwards, or sizes that do not fit.

    Example:
      >>> from flax import nnx
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> from jaxrnn.models import Embedding, LanguageModel, generate
      >>> rngs = nnx.Rngs(0)
      >>> body = jaxrnn.RNN(jaxrnn.LSTMCell(16, 16, rngs=rngs))
      >>> model = LanguageModel(Embedding(50, 16, rngs=rngs), body, tied=True, rngs=rngs)
      >>> text = jnp.ones((20, 4), int)
      >>> model(text).shape, model.loss(text).shape
      ((20, 4, 50), ())
      >>> generate(model, text, 30, key=jax.random.key(0), top_k=5).tokens.shape
      (30, 4)
    """

    @checked
    def __init__(
        self,
        embedding: Embedding | Any,
        body: RNN | Stack | Any,
        *,
        tied: bool = False,
        rngs: nnx.Rngs,
    ):
        in_features, features, _, dtype = sizes("body", body)
        if not reads_forwards(body):
            checks.refuse("body", "a layer that reads backwards", "layers that read forwards alone")
        check_embedding("embedding", embedding, in_features, dtype)
        if tied and features != embedding.features:
            expected = f"a body that gives {embedding.features} features, those of the embedding"
            checks.refuse("tied", f"True, for a body that gives {features} features", expected)
        self.embedding = embedding
        self.body = body
        shape = (features, embedding.tokens)
        draw = initializers.glorot()
        self.kernel = None if tied else nnx.Param(draw(rngs.params(), shape, dtype))
        self.bias = nnx.Param(jnp.zeros(embedding.tokens, dtype))

    @checked
    def __call__(
        self,
        tokens: Int[ArrayLike, "T *B"] | Any,
        *,
        seq_lengths: Lengths | Any = None,
        dropout_key: Key | Any = None,
    ) -> Float[Array, "T *B V"]:
        """Map tokens [T, *B] to the logits of the token after each; those of padded steps mean nothing."""
        _, logits = self.read(tokens, seq_lengths=seq_lengths, dropout_key=dropout_key)
        return logits

    @checked
    def read(
        self,
        tokens: Int[ArrayLike, "T *B"] | Any,
        *,
        carry: Carry | None = None,
        seq_lengths: Lengths | Any = None,
        resets: Bool[Array, "T *B"] | Any = None,
        reset_carry: Carry | None = None,
        dropout_key: Key | Any = None,
    ) -> tuple[Carry, Float[Array, "T *B V"]]:
        """Read on from `carry`; return the carry after each sequence's last valid token, and the logits.

        To train on one long text piece by piece (truncated BPTT), hand the carry on, through
        ``jax.lax.stop_gradient``. Where `resets` [T, *B] is True a new text begins: the body starts anew
        there, from `reset_carry` or by default from its own start.
        """
        checks.sequences("tokens", tokens)
        valid = padding_mask(seq_lengths, None, tokens.shape[0], tokens.shape[1:])
        carry, outputs = self.body(
            self.embedding(seen(tokens, valid)),
            initial_carry=carry,
            seq_lengths=seq_lengths,
            resets=resets,
            reset_carry=reset_carry,
            dropout_key=dropout_key,
            time_major=True,
            return_carry=True,
        )
        return carry, self.logits(outputs)

    def logits(self, outputs: Float[Array, "*B Y"]) -> Float[Array, "*B V"]:
        """Read the logits from outputs of the body."""
        kernel = self.embedding.table[...].T if self.kernel is None else self.kernel[...]
        return affine(outputs, kernel, self.bias[...])

    @checked
    def loss(
        self,
        tokens: Int[ArrayLike, "T *B"] | Any,
        *,
        seq_lengths: Lengths | Any = None,
        dropout_key: Key | Any = None,
    ) -> Float[Array, ""]:
        """Return the mean of −log p(token_t | tokens before it) over t from 2, in nats a token.

        Every valid token counts the same, whichever sequence it stands in; ``perplexity(loss)`` is its
        exponential. 0 where no sequence has two tokens.
        """
        checks.sequences("tokens", tokens)
        valid = padding_mask(seq_lengths, None, tokens.shape[0], tokens.shape[1:])
        logits = self(tokens, seq_lengths=seq_lengths, dropout_key=dropout_key)
        return cross_entropy(logits[:-1], tokens[1:], None if valid is None else valid[1:])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Generated:
    """Tokens that a language model wrote.

    Attributes:
      tokens: [steps, *B], without the prompt; after an end token only end tokens.
      carry: the carry before the last of these tokens is read, of a sequence that has ended before its end
        token is read. To go on: ``generate(model, generated.tokens[-1:], more, carry=generated.carry,
        key=...)``.
      lengths: number of tokens [*B], the end token among them; `steps` where none came.
    """

    tokens: Int[Array, "T *B"]
    carry: Carry
    lengths: Int[Array, "*B"]


@checked
def generate(
    model: LanguageModel,
    prompt: Int[ArrayLike, "T *B"] | Any,
    steps: int,
    *,
    key: Key | None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    end: int | None = None,
    carry: Carry | None = None,
    seq_lengths: Lengths | Any = None,
) -> Generated:
    """Continue a prompt: read it once, then take one step a token, in one compiled loop.

    Args:
      model: the language model.
      prompt: what stands before, at least one token.
      steps: number of tokens to write.
      key: draws the tokens; may be None at temperature 0, where nothing is drawn.
      temperature: what the logits are divided by; 0 takes the most probable token (the first of equals).
      top_k: draw from the k most probable tokens alone (Fan et al. 2018).
      top_p: draw from the most probable tokens alone that together have this probability (Holtzman et al.
        2020); `sample` has the details.
      end: the token after which a sequence ends.
      carry: the body's carry before the prompt; by default that of a beginning.
      seq_lengths: valid tokens of each prompt [*B], 1 to T.

    Returns:
      The tokens, how many of each sequence count, and the carry from which to go on.

    Raises:
      InputError: an argument out of its range; the message names it.
    """
    vocabulary = model.embedding.tokens
    checks.count("steps", steps)
    checks.arrays("carry", carry)
    _check_sampling(vocabulary, temperature, top_k, top_p)
    if key is None and temperature > 0:
        checks.refuse("key", "None", "a random key, or temperature=0")
    if end is not None:
        checks.within("end", end, 0, vocabulary - 1, ", a token")
    checks.sequences("prompt", prompt)
    if prompt.shape[0] < 1:
        checks.refuse("prompt", checks.describe(prompt), "at least 1 token, [T, *B]")
    prompt, lengths = _checked_prompt(prompt, seq_lengths, vocabulary)
    settings = {"steps": steps, "top_k": top_k, "end": end, "greedy": temperature == 0}
    return _generate(model, prompt, lengths, carry, key, temperature, top_p, **settings)


def _checked_prompt(prompt: Any, seq_lengths: Any, vocabulary: int) -> tuple[Any, Any]:
    valid = padding_mask(seq_lengths, None, prompt.shape[0], prompt.shape[1:])
    prompt = checked_tokens("prompt", seen(prompt, valid), vocabulary)
    if seq_lengths is None:
        return prompt, None
    lengths = jnp.asarray(seq_lengths)
    if checks.concrete(lengths) and lengths.size and np.asarray(lengths).min() < 1:
        low = np.asarray(lengths).min()
        checks.refuse("seq_lengths", f"values from {low}", "at least 1 token each")
    return prompt, lengths


@compiled
def _generate(
    model: LanguageModel,
    prompt: Any,
    lengths: Any,
    carry: Any,
    key: Any,
    temperature: Any,
    top_p: Any,
    *,
    steps: int,
    top_k: int | None,
    end: int | None,
    greedy: bool,
) -> Generated:
    keys = None if greedy else jax.random.split(key, steps)

    def pick(logits, key):
        if greedy:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return _draw(logits, key, temperature, top_k, top_p)

    def ended(token):
        return jnp.zeros(token.shape, bool) if end is None else token == end

    def write(state, key):
        carry, token = state
        # A sequence that has ended reads nothing more: a sequence of length 0 keeps its carry.
        reads = None if end is None else 1 - ended(token).astype(jnp.int32)
        carry, logits = model.read(token[None], carry=carry, seq_lengths=reads)
        token = jnp.where(ended(token), token, pick(logits[0], key))
        return (carry, token), token

    carry, logits = model.read(prompt, carry=carry, seq_lengths=lengths)
    first = pick(last_step(logits, lengths), None if keys is None else keys[0])
    rest = None if keys is None else keys[1:]
    (carry, _), tokens = jax.lax.scan(write, (carry, first), rest, length=steps - 1)
    tokens = jnp.concatenate([first[None], tokens])
    written = 1 + jnp.sum(~ended(tokens[:-1]), axis=0, dtype=jnp.int32)
    return Generated(tokens, carry, written)


@checked
def sample(
    logits: Float[ArrayLike, "*B V"],
    key: Key,
    temperature: float | Float[ArrayLike, ""] = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Int[Array, "*B"]:
    """Draw tokens with p ∝ exp(logits / temperature).

    Args:
      logits: unnormalised log-probabilities [*B, V].
      key: draws the tokens.
      temperature: 0 takes the most probable token, the first of equals.
      top_k: draw from the k most probable tokens alone (Fan et al. 2018).
      top_p: draw from the fewest tokens alone whose probability is at least this in sum, at the given
        temperature and among the `top_k` (Holtzman et al. 2020, "The curious case of neural text
        degeneration"); the most probable token is always among them.

    Raises:
      InputError: an argument out of its range; the message names it.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxrnn.models import sample
      >>> sample(jnp.array([0.0, 3.0, 2.0]), jax.random.key(0), top_k=1).item()
      1
    """
    _check_sampling(logits.shape[-1], temperature, top_k, top_p)
    if checks.concrete(logits) and np.isnan(np.asarray(logits)).any():
        checks.refuse("logits", "NaN", "numbers; -inf for a token that must not come")
    return _draw(jnp.asarray(logits), key, temperature, top_k, top_p)


def _check_sampling(vocabulary: int, temperature: Any, top_k: Any, top_p: Any) -> None:
    """Refuse what the probabilities of `vocabulary` tokens cannot be changed by."""
    if checks.concrete(temperature) and not 0 <= temperature < math.inf:
        checks.refuse("temperature", temperature, "0 or more")
    if top_k is not None:
        checks.within("top_k", top_k, 1, vocabulary, ", the tokens")
    if top_p is not None and not 0 < top_p <= 1:
        checks.refuse("top_p", top_p, "a probability above 0, at most 1")


def _draw(logits: Any, key: Any, temperature: Any, top_k: int | None, top_p: Any) -> Any:
    """Draw tokens as `sample` does, arguments unchecked."""
    tokens = None
    if top_k is not None or top_p is not None:
        logits, tokens = jax.lax.top_k(logits, top_k or logits.shape[-1])
    # Relative to the largest, no quotient overflows upwards, however small the temperature.
    below = logits - jnp.max(logits, axis=-1, keepdims=True)
    temperature = jnp.asarray(temperature).astype(below.dtype)
    scaled = jnp.where(below < 0, below / temperature, 0)
    if top_p is not None:
        shares = jax.nn.softmax(scaled.astype(at_least_float32(scaled.dtype)))
        before = jnp.cumsum(shares, axis=-1) - shares
        scaled = jnp.where(before < top_p, scaled, -jnp.inf)
    drawn, best = jax.random.categorical(key, scaled), jnp.argmax(logits, axis=-1)
    chosen = jnp.where(temperature == 0, best.astype(jnp.int32), drawn.astype(jnp.int32))
    if tokens is None:
        return chosen
    return jnp.take_along_axis(tokens, chosen[..., None], axis=-1)[..., 0]
