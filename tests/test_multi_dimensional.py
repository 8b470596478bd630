"""The multi-dimensional LSTM against a double loop over pixels, and against the LSTM on a single row."""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import GRUCell, InputError
from jaxrnn.cells import count_parameters
from jaxrnn.models import ImageClassifier, MultiDimensionalLSTM
from jaxrnn.models.multi_dimensional import QuadrantLSTM
from tests.oracles import numpy_cells
from tests.oracles.parts import sigmoid

F, H = 2, 3
NAMES = ("kernel", "recurrent_kernel", "bias")


def network(dtype=jnp.float32, seed=0):
    """A network whose biases are not zero, so that a forgotten one shows."""
    model = MultiDimensionalLSTM(F, H, param_dtype=dtype, rngs=nnx.Rngs(seed))
    model.quadrants.bias[...] = 0.5 * jax.random.normal(jax.random.key(1), (4, 5 * H), dtype)
    return model


def draw(*shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def quadrant(weights, image):
    """The paper's equations, pixel by pixel from the top left; image [rows, columns, F]."""
    rows, columns, _ = image.shape
    W, U, b = (np.split(weights[name], 5, axis=-1) for name in NAMES)
    c, h = {}, {}
    nothing = np.zeros(H)
    for r in range(rows):
        for s in range(columns):
            above, left = (r - 1, s), (r, s - 1)
            h_above, h_left = h.get(above, nothing), h.get(left, nothing)
            i, f1, f2, g, o = (
                W[k].T @ image[r, s] + U[k][:H].T @ h_above + U[k][H:].T @ h_left + b[k]
                for k in range(5)
            )
            kept = sigmoid(f1) * c.get(above, nothing) + sigmoid(f2) * c.get(left, nothing)
            c[r, s] = kept + sigmoid(i) * np.tanh(g)
            h[r, s] = sigmoid(o) * np.tanh(c[r, s])
    return np.stack([np.stack([h[r, s] for s in range(columns)]) for r in range(rows)])


def four_quadrants(arrays):
    """All four directions of one image, side by side."""
    image, parts = arrays["image"], []
    for corner, (down, right) in enumerate(((1, 1), (1, -1), (-1, 1), (-1, -1))):
        weights = {name: arrays[name][corner] for name in NAMES}
        parts.append(quadrant(weights, image[::down, ::right])[::down, ::right])
    return np.concatenate(parts, axis=-1)


def numpy_weights(model):
    return {name: np.asarray(getattr(model.quadrants, name)[...], np.float64) for name in NAMES}


@pytest.mark.parametrize("rows_columns", [(3, 4), (4, 2), (1, 1)])
def test_diagonals_give_what_a_double_loop_gives(rows_columns, dtype):
    model, images = network(dtype), draw(2, *rows_columns, F, dtype=dtype)
    expected = [
        four_quadrants({**numpy_weights(model), "image": np.asarray(image, np.float64)})
        for image in images
    ]
    tolerance = 2e-6 if dtype == jnp.float32 else 1e-13
    outputs = jax.jit(lambda m, x: m(x))(model, images)
    assert outputs.dtype == dtype
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=tolerance)


def test_gradients_are_those_of_a_double_loop(dtype):
    model, image = network(dtype), draw(3, 2, F, dtype=dtype)
    weighing = np.random.default_rng(2).normal(size=(3, 2, 4 * H))
    by_model, by_image = jax.jit(
        jax.grad(lambda m, x: jnp.sum(m(x) * jnp.asarray(weighing, dtype)), (0, 1))
    )(model, image)
    expected = numpy_cells.gradients(
        lambda arrays: np.sum(four_quadrants(arrays) * weighing),
        {**numpy_weights(model), "image": np.asarray(image, np.float64)},
    )
    tolerance = 5e-6 if dtype == jnp.float32 else 1e-13
    np.testing.assert_allclose(by_image, expected["image"], rtol=0, atol=tolerance)
    for name in NAMES:
        ours = getattr(by_model.quadrants, name)[...]
        np.testing.assert_allclose(ours, expected[name], rtol=0, atol=tolerance)


@pytest.mark.usefixtures("x64")
def test_an_image_of_one_row_is_read_as_the_lstm_reads_a_sequence():
    one = QuadrantLSTM(F, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    cell = jaxrnn.LSTMCell(F, H, param_dtype=jnp.float64, rngs=nnx.Rngs(1))

    def without_the_rows(parts):
        i, _, f, g, o = jnp.split(parts, 5, axis=-1)
        return jnp.concatenate([i, f, g, o], axis=-1)

    cell.kernel[...] = without_the_rows(one.kernel[...])
    cell.recurrent_kernel[...] = without_the_rows(one.recurrent_kernel[...][H:])
    cell.bias[...] = without_the_rows(one.bias[...])
    xs = draw(7, 4, F, dtype=jnp.float64)
    rows = one(jnp.moveaxis(xs, 0, 1)[:, None])
    expected = jaxrnn.unroll(cell, xs).outputs
    np.testing.assert_allclose(jnp.moveaxis(rows[:, 0], 1, 0), expected, atol=1e-14)


def test_each_direction_sees_its_quadrant_and_all_together_the_image():
    model, image = network(), draw(3, 4, F)
    seen = (
        np.abs(jax.jit(jax.jacrev(lambda x: model(x)[1, 2]))(image))
        .sum(axis=-1)
        .reshape(4, H, 3, 4)
    )
    seen = seen.sum(axis=1) > 0
    rows, columns = np.arange(3)[:, None], np.arange(4)[None, :]
    for corner, quadrant in enumerate(
        [
            (rows <= 1) & (columns <= 2),
            (rows <= 1) & (columns >= 2),
            (rows >= 1) & (columns <= 2),
            (rows >= 1) & (columns >= 2),
        ]
    ):
        np.testing.assert_array_equal(seen[corner], quadrant)


def test_the_depth_is_that_of_the_diagonals():
    traced = str(jax.make_jaxpr(network())(draw(5, 9, F)))
    assert traced.count(" scan[") == 1
    assert "length=13" in traced


def test_any_number_of_batch_axes():
    model, images = network(), draw(2, 3, 4, 5, F)
    outputs = model(images)
    assert outputs.shape == (2, 3, 4, 5, 4 * H)
    np.testing.assert_allclose(outputs[1, 2], model(images[1, 2]), atol=1e-6)
    np.testing.assert_array_equal(model(np.asarray(images)), outputs)


def test_parameters_are_those_of_the_paper():
    """Five gates a direction, each over the pixel, two neighbours and a bias."""
    assert count_parameters(MultiDimensionalLSTM(7, 6, rngs=nnx.Rngs(0))) == 4 * 5 * 6 * (
        7 + 2 * 6 + 1
    )


def test_directions_start_apart_and_keep_the_sum_of_their_cells():
    quadrants = MultiDimensionalLSTM(F, H, rngs=nnx.Rngs(0)).quadrants
    assert len({float(kernel[0, 0]) for kernel in quadrants.kernel[...]}) == 4
    assert not np.any(quadrants.bias[...])  # σ(0) + σ(0) = 1
    for block in np.split(np.asarray(quadrants.recurrent_kernel[...][2]), 5, axis=-1):
        np.testing.assert_allclose(block.T @ block, np.eye(H), atol=1e-6)


def test_the_classifier_reads_the_mean_of_the_pixels(dtype):
    rngs = nnx.Rngs(0)
    model = ImageClassifier(network(dtype), 4, rngs=rngs)
    images = draw(2, 3, 4, F, dtype=dtype)
    features = np.asarray(model.network(images))
    kernel, bias = np.asarray(model.readout.kernel), np.asarray(model.readout.bias)
    expected = features.reshape(2, 12, -1).mean(axis=1) @ kernel + bias
    logits = jax.jit(lambda m, x: m(x))(model, images)
    assert logits.dtype == dtype
    np.testing.assert_allclose(logits, expected, atol=1e-5 if dtype == jnp.float32 else 1e-13)


@pytest.mark.slow
def test_classifiers_make_an_ensemble():
    def make(key):
        rngs = nnx.Rngs(key)
        return ImageClassifier(MultiDimensionalLSTM(F, H, rngs=rngs), 4, rngs=rngs)

    models = jax.vmap(make)(jax.random.split(jax.random.key(0), 3))
    logits = jax.jit(jax.vmap(lambda m: m(draw(5, 2, 2, F))))(models)
    assert logits.shape == (3, 5, 4)
    assert len(np.unique(logits[:, 0, 0])) == 3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MultiDimensionalLSTM(0, H, rngs=nnx.Rngs(0)), "in_features: got 0"),
        (lambda: MultiDimensionalLSTM(F, 0, rngs=nnx.Rngs(0)), "hidden_features: got 0"),
        (
            lambda: ImageClassifier(
                cast(Any, GRUCell(F, H, rngs=nnx.Rngs(0))), 3, rngs=nnx.Rngs(0)
            ),
            "network: got GRUCell; expected a MultiDimensionalLSTM",
        ),
        (lambda: ImageClassifier(network(), 0, rngs=nnx.Rngs(0)), "classes: got 0"),
        (lambda: network()(draw(4, 4, 3)), r"images: got float32\[4, 4, 3\]; expected 2 features"),
        (lambda: network()(draw(4, F)), r"images: got float32\[4, 2\]; expected at least one"),
        (
            lambda: network()(draw(0, 4, F)),
            r"images: got float32\[0, 4, 2\]; expected at least one",
        ),
        (
            lambda: network()(draw(4, 4, F, dtype=jnp.bfloat16)),
            "images: got dtype bfloat16; expected the network's own, float32",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(build, message):
    with pytest.raises(InputError, match=message):
        build()
