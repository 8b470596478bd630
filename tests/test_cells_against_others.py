"""The same weights give the same numbers elsewhere, forward and backward.

Oracles: the cells of Flax (NNX and Linen), run in a plain ``lax.scan``, and arrays recorded from PyTorch
(`tests/recorded/make_pytorch.py`).
"""

from __future__ import annotations

import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn

F, H, T, B = 3, 5, 7, 2
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}  # some hundred roundings of half an ulp


def assert_close(actual, expected, dtype):
    """Compare to rounding; a gradient's entries to the rounding of its largest."""
    tolerance = TOLERANCE[jnp.dtype(dtype).name]
    largest = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * largest)


def blocks(array, gates):
    return jnp.split(array, gates, axis=-1)


# Each of these returns another library's step with our cell's weights in it. They are differentiable, so
# that gradients by our weights can be asked of the other library's step.


def linen_lstm(cell):
    params = {}
    kernel, recurrent, bias = (
        blocks(w[...], 4) for w in (cell.kernel, cell.recurrent_kernel, cell.bias)
    )
    for k, gate in enumerate("ifgo"):
        params[f"i{gate}"] = {"kernel": kernel[k]}
        params[f"h{gate}"] = {"kernel": recurrent[k], "bias": bias[k]}
    return functools.partial(nn.LSTMCell(H).apply, {"params": params})


def linen_gru(cell):
    params = {}
    kernel, recurrent, bias = (
        blocks(w[...], 3) for w in (cell.kernel, cell.recurrent_kernel, cell.bias)
    )
    for k, gate in enumerate("rzn"):
        params[f"i{gate}"] = {"kernel": kernel[k], "bias": bias[k]}
        params[f"h{gate}"] = {"kernel": recurrent[k]}
    params["hn"]["bias"] = cell.recurrent_bias[...]
    return functools.partial(nn.GRUCell(H).apply, {"params": params})


def linen_simple(cell):
    params = {
        "i": {"kernel": cell.kernel[...], "bias": cell.bias[...]},
        "h": {"kernel": cell.recurrent_kernel[...]},
    }
    return functools.partial(nn.SimpleCell(H).apply, {"params": params})


def nnx_step(make, weights, dtype):
    """Make a Flax NNX cell and put `weights`, by their paths, in the place of its own."""
    zeros = jax.nn.initializers.zeros  # overwritten at once
    step = make(
        F,
        H,
        kernel_init=zeros,
        recurrent_kernel_init=zeros,
        dtype=dtype,
        param_dtype=dtype,
        rngs=nnx.Rngs(0),
    )
    graph, state = nnx.split(step)
    nnx.replace_by_pure_dict(state, weights)
    return nnx.merge(graph, state)


def nnx_lstm(cell):
    kernel, recurrent, bias = (
        blocks(w[...], 4) for w in (cell.kernel, cell.recurrent_kernel, cell.bias)
    )
    weights = {}
    for k, gate in enumerate(("i", "f", "g", "o")):
        weights["if_" if gate == "f" else f"i{gate}"] = {"kernel": kernel[k]}
        weights[f"h{gate}"] = {"kernel": recurrent[k], "bias": bias[k]}
    return nnx_step(nnx.LSTMCell, weights, cell.kernel.dtype)


def nnx_optimized_lstm(cell):
    weights = {
        "dense_i": {"kernel": cell.kernel[...]},
        "dense_h": {"kernel": cell.recurrent_kernel[...], "bias": cell.bias[...]},
    }
    return nnx_step(nnx.OptimizedLSTMCell, weights, cell.kernel.dtype)


def nnx_with_input_bias(make, cell):
    weights = {
        "dense_i": {"kernel": cell.kernel[...], "bias": cell.bias[...]},
        "dense_h": {"kernel": cell.recurrent_kernel[...]},
    }
    return nnx_step(make, weights, cell.kernel.dtype)


FLAX = {
    "nnx.LSTMCell": ("lstm", nnx_lstm),
    "nnx.OptimizedLSTMCell": ("lstm", nnx_optimized_lstm),
    "nnx.GRUCell": ("gru", functools.partial(nnx_with_input_bias, nnx.GRUCell)),
    "nnx.SimpleCell": ("elman-tanh", functools.partial(nnx_with_input_bias, nnx.SimpleCell)),
    "linen.LSTMCell": ("lstm", linen_lstm),
    "linen.GRUCell": ("gru", linen_gru),
    "linen.SimpleCell": ("elman-tanh", linen_simple),
}


def problem(name, dtype):
    """A cell of ours with random weights and biases, inputs [T, B, F] and a carry of leaves [B, H]."""
    draw = np.random.default_rng(0)

    def fill(a):
        return jnp.asarray(draw.normal(size=a.shape, scale=0.7), dtype)

    def build():
        return jaxrnn.make_cell(name, F, H, param_dtype=dtype, rngs=nnx.Rngs(0))

    cell = jax.tree.map(fill, jax.eval_shape(build))
    return (
        cell,
        jnp.asarray(draw.normal(size=(T, B, F)), dtype),
        jax.tree.map(fill, cell.initialize_carry((B, F))),
    )


@jax.jit
@functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
def ours(cell, xs, carry):
    done = jaxrnn.unroll(cell, xs, carry=carry)
    return jnp.sum(done.outputs**2), (done.carry, done.outputs)


def theirs(borrow):
    def loss(cell, xs, carry):
        last, outputs = jax.lax.scan(borrow(cell), carry, xs)
        return jnp.sum(outputs**2), (last, outputs)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


@pytest.mark.parametrize("flax_cell", FLAX)
def test_flax_cell_with_our_weights_gives_our_numbers(flax_cell, dtype):
    name, borrow = FLAX[flax_cell]
    cell, xs, carry = problem(name, dtype)
    if flax_cell == "nnx.GRUCell":  # the only one without a bias inside the reset product
        cell.recurrent_bias[...] = jnp.zeros_like(cell.recurrent_bias[...])

    (_, values), gradients = ours(cell, xs, carry)
    (_, expected_values), expected_gradients = theirs(borrow)(cell, xs, carry)
    if flax_cell == "nnx.GRUCell":
        assert np.any(gradients[0].recurrent_bias[...])
        gradients[0].recurrent_bias = expected_gradients[0].recurrent_bias

    for actual, expected in zip(
        jax.tree.leaves((values, gradients)),
        jax.tree.leaves((expected_values, expected_gradients)),
        strict=True,
    ):
        assert actual.dtype == dtype
        assert_close(actual, expected, dtype)


PYTORCH = {
    "rnn_tanh": "elman-tanh",
    "rnn_relu": "elman-relu",
    "lstm": "lstm",
    "gru": "gru",
}


def packed(arrays, prefix=""):
    """PyTorch's weights, or their gradients, in our layout, under our names."""
    bias = arrays[f"{prefix}bias_ih"].copy()
    params = {
        "kernel": arrays[f"{prefix}weight_ih"].T,
        "recurrent_kernel": arrays[f"{prefix}weight_hh"].T,
        "bias": bias,
    }
    hidden_bias = arrays[f"{prefix}bias_hh"]
    summed = len(bias)
    if len(bias) == 3 * H:  # the GRU's last gate keeps its hidden bias to itself
        params["recurrent_bias"] = hidden_bias[2 * H :]
        summed = 2 * H
    if not prefix:  # the gradient by a sum is the gradient by either term
        bias[:summed] += hidden_bias[:summed]
    return params


@pytest.mark.parametrize("recorded", PYTORCH)
def test_pytorch_weights_give_pytorch_numbers(recorded, dtype):
    arrays = np.load(Path(__file__).parent / "recorded" / f"pytorch_{recorded}.npz")
    cell, _, _ = problem(PYTORCH[recorded], dtype)
    for name, weight in packed(arrays).items():
        setattr(cell, name, nnx.Param(jnp.asarray(weight, dtype)))
    initial = [jnp.asarray(arrays[f"initial_{leaf}"], dtype) for leaf in cell.carry_names]
    carry = tuple(initial) if len(initial) > 1 else initial[0]
    xs = jnp.asarray(arrays["inputs"], dtype)

    (_, (last, outputs)), (by_cell, by_xs, by_carry) = ours(cell, xs, carry)

    assert_close(outputs, arrays["outputs"], dtype)
    assert_close(by_xs, arrays["grad_inputs"], dtype)
    for leaf, actual, gradient in zip(
        cell.carry_names, jax.tree.leaves(last), jax.tree.leaves(by_carry), strict=True
    ):
        assert_close(actual, arrays[f"last_{leaf}"], dtype)
        assert_close(gradient, arrays[f"grad_initial_{leaf}"], dtype)
    for name, gradient in nnx.to_pure_dict(nnx.state(by_cell)).items():
        assert_close(gradient, packed(arrays, "grad_")[name], dtype)
