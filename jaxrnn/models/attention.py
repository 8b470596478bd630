"""Attention: a context that is put together anew for every query, from all steps of a source.

    e_l = score(query, value_l)        α = softmax over l of e        context = Σ_l α_l value_l

    additive   score = v · tanh(W query + U value_l)     Bahdanau, Cho & Bengio 2015
    dot        score = query · value_l                   Luong, Pham & Manning 2015

A fixed vector has to hold a whole source at once; here each query fetches what it needs, and the context
differs from query to query. The products U value_l need no query and are taken once a source
(`Attention.memory`). Dot scores have no weights, and are left as plain as in Luong et al.: without the
1/√Y of Vaswani et al. (2017), so the softmax of wide layers starts sharp. Their queries and values must be
of the same size.

Weakness: L scores for every query. In training, T queries keep the tanh of the additive score, T·L·A numbers
a sequence, for the backward pass.
"""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells import initializers
from jaxrnn.unrolling.record import seen


def listed(record: Any) -> Any:
    """Let the paths of a named tuple's entries be numbers, as a decorator.

    `nnx.tabulate` fails on names within a tuple, such as in the arguments of a method.
    """

    def flatten(entries: Any) -> tuple[Any, None]:
        return [(jax.tree_util.SequenceKey(i), entry) for i, entry in enumerate(entries)], None

    jax.tree_util.register_pytree_with_keys(record, flatten, lambda _, entries: record(*entries))
    return record


@listed
class Memory(NamedTuple):
    """A source, ready for queries.

    Attributes:
      values: what contexts are made of [L, *B, Y]; zero at padded steps.
      keys: what scores are made of [L, *B, A].
      valid: False where a step is padding [L, *B], or None.
    """

    values: Float[Array, "L *B Y"]
    keys: Float[Array, "L *B A"]
    valid: Bool[Array, "L *B"] | None


class Attention(nnx.Module, abc.ABC):
    """What additive and dot attention have in common; batch axes of a query and a memory broadcast."""

    query_features: int
    value_features: int

    @abc.abstractmethod
    def keys(self, values: Float[Array, "L *B Y"]) -> Float[Array, "L *B A"]:
        """Return the part of the scores that needs no query."""

    @abc.abstractmethod
    def scores(
        self, query: Float[Array, "*#B Q"], keys: Float[Array, "L *#B A"]
    ) -> Float[Array, "L *B"]:
        """Return how well each step of the source answers the query."""

    def memory(
        self, values: Float[Array, "L *B Y"], valid: Bool[Array, "L *B"] | None = None
    ) -> Memory:
        """Make a source ready for queries; what stands in its padding changes nothing, NaN included."""
        if values.shape[-1] != self.value_features:
            expected = f"{self.value_features} features (value_features) in the last axis"
            checks.refuse("values", checks.describe(values), expected)
        values = seen(values, valid)
        return Memory(values, self.keys(values), valid)

    @checked
    def __call__(
        self, query: Float[Array, "*#B Q"], memory: Memory
    ) -> tuple[Float[Array, "*B Y"], Float[Array, "L *B"]]:
        """Return the context [*B, Y] of a query [*B, Q], and the weights α [L, *B] that made it.

        Weights are zero at padded steps; of a source without any step, all are, and so is the context.
        """
        if query.shape[-1] != self.query_features:
            expected = f"{self.query_features} features (query_features) in the last axis"
            checks.refuse("query", checks.describe(query), expected)
        weights = _softmax(self.scores(query, memory.keys), memory.valid)
        return jnp.sum(weights[..., None] * memory.values, axis=0), weights


class AdditiveAttention(Attention):
    """Scores v · tanh(W query + U value), with A hidden features (Bahdanau et al. 2015).

    All weights start as Glorot & Bengio have it; the paper draws W and U from N(0, 0.001²) and starts v at
    zero. As in the paper, there are no biases.

    Args:
      query_features: size Q of a query, as the decoder's outputs.
      value_features: size Y of a value, as the encoder's outputs.
      attention_features: number A of hidden features.
      param_dtype: dtype of the parameters.
      rngs: ``nnx.Rngs`` whose ``params`` stream draws the weights.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn.models import AdditiveAttention
      >>> attention = AdditiveAttention(8, 6, 10, rngs=nnx.Rngs(0))
      >>> memory = attention.memory(jnp.ones((20, 4, 6)))
      >>> context, weights = attention(jnp.ones((4, 8)), memory)
      >>> context.shape, weights.shape
      ((4, 6), (20, 4))
    """

    @checked
    def __init__(
        self,
        query_features: int,
        value_features: int,
        attention_features: int,
        *,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        checks.floating_dtype("param_dtype", param_dtype)
        checks.count("query_features", query_features)
        checks.count("value_features", value_features)
        checks.count("attention_features", attention_features)
        self.query_features = query_features
        self.value_features = value_features
        draw, a = initializers.glorot(), attention_features
        self.query_kernel = nnx.Param(draw(rngs.params(), (query_features, a), param_dtype))
        self.value_kernel = nnx.Param(draw(rngs.params(), (value_features, a), param_dtype))
        self.score_kernel = nnx.Param(draw(rngs.params(), (a, 1), param_dtype))

    def keys(self, values: Float[Array, "L *B Y"]) -> Float[Array, "L *B A"]:
        """Return U value."""
        return values @ self.value_kernel[...]

    def scores(
        self, query: Float[Array, "*#B Q"], keys: Float[Array, "L *#B A"]
    ) -> Float[Array, "L *B"]:
        """Return v · tanh(W query + U value)."""
        hidden = jnp.tanh((query @ self.query_kernel[...])[None] + keys)
        return (hidden @ self.score_kernel[...])[..., 0]


class DotAttention(Attention):
    """Scores query · value, without weights (Luong et al. 2015).

    Args:
      features: size of queries and of values.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrnn.models import DotAttention
      >>> attention = DotAttention(2)
      >>> context, weights = attention(jnp.array([0.0, 50.0]), attention.memory(jnp.eye(2)))
      >>> weights.round(6).tolist()
      [0.0, 1.0]
    """

    @checked
    def __init__(self, features: int):
        checks.count("features", features)
        self.query_features = self.value_features = features

    def keys(self, values: Float[Array, "L *B Y"]) -> Float[Array, "L *B Y"]:
        """Return the values."""
        return values

    def scores(
        self, query: Float[Array, "*#B Q"], keys: Float[Array, "L *#B Q"]
    ) -> Float[Array, "L *B"]:
        """Return query · value."""
        return jnp.sum(query[None] * keys, axis=-1)


def _softmax(
    scores: Float[Array, "L *B"], valid: Bool[Array, "L *#B"] | None
) -> Float[Array, "L *B"]:
    """Return the softmax over the valid steps of the first axis; zeros where there are none."""
    if valid is None:
        return jax.nn.softmax(scores, axis=0)
    scores = jnp.where(valid, scores, jnp.finfo(scores.dtype).min)
    top = jax.lax.stop_gradient(scores.max(axis=0, keepdims=True))
    raw = jnp.where(valid, jnp.exp(scores - top), 0)
    total = raw.sum(axis=0, keepdims=True)
    return raw / jnp.where(total > 0, total, 1)
