"""Pseudospectra.

Oracles: an SVD at every point; distances to the eigenvalues of normal matrices; closed forms of small ones;
powers of the matrix, which Kreiss's theorem bounds.
"""

from __future__ import annotations

import re

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from scipy.stats import ortho_group

from jaxrnn.analysis import _pseudospectrum as module
from jaxrnn.analysis._pseudospectrum import pseudospectrum, smallest_singular_values
from jaxrnn.checks import InputError

BOX = (-1.5, 1.7, -1.2, 1.4)


def by_svd(matrix, real, imaginary):
    points = np.asarray(real)[None, :] + 1j * np.asarray(imaginary)[:, None]
    shifted = points[..., None, None] * np.eye(len(matrix)) - np.asarray(matrix)
    return np.linalg.svd(shifted, compute_uv=False)[..., -1]


def normal(size, seed=0):
    return np.random.default_rng(seed).normal(size=(size, size)) / np.sqrt(size)


def grcar(size):
    """−1 below the diagonal, 1 on it and three above: highly non-normal (Grcar 1989)."""
    return np.tril(np.triu(np.ones((size, size)), -1), 3) - 2 * np.diag(np.ones(size - 1), -1)


MATRICES = {
    "one entry": np.array([[0.3]]),
    "random": normal(12),
    "random, odd": normal(7, seed=1),
    "symmetric": normal(10) + normal(10).T,
    "shift": np.diag(np.ones(7), k=1),
    "Grcar": 0.3 * grcar(20),
    "identity": np.eye(4),
    "zero": np.zeros((3, 3)),
    "rank one": np.outer(np.arange(5.0), np.ones(5)),
    "large": normal(40, seed=2),
    "complex": normal(6) + 1j * normal(6, seed=3),
}


@pytest.mark.parametrize("name", MATRICES)
def test_equals_an_svd_at_every_point(name, x64):
    matrix = MATRICES[name]
    found = pseudospectrum(jnp.asarray(matrix), points=17, extent=BOX)
    expected = by_svd(matrix, found.real, found.imaginary)
    rounding = 1e3 * np.finfo(float).eps * (1 + np.linalg.norm(matrix))
    # The residual of 10⁻⁶ bounds the error of 1/σ²; it is a hundred times smaller where others stand apart.
    assert np.all(np.abs(found.smallest - expected) <= 1e-6 * expected + rounding)


def test_rows_are_imaginary_parts_and_both_rise(x64):
    found = pseudospectrum(jnp.diag(jnp.array([1j, -0.5])), points=5, extent=(-1, 1, -2, 2))
    assert found.real.tolist() == [-1, -0.5, 0, 0.5, 1]
    assert found.imaginary.tolist() == [-2, -1, 0, 1, 2]
    assert found.smallest[3, 2] < 1e-15  # z = i
    assert found.smallest[2, 1] < 1e-15  # z = −½
    assert float(found.smallest[0, 2]) == pytest.approx(np.sqrt(4.25))  # z = −2i: −½ is nearer


def test_normal_matrix_has_distances_to_its_eigenvalues(x64):
    matrix = 0.9 * ortho_group.rvs(16, random_state=0)
    found = pseudospectrum(jnp.asarray(matrix), points=20)
    points = np.asarray(found.real)[None, :] + 1j * np.asarray(found.imaginary)[:, None]
    distances = np.abs(points[..., None] - np.linalg.eigvals(matrix)).min(axis=-1)
    np.testing.assert_allclose(found.smallest, distances, rtol=1e-6)


@pytest.mark.parametrize("name", ["random", "Grcar", "large", "complex"])
def test_nearly_all_points_settle(name):
    """Otherwise the values would be right, but as slow as by SVD."""
    form = scipy.linalg.schur(MATRICES[name].astype(complex), output="complex")[0]
    side = np.linspace(-1.5, 1.5, 20)
    points = (side[None, :] + 1j * side[:, None]).ravel()
    assert np.isnan(module._by_lanczos(form, points)).mean() < 0.02


def test_points_that_do_not_settle_get_an_svd(monkeypatch, x64):
    matrix = normal(12)
    form = scipy.linalg.schur(matrix, output="complex")[0]
    points = np.array([0.1 + 0.2j, 0.5, 1.1])
    monkeypatch.setattr(module, "_STEPS", 2)
    assert np.isnan(module._by_lanczos(form, points)).any()
    expected = [np.linalg.svd(z * np.eye(12) - matrix, compute_uv=False)[-1] for z in points]
    np.testing.assert_allclose(smallest_singular_values(form, points), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "name",
    ["shift 60", "long steps", "strictly triangular", "delay line", "huge", "tiny", "longer shift"],
)
def test_most_non_normal_matrices(name, x64):
    """With resolvents of 10^60 and more; an SVD, too, knows nothing below the rounding of the matrix."""
    draw = np.random.default_rng(0)
    delays = np.kron(np.eye(30, k=-1), np.eye(2))  # 2 units, remembered for 30 steps
    delays[:2] = 0.05 * draw.normal(size=(2, 60))
    matrix = {
        "shift 60": 0.99 * np.eye(60, k=1),
        "long steps": 20 * np.eye(60, k=-1),
        "strictly triangular": np.triu(draw.normal(size=(50, 50)), 1),
        "delay line": delays,
        "huge": 1e100 * np.eye(40, k=1),
        "tiny": 1e-100 * np.eye(40, k=1),
        "longer shift": 1.5 * np.eye(200, k=1),
    }[name]
    found = pseudospectrum(jnp.asarray(matrix), points=9, extent=BOX)
    expected = by_svd(matrix, found.real, found.imaginary)
    rounding = 10 * len(matrix) * np.finfo(float).eps * np.linalg.norm(matrix)
    assert np.all(np.abs(found.smallest - expected) <= 1e-6 * expected + rounding)
    assert np.isfinite(found.kreiss)


def test_shift_line_decays_at_once(x64):
    """‖J^k‖ = 0.99^k for k < 60: the Kreiss constant is 1."""
    assert pseudospectrum(0.99 * jnp.eye(60, k=1)).kreiss == 1.0


def test_half_of_a_real_matrix_is_mirrored(x64):
    matrix = normal(12)
    for points in (16, 17):
        half = pseudospectrum(jnp.asarray(matrix), points=points)
        whole = by_svd(matrix, half.real, half.imaginary)
        np.testing.assert_allclose(half.smallest, whole, rtol=1e-6)


def test_long_shift_lines_settle_too():
    """Their singular values stand close together, and thirty steps were not enough."""
    points = 1.2 * np.exp(2j * np.pi * np.arange(6) / 6)
    found = module._by_lanczos(0.99 * np.eye(300, k=1) + 0j, points)
    expected = [scipy.linalg.svdvals(z * np.eye(300) - 0.99 * np.eye(300, k=1))[-1] for z in points]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_default_extent_holds_the_circle_and_the_eigenvalues(x64):
    for radius, reach in ((0.3, 1.5), (4.0, 6.0)):
        found = pseudospectrum(radius * jnp.eye(2), points=3)
        np.testing.assert_allclose(found.real, [-reach, 0, reach])
        np.testing.assert_array_equal(found.real, found.imaginary)


def test_eigenvalues_lie_at_the_bottom(x64):
    matrix = normal(9)
    found = pseudospectrum(jnp.asarray(matrix), points=2)
    assert np.all(np.diff(np.abs(found.eigenvalues)) <= 1e-15)
    smallest = smallest_singular_values(
        scipy.linalg.schur(matrix, output="complex")[0], np.asarray(found.eigenvalues)
    )
    assert np.all(smallest < 1e-14)


@pytest.mark.parametrize("epsilon", [0.05, 0.2])
def test_radius_and_abscissa_of_a_normal_matrix(epsilon, x64):
    """Of diag(½, −0.8): 0.8 + ε and ½ + ε, less what the grid of width 0.01 misses."""
    found = pseudospectrum(jnp.diag(jnp.array([0.5, -0.8])), points=251)
    assert 0.8 + epsilon - 0.015 <= found.radius(epsilon) <= 0.8 + epsilon
    assert 0.5 + epsilon - 0.015 <= found.abscissa(epsilon) <= 0.5 + epsilon


def test_radius_of_a_shear_in_closed_form(x64):
    """[[0, s], [0, 0]]: σ_min(z) = ε where |z|² = ε² + sε, so this is the radius."""
    found = pseudospectrum(jnp.array([[0.0, 2.0], [0.0, 0.0]]), points=301)
    exact = np.sqrt(0.1**2 + 2.0 * 0.1)
    assert exact - 0.01 <= found.radius(0.1) <= exact


def test_a_set_below_the_grids_width_is_at_least_the_spectrum(x64):
    found = pseudospectrum(jnp.diag(jnp.array([0.5, -0.8])), points=4)
    assert found.radius(1e-6) == pytest.approx(0.8)
    assert found.abscissa(1e-6) == pytest.approx(0.5)


@pytest.mark.parametrize("shear", [0.0, 1.0, 20.0])
def test_kreiss_bounds_the_powers(shear, x64):
    """K ≤ sup ‖J^k‖ ≤ e S K: the grid finds most of K."""
    matrix = np.array([[0.9, shear], [0.0, 0.8]])
    longest = max(np.linalg.norm(np.linalg.matrix_power(matrix, k), 2) for k in range(100))
    kreiss = pseudospectrum(jnp.asarray(matrix), points=100).kreiss
    assert kreiss <= longest <= np.e * 2 * kreiss
    assert kreiss >= 1


def test_kreiss_is_infinite_where_powers_grow(x64):
    assert pseudospectrum(jnp.array([[1.1]]), points=3).kreiss == np.inf


def test_float32_matrix_is_treated_in_float64():
    """σ_min of 10⁻⁶ beside a norm of 100: float32 arithmetic would find 10⁻⁵ or so."""
    turn = ortho_group.rvs(2, random_state=0)
    matrix = (turn @ np.array([[0.5, 100.0], [0.0, 0.5]]) @ turn.T).astype(np.float32)
    found = pseudospectrum(jnp.asarray(matrix), points=3, extent=(0.49, 0.51, -0.01, 0.01))
    expected = by_svd(matrix.astype(float), found.real, found.imaginary)
    assert found.smallest.dtype == jnp.float32
    assert expected[0, 0] < 1e-5
    grid_rounding = float(np.finfo(np.float32).eps)  # z itself is given back in float32
    np.testing.assert_allclose(found.smallest, expected, rtol=1e-4, atol=1e-3 * grid_rounding)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"matrix": jnp.ones((2, 3))}, "matrix: got float32[2, 3]; expected square matrices"),
        ({"matrix": jnp.ones((4, 2, 2))}, "matrix: got float32[4, 2, 2]; expected one matrix"),
        (
            {"matrix": jnp.eye(2).at[0, 1].set(jnp.nan)},
            "matrix: got 1 non-finite values, the first at [0, 1]",
        ),
        ({"points": 1}, "points: got 1; expected 2 or more"),
        ({"points": 0}, "points: got 0; expected a whole number above 0"),
        ({"extent": (1.0, 1.0, 0.0, 1.0)}, "extent: got (1.0, 1.0, 0.0, 1.0); expected (left, "),
        ({"extent": (0.0, 1.0, 1.0, 0.0)}, "extent: got (0.0, 1.0, 1.0, 0.0); expected (left, "),
        ({"extent": (0.0, 1.0, 0.0, np.inf)}, "extent: got (0.0, 1.0, 0.0, inf); expected (left, "),
    ],
)
def test_other_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match="^" + re.escape(message)):
        pseudospectrum(**({"matrix": jnp.eye(2)} | arguments))


@pytest.mark.parametrize("epsilon", [0, -1.0, 0.6, np.nan])
def test_levels_that_the_grid_does_not_hold_are_refused(epsilon):
    found = pseudospectrum(jnp.eye(2), points=10)  # a disc of radius 0.6 around 1 leaves the square
    with pytest.raises(InputError, match=r"^epsilon: got"):
        found.radius(epsilon)


@pytest.mark.parametrize("size", [2, 16, 40])
def test_kreiss_is_one_for_orthogonal_matrices(size, dtype):
    drawn = np.random.default_rng(size).normal(size=(8, size, size))
    for matrix in np.linalg.qr(drawn)[0]:
        found = pseudospectrum(jnp.asarray(matrix, dtype), points=3).kreiss
        assert abs(found - 1) < 100 * jnp.finfo(dtype).eps
