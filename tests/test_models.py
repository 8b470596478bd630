"""The classifier: its logits by hand, and sizes that match."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import RNN, Bidirectional, GRUCell, InputError, Stack
from jaxrnn.cells import CELLS, count_parameters
from jaxrnn.models import (
    TCN,
    EncoderClassifier,
    HierarchicalRNN,
    SequenceClassifier,
    SequenceLabeller,
    classifier_parameters,
    last_step,
    matched_width,
    mean_step,
)
from tests.zoo import every_cell


def _classifier(name: str, hidden_features: int = 6) -> SequenceClassifier:
    rngs = nnx.Rngs(0)
    return SequenceClassifier(jaxrnn.make_cell(name, 2, hidden_features, rngs=rngs), 3, rngs=rngs)


@every_cell
def test_logits_read_the_output_after_the_last_valid_step(name: str):
    model = _classifier(name)
    xs = jax.random.normal(jax.random.key(0), (7, 4, 2))
    lengths = [7, 3, 1, 0]
    logits = model(xs, seq_lengths=jnp.array(lengths))
    kernel, bias = model.readout.kernel, model.readout.bias
    assert kernel is not None
    assert bias is not None
    for b, length in enumerate(lengths):
        carry = model.cell.initialize_carry((2,))
        y = jnp.zeros(model.cell.out_features)
        for t in range(length):
            carry, y = model.cell(carry, xs[t, b])
        expected = np.asarray(y) @ np.asarray(kernel[...]) + np.asarray(bias[...])
        np.testing.assert_allclose(logits[b], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CELLS)
def test_parameter_counts_are_those_of_the_network(name: str):
    assert count_parameters(_classifier(name)) == classifier_parameters(CELLS[name], 2, 3, 6)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("parameters", [20, 1_000, 10_000])
def test_no_other_width_comes_nearer(name: str, parameters: int):
    found = matched_width(CELLS[name], 2, 3, parameters)
    distance = [
        abs(classifier_parameters(CELLS[name], 2, 3, h) - parameters) for h in range(1, 4000)
    ]
    assert distance[found - 1] == min(distance)


def _rnn(in_features: int, seed: int = 0, **options) -> RNN:
    return RNN(GRUCell(in_features, 4, rngs=nnx.Rngs(seed)), **options)


LAYERS = {
    "rnn": lambda: _rnn(2, dropout=0.5, return_carry=True),
    "bidirectional": lambda: Bidirectional(_rnn(2, dropout=0.5), _rnn(2, 1, dropout=0.5)),
    "stack": lambda: Stack([_rnn(2, dropout=0.5), _rnn(4, 1)], return_carry=True),
}
LENGTHS = np.array([7, 3, 1, 0])


@pytest.mark.parametrize("pool", [last_step, mean_step])
@pytest.mark.parametrize("name", LAYERS)
def test_any_layer_can_be_read_for_a_class_or_for_labels(name: str, pool):
    """One sequence at a time, without padding, which may hold anything."""
    layer, xs, key = (
        LAYERS[name](),
        jax.random.normal(jax.random.key(0), (7, 4, 2)),
        jax.random.key(1),
    )
    xs = jnp.where((np.arange(7)[:, None] < LENGTHS)[..., None], xs, jnp.nan)
    model = EncoderClassifier(layer, 3, pool=pool, rngs=nnx.Rngs(2))
    labeller = SequenceLabeller(layer, 3, rngs=nnx.Rngs(3))
    logits, labels = model(xs, seq_lengths=LENGTHS), labeller(xs, seq_lengths=LENGTHS)
    for b, length in enumerate(LENGTHS):
        ys = np.zeros((1, layer(xs[None, :1, 0], return_carry=False).shape[-1]))
        if length:
            ys = layer(xs[None, :length, b], return_carry=False)[0]
            np.testing.assert_allclose(labels[:length, b], labeller.readout(ys), atol=1e-6)
        pooled = jnp.asarray(ys[-1] if pool is last_step else ys.mean(axis=0), jnp.float32)
        np.testing.assert_allclose(logits[b], model.readout(pooled), atol=1e-6)
    options = {"seq_lengths": LENGTHS, "dropout_key": key}
    dropped = layer(xs, time_major=True, return_carry=False, **options)
    np.testing.assert_allclose(
        model(xs, **options), model.readout(pool(dropped, LENGTHS)), atol=1e-6
    )
    assert np.abs(model(xs, **options) - logits).max() > 1e-3


@pytest.mark.parametrize("name", ["tcn", "hierarchical"])
def test_the_outputs_of_an_encoder_can_be_labelled(name: str):
    encoder = {
        "tcn": lambda: TCN(2, 4, depth=2, rngs=nnx.Rngs(0)),
        "hierarchical": lambda: HierarchicalRNN([_rnn(4)], [2]),
    }[name]()
    xs = jax.random.normal(jax.random.key(0), (7, 4, 2))
    model = SequenceLabeller(encoder, 3, rngs=nnx.Rngs(1))
    labels = model(xs, seq_lengths=LENGTHS)
    assert labels.shape == (4 if name == "hierarchical" else 7, 4, 3)
    expected = model.readout(encoder(xs, seq_lengths=LENGTHS))
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda rngs: SequenceClassifier(Stack([_rnn(2)]), 3, rngs=rngs),
            r"cell: got Stack; expected a cell of jaxrnn, or an RNN of one \(other layers: Encoder",
        ),
        (lambda rngs: SequenceClassifier(_rnn(2).cell, 0, rngs=rngs), "classes: got 0; expected"),
        (lambda rngs: EncoderClassifier(_rnn(2), 0, rngs=rngs), "classes: got 0; expected"),
    ],
)
def test_what_is_no_classifier_is_refused(build, message: str):
    with pytest.raises(InputError, match=message):
        build(nnx.Rngs(0))


@pytest.mark.parametrize("name", ["gru", "mgu", "mlstm"])
def test_a_classifier_that_reads_backwards_has_read_everything(name):
    """Cells that split, that do not, and whose output is no part of the carry."""
    rngs = nnx.Rngs(0)
    layer = RNN(jaxrnn.make_cell(name, 3, 4, rngs=rngs), reverse=True)
    model = SequenceClassifier(layer, 2, rngs=rngs)
    xs = jax.random.normal(jax.random.key(0), (6, 2, 3))
    slopes = jax.grad(lambda xs: model(xs).sum())(xs)
    assert (jnp.abs(slopes).max(axis=(1, 2)) > 0).all()
