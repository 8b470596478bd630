"""Graded products and their singular values.

Oracles: the explicit product in mpmath, with more digits than its singular values span; exact ranks.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from scipy.stats import ortho_group

from jaxrnn.analysis.graded import Graded, graded, left_multiply, log_singular_values

STEPS, SIZE = 300, 6


@jax.jit
def logs_of_product(matrices):
    """Log singular values of A_T … A_1, for matrices [T, S, S] in the order of time."""

    def grow(product, matrix):
        return left_multiply(matrix, product), None

    product, _ = jax.lax.scan(grow, graded(matrices[0]), matrices[1:])
    return log_singular_values(product)


def exact_product(matrices, digits):
    with mp.workdps(digits):
        product = mp.eye(matrices.shape[-1])
        for matrix in matrices:
            product = mp.matrix(matrix.tolist()) * product
        return product


def exact_logs(matrices, digits=300):
    with mp.workdps(digits):
        values = mp.svd_r(exact_product(matrices, digits), compute_uv=False)
        return np.array([float(mp.log(value)) for value in values])


def normal(draw, *shape):
    return draw.normal(size=shape)


def rotations(draw, steps=STEPS, size=SIZE):
    return ortho_group.rvs(size, size=steps, random_state=draw)


GRADES = np.diag([10.0, 3.0, 1.0, 0.3, 0.1, 0.03])

FAMILIES = {
    "random": lambda d: normal(d, STEPS, SIZE, SIZE) / np.sqrt(SIZE),
    "contracting": lambda d: 0.1 * normal(d, STEPS, SIZE, SIZE) / np.sqrt(SIZE),
    "expanding": lambda d: 10.0 * normal(d, STEPS, SIZE, SIZE) / np.sqrt(SIZE),
    "graded in random directions": lambda d: rotations(d) @ GRADES @ rotations(d),
    "graded in fixed directions": lambda d: (
        GRADES @ (np.eye(SIZE) + 0.1 * normal(d, STEPS, SIZE, SIZE))
    ),
    "grades upside down": lambda d: (
        GRADES[::-1, ::-1] @ (np.eye(SIZE) + 0.1 * normal(d, STEPS, SIZE, SIZE))
    ),
    "orthogonal": rotations,
    "scaled orthogonal": lambda d: 0.5 * rotations(d),
    "nearly orthogonal": lambda d: (
        rotations(d) @ (np.eye(SIZE) + 1e-8 * normal(d, STEPS, SIZE, SIZE))
    ),
    "nearly the identity": lambda d: np.eye(SIZE) + 1e-9 * normal(d, STEPS, SIZE, SIZE),
    "one matrix repeated": lambda d: np.tile(normal(d, SIZE, SIZE), (STEPS, 1, 1)),
    "one shear repeated": lambda d: np.tile(
        np.eye(SIZE) + np.triu(normal(d, SIZE, SIZE), 1), (STEPS, 1, 1)
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_singular_value_of_a_long_product_is_right(family, x64):
    matrices = FAMILIES[family](np.random.default_rng(0))
    # Steps of condition up to 330 lose 330 roundings each, so 1e-11 in 300 steps.
    exact = exact_logs(matrices, digits=1200)
    np.testing.assert_allclose(logs_of_product(jnp.asarray(matrices)), exact, rtol=0, atol=1e-10)


def test_powers_of_any_matrix_keep_to_its_eigenvalues(x64):
    """A^T = X Λ^T X⁻¹, so that each log σ_i is T ln |λ_i| within ln κ(X), at any T (Gelfand)."""
    matrices = np.random.default_rng(0).normal(size=(100, 5, 5))
    values, vectors = np.linalg.eig(matrices)
    rates = -np.sort(-np.log(np.abs(values)), axis=-1)
    bound = np.log(np.linalg.cond(vectors))[:, None]
    repeated = jnp.broadcast_to(jnp.asarray(matrices)[:, None], (100, 3000, 5, 5))
    found = jax.vmap(logs_of_product)(repeated)
    assert np.all(np.abs(found - 3000 * rates) < bound + 1e-8)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_size_odd_or_even(size, x64):
    matrices = np.random.default_rng(size).normal(size=(40, size, size))
    found = logs_of_product(jnp.asarray(matrices))
    np.testing.assert_allclose(found, exact_logs(matrices), rtol=0, atol=1e-11)


@pytest.mark.parametrize("family", ["random", "graded in random directions", "scaled orthogonal"])
def test_float32_keeps_its_leading_values(family):
    matrices = FAMILIES[family](np.random.default_rng(0)).astype(np.float32)
    found = logs_of_product(jnp.asarray(matrices))
    assert found.dtype == jnp.float32
    exact = exact_logs(matrices.astype(np.float64), digits=1200)
    # A step moves a leading direction by ε times a small condition; 300 steps: 1e-4. The logarithm itself
    # is a sum of 300 terms, each addition rounded: ε/4 of it a step.
    tolerance = 1e-4 + STEPS * np.finfo(np.float32).eps / 4 * np.abs(exact[:2])
    assert np.all(np.abs(found[:2] - exact[:2]) < tolerance)


def test_graded_form_is_the_product(x64):
    """Short enough to multiply out: Q diag(e^d) V = A_5 … A_1, Q orthogonal, V well conditioned."""
    matrices = np.random.default_rng(0).normal(size=(5, 4, 4))
    product = graded(jnp.asarray(matrices[0]))
    for matrix in matrices[1:]:
        product = jax.jit(left_multiply)(jnp.asarray(matrix), product)
    expected = functools.reduce(lambda p, a: a @ p, matrices)
    np.testing.assert_allclose(
        product.q @ jnp.diag(jnp.exp(product.grades)) @ product.v, expected, rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(product.q.T @ product.q, np.eye(4), rtol=0, atol=1e-14)
    assert np.linalg.cond(product.v) < 100


def test_jacobi_finds_values_however_far_apart(x64):
    draw = np.random.default_rng(0)
    v = np.eye(SIZE) + 0.3 * draw.normal(size=(SIZE, SIZE))
    grades = np.array([-2000.0, 700.0, 3.0, 3.0, -0.5, 3000.0])
    with mp.workdps(3000):
        rows = mp.diag([mp.exp(d) for d in grades.tolist()]) * mp.matrix(v.tolist())
        exact = [float(mp.log(value)) for value in mp.svd_r(rows, compute_uv=False)]
    found = log_singular_values(Graded(jnp.eye(SIZE), jnp.asarray(grades), jnp.asarray(v)))
    np.testing.assert_allclose(found, exact, rtol=1e-15, atol=1e-13)


# Singular products. Logs of the values that are left, falling; the other directions are −inf.

SHIFT = np.diag([1.0, 1.0, 1.0], k=1)
PROJECTION = np.diag([1.0, 1.0, 0.0, 0.0])
DIAGONAL = np.diag([8.0, 4.0, 2.0, 1.0])
# e₂ goes where the longer e₁ goes, e₃ to a direction of its own, behind them in the order of lengths.
HIDDEN = np.array([[1.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]])

SINGULAR = {
    "zero first": ([np.zeros((4, 4)), DIAGONAL], []),
    "zero last": ([DIAGONAL, np.zeros((4, 4))], []),
    "one direction lost": ([DIAGONAL, np.diag([1.0, 1.0, 1.0, 0.0])], [8.0, 4.0, 2.0]),
    "the leading one lost": ([DIAGONAL, np.diag([0.0, 1.0, 1.0, 1.0])], [4.0, 2.0, 1.0]),
    "lost at once, then grown": ([PROJECTION, DIAGONAL], [8.0, 4.0]),
    "shifted once": ([SHIFT], [1.0, 1.0, 1.0]),
    "shifted twice": ([SHIFT, SHIFT], [1.0, 1.0]),
    "shifted away": ([SHIFT] * 4, []),
    "complementary projections": ([PROJECTION, np.eye(4) - PROJECTION], []),
    "overlapping projections": (
        [PROJECTION, PROJECTION[::-1, ::-1] + np.diag([0, 1.0, 0, 0])],
        [1.0],
    ),
    "two directions merged": ([DIAGONAL, HIDDEN], [80**0.5, 2.0, 1.0]),
    "merged, then grown": ([DIAGONAL, HIDDEN, DIAGONAL], None),
}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("case", SINGULAR)
def test_lost_directions_are_minus_infinity_and_the_others_right(case, turned, x64):
    matrices, left = SINGULAR[case]
    matrices = np.stack(matrices)
    if left is None:
        left = [
            value
            for value in np.linalg.svd(functools.reduce(lambda p, a: a @ p, matrices))[1]
            if value > 0
        ]
    if turned:  # other coordinates between the steps, so that no zero is exact
        frames = rotations(np.random.default_rng(0), len(matrices) + 1, 4)
        matrices = frames[1:] @ matrices @ np.swapaxes(frames[:-1], -1, -2)
    found = np.asarray(logs_of_product(jnp.asarray(matrices)))
    np.testing.assert_allclose(found[: len(left)], np.log(left), rtol=0, atol=1e-13)
    assert np.all(found[len(left) :] == -np.inf)


def test_units_that_die_and_others_that_do_not(dtype):
    """Masked rotations, as in a ReLU network: the rank of the product, and its values in mpmath."""
    draw = np.random.default_rng(0)
    masks = np.ones((30, 8))
    masks[5, :2] = masks[11, 1:4] = masks[20, 7] = 0  # 8 → 6 → 5 → 5 directions
    matrices = np.asarray(masks[:, :, None] * rotations(draw, 30, 8), dtype)
    found = np.asarray(logs_of_product(jnp.asarray(matrices)))
    exact = exact_logs(matrices.astype(np.float64))
    assert np.all(exact[5:] < -30)  # the entries are rounded, so not zero
    np.testing.assert_allclose(found[:5], exact[:5], rtol=0, atol=1e3 * np.finfo(dtype).eps)
    assert np.all(found[5:] == -np.inf)


def test_nan_stays_nan_and_ends(x64):
    assert np.all(np.isnan(logs_of_product(jnp.full((3, 4, 4), jnp.nan))))
