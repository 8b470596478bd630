"""Memory capacity. Oracles: closed forms, SciPy's Lyapunov equation and least squares, shuffled data."""

from __future__ import annotations

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial import legendre
from scipy.linalg import solve_discrete_lyapunov
from scipy.stats import ortho_group
from scipy.stats import t as student

from jaxrnn.analysis import Trajectory, trace
from jaxrnn.analysis._linear_memory import linear_memory
from jaxrnn.analysis.memory import memory_capacity, processing_capacity
from jaxrnn.checks import InputError
from tests.analysis.examples import assert_close, make


def recorded(states, xs):
    """A trajectory of given states [T, *B, S], those after each input [T, *B, F]."""
    states, xs = np.asarray(states, np.float64), np.asarray(xs, np.float64)
    carries = jnp.asarray(np.concatenate([np.zeros_like(states[:1]), states]))
    return Trajectory(xs=jnp.asarray(xs), carries=carries, outputs=None, batch=states.shape[1:-1])


def uniform(steps, *batch, seed=0, features=1):
    draw = np.random.default_rng(seed)
    return draw.uniform(-1, 1, size=(steps, *batch, features))


def delay_line(xs, size):
    """States [T, *B, size]: the last inputs, zero before the first."""
    padded = np.concatenate([np.zeros((size - 1, *xs.shape[1:])), xs])
    return np.concatenate([padded[size - 1 - k : len(padded) - k] for k in range(size)], axis=-1)


def linear_run(W, v, xs):
    """States [T, S] of s' = W s + v u."""
    s, states = np.zeros(len(v)), []
    for x in xs[:, 0]:
        s = W @ s + v * x
        states.append(s)
    return np.array(states)


def ring(size, alpha):
    """αQ with Q a cyclic shift, driven at one unit."""
    return alpha * np.roll(np.eye(size), 1, axis=0), np.eye(size)[0]


# Closed forms.


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_ring_has_a_staircase(noise):
    """Unit j holds the inputs of lags j, j + N, …, each weaker by α^N: all that can be told apart."""
    size, alpha, lags = 5, 0.9, 40
    found = linear_memory(*ring(size, alpha), lags=lags, noise_variance=noise)
    k = np.arange(lags)
    fading = 1 - alpha ** (2 * size)
    variance = alpha ** (2 * (k % size)) / fading + noise / (1 - alpha**2)
    assert_close(found, alpha ** (2 * k) / variance, 1e-12)


def test_linear_memory_against_a_lyapunov_equation():
    draw = np.random.default_rng(0)
    W = draw.normal(size=(4, 4))
    W *= 0.8 / np.abs(np.linalg.eigvals(W)).max()
    v = draw.normal(size=4)
    C = solve_discrete_lyapunov(W, np.outer(v, v) + 0.05 * np.eye(4))
    powers = np.stack([np.linalg.matrix_power(W, k) @ v for k in range(10)])
    expected = np.einsum("ki,ij,kj->k", powers, np.linalg.inv(C), powers)
    assert_close(linear_memory(W, v, lags=10, noise_variance=0.05), expected, 1e-11)


@pytest.mark.parametrize("size", [1, 3, 10])
def test_linear_memory_sums_to_the_size(size):
    Q = ortho_group.rvs(size, random_state=0) if size > 1 else np.eye(1)
    v = np.random.default_rng(1).normal(size=size)
    assert linear_memory(0.9 * Q, v, lags=400).sum() == pytest.approx(size, abs=1e-9)


def test_nilpotent_network_remembers_as_far_as_it_is_long():
    W = np.diag(np.ones(3), -1)
    assert_close(linear_memory(W, np.eye(4)[0], lags=6), [1, 1, 1, 1, 0, 0], 1e-13)


def test_directions_that_the_input_does_not_reach_hold_nothing():
    W = np.diag([0.5, 0.7, 0.5])
    assert linear_memory(W, np.ones(3), lags=200).sum() == pytest.approx(2, abs=1e-12)
    assert linear_memory(W, np.zeros(3) + np.eye(3)[1], lags=200).sum() == pytest.approx(1)


def test_a_memory_that_hardly_fades_is_refused():
    """0.9996^100 000 is below rounding, 0.9999^100 000 is not."""
    found = linear_memory(np.diag([0.9996]), np.ones(1), lags=2)
    assert_close(found, (1 - 0.9996**2) * np.array([1, 0.9996**2]), 1e-14)
    with pytest.raises(
        InputError, match=r"^kernel: got an impulse response of which 5e-05 is left"
    ):
        linear_memory(np.diag([0.9999]), np.ones(1), lags=2)


# Measured.


def test_delay_line_is_read_without_error(x64):
    xs = uniform(500)
    found = memory_capacity(recorded(delay_line(xs, 6), xs), lags=10, washout=6)
    assert_close(found.capacities[:6], 1.0, 1e-12)
    assert np.abs(found.capacities[6:]).max() < 0.1
    assert found.rank == found.size == 6
    assert found.samples == 490
    horizon = found.horizon()
    assert horizon.lag == horizon.low == horizon.high == 6


def test_capacity_is_the_adjusted_share_of_least_squares(x64):
    draw = np.random.default_rng(0)
    xs = uniform(400, features=2)
    states = draw.normal(size=(400, 7))
    states[:, 0] += xs[:, 0]
    states[5:, 1] += 3 * xs[:-5, 1]
    found = memory_capacity(recorded(states, xs), lags=8, washout=10)
    X = np.concatenate([np.ones((390, 1)), states[10:]], axis=1)
    for k in range(8):
        for f in range(2):
            y = xs[10 - k : 400 - k, f]
            residual = y - X @ np.linalg.lstsq(X, y, rcond=None)[0]
            share = (residual**2).sum() / ((y - y.mean()) ** 2).sum()
            assert found.capacities[k, f] == pytest.approx(1 - share * 389 / 382, abs=1e-12)
    assert found.total == pytest.approx(found.capacities.sum())


def test_network_has_the_memory_of_its_closed_form(x64):
    draw = np.random.default_rng(3)
    W = 0.9 * ortho_group.rvs(8, random_state=0)
    v = draw.normal(size=8)
    xs = uniform(20_000)
    found = memory_capacity(recorded(linear_run(W, v, xs), xs), lags=60, washout=200)
    expected = linear_memory(W, v, lags=60)
    deviation = (found.capacities[:, 0] - expected) / found.stderr[:, 0]
    assert (found.stderr < 0.02).all()
    # Student's t of 9 degrees: beyond 6 with probability 2e-4 a lag.
    assert np.abs(deviation).max() < 6
    assert 0.5 < np.std(deviation) < 2
    assert abs(found.total - 8) < 4 * found.total_stderr + 1e-3
    assert found.total < 8 + 4 * found.total_stderr


def test_noise_is_no_memory(x64):
    """Uncorrected, 200 lags of a state of 30 would show 200 · 30/1000 = 6 of memory."""
    draw = np.random.default_rng(0)
    totals, errors = [], []
    for seed in range(30):
        xs = uniform(1200, seed=seed)
        found = memory_capacity(recorded(draw.normal(size=(1200, 30)), xs), lags=200, washout=200)
        totals.append(found.total)
        errors.append(found.total_stderr)
    scatter = np.std(totals, ddof=1)
    assert abs(np.mean(totals)) < 4 * scatter / np.sqrt(30)
    assert scatter < 0.5
    # A standard deviation of 30 values is known to 13 %, each jackknife of ten pieces to about 25 %.
    assert scatter / np.sqrt(np.mean(np.square(errors))) == pytest.approx(1, abs=0.5)


def test_error_is_calibrated(x64):
    """Repeated records of one network scatter as the standard errors say."""
    W, v = ring(4, 0.8)
    rows = [
        memory_capacity(recorded(linear_run(W, v, xs), xs), lags=8, washout=60)
        for xs in (uniform(1500, seed=s) for s in range(60))
    ]
    values = np.stack([row.capacities[:, 0] for row in rows])
    errors = np.sqrt(np.mean([row.stderr[:, 0] ** 2 for row in rows], axis=0))
    assert_close(values.std(axis=0, ddof=1) / errors, 1.0, 0.5)
    bias = values.mean(axis=0) - linear_memory(W, v, lags=8)
    assert (np.abs(bias) < 4 * errors / np.sqrt(60) + 1e-3).all()


def test_sequences_of_a_batch_share_one_readout(x64):
    W, v = ring(4, 0.8)
    xs = uniform(300, 12)
    states = np.stack([linear_run(W, v, xs[:, b]) for b in range(12)], axis=1)
    found = memory_capacity(recorded(states, xs), lags=10, washout=50)
    assert found.samples == 12 * 250
    expected = linear_memory(W, v, lags=10)
    assert (np.abs(found.capacities[:, 0] - expected) < 6 * found.stderr[:, 0] + 1e-3).all()
    shaped = recorded(states.reshape(300, 3, 4, 4), xs.reshape(300, 3, 4, 1))
    assert_close(memory_capacity(shaped, lags=10, washout=50).capacities, found.capacities, 1e-12)


def test_features_share_the_capacity(x64):
    xs = uniform(2000, features=2)
    found = memory_capacity(recorded(delay_line(xs, 3), xs), lags=5, washout=3)
    assert_close(found.capacities[:3], 1.0, 1e-12)
    assert np.abs(found.capacities[3:]).max() < 0.05


def test_copies_of_a_unit_add_no_capacity(x64):
    xs = uniform(1000)
    line = delay_line(xs, 3)
    states = np.concatenate([line, 2 * line[:, :1] + line[:, 1:2], 0 * line[:, :1] + 5.0], axis=-1)
    found = memory_capacity(recorded(states, xs), lags=3, washout=3)
    assert found.rank == 3
    assert found.size == 5
    assert_close(found.capacities, 1.0, 1e-12)


def test_single_precision_states_have_its_rank():
    xs = jnp.asarray(uniform(1000), jnp.float32)
    line = jnp.asarray(delay_line(np.asarray(xs), 3), jnp.float32)
    rounded = line[:, :1] * jnp.float32(1 / 3) + line[:, 1:2] * jnp.float32(1 / 7)
    states = jnp.concatenate([line, rounded], axis=-1)
    carries = jnp.concatenate([jnp.zeros((1, 4), jnp.float32), states])
    path = Trajectory(xs=xs, carries=carries, outputs=None, batch=())
    assert memory_capacity(path, lags=3, washout=3).rank == 3


def test_horizon_is_where_the_curve_falls():
    W, v = ring(4, 0.9)
    with jax.enable_x64(True):
        xs = uniform(5000)
        found = memory_capacity(recorded(linear_run(W, v, xs), xs), lags=60, washout=100)
    curve = linear_memory(W, v, lags=60)
    for level in (0.5, 0.3, 0.1):
        horizon = found.horizon(level)
        assert horizon.low <= horizon.lag <= horizon.high
        assert horizon.low <= int(np.argmax(curve < level)) <= horizon.high
    assert memory_capacity(
        recorded(delay_line(uniform(500), 6), uniform(500)), lags=4
    ).horizon().lag == (np.inf)


def test_the_horizon_is_students(x64):
    """Ten pieces: nine degrees of freedom. Three sequences are cut into four pieces each."""
    W, v = ring(4, 0.9)
    for batch, pieces in (((), 10), ((3,), 12)):
        xs = uniform(600, *batch)
        columns = xs.reshape(600, -1)
        runs = [linear_run(W, v, column[:, None]) for column in columns.T]
        states = np.stack(runs, axis=1).reshape(600, *batch, 4)
        found = memory_capacity(recorded(states, xs), lags=60, washout=100)
        assert found.pieces == pieces
        low, high = student.interval(0.95, pieces - 1, found.capacities, found.stderr)
        for level in np.linspace(0.1, 0.9, 4000):
            horizon = found.horizon(level)
            assert horizon.low == np.argmax(low < level)
            assert horizon.high == np.argmax(high < level)


# Processing.


def test_targets_are_all_products_up_to_the_degree(x64):
    xs = uniform(300)
    found = processing_capacity(recorded(delay_line(xs, 2), xs), lags=3, degree=3)
    assert len(found.degrees) == math.comb(6, 3) - 1
    assert len({tuple(row) for row in found.degrees.tolist()}) == len(found.degrees)
    assert set(found.degrees.sum(axis=1)) == {1, 2, 3}
    assert np.all(np.diff(found.degrees.sum(axis=1)) >= 0)


def test_each_product_is_found_where_it_is(x64):
    xs = uniform(800)
    u, u1, u2 = (delay_line(xs, 3)[:, k] for k in range(3))
    states = np.stack([u1, u * u2, 0.5 * (3 * u2**2 - 1) * u1], axis=-1)
    found = processing_capacity(recorded(states, xs), lags=3, degree=3, washout=3)
    held = {(0, 1, 0), (1, 0, 1), (0, 1, 2)}
    for row, capacity in zip(found.degrees.tolist(), found.capacities, strict=True):
        if tuple(row) in held:
            assert capacity == pytest.approx(1, abs=1e-12)
        else:
            assert abs(capacity) < 0.1
    assert found.by_degree.shape == (3,)
    assert (np.abs(found.by_degree - 1) < 4 * found.by_degree_stderr).all()
    assert found.total == pytest.approx(found.by_degree.sum())


@functools.cache
def tanh_network():
    draw = np.random.default_rng(0)
    xs = uniform(20_000)
    W = 0.4 * ortho_group.rvs(4, random_state=1)
    v, b = 1.5 * draw.normal(size=4), 0.5 * draw.normal(size=4)
    s, states = np.zeros(4), []
    for x in xs[:, 0]:
        s = np.tanh(W @ s + v * x + b)
        states.append(s)
    return np.array(states), xs


def test_fading_nonlinear_network_uses_all_its_states(x64):
    found = processing_capacity(recorded(*tanh_network()), lags=5, degree=7, washout=50)
    assert found.total == pytest.approx(4, abs=0.15)  # higher degrees and lags hold the rest
    assert found.total < 4 + 4 * found.total_stderr
    assert found.by_degree[0] < 3.9  # some of it is not linear


def test_first_degree_is_the_memory_capacity(x64):
    path = recorded(*tanh_network())
    linear = memory_capacity(path, lags=4, washout=50)
    found = processing_capacity(path, lags=4, degree=2, washout=50)
    assert_close(found.capacities[:4], linear.capacities[:, 0], 1e-12)
    assert found.by_degree[0] == pytest.approx(linear.total)
    assert found.by_degree_stderr[0] == pytest.approx(linear.total_stderr)


def test_second_degree_against_least_squares(x64):
    states, xs = tanh_network()
    found = processing_capacity(recorded(states, xs), lags=3, degree=2, washout=50)
    X = np.concatenate([np.ones((len(states) - 50, 1)), states[50:]], axis=1)
    row = found.degrees.tolist().index([0, 2, 0])
    y = legendre.legval(xs[49:-1, 0], [0, 0, 1])
    residual = y - X @ np.linalg.lstsq(X, y, rcond=None)[0]
    share = (residual**2).sum() / ((y - y.mean()) ** 2).sum()
    n = len(y)
    assert found.capacities[row] == pytest.approx(1 - share * (n - 1) / (n - 5), abs=1e-12)


# Cells, and what is refused.


def test_whole_carry_of_a_cell_is_read(x64):
    cell = make("lstm")
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(600, 2, 3)))
    found = memory_capacity(trace(cell, xs), lags=10, washout=20)
    assert found.size == 8
    assert found.capacities.shape == found.stderr.shape == (10, 3)
    assert 1 < found.total < 8
    assert found.capacities[0].sum() > found.capacities[8].sum()


def test_too_few_steps_are_refused_with_how_many_would_do(x64):
    xs = uniform(100)
    states = np.random.default_rng(0).normal(size=(100, 45))
    with pytest.raises(
        InputError, match=r"^trajectory: got 100 steps.*at least (\d+) steps"
    ) as error:
        memory_capacity(recorded(states, xs), lags=20)
    (needed,) = map(int, re.findall(r"at least (\d+)", str(error.value)))
    xs, states = uniform(needed), np.random.default_rng(0).normal(size=(needed, 45))
    assert np.isfinite(memory_capacity(recorded(states, xs), lags=20).total)
    with pytest.raises(InputError, match=r"^trajectory: got"):
        memory_capacity(recorded(states[1:], xs[1:]), lags=20)


@pytest.mark.parametrize(
    ("xs", "message"),
    [
        (np.ones((100, 1)), "trajectory: its inputs: got feature 0 that never changes"),
        (uniform(100) * np.nan, "trajectory.xs: got 100 non-finite values"),
        (uniform(100)[:, 0], "trajectory: its inputs: got float64"),
    ],
)
def test_bad_inputs_are_refused(xs, message, x64):
    states = np.random.default_rng(0).normal(size=(100, 2))
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        memory_capacity(recorded(states, xs), lags=2)


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"lags": 0}, "lags"),
        ({"lags": 2, "washout": -1}, "washout"),
        ({"lags": 200, "degree": 5}, "lags, degree"),
        ({"lags": 2, "degree": 0}, "degree"),
    ],
)
def test_bad_settings_are_refused(settings, argument, x64):
    path = recorded(np.random.default_rng(0).normal(size=(100, 2)), uniform(100))
    measure = processing_capacity if "degree" in settings else memory_capacity
    with pytest.raises(InputError, match=f"^{argument}: got"):
        measure(path, **settings)


def test_inputs_that_legendre_polynomials_do_not_fit_are_refused(x64):
    states = np.random.default_rng(0).normal(size=(100, 2))
    for xs in (2 * uniform(100), uniform(100, features=2)):
        with pytest.raises(InputError, match=r"^trajectory: its inputs: got"):
            processing_capacity(recorded(states, xs), lags=2, degree=2)


@pytest.mark.parametrize(
    ("arguments", "settings", "argument"),
    [
        ((np.eye(2), np.ones(2)), {}, "kernel"),
        ((np.ones((2, 3)), np.ones(2)), {}, "kernel"),
        ((0.5 * np.eye(2), np.ones(3)), {}, "input_kernel"),
        ((0.5 * np.eye(2), np.array([1.0, np.nan])), {}, "input_kernel"),
        ((0.5 * np.eye(2), np.ones(2)), {"noise_variance": -1.0}, "noise_variance"),
    ],
)
def test_bad_networks_are_refused(arguments, settings, argument):
    with pytest.raises(InputError, match=f"^{argument}: got"):
        linear_memory(*arguments, lags=3, **settings)


def test_level_outside_zero_and_one_is_refused(x64):
    xs = uniform(100)
    found = memory_capacity(recorded(delay_line(xs, 2), xs), lags=2)
    with pytest.raises(InputError, match=r"^level: got"):
        found.horizon(1.0)


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_the_scale_of_the_input_changes_no_memory_without_noise(scale):
    kernel, entry = np.diag([0.9, 0.5, -0.3]), np.ones(3)
    expected = linear_memory(kernel, entry, lags=10)
    np.testing.assert_allclose(linear_memory(kernel, scale * entry, lags=10), expected, rtol=1e-9)
