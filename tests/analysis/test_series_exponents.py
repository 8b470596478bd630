"""Lyapunov exponents of measured series, against the published values of the systems that made them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from jaxrnn.analysis import series_exponent
from jaxrnn.checks import InputError


def logistic_series(count):
    x = [0.3]
    for _ in range(count - 1):
        x.append(4 * x[-1] * (1 - x[-1]))
    return np.array(x)


def lorenz_series(count):
    """x of Lorenz's system as Rosenstein et al. have it: σ = 16, R = 45.92, b = 4, sampled every 0.01."""

    def field(t, s):
        return [16 * (s[1] - s[0]), s[0] * (45.92 - s[2]) - s[1], s[0] * s[1] - 4 * s[2]]

    times = np.arange(count) * 0.01
    return solve_ivp(field, (0, 10 + times[-1]), [1, 1, 30], t_eval=10 + times, rtol=1e-9).y[0]


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_logistic_map_by_rosenstein(dimension):
    """ln 2; Rosenstein et al. find it to some 5 % from 500 samples."""
    found = series_exponent(logistic_series(500), dimension=dimension, fit=(0, 4))
    assert found.exponent == pytest.approx(np.log(2), rel=0.08)
    assert found.pairs > 400


def test_logistic_map_by_kantz():
    series = logistic_series(3000)
    found = series_exponent(series, dimension=2, fit=(0, 4), method="kantz", radius=0.005)
    assert found.exponent == pytest.approx(np.log(2), rel=0.08)


def test_lorenz_by_rosenstein():
    """1.50 a unit of time (Wolf et al. 1985), with Rosenstein's settings: 5000 samples, m = 3, delay 11."""
    found = series_exponent(
        lorenz_series(5000), dimension=3, delay=11, theiler=50, fit=(50, 200), time_step=0.01
    )
    assert found.exponent == pytest.approx(1.50, rel=0.1)
    assert found.residual < 0.2


def test_henon_by_kantz():
    """0.419 a step (Wolf et al. 1985)."""
    u, v, series = 0.1, 0.1, []
    for _ in range(5000):
        u, v = 1 - 1.4 * u**2 + v, 0.3 * u
        series.append(u)
    settings = {"dimension": 2, "fit": (1, 7), "method": "kantz", "radius": 0.01}
    found = series_exponent(np.array(series), **settings)
    assert found.exponent == pytest.approx(0.419, rel=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"series": np.ones(3)}, "series: got 3 samples; expected 7 or more"),
        ({"series": np.ones(100)}, "neighbours that do not come apart at all"),
        ({"series": np.full(100, np.nan)}, "series: got 100 non-finite"),
        ({"series": np.ones((9, 9))}, "series: got float64"),
        ({"fit": (4, 4)}, "fit: got 4"),
        ({"theiler": 96}, "no pair of neighbours"),
        ({"method": "kantz"}, "radius: got None"),
        ({"dimension": 0}, "dimension: got 0"),
    ],
)
def test_bad_input_is_refused(change, message):
    given = {"series": logistic_series(100), "dimension": 2, "fit": (0, 4), **change}
    with pytest.raises(InputError, match=message):
        series_exponent(**given)
