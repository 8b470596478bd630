"""The hierarchical subsampling network: each layer reads windows of the one below, so time shrinks.

    x^(l+1)_s = RNN_l([x^(l)_{w s}; …; x^(l)_{w s + w − 1}])      w = w_l,  s = 0 … ⌈T_l / w⌉ − 1

Graves 2012, "Supervised Sequence Labelling with Recurrent Neural Networks", ch. 9 (for images: Graves &
Schmidhuber 2009). With windows w_1 … w_L the top layer takes T / ∏ w steps: a lag of k steps is k / ∏ w of
its own, so gradients pass through fewer factors and the upper layers cost less. Here a layer's input weights
read the joined window directly; the feed-forward layers that Graves puts between two levels are left out.
Weakness: windows are cut at fixed places, so a sequence that is shifted or stretched by less than a window
meets other weights, and outputs are given once a window only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.layers.dropout import keys
from jaxrnn.models.bodies import Body, outputs, sizes
from jaxrnn.models.encoder import SequenceEncoder


class HierarchicalRNN(SequenceEncoder):
    """Recurrent layers, each over windows of the outputs below.

    Args:
      layers: `RNN`s, `Bidirectional`s or `Stack`s from the bottom to the top; the ``in_features`` of a layer
        is its window times the output features of the layer below.
      windows: steps that each layer takes as one, the first of them of the input; 1 joins nothing.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import RNN, Bidirectional, GRUCell
      >>> from jaxrnn.models import HierarchicalRNN
      >>> rngs = nnx.Rngs(0)
      >>> both = Bidirectional(RNN(GRUCell(2 * 3, 8, rngs=rngs)), RNN(GRUCell(2 * 3, 8, rngs=rngs)))
      >>> encoder = HierarchicalRNN([both, RNN(GRUCell(4 * 16, 5, rngs=rngs))], windows=(2, 4))
      >>> encoder(jnp.ones((21, 4, 3))).shape
      (3, 4, 5)
      >>> encoder.output_lengths(jnp.array([21, 8, 1, 0])).tolist()
      [3, 1, 1, 0]
    """

    @checked
    def __init__(self, layers: Sequence[Body] | Any, windows: Sequence[int]):
        if not layers:
            checks.refuse("layers", "none", "at least one RNN")
        if len({id(layer) for layer in layers}) < len(layers):
            checks.refuse("layers", "one layer twice", "layers with weights of their own")
        if len(windows) != len(layers):
            checks.refuse("windows", f"{len(windows)} of them", f"{len(layers)}, one a layer")
        for window in windows:
            checks.count("windows", window)
        self.layers = nnx.data(list(layers))
        self.windows = tuple(windows)
        read = [sizes("layers", layer) for layer in layers]
        if read[0].in_features % windows[0]:
            checks.refuse(
                "layers",
                f"layer 0 with in_features {read[0].in_features}",
                f"a multiple of its window, {windows[0]}",
            )
        self.in_features = read[0].in_features // windows[0]
        self.out_features = self.in_features
        for i, (window, each) in enumerate(zip(windows, read, strict=True)):
            if each.in_features != window * self.out_features:
                checks.refuse(
                    "layers",
                    f"layer {i} with in_features {each.in_features}",
                    f"{window * self.out_features}: {window} steps of {self.out_features} features",
                )
            self.out_features = each.out_features

    def encode(
        self, xs: Float[Array, "T *B F"], seq_lengths: Any, dropout_key: Any
    ) -> Float[Array, "U *B Y"]:
        """Return the top layer's outputs [⌈… ⌈T / w_1⌉ … / w_L⌉, *B, Y]."""
        each = zip(self.layers, self.windows, keys(dropout_key, len(self.layers)), strict=True)
        for layer, window, key in each:
            xs, seq_lengths = subsample(xs, window), subsampled_lengths(seq_lengths, window)
            xs, _ = outputs(layer, xs, seq_lengths, key)
        return xs

    def output_lengths(self, seq_lengths: Any) -> Any:
        """Return how many of the top layer's windows hold a valid step, [*B]; None for None."""
        for window in self.windows:
            seq_lengths = subsampled_lengths(seq_lengths, window)
        return seq_lengths


def subsample(xs: Float[Array, "T *B F"], window: int) -> Float[Array, "U *B G"]:
    """Join every `window` steps into one, [⌈T / w⌉, *B, w·F]; zeros fill the last.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrnn.models.hierarchical import subsample
      >>> subsample(jnp.arange(1.0, 6.0)[:, None], 2).tolist()
      [[1.0, 2.0], [3.0, 4.0], [5.0, 0.0]]
    """
    steps = -(-xs.shape[0] // window)
    filled = jnp.pad(xs, [(0, steps * window - xs.shape[0])] + [(0, 0)] * (xs.ndim - 1))
    apart = filled.reshape(steps, window, *xs.shape[1:])
    return jnp.moveaxis(apart, 1, -2).reshape(steps, *xs.shape[1:-1], window * xs.shape[-1])


def subsampled_lengths(seq_lengths: Any, window: int) -> Any:
    """Return ⌈length / w⌉ of each sequence [*B]; None for None."""
    return None if seq_lengths is None else -(-jnp.asarray(seq_lengths) // window)
