"""Causal convolution over time:  y_t = Σ_k K_k x_{t − (n − 1 − k) d},  k = 0 … n − 1.

What lies before the first step counts as zero, so there are as many outputs as inputs.
"""

from __future__ import annotations

import math

import jax
from jaxtyping import Array, Float


def causal_convolution(
    xs: Float[Array, "T *B F"], kernel: Float[Array, "N F H"], dilation: int = 1
) -> Float[Array, "T *B H"]:
    """Return at each step a linear map of n steps, `dilation` apart, the last of them the present one.

    Args:
      xs: sequences [T, *B, F].
      kernel: weights [n, F, H] in the order of time: ``kernel[-1]`` reads the present.
      dilation: distance d between two steps that are read.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrnn.models.convolution import causal_convolution
      >>> xs = jnp.arange(4.0)[:, None]
      >>> causal_convolution(xs, jnp.array([[[10.0]], [[1.0]]]))[:, 0].tolist()
      [0.0, 1.0, 12.0, 23.0]
    """
    steps, *batch, features = xs.shape
    ys = jax.lax.conv_general_dilated(
        xs.reshape(steps, math.prod(batch), features),
        kernel,
        window_strides=(1,),
        padding=[((kernel.shape[0] - 1) * dilation, 0)],
        rhs_dilation=(dilation,),
        dimension_numbers=("WNC", "WIO", "WNC"),
    )
    return ys.reshape(steps, *batch, kernel.shape[2])
