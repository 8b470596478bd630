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
from jaxrnn import Associative
from jaxrnn.analysis._jacobians import general_jacobians, structured_jacobians
from jaxrnn.analysis.trajectory import Trajectory
from jaxrnn.cells import CELLS, count_parameters
from jaxrnn.checks import InputError
from jaxrnn.steps import flat_state
from jaxrnn.typing import SplitCell
from tests.oracles import numpy_cells as oracle
from tests.zoo import table_of_cells

F, H, T, B = 3, 4, 5, 2
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}

OPTIONS = {
    "ctrnn, fast": ("ctrnn", {"time_constant": 1.5}),
    "lstm-projected, wide": ("lstm-projected", {"projection_features": 3}),
    "jordan, narrow": ("jordan", {"out_features": 3}),
    "clockwork, two periods": ("clockwork", {"periods": (1, 3)}),
    "antisymmetric, long steps": ("antisymmetric", {"step_size": 0.4, "diffusion": 0.3}),
    "lipschitz, long steps": ("lipschitz", {"step_size": 0.4, "blend": 0.6, "damping": 0.2}),
    "cornn, long steps": ("cornn", {"step_size": 0.4, "frequency": 2.5, "damping": 0.6}),
    "lem, short steps": ("lem", {"step_size": 0.4}),
    "slstm, two heads": ("slstm", {"heads": 2}),
}
"""Options that enter the equations, none at its default."""

EXAMPLES = {name: (name, {}) for name in CELLS} | OPTIONS


def abstract(example, dtype=jnp.float32):
    """An example's cell, with shapes in the place of arrays."""
    name, options = EXAMPLES[example]
    make = functools.partial(jaxrnn.make_cell, name, F, H, param_dtype=dtype, **options)
    return jax.eval_shape(lambda: make(rngs=nnx.Rngs(0)))


SPLIT = [name for name in CELLS if isinstance(abstract(name), SplitCell)]
PARALLEL = [name for name, entry in CELLS.items() if entry.parallel]
every_cell = pytest.mark.parametrize("name", CELLS)
split_cells = pytest.mark.parametrize("name", SPLIT)


one_of_each_kind = table_of_cells(
    "elman-tanh", "lstm", "gru", "clockwork", "orthogonal", "mlstm", "s5"
)


def assert_close(actual, expected, dtype):
    """Compare to rounding; entries to the rounding of the largest."""
    tolerance = TOLERANCE[jnp.dtype(dtype).name]
    largest = max(1.0, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * largest)


def make(example, dtype=jnp.float32, seed=0):
    """A cell none of whose weights, biases included, is zero or in any other way special."""
    draw = np.random.default_rng(seed)

    def fill(a):
        return jnp.asarray(draw.normal(size=a.shape, scale=0.7), a.dtype)

    return jax.tree.map(fill, abstract(example, dtype))


def params(cell):
    return oracle.flat(nnx.to_pure_dict(nnx.state(cell)))


def inputs(example, cell, dtype=jnp.float32, seed=1, length=T, batch=(B,)):
    """Return inputs [T, *B, F] and a carry in which the cell can be, leaves [*B, …]."""
    name, options = EXAMPLES[example]
    draw = np.random.default_rng(seed)
    xs = jnp.asarray(draw.normal(size=(length, *batch, F)), dtype)
    zeros, tree = jax.tree.flatten(cell.initialize_carry((*batch, F)))
    drawn = tuple(draw.normal(size=leaf.shape) for leaf in zeros)
    state = oracle.reachable(name, drawn, **options)
    return xs, jax.tree.unflatten(tree, [jnp.asarray(leaf, dtype) for leaf in state])


def loss(cell, xs, carry):
    done = jaxrnn.unroll(cell, xs, carry=carry)
    return jnp.sum(done.outputs**2), done


loss_and_gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
one_step = jax.jit(lambda cell, carry, x: cell(carry, x))


@functools.cache
def evaluated(example, dtype):
    """Everything one compiled call gives, shared by the tests of one cell and precision."""
    cell = make(example, dtype)
    xs, carry = inputs(example, cell, dtype)
    (_, done), gradients = loss_and_gradients(cell, xs, carry)
    return cell, xs, carry, done, gradients


def leaves(carry):
    return tuple(np.asarray(leaf) for leaf in jax.tree.leaves(carry))


def numpy_run(example, arrays, xs, state, **frames):
    name, options = EXAMPLES[example]
    weights = oracle.separate(name, arrays, **options)
    step = oracle.MAKERS[name](**options).step
    return oracle.run(step, weights, np.asarray(xs), state, **frames)


def assert_is_the_numpy_run(done, expected, dtype):
    assert_close(done.outputs, expected.outputs, dtype)
    for ours, theirs in zip(leaves(done.carry), expected.last, strict=True):
        assert_close(ours, theirs, dtype)
    for ours, theirs in zip(leaves(done.carries), expected.states, strict=True):
        assert_close(ours, theirs, dtype)


def assert_gradients_equal_complex_steps(example, dtype):
    cell, xs, carry, _, (by_cell, by_xs, by_carry) = evaluated(example, dtype)
    names = [f"carry {k}" for k in range(len(leaves(carry)))]

    def numpy_loss(arrays):
        state = tuple(arrays[k] for k in names)
        return np.sum(numpy_run(example, arrays, arrays["xs"], state).outputs ** 2)

    def arrays(cell, xs, carry):
        named = {**params(cell), "xs": xs, **dict(zip(names, leaves(carry), strict=True))}
        return {k: np.asarray(a, np.float64) for k, a in named.items()}

    expected = oracle.gradients(numpy_loss, arrays(cell, xs, carry))
    for key, gradient in arrays(by_cell, by_xs, by_carry).items():
        assert_close(gradient, expected[key], dtype)


def test_every_cell_has_an_oracle():
    assert set(oracle.MAKERS) == set(CELLS)


@every_cell
def test_values_follow_the_papers_equations(name, dtype):
    cell, xs, carry, done, _ = evaluated(name, dtype)
    assert done.outputs.dtype == dtype
    expected = numpy_run(name, params(cell), xs, leaves(carry))
    assert_is_the_numpy_run(done, expected, dtype)


@every_cell
def test_gradients_equal_complex_steps(name, dtype):
    assert_gradients_equal_complex_steps(name, dtype)


@pytest.mark.parametrize("example", OPTIONS)
def test_options_enter_as_in_the_equations(example, x64):
    dtype = jnp.dtype("float64")
    cell, xs, carry, done, _ = evaluated(example, dtype)
    expected = numpy_run(example, params(cell), xs, leaves(carry))
    assert_is_the_numpy_run(done, expected, dtype)
    assert_gradients_equal_complex_steps(example, dtype)


@one_of_each_kind
def test_padding_and_resets_are_those_of_the_loop(name, x64):
    lengths, resets = np.array([0, 3, T]), np.zeros((T, 3), bool)
    resets[[2, 3, 0, 4], [1, 1, 2, 2]] = True
    cell = make(name, jnp.float64)
    xs, carry = inputs(name, cell, jnp.float64, batch=(3,))
    done = jaxrnn.unroll(
        cell, xs, carry=carry, reset_carry=carry, seq_lengths=lengths, resets=resets
    )
    expected = numpy_run(name, params(cell), xs, leaves(carry), lengths=lengths, resets=resets)
    assert_is_the_numpy_run(done, expected, "float64")


@one_of_each_kind
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_number_of_batch_axes(name, batch, x64):
    cell = make(name, jnp.float64)
    xs, carry = inputs(name, cell, jnp.float64, length=1, batch=batch)
    moved, y = one_step(cell, carry, xs[0])
    expected = numpy_run(name, params(cell), xs, leaves(carry))
    assert y.shape == (*batch, cell.out_features)
    assert_close(y, expected.outputs[0], "float64")
    for ours, theirs in zip(leaves(moved), expected.last, strict=True):
        assert_close(ours, theirs, "float64")


@one_of_each_kind
def test_a_batch_of_no_sequences_has_no_outputs_and_no_gradient(name):
    cell = make(name, jnp.float32)
    xs = jnp.zeros((4, 0, cell.in_features))
    assert jaxrnn.unroll(cell, xs).outputs.shape == (4, 0, cell.out_features)
    gradient = jax.grad(lambda cell: jnp.sum(jaxrnn.unroll(cell, xs).outputs))(cell)
    for leaf in leaves(gradient):
        np.testing.assert_array_equal(leaf, 0)


@pytest.mark.parametrize("name", PARALLEL)
def test_parallel_cells_take_all_steps_at_once(name, x64):
    cell, xs, carry, done, gradients = evaluated(name, jnp.dtype("float64"))

    def squares(cell, xs, carry):
        done = jaxrnn.unroll(cell, xs, carry=carry, method=Associative())
        return jnp.sum(done.outputs**2), done

    found = jax.jit(jax.grad(squares, argnums=(0, 1, 2), has_aux=True))(cell, xs, carry)
    expected = gradients, (done.outputs, done.carry, done.carries)
    found = found[0], (found[1].outputs, found[1].carry, found[1].carries)
    jax.tree.map(functools.partial(assert_close, dtype="float64"), found, expected)


@pytest.mark.parametrize("name", [name for name in CELLS if name not in PARALLEL])
def test_other_cells_are_refused_all_steps_at_once(name):
    cell = make(name)
    xs, carry = inputs(name, cell)
    with pytest.raises(InputError, match=r"^method: got Associative\(\) for a cell that"):
        jaxrnn.unroll(cell, xs, carry=carry, method=Associative())


@functools.cache
def crossed(name):
    """Return a cell and one step from each of K carries under each of K inputs, batch (K, K)."""
    k = 6
    cell = make(name, jnp.float64)
    xs, carry = inputs(name, cell, jnp.float64, length=1, batch=(k,))

    def by_carry(a):
        every = jnp.broadcast_to(a[:, None], (k, k, *a.shape[1:]))
        return jnp.stack([every, every])

    xs = jnp.broadcast_to(xs[:, None], (1, k, k, F))
    return cell, Trajectory(xs, jax.tree.map(by_carry, carry), outputs=None, batch=(k, k))


@functools.cache
def crossed_jacobians(name):
    """Return ∂s'/∂s by carry and input [K, K, S, S]."""
    return np.asarray(general_jacobians(*crossed(name))[0])


@every_cell
def test_the_jacobian_depends_on_what_the_table_says(name, x64):
    found = crossed_jacobians(name)
    by_state, by_input = (np.ptp(found, axis=axis).max() for axis in (0, 1))
    kinds = {
        "constant": by_state < 1e-12 and by_input < 1e-12,
        "input": by_state < 1e-12 and by_input > 1e-3,
        "state": by_state > 1e-3,
    }
    assert [kind for kind, holds in kinds.items() if holds] == [CELLS[name].jacobian]


@split_cells
def test_the_structured_jacobian_is_the_general_one(name, x64):
    assert_close(structured_jacobians(*crossed(name))[0], crossed_jacobians(name), "float64")


@every_cell
def test_holds_params_and_nothing_else(name):
    cell = make(name)
    variables = [v for _, v in nnx.to_flat_state(nnx.state(cell))]
    assert all(type(v) is nnx.Param for v in variables)
    assert len(variables) == len(jax.tree.leaves(cell))


@every_cell
def test_gradient_is_a_cell(name, x64):
    cell, _, _, _, (by_cell, _, _) = evaluated(name, jnp.dtype("float64"))
    assert type(by_cell) is type(cell)
    assert jax.tree.structure(by_cell) == jax.tree.structure(cell)


@table_of_cells("lstm", "orthogonal")
def test_vmap_over_keys_makes_an_ensemble(name):
    @jax.jit
    def build(key):
        return jaxrnn.make_cell(name, F, H, rngs=nnx.Rngs(key))

    keys = jax.random.split(jax.random.key(0), 2)
    ensemble = jax.vmap(build)(keys)
    xs, carry = inputs(name, make(name))
    _, y = jax.vmap(lambda cell: one_step(cell, carry, xs[0]))(ensemble)
    for k, key in enumerate(keys):
        assert_close(y[k], one_step(build(key), carry, xs[0])[1], jnp.float32)


@split_cells
def test_a_call_is_project_mix_update_readout(name, x64):
    cell, xs, carry, _, _ = evaluated(name, jnp.dtype("float64"))
    moved = cell.update(carry, cell.project(xs[0]), cell.mix(carry))
    called, y = cell(carry, xs[0])
    jax.tree.map(np.testing.assert_array_equal, called, moved)
    np.testing.assert_array_equal(y, cell.readout(moved))


@split_cells
def test_project_takes_all_steps_at_once(name, x64):
    cell, xs, _, _, _ = evaluated(name, jnp.dtype("float64"))
    assert_close(cell.project(xs), jnp.stack([cell.project(x) for x in xs]), "float64")


@split_cells
def test_mix_is_affine(name, x64):
    cell, _, a, _, _ = evaluated(name, jnp.dtype("float64"))
    _, b = inputs(name, cell, jnp.float64, seed=2)
    between = jax.tree.map(lambda a, b: 3.0 * a - 2.0 * b, a, b)
    assert_close(cell.mix(between), 3.0 * cell.mix(a) - 2.0 * cell.mix(b), "float64")


@split_cells
def test_update_works_unit_by_unit(name):
    """Entry j of the new carry depends on entry j of every carry leaf, drive gate and pull gate."""
    cell = make(name)
    xs, carry = inputs(name, cell)
    x, carry = xs[0, 0], jax.tree.map(lambda a: a[0], carry)
    derivative = jax.jit(jax.jacobian(cell.update, argnums=(0, 1, 2)))
    jacobian = derivative(carry, cell.project(x), cell.mix(carry))
    blocks = [
        np.asarray(leaf[:, start : start + H])
        for leaf in jax.tree.leaves(jacobian)
        for start in range(0, leaf.shape[1], H)
    ]
    assert any(np.any(block) for block in blocks)
    for block in blocks:
        np.testing.assert_array_equal(block, np.diag(np.diag(block)))


@split_cells
def test_update_and_readout_hold_no_weights(name):
    cell = make(name)
    xs, carry = inputs(name, cell)
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
def test_the_table_knows_what_a_step_costs(name):
    cost = CELLS[name].cost(F, H)
    carry = make(name).initialize_carry((F,))
    assert cost.state == flat_state(carry, 0).size
    assert cost.parameters == CELLS[name].parameters(F, H)
    assert cost.flops > 0
    assert CELLS[name].outputs(H) == make(name).out_features


@pytest.mark.parametrize(("name", "gates"), [("elman-tanh", 1), ("gru", 3), ("lstm", 4)])
@pytest.mark.parametrize(("f", "h"), [(3, 4), (40, 60)])
def test_the_products_are_most_of_what_a_step_costs(name, gates, f, h):
    products = 2 * gates * h * (f + h)
    # Beside them stand two sums a gate and a few operations a unit.
    assert products < CELLS[name].cost(f, h).flops < products + 10 * gates * h


@every_cell
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_the_initial_carry_is_zero_and_has_the_batch_axes(name, batch, dtype):
    cell = make(name, dtype)
    assert cell.num_feature_axes == 1
    carry = cell.initialize_carry((*batch, F), nnx.Rngs(0))  # as Flax calls it
    alone = leaves(cell.initialize_carry((F,)))
    assert len(alone) == len(cell.carry_names)
    for leaf, of_one in zip(jax.tree.leaves(carry), alone, strict=True):
        assert leaf.shape == (*batch, *of_one.shape)
        assert leaf.dtype == dtype
        assert not np.any(leaf)


@one_of_each_kind
def test_runs_inside_flax_rnn_with_the_same_numbers(name, dtype):
    cell, xs, carry, done, _ = evaluated(name, dtype)
    layer = nnx.RNN(cell, time_major=True, return_carry=True)
    last, outputs = layer(xs, initial_carry=carry)
    assert_close(outputs, done.outputs, dtype)
    for ours, theirs in zip(leaves(done.carry), leaves(last), strict=True):
        assert_close(ours, theirs, dtype)


@one_of_each_kind
def test_new_weights_do_not_compile_again(name, caplog, x64):
    first = make(name, jnp.float64)
    loss_and_gradients(first, *inputs(name, first, jnp.float64))
    cell = make(name, jnp.float64, seed=2)
    xs, carry = inputs(name, cell, jnp.float64, seed=3)
    with jax.log_compiles():
        loss_and_gradients(cell, xs, carry)
        assert not [line for line in caplog.messages if "Compiling" in line]
        jax.jit(lambda x: -x)(xs)  # the log does speak where something is compiled
        assert [line for line in caplog.messages if "Compiling" in line]


def narrow(tree):
    return jax.tree.map(lambda a: a.astype(jnp.bfloat16), tree)


@one_of_each_kind
def test_bfloat16_stays_bfloat16(name):
    cell = make(name, jnp.bfloat16)
    example = narrow((cell, *inputs(name, cell)))
    (_, done), gradients = jax.eval_shape(loss_and_gradients, *example)
    assert all(a.dtype == jnp.bfloat16 for a in jax.tree.leaves((cell, done, gradients)))


@table_of_cells("lstm", "gru", "s5")
def test_bfloat16_gives_the_rounded_numbers(name):
    *example, done, _ = evaluated(name, jnp.dtype("float32"))
    (_, found), _ = loss_and_gradients(*narrow(tuple(example)))
    # 8 bits of mantissa: 2⁻⁸ a rounding, a few dozen roundings on the way to the last step.
    np.testing.assert_allclose(found.outputs.astype(jnp.float32), done.outputs, rtol=0.1, atol=0.05)


@one_of_each_kind
def test_lowers_for_every_platform(name):
    """Forward and backward, compiled for machines that need not be here."""
    cell = make(name)
    platforms = ("cpu", "cuda", "tpu")
    example = cell, *inputs(name, cell)
    exported = jax.export.export(loss_and_gradients, platforms=platforms)(*example)
    assert exported.platforms == platforms
