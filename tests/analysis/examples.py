"""Cells, foreign twins, inputs and the NumPy oracle that the tests of the analyses share."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.analysis import trace
from tests.oracles import numpy_cells as oracle

F, H, T, B = 3, 4, 6, 2


def assert_close(actual, expected, tolerance):
    """Compare to a relative tolerance, absolute below 1; infinities must be the same."""
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def make(name, dtype=jnp.float64, seed=0):
    """A cell of the table with random weights."""
    return random_weights(functools.partial(jaxrnn.make_cell, name), dtype, seed)


def random_weights(build, dtype=jnp.float64, seed=0):
    """A cell none of whose weights, biases included, is zero or in any other way special."""
    draw = np.random.default_rng(seed)

    def fill(a):
        return jnp.asarray(draw.normal(size=a.shape, scale=0.7), dtype)

    return jax.tree.map(fill, blank(build, F, H, param_dtype=dtype))


def blank(make, *arguments, **options):
    """Make a module all of whose weights are zero; nothing is drawn, which saves compiling."""
    shapes = jax.eval_shape(lambda: make(*arguments, **options, rngs=nnx.Rngs(0)))
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)


def zero_weights(name, bias, dtype=jnp.float64):
    """A cell without weights: each of its gates [G] is held at a constant."""
    cell = jax.tree.map(jnp.zeros_like, make(name, dtype))
    cell.bias[...] = jnp.repeat(jnp.asarray(bias, dtype), H)
    return cell


def inputs(cell, batch=(B,), dtype=jnp.float64, seed=1, length=T):
    """Return inputs [T, *B, F] and a carry with leaves [*B, H]."""
    draw = np.random.default_rng(seed)
    xs = jnp.asarray(draw.normal(size=(length, *batch, F)), dtype)
    zeros = cell.initialize_carry((*batch, F))
    return xs, jax.tree.map(lambda a: jnp.asarray(draw.normal(size=a.shape), dtype), zeros)


@functools.cache
def travelled(name, batch=(B,), dtype=jnp.float64):
    """A cell and its trajectory from a random carry under random inputs."""
    cell = make(name, dtype)
    xs, carry = inputs(cell, batch, dtype)
    return cell, trace(cell, xs, carry=carry)


def as_carry(cell, states):
    """Cut states [..., S] into the cell's carry."""
    leaves = jnp.split(states, len(cell.carry_names), axis=-1)
    return tuple(leaves) if len(leaves) > 1 else leaves[0]


def as_state(carry):
    """Join a carry to states [..., S]."""
    return jnp.concatenate(jax.tree.leaves(carry), axis=-1)


def elman(matrix, activation, dtype=jnp.float64):
    """h' = φ(A h): an Elman network, inputs of size 1 without influence."""
    size = len(matrix)
    cell = blank(jaxrnn.ElmanCell, 1, size, activation_fn=activation, param_dtype=dtype)
    cell.recurrent_kernel[...] = jnp.asarray(np.transpose(matrix), dtype)
    return cell


def identity(a):
    return a


def compiles(caplog, call):
    """Tell whether a call compiles anything."""
    caplog.clear()
    with jax.log_compiles():
        call()
    return any("Compiling" in line for line in caplog.messages)


# The oracle: NumPy equations, derivatives by complex steps.


def numpy_step(name, cell):
    """Return the NumPy step (state, x) -> (state, y) with the weights of a cell of ours."""
    params = oracle.flat(nnx.to_pure_dict(nnx.state(cell)))
    return functools.partial(oracle.STEPS[name], oracle.separate(name, params))


def jacobian_by_complex_steps(step, state, x):
    """Return ∂s'/∂s [S, S] of a NumPy step at a state, a tuple of leaves [H]."""
    sizes = np.cumsum([len(leaf) for leaf in state])[:-1]
    flat = np.concatenate(state).astype(complex)
    columns = []
    for j in range(len(flat)):
        nudged = flat.copy()
        nudged[j] += 1e-30j
        moved, _ = step(tuple(np.split(nudged, sizes)), x)
        columns.append(np.imag(np.concatenate(moved)) / 1e-30)
    return np.stack(columns, axis=-1)


# Flax's cells with the weights of ours.


def nnx_lstm(cell):
    twin = blank(nnx.LSTMCell, F, H, dtype=jnp.float64, param_dtype=jnp.float64)
    kernels, recurrent = (jnp.split(w[...], 4, -1) for w in (cell.kernel, cell.recurrent_kernel))
    for k, gate in enumerate("ifgo"):
        getattr(twin, "if_" if gate == "f" else f"i{gate}").kernel[...] = kernels[k]
        getattr(twin, f"h{gate}").kernel[...] = recurrent[k]
        getattr(twin, f"h{gate}").bias[...] = jnp.split(cell.bias[...], 4)[k]
    return twin


def nnx_gru(cell):
    twin = blank(nnx.GRUCell, F, H, dtype=jnp.float64, param_dtype=jnp.float64)
    twin.dense_i.kernel[...] = cell.kernel[...]
    twin.dense_i.bias[...] = cell.bias[...]
    twin.dense_h.kernel[...] = cell.recurrent_kernel[...]
    return twin


def linen_lstm(cell):
    params = {}
    kernels, recurrent = (jnp.split(w[...], 4, -1) for w in (cell.kernel, cell.recurrent_kernel))
    for k, gate in enumerate("ifgo"):
        params[f"i{gate}"] = {"kernel": kernels[k]}
        params[f"h{gate}"] = {"kernel": recurrent[k], "bias": jnp.split(cell.bias[...], 4)[k]}
    return functools.partial(nn.LSTMCell(H).apply, {"params": params})


def plain_elman(cell):
    kernel, recurrent, bias = cell.kernel[...], cell.recurrent_kernel[...], cell.bias[...]

    def step(h, x):
        drive = x @ kernel + jnp.broadcast_to(bias, h.shape)
        h = jnp.tanh(drive + h @ recurrent)
        return h, h

    return step


TWINS = {
    "nnx.LSTMCell": ("lstm", nnx_lstm),
    "nnx.GRUCell": ("gru", nnx_gru),
    "linen.LSTMCell": ("lstm", linen_lstm),
    "plain function": ("elman-tanh", plain_elman),
}


@functools.cache
def twins(kind):
    """A cell of ours and the same cell in foreign make (Flax's GRU has no candidate bias)."""
    name, foreign = TWINS[kind]
    cell = make(name)
    if name == "gru":
        cell.recurrent_bias[...] = jnp.zeros(H, jnp.float64)
    return cell, foreign(cell)


# A module with one leaf and a function with two stand for the rest.
every_twin = pytest.mark.parametrize(
    "kind",
    [
        kind
        if kind in ("nnx.GRUCell", "linen.LSTMCell")
        else pytest.param(kind, marks=pytest.mark.slow)
        for kind in TWINS
    ],
)
