"""Layers in Flax's words over `unroll`: `RNN`, `Bidirectional`, `Stack`; batch first.

They hold `nnx.Param`s only, so ``jax.grad``, ``jit`` and ``vmap`` take them as they are. Where Flax's layers
are right these give the same numbers; unlike them they return zeros at padded steps and the initial carry
for a sequence of length 0, take masks, resets and any number of batch axes, and keep outputs in the order of
the inputs when they read backwards (Flax's ``keep_order=True``).
"""

from jaxrnn.layers.bidirectional import Bidirectional
from jaxrnn.layers.rnn import RNN
from jaxrnn.layers.stack import Stack

__all__ = ["RNN", "Bidirectional", "Stack"]
