"""The Transformer encoder: attention in place of recurrence.

    Attention(Q, K, V) = softmax(Q Kᵀ/√d) V,    d features a head
    x ← x + W_O [head_1; …; head_N](LN(x))
    x ← x + W_2 ReLU(W_1 LN(x) + b_1) + b_2

Vaswani et al. 2017, "Attention Is All You Need", with the norm before each sublayer and one more at the top
(pre-norm, Xiong et al. 2020: it trains without warm-up) where the paper has it after. As in the paper,
positions are sinusoidal, projections of attention have no biases, and dropout takes from the embedded inputs
and from what each sublayer adds. With ``causal=True`` step t sees steps ≤ t. Any two steps are one layer
apart, whatever their lag, so gradients have no product of Jacobians to vanish in; the price is T² scores a
layer and head, and a memory that is the whole past. Without positions nothing tells the order of the steps:
permuted inputs give permuted outputs.
"""

from __future__ import annotations

import math
from typing import Any, Required, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells import initializers
from jaxrnn.cells.base import affine
from jaxrnn.layers.dropout import dropped, keys, warn_without_key
from jaxrnn.models.encoder import SequenceEncoder
from jaxrnn.typing import Key, Size, at_least_float32
from jaxrnn.unrolling import padding_mask


class TransformerOptions(TypedDict, total=False):
    """Keyword arguments of every Transformer; `TransformerStack` says what they mean."""

    depth: Required[int]
    heads: Required[int]
    mlp_features: int
    causal: bool
    positions: bool
    dropout: float
    param_dtype: Any
    rngs: Required[nnx.Rngs]


class TransformerStack(nnx.Module):
    """Positions, blocks of attention and MLP, and a last norm: [T, *B, D] -> [T, *B, D].

    Args:
      features: size D of a step, a multiple of `heads`; even where there are positions.
      depth: number of blocks.
      heads: number N of heads, of D/N features each.
      mlp_features: units of the MLPs; 4·D by default.
      causal: each step sees itself and what came before; otherwise all steps.
      positions: add `sinusoidal_positions` to the inputs.
      dropout: share of entries to drop, of the inputs with their positions and of what each sublayer adds.
      param_dtype: dtype of parameters and arithmetic.
      rngs: ``nnx.Rngs`` whose ``params`` stream draws the weights.
    """

    def __init__(
        self,
        features: int,
        *,
        depth: int,
        heads: int,
        mlp_features: int | None = None,
        causal: bool = False,
        positions: bool = True,
        dropout: float = 0.0,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        checks.floating_dtype("param_dtype", param_dtype)
        checks.count("features", features)
        checks.count("depth", depth)
        checks.count("heads", heads)
        mlp_features = 4 * features if mlp_features is None else mlp_features
        checks.count("mlp_features", mlp_features)
        if features % heads:
            checks.refuse("heads", heads, f"a divisor of features, {features}")
        checks.rate("dropout", dropout)
        if positions and features % 2:
            checks.refuse("features", features, "an even number, for a sine and a cosine each")
        self.causal = causal
        self.positions = positions
        self.dropout = dropout
        self.blocks = nnx.data(
            [Block(features, heads, mlp_features, dropout, param_dtype, rngs) for _ in range(depth)]
        )
        self.norm = LayerNorm(features, param_dtype)

    def __call__(
        self, xs: Float[Array, "T *B D"], seq_lengths: Any = None, dropout_key: Any = None
    ) -> Float[Array, "T *B D"]:
        """Return what each step has gathered; at padded steps anything."""
        steps, *batch, features = xs.shape
        if self.positions:
            waves = sinusoidal_positions(steps, features, xs.dtype)
            waves = waves.reshape(steps, *(1 for _ in batch), features)
            xs = xs + jnp.broadcast_to(waves, xs.shape)
        visible = self._visible(padding_mask(seq_lengths, None, steps, tuple(batch)), steps)
        warn_without_key(self, dropout_key, self.dropout)
        first, *others = keys(dropout_key, 1 + len(self.blocks))
        xs = dropped(first, self.dropout, xs)
        for block, key in zip(self.blocks, others, strict=True):
            xs = block(xs, visible, key)
        return self.norm(xs)

    def _visible(
        self, valid: Bool[Array, "T *B"] | None, steps: Size
    ) -> Bool[Array, "N 1 Q T"] | None:
        """Return which steps each step sees, for all sequences or each; None where it is all of them."""
        if self.causal:  # padding stands on the right, where no valid step looks
            return jnp.tri(steps, dtype=bool)[None, None]
        if valid is None:
            return None
        return valid.reshape(steps, math.prod(valid.shape[1:])).T[:, None, None, :]


class TransformerEncoder(SequenceEncoder):
    """A linear embedding of real inputs, and a `TransformerStack` over it.

    Args:
      in_features: size F of the input.
      features: size D of a step inside, and of the output.
      options: as in `TransformerStack`.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn.models import TransformerEncoder
      >>> encoder = TransformerEncoder(3, 16, depth=2, heads=4, causal=True, rngs=nnx.Rngs(0))
      >>> encoder(jnp.ones((20, 5, 3)), seq_lengths=jnp.array([20, 7, 2, 1, 0])).shape
      (20, 5, 16)
    """

    @checked
    def __init__(self, in_features: int, features: int, **options: Unpack[TransformerOptions]):
        checks.count("in_features", in_features)
        self.in_features = in_features
        self.out_features = features
        self.stack = TransformerStack(features, **options)
        dtype, key = self.stack.norm.scale.dtype, options["rngs"].params()
        self.kernel = nnx.Param(initializers.glorot()(key, (in_features, features), dtype))
        self.bias = nnx.Param(jnp.zeros((features,), dtype))

    def encode(
        self, xs: Float[Array, "T *B F"], seq_lengths: Any, dropout_key: Any
    ) -> Float[Array, "T *B D"]:
        """Return what each step has gathered from those it sees."""
        embedded = affine(xs, self.kernel[...], self.bias[...])
        return self.stack(embedded, seq_lengths, dropout_key)


class Block(nnx.Module):
    """Attention and an MLP, each behind a norm and beside a way round it."""

    def __init__(
        self,
        features: int,
        heads: int,
        mlp_features: int,
        dropout: float,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        draw = initializers.glorot()
        self.dropout = dropout
        self.attention_norm = LayerNorm(features, param_dtype)
        self.attention = SelfAttention(features, heads, param_dtype, rngs)
        self.mlp_norm = LayerNorm(features, param_dtype)
        self.kernel_in = nnx.Param(draw(rngs.params(), (features, mlp_features), param_dtype))
        self.bias_in = nnx.Param(jnp.zeros((mlp_features,), param_dtype))
        self.kernel_out = nnx.Param(draw(rngs.params(), (mlp_features, features), param_dtype))
        self.bias_out = nnx.Param(jnp.zeros((features,), param_dtype))

    def __call__(
        self,
        xs: Float[Array, "T *B D"],
        visible: Bool[Array, "N 1 Q T"] | None,
        dropout_key: Key | Any,
    ) -> Float[Array, "T *B D"]:
        """Return xs with what both sublayers add."""
        for_attention, for_mlp = keys(dropout_key, 2)
        found = self.attention(self.attention_norm(xs), visible)
        xs = xs + dropped(for_attention, self.dropout, found)
        units = jax.nn.relu(affine(self.mlp_norm(xs), self.kernel_in[...], self.bias_in[...]))
        added = affine(units, self.kernel_out[...], self.bias_out[...])
        return xs + dropped(for_mlp, self.dropout, added)


class SelfAttention(nnx.Module):
    """Multi-head attention of a sequence to itself.

    Attributes:
      kernel: [D, 3·D], queries, keys and values side by side, each with its heads side by side.
      out_kernel: [D, D].
    """

    def __init__(self, features: int, heads: int, param_dtype: Any, rngs: nnx.Rngs):
        draw, shape = initializers.glorot(), (features, features)
        self.heads = heads
        self.kernel = nnx.Param(initializers.per_gate(draw, rngs.params(), shape, 3, param_dtype))
        self.out_kernel = nnx.Param(draw(rngs.params(), shape, param_dtype))

    def __call__(
        self, xs: Float[Array, "T *B D"], visible: Bool[Array, "N 1 Q T"] | None
    ) -> Float[Array, "T *B D"]:
        """Return the heads' findings, mixed by the output weights."""
        steps, *batch, features = xs.shape
        heads = (steps, math.prod(batch), self.heads, features // self.heads)
        parts = jnp.split(xs @ self.kernel[...], 3, axis=-1)
        query, key, value = (jnp.swapaxes(part.reshape(heads), 0, 1) for part in parts)
        found = jnp.swapaxes(attention(query, key, value, visible), 0, 1)
        return found.reshape(xs.shape) @ self.out_kernel[...]


class LayerNorm(nnx.Module):
    """scale · (x − mean)/√(variance + 10⁻⁶) + bias over the features, with statistics in float32 at least.

    ``nnx.LayerNorm`` raises where ``jax_numpy_dtype_promotion`` is "strict": in float64 it asks for a common
    dtype with float32, and in bfloat16 it subtracts a float32 mean from its input.
    """

    def __init__(self, features: int, param_dtype: Any):
        self.scale = nnx.Param(jnp.ones((features,), param_dtype))
        self.bias = nnx.Param(jnp.zeros((features,), param_dtype))

    def __call__(self, xs: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Return xs, normed."""
        wide = xs.astype(at_least_float32(xs.dtype))
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + 1e-6)
        scale, bias = (jnp.broadcast_to(p[...], xs.shape) for p in (self.scale, self.bias))
        return scale * wide.astype(xs.dtype) + bias


def attention(
    query: Float[Array, "B Q N D"],
    key: Float[Array, "B T N D"],
    value: Float[Array, "B T N D"],
    visible: Bool[Array, "#B #N #Q T"] | None = None,
) -> Float[Array, "B Q N D"]:
    """Return softmax(Q Kᵀ/√D) V for each head.

    Args:
      query: what each step asks for [B, Q, N, D], N heads.
      key: what each step offers itself as [B, T, N, D].
      value: what each step gives [B, T, N, D].
      visible: which steps each step sees, broadcast to [B, N, Q, T]; None for all. A step that sees none gets
        the mean of all values.
    """
    # jax.nn.dot_product_attention runs the same two products, but takes the softmax of float64 in float32.
    wide = at_least_float32(query.dtype)
    scores = jnp.einsum("bqnd,btnd->bnqt", query, key, preferred_element_type=wide)
    scores = scores / math.sqrt(query.shape[-1])
    if visible is not None:
        scores = jnp.where(jnp.broadcast_to(visible, scores.shape), scores, jnp.finfo(wide).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bnqt,btnd->bqnd", weights, value)


def sinusoidal_positions(
    steps: Size, features: int, dtype: Any = jnp.float32
) -> Float[Array, "T D"]:
    """Return sin(t ω_k) and cos(t ω_k) side by side, entries 2k and 2k + 1, with ω_k = 10000^(−2k/D).

    Example:
      >>> from jaxrnn.models.transformer import sinusoidal_positions
      >>> sinusoidal_positions(3, 4).shape
      (3, 4)
    """
    if not isinstance(steps, int):
        return _positions_of_open_length(steps, features, dtype)
    # In NumPy's float64: a large t in float32 has lost the digits that its sine depends on.
    angles = np.arange(steps)[:, None] * _frequencies(features)
    waves = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
    return jnp.asarray(waves.reshape(steps, features), dtype)


_TABLE = 1024
"""Positions in each of two tables; for longer sequences than _TABLE² the tables would have to be larger."""


def _positions_of_open_length(steps: Any, features: int, dtype: Any) -> Float[Array, "T D"]:
    """Return `sinusoidal_positions` where ``jax.export`` leaves the number of steps open, up to _TABLE².

    With t = _TABLE a + b, by the sum of two angles, each of which is read from a table made in float64.
    """
    wide = at_least_float32(dtype)
    t = jnp.arange(steps, dtype=jnp.int32)
    parts = []
    for index, stride in ((t // _TABLE, _TABLE), (t % _TABLE, 1)):
        angles = stride * np.arange(_TABLE)[:, None] * _frequencies(features)
        parts += [jnp.asarray(table, wide)[index] for table in (np.sin(angles), np.cos(angles))]
    sin_a, cos_a, sin_b, cos_b = parts
    waves = jnp.stack([sin_a * cos_b + cos_a * sin_b, cos_a * cos_b - sin_a * sin_b], axis=-1)
    return waves.reshape(steps, features).astype(dtype)


def _frequencies(features: int) -> Any:
    return 10_000.0 ** (-np.arange(0, features, 2) / features)
