"""The hierarchical subsampling network against loops over windows, one sequence at a time."""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import RNN, Bidirectional, InputError, Stack
from jaxrnn.cells import count_parameters
from jaxrnn.models import EncoderClassifier, HierarchicalRNN, mean_step
from jaxrnn.models.hierarchical import subsample, subsampled_lengths
from tests.oracles import numpy_cells

F, H, Y, T = 2, 3, 2, 7
WINDOWS = (2, 3)
LENGTHS = np.array([7, 6, 5, 1, 0])


def encoder(dtype: Any = jnp.float32) -> HierarchicalRNN:
    def rnn(name, features, units, seed):
        options = {"param_dtype": dtype, "rngs": nnx.Rngs(seed)}
        return RNN(jaxrnn.make_cell(name, features, units, **options))

    both = Bidirectional(rnn("gru", 2 * F, H, 0), rnn("gru", 2 * F, H, 1))
    return HierarchicalRNN([both, rnn("lstm", 3 * 2 * H, Y, 2)], WINDOWS)


def draw(*shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def windowed(xs, window):
    """Windows of a sequence [T, F], one after the other, the last filled with zeros."""
    joined = []
    for start in range(0, len(xs), window):
        steps = [
            xs[t] if t < len(xs) else np.zeros(xs.shape[1]) for t in range(start, start + window)
        ]
        joined.append(np.concatenate(steps))
    return joined


def read(name, arrays, prefix, xs):
    """A cell over a list of inputs, one step at a time."""
    cell = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    weights, step = numpy_cells.separate(name, cell), numpy_cells.STEPS[name]
    state, outputs = (np.zeros(len(weights["b_n" if name == "gru" else "b_i"])),) * 2, []
    state = state[:1] if name == "gru" else state
    for x in xs:
        state, y = step(weights, state, x)
        outputs.append(y)
    return outputs


def oracle(arrays, xs):
    """One sequence [T, F], without padding."""
    pairs = windowed(xs, WINDOWS[0])
    ahead = read("gru", arrays, "ahead.", pairs)
    back = read("gru", arrays, "back.", pairs[::-1])[::-1]
    below = np.stack([np.concatenate(both) for both in zip(ahead, back, strict=True)])
    return np.stack(read("lstm", arrays, "top.", windowed(below, WINDOWS[1])))


def arrays_of(model: Any) -> dict[str, np.ndarray]:
    both, top = model.layers
    cells = {"ahead.": both.forward_rnn.cell, "back.": both.backward_rnn.cell, "top.": top.cell}
    return {
        prefix + name: np.asarray(getattr(cell, name)[...], np.float64)
        for prefix, cell in cells.items()
        for name in ("kernel", "recurrent_kernel", "bias", "recurrent_bias")
        if hasattr(cell, name)
    }


def test_outputs_are_those_of_loops_over_windows(dtype):
    model, xs = encoder(dtype), draw(T, len(LENGTHS), F, dtype=dtype)
    outputs = model(xs, seq_lengths=LENGTHS)
    assert outputs.shape == (2, len(LENGTHS), Y)
    assert outputs.dtype == dtype
    lengths = model.output_lengths(LENGTHS)
    np.testing.assert_array_equal(lengths, [2, 1, 1, 1, 0])
    for b, length in enumerate(LENGTHS):
        expected = np.zeros((2, Y))
        if length:
            done = oracle(arrays_of(model), np.asarray(xs[:length, b], np.float64))
            assert len(done) == lengths[b]
            expected[: len(done)] = done
        tolerance = 1e-6 if dtype == jnp.float32 else 1e-14
        np.testing.assert_allclose(outputs[:, b], expected, rtol=0, atol=tolerance)


def test_gradients_are_those_of_loops_over_windows(dtype):
    model, xs = encoder(dtype), draw(5, F, dtype=dtype)
    by_model, by_xs = jax.jit(jax.grad(lambda m, xs: jnp.sum(m(xs) ** 2), (0, 1)))(model, xs)
    expected = numpy_cells.gradients(
        lambda arrays: np.sum(oracle(arrays, arrays["xs"]) ** 2),
        {**arrays_of(model), "xs": np.asarray(xs, np.float64)},
    )
    tolerance = 2e-6 if dtype == jnp.float32 else 1e-14
    ours = {**arrays_of(by_model), "xs": by_xs}
    assert ours.keys() == expected.keys()
    for name, gradient in ours.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("window", [1, 2, 3, 7, 9])
def test_subsampling_joins_windows_and_counts_those_with_a_valid_step(window):
    xs = draw(T, 2, 3, F)
    joined = subsample(xs, window)
    for place in np.ndindex(2, 3):
        expected = windowed(np.asarray(xs[(slice(None), *place)]), window)
        np.testing.assert_array_equal(joined[(slice(None), *place)], expected)
    for length in range(T + 1):
        counted = sum(1 for start in range(0, length, window))
        assert int(subsampled_lengths(jnp.array(length), window)) == counted
    assert subsampled_lengths(None, window) is None


def test_parameters_are_those_of_the_layers_on_widened_inputs():
    pair, top = 2 * (3 * H * (2 * F + H + 1) + H), 4 * Y * (3 * 2 * H + Y + 1)
    assert count_parameters(encoder()) == pair + top


def test_one_window_of_one_step_is_the_layer_itself():
    layer = RNN(jaxrnn.GRUCell(F, H, rngs=nnx.Rngs(0)))
    xs = draw(T, 4, F)
    outputs = HierarchicalRNN([layer], [1])(xs, seq_lengths=np.array([7, 3, 1, 0]))
    expected = layer(xs, seq_lengths=np.array([7, 3, 1, 0]), time_major=True)
    np.testing.assert_allclose(outputs, expected, atol=1e-6)


def test_a_stack_may_be_a_layer_and_a_layer_may_return_its_carry():
    inner = [
        RNN(jaxrnn.GRUCell(f, H, rngs=nnx.Rngs(i)), return_carry=i == 0)
        for i, f in ((0, F), (1, H))
    ]
    xs, lengths = draw(T, 4, F), np.array([7, 3, 1, 0])
    outputs = HierarchicalRNN([Stack(inner, return_carry=True)], [1])(xs, seq_lengths=lengths)
    expected = HierarchicalRNN(inner, [1, 1])(xs, seq_lengths=lengths)
    np.testing.assert_array_equal(outputs, expected)


def test_dropout_is_that_of_the_layers():
    layers = [
        RNN(jaxrnn.GRUCell(f, H, rngs=nnx.Rngs(i)), dropout=0.5) for i, f in ((0, F), (1, 2 * H))
    ]
    model, xs, key = HierarchicalRNN(layers, [1, 2]), draw(6, 4, F), jax.random.key(0)
    first, second = jax.random.split(key)
    below = layers[0](xs, time_major=True, dropout_key=first)
    expected = layers[1](subsample(below, 2), time_major=True, dropout_key=second)
    np.testing.assert_allclose(model(xs, dropout_key=key), expected, rtol=0, atol=1e-6)
    assert np.abs(model(xs) - expected).max() > 1e-3


def test_the_classifier_pools_over_the_windows_that_are_valid():
    model = EncoderClassifier(encoder(), 4, pool=mean_step, rngs=nnx.Rngs(3))
    xs = draw(T, len(LENGTHS), F)
    logits = model(xs, seq_lengths=LENGTHS)
    for b, length in enumerate(LENGTHS):
        features = np.zeros(Y)
        if length:
            alone = oracle(arrays_of(model.encoder), np.asarray(xs[:length, b], np.float64))
            features = alone.mean(axis=0)
        expected = features @ np.asarray(model.readout.kernel) + np.asarray(model.readout.bias)
        np.testing.assert_allclose(logits[b], expected, atol=1e-6)


def _rnn(in_features, units=H):
    return RNN(jaxrnn.GRUCell(in_features, units, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: HierarchicalRNN([], []), "layers: got none"),
        (lambda: HierarchicalRNN([_rnn(F)] * 2, [1, 1]), "layers: got one layer twice"),
        (lambda: HierarchicalRNN([_rnn(F)], [1, 2]), "windows: got 2 of them; expected 1"),
        (lambda: HierarchicalRNN(cast(Any, [3]), [1]), "layers: got int; expected an RNN"),
        (lambda: HierarchicalRNN([_rnn(F)], [0]), "windows: got 0; expected a whole number"),
        (
            lambda: HierarchicalRNN([_rnn(5)], [2]),
            "layers: got layer 0 with in_features 5; expected a multiple of its window, 2",
        ),
        (
            lambda: HierarchicalRNN([_rnn(4), _rnn(4)], [2, 2]),
            "layers: got layer 1 with in_features 4; expected 6: 2 steps of 3 features",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(build, message):
    with pytest.raises(InputError, match=message):
        build()
