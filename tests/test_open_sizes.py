"""Programs exported with the batch and the number of steps open give what the modules give at any size."""

from __future__ import annotations

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import (
    RNN,
    Bidirectional,
    GRUCell,
    InputError,
    LSTMCell,
    Remat,
    Scan,
    Stack,
    models,
    unroll,
)
from jaxrnn.cells import CELLS
from jaxrnn.models.transformer import sinusoidal_positions
from tests.zoo import table_of_cells

F, H, V = 3, 4, 7
SIZES = ((5, 2), (1, 1), (9, 4))  # T and B


def rngs():
    return nnx.Rngs(0)


def gru(features=F):
    return RNN(GRUCell(features, H, rngs=rngs()))


def embedding():
    return models.Embedding(V, F, rngs=rngs())


def encoder_decoder():
    return models.EncoderDecoder(
        embedding(),
        Bidirectional(gru(), gru()),
        embedding(),
        GRUCell(F + 2 * H, H, rngs=rngs()),
        start=0,
        end=1,
        rngs=rngs(),
    )


def drawn(steps, batch, *, tokens):
    random = np.random.default_rng(0)
    if tokens:
        return jnp.asarray(random.integers(0, V, (steps, batch)), jnp.int32)
    return jnp.asarray(random.normal(size=(steps, batch, F)), jnp.float32)


def assert_exports(call, *, tokens=False, lengths=True):
    """Hold a program of sequences [T, B, ...] and their lengths [B] to the function itself."""
    steps, batch = jax.export.symbolic_shape("steps, batch")
    dtype, features = (jnp.int32, ()) if tokens else (jnp.float32, (F,))
    forms = [jax.ShapeDtypeStruct((steps, batch, *features), dtype)]
    forms += [jax.ShapeDtypeStruct((batch,), jnp.int32)] * lengths
    stored = jax.export.export(jax.jit(call))(*forms).serialize()
    program = jax.export.deserialize(bytearray(stored))
    for t, b in SIZES:
        inputs = [drawn(t, b, tokens=tokens), *([jnp.arange(b) % (t + 1)] * lengths)]
        for found, expected in zip(
            jax.tree.leaves(program.call(*inputs)), jax.tree.leaves(call(*inputs)), strict=True
        ):
            np.testing.assert_allclose(found, expected, atol=1e-5)  # float32


@table_of_cells("lstm", "gru", "lru", "clockwork", among=tuple(CELLS))
def test_unroll_of_any_cell(name):
    cell = jaxrnn.make_cell(name, F, H, rngs=rngs())

    def call(xs, lengths):
        done = unroll(cell, xs, seq_lengths=lengths)
        return done.outputs, done.carry, done.carries

    assert_exports(call)


def test_unroll_of_a_function_with_masks_and_resets_backwards():
    def call(xs, lengths):
        fresh = jnp.zeros(xs.shape[:2], bool).at[::2].set(True)
        start = jnp.ones(xs.shape[1:])
        options: Any = {"resets": fresh, "seq_lengths": lengths, "reverse": True}
        return unroll(lambda c, x: (c + x, c * x), xs, carry=start, **options).outputs

    assert_exports(call)


def batch_first(layer):
    def call(xs, lengths):
        return layer(jnp.swapaxes(xs, 0, 1), seq_lengths=lengths)

    return call


LAYERS: dict[str, Any] = {
    "rnn": gru,
    "backwards": lambda: RNN(LSTMCell(F, H, rngs=rngs()), reverse=True),
    "learnt": lambda: RNN(
        LSTMCell(F, H, rngs=rngs()), carry_init=jax.nn.initializers.normal(), rngs=rngs()
    ),
    "zoneout": lambda: RNN(LSTMCell(F, H, rngs=rngs()), zoneout=0.2),
    "bidirectional": lambda: Bidirectional(gru(), gru()),
    "stack": lambda: Stack([gru(), gru(H)], norms=[nnx.LayerNorm(n, rngs=rngs()) for n in (F, H)]),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    assert_exports(batch_first(LAYERS[name]()))


MODELS: dict[str, Any] = {
    "classifier": lambda: models.SequenceClassifier(gru().cell, 3, rngs=rngs()),
    "encoder-classifier": lambda: models.EncoderClassifier(
        Bidirectional(gru(), gru()), 3, pool=models.mean_step, rngs=rngs()
    ),
    "labeller": lambda: models.SequenceLabeller(gru(), 3, rngs=rngs()),
    "windowed": lambda: models.WindowedMLP(F, H, window=3, rngs=rngs()),
    "tcn": lambda: models.TCN(F, H, depth=2, rngs=rngs()),
    "transformer": lambda: models.TransformerEncoder(F, H, depth=1, heads=2, rngs=rngs()),
    "hierarchical": lambda: models.HierarchicalRNN([gru(2 * F), gru(2 * H)], windows=(2, 2)),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_numbers(name):
    model = MODELS[name]()
    assert_exports(lambda xs, lengths: model(xs, seq_lengths=lengths))


TOKEN_MODELS: dict[str, Any] = {
    "language-model": lambda: models.LanguageModel(embedding(), gru(), rngs=rngs()),
    "embedded": lambda: models.Embedded(
        embedding(), models.SequenceLabeller(gru(), 3, rngs=rngs())
    ),
    "token-transformer": lambda: models.TokenTransformer(
        V, H, depth=1, heads=2, causal=True, rngs=rngs()
    ),
}


@pytest.mark.parametrize("name", TOKEN_MODELS)
def test_models_of_tokens(name):
    model = TOKEN_MODELS[name]()
    assert_exports(lambda xs, lengths: model(xs, seq_lengths=lengths), tokens=True)


def test_an_encoder_decoder_and_its_search():
    model = encoder_decoder()

    def call(sources, lengths):
        decoded = model(sources, sources[::-1], seq_lengths=lengths)
        found = models.greedy_search(model, sources, 5, seq_lengths=lengths)
        return decoded.logits, found.tokens

    assert_exports(call, tokens=True)


def test_generation():
    model = TOKEN_MODELS["language-model"]()
    assert_exports(
        lambda prompt: models.generate(model, prompt, 4, key=None, temperature=0).tokens,
        tokens=True,
        lengths=False,
    )


def test_other_methods_are_refused():
    cell = gru().cell
    assert_exports(lambda xs, n: unroll(cell, xs, seq_lengths=n, method=Scan()).outputs)
    with pytest.raises(InputError, match=r"method: got Remat.*open.*; expected Scan\(\)"):
        assert_exports(lambda xs, n: unroll(cell, xs, seq_lengths=n, method=Remat()).outputs)


def test_positions_of_an_open_length_are_those_of_numpy():
    """Beyond the first table too."""
    (steps,) = jax.export.symbolic_shape("steps")
    program = jax.export.export(jax.jit(lambda xs: sinusoidal_positions(xs.shape[0], 6)))(
        jax.ShapeDtypeStruct((steps,), jnp.float32)
    )
    found = program.call(jnp.zeros(5000))
    np.testing.assert_allclose(found, sinusoidal_positions(5000, 6), atol=3e-7)  # float32
