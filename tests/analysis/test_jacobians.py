"""Step Jacobians.

Oracles: the papers' equations in NumPy by complex steps; ``jax.jacfwd`` of the flattened step, written out
here; central differences; closed forms.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import expit

import jaxrnn
from jaxrnn.analysis import jacobians, trace
from jaxrnn.analysis._jacobians import (
    factored_jacobians,
    general_jacobians,
    input_jacobians,
    mixing_blocks,
    structured_jacobians,
)
from jaxrnn.checks import InputError
from jaxrnn.typing import multiplies_by
from tests.analysis.examples import (
    B,
    F,
    H,
    T,
    as_carry,
    as_state,
    assert_close,
    compiles,
    elman,
    every_twin,
    inputs,
    jacobian_by_complex_steps,
    make,
    numpy_step,
    travelled,
    twins,
    zero_weights,
)
from tests.analysis.systems import A, C, henon
from tests.zoo import every_plain_cell, table_of_cells


def by_complex_steps(name, cell, path):
    step = numpy_step(name, cell)
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(path.before)]
    xs = np.asarray(path.xs)
    places = list(np.ndindex(xs.shape[:-1]))
    found = [
        jacobian_by_complex_steps(step, tuple(leaf[p] for leaf in before), xs[p]) for p in places
    ]
    return np.stack(found).reshape(*xs.shape[:-1], *found[0].shape)


def by_hand(cell, path):
    """Forward-mode derivatives of the flattened step, for every step and sequence."""

    def step(state, x):
        return as_state(cell(as_carry(cell, state), x)[0])

    states, xs = path.states[:-1], path.xs
    flat = jax.vmap(jax.jacfwd(step))(states.reshape(-1, states.shape[-1]), xs.reshape(-1, F))
    return flat.reshape(*states.shape, states.shape[-1])


def by_central_differences(cell, path, width=1e-6):
    states = path.states[:-1, ..., None, :]
    size = states.shape[-1]
    nudges = jnp.broadcast_to(width * jnp.eye(size), (*states.shape[:-2], size, size))
    xs = jnp.broadcast_to(path.xs[..., None, :], (*states.shape[:-2], size, F))
    ahead, behind = (
        as_state(cell(as_carry(cell, jnp.broadcast_to(states, nudges.shape) + shift), xs)[0])
        for shift in (nudges, -nudges)
    )
    return jnp.swapaxes(ahead - behind, -1, -2) / (2 * width)  # row: the new state's entry


@every_plain_cell
@pytest.mark.parametrize("method", [jacobians, structured_jacobians, general_jacobians])
def test_both_paths_equal_the_papers_equations(name, method, x64):
    cell, path = travelled(name)
    assert_close(method(cell, path), by_complex_steps(name, cell, path), 1e-12)


@every_plain_cell
def test_equal_differentiation_by_hand(name, x64):
    cell, path = travelled(name)
    assert_close(jacobians(cell, path), by_hand(cell, path), 1e-12)


@pytest.mark.parametrize(
    ("name", "read"),
    [("elman-tanh", 1), ("lstm", 1), ("gru", 1), ("mingru", 1), ("lstm-peephole", 2)],
)
def test_recurrent_weights_are_read_off_as_differentiation_finds_them(name, read, x64):
    cell = make(name)
    zero = cell.initialize_carry((F,))
    by_leaf = jax.tree.leaves(jax.jacfwd(cell.mix)(zero))
    gates = by_leaf[0].size // H**2
    every = np.stack([np.reshape(leaf, (gates, H, H)) for leaf in by_leaf], axis=2)
    np.testing.assert_array_equal(mixing_blocks(cell, zero), every[:, :, -read:])
    assert not every[:, :, :-read].any()


def test_another_mix_is_not_taken_for_the_one_that_it_is_wrapped_around(x64):
    class Halved(jaxrnn.ElmanCell):
        def mix(self, carry):
            return 0.5 * super().mix(carry)

    functools.update_wrapper(Halved.mix, jaxrnn.ElmanCell.mix)
    halved = Halved(F, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    instance = jaxrnn.ElmanCell(F, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    kernel = instance.recurrent_kernel[...]
    vars(instance)["mix"] = lambda carry: 0.5 * (carry @ kernel)
    for cell in (halved, instance):
        zero = jnp.zeros(H)
        assert_close(mixing_blocks(cell, zero).reshape(H, H), 0.5 * kernel.T, 1e-15)


@every_plain_cell
def test_equal_central_differences(name, x64):
    cell, path = travelled(name)
    # Truncation is width² = 1e-12, rounding 1e-16/width = 1e-10.
    assert_close(jacobians(cell, path), by_central_differences(cell, path), 1e-8)


@every_plain_cell
@pytest.mark.parametrize("method", [structured_jacobians, general_jacobians])
def test_float32_is_right_to_its_own_rounding(name, method):
    cell, path = travelled(name, dtype=jnp.float32)
    exact = by_complex_steps(name, jax.tree.map(lambda a: np.asarray(a, np.float64), cell), path)
    found = method(cell, path)
    assert found.dtype == jnp.float32
    # Some ten roundings of 2⁻²⁴ each: in the gates, the slopes and the product with the weights.
    assert_close(found, exact, 1e-6)


@every_plain_cell
@pytest.mark.parametrize("batch", [pytest.param((), marks=pytest.mark.slow), (2, 3)])
def test_factors_multiply_as_the_papers_equations_do(name, batch, dtype):
    cell, path = travelled(name, batch, dtype=dtype)
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), (cell, path))
    exact = by_complex_steps(name, *wide)
    factors = factored_jacobians(cell, path)
    draw = np.random.default_rng(0)
    v, w = (jnp.asarray(draw.normal(size=exact.shape[:-1]), dtype) for _ in range(2))
    tolerance = 1e-12 if dtype == jnp.float64 else 1e-5
    assert_close(factors.matvec(v), np.einsum("...ij,...j->...i", exact, v), tolerance)
    assert_close(factors.rmatvec(w), np.einsum("...ij,...i->...j", exact, w), tolerance)


def test_factors_grow_with_the_units_and_not_with_their_square():
    cell, path = travelled("lstm", dtype=jnp.float32)
    factors = factored_jacobians(cell, path)
    steps = T * np.prod(path.batch)
    assert factors.kept.size + factors.pulled.size == steps * (2 * 2 * H + 2 * 4 * H)
    assert factors.mixing.size == 4 * H * H


def test_leaves_of_different_width_take_the_general_path(x64):
    """u' = tanh(a u + b x), v' = v + (u, u): split, but no leaf's units are another's."""

    class Uneven(jaxrnn.ElmanCell):
        def initialize_carry(self, input_shape, rngs=None) -> Any:
            h = super().initialize_carry(input_shape, rngs)
            return jnp.concatenate([h, h], axis=-1), h

        def update(self, carry, drive, pull) -> Any:
            v, _ = carry
            u = jnp.tanh(drive + pull)
            return v + jnp.concatenate([u, u], axis=-1), u

        def _check_carry(self, carry, batch):
            pass

    cell = Uneven(F, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    path = trace(cell, inputs(cell)[0])
    found = jacobians(cell, path)
    through = 1 - np.asarray(path.outputs) ** 2
    by_u = through[..., None] * np.asarray(cell.recurrent_kernel[...]).T
    np.testing.assert_allclose(found[..., 2 * H :, 2 * H :], by_u, rtol=0, atol=1e-14)
    by_v = found[..., : 2 * H, : 2 * H]
    np.testing.assert_array_equal(by_v, np.broadcast_to(np.eye(2 * H), by_v.shape))
    with pytest.raises(InputError, match=r"^cell: got leaves of 8 and 4 units; expected"):
        factored_jacobians(cell, path)


@pytest.mark.parametrize("noted", [True, False])
def test_a_carry_of_less_precision_than_the_weights(noted):
    """The Jacobians are as precise as the weights, whichever leaves the mix is known to read."""

    class Mixed(jaxrnn.LSTMCell):
        def initialize_carry(self, input_shape, rngs=None) -> Any:
            return jax.tree.map(jnp.bfloat16, super().initialize_carry(input_shape, rngs))

        def mix(self, carry) -> Any:
            return carry[1].astype(jnp.float32) @ self.recurrent_kernel[...]

        def update(self, carry, drive, pull) -> Any:
            return jax.tree.map(jnp.bfloat16, super().update(carry, drive, pull))

        def _check_carry(self, carry, batch):
            pass

    if noted:
        Mixed.mix = multiplies_by("recurrent_kernel")(Mixed.mix)
    cell = Mixed(F, H, rngs=nnx.Rngs(0))
    assert mixing_blocks(cell, cell.initialize_carry((F,))).shape[2] == (1 if noted else 2)
    with jax.numpy_dtype_promotion("standard"):
        path = trace(cell, inputs(cell, dtype=jnp.float32)[0])
        factors = factored_jacobians(cell, path)
        found, general = factors.dense(), general_jacobians(cell, path)
        back = factors.rmatvec(jnp.ones(path.states[1:].shape, jnp.float32))
    assert found.dtype == back.dtype == jnp.float32
    assert_close(back, np.asarray(found).sum(axis=-2), 1e-5)
    assert_close(found, np.asarray(general, np.float64), 0.05)  # of 8 bits, some roundings


def test_factors_of_a_step_that_is_not_split_are_refused():
    cell = make("lem", jnp.float32)
    path = trace(cell, inputs(cell, dtype=jnp.float32)[0])
    with pytest.raises(InputError, match=r"^cell: got jaxrnn.LEMCell; expected a split cell"):
        factored_jacobians(cell, path)


@pytest.mark.parametrize("product", ["matvec", "rmatvec"])
def test_factors_multiply_one_state_a_step(product):
    cell, path = travelled("lstm", (2,), dtype=jnp.float32)
    multiply = getattr(factored_jacobians(cell, path), product)
    message = f"got float32[2, {2 * H}]; expected shape [{T}, 2, {2 * H}], [T, *B, S]"
    with pytest.raises(InputError, match="^[vw]: " + re.escape(message)):
        multiply(path.states[0])


@table_of_cells("lstm", among=("gru", "lstm"))
@pytest.mark.parametrize("batch", [(), (2, 3)])
@pytest.mark.parametrize("method", [structured_jacobians, general_jacobians])
def test_any_number_of_batch_axes(name, batch, method, x64):
    cell, path = travelled(name, batch)
    found = method(cell, path)
    assert found.shape == (T, *batch, *2 * path.states.shape[-1:])
    assert_close(found, by_complex_steps(name, cell, path), 1e-12)


def test_rows_are_the_new_state_and_time_runs_forward(x64):
    matrices = np.random.default_rng(0).normal(size=(5, 3, 3))
    table = jnp.asarray(matrices)

    def step(s, t):
        return table[t] @ s, s

    path = trace(step, jnp.arange(5), carry=jnp.ones(3))
    assert_close(jacobians(step, path), matrices, 1e-15)


@every_twin
def test_foreign_cells_give_what_ours_give(kind, x64):
    ours, foreign = twins(kind)
    xs, carry = inputs(ours)
    mine = jacobians(ours, trace(ours, xs, carry=carry))
    theirs = jacobians(foreign, trace(foreign, xs, carry=carry))
    assert_close(theirs, mine, 1e-12)


def test_plain_step_with_a_tree_for_a_carry(x64):
    """Leaves of different width: (u, v) -> (u² + v₁v₂, u·v)."""

    def step(carry, x):
        u, v = carry
        return (u**2 + jnp.prod(v, axis=-1, keepdims=True), jnp.broadcast_to(u, v.shape) * v), x

    carry = (jnp.array([[2.0], [-1.0]]), jnp.array([[3.0, 5.0], [7.0, 0.5]]))
    found = jacobians(step, trace(step, None, carry=carry, length=1))[0]
    for matrix, (u,), (a, b) in zip(found, *carry, strict=True):
        np.testing.assert_array_equal(matrix, jnp.array([[2 * u, b, a], [a, u, 0], [b, 0, u]]))


def test_henon_map_along_its_attractor(x64):
    path = trace(henon, None, carry=jnp.zeros(2), length=30)
    u = np.asarray(path.states[:-1, 0])
    exact = np.stack([[-2 * A * u, np.ones(30)], [np.full(30, C), np.zeros(30)]])
    assert_close(jacobians(henon, path), np.moveaxis(exact, -1, 0), 1e-15)


@pytest.mark.parametrize(
    ("point", "eigenvalues"),
    [
        ((0.631354, 0.189406), (-1.92374, 0.15595)),
        ((-1.131354, -0.339406), (3.25982, -0.09203)),
    ],
)
def test_henon_map_at_its_fixed_points(point, eigenvalues, x64):
    path = trace(henon, None, carry=jnp.array(point), length=1)
    np.testing.assert_allclose(path.states[1], path.states[0], rtol=0, atol=2e-6)
    values = np.linalg.eigvals(jacobians(henon, path)[0])
    np.testing.assert_allclose(sorted(values, key=abs)[::-1], eigenvalues, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("w", "point", "slope"),
    [
        (2.0, 0.957504, 0.166372),
        (2.0, -0.957504, 0.166372),
        (1.5, 0.858560, 0.394313),
        (2.0, 0.0, 2.0),
        (1.5, 0.0, 1.5),
    ],
)
def test_scalar_tanh_network_at_its_fixed_points(w, point, slope, x64):
    cell = elman([[w]], jnp.tanh)
    path = trace(cell, jnp.zeros((200, 1)), carry=jnp.array([point]))  # settles where it is stable
    np.testing.assert_allclose(path.states[-1], [point], rtol=0, atol=1e-6)
    np.testing.assert_allclose(jacobians(cell, path)[-1], [[slope]], rtol=0, atol=1e-6)


def test_lstm_without_weights_keeps_c_by_its_forget_gate(x64):
    """c' = σ(b) c and h' = ½ tanh c': everything comes from c, nothing from h."""
    cell = zero_weights("lstm", (0.0, 1.0, 0.0, 0.0))
    xs, carry = inputs(cell, batch=())
    path = trace(cell, xs, carry=carry)
    keep = expit(1.0)
    for matrix, c in zip(jacobians(cell, path), path.carries[0][1:], strict=True):
        through = 0.5 * keep / np.cosh(c) ** 2
        expected = np.block(
            [[keep * np.eye(H), np.zeros((H, H))], [np.diag(through), np.zeros((H, H))]]
        )
        assert_close(matrix, expected, 1e-15)


def test_gru_without_weights_keeps_h_by_its_update_gate(x64):
    cell = zero_weights("gru", (0.3, 1.0, -0.2))
    xs, carry = inputs(cell, batch=())
    path = trace(cell, xs, carry=carry)
    expected = np.broadcast_to(expit(1.0) * np.eye(H), (T, H, H))
    assert_close(jacobians(cell, path), expected, 1e-15)


@pytest.mark.parametrize("name", ["elman-tanh", "lstm"])
def test_vmap_over_cells_gives_an_ensemble(name, x64):
    cells = [make(name, seed=k) for k in range(3)]
    xs, carry = inputs(cells[0])

    def of_one(cell):
        return jacobians(cell, trace(cell, xs, carry=carry))

    together = jax.vmap(of_one)(jax.tree.map(lambda *leaves: jnp.stack(leaves), *cells))
    assert together.shape[:3] == (3, T, B)
    for k, cell in enumerate(cells):
        assert_close(together[k], of_one(cell), 1e-14)


def test_trajectory_that_is_not_finite_is_refused_with_its_place(x64):
    cell, path = travelled("lstm")
    c, h = path.carries
    spoiled = dataclasses.replace(path, carries=(c, h.at[3, 1, 2].set(jnp.nan)))
    message = "trajectory.carries[1]: got 1 non-finite values, the first at [3, 1, 2]"
    with pytest.raises(InputError, match=re.escape(message)):
        jacobians(cell, spoiled)


@pytest.mark.parametrize("method", [structured_jacobians, general_jacobians])
def test_new_weights_do_not_compile_again(method, caplog):
    def run(seed, length=T):
        cell = make("gru", jnp.float32, seed)
        method(cell, trace(cell, inputs(cell, dtype=jnp.float32, length=length)[0]))

    run(0)
    assert not compiles(caplog, lambda: run(1))
    assert compiles(caplog, lambda: run(1, 12))  # a new length, so the log can tell


# By the input.


def input_slopes(name, cell, path):
    """∂s_t/∂x_t of the NumPy oracle by complex steps, [T, *B, S, F]."""
    step = numpy_step(name, cell)
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(path.before)]
    xs = np.asarray(path.xs)

    def at(place):
        state = tuple(leaf[place].astype(complex) for leaf in before)
        nudges = 1e-30j * np.eye(F)
        moved = [np.concatenate(step(state, xs[place] + nudge)[0]) for nudge in nudges]
        return np.imag(np.stack(moved, axis=-1)) / 1e-30

    slopes = [at(place) for place in np.ndindex(xs.shape[:-1])]
    return np.stack(slopes).reshape(*xs.shape[:-1], -1, F)


@every_plain_cell
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_input_jacobians_equal_the_papers_equations(name, batch, x64):
    cell, path = travelled(name, batch)
    assert_close(input_jacobians(cell, path), input_slopes(name, cell, path), 1e-12)


@every_twin
def test_foreign_cells_have_the_same_input_jacobians(kind, x64):
    ours, foreign = twins(kind)
    xs, carry = inputs(ours)
    mine = input_jacobians(ours, trace(ours, xs, carry=carry))
    theirs = input_jacobians(foreign, trace(foreign, xs, carry=carry))
    assert_close(theirs, mine, 1e-12)


@pytest.mark.parametrize(
    ("xs", "length", "message"),
    [
        (None, 3, "trajectory.xs: got None; expected inputs"),
        (jnp.arange(3), None, "trajectory.xs: got int32[3]; expected a floating-point array"),
    ],
)
def test_inputs_without_a_derivative_are_refused(xs, length, message):
    path = trace(lambda s, x: (0.5 * s, s), xs, carry=jnp.ones(2), length=length)
    with pytest.raises(InputError, match="^" + re.escape(message)):
        input_jacobians(lambda s, x: (0.5 * s, s), path)
