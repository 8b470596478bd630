"""Rates and their errors. Oracles: ``numpy.polyfit``; the spread of repeated synthetic experiments."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import t as student

from jaxrnn.analysis.rates import rate_by_lag
from tests.analysis.examples import assert_close


def walks(draw, *shape, slope=-0.3, noise=1.0):
    """Sums of independent increments [K, *shape]: what log norms by lag are, when steps are independent."""
    return np.cumsum(slope + noise * draw.normal(size=shape), axis=0)


@pytest.mark.parametrize("lags", [np.arange(20), np.arange(20)[::-1], np.arange(1, 21) ** 2])
def test_value_is_the_mean_of_least_squares_slopes(lags, dtype):
    logs = walks(np.random.default_rng(0), 20, 5)
    slopes = np.polyfit(lags, logs, 1)[0]
    rate = rate_by_lag(jnp.asarray(lags), jnp.asarray(logs, dtype))
    tolerance = {"float32": 1e-5, "float64": 1e-12}[dtype.name]
    assert rate.value.dtype == rate.stderr.dtype == dtype
    assert_close(rate.value, slopes.mean(), tolerance)
    assert_close(rate.stderr, slopes.std(ddof=1) / np.sqrt(5), tolerance)
    assert float(rate.dof) == 4
    assert float(rate.lag) == lags.max()


def test_batch_axes_are_sequences(x64):
    logs = jnp.asarray(walks(np.random.default_rng(0), 20, 2, 3))
    one, two = rate_by_lag(jnp.arange(20), logs), rate_by_lag(jnp.arange(20), logs.reshape(20, 6))
    assert jax.tree.leaves(one) == jax.tree.leaves(two)


def test_points_at_minus_infinity_are_left_out(x64):
    logs = walks(np.random.default_rng(0), 20, 3)
    logs[:4, 0] = logs[15:, 1] = logs[17:, :] = -np.inf
    lags = np.arange(1, 21)
    slopes = np.array(
        [np.polyfit(lags[ok], y[ok], 1)[0] for y in logs.T for ok in [np.isfinite(y)]]
    )
    rate = rate_by_lag(jnp.asarray(lags), jnp.asarray(logs))
    assert_close(rate.value, slopes.mean(), 1e-12)
    assert_close(rate.stderr, slopes.std(ddof=1) / np.sqrt(3), 1e-12)
    assert float(rate.lag) == 17


def test_sequences_without_two_points_are_left_out(x64):
    logs = walks(np.random.default_rng(0), 20, 4)
    logs[:, 1] = logs[1:, 2] = -np.inf
    found = rate_by_lag(jnp.arange(20), jnp.asarray(logs))
    expected = rate_by_lag(jnp.arange(20), jnp.asarray(logs[:, [0, 3]]))
    assert jax.tree.leaves(found) == jax.tree.leaves(expected)
    assert float(found.dof) == 1


def test_nothing_finite_gives_no_rate(x64):
    for sequences in (1, 3):
        rate = rate_by_lag(jnp.arange(20), jnp.full((20, sequences), -jnp.inf))
        assert np.isnan(rate.value)
        assert np.isnan(rate.stderr)
        assert float(rate.dof) == float(rate.lag) == 0


def test_one_sequence_has_the_error_of_its_blocks(x64):
    """31 points: 30 increments, in 5 blocks of 6."""
    logs = walks(np.random.default_rng(0), 31)
    lags = np.arange(31) * 2
    means = (np.diff(logs) / 2).reshape(5, 6).mean(axis=1)
    for shape in ((31,), (31, 1)):
        rate = rate_by_lag(jnp.asarray(lags), jnp.asarray(logs.reshape(shape)))
        assert_close(rate.value, np.polyfit(lags, logs, 1)[0], 1e-12)
        assert_close(rate.stderr, means.std(ddof=1) / np.sqrt(5), 1e-12)
        assert float(rate.dof) == 4


def test_blocks_leave_out_points_at_minus_infinity(x64):
    logs = np.linspace(0.0, -5.0, 31)
    logs[:8] = -np.inf  # the first block is lost, the second has four increments left
    rate = rate_by_lag(jnp.arange(31), jnp.asarray(logs))
    assert float(rate.value) == pytest.approx(-1 / 6)
    assert float(rate.stderr) == pytest.approx(0, abs=1e-14)
    assert float(rate.dof) == 3


@pytest.mark.parametrize(
    ("points", "has_value", "has_error"),
    [(1, False, False), (2, True, False), (4, True, False), (5, True, True)],
)
def test_too_few_points_give_nan(points, has_value, has_error, x64):
    rate = rate_by_lag(jnp.arange(points), jnp.asarray(walks(np.random.default_rng(0), points)))
    assert np.isfinite(rate.value) == has_value
    assert np.isfinite(rate.stderr) == has_error


@pytest.mark.parametrize("sequences", [4, 12])
def test_error_is_calibrated(sequences, x64):
    """Of 2000 experiments with random walks of known slope, intervals of 95 % hold it in 95 %."""
    truth, points, experiments = -0.3, 40, 2000
    logs = walks(np.random.default_rng(1), points, experiments, sequences, slope=truth)
    rate = jax.vmap(rate_by_lag, in_axes=(None, 1))(jnp.arange(points), jnp.asarray(logs))
    deviation = np.abs(rate.value - truth) / rate.stderr
    # A share of 95 % is found to ±0.5 % in 2000 trials.
    assert np.mean(deviation < student.ppf(0.975, rate.dof)) == pytest.approx(0.95, abs=0.015)
    # With ±1.96 in the place of Student's t: what t with so many degrees holds within 1.96.
    expected = 1 - 2 * student.sf(1.96, sequences - 1)
    assert np.mean(deviation < 1.96) == pytest.approx(expected, abs=0.02)


def test_error_of_one_sequence_is_rough_but_not_idle(x64):
    """The value is by least squares, with 6/5 of the variance of a mean increment: 95 % means 93 %."""
    truth, points, experiments = -0.3, 101, 2000
    logs = walks(np.random.default_rng(1), points, experiments, slope=truth)
    rate = jax.vmap(rate_by_lag, in_axes=(None, 1))(jnp.arange(points), jnp.asarray(logs))
    deviation = np.abs(rate.value - truth) / rate.stderr
    assert 0.90 < np.mean(deviation < student.ppf(0.975, rate.dof)) < 0.96
