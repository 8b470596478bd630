"""Mean-field theory. Oracles: Gaussian integrals in closed form, mpmath, published values, NumPy networks."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy.stats import norm

from jaxrnn.analysis._mean_field import correlation_map, edge_of_chaos, mean_field
from jaxrnn.checks import InputError
from tests.analysis.examples import identity


def hard_tanh(a):
    return jnp.clip(a, -1.0, 1.0)


def step(a):
    return jnp.where(a > 0.7, 1.0, 0.0)


def quad(function, points):
    """∫ function by mpmath, split at the points."""
    integral: Any = mpmath.quad(function, points)
    return integral


def network(gain, size, seed):
    """W [N, N] of a NumPy network, and a random start [N]."""
    draw = np.random.default_rng(seed)
    return draw.normal(size=(size, size)) * gain / np.sqrt(size), draw.normal(size=size)


def run_tanh(gain, size, seed, steps, input_variance=0.0, washout=50):
    """Growth of a small difference, nats a step [T], and the pre-activations [T, N]."""
    W, h = network(gain, size, seed)
    draw = np.random.default_rng(seed + 10_000)
    delta = draw.normal(size=size)
    growth, seen = [], []
    for t in range(washout + steps):
        a, pushed = (W @ np.stack([h, delta], axis=-1)).T
        a = a + np.sqrt(input_variance) * draw.normal(size=size)
        h = np.tanh(a)
        delta = (1 - h**2) * pushed
        length = np.linalg.norm(delta)
        delta /= length
        if t >= washout:
            growth.append(np.log(length))
            seen.append(a)
    return np.array(growth), np.array(seen), W


def log_slope(a):
    return math.log(4) - 2 * np.abs(a) - 2 * np.log1p(np.exp(-2 * np.abs(a)))


# The numbers themselves.


@pytest.mark.parametrize(
    ("gain", "exponent"),
    [(1.2, 0.01648), (1.5, 0.06522), (2, 0.15472), (3, 0.31025), (5, 0.53243), (10, 0.85644)],
)
def test_largest_exponent_of_the_random_tanh_map(gain, exponent):
    theory = mean_field(jnp.tanh, gain)
    assert theory.lyapunov == pytest.approx(exponent, abs=0.5e-5)
    assert theory.status == "converged"
    assert theory.correlation == 0  # an odd φ: copies, and steps, become independent


@pytest.mark.parametrize("gain", [1.5, 10.0])
def test_tanh_against_mpmath(gain):
    theory = mean_field(jnp.tanh, gain)

    def mean(f):
        wide = mpmath.sqrt(theory.variance)
        density = lambda z: mpmath.npdf(z) * f(wide * z)  # noqa: E731
        return 2 * quad(density, [0, 0.05, 0.2, 0.5, 1, 2, 4, 8, 12])

    square = mean(lambda a: mpmath.tanh(a) ** 2)
    assert float(square) == pytest.approx(theory.mean_square, rel=1e-12)
    assert float(gain**2 * square) == pytest.approx(theory.variance, rel=1e-11)
    assert float(gain**2 * mean(lambda a: mpmath.sech(a) ** 4)) == pytest.approx(
        theory.chi, rel=1e-12
    )
    log = float(mean(lambda a: 2 * mpmath.log(mpmath.sech(a))))
    assert log + math.log(gain) - 0.5 == pytest.approx(theory.mean_exponent, abs=1e-11)


@pytest.mark.parametrize(
    ("activation", "square", "slope_square"),
    [
        (identity, lambda q: q, lambda q: 1.0),
        (jax.nn.relu, lambda q: q / 2, lambda q: 0.5),
        (jnp.sin, lambda q: (1 - np.exp(-2 * q)) / 2, lambda q: (1 + np.exp(-2 * q)) / 2),
        (
            jax.lax.erf,
            lambda q: 2 / np.pi * np.arcsin(2 * q / (1 + 2 * q)),
            lambda q: 4 / np.pi / np.sqrt(1 + 4 * q),
        ),
        (
            hard_tanh,
            lambda q: (
                2 * norm.sf(q**-0.5)
                + q * (1 - 2 * norm.sf(q**-0.5) - 2 * q**-0.5 * norm.pdf(q**-0.5))
            ),
            lambda q: 1 - 2 * norm.sf(q**-0.5),
        ),
        (step, lambda q: norm.sf(0.7 * q**-0.5), lambda q: 0.0),
    ],
    ids=["identity", "relu", "sin", "erf", "hard tanh", "step"],
)
@pytest.mark.parametrize("bias", [0.03, 40.0])
def test_gaussian_means_in_closed_form(activation, square, slope_square, bias):
    """Smooth, with kinks, with a jump: at small and large variance."""
    gain = 0.8
    theory = mean_field(activation, gain, bias_variance=bias)
    q = theory.variance
    assert theory.mean_square == pytest.approx(square(q), rel=1e-11)
    assert q == pytest.approx(gain**2 * square(q) + bias, rel=1e-11)
    assert theory.chi == pytest.approx(gain**2 * slope_square(q), rel=1e-11)


@pytest.mark.parametrize("c", [-1.0, -0.6, 0.0, 0.3, 0.999, 1.0])
@pytest.mark.parametrize(
    ("activation", "pair"),
    [
        (
            jax.nn.relu,
            lambda q, c: q / (2 * np.pi) * (np.sqrt(1 - c**2) + c * (np.pi - np.arccos(c))),
        ),
        (jax.lax.erf, lambda q, c: 2 / np.pi * np.arcsin(2 * q * c / (1 + 2 * q))),
        (jnp.sin, lambda q, c: np.exp(-q) * np.sinh(q * c)),
    ],
    ids=["relu", "erf", "sin"],
)
def test_correlation_map_in_closed_form(activation, pair, c):
    gain, bias, drive, shared = 1.1, 0.2, 0.5, -0.4
    settings = {"bias_variance": bias, "input_variance": drive}
    q = mean_field(activation, gain, **settings).variance
    found = correlation_map(activation, c, gain, **settings, input_correlation=shared)
    assert found == pytest.approx((gain**2 * pair(q, c) + bias + shared * drive) / q, abs=1e-11)


@pytest.mark.parametrize(
    ("gain", "bias", "drive", "shared"),
    [(2.0, 0.3, 0.0, 1.0), (1.1, 0.0, 0.2, 0.0), (1.1, 0.0, 0.2, -0.5), (5.0, 0.0, 0.4, 1.0)],
)
def test_correlation_goes_to_its_fixed_point(gain, bias, drive, shared):
    settings = {"bias_variance": bias, "input_variance": drive, "input_correlation": shared}
    theory = mean_field(jax.lax.erf, gain, **settings)
    c, q = 0.5, theory.variance
    for _ in range(2000):  # with the closed form of the map
        c = (gain**2 * 2 / np.pi * np.arcsin(2 * q * c / (1 + 2 * q)) + bias + shared * drive) / q
    assert theory.correlation == pytest.approx(c, abs=1e-10)
    slope = gain**2 * 4 / np.pi / np.sqrt((1 + 2 * q) ** 2 - (2 * q * c) ** 2)
    assert theory.correlation_slope == pytest.approx(slope, rel=1e-9)
    assert theory.correlation_scale == pytest.approx(-1 / np.log(slope), rel=1e-8)


def test_slope_of_the_correlation_map_at_one_is_chi():
    for activation in (jnp.tanh, jax.nn.softplus):
        theory = mean_field(activation, 0.9, bias_variance=0.1)
        step = 1e-5
        change = 1 - correlation_map(activation, 1 - step, 0.9, bias_variance=0.1)
        assert change / step == pytest.approx(theory.chi, abs=1e-4)
        assert theory.correlation == 1


def test_below_the_edge_the_origin_is_all_there_is():
    for gain in (0.3, 0.99):
        theory = mean_field(jnp.tanh, gain)
        assert theory.variance == 0
        assert theory.lyapunov == pytest.approx(math.log(gain), abs=1e-14)
        assert theory.spectral_radius == pytest.approx(gain)
        assert theory.norm == pytest.approx(2 * gain)
        assert theory.mean_exponent == pytest.approx(math.log(gain) - 0.5, abs=1e-14)
        assert theory.correlation == 1
        assert theory.gradient_scale == pytest.approx(-0.5 / math.log(gain))


def test_relu_at_the_origin_has_half_its_units():
    theory = mean_field(jax.nn.relu, 1.0)
    assert theory.variance == 0
    assert theory.chi == pytest.approx(0.5)
    assert theory.norm == pytest.approx(1 + math.sqrt(0.5))  # Marchenko–Pastur with half the rows
    assert theory.mean_exponent == -math.inf


@pytest.mark.parametrize(
    ("activation", "settings", "edge"),
    [
        (jnp.tanh, {}, 1.0),
        (identity, {}, 1.0),
        (jax.nn.relu, {}, math.sqrt(2)),
        (jax.nn.relu, {"bias_variance": 0.3}, math.sqrt(2)),
        pytest.param(lambda a: 2.0 * jnp.tanh(a), {}, 0.5, marks=pytest.mark.slow),
    ],
)
def test_edge_of_chaos_in_closed_form(activation, settings, edge):
    """Beyond the edge of a bounded φ, χ − 1 rises with the square only: √ε is all that can be had."""
    assert edge_of_chaos(activation, **settings).gain == pytest.approx(edge, rel=5e-8)


@pytest.mark.parametrize("drive", [0.1, pytest.param(1.0, marks=pytest.mark.slow)])
def test_input_and_bias_suppress_chaos(drive):
    """erf with drive s: q = g² (2/π) arcsin(2q/(1 + 2q)) + s and g² 4/π = √(1 + 4q)."""

    def equations(gain, q):
        return [
            gain**2 * 2 / mpmath.pi * mpmath.asin(2 * q / (1 + 2 * q)) + drive - q,
            gain**2 * 4 / mpmath.pi - mpmath.sqrt(1 + 4 * q),
        ]

    expected = float(mpmath.findroot(equations, (1.2, 0.5 + drive))[0])
    for bias, white in ((0.0, drive), (drive, 0.0)):
        theory = edge_of_chaos(jax.lax.erf, bias_variance=bias, input_variance=white)
        assert theory.gain == pytest.approx(expected, rel=1e-9)
        assert theory.chi == pytest.approx(1, abs=1e-9)
        assert theory.gain > math.sqrt(math.pi) / 2  # without: g φ'(0) = 1


def test_no_edge_is_said():
    theory = edge_of_chaos(jnp.tanh, bracket=(2.0, 3.0))
    assert theory.status == "no edge within the bracket"
    assert math.isnan(theory.gain)
    assert math.isnan(theory.lyapunov)


@pytest.mark.parametrize(
    ("activation", "gain", "bias"),
    [
        (jax.nn.relu, 1.5, 0.1),
        (identity, 1.01, 0.0),
        (jnp.exp, 1.0, 0.0),
        (jnp.square, 2.0, 1.0),
        (jax.nn.relu, math.sqrt(2), 0.1),  # critical: by the bias alone
        (jax.nn.relu, math.sqrt(2), 5e-13),
        (identity, 1.0, 0.3),
    ],
)
def test_variance_that_diverges_is_said(activation, gain, bias):
    theory = mean_field(activation, gain, bias_variance=bias)
    assert theory.status == "variance diverges"
    assert theory.variance == math.inf
    assert math.isnan(theory.chi)
    assert math.isnan(theory.lyapunov)
    assert math.isnan(correlation_map(activation, 0.5, gain, bias_variance=bias))


def test_a_relu_just_below_its_critical_gain_settles_far_out():
    """q = σ_b²/(1 − g²/2), to the accuracy that 1 − g²/2 has itself in float64."""
    gain = math.sqrt(2 * (1 - 4e-13))
    theory = mean_field(jax.nn.relu, gain, bias_variance=0.1)
    assert theory.status == "converged"
    exact = 0.1 / (1 - mpmath.mpf(gain) ** 2 / 2)
    assert theory.variance == pytest.approx(float(exact), rel=0.01)


@pytest.mark.parametrize("number", [np.float32, np.float16, jnp.float32])
def test_numbers_of_low_precision_do_not_lower_that_of_the_result(number):
    assert mean_field(jnp.tanh, number(1.5)) == mean_field(jnp.tanh, 1.5)


def test_the_ends_of_a_bracket_may_be_of_low_precision():
    ends = (np.float16(0.5), np.float16(3))
    assert edge_of_chaos(identity, bracket=ends) == edge_of_chaos(identity, bracket=(0.5, 3.0))


def test_activity_that_dies():
    """At and below the edge copies come together; a slope that fades with the activity has no gain there."""
    critical = mean_field(jnp.tanh, 1.0)
    assert (critical.variance, critical.correlation) == (0.0, 1.0)
    square = mean_field(jnp.square, 0.1)
    assert (square.variance, square.mean_square, square.chi, square.norm) == (0.0, 0.0, 0.0, 0.0)
    assert square.mean_exponent == -math.inf
    root = mean_field(lambda a: jnp.sign(a) * jnp.abs(a) ** 1.5, 0.1)
    assert (root.chi, root.norm, root.mean_exponent) == (0.0, 0.0, -math.inf)
    assert mean_field(lambda a: 1e-80 * a, 1.0).chi == pytest.approx(1e-160, rel=1e-6)


def test_logarithm_of_a_slope_that_fades():
    """tanh and sigmoid are taken exactly; of others it is said when rounding has taken the slope."""
    theory = mean_field(jax.nn.sigmoid, 60.0)
    wide = mpmath.sqrt(theory.variance)
    density = lambda z: mpmath.npdf(z) * (-2 * mpmath.log(2 * mpmath.cosh(wide * z / 2)))  # noqa: E731
    log = 2 * quad(density, [0, 0.05, 0.2, 0.5, 1, 2, 4, 8, 12])
    assert theory.mean_exponent == pytest.approx(math.log(60) - 0.5 + float(log), abs=1e-10)
    assert math.isnan(mean_field(lambda a: 1.0 * jnp.tanh(a), 10.0).mean_exponent)
    assert mean_field(lambda a: 1.0 * jnp.tanh(a), 1.5).mean_exponent == pytest.approx(
        mean_field(jnp.tanh, 1.5).mean_exponent, abs=1e-9
    )
    assert mean_field(hard_tanh, 2.0).mean_exponent == -math.inf
    sine = mean_field(jnp.sin, 1.5)  # the slope crosses zero: a logarithm that can be integrated
    wide = float(np.sqrt(sine.variance))
    # ln|2 cos a| = Σ (−1)^(k+1) cos(2ka)/k, and E cos(2ka) = e^(−2k²q)
    k = np.arange(1, 200)
    series = ((-1.0) ** (k + 1) * np.exp(-2 * k**2 * wide**2) / k).sum() - math.log(2)
    assert sine.mean_exponent == pytest.approx(math.log(1.5) - 0.5 + series, abs=1e-10)


# Against networks.


def draws(gain, drive, size, steps=200, count=36):
    """Exponent, mean exponent and variance of each of several draws."""
    rows = []
    for seed in range(count):
        growth, a, W = run_tanh(gain, size, seed, steps, drive)
        _, log_det = np.linalg.slogdet(W)
        rows.append((growth.mean(), log_det / size + log_slope(a).mean(), (a**2).mean()))
    return np.array(rows)


@pytest.mark.parametrize(("gain", "drive"), [(3.0, 0.0), (5.0, 0.0), (1.5, 0.5)])
def test_networks_of_finite_size(gain, drive):
    """What does not average out falls as 1/N: from two sizes it is known, and the rest is the theory's."""
    theory = mean_field(jnp.tanh, gain, input_variance=drive)
    small, large = (draws(gain, drive, size) for size in (128, 512))
    limit = (4 * large.mean(axis=0) - small.mean(axis=0)) / 3
    variances = (16 * large.var(axis=0, ddof=1) + small.var(axis=0, ddof=1)) / 9
    error = 4 * np.sqrt(variances / len(large))
    expected = np.array([theory.lyapunov, theory.mean_exponent, theory.variance])
    assert (np.abs(limit - expected) < error).all()
    assert (error < 0.03 * np.array([1.0, 1.0, theory.variance])).all()  # the test can tell 3 %


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gain", "exponent", "mean_exponent"), [(3.0, 0.30958, -2.27390), (5.0, 0.53118, -4.90942)]
)
def test_a_network_of_4096_units(gain, exponent, mean_exponent):
    """Another's simulation of one draw, ours, and theory: all within the scatter of a draw.

    The scatter between draws falls as 1/√N: that of 512 units over √8.
    """
    theory = mean_field(jnp.tanh, gain)
    growth, a, W = run_tanh(gain, 4096, 0, 300)
    measured = growth.mean(), np.linalg.slogdet(W)[1] / 4096 + log_slope(a).mean()
    scatter = draws(gain, 0.0, 512).std(axis=0, ddof=1) / np.sqrt(8)
    for k, (ours, published) in enumerate([(measured[0], exponent), (measured[1], mean_exponent)]):
        expected = (theory.lyapunov, theory.mean_exponent)[k]
        assert abs(ours - expected) < 5 * scatter[k]
        assert abs(published - expected) < 5 * scatter[k]


def test_copies_of_a_network_settle_at_the_correlation():
    gain, bias, size = 4.0, 1.0, 500
    theory = mean_field(jnp.tanh, gain, bias_variance=bias)
    found = []
    for seed in range(6):
        W, _ = network(gain, size, seed)
        draw = np.random.default_rng(seed + 10_000)
        h, b = draw.normal(size=(2, size)), np.sqrt(bias) * draw.normal(size=size)
        seen = []
        for t in range(200):
            a = h @ W.T + b
            h = np.tanh(a)
            seen += [(a[0] @ a[1]) / size] if t >= 50 else []
        found.append(np.mean(seen))
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    expected = theory.correlation * theory.variance
    assert 0.05 < theory.correlation < 0.95
    assert abs(np.mean(found) - expected) < 4 * error + 2 / size
    assert error < 0.1 * expected


def test_singular_values_and_eigenvalues_of_a_step():
    gain, size = 3.0, 400
    theory = mean_field(jnp.tanh, gain)
    _, a, W = run_tanh(gain, size, 0, 4)
    steps = (1 - np.tanh(a[:, :, None]) ** 2) * W
    sigma = np.linalg.svd(steps[0], compute_uv=False)
    # Relative fluctuations are N^(−2/3) at the edge of a spectrum; those of a mean over φ' are of order 1/√N.
    slack = 5 / np.sqrt(size)
    assert (sigma**2).mean() == pytest.approx(theory.chi, rel=slack)
    assert (sigma**2).var() / theory.chi**2 == pytest.approx(theory.spread(1), rel=slack)
    assert sigma[0] == pytest.approx(theory.norm, rel=0.05)
    # Where φ' differs, (Σ φ'²)²/Σ φ'⁴ units count, here 120. The radius exceeds the disc by 4 % and
    # fluctuates as much (Rider & Sinclair 2014).
    radius = np.mean(np.abs(np.linalg.eigvals(steps)).max(axis=-1))
    assert radius == pytest.approx(1.04 * theory.spectral_radius, rel=0.08)


def test_spread_of_a_product_grows_with_its_length():
    gain, size, length = 2.0, 500, 4
    theory = mean_field(jnp.tanh, gain)
    found = []
    for seed in range(3):
        _, a, W = run_tanh(gain, size, seed, length)
        product = np.linalg.multi_dot(list((1 - np.tanh(a[::-1, :, None]) ** 2) * W))
        squares = np.linalg.svd(product, compute_uv=False) ** 2
        found.append(squares.var() / squares.mean() ** 2)
    assert np.mean(found) == pytest.approx(theory.spread(length), rel=0.15)


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"gain": 0.0}, "gain"),
        ({"gain": -1.0}, "gain"),
        ({"gain": math.nan}, "gain"),
        ({"bias_variance": -0.1}, "bias_variance"),
        ({"input_variance": math.inf}, "input_variance"),
        ({"input_correlation": 1.1}, "input_correlation"),
        ({"activation": lambda a, b: a}, "activation"),
        ({"activation": jnp.sum}, "activation"),
        ({"activation": lambda a: a > 0}, "activation"),
    ],
)
def test_bad_settings_are_refused(arguments, argument):
    settings = {"activation": jnp.tanh, "gain": 1.5} | arguments
    with pytest.raises(InputError, match=f"^{argument}: got"):
        mean_field(settings.pop("activation"), settings.pop("gain"), **settings)


@pytest.mark.parametrize("correlation", [-1.1, 1.0001, math.nan])
def test_correlations_beyond_one_are_refused(correlation):
    with pytest.raises(InputError, match=r"^correlation: got"):
        correlation_map(jnp.tanh, correlation, 2.0)


def test_results_are_pytrees():
    theory = mean_field(jnp.tanh, 1.5)
    assert jax.tree.map(identity, theory) == theory


@pytest.mark.parametrize("activation", [jax.nn.gelu, jax.nn.silu, lambda x: x**3])
def test_a_jump_over_the_edge_is_no_edge(activation):
    """χ stays below 1 up to the gain at which the variance diverges."""
    found = edge_of_chaos(activation)
    assert found.status == "variance diverges before the edge"
    assert math.isnan(found.gain)


@pytest.mark.parametrize("bracket", [(2.0, 1.0), (0.0, 2.0), (-1.0, 3.0)])
def test_a_bracket_is_a_pair_of_rising_gains(bracket):
    with pytest.raises(InputError, match="bracket: got"):
        edge_of_chaos(jnp.tanh, bracket=bracket)
