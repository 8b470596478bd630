"""Eigenvalues of long products, against mpmath's and closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.analysis import product_spectrum, propagator, trace
from jaxrnn.analysis._product_spectrum import product_spectrum_of
from jaxrnn.analysis._propagator import propagator_of
from jaxrnn.checks import InputError


def by_mpmath(matrices):
    """Log moduli, falling, of the product of all matrices, later ones on the left."""
    with mpmath.workdps(400):
        product = mpmath.eye(matrices.shape[-1])
        for matrix in matrices:
            product = mpmath.matrix(matrix.tolist()) * product
        found = mpmath.eig(product, left=False, right=False)
        return np.sort([float(mpmath.log(abs(value))) for value in found])[::-1]


def slopes_times_matrix(draw, steps, size):
    matrix = draw.normal(size=(size, size)) * 1.2 / np.sqrt(size)
    slopes = 1 - np.tanh(draw.normal(size=(steps, size, 1))) ** 2
    return slopes * matrix


@pytest.mark.parametrize(("steps", "size"), [(5, 6), (12, 6), (20, 12)])
def test_every_eigenvalue_of_a_product_is_right_and_small_ones_too(steps, size, x64):
    matrices = slopes_times_matrix(np.random.default_rng(steps), steps, size)
    found = product_spectrum_of(jnp.asarray(matrices), [steps]).log_moduli[0]
    expected = by_mpmath(matrices)
    assert expected[0] - expected[-1] > 10  # e¹⁰ and more apart
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_what_rounding_hides_is_not_a_number_and_what_is_given_is_right(x64):
    matrices = slopes_times_matrix(np.random.default_rng(0), 300, 8)
    found = np.asarray(product_spectrum_of(jnp.asarray(matrices), [300]).log_moduli[0])
    expected = by_mpmath(matrices)
    given = np.isfinite(found)
    assert 1 <= given.sum() < 8
    np.testing.assert_allclose(found[given], expected[given], rtol=1e-9)


def test_a_product_of_thousands_does_not_overflow(x64):
    angle, growth = 0.3, 2.0
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrices = jnp.asarray(np.broadcast_to(growth * turn, (5000, 2, 2)))
    found = product_spectrum_of(matrices, [1, 5000])
    np.testing.assert_allclose(found.log_moduli, np.log(growth) * np.array([[1, 1], [5000, 5000]]))
    np.testing.assert_allclose(np.abs(found.angles[0]), angle, rtol=1e-12)


def test_a_repeated_jacobian_has_its_own_rate_and_singular_values_another(x64):
    chain = 0.5 * np.eye(6) + 1.2 * np.eye(6, k=1) + 1e-3 * np.eye(6, k=-5)
    matrices = jnp.asarray(np.broadcast_to(chain, (40, 6, 6)))
    found = product_spectrum_of(matrices, [1, 10, 40])
    radius = np.log(np.abs(np.linalg.eigvals(chain)).max())
    np.testing.assert_allclose(found.log_moduli[:, 0], radius * np.array([1, 10, 40]), rtol=1e-9)
    singular = propagator_of(matrices, [10]).log_singular_values[0, 0]
    assert singular > 10 * radius + 1


def test_singular_products_have_eigenvalues_zero(x64):
    matrices = np.array([np.diag([1.0, 2.0, 0.0])] * 3)
    found = product_spectrum_of(jnp.asarray(matrices), [3])
    np.testing.assert_allclose(found.log_moduli[0, :2], [3 * np.log(2), 0], atol=1e-12)
    assert not np.isfinite(found.log_moduli[0, 2])
    nothing = product_spectrum_of(jnp.zeros((2, 3, 3)), [2])
    assert np.isneginf(nothing.log_moduli).all()


@pytest.mark.slow
def test_the_radius_is_below_the_largest_singular_value_for_cells_and_batches():
    cell = jaxrnn.LSTMCell(3, 5, rngs=nnx.Rngs(0))
    path = trace(cell, jax.random.normal(jax.random.key(0), (12, 2, 3)))
    found = product_spectrum(cell, path, [1, 6, 12])
    singular = propagator(cell, path, [1, 6, 12])
    assert found.log_moduli.shape == (3, 2, 10)
    assert (found.log_moduli[..., 0] <= singular.log_singular_values[..., 0] + 1e-5).all()
    assert found.rate.value < 0


def test_lags_beyond_the_path_are_refused():
    with pytest.raises(InputError, match="lags: got values from 4 to 4; expected 1 to 3"):
        product_spectrum_of(jnp.zeros((3, 2, 2)), [4])


def test_what_is_rounding_alone_is_not_given(x64):
    nilpotent = np.outer([0.6, 0.8], [-0.8, 0.6])  # of norm 1, both eigenvalues 0
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(6, 6)))[0]
    delay = turn @ np.eye(6, k=-1) @ turn.T
    defective = 0.5 * np.eye(20) + np.eye(20, k=1)  # ½ twenty times
    for matrix, lags in ((nilpotent, [1]), (delay, [1, 3, 6, 10]), (defective, [1, 10])):
        logs = np.asarray(product_spectrum_of(jnp.asarray([matrix] * 10), lags).log_moduli)
        assert not np.isfinite(logs).any()


def test_a_singular_direction_is_minus_infinity(x64):
    found = product_spectrum_of(jnp.asarray([np.diag([0.5, 0.0])] * 3), [1, 3])
    np.testing.assert_allclose(found.log_moduli[:, 0], np.log(0.5) * np.array([1, 3]))
    assert np.isneginf(found.log_moduli[:, 1]).all()
