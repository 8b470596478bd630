"""Cycles: closed forms of the logistic and Hénon's map, and how many cycles there are of each period."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn.analysis import trace
from jaxrnn.analysis._cycles import cycles
from jaxrnn.analysis._fixed_points import candidates_from, fixed_points
from jaxrnn.checks import InputError
from tests.analysis.examples import make
from tests.analysis.systems import henon


def logistic(r):
    def step(s, x):
        moved = r * s * (1 - s)
        return moved, moved

    return step


def grid(count, low=0.0, high=1.0):
    return jnp.linspace(low, high, count)[:, None]


def test_cycle_of_the_logistic_map_after_its_first_doubling(x64):
    r = 3.2
    found = cycles(logistic(r), None, grid(40), 2)
    root = np.sqrt((r - 3) * (r + 1))
    assert found.states.shape == (1, 2, 1)
    exact = [(r + 1 - root) / (2 * r), (r + 1 + root) / (2 * r)]
    np.testing.assert_allclose(np.sort(found.states[0, :, 0]), exact, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.multipliers, [[4 + 2 * r - r**2]], rtol=0, atol=1e-11)
    assert bool(found.stable[0])
    assert found.shorter > 0  # 0 and 1 − 1/r return after one step
    assert found.shorter + int(found.points.multiplicity[0]) == 40


# Of least period n the doubling map, to which the logistic map at 4 is conjugate, has so many cycles.
@pytest.mark.parametrize(("period", "count"), [(1, 2), (2, 1), (3, 2), (4, 3), (5, 6), (6, 9)])
def test_all_cycles_of_the_logistic_map_at_4(period, count, x64):
    found = cycles(logistic(4.0), None, grid(600), period)
    assert len(found) == count
    orbits = np.sort(found.states[..., 0], axis=-1)
    theta = np.arcsin(np.sqrt(orbits)) / np.pi  # s = sin²(πθ), θ doubles: θ = k/(2^p ± 1)
    on_grid = [
        np.abs(theta * n - np.round(theta * n)).max(axis=-1) for n in (2**period - 1, 2**period + 1)
    ]
    assert np.min(on_grid, axis=0).max() < 1e-6
    zero = orbits[:, 0] < 1e-8  # the end of the interval has twice the multiplier
    np.testing.assert_allclose(
        np.abs(found.multipliers[:, 0]), np.where(zero, 4.0, 2.0) ** period, rtol=1e-9
    )
    assert not found.stable.any()


def test_henons_cycle_of_period_2(x64):
    a, b = 1.4, 0.3
    draw = np.random.default_rng(0).uniform(-1.5, 1.5, size=(200, 2)) * [1.0, 0.3]
    found = cycles(henon, None, jnp.asarray(draw), 2)
    # The two u are the roots of a²u² − a(1 − b)u + (1 − b)² − a.
    exact = np.sort(np.roots([a**2, -a * (1 - b), (1 - b) ** 2 - a]))
    assert len(found) == 1
    np.testing.assert_allclose(np.sort(found.states[0, :, 0]), exact, rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.prod(found.multipliers), b**2, rtol=1e-10)  # (−b)²
    trace = 4 * a**2 * np.prod(exact) + 2 * b
    np.testing.assert_allclose(np.sum(found.multipliers), trace, rtol=1e-10)


# Cycles of Hénon's map at its classical parameters: Galias 2001, "Interval methods for rigorous
# investigations of periodic orbits", lists those of least period up to 30.
@pytest.mark.parametrize(("period", "count"), [(3, 0), (4, 1), (5, 0), (6, 2)])
def test_number_of_cycles_of_henons_map(period, count, x64):
    path = trace(henon, None, carry=jnp.zeros(2), length=3000)
    found = cycles(henon, None, candidates_from(path, 1000, key=jax.random.key(0)), period)
    assert len(found) == count


def test_factors_stand_in_the_order_of_time(x64):
    """Three units that hand on their values: F³ is nearly three maps tanh(2 tanh(2 tanh 2s)) side by side.

    Of its 27 fixed points 3 are F's own and 24 make 8 cycles. M = J₃J₂J₁, by central differences of F³.
    """
    weights = 2.0 * np.roll(np.eye(3), 1, axis=0) + 0.1 * np.random.default_rng(0).normal(
        size=(3, 3)
    )

    def step(s, x):
        return jnp.tanh(jnp.asarray(weights) @ s), x

    start = np.random.default_rng(1).uniform(-1.2, 1.2, size=(600, 3))
    found = cycles(step, None, jnp.asarray(start), 3)
    assert len(found) == 8

    def thrice(s):
        for _ in range(3):
            s = np.tanh(weights @ s)
        return s

    for orbit, matrix in zip(np.asarray(found.states), found.points.jacobians, strict=True):
        np.testing.assert_allclose(np.tanh(orbit @ weights.T), np.roll(orbit, -1, 0), atol=1e-12)
        nudges = 1e-6 * np.eye(3)
        columns = [(thrice(orbit[0] + d) - thrice(orbit[0] - d)) / 2e-6 for d in nudges]
        np.testing.assert_allclose(matrix, np.transpose(columns), rtol=0, atol=1e-8)


def test_period_1_is_fixed_points(x64):
    candidates = grid(20)
    found, same = (
        cycles(logistic(2.5), None, candidates, 1),
        fixed_points(logistic(2.5), None, candidates),
    )
    np.testing.assert_array_equal(found.points.states, same.states)
    assert found.shorter == 0
    assert "period 1" in str(found)


def test_cells_may_cycle(x64):
    cell = make("elman-tanh")
    cell.recurrent_kernel[...] = -2.0 * jnp.eye(4)
    found = cycles(cell, jnp.zeros(3), jnp.ones((5, 4)), 2)
    assert len(found) == 1
    s0, s1 = np.asarray(found.states[0])
    bias = np.asarray(cell.bias[...])
    np.testing.assert_allclose(s1, np.tanh(-2 * s0 + bias), atol=1e-12)
    np.testing.assert_allclose(s0, np.tanh(-2 * s1 + bias), atol=1e-12)


@pytest.mark.parametrize("period", [0, -1])
def test_period_that_is_none_is_refused(period):
    with pytest.raises(InputError, match=r"period: got .*; expected a whole number above 0"):
        cycles(logistic(3.2), None, grid(3), period)
