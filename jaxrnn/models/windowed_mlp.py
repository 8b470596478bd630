"""A feed-forward network over a sliding window: the baseline that has no state.

    y¹_t = ReLU(W [x_{t−w+1}; …; x_t] + b)
    yˡ_t = ReLU(Wˡ yˡ⁻¹_t + bˡ)

The time-delay network in its plainest form (Waibel et al. 1989; NETtalk, Sejnowski & Rosenberg 1987). What is
w or more steps back cannot reach the output: the gradient there is zero, not merely small. Up to that lag it
reaches it in one step, with nothing to vanish along the way, at the price of w·F·H weights.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.models.convolution import causal_convolution
from jaxrnn.models.encoder import SequenceEncoder


class WindowedMLP(SequenceEncoder):
    """Fully connected layers over the last w inputs, the same at every step.

    Args:
      in_features: size F of the input.
      hidden_features: units H of each layer, and of the output.
      window: number w of inputs that are seen, the present one included; zeros stand before the first step.
      depth: number of layers; only the first reads the window.
      param_dtype: dtype of parameters and arithmetic.
      rngs: ``nnx.Rngs`` whose ``params`` stream draws the weights.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn.models import WindowedMLP
      >>> WindowedMLP(3, 8, window=5, rngs=nnx.Rngs(0))(jnp.ones((20, 4, 3))).shape
      (20, 4, 8)
    """

    @checked
    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        window: int,
        depth: int = 1,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        checks.floating_dtype("param_dtype", param_dtype)
        checks.count("in_features", in_features)
        checks.count("hidden_features", hidden_features)
        checks.count("window", window)
        checks.count("depth", depth)
        self.in_features = in_features
        self.out_features = hidden_features
        self.window = window
        sizes = [(window, in_features)] + [(1, hidden_features)] * (depth - 1)
        draw = jax.nn.initializers.he_normal()
        self.kernels = nnx.data(
            [nnx.Param(draw(rngs.params(), (*n, hidden_features), param_dtype)) for n in sizes]
        )
        self.biases = nnx.data([nnx.Param(jnp.zeros(hidden_features, param_dtype)) for _ in sizes])

    def encode(
        self, xs: Float[Array, "T *B F"], seq_lengths: Any, dropout_key: Any
    ) -> Float[Array, "T *B H"]:
        """Return the last layer's units at each step; padding lies ahead of what is valid, unseen."""
        del seq_lengths, dropout_key
        for kernel, bias in zip(self.kernels, self.biases, strict=True):
            xs = causal_convolution(xs, kernel[...])
            xs = jax.nn.relu(xs + jnp.broadcast_to(bias[...], xs.shape))
        return xs
