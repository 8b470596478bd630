"""A Transformer over tokens: a causal language model, or a masked one.

    logits_t = E y_t + b        y = stack(√D E[tokens])

The embedding is tied to the output and multiplied by √D, as in Vaswani et al. 2017. Causal, the model says
what comes next (`next_token_loss`). Bidirectional, it says what stood where tokens were hidden
(`mask_tokens`, `masked_token_loss`): Devlin et al. 2019, "BERT", without its second task of sentence pairs
and the extra layer before its output.

Weakness: a masked model learns from the 15 % of the tokens that it must predict, and gives no probability to
a text.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells.base import affine
from jaxrnn.models.embeddings import Embedding, checked_tokens
from jaxrnn.models.readouts import cross_entropy
from jaxrnn.models.transformer import TransformerOptions, TransformerStack
from jaxrnn.typing import ArrayLike, Key, Lengths
from jaxrnn.unrolling import padding_mask
from jaxrnn.unrolling.record import seen


class TokenTransformer(nnx.Module):
    """A Transformer from tokens to logits over the vocabulary, its embedding tied to its output.

        logits_t = E y_t + b

    Args:
      vocabulary: number V of tokens; a mask token, where there is one, is one of them.
      features: size D of a step.
      options: as in `TransformerStack`; ``causal=True`` for a language model.

    Attributes:
      embedding: holds E, its table [V, D].

    Example:
      >>> from flax import nnx
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxrnn.models import TokenTransformer, masked_token_loss
      >>> model = TokenTransformer(101, 16, depth=2, heads=4, rngs=nnx.Rngs(0))
      >>> tokens = jnp.arange(60).reshape(20, 3)
      >>> model(tokens).shape
      (20, 3, 101)
      >>> masked_token_loss(model, tokens, key=jax.random.key(0), mask_id=100).shape
      ()
    """

    @checked
    def __init__(self, vocabulary: int, features: int, **options: Unpack[TransformerOptions]):
        checks.count("vocabulary", vocabulary)
        self.stack = TransformerStack(features, **options)
        dtype = self.stack.norm.scale.dtype
        self.embedding = Embedding(vocabulary, features, param_dtype=dtype, rngs=options["rngs"])
        self.bias = nnx.Param(jnp.zeros((vocabulary,), dtype))

    @checked
    def __call__(
        self,
        tokens: Int[ArrayLike, "T *B"] | Any,
        *,
        seq_lengths: Lengths | Any = None,
        dropout_key: Key | Any = None,
    ) -> Float[Array, "T *B V"]:
        """Map tokens [T, *B] to logits [T, *B, V], zeros at padded steps.

        Args:
          tokens: token numbers 0 … V − 1; at padded steps any.
          seq_lengths: valid steps of each sequence [*B].
          dropout_key: draws the dropout masks; None drops nothing, as in evaluation.

        Raises:
          InputError: tokens that are not integers or not in the vocabulary (under ``jax.jit`` they read as
            NaN), lengths that do not fit.
        """
        tokens, valid = _unpadded(tokens, seq_lengths)
        xs = self.embedding(tokens) * math.sqrt(self.embedding.features)
        E = self.embedding.table[...]
        ys = self.stack(xs, seq_lengths, dropout_key)
        return seen(affine(ys, E.T, self.bias[...]), valid)

    @property
    def vocabulary(self) -> int:
        """Number V of tokens."""
        return self.embedding.tokens


class MaskedTokens(NamedTuple):
    """Tokens, some of them hidden.

    Attributes:
      inputs: what the model reads [T, *B].
      chosen: True where the model must predict the token that stood there [T, *B].
    """

    inputs: Int[Array, "T *B"]
    chosen: Bool[Array, "T *B"]


@checked
def mask_tokens(
    tokens: Int[ArrayLike, "T *B"] | Any,
    *,
    key: Key,
    mask_id: int,
    vocabulary: int,
    rate: float = 0.15,
    eligible: Bool[ArrayLike, "T *B"] | Any = None,
) -> MaskedTokens:
    """Choose tokens to predict, and hide most of them (Devlin et al. 2019).

    Each token is chosen with probability `rate`, each by itself, where BERT draws a fixed number. Of the
    chosen, 80 % become `mask_id`, 10 % a token drawn evenly from the vocabulary without the mask, and 10 %
    stay: so the model cannot trust what it reads where nothing is masked.

    Args:
      tokens: token numbers [T, *B].
      key: what to choose and draw with.
      mask_id: the token that hides others.
      vocabulary: number V of tokens, the mask among them.
      rate: share of tokens to choose.
      eligible: False where a token must not be chosen (padding, separators) [T, *B].

    Raises:
      InputError: a token, mask or rate that does not fit.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxrnn.models import mask_tokens
      >>> tokens = jnp.arange(1000) % 10
      >>> inputs, chosen = mask_tokens(tokens, key=jax.random.key(0), mask_id=10, vocabulary=11)
      >>> bool((inputs == tokens)[~chosen].all())
      True
    """
    checks.count("vocabulary", vocabulary)
    if vocabulary < 2 or not 0 <= mask_id < vocabulary:
        checks.refuse(
            "mask_id", mask_id, f"one of {vocabulary} tokens (vocabulary), and not the only"
        )
    if not 0 < rate <= 1:
        checks.refuse("rate", rate, "a share above 0 and up to 1")
    tokens = checked_tokens("tokens", tokens, vocabulary)
    for_choice, for_fate, for_draw = jax.random.split(key, 3)
    chosen = jax.random.bernoulli(for_choice, float(rate), tokens.shape)
    if eligible is not None:
        eligible = checks.as_array("eligible", eligible)
        checks.shape("eligible", eligible, tokens.shape, "[T, *B], as tokens")
        chosen = chosen & eligible
    fate = jax.random.uniform(for_fate, tokens.shape)
    drawn = jax.random.randint(for_draw, tokens.shape, 0, vocabulary - 1, tokens.dtype)
    drawn = drawn + (drawn >= mask_id).astype(tokens.dtype)  # passes over the mask
    hidden = jnp.where(fate < 0.8, mask_id, jnp.where(fate < 0.9, drawn, tokens))
    return MaskedTokens(jnp.where(chosen, hidden, tokens), chosen)


@checked
def masked_token_loss(
    model: TokenTransformer,
    tokens: Int[ArrayLike, "T *B"] | Any,
    *,
    key: Key,
    mask_id: int,
    seq_lengths: Lengths | Any = None,
    dropout_key: Key | Any = None,
) -> Float[Array, ""]:
    """Return the mean cross-entropy of the tokens that `mask_tokens` chooses, in nats a token; 0 if none."""
    tokens, valid = _unpadded(tokens, seq_lengths)
    inputs, chosen = mask_tokens(
        tokens, key=key, mask_id=mask_id, vocabulary=model.vocabulary, eligible=valid
    )
    logits = model(inputs, seq_lengths=seq_lengths, dropout_key=dropout_key)
    return cross_entropy(logits, tokens, chosen)


@checked
def next_token_loss(
    model: TokenTransformer,
    tokens: Int[ArrayLike, "T *B"] | Any,
    *,
    seq_lengths: Lengths | Any = None,
    dropout_key: Key | Any = None,
) -> Float[Array, ""]:
    """Return the mean cross-entropy of tokens 2 … T, each given those before it, in nats a token.

    Raises:
      InputError: the model is not causal: it would read what it must predict.
    """
    if not model.stack.causal:
        checks.refuse("model", "a bidirectional Transformer", "one with causal=True")
    tokens, valid = _unpadded(tokens, seq_lengths)
    logits = model(tokens, seq_lengths=seq_lengths, dropout_key=dropout_key)
    return cross_entropy(logits[:-1], tokens[1:], None if valid is None else valid[1:])


def _unpadded(tokens: Any, seq_lengths: Any) -> tuple[Any, Any]:
    """Return tokens [T, *B], 0 at padded steps, and which steps are valid (None: all)."""
    if jnp.ndim(tokens) < 1 or tokens.shape[0] < 1:
        checks.refuse("tokens", checks.describe(tokens), "at least 1 step, [T, *B]")
    valid = padding_mask(seq_lengths, None, tokens.shape[0], tokens.shape[1:])
    return seen(jnp.asarray(tokens), valid), valid
