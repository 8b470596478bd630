"""Sensitivities by lag.

Oracles: gradients of runs in which every step has weights of its own; ``jax.grad``; closed forms of scalar
networks; differentiation of the composed steps; mpmath.
"""

from __future__ import annotations

import re
import signal

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.analysis import _lag_contributions as module
from jaxrnn.analysis import trace
from jaxrnn.analysis._input_sensitivity import input_sensitivity, input_sensitivity_of
from jaxrnn.analysis._lag_contributions import ParameterGradient, lag_contributions
from jaxrnn.checks import InputError
from tests.analysis.examples import (
    B,
    F,
    T,
    as_carry,
    as_state,
    assert_close,
    elman,
    every_twin,
    identity,
    inputs,
    make,
    travelled,
    twins,
)
from tests.zoo import PLAIN, every_plain_cell, table_of_cells


def squares(outputs):
    return jnp.sum(outputs**2)


def last(outputs):
    return jnp.sum(outputs[-1] ** 2)


def contributions(cell, xs, carry, loss):
    """g_k for every lag, [T, N]: each step has weights of its own, whose gradients are the terms."""
    steps = len(xs)
    copies = jax.tree.map(lambda a: jnp.broadcast_to(a, (steps, *a.shape)), cell)
    cotangents = jax.grad(loss)(trace(cell, xs, carry=carry).outputs)

    def paid(copies, t):
        _, outputs = jax.lax.scan(lambda c, now: now[0](c, now[1]), carry, (copies, xs))
        return jnp.sum(cotangents[t] * outputs[t])

    terms = jax.jit(jax.vmap(jax.grad(paid), in_axes=(None, 0)))(copies, jnp.arange(steps))
    by_pair = np.concatenate(
        [np.reshape(leaf, (steps, steps, -1)) for leaf in jax.tree.leaves(terms)], axis=-1
    )  # [loss, use, N]
    return np.stack([np.trace(by_pair, offset=-k) for k in range(steps)])


def check_against(found, by_lag):
    whole = by_lag.sum(axis=0)
    rounding = 1e-13 * float(np.linalg.norm(whole))
    norms = np.linalg.norm(by_lag, axis=1)
    np.testing.assert_allclose(np.exp(found.log_norms), norms, rtol=1e-10, atol=rounding)
    expected = by_lag @ whole / (whole @ whole)
    np.testing.assert_allclose(found.fractions, expected, rtol=1e-10, atol=1e-13)
    assert float(found.difference) < 1e-13


@table_of_cells("lstm", among=PLAIN)
@pytest.mark.parametrize("loss", [squares, pytest.param(last, marks=pytest.mark.slow)])
def test_contributions_equal_the_gradients_of_weights_that_are_not_shared(name, loss, x64):
    cell = make(name)
    xs, carry = inputs(cell)
    found = lag_contributions(cell, xs, loss, carry=carry)
    assert found.lags.tolist() == [*range(T)]
    check_against(found, contributions(cell, xs, carry, loss))


@table_of_cells("lstm", among=("lstm", "gru"))
def test_sum_is_the_whole_gradient(name, x64):
    cell = make(name)
    xs, carry = inputs(cell, length=60)
    found = lag_contributions(cell, xs, squares, carry=carry)
    assert float(found.difference) < 1e-10
    assert float(found.fractions.sum()) == pytest.approx(1, abs=1e-12)
    assert float(found.cumulative[-1]) == pytest.approx(1, abs=1e-12)

    def run(cell):
        return squares(jaxrnn.unroll(cell, xs, carry=carry).outputs)

    gradient = nnx.to_pure_dict(nnx.state(jax.grad(run)(cell)))
    assert sorted(found.leaf_fractions) == sorted(gradient)
    square = sum(np.sum(leaf**2) for leaf in gradient.values())
    for leaf, fractions in found.leaf_fractions.items():
        assert float(fractions.sum()) == pytest.approx(1, abs=1e-11), leaf
    parts = {leaf: np.sum(g**2) / square for leaf, g in gradient.items()}
    by_leaf = sum(parts[leaf] * np.asarray(found.leaf_fractions[leaf]) for leaf in parts)
    np.testing.assert_allclose(found.fractions, by_leaf, rtol=0, atol=1e-12)
    squared = sum(np.exp(2 * np.asarray(logs)) for logs in found.leaf_log_norms.values())
    np.testing.assert_allclose(np.exp(2 * found.log_norms), squared, rtol=1e-12)


def test_scalar_linear_network_in_closed_form(x64):
    """s_t = w s_{t−1} + b, L = s_T: ∂L/∂w by lag is w^k s_{T−k−1}, ∂L/∂b is w^k."""
    w, steps = 0.8, 40
    cell = elman([[w]], identity)
    cell.bias[...] = jnp.ones(1)
    states = [0.5]
    for _ in range(steps):
        states.append(w * states[-1] + 1)
    found = lag_contributions(
        cell, jnp.zeros((steps, 1)), lambda y: y[-1].sum(), carry=jnp.array([0.5])
    )
    k = np.arange(steps)
    by_weight = w**k * np.array(states)[steps - 1 - k]
    for leaf, exact in (("recurrent_kernel", by_weight), ("bias", w**k)):
        np.testing.assert_allclose(np.exp(found.leaf_log_norms[leaf]), exact, rtol=1e-12)
        np.testing.assert_allclose(found.leaf_fractions[leaf], exact / exact.sum(), rtol=1e-12)
    assert np.all(found.leaf_log_norms["kernel"] == -np.inf)  # the inputs are zero
    assert np.all(np.isnan(found.leaf_fractions["kernel"]))


def test_contributions_may_cancel(x64):
    """w < 0: odd lags pull against even ones, and fractions are negative."""
    cell = elman([[-0.9]], identity)
    xs, start = jnp.zeros((30, 1)), jnp.ones(1)
    cell.bias[...] = jnp.ones(1)
    found = lag_contributions(cell, xs, lambda y: y[-1].sum(), carry=start)
    fractions = np.asarray(found.leaf_fractions["bias"])
    np.testing.assert_array_equal(np.sign(fractions), (-1.0) ** np.arange(30))
    assert fractions.sum() == pytest.approx(1)
    assert np.abs(fractions).sum() > 10


@every_twin
def test_foreign_cells_have_the_same_contributions(kind, x64):
    ours, foreign = twins(kind)
    if not isinstance(foreign, nnx.Module):
        with pytest.raises(InputError, match=r"^cell: got \w+; expected an nnx.Module"):
            lag_contributions(foreign, *inputs(ours)[:1], squares, carry=inputs(ours)[1])
        return
    xs, carry = inputs(ours)
    mine = lag_contributions(ours, xs, squares, carry=carry)
    theirs = lag_contributions(foreign, xs, squares, carry=carry)
    assert float(theirs.difference) < 1e-13
    check_against(theirs, contributions(foreign, xs, carry, squares))
    # The kernels are the same numbers, in other arrays; ours has one bias, and Flax's GRU lacks one.
    kernels = [leaf for leaf in theirs.leaf_log_norms if leaf.endswith("kernel")]
    squared = sum(np.exp(2 * np.asarray(theirs.leaf_log_norms[leaf])) for leaf in kernels)
    expected = sum(
        np.exp(2 * np.asarray(mine.leaf_log_norms[leaf])) for leaf in ("kernel", "recurrent_kernel")
    )
    np.testing.assert_allclose(squared, expected, rtol=1e-10)


class WithHead(nnx.Module):
    """A cell whose output has weights of its own: they act at lag 0 alone."""

    def __init__(self, cell):
        self.cell = cell
        self.head = nnx.Param(jnp.arange(1.0, 5.0, dtype=jnp.float64))

    def __call__(self, carry, x):
        carry, y = self.cell(carry, x)
        return carry, y @ self.head[...]


def test_weights_of_the_readout_act_at_lag_zero(x64):
    cell = WithHead(make("gru"))
    xs, carry = inputs(cell.cell)
    found = lag_contributions(cell, xs, squares, carry=carry)
    check_against(found, contributions(cell, xs, carry, squares))
    assert_close(found.leaf_fractions["head"], np.eye(T)[0], 1e-14)
    assert "cell.recurrent_kernel" in found.leaf_fractions


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_number_of_batch_axes(batch, x64):
    cell = make("lstm")
    xs, carry = inputs(cell, batch)
    found = lag_contributions(cell, xs, squares, carry=carry)
    check_against(found, contributions(cell, xs, carry, squares))


def test_one_loss_per_sequence_is_their_sum(x64):
    cell = make("gru")
    xs, carry = inputs(cell)
    apart = lag_contributions(cell, xs, lambda y: (y**2).sum(axis=(0, 2)), carry=carry)
    assert_close(
        apart.log_norms, lag_contributions(cell, xs, squares, carry=carry).log_norms, 1e-13
    )


def test_few_lags_are_the_first_of_all(x64):
    cell = make("elman-tanh")
    xs, carry = inputs(cell)
    few, all_ = (lag_contributions(cell, xs, squares, carry=carry, max_lag=k) for k in (2, None))
    assert few.lags.tolist() == [0, 1, 2]
    assert_close(few.fractions, all_.fractions[:3], 1e-14)
    assert_close(few.log_norms, all_.log_norms[:3], 1e-14)
    assert np.isnan(few.difference)


def test_far_lags_do_not_underflow():
    """0.1 a step: after 80 steps 10⁻⁸⁰, of which float32 knows nothing."""
    cell = elman([[0.1]], identity, jnp.float32)
    cell.bias[...] = jnp.ones(1)
    found = lag_contributions(cell, jnp.zeros((80, 1)), lambda y: y[-1].sum(), carry=jnp.zeros(1))
    exact = np.arange(80) * np.log(0.1)
    np.testing.assert_allclose(found.leaf_log_norms["bias"], exact, rtol=1e-6, atol=1e-6)
    assert found.log_norms.dtype == jnp.float32
    assert float(found.difference) < 1e-6


def test_growing_contributions_are_right(x64):
    cell = elman([[1.5]], identity)
    cell.bias[...] = jnp.ones(1)
    found = lag_contributions(cell, jnp.zeros((300, 1)), lambda y: y[-1].sum(), carry=jnp.zeros(1))
    np.testing.assert_allclose(
        found.leaf_log_norms["bias"], np.arange(300) * np.log(1.5), rtol=1e-12
    )
    assert float(found.difference) < 1e-12


@pytest.mark.slow
def test_half_precision_goes_up():
    cell = make("gru", jnp.bfloat16)
    xs, carry = inputs(cell, dtype=jnp.bfloat16)
    found = lag_contributions(cell, xs, squares, carry=carry)
    assert found.fractions.dtype == jnp.float32
    assert float(found.difference) < 0.02  # a few roundings of 2⁻⁸
    assert float(found.fractions.sum()) == pytest.approx(1, abs=0.02)


def test_autonomous_network_without_inputs(x64):
    class Decay(nnx.Module):
        def __init__(self):
            self.rate = nnx.Param(jnp.array([0.5]))

        def __call__(self, carry, x):
            carry = carry * self.rate[...]
            return carry, carry

    found = lag_contributions(Decay(), None, lambda y: y[-1].sum(), carry=jnp.ones(1), length=4)
    np.testing.assert_allclose(found.fractions, 0.25)  # s_T = r^T: each step has its part


@pytest.mark.parametrize("max_lag", [-1, T, True])
def test_other_lags_are_refused(max_lag):
    cell = make("gru", jnp.float32)
    with pytest.raises(InputError, match=r"^max_lag: got"):
        lag_contributions(cell, inputs(cell, dtype=jnp.float32)[0], squares, max_lag=max_lag)


def test_losses_without_a_gradient_are_refused():
    cell = make("gru", jnp.float32)
    xs, _ = inputs(cell, dtype=jnp.float32)
    with pytest.raises(InputError, match=r"^loss: got a gradient of zero"):
        lag_contributions(cell, xs, lambda y: 0 * y.sum())


def test_gradients_that_overflow_are_refused():
    cell = elman([[10.0]], identity, jnp.float32)
    with pytest.raises(InputError, match=r"^cell: its gradient.*non-finite"):
        lag_contributions(cell, jnp.zeros((38, 1)), lambda y: 1e5 * y[-1].sum(), carry=jnp.ones(1))


@table_of_cells(
    "orthogonal", "clockwork", among=("orthogonal", "antisymmetric", "lipschitz", "clockwork")
)
@pytest.mark.slow
def test_weights_that_are_derived_have_the_gradients_of_their_parameters(name, x64):
    cell = jaxrnn.make_cell(name, 3, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    xs = jax.random.normal(jax.random.key(0), (7, 2, 3), jnp.float64)
    loss = lambda outputs: (outputs[-1] ** 2).sum()  # noqa: E731
    found = lag_contributions(cell, xs, loss)
    gradient = jax.grad(lambda cell: loss(jaxrnn.unroll(cell, xs).outputs))(cell)
    norms = [float(jnp.linalg.norm(leaf.reshape(-1))) for leaf in jax.tree.leaves(gradient)]
    measured = ParameterGradient.of(cell, trace(cell, xs), loss)
    np.testing.assert_allclose(jnp.exp(measured.log_norms), norms, rtol=1e-10)
    assert [leaf.shape for leaf in jax.tree.leaves(measured.whole)] == [
        leaf.shape for leaf in jax.tree.leaves(gradient)
    ]
    assert found.difference < 1e-12
    assert set(found.leaf_fractions) == set(measured.names)


def test_modules_without_parameters_are_refused():
    class Empty(nnx.Module):
        def __call__(self, carry, x):
            return carry, carry

    with pytest.raises(InputError, match=re.escape("cell: got Empty without nnx.Param")):
        lag_contributions(Empty(), jnp.ones((3, 1)), squares, carry=jnp.ones(1))


# Inputs.


def input_derivative(cell, path, lag):
    """∂s_T/∂x_{T−k} of every sequence by forward-mode differentiation of the composed steps."""
    at = path.length - 1 - lag

    def steps(x, state, xs):
        for now in (x, *xs):
            state = as_state(cell(as_carry(cell, state), now)[0])
        return state

    return jax.vmap(jax.jacfwd(steps), in_axes=(0, 0, 1))(
        path.xs[at], path.states[at], path.xs[at + 1 :]
    )


@every_plain_cell
def test_inputs_equal_differentiation_through_the_steps(name, x64):
    cell, path = travelled(name)
    found = input_sensitivity(cell, path)
    assert found.lags.tolist() == [*range(T)]
    for lag in (0, 2, T - 1):
        explicit = np.linalg.svd(input_derivative(cell, path, lag), compute_uv=False)
        rounding = 8 * np.finfo(np.float64).eps * explicit[:, :1]
        values = np.exp(found.log_singular_values[lag])
        assert np.all(np.abs(values - explicit) <= 1e-10 * explicit + rounding)


def affine_steps(matrices, gains):
    """s_t = A_t s_{t−1} + B_t x_t, the tables read at the place that the carry's last entry counts."""
    size = matrices.shape[-1]

    def step(state, x):
        s, place = state[:size], state[size].astype(int)
        moved = jnp.asarray(matrices)[place] @ s + jnp.asarray(gains)[place] @ x
        return jnp.append(moved, state[size] + 1), moved

    return step


@pytest.mark.parametrize(
    "features", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4)), 7]
)
def test_every_value_of_a_far_input_is_right(features, x64):
    """Fewer, as many and more features than units, a hundred steps back, in mpmath."""
    draw = np.random.default_rng(features)
    matrices = draw.normal(size=(100, 4, 4)) @ np.diag([10.0, 1.0, 0.1, 0.01])
    gains = draw.normal(size=(100, 4, features))
    path = trace(affine_steps(matrices, gains), jnp.zeros((100, features)), carry=jnp.zeros(5))
    found = input_sensitivity(affine_steps(matrices, gains), path, lags=[0, 50, 99])
    for k, logs in zip((0, 50, 99), np.asarray(found.log_singular_values), strict=True):
        with mp.workdps(800):
            product = mp.matrix(gains[99 - k].tolist())
            for matrix in matrices[100 - k :]:
                product = mp.matrix(matrix.tolist()) * product
            tall = product if features <= 4 else product.T
            exact = [float(mp.log(v)) for v in mp.svd_r(tall, compute_uv=False)]
        np.testing.assert_allclose(logs[: len(exact)], exact, rtol=0, atol=1e-9)
        assert np.all(logs[len(exact) :] == -np.inf)  # the counter, which no input reaches


@pytest.mark.slow
def test_leaky_integrator_forgets_its_inputs_evenly(x64):
    path = trace(lambda s, x: (0.5 * s + 3 * x, s), jnp.ones((2000, B, 1)), carry=jnp.ones((B, 1)))
    found = input_sensitivity(lambda s, x: (0.5 * s + 3 * x, s), path)
    exact = np.log(3) + np.asarray(found.lags) * np.log(0.5)
    np.testing.assert_allclose(
        found.log_singular_values[..., 0], np.stack([exact] * B, -1), rtol=1e-12
    )
    assert float(found.rate.value) == pytest.approx(np.log(0.5))
    assert (len(found.lags), found.lags[0], found.lags[-1]) == (20, 0, 1999)


@pytest.mark.slow
def test_inputs_without_influence_are_minus_infinity(x64):
    path = trace(lambda s, x: (0.5 * s, s), jnp.ones((T, F)), carry=jnp.ones(2))
    found = input_sensitivity(lambda s, x: (0.5 * s, s), path)
    assert found.log_singular_values.shape == (T, 2)
    assert np.all(found.log_singular_values == -np.inf)


@pytest.mark.parametrize("lags", [[-1], [T], [1.0], []])
def test_other_input_lags_are_refused(lags):
    cell, path = travelled("gru", dtype=jnp.float32)
    with pytest.raises(InputError, match=r"^lags: got"):
        input_sensitivity(cell, path, lags)


@pytest.mark.parametrize(
    ("matrices", "inputs_", "argument"),
    [
        (jnp.ones((5, 2, 2)), jnp.ones((5, 3, 2)), "inputs"),
        (jnp.ones((5, 2, 2)), jnp.ones((5, 2)), "inputs"),
        (jnp.ones((5, 2, 2)), jnp.ones((5, 2, 3), int), "inputs"),
        (jnp.ones((5, 2, 2)), jnp.full((5, 2, 3), jnp.nan), "inputs"),
        (jnp.ones((5, 2, 3)), jnp.ones((5, 2, 3)), "matrices"),
    ],
)
def test_matrices_that_do_not_fit_are_refused(matrices, inputs_, argument):
    with pytest.raises(InputError, match=rf"^{argument}: got"):
        input_sensitivity_of(matrices, inputs_)


def test_float32_products_are_taken_in_float64():
    path = trace(lambda s, x: (0.1 * s + x, s), jnp.ones((500, 1)), carry=jnp.ones(1))
    found = input_sensitivity(lambda s, x: (0.1 * s + x, s), path, lags=[499])
    assert found.log_singular_values.dtype == jnp.float32
    np.testing.assert_allclose(found.log_singular_values, [[499 * np.log(0.1)]], rtol=1e-6)


def test_lags_in_pieces_are_those_of_one_call(monkeypatch):
    cell = jaxrnn.make_cell("gru", 2, 4, rngs=nnx.Rngs(0))
    xs = jax.random.normal(jax.random.key(1), (11, 3, 2))
    found = []
    for piece in (2**20, 44):  # all eleven lags at once; four, four, and the rest
        monkeypatch.setattr(module, "_PIECE", piece)
        found.append(lag_contributions(cell, xs, lambda y: (y[-1] ** 2).sum()))
    assert found[1].lags.tolist() == list(range(11))
    # The same sums in the same order, but for how XLA fuses the first step of a piece.
    for whole, pieces in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(whole, pieces, rtol=1e-5, atol=1e-6)


def test_lags_of_a_long_sequence_can_be_interrupted():
    """All 20,000 lags would take half an hour."""
    cell = jaxrnn.make_cell("elman-tanh", 1, 4, rngs=nnx.Rngs(0))
    xs = jnp.zeros((20_000, 1))
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 5)
    try:
        with pytest.raises(KeyboardInterrupt):
            lag_contributions(cell, xs, lambda y: (y**2).sum() + y.sum())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGINT, interrupt)
