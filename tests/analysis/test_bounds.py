"""Bounds on gradients. Oracles: matrices made for it, mpmath, measured products."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy.stats import ortho_group

from jaxrnn.analysis import jacobians, propagator, trace
from jaxrnn.analysis.bounds import slope_bound, trajectory_bound, weight_bound
from jaxrnn.checks import InputError
from tests.analysis.examples import (
    H,
    assert_close,
    elman,
    every_twin,
    identity,
    inputs,
    make,
    travelled,
    twins,
)
from tests.zoo import every_plain_cell


def gelu_slope():
    """The largest slope of x Φ(x): where 2 = x²."""
    x = mpmath.sqrt(2)
    return float(mpmath.ncdf(x) + x * mpmath.npdf(x))


@pytest.mark.parametrize(
    ("activation", "slope"),
    [
        (jnp.tanh, 1.0),
        (jax.nn.sigmoid, 0.25),
        (jax.nn.relu, 1.0),
        (jax.nn.softplus, 1.0),
        (jax.lax.erf, 2 / math.sqrt(math.pi)),
        (lambda a: 3.0 * jnp.sin(2.0 * a), 6.0),
        (jnp.cos, 1.0),
        (jax.nn.selu, 1.0507009873554805 * 1.6732632423543772),  # just below 0
        (lambda a: jax.nn.gelu(a, approximate=False), gelu_slope()),
        (lambda a: jnp.tanh(a - 30.0), 1.0),
        (lambda a: 0.0 * a, 0.0),
        (jnp.square, math.inf),
        (jnp.exp, math.inf),
    ],
)
def test_largest_slope(activation, slope):
    assert slope_bound(activation) == pytest.approx(slope, rel=1e-9)


def test_slope_that_is_no_number_is_refused():
    with pytest.raises(InputError, match=r"^activation: got a slope that is NaN at -"):
        slope_bound(jnp.sqrt)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_bound_is_reached_by_an_orthogonal_linear_network(alpha, x64):
    matrix = alpha * ortho_group.rvs(6, random_state=0)
    bound = weight_bound(jnp.asarray(matrix), identity)
    assert bound.norm == pytest.approx(alpha)
    assert float(bound.rate_bound) == pytest.approx(math.log(alpha), abs=1e-12)
    cell = elman(matrix, identity)
    path = trace(cell, jnp.zeros((5, 1)), carry=jnp.ones(6))
    along = trajectory_bound(cell, path)
    assert_close(along.rate_bound, math.log(alpha), 1e-12)
    assert_close(along.rate_floor, math.log(alpha), 1e-12)
    assert along.word == {0.5: "vanishing for certain", 2.0: "exploding for certain"}[alpha]


@pytest.mark.parametrize(
    ("activation", "norm", "word"),
    [
        (jnp.tanh, 0.999, "vanishing for certain"),
        (jnp.tanh, 1.0, "may explode"),
        (jnp.tanh, 1.001, "may explode"),
        (jax.nn.sigmoid, 3.99, "vanishing for certain"),
        (jax.nn.sigmoid, 4.01, "may explode"),
    ],
)
def test_word_says_no_more_than_is_proved(activation, norm, word, dtype):
    matrix = norm * ortho_group.rvs(8, random_state=1)
    assert weight_bound(jnp.asarray(matrix, dtype), activation).word == word


def test_no_eigenvalue_will_do(x64):
    """All eigenvalues are 0, so that "largest eigenvalue < 1/γ" would promise vanishing. It doubles."""
    matrix = np.array([[2.0, -4.0], [1.0, -2.0]])
    assert np.abs(np.linalg.eigvals(matrix)).max() < 1e-7
    cell = elman(matrix, jax.nn.relu)
    cell.bias[...] = jnp.array([0.0, -1e9])
    path = trace(cell, jnp.zeros((20, 1)), carry=jnp.array([1.0, 0.0]))
    growth = propagator(cell, path, lags=[19]).log_singular_values[0, 0] / 19
    bound = weight_bound(jnp.asarray(matrix), jax.nn.relu)
    assert math.log(2) <= float(growth) <= float(bound.rate_bound)
    assert bound.word == "may explode"
    assert float(bound.rate_bound) == pytest.approx(math.log(5))  # σ₁ = √(4 + 16 + 1 + 4)


def preactivations(cell, path):
    return cell.project(path.xs) + cell.mix(path.before)


@pytest.mark.parametrize(
    ("name", "activation"),
    [("elman-tanh", jnp.tanh), ("elman-relu", jax.nn.relu), ("elman-sigmoid", jax.nn.sigmoid)],
)
def test_bounds_of_an_elman_cell_stand_in_order(name, activation, x64):
    cell, path = travelled(name)
    kernel = cell.recurrent_kernel[...]
    everywhere = weight_bound(kernel, activation)
    visited = weight_bound(kernel, activation, preactivations(cell, path))
    along = trajectory_bound(cell, path)
    measured = np.asarray(propagator(cell, path).log_singular_values[-1]) / path.length
    tiny = 1e-12
    assert visited.slope.shape == (path.length, *path.batch)
    assert visited.rate_bound.shape == along.rate_bound.shape == path.batch
    assert (measured[..., 0] <= np.asarray(along.rate_bound) + tiny).all()
    assert (measured[..., -1] >= np.asarray(along.rate_floor) - tiny).all()
    assert (np.asarray(along.rate_bound) <= visited.rate_bound + tiny).all()
    assert (visited.rate_bound <= everywhere.rate_bound + tiny).all()


def test_slopes_along_a_trajectory_are_those_of_the_jacobians(x64):
    cell, path = travelled("elman-tanh")
    bound = weight_bound(cell.recurrent_kernel[...], jnp.tanh, preactivations(cell, path))
    assert_close(bound.slope, (1 - path.states[1:] ** 2).max(axis=-1), 1e-13)
    logs = np.log(np.linalg.norm(np.asarray(cell.recurrent_kernel[...]), 2) * bound.slope)
    assert_close(bound.rate_bound, logs.mean(axis=0), 1e-13)


@every_plain_cell
def test_trajectory_bound_is_the_mean_of_log_norms(name, x64):
    cell, path = travelled(name)
    matrices = np.asarray(jacobians(cell, path))
    found = trajectory_bound(cell, path)
    with np.errstate(divide="ignore"):  # all units of a ReLU network may be silent
        log_norms = np.log(np.linalg.norm(matrices, 2, axis=(-2, -1)))
    assert_close(found.log_norms, log_norms, 1e-12)
    log_det = np.linalg.slogdet(matrices)[1]
    regular = np.isfinite(log_det) & (log_det > -20)
    least = np.log(np.linalg.norm(np.linalg.inv(matrices[regular]), 2, axis=(-2, -1)))
    assert_close(np.asarray(found.log_least)[regular], -least, 1e-8)


@every_twin
def test_foreign_cells_have_the_same_bounds(kind, x64):
    ours, foreign = twins(kind)
    xs, carry = inputs(ours)
    found = [trajectory_bound(cell, trace(cell, xs, carry=carry)) for cell in (ours, foreign)]
    assert_close(found[0].log_norms, found[1].log_norms, 1e-12)


def test_singular_jacobian_has_no_floor(x64):
    cell = elman(np.diag([2.0, 0.0]), identity)
    found = trajectory_bound(cell, trace(cell, jnp.zeros((3, 1)), carry=jnp.ones(2)))
    assert float(found.rate_floor) == -np.inf
    assert found.word == "may explode"


def test_jacobian_that_is_singular_to_rounding_has_no_floor(x64):
    turn, back = ortho_group.rvs(6, size=2, random_state=0)
    matrix = turn @ np.diag([2.0, 2.0, 1.0, 1.0, 1.0, 0.0]) @ back
    assert np.linalg.svd(matrix, compute_uv=False)[-1] > 0  # as rounding has it
    found = trajectory_bound(elman(matrix, identity), path_of(matrix))
    assert (np.asarray(found.log_least) == -np.inf).all()


def path_of(matrix):
    cell = elman(matrix, identity)
    return trace(cell, jnp.zeros((3, 1)), carry=jnp.ones(len(matrix)))


def test_one_sequence_of_a_batch_is_enough_for_doubt(x64):
    slopes = jnp.array([[0.5], [2.0]])
    cell = lambda s, x: (slopes * s, s)  # noqa: E731
    both = trajectory_bound(cell, trace(cell, None, carry=jnp.ones((2, 1)), length=3))
    assert_close(both.rate_bound, np.log([0.5, 2.0]), 1e-13)
    assert both.word == "may explode"


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ((jnp.ones((2, 3)), jnp.tanh), "kernel"),
        ((jnp.ones((2, 2), int), jnp.tanh), "kernel"),
        ((jnp.full((2, 2), jnp.nan), jnp.tanh), "kernel"),
        ((jnp.ones((2, 2)), jnp.sum), "activation"),
        ((jnp.ones((2, 2)), jnp.tanh, jnp.ones((5, 3))), "preactivations"),
        ((jnp.ones((2, 2)), jnp.tanh, jnp.full((5, 2), jnp.inf)), "preactivations"),
    ],
)
def test_bad_arguments_are_refused(arguments, argument):
    with pytest.raises(InputError, match=f"^{argument}: got"):
        weight_bound(*arguments)


def test_half_precision_is_enough_to_be_bounded():
    cell = make("lstm", jnp.bfloat16)
    xs, carry = inputs(cell, dtype=jnp.bfloat16)
    found = trajectory_bound(cell, trace(cell, xs, carry=carry))
    assert found.log_norms.dtype == jnp.float32
    assert found.log_norms.shape == (len(xs), *xs.shape[1:-1])
    assert cell.hidden_features == H
