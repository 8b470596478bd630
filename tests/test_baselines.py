"""The windowed MLP and the TCN against loops over steps, and how far back they see."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrnn import InputError
from jaxrnn.cells import count_parameters
from jaxrnn.models import TCN, WindowedMLP
from jaxrnn.models.convolution import causal_convolution
from tests.oracles import numpy_cells
from tests.oracles.parts import relu

F, H, T = 2, 3, 9


def draw(*shape, dtype: Any = jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def disturbed(model, scale=0.3):
    """Move every parameter, biases included, so that one that is forgotten shows."""
    leaves, structure = jax.tree.flatten(model)
    moved = [
        leaf + scale * draw(*leaf.shape, dtype=leaf.dtype, seed=i) for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, moved)


def past(xs, t, lag):
    return xs[t - lag] if t >= lag else np.zeros(xs.shape[1])


def loop_convolution(xs, kernel, dilation):
    """Every step and every tap by itself."""
    n = len(kernel)
    return np.stack(
        [
            sum(past(xs, t, (n - 1 - k) * dilation) @ kernel[k] for k in range(n))
            for t in range(len(xs))
        ]
    )


@pytest.mark.parametrize("dilation", [1, 2, 5])
@pytest.mark.parametrize("taps", [1, 2, 4])
def test_causal_convolution_is_a_loop_over_steps_and_taps(taps, dilation, dtype):
    xs, kernel = draw(T, 4, F, dtype=dtype), draw(taps, F, H, dtype=dtype, seed=1)
    ys = causal_convolution(xs, kernel, dilation)
    assert ys.dtype == dtype
    for b in range(4):
        expected = loop_convolution(np.asarray(xs[:, b]), np.asarray(kernel), dilation)
        np.testing.assert_allclose(ys[:, b], expected, atol=1e-5 if dtype == jnp.float32 else 1e-13)


# The windowed MLP.


def windowed_mlp(arrays):
    """Each step's window cut out and joined, one step at a time."""
    xs, window = arrays["xs"], len(arrays["kernel0"])
    outputs = []
    for t in range(len(xs)):
        y = np.concatenate([past(xs, t, lag) for lag in reversed(range(window))])
        for layer in range(2):
            kernel = arrays[f"kernel{layer}"]
            y = relu(y @ kernel.reshape(-1, kernel.shape[-1]) + arrays[f"bias{layer}"])
        outputs.append(y)
    return np.stack(outputs)


def test_windowed_mlp_is_a_loop_over_windows_forwards_and_backwards(dtype):
    model = disturbed(WindowedMLP(F, H, window=4, depth=2, param_dtype=dtype, rngs=nnx.Rngs(0)))
    xs = draw(6, F, dtype=dtype)

    def arrays_of(model):
        kernels = {
            f"kernel{i}": np.asarray(k[...], np.float64) for i, k in enumerate(model.kernels)
        }
        return kernels | {
            f"bias{i}": np.asarray(b[...], np.float64) for i, b in enumerate(model.biases)
        }

    arrays = {**arrays_of(model), "xs": np.asarray(xs, np.float64)}
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-13
    np.testing.assert_allclose(model(xs), windowed_mlp(arrays), rtol=0, atol=tolerance)
    by_model, by_xs = jax.grad(lambda m, xs: jnp.sum(m(xs) ** 2), (0, 1))(model, xs)
    expected = numpy_cells.gradients(lambda arrays: np.sum(windowed_mlp(arrays) ** 2), arrays)
    for name, gradient in {**arrays_of(by_model), "xs": by_xs}.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize("window", [1, 3, 5])
def test_nothing_outside_the_window_has_a_gradient(window):
    model = jax.tree.map(jnp.abs, WindowedMLP(F, H, window=window, depth=3, rngs=nnx.Rngs(0)))
    assert farthest_lag(model) == window - 1


def farthest_lag(model, steps=40):
    """The largest lag with a gradient; all lags up to it may have one."""
    by_step = jax.jit(jax.grad(lambda xs: jnp.sum(model(xs)[-1])))(jnp.ones((steps, F)))
    lags = np.flatnonzero(np.abs(by_step).sum(axis=1)[::-1])
    np.testing.assert_array_equal(lags, np.arange(len(lags)))
    return lags[-1]


# The TCN.


def tcn(arrays, depth):
    """Blocks from the paper, with kernels as direction and length."""
    xs = arrays["xs"]
    for level in range(depth):
        ys = xs
        for c in range(2):
            v, g = arrays[f"{level}.{c}.direction"], arrays[f"{level}.{c}.length"]
            kernel = np.zeros(v.shape, np.result_type(v, g))
            for h in range(v.shape[-1]):
                kernel[..., h] = g[h] * v[..., h] / np.sqrt(np.sum(v[..., h] ** 2))
            ys = relu(loop_convolution(ys, kernel, 2**level) + arrays[f"{level}.{c}.bias"])
        if f"{level}.skip0" in arrays:
            xs = xs @ arrays[f"{level}.skip0"] + arrays[f"{level}.skip1"]
        xs = relu(ys + xs)
    return xs


def tcn_arrays(model):
    arrays = {}
    for level, block in enumerate(model.blocks):
        for c, convolution in enumerate(block.convolutions):
            for name in ("direction", "length", "bias"):
                arrays[f"{level}.{c}.{name}"] = np.asarray(
                    getattr(convolution, name)[...], np.float64
                )
        for i, part in enumerate(block.skip):
            arrays[f"{level}.skip{i}"] = np.asarray(part[...], np.float64)
    return arrays


def test_tcn_is_a_loop_over_its_blocks_forwards_and_backwards(dtype):
    model = disturbed(TCN(F, H, depth=2, kernel_size=2, param_dtype=dtype, rngs=nnx.Rngs(0)))
    xs = draw(T, F, dtype=dtype)
    arrays = {**tcn_arrays(model), "xs": np.asarray(xs, np.float64)}
    assert "0.skip0" in arrays
    assert "1.skip0" not in arrays
    tolerance = 2e-5 if dtype == jnp.float32 else 1e-13
    np.testing.assert_allclose(jax.jit(model)(xs), tcn(arrays, 2), rtol=0, atol=tolerance)
    by_model, by_xs = jax.jit(jax.grad(lambda m, xs: jnp.sum(m(xs) ** 2), (0, 1)))(model, xs)
    expected = numpy_cells.gradients(lambda arrays: np.sum(tcn(arrays, 2) ** 2), arrays)
    ours = {**tcn_arrays(by_model), "xs": by_xs}
    assert ours.keys() == expected.keys()
    for name, gradient in ours.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize(("depth", "kernel_size"), [(1, 2), (2, 3), (3, 2), (3, 3), (1, 1)])
def test_the_receptive_field_is_as_far_as_gradients_reach(depth, kernel_size):
    """1 + 2 (n − 1)(1 + 2 + … + 2^(L−1)): the last of R inputs has a gradient, the next one none."""
    # With all weights above zero no ReLU is shut and no path cancels another.
    model = TCN(F, H, depth=depth, kernel_size=kernel_size, rngs=nnx.Rngs(0))
    reach = 1 + sum(2 * (kernel_size - 1) * 2**level for level in range(depth))
    assert model.receptive_field == reach
    assert farthest_lag(jax.tree.map(jnp.abs, model)) == reach - 1


def test_weight_norm_starts_at_the_drawn_kernel_and_keeps_its_length():
    (block,) = TCN(F, H, depth=1, rngs=nnx.Rngs(0)).blocks
    first = block.convolutions[0]
    drawn = np.asarray(first.direction[...])
    np.testing.assert_allclose(first.kernel(), drawn, rtol=1e-6)
    first.direction[...] = 7 * first.direction[...]
    np.testing.assert_allclose(first.kernel(), drawn, rtol=1e-6)


# Both.


@pytest.mark.parametrize("depth", [1, 3])
def test_parameters_are_those_of_the_papers(depth):
    mlp = WindowedMLP(F, H, window=5, depth=depth, rngs=nnx.Rngs(0))
    assert count_parameters(mlp) == H * (5 * F + 1) + (depth - 1) * H * (H + 1)
    network = TCN(F, H, depth=depth, kernel_size=4, rngs=nnx.Rngs(0))
    first = (4 * F * H + 2 * H) + (4 * H * H + 2 * H) + (F + 1) * H
    assert count_parameters(network) == first + (depth - 1) * 2 * (4 * H * H + 2 * H)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: WindowedMLP(0, H, window=1, rngs=nnx.Rngs(0)), "in_features: got 0"),
        (lambda: WindowedMLP(F, 0, window=1, rngs=nnx.Rngs(0)), "hidden_features: got 0"),
        (lambda: WindowedMLP(F, H, window=0, rngs=nnx.Rngs(0)), "window: got 0"),
        (lambda: WindowedMLP(F, H, window=1, depth=0, rngs=nnx.Rngs(0)), "depth: got 0"),
        (lambda: TCN(0, H, depth=1, rngs=nnx.Rngs(0)), "in_features: got 0"),
        (lambda: TCN(F, 0, depth=1, rngs=nnx.Rngs(0)), "hidden_features: got 0"),
        (lambda: TCN(F, H, depth=0, rngs=nnx.Rngs(0)), "depth: got 0"),
        (lambda: TCN(F, H, depth=1, kernel_size=0, rngs=nnx.Rngs(0)), "kernel_size: got 0"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(build, message):
    with pytest.raises(InputError, match=message):
        build()
