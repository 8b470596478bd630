"""Spectra of step Jacobians.

Oracles: NumPy's factorisations of the same matrices; random matrix theory; matrices made for their spectrum.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import ortho_group

from jaxrnn.analysis import jacobians, spectrum, trace
from tests.analysis.examples import (
    B,
    T,
    assert_close,
    elman,
    every_cell,
    identity,
    travelled,
)


def at_origin(matrix, activation=jnp.tanh, dtype=jnp.float64, start=None):
    """Spectrum of one step of h' = φ(A h), at the origin or where said."""
    cell = elman(matrix, activation, dtype)
    carry = jnp.zeros(len(matrix), dtype) if start is None else jnp.asarray(start, dtype)
    return spectrum(cell, trace(cell, jnp.zeros((1, 1), dtype), carry=carry))


def assert_same_set(actual, expected, tolerance):
    """Compare sets of complex numbers: each has a partner in the other."""
    distances = np.abs(np.asarray(actual)[..., :, None] - np.asarray(expected)[..., None, :])
    assert distances.min(axis=-1).max() < tolerance
    assert distances.min(axis=-2).max() < tolerance


@every_cell
def test_equal_numpys_on_the_same_matrices(name, x64):
    cell, path = travelled(name)
    matrices = np.asarray(jacobians(cell, path))
    found = spectrum(cell, path)
    assert found.eigenvalues.shape == found.singular_values.shape == path.states[1:].shape
    # An eigenvalue of a defective matrix (here: zeros, where ReLU units are dead) moves by √ε.
    assert_same_set(found.eigenvalues, np.linalg.eigvals(matrices), 1e-7)
    assert_close(found.singular_values, np.linalg.svd(matrices, compute_uv=False), 1e-13)


@every_cell
def test_fall_and_begin_with_radius_and_norm(name, x64):
    cell, path = travelled(name)
    matrices = np.asarray(jacobians(cell, path))
    found = spectrum(cell, path)
    assert np.all(np.diff(np.abs(found.eigenvalues), axis=-1) <= 1e-15)
    assert np.all(np.diff(found.singular_values, axis=-1) <= 0)
    assert found.spectral_radius.shape == found.norm.shape == (T, B)
    assert_close(found.spectral_radius, np.abs(np.linalg.eigvals(matrices)).max(axis=-1), 1e-12)
    assert_close(found.norm, np.linalg.norm(matrices, 2, axis=(-2, -1)), 1e-13)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_orthogonal_tanh_network_at_the_origin_lies_on_the_circle(alpha, dtype):
    rotation = ortho_group.rvs(16, random_state=0)
    found = at_origin(alpha * rotation, dtype=dtype)
    tolerance = 100 * np.finfo(dtype).eps  # of a backward stable method on a normal matrix
    np.testing.assert_allclose(np.abs(found.eigenvalues), alpha, rtol=tolerance)
    np.testing.assert_allclose(found.singular_values, alpha, rtol=tolerance)


@pytest.mark.parametrize("gain", [0.5, 1.5])
def test_random_tanh_network_at_the_origin_follows_the_circular_law(gain, x64):
    """Entries N(0, g²/N): eigenvalues fill the disc of radius g evenly, ‖J‖ → 2g (N → ∞)."""
    n = 400
    found = at_origin(gain * np.random.default_rng(0).normal(size=(n, n)) / np.sqrt(n))
    moduli = np.abs(found.eigenvalues[0]) / gain
    # Finite size. The radius exceeds 1 by √(γ/4N) and fluctuates by 1/√(4Nγ), γ = ln N/2π − 2 ln ln N
    # (Rider & Sinclair 2014): 0.02 ± 0.03 here. The norm is 2 + (2N)^(−2/3) times a Tracy–Widom variable:
    # 1.99 ± 0.015. Counts in a disc fluctuate by about N^(1/4) of N.
    assert moduli[0] == pytest.approx(1.02, abs=0.1)
    assert float(found.norm[0]) / gain == pytest.approx(1.99, abs=0.05)
    assert np.mean(moduli < 0.5) == pytest.approx(0.25, abs=0.03)


def test_saturation_contracts_though_the_weights_expand(x64):
    """ρ(W) = 2, but far from the origin every tanh is flat: ρ(J) < 1."""
    matrix = 2.0 * ortho_group.rvs(8, random_state=1)
    far = at_origin(matrix, start=matrix.T @ np.full(8, 0.5))  # every preactivation is 2
    assert float(at_origin(matrix).spectral_radius[0]) == pytest.approx(2.0)
    assert float(far.spectral_radius[0]) < 1
    assert float(far.norm[0]) == pytest.approx(2.0 / np.cosh(2.0) ** 2)


@pytest.mark.parametrize(("sign", "radius"), [(1.0, 2.0), (-1.0, 0.0)])
def test_relu_units_pass_all_or_nothing(sign, radius, x64):
    matrix = 2.0 * ortho_group.rvs(8, random_state=1)
    found = at_origin(matrix, jax.nn.relu, start=matrix.T @ np.full(8, sign))
    assert float(found.spectral_radius[0]) == pytest.approx(radius, abs=1e-12)
    assert float(found.norm[0]) == pytest.approx(radius, abs=1e-12)


def test_non_normal_matrix_has_small_radius_and_large_norm(x64):
    # σ₁σ₂ = |det| = 0.45 and σ₁² + σ₂² = Σ a², so this shear makes σ₁ = 10.
    shear = np.sqrt(10.0**2 + 0.045**2 - 0.9**2 - 0.5**2)
    found = at_origin([[0.9, shear], [0.0, -0.5]], identity)
    assert_close(found.eigenvalues, [[0.9, -0.5]], 1e-13)
    assert_close(found.singular_values, [[10.0, 0.045]], 1e-13)
    assert float(found.spectral_radius[0]) == pytest.approx(0.9)
    assert float(found.norm[0]) == pytest.approx(10.0)
