"""What every sequence encoder keeps to, and the readout that they share."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import RNN, Bidirectional, InputError
from jaxrnn.models import (
    TCN,
    EncoderClassifier,
    HierarchicalRNN,
    ImageClassifier,
    MultiDimensionalLSTM,
    SequenceEncoder,
    TransformerEncoder,
    WindowedMLP,
    last_step,
    mean_step,
)
from tests.zoo import each_of

F, H, T = 3, 4, 7
LENGTHS = np.array([7, 3, 0])

assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)


def hierarchical(**options) -> HierarchicalRNN:
    cells = [jaxrnn.GRUCell(2 * F, 2, **options) for _ in range(2)]
    top = jaxrnn.LSTMCell(3 * 4, H, **options)
    return HierarchicalRNN([Bidirectional(*map(RNN, cells)), RNN(top)], (2, 3))


ENCODERS: dict[str, Any] = {
    "windowed": lambda **options: WindowedMLP(F, H, window=3, depth=2, **options),
    "tcn": lambda **options: TCN(F, H, depth=2, **options),
    "causal transformer": lambda **options: TransformerEncoder(
        F, H, depth=2, heads=2, causal=True, **options
    ),
    "transformer": lambda **options: TransformerEncoder(F, H, depth=2, heads=2, **options),
    "hierarchical": hierarchical,
}


one_of_each_kind = each_of(ENCODERS, "tcn", "causal transformer", "hierarchical")


def make(name, dtype: Any = jnp.float32, seed=0) -> SequenceEncoder:
    return ENCODERS[name](param_dtype=dtype, rngs=nnx.Rngs(seed))


def draw(*shape, dtype: Any = jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.mark.usefixtures("x64")
@one_of_each_kind
def test_padding_changes_neither_values_nor_gradients(name):
    """As each sequence alone without its padding, and with NaN in the padding."""
    encoder, xs = make(name, jnp.float64), draw(T, len(LENGTHS), F, dtype=jnp.float64)

    @jax.jit
    def run(encoder, xs, lengths):
        def loss(encoder, xs):
            outputs = encoder(xs, seq_lengths=lengths)
            return jnp.sum(outputs**2), outputs

        slopes, outputs = jax.grad(loss, (0, 1), has_aux=True)(encoder, xs)
        return outputs, *slopes

    valid = (np.arange(T)[:, None] < LENGTHS)[..., None]
    outputs, by_weights, by_xs = run(encoder, jnp.where(valid, xs, np.nan), jnp.asarray(LENGTHS))
    expected = jax.tree.map(jnp.zeros_like, (outputs, by_weights, by_xs))
    for b, length in enumerate(LENGTHS):
        if length:
            alone, weights_alone, xs_alone = run(encoder, xs[:length, b], None)
            expected = (
                expected[0].at[: len(alone), b].set(alone),
                jax.tree.map(jnp.add, expected[1], weights_alone),
                expected[2].at[:length, b].set(xs_alone),
            )
    assert outputs.shape[2] == encoder.out_features
    jax.tree.map(assert_close, (outputs, by_weights, by_xs), expected)


@one_of_each_kind
def test_any_number_of_batch_axes(name):
    encoder, xs = make(name), draw(T, 2, 3, F)
    run = jax.jit(lambda encoder, xs, lengths: encoder(xs, seq_lengths=lengths))
    lengths = np.array([[7, 5, 4], [1, 0, 2]])
    outputs = run(encoder, np.asarray(xs), lengths)
    assert outputs.shape[1:] == (2, 3, H)
    assert outputs.dtype == jnp.float32
    flat = run(encoder, xs.reshape(T, 6, F), lengths.reshape(6))
    np.testing.assert_allclose(outputs.reshape(flat.shape), flat, atol=2e-6)


def test_lengths_may_be_constants_of_a_compiled_program():
    encoder, xs, lengths = make("windowed"), draw(T, 2, F), jnp.array([7, 3])
    compiled = jax.jit(lambda xs: encoder(xs, seq_lengths=lengths))(xs)
    np.testing.assert_allclose(compiled, encoder(xs, seq_lengths=lengths), atol=2e-6)


@pytest.mark.parametrize("name", ["windowed", "tcn", "causal transformer"])
def test_a_causal_encoder_does_not_see_what_is_to_come(name):
    """By gradient, and the present it does see."""
    encoder = make(name)
    by_lag = np.abs(jax.jit(jax.jacrev(encoder))(draw(T, F))).sum(axis=(1, 3))
    assert not np.any(np.triu(by_lag, 1))
    assert np.any(np.diagonal(by_lag) > 0)


@each_of(ENCODERS, "windowed")
def test_encoders_train_as_plain_trees(name):
    """`jax.grad`, `jit`, `vmap` and optax take an ensemble of classifiers as it is."""

    def build(key):
        rngs = nnx.Rngs(key)
        encoder = ENCODERS[name](rngs=rngs)
        return EncoderClassifier(encoder, 2, pool=mean_step, rngs=rngs)

    models: Any = jax.vmap(build)(jax.random.split(jax.random.key(0), 2))
    xs, optimizer = draw(T, 16, F), optax.sgd(0.3)
    labels = (xs.mean(axis=(0, 2)) > 0).astype(int)

    def loss(model):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(model(xs), labels))

    @jax.jit
    def train(models, state):
        def step(held, _):
            models, state = held
            losses, slopes = jax.vmap(jax.value_and_grad(loss))(models)
            updates, state = optimizer.update(slopes, state)
            return (optax.apply_updates(models, updates), state), losses

        return jax.lax.scan(step, (models, state), length=50)[1]

    losses = train(models, optimizer.init(models))
    assert len(np.unique(losses[0])) == 2
    assert np.all(losses[-1] < 0.9 * losses[0])


# Dropout.


@pytest.mark.parametrize("name", ["tcn", "transformer"])
def test_dropout_follows_its_key_and_needs_one(name):
    xs, options = draw(T, 2, F), {"param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    plain = ENCODERS[name](**options)(xs)
    dropping = ENCODERS[name](**{**options, "rngs": nnx.Rngs(0)}, dropout=0.5)
    outputs = functools.partial(dropping, xs)
    one, again, other = (outputs(dropout_key=jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(outputs(), plain)
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, plain)


def test_a_tcn_drops_features_of_whole_sequences():
    """One block whose second convolution is 1 everywhere: what it adds is 0 or twice as much."""
    tcn = TCN(H, H, depth=1, kernel_size=1, dropout=0.5, rngs=nnx.Rngs(0))
    (block,) = tcn.blocks
    _, second = block.convolutions
    second.length[...] = jnp.zeros(H)
    second.bias[...] = jnp.ones(H)
    added = np.asarray(tcn(jnp.zeros((T, 200, H)), dropout_key=jax.random.key(0)))
    assert {*np.unique(added)} == {0.0, 2.0}
    assert (added == added[0]).all()
    assert (added[0] == 0).mean() == pytest.approx(0.5, abs=0.07)  # 4 standard errors of 800 draws


@pytest.mark.parametrize("name", ["windowed", "hierarchical"])
@pytest.mark.parametrize("pool", [last_step, mean_step])
def test_the_readout_reads_the_pooled_outputs(name, pool, dtype):
    encoder = make(name, dtype)
    model = EncoderClassifier(encoder, 5, pool=pool, rngs=nnx.Rngs(1))
    xs = draw(T, len(LENGTHS), F, dtype=dtype)
    kernel, bias = np.asarray(model.readout.kernel), np.asarray(model.readout.bias)
    lengths = np.asarray(encoder.output_lengths(LENGTHS))
    outputs = np.asarray(model.encoder(xs, seq_lengths=LENGTHS))
    logits, whole = model(xs, seq_lengths=LENGTHS), model(xs)
    tolerance = 2e-6 if dtype == jnp.float32 else 1e-13
    assert logits.dtype == dtype
    for b, length in enumerate(lengths):
        valid = outputs[:length, b]
        pooled = np.zeros(H)
        if length:
            pooled = valid[-1] if pool is last_step else valid.mean(axis=0)
        np.testing.assert_allclose(logits[b], pooled @ kernel + bias, rtol=0, atol=tolerance)
    np.testing.assert_allclose(whole[0], logits[0], rtol=0, atol=tolerance)


def test_a_mean_in_half_precision_sums_and_counts_right():
    """float16 ends at 65,504; in bfloat16 the number after 256 is 258."""
    many = jnp.ones((70_000, 1), jnp.float16)
    assert mean_step(many, jnp.array(70_000)) == 1
    one = jnp.zeros((257, 1), jnp.bfloat16).at[0].set(256)
    assert mean_step(one, jnp.array(257)).astype(jnp.float32) == 0.99609375  # 256/257, rounded


@pytest.mark.slow
def test_readouts_start_as_glorot_has_it():
    encoder = make("tcn")
    classes = 300
    network = MultiDimensionalLSTM(F, H, rngs=nnx.Rngs(0))
    models: list[Any] = [
        EncoderClassifier(encoder, classes, rngs=nnx.Rngs(1)),
        ImageClassifier(network, classes, rngs=nnx.Rngs(1)),
    ]
    for model, features in zip(models, (H, 4 * H), strict=True):
        bound = np.sqrt(6 / (features + classes))
        assert 0.99 * bound < np.abs(model.readout.kernel[...]).max() <= bound


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: EncoderClassifier(jaxrnn.GRUCell(2, 2, rngs=nnx.Rngs(0)), 2, rngs=nnx.Rngs(0)),
            "encoder: got GRUCell; expected an RNN, a Bidirectional, a Stack or a SequenceEncoder",
        ),
        (lambda: EncoderClassifier(make("tcn"), 0, rngs=nnx.Rngs(0)), "classes: got 0"),
        (
            lambda: TCN(F, H, depth=1, dropout=1.0, rngs=nnx.Rngs(0)),
            "dropout: got 1.0; expected a rate from 0 up to, not including, 1",
        ),
        (lambda: make("tcn")(draw(T, 2, 5)), r"xs: got float32\[7, 2, 5\]; expected 3 features"),
        (lambda: make("tcn")(draw(F)), r"xs: got float32\[3\]; expected at least 1 step"),
        (lambda: make("tcn")(draw(0, 2, F)), r"xs: got float32\[0, 2, 3\]; expected at least 1"),
        (lambda: make("tcn")(jnp.ones((T, F), int)), r"xs: got int32\[7, 3\]; expected a floating"),
        (
            lambda: make("tcn")(draw(T, F, dtype=jnp.bfloat16)),
            "xs: got dtype bfloat16; expected the encoder's own, float32",
        ),
        (
            lambda: make("tcn")(draw(T, 2, F), seq_lengths=np.array([3, 10])),
            "seq_lengths: got values from 3 to 10; expected 0 to 7",
        ),
        (
            lambda: make("hierarchical")(draw(T, 2, F), seq_lengths=np.array([3])),
            r"seq_lengths: got int64\[1\]; expected shape \[2\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(build, message):
    with pytest.raises(InputError, match=message):
        build()
