"""Layers with Flax's interface, built on `unroll`: `RNN`, `Bidirectional` and `Stack`; batch first.

Layers hold `nnx.Param`s only, so they can be passed to ``jax.grad``, ``jit`` and ``vmap`` directly. Where
Flax's layers are right, these give the same numbers. Unlike Flax's layers, they return zeros at padded steps
and the initial carry for a sequence of length 0, support masks, resets and any number of batch axes, and keep
outputs in the order of the inputs when they read backwards (Flax's ``keep_order=True``).
"""

from jaxrnn.layers.bidirectional import Bidirectional
from jaxrnn.layers.rnn import RNN
from jaxrnn.layers.stack import Stack

__all__ = ["RNN", "Bidirectional", "Stack"]
