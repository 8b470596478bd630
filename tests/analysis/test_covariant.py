"""Covariant Lyapunov vectors against eigenvectors, Hénon's symmetry in time, and a plain loop."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import InputError
from jaxrnn.analysis import Flow, covariant_vectors, jacobians, lyapunov, trace
from tests.analysis import systems
from tests.analysis.examples import assert_close, inputs, make, zero_weights

pytestmark = pytest.mark.usefixtures("x64")


def along(vectors, direction):
    """Cosine between columns [N, S] and a direction [S], regardless of sign."""
    return np.abs(vectors @ (direction / np.linalg.norm(direction)))


def test_those_of_a_constant_map_are_its_eigenvectors():
    """Not orthogonal, as those of the factorisation would be."""
    matrix = np.array([[0.9, 1.0, 0.3], [0.0, 0.5, 2.0], [0.0, 0.0, -0.2]])
    step = lambda s, x: (s @ jnp.asarray(matrix.T), s)  # noqa: E731
    found = covariant_vectors(step, trace(step, None, carry=jnp.zeros(3), length=120), settle=40)
    values, vectors = np.linalg.eig(matrix)
    assert_close(found.exponents, np.log(np.abs(values)), 1e-8)
    for i in range(3):
        assert_close(along(np.asarray(found.vectors[..., i]), vectors[:, i]), 1, 1e-8)


def test_each_vector_is_carried_into_its_successor():
    cell = make("elman-tanh")
    xs, carry = inputs(cell, length=120)
    path = trace(cell, xs, carry=carry)
    found = covariant_vectors(cell, path, k=3, settle=30)
    assert found.vectors.shape == (61, 2, 4, 3)
    steps = np.asarray(jacobians(cell, path))[30:90]
    moved = np.einsum("tbij,tbjk->tbik", steps, found.vectors[:-1])
    lengths = np.linalg.norm(moved, axis=-2)
    assert_close(np.log(lengths), found.local_rates, 1e-8)
    cosines = np.abs((moved / lengths[..., None, :] * found.vectors[1:]).sum(axis=-2))
    assert_close(cosines, np.ones_like(cosines), 1e-8)


def test_those_of_the_henon_map_have_its_exponents_and_transversal_directions():
    path = trace(systems.henon, None, carry=jnp.array([0.1, 0.1]), length=20_000)
    found = covariant_vectors(systems.henon, path, settle=100)
    whole = lyapunov(systems.henon, carry=jnp.array([0.1, 0.1]), length=20_000)
    assert_close(found.exponents, whole.exponents, 0.01)
    assert_close(found.exponents.sum(), math.log(0.3), 1e-3)
    angles = np.asarray(found.angles(1))
    assert 0 < angles.min() < 0.01  # tangencies: the map is not hyperbolic
    cosines = np.abs((found.vectors[..., 0] * found.vectors[..., 1]).sum(axis=-1))
    assert_close(np.cos(angles), cosines, 1e-7)


def test_a_flow_keeps_its_own_direction():
    """The middle vector of Lorenz's system is the velocity."""
    flow = Flow(systems.lorenz, time_step=0.005)
    start = lyapunov(flow, carry=jnp.array([1.0, 1.0, 20.0]), length=2000).position.carry
    path = trace(flow, None, carry=start, length=8000)
    found = covariant_vectors(flow, path, settle=3000)
    states = path.states[found.first : found.first + len(found.vectors)]
    velocity = np.array(systems.lorenz(states, None))
    velocity /= np.linalg.norm(velocity, axis=-1, keepdims=True)
    cosines = np.abs((found.vectors[..., 1] * velocity).sum(axis=-1))
    assert_close(cosines, np.ones_like(cosines), 1e-4)


def test_what_cannot_be_undone_is_refused():
    cell = zero_weights("lstm", [0.3, 1.0, -0.2, 0.5])
    xs, carry = inputs(cell, length=40)
    path = trace(cell, xs, carry=carry)
    with pytest.raises(InputError, match="singular in direction 4"):
        covariant_vectors(cell, path)
    assert covariant_vectors(cell, path, k=4).vectors.shape[-1] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 5}, "k: got 5; expected a whole number from 1 to 4"),
        ({"settle": 20}, "settle: got 20; expected a whole number from 0 to 19"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(options, message):
    cell = make("elman-tanh")
    xs, carry = inputs(cell, length=40)
    with pytest.raises(InputError, match=message):
        covariant_vectors(cell, trace(cell, xs, carry=carry), **options)


def test_angles_need_two_sides():
    path = trace(systems.henon, None, carry=jnp.array([0.1, 0.1]), length=100)
    with pytest.raises(InputError, match="dimension: got 2; expected a whole number from 1 to 1"):
        covariant_vectors(systems.henon, path).angles(2)
