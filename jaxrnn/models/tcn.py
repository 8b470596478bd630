"""The temporal convolutional network: dilated causal convolutions in residual blocks.

    F(x) = ReLU(K² ∗_d ReLU(K¹ ∗_d x + b¹) + b²),    d = 1, 2, 4, … from block to block
    y    = ReLU(F(x) + P x)                          P = 1, or a matrix where the widths differ

Bai, Kolter & Koltun 2018, "An Empirical Evaluation of Generic Convolutional and Recurrent Networks for
Sequence Modeling". Every kernel is weight-normed as there, K = g v/‖v‖ for each output feature (Salimans &
Kingma 2016), with g = ‖v‖ at the start, and dropout after each convolution drops whole features, the same at
all steps of a sequence. An output sees

    R = 1 + 2 (n − 1) (2^L − 1)

inputs, with L blocks and kernels over n steps: memory is a matter of depth, which grows with the logarithm of
the lag, and no gradient passes through more than 2 L layers. Weakness: nothing beyond R can ever matter, and
to go on step by step one must keep R inputs where a recurrent network keeps its state.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells import initializers
from jaxrnn.cells.base import affine
from jaxrnn.layers.dropout import dropped, keys, warn_without_key
from jaxrnn.models.convolution import causal_convolution
from jaxrnn.models.encoder import SequenceEncoder
from jaxrnn.typing import Key


class TCN(SequenceEncoder):
    """Residual blocks of two dilated causal convolutions each.

    Args:
      in_features: size F of the input.
      hidden_features: units H of each block, and of the output.
      depth: number L of blocks; block l has dilation 2^l, l = 0 … L − 1.
      kernel_size: steps n that a kernel reads.
      dropout: share of features to drop after each convolution.
      param_dtype: dtype of parameters and arithmetic.
      rngs: ``nnx.Rngs`` whose ``params`` stream draws the weights.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn.models import TCN
      >>> tcn = TCN(3, 8, depth=4, kernel_size=3, rngs=nnx.Rngs(0))
      >>> tcn(jnp.ones((100, 4, 3))).shape, tcn.receptive_field
      ((100, 4, 8), 61)
    """

    @checked
    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        depth: int,
        kernel_size: int = 3,
        dropout: float = 0.0,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        checks.floating_dtype("param_dtype", param_dtype)
        checks.count("in_features", in_features)
        checks.count("hidden_features", hidden_features)
        checks.count("depth", depth)
        checks.count("kernel_size", kernel_size)
        checks.rate("dropout", dropout)
        self.in_features = in_features
        self.out_features = hidden_features
        self.kernel_size = kernel_size
        widths = [in_features] + [hidden_features] * (depth - 1)
        self.blocks = nnx.data(
            [
                ResidualBlock(
                    width,
                    hidden_features,
                    kernel_size,
                    2**level,
                    dropout=dropout,
                    param_dtype=param_dtype,
                    rngs=rngs,
                )
                for level, width in enumerate(widths)
            ]
        )

    @property
    def receptive_field(self) -> int:
        """Number R of inputs that an output depends on: the present one and R − 1 before it."""
        return 1 + 2 * (self.kernel_size - 1) * (2 ** len(self.blocks) - 1)

    def encode(
        self, xs: Float[Array, "T *B F"], seq_lengths: Any, dropout_key: Any
    ) -> Float[Array, "T *B H"]:
        """Return the last block's units at each step; padding lies ahead of what is valid, unseen."""
        del seq_lengths
        for block, key in zip(self.blocks, keys(dropout_key, len(self.blocks)), strict=True):
            xs = block(xs, key)
        return xs


class ResidualBlock(nnx.Module):
    """Two dilated causal convolutions, and a way round them.

    Args:
      in_features: size F of the input.
      hidden_features: size H of the output.
      kernel_size: steps that a kernel reads.
      dilation: distance between two of them.
      dropout: share of features to drop after each convolution.
      param_dtype: dtype of parameters and arithmetic.
      rngs: draws the weights.

    Attributes:
      convolutions: the two, weight-normed.
      skip: matrix [F, H] and bias [H] of the way round; empty where F = H.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        kernel_size: int,
        dilation: int,
        *,
        dropout: float,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.dilation = dilation
        self.dropout = dropout
        self.convolutions = nnx.data(
            [
                WeightNormed((kernel_size, width, hidden_features), param_dtype, rngs)
                for width in (in_features, hidden_features)
            ]
        )
        skip = []
        if in_features != hidden_features:
            kernel = initializers.glorot()(
                rngs.params(), (in_features, hidden_features), param_dtype
            )
            skip = [nnx.Param(kernel), nnx.Param(jnp.zeros(hidden_features, param_dtype))]
        self.skip = nnx.data(skip)

    def __call__(
        self, xs: Float[Array, "T *B F"], dropout_key: Key | Any
    ) -> Float[Array, "T *B H"]:
        """Return ReLU(F(x) + P x)."""
        warn_without_key(self, dropout_key, self.dropout)
        ys = xs
        for convolution, key in zip(self.convolutions, keys(dropout_key, 2), strict=True):
            ys = causal_convolution(ys, convolution.kernel(), self.dilation)
            ys = jax.nn.relu(ys + jnp.broadcast_to(convolution.bias[...], ys.shape))
            ys = dropped(key, self.dropout, ys, like=ys[0])
        past = affine(xs, *(part[...] for part in self.skip)) if len(self.skip) else xs
        return jax.nn.relu(ys + past)


class WeightNormed(nnx.Module):
    """A kernel [n, F, H] as direction and length, K = g v/‖v‖ for each output feature, and a bias [H]."""

    def __init__(self, shape: tuple[int, int, int], param_dtype: Any, rngs: nnx.Rngs):
        v = jax.nn.initializers.he_normal()(rngs.params(), shape, param_dtype)
        self.direction = nnx.Param(v)
        self.length = nnx.Param(_norms(v))
        self.bias = nnx.Param(jnp.zeros((shape[-1],), param_dtype))

    def kernel(self) -> Float[Array, "N F H"]:
        """Return K."""
        v = self.direction[...]
        return v * jnp.broadcast_to(self.length[...] / _norms(v), v.shape)


def _norms(kernel: Float[Array, "N F H"]) -> Float[Array, "H"]:
    """Return the length of each output feature's weights."""
    return jnp.sqrt(jnp.sum(kernel**2, axis=(0, 1)))
