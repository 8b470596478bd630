"""One protocol for every cell of the table.

Oracles: a NumPy loop over the papers' equations, and derivatives by complex steps.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.cells import CELLS, count_parameters
from jaxrnn.typing import SplitCell
from tests.oracles import numpy_cells as oracle

F, H, T, B = 3, 4, 5, 2
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}

every_cell = pytest.mark.parametrize("name", CELLS)


def assert_close(actual, expected, dtype):
    tolerance = TOLERANCE[jnp.dtype(dtype).name]
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def make(name, dtype=jnp.float32, seed=0):
    """A cell none of whose weights, biases included, is zero or in any other way special."""
    draw = np.random.default_rng(seed)

    def build():
        return jaxrnn.make_cell(name, F, H, param_dtype=dtype, rngs=nnx.Rngs(0))

    def fill(a):
        return jnp.asarray(draw.normal(size=a.shape, scale=0.7), a.dtype)

    return jax.tree.map(fill, jax.eval_shape(build))


def params(cell):
    return {name: np.asarray(a) for name, a in nnx.to_pure_dict(nnx.state(cell)).items()}


def inputs(cell, dtype=jnp.float32, seed=1):
    """Return inputs [T, B, F] and a carry with leaves [B, H]."""
    draw = np.random.default_rng(seed)
    xs = jnp.asarray(draw.normal(size=(T, B, F)), dtype)
    zeros = cell.initialize_carry((B, F))
    return xs, jax.tree.map(lambda a: jnp.asarray(draw.normal(size=a.shape), dtype), zeros)


def loss(cell, xs, carry):
    done = jaxrnn.unroll(cell, xs, carry=carry)
    return jnp.sum(done.outputs**2), done


loss_and_gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


@functools.cache
def evaluated(name, dtype):
    """Everything one compiled call gives, shared by the tests of one cell and precision."""
    cell = make(name, dtype)
    xs, carry = inputs(cell, dtype)
    (_, done), gradients = loss_and_gradients(cell, xs, carry)
    return cell, xs, carry, done, gradients


def leaves(carry):
    return tuple(np.asarray(leaf) for leaf in jax.tree.leaves(carry))


def test_every_cell_has_an_oracle():
    assert set(oracle.STEPS) == set(CELLS)


@every_cell
def test_values_follow_the_papers_equations(name, dtype):
    cell, xs, carry, done, _ = evaluated(name, dtype)
    weights = oracle.separate(name, params(cell))
    expected = oracle.run(oracle.STEPS[name], weights, np.asarray(xs), leaves(carry))

    assert done.outputs.dtype == dtype
    assert_close(done.outputs, expected.outputs, dtype)
    for ours, theirs in zip(leaves(done.carry), expected.last, strict=True):
        assert_close(ours, theirs, dtype)
    for ours, theirs in zip(leaves(done.carries), expected.states, strict=True):
        assert_close(ours, theirs, dtype)


@every_cell
def test_gradients_equal_complex_steps(name, dtype):
    cell, xs, carry, _, (by_cell, by_xs, by_carry) = evaluated(name, dtype)
    names = [f"carry {k}" for k in range(len(leaves(carry)))]

    def numpy_loss(arrays):
        weights = oracle.separate(name, arrays)
        state = tuple(arrays[k] for k in names)
        return np.sum(oracle.run(oracle.STEPS[name], weights, arrays["xs"], state).outputs ** 2)

    def arrays(cell, xs, carry):
        named = {**params(cell), "xs": xs, **dict(zip(names, leaves(carry), strict=True))}
        return {k: np.asarray(a, np.float64) for k, a in named.items()}

    expected = oracle.gradients(numpy_loss, arrays(cell, xs, carry))
    for key, gradient in arrays(by_cell, by_xs, by_carry).items():
        assert_close(gradient, expected[key], dtype)


@every_cell
def test_holds_params_and_nothing_else(name):
    cell = make(name)
    variables = [v for _, v in nnx.to_flat_state(nnx.state(cell))]
    assert all(type(v) is nnx.Param for v in variables)
    assert len(variables) == len(jax.tree.leaves(cell))


@every_cell
def test_gradient_is_a_cell(name):
    cell, _, _, _, (by_cell, _, _) = evaluated(name, jnp.dtype("float32"))
    assert type(by_cell) is type(cell)
    assert jax.tree.structure(by_cell) == jax.tree.structure(cell)


@every_cell
def test_vmap_over_keys_makes_an_ensemble(name):
    def build(key):
        return jaxrnn.make_cell(name, F, H, rngs=nnx.Rngs(key))

    keys = jax.random.split(jax.random.key(0), 2)
    ensemble = jax.vmap(build)(keys)
    xs, carry = inputs(make(name))
    _, y = jax.vmap(lambda cell: cell(carry, xs[0]))(ensemble)
    for k, key in enumerate(keys):
        assert_close(y[k], build(key)(carry, xs[0])[1], jnp.float32)


@every_cell
def test_a_call_is_project_mix_update_readout(name, dtype):
    cell, xs, carry, _, _ = evaluated(name, dtype)
    assert isinstance(cell, SplitCell)
    moved = cell.update(carry, cell.project(xs[0]), cell.mix(carry))
    called, y = cell(carry, xs[0])
    jax.tree.map(np.testing.assert_array_equal, called, moved)
    np.testing.assert_array_equal(y, cell.readout(moved))


@every_cell
def test_project_takes_all_steps_at_once(name, dtype):
    cell, xs, _, _, _ = evaluated(name, dtype)
    assert_close(cell.project(xs), jnp.stack([cell.project(x) for x in xs]), dtype)


@every_cell
def test_mix_is_affine(name, x64):
    cell, _, a, _, _ = evaluated(name, jnp.dtype("float64"))
    _, b = inputs(cell, jnp.float64, seed=2)
    between = jax.tree.map(lambda a, b: 3.0 * a - 2.0 * b, a, b)
    assert_close(cell.mix(between), 3.0 * cell.mix(a) - 2.0 * cell.mix(b), "float64")


@every_cell
def test_update_works_unit_by_unit(name):
    """Entry j of the new carry depends on entry j of every carry leaf, drive gate and pull gate."""
    cell = make(name)
    xs, carry = inputs(cell)
    x, carry = xs[0, 0], jax.tree.map(lambda a: a[0], carry)
    derivative = jax.jit(jax.jacobian(cell.update, argnums=(0, 1, 2)))
    jacobian = derivative(carry, cell.project(x), cell.mix(carry))
    blocks = [
        np.asarray(block)
        for leaf in jax.tree.leaves(jacobian)
        for block in np.split(leaf, leaf.shape[1] // H, axis=1)
    ]
    assert any(np.any(block) for block in blocks)
    for block in blocks:
        np.testing.assert_array_equal(block, np.diag(np.diag(block)))


@every_cell
def test_update_and_readout_hold_no_weights(name):
    cell = make(name)
    xs, carry = inputs(cell)
    drive, pull = cell.project(xs[0]), cell.mix(carry)

    def last_parts(cell):
        return jnp.sum(cell.readout(cell.update(carry, drive, pull)))

    for gradient in jax.tree.leaves(jax.grad(last_parts)(cell)):
        np.testing.assert_array_equal(gradient, 0)


@every_cell
@pytest.mark.parametrize(("f", "h"), [(1, 1), (3, 4), (7, 2)])
def test_parameters_are_as_many_as_the_table_says(name, f, h):
    cell = jax.eval_shape(lambda: jaxrnn.make_cell(name, f, h, rngs=nnx.Rngs(0)))
    assert count_parameters(cell) == CELLS[name].parameters(f, h)


@every_cell
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_the_initial_carry_is_zero_and_has_the_batch_axes(name, batch, dtype):
    cell = make(name, dtype)
    assert cell.num_feature_axes == 1
    carry = cell.initialize_carry((*batch, F), nnx.Rngs(0))  # as Flax calls it
    assert len(jax.tree.leaves(carry)) == len(cell.carry_names)
    for leaf in jax.tree.leaves(carry):
        assert leaf.shape == (*batch, H)
        assert leaf.dtype == dtype
        assert not np.any(leaf)


@every_cell
def test_runs_inside_flax_rnn_with_the_same_numbers(name, dtype):
    cell, xs, carry, done, _ = evaluated(name, dtype)
    layer = nnx.RNN(cell, time_major=True, return_carry=True)
    last, outputs = layer(xs, initial_carry=carry)
    assert_close(outputs, done.outputs, dtype)
    for ours, theirs in zip(leaves(done.carry), leaves(last), strict=True):
        assert_close(ours, theirs, dtype)


@every_cell
def test_new_weights_do_not_compile_again(name, caplog):
    evaluated(name, jnp.dtype("float32"))
    cell = make(name, seed=2)
    xs, carry = inputs(cell, seed=3)
    with jax.log_compiles():
        loss_and_gradients(cell, xs, carry)
        assert not [line for line in caplog.messages if "Compiling" in line]
        jax.jit(lambda x: -x)(xs)  # the log does speak where something is compiled
        assert [line for line in caplog.messages if "Compiling" in line]


@every_cell
def test_bfloat16_stays_bfloat16(name):
    wide, xs, carry, done, _ = evaluated(name, jnp.dtype("float32"))
    made = make(name, jnp.bfloat16)
    narrow = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (wide, xs, carry))
    (_, narrow_done), gradients = loss_and_gradients(*narrow)
    results = jax.tree.leaves((made, narrow_done, gradients))
    assert all(a.dtype == jnp.bfloat16 for a in results)
    # 8 bits of mantissa: 2⁻⁸ a rounding, a few dozen roundings on the way to the last step.
    np.testing.assert_allclose(
        narrow_done.outputs.astype(jnp.float32), done.outputs, rtol=0.1, atol=0.05
    )


@every_cell
def test_lowers_for_every_platform(name):
    """Forward and backward, compiled for machines that need not be here."""
    cell = make(name)
    platforms = ("cpu", "cuda", "tpu")
    exported = jax.export.export(loss_and_gradients, platforms=platforms)(cell, *inputs(cell))
    assert exported.platforms == platforms
