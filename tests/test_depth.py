"""Eight layers of GRUs learn running parity with residual connections and norms, and learn less without."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxrnn import RNN, GRUCell, Stack

H, T, B, DEPTH, STEPS = 12, 10, 32, 8, 300


class DeepNetwork(nnx.Module):
    """Bits [*B, T] to logits of their parity so far [*B, T, 2]."""

    def __init__(self, residual: bool, rngs: nnx.Rngs):
        layers = [RNN(GRUCell(H, H, rngs=rngs)) for _ in range(DEPTH)]
        norms = [nnx.LayerNorm(H, rngs=rngs) for _ in layers] if residual else None
        self.embed = nnx.Linear(2, H, rngs=rngs)
        self.stack = Stack(layers, residual=residual, norms=norms)
        self.readout = nnx.Linear(H, 2, rngs=rngs)

    def __call__(self, bits: Any) -> Any:
        return self.readout(self.stack(self.embed(jax.nn.one_hot(bits, 2))))


def losses(residual: bool) -> np.ndarray:
    """Cross-entropy of each step of training, [steps, seeds]."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    make = jax.vmap(lambda key: DeepNetwork(residual, nnx.Rngs(key)))
    models: Any = make(jax.random.split(jax.random.key(0), 3))

    def loss(model, key):
        bits = jax.random.bernoulli(key, 0.5, (B, T)).astype(int)
        parity = jnp.cumsum(bits, axis=1) % 2
        return optax.softmax_cross_entropy_with_integer_labels(model(bits), parity).mean()

    def step(held, key):
        model, state = held
        value, slopes = jax.value_and_grad(loss)(model, key)
        with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in integers
            updates, state = optimizer.update(slopes, state)
        return (optax.apply_updates(model, updates), state), value

    @jax.jit
    @jax.vmap
    def train(model, keys):
        return jax.lax.scan(step, (model, optimizer.init(model)), keys)[1]

    keys = jax.random.split(jax.random.key(1), (3, STEPS))
    return np.asarray(train(models, keys)).T


@pytest.mark.slow
def test_residual_connections_and_norms_carry_eight_layers():
    """Every step draws fresh bits, so this is the loss on data not seen before; 0.69 is to know nothing."""
    deep, plain = (losses(residual)[-20:].mean(axis=0) for residual in (True, False))
    assert np.all(deep < 0.2), deep
    assert np.all(plain >= deep), (plain, deep)
