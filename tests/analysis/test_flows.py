"""Fixed points and modes of flows, in units of time.

Oracles: the closed forms of Lorenz's system (Sparrow 1982), and SciPy's matrix exponential.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxrnn.analysis import Flow, fixed_points, flow_modes, pseudospectrum
from jaxrnn.checks import InputError
from tests.analysis.systems import lorenz


@pytest.mark.parametrize("time_step", [0.01, 0.001])
def test_fixed_points_of_lorenz(time_step, x64):
    """0 and (±√72, ±√72, 27); at 0 the eigenvalues are −8/3 and (−11 ± √1201)/2."""
    flow = Flow(lorenz, time_step=time_step)
    start = jnp.asarray(np.random.default_rng(0).normal(size=(40, 3)) * 10)
    found = fixed_points(flow, None, start, outlier=np.inf)
    order = np.argsort(found.states[:, 0])
    root = np.sqrt(72)
    expected = [[-root, -root, 27], [0, 0, 0], [root, root, 27]]
    np.testing.assert_allclose(np.asarray(found.states)[order], expected, rtol=0, atol=1e-8)
    modes = flow_modes(flow, None, found.carries)
    values = np.asarray(modes.eigenvalues)[order]
    origin = np.array([(-11 + np.sqrt(1201)) / 2, -8 / 3, (-11 - np.sqrt(1201)) / 2])
    np.testing.assert_allclose(values[1], origin, atol=1e-6)
    # λ³ + (σ + β + 1) λ² + β (σ + ρ) λ + 2 β σ (ρ − 1)
    cubic = np.roots([1, 41 / 3, 8 / 3 * 38, 2 * 8 / 3 * 10 * 27])
    np.testing.assert_allclose(np.sort_complex(values[0]), np.sort_complex(cubic), atol=1e-6)
    assert not modes.stable.any()
    np.testing.assert_allclose(np.asarray(modes.time_constants)[order[1]], -1 / origin, rtol=1e-6)
    turning = np.abs(np.asarray(modes.frequencies)[order[0]]).max()
    assert turning == pytest.approx(cubic.imag.max() / (2 * np.pi), abs=1e-6)


@pytest.mark.parametrize("shear", [1.0, 10.0, 100.0])
def test_kreiss_bound_of_a_flow(shear, x64):
    """Of exp(t A): no more than the largest norm, no less than it over e S."""
    matrix = np.array([[-1.0, shear], [0.0, -2.0]])
    largest = max(np.linalg.norm(scipy.linalg.expm(t * matrix), 2) for t in np.linspace(0, 5, 501))
    bound = pseudospectrum(jnp.asarray(matrix), points=80, extent=(0, 40, -20, 20)).flow_kreiss
    assert largest / (np.e * 2) <= bound <= largest * 1.001
    assert pseudospectrum(-jnp.eye(3)).flow_kreiss == pytest.approx(1.0)
    assert pseudospectrum(jnp.asarray(matrix) + 3 * jnp.eye(2)).flow_kreiss == np.inf


def test_a_map_has_no_modes_in_time():
    with pytest.raises(InputError, match=r"flow: got .*; expected an instance of Flow"):
        flow_modes(lambda s, x: (s, s), None, jnp.zeros((1, 2)))  # pyright: ignore[reportArgumentType]
