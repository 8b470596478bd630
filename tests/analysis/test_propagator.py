"""The BPTT product.

Oracles: ``jax.jacfwd`` through the composed steps; explicit products of few matrices; closed forms, Gelfand's
bounds and mpmath for many.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from scipy.stats import ortho_group

from jaxrnn.analysis import jacobians, propagator, trace
from jaxrnn.analysis._propagator import directions_of, propagator_directions, propagator_of
from jaxrnn.checks import InputError
from tests.analysis.examples import (
    B,
    T,
    as_carry,
    as_state,
    assert_close,
    compiles,
    elman,
    identity,
    inputs,
    make,
    travelled,
    zero_weights,
)
from tests.zoo import every_plain_cell

LONG = 10_000


def repeated(matrix, steps=LONG, dtype=jnp.float64):
    return jnp.broadcast_to(jnp.asarray(matrix, dtype), (steps, *np.shape(matrix)))


def log_svd(matrix):
    with np.errstate(divide="ignore"):
        return np.log(np.linalg.svd(np.asarray(matrix), compute_uv=False))


def sensitivity(cell, path, lag):
    """∂s_T/∂s_{T−k} of every sequence by forward-mode differentiation of k composed steps."""
    start = path.length - lag

    def steps(state, xs):
        for x in xs:
            state = as_state(cell(as_carry(cell, state), x)[0])
        return state

    return jax.vmap(jax.jacfwd(steps), in_axes=(0, 1))(path.states[start], path.xs[start:])


@every_plain_cell
def test_equals_differentiation_through_the_steps(name, x64):
    cell, path = travelled(name)
    found = propagator(cell, path)
    for lag in (1, 3, T):
        log_sigma = found.log_singular_values[lag - 1]
        explicit = np.linalg.svd(sensitivity(cell, path, lag), compute_uv=False)
        # The explicit product, unlike ours, loses its small values in the rounding of the large ones.
        rounding = 8 * np.finfo(np.float64).eps * explicit[:, :1]
        assert np.all(np.abs(np.exp(log_sigma) - explicit) <= 1e-10 * explicit + rounding)


@every_plain_cell
def test_sum_of_logs_is_the_sum_of_log_determinants(name, x64):
    cell, path = travelled(name)
    _, per_step = np.linalg.slogdet(jacobians(cell, path))
    found = propagator(cell, path)
    expected = np.cumsum(per_step[::-1], axis=0)  # lag k: the last k steps
    assert_close(found.log_singular_values.sum(axis=-1), expected, 1e-10)


ORDERED = np.array([[[1.0, 2.0], [0.0, 1.0]], [[1.0, 0.0], [3.0, 1.0]], [[2.0, 1.0], [1.0, 3.0]]])
"""J_1, J_2, J_3, no two of which commute."""


def test_later_steps_stand_on_the_left(x64):
    first, second, third = ORDERED
    found = propagator_of(jnp.asarray(ORDERED)).log_singular_values
    for log_sigma, product in zip(
        found, (third, third @ second, third @ second @ first), strict=True
    ):
        assert_close(log_sigma, log_svd(product), 1e-14)


@pytest.mark.parametrize(
    "wrong",
    [
        functools.reduce(np.matmul, ORDERED),  # J_1 J_2 J_3
        functools.reduce(lambda p, j: j.T @ p, ORDERED),  # transposes, propagated forward in time
    ],
)
def test_other_orders_would_show(wrong, x64):
    found = propagator_of(jnp.asarray(ORDERED)).log_singular_values[-1]
    assert np.all(np.abs(found - log_svd(wrong)) > 0.1)


@pytest.mark.parametrize("radius", [0.1, 2.0])
def test_ten_thousand_steps_follow_gelfand(radius, x64):
    """W^k = X Λ^k X⁻¹: each log σ_i is k ln |λ_i| within ln κ(X), and their sum k ln |det W| exactly."""
    matrix = np.random.default_rng(3).normal(size=(4, 4))
    matrix *= radius / np.abs(np.linalg.eigvals(matrix)).max()
    values, vectors = np.linalg.eig(matrix)
    found = propagator_of(repeated(matrix))
    k = np.asarray(found.lags)[:, None]
    rates = -np.sort(-np.log(np.abs(values)))

    assert k[-1] == LONG
    assert rates[0] == pytest.approx(np.log(radius))
    bound = np.log(np.linalg.cond(vectors)) + 1e-9
    assert np.all(np.abs(found.log_singular_values - k * rates) < bound)
    expected = k[:, 0] * np.linalg.slogdet(matrix)[1]
    np.testing.assert_allclose(found.log_singular_values.sum(axis=-1), expected, rtol=1e-12)
    # Two ends of a line within the bound: the slope is as near as this, and least squares nearer.
    assert float(found.rate.value) == pytest.approx(np.log(radius), abs=6 * bound / LONG)


@pytest.mark.parametrize("alpha", [0.1, 2.0])
def test_ten_thousand_rotations_scale_exactly(alpha, dtype):
    turns = ortho_group.rvs(4, size=LONG, random_state=0)
    found = propagator_of(jnp.asarray(alpha * turns, dtype))
    exact = np.broadcast_to(
        np.asarray(found.lags)[:, None] * np.log(alpha), found.log_singular_values.shape
    )
    # The logarithm is summed step by step, each addition rounded to ε/2 of the sum: kε/4 of it in k steps.
    # The matrices are themselves orthogonal only to some ε: as much again.
    np.testing.assert_allclose(
        found.log_singular_values, exact, rtol=LONG * np.finfo(dtype).eps / 2
    )
    assert found.log_singular_values.dtype == dtype


def test_lstm_without_weights_forgets_by_its_gate(x64):
    """ln σ(1) = −0.313262 a step along c; the directions of h are lost in one step."""
    cell = zero_weights("lstm", (0.0, 1.0, 0.0, 0.0))
    found = propagator(cell, trace(cell, jnp.zeros((T, B, 3))))
    logs = found.log_singular_values
    size = logs.shape[-1]
    assert float(found.rate.value) == pytest.approx(-0.313262, abs=5e-7)
    assert np.all(logs[..., size // 2 :] == -np.inf)
    # At c = 0, s_T sees c through (c, h) = (1, ½): a factor √1.25, whatever the lag.
    lags = np.asarray(found.lags)[:, None, None]
    expected = lags * np.log(1 / (1 + np.exp(-1.0))) + np.log(1.25) / 2
    assert_close(
        logs[..., : size // 2], np.broadcast_to(expected, (*logs.shape[:2], size // 2)), 1e-13
    )


@pytest.mark.parametrize("bias", [-2.0, 0.0, 4.0])
def test_gru_without_weights_forgets_by_its_update_gate(bias, x64):
    cell = zero_weights("gru", (0.0, bias, 0.0))
    found = propagator(cell, trace(cell, jnp.zeros((T, B, 3))))
    exact = np.asarray(found.lags)[:, None, None] * -np.log1p(np.exp(-bias))
    logs = found.log_singular_values
    assert_close(logs, np.broadcast_to(exact, logs.shape), 1e-13)


def test_dead_relu_units_are_lost_and_the_others_kept(x64):
    """U = I: a unit whose state is negative is 0 after a step and stays so; its slope is 0 throughout."""
    cell = elman(np.eye(4), jax.nn.relu)
    start = jnp.array([[1.0, 2.0, -1.0, -2.0], [1.0, -1.0, -1.0, -1.0]])
    logs = propagator(cell, trace(cell, jnp.zeros((T, B, 1)), carry=start)).log_singular_values
    left = np.array([[0.0, 0.0, -np.inf, -np.inf], [0.0, -np.inf, -np.inf, -np.inf]])
    np.testing.assert_array_equal(logs, np.broadcast_to(left, logs.shape))


@pytest.mark.parametrize("batch", [(B,), (B, 3)])
def test_sequences_do_not_mix(batch, x64):
    matrices = np.random.default_rng(0).normal(size=(T, *batch, 4, 4))
    together = propagator_of(jnp.asarray(matrices)).log_singular_values
    assert together.shape == (T, *batch, 4)
    for place in np.ndindex(batch):
        alone = propagator_of(jnp.asarray(matrices[:, *place])).log_singular_values
        assert_close(together[:, *place], alone, 1e-13)


@pytest.mark.parametrize("steps", [1, 5])
def test_few_steps_are_all_lags_by_default(steps):
    found = propagator_of(repeated(np.eye(2), steps, jnp.float32))
    assert found.lags.tolist() == [*range(1, steps + 1)]


def test_many_steps_are_sampled_evenly_by_default():
    lags = propagator_of(repeated(np.eye(2), 1000, jnp.float32)).lags
    assert (len(lags), lags[0], lags[-1]) == (20, 1, 1000)
    assert set(np.diff(lags).tolist()) == {52, 53}  # 999 / 19 = 52.6


@pytest.mark.parametrize("lags", [[3, 1, 2], [1, 2, 3, 3], np.array([2, 3, 1]), (3, 2, 1)])
def test_lags_come_back_sorted_and_once(lags, x64):
    found = propagator_of(jnp.asarray(ORDERED), lags)
    assert found.lags.tolist() == [1, 2, 3]
    expected = propagator_of(jnp.asarray(ORDERED)).log_singular_values
    np.testing.assert_array_equal(found.log_singular_values, expected)


@pytest.mark.parametrize("lags", [[0], [-1, 2], [4], [1, 4], [1.0], [1.5], [], [True], "12"])
def test_other_lags_are_refused(lags):
    with pytest.raises(InputError, match=r"^lags: got"):
        propagator_of(jnp.asarray(ORDERED, jnp.float32), lags)


def test_trajectory_that_is_not_finite_is_refused():
    cell, path = travelled("gru", dtype=jnp.float32)
    with pytest.raises(InputError, match=r"^trajectory.carries"):
        propagator(cell, dataclasses.replace(path, carries=path.carries.at[0, 0, 0].set(jnp.inf)))


def test_rate_joins_the_sequences(x64):
    alphas = np.array([0.5, 0.25])
    matrices = np.broadcast_to(alphas[:, None, None] * np.eye(4), (T, B, 4, 4))
    rate = propagator_of(jnp.asarray(matrices)).rate
    assert float(rate.value) == pytest.approx(np.log(alphas).mean())
    assert float(rate.stderr) == pytest.approx(np.log(2) / 2)  # ln ½ and ln ¼: half their distance
    assert float(rate.lag) == T


def test_linear_cell_gives_the_powers_of_its_matrix(x64):
    matrix = np.triu(np.random.default_rng(0).normal(size=(4, 4)))
    cell = elman(matrix, identity)
    found = propagator(cell, trace(cell, jnp.ones((T, B, 1))))
    for k in range(T):
        expected = log_svd(np.linalg.matrix_power(matrix, k + 1))
        assert_close(found.log_singular_values[k], np.stack([expected] * B), 1e-11)


def test_new_weights_do_not_compile_again(caplog):
    def run(seed, length=T):
        cell = make("gru", jnp.float32, seed)
        propagator(cell, trace(cell, inputs(cell, dtype=jnp.float32, length=length)[0]))

    run(0)
    assert not compiles(caplog, lambda: run(1))
    assert compiles(caplog, lambda: run(1, 13))  # a new length, so the log can tell


@pytest.mark.parametrize(
    ("matrices", "message"),
    [
        (jnp.ones((3, 2, 4)), r"^matrices: got float32\[3, 2, 4\]; expected square"),
        (jnp.ones((2, 2)), r"^matrices: got float32\[2, 2\]; expected square"),
        (
            jnp.ones((3, 2, 2)).at[2, 1, 0].set(jnp.nan),
            r"^matrices: got 1 non-finite values, the first at \[2, 1, 0\]",
        ),
    ],
)
@pytest.mark.parametrize("function", [propagator_of, directions_of])
def test_other_matrices_are_refused(function, matrices, message):
    with pytest.raises(InputError, match=message):
        function(matrices)


# Directions. A vector comes with either sign; where two values are equal, with any turn of the two.


def exact_svd(matrices, digits):
    """Log singular values, left and right vectors of J_T … J_1, as columns, from mpmath."""
    with mp.workdps(digits):
        product = mp.eye(matrices.shape[-1])
        for matrix in matrices:
            product = mp.matrix(matrix.tolist()) * product
        u, s, v = mp.svd_r(product)
        logs = [float(mp.log(value)) for value in s]
        return np.array(logs), *(np.array(a.tolist(), float) for a in (u, v.T))


def up_to_sign(actual, expected):
    """Return the expected columns with the signs of the actual ones."""
    return expected * np.sign(np.sum(np.asarray(actual) * expected, axis=0))


GRADES = np.diag([10.0, 3.0, 1.0, 0.3, 0.1])


def turned(draw, middle, steps):
    turns = ortho_group.rvs(len(middle), size=2 * steps, random_state=draw)
    return turns[:steps] @ middle @ turns[steps:]


LONG_PRODUCTS = {
    "random": lambda d: d.normal(size=(300, 5, 5)),
    "contracting": lambda d: 0.05 * d.normal(size=(300, 5, 5)),
    "graded in random directions": lambda d: turned(d, GRADES, 300),
    "graded in fixed directions": lambda d: GRADES @ (np.eye(5) + 0.1 * d.normal(size=(300, 5, 5))),
    "grades upside down": lambda d: (
        GRADES[::-1, ::-1] @ (np.eye(5) + 0.1 * d.normal(size=(300, 5, 5)))
    ),
}


@pytest.mark.parametrize("family", LONG_PRODUCTS)
def test_directions_of_long_products_are_right(family, x64):
    matrices = LONG_PRODUCTS[family](np.random.default_rng(0))
    logs, left, right = exact_svd(matrices, 1200)
    assert np.all(np.diff(logs) < -1)  # far enough apart for each vector to be its own
    found = directions_of(matrices, [300])
    np.testing.assert_allclose(found.log_singular_values[0], logs, rtol=0, atol=1e-10)
    # A vector is as good as the last few steps leave it: their condition, up to 330, in roundings.
    np.testing.assert_allclose(found.left[0], up_to_sign(found.left[0], left), atol=1e-11)
    np.testing.assert_allclose(found.right[0], up_to_sign(found.right[0], right), atol=1e-11)


def test_nearly_degenerate_directions_span_the_right_plane(x64):
    """σ₁/σ₂ = 1 + 10⁻¹⁰ after 200 steps, σ₃ 100 times as small: the plane of the two is sharp."""
    draw = np.random.default_rng(0)
    turns = ortho_group.rvs(4, size=201, random_state=draw)
    step = np.diag([1.1, 1.1 * (1 + 5e-13), 1.1 * 100 ** (-1 / 200), 0.5])
    matrices = turns[1:] @ step @ np.swapaxes(turns[:-1], -1, -2)
    logs, left, right = exact_svd(matrices, 300)
    assert 0 < logs[0] - logs[1] < 1e-9
    found = directions_of(matrices, [200], leading=2)
    for mine, exact in ((found.left[0], left[:, :2]), (found.right[0], right[:, :2])):
        np.testing.assert_allclose(mine @ mine.T, exact @ exact.T, rtol=0, atol=1e-11)


@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.slow), 5])
def test_directions_rebuild_short_products(size, x64):
    matrices = np.random.default_rng(size).normal(size=(4, B, size, size))
    found = directions_of(matrices)
    assert found.left.shape == found.right.shape == (4, B, size, size)
    for k in range(1, 5):
        for b in range(B):
            expected = functools.reduce(lambda p, j: j @ p, matrices[4 - k :, b])
            sigma = np.exp(np.asarray(found.log_singular_values[k - 1, b]))
            left, right = np.asarray(found.left[k - 1, b]), np.asarray(found.right[k - 1, b])
            assert_close((left * sigma) @ right.T, expected, 1e-12)
            for vectors in (left, right):
                assert_close(vectors.T @ vectors, np.eye(size), 1e-13)
    values = propagator_of(matrices).log_singular_values
    np.testing.assert_allclose(found.log_singular_values, values, rtol=0, atol=1e-13)


@every_plain_cell
def test_a_change_along_the_right_arrives_along_the_left(name, x64):
    cell, path = travelled(name)
    found = propagator_directions(cell, path, [T], leading=1)
    through = np.asarray(sensitivity(cell, path, T))
    for b in range(B):
        arrived = through[b] @ found.right[0, b, :, 0]
        expected = np.exp(found.log_singular_values[0, b]) * found.left[0, b, :, 0]
        assert_close(arrived, expected, 1e-12)


def test_lost_directions_complete_an_orthonormal_basis(x64):
    """U = I and dead ReLU units: what is lost are the dead units, at the start and at the end."""
    cell = elman(np.eye(4), jax.nn.relu)
    start = jnp.array([1.0, -1.0, 2.0, -2.0])
    found = propagator_directions(cell, trace(cell, jnp.zeros((T, 1)), carry=start), [T])
    assert found.log_singular_values[0].tolist() == [0, 0, -np.inf, -np.inf]
    lost = np.diag([0.0, 1.0, 0.0, 1.0])
    for vectors in (np.asarray(found.left[0]), np.asarray(found.right[0])):
        assert_close(vectors.T @ vectors, np.eye(4), 1e-14)
        assert_close(vectors[:, 2:] @ vectors[:, 2:].T, lost, 1e-14)


def test_directions_neither_overflow_nor_lose_precision():
    """Ten thousand float32 steps of 10 and of 0.1, far out of range: computed in float64."""
    found = directions_of(repeated(np.diag([0.1, 10.0]), dtype=jnp.float32), [LONG], leading=1)
    assert found.left.dtype == found.log_singular_values.dtype == jnp.float32
    np.testing.assert_allclose(found.log_singular_values, [[LONG * np.log(10)]], rtol=1e-6)
    np.testing.assert_allclose(np.abs(found.left[0, :, 0]), [0, 1], atol=1e-6)
    np.testing.assert_allclose(np.abs(found.right[0, :, 0]), [0, 1], atol=1e-6)


@pytest.mark.parametrize("leading", [0, 3, True])
def test_other_numbers_of_directions_are_refused(leading):
    with pytest.raises(InputError, match=r"^leading: got"):
        directions_of(ORDERED.astype(np.float32), leading=leading)
