"""A batch gives what its sequences give, whatever a step was written for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import analysis
from jaxrnn.analysis.flows import Flow
from jaxrnn.checks import InputError

T = 12
W = np.array([[0.6, -0.9], [0.8, 0.3]], np.float32)


def henon(s, x):
    """As in the README: written for one state."""
    moved = jnp.stack([1 - 1.4 * s[0] ** 2 + s[1], 0.3 * s[0]])
    return moved, moved


class Henon(nnx.Module):
    def __init__(self):
        self.bend = nnx.Param(jnp.asarray(1.4))

    def __call__(self, s, x):
        moved = jnp.stack([1 - self.bend[...] * s[0] ** 2 + s[1], 0.3 * s[0]])
        return moved, moved


def product(s, x):
    moved = jnp.tanh(W @ s)
    return moved, moved


def rolled(s, x):
    """`jnp.roll` without an axis rolls across sequences."""
    moved = jnp.tanh(1.5 * jnp.roll(s, 1) - 0.3 * s)
    return moved, moved


def normed(s, x):
    moved = jnp.sin(3 * s) / (1 + jnp.linalg.norm(s))
    return moved, moved


def lorenz(s, x):
    return jnp.stack([10 * (s[1] - s[0]), s[0] * (28 - s[2]) - s[1], s[0] * s[1] - 8 / 3 * s[2]])


def batched(s, x):
    """Written for a batch alone."""
    moved = jnp.concatenate([jnp.sin(2 * s[:, 1:]), s[:, :1] * 0.9], axis=1)
    return moved, moved


def anywhere(s, x):
    """Written for any axes."""
    moved = jnp.tanh(s @ W.T)
    return moved, moved


STEPS = [henon, Henon(), product, rolled, normed, Flow(lorenz, 0.02), batched, anywhere]
NAMES = ["henon", "module", "product", "rolled", "normed", "flow", "batched", "anywhere"]


def starts(step, count):
    size = 3 if isinstance(step, Flow) else 2
    return 0.1 + 0.2 * jax.random.uniform(jax.random.key(count), (count, size))


def states_of(step, start):
    """States of one sequence from a loop in Python."""
    states = [start]
    for _ in range(T):
        s = states[-1]
        states.append(step(s[None], None)[0][0] if step is batched else step(s, None)[0])
    return jnp.stack(states)


def matrices_of(step, states):
    def one(s):
        return step(s[None], None)[0][0] if step is batched else step(s, None)[0]

    return np.asarray(jax.vmap(jax.jacfwd(one))(states[:-1]), np.float64)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("step", STEPS, ids=NAMES)
def test_each_sequence_goes_where_it_goes_alone(step, count):
    first = starts(step, count)
    expected = jnp.stack([states_of(step, start) for start in first], axis=1)
    # Hénon magnifies rounding some hundredfold in 12 steps.
    done = jaxrnn.unroll(step, None, carry=first, length=T)
    np.testing.assert_allclose(done.carries, expected[1:], rtol=1e-3, atol=1e-4)
    path = analysis.trace(step, None, carry=first, length=T)
    np.testing.assert_allclose(path.states, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("step", STEPS, ids=NAMES)
def test_each_sequence_is_analysed_as_it_is_alone(step):
    first = starts(step, 2)
    paths = [states_of(step, start) for start in first]
    path = analysis.trace(step, None, carry=first, length=T)
    matrices = [matrices_of(step, states) for states in paths]
    np.testing.assert_allclose(
        analysis.jacobians(step, path), np.stack(matrices, axis=1), rtol=1e-2, atol=1e-3
    )
    logs = [np.linalg.slogdet(each)[1].mean() for each in matrices]
    found = analysis.lyapunov(step, carry=first, length=T)
    time = step.time_step if isinstance(step, Flow) else 1.0
    np.testing.assert_allclose(time * found.exponents.sum(axis=-1), logs, atol=1e-3)

    log_sigma = analysis.propagator(step, path, lags=[10]).log_singular_values[0, :, 0]
    for sequence, each in enumerate(matrices):
        largest = np.linalg.norm(np.linalg.multi_dot(list(each[:-11:-1])), 2)
        np.testing.assert_allclose(log_sigma[sequence], np.log(largest), atol=1e-2)

    flow = analysis.gradient_flow(step, None, lambda y: y[-1].sum(), carry=first, length=T)
    for sequence, each in enumerate(matrices):
        gradient = np.linalg.multi_dot([np.ones(len(each[0])), *each[:0:-1]])
        norm = np.log(np.linalg.norm(gradient))
        np.testing.assert_allclose(flow.log_norms[0, sequence], norm, atol=2e-2)


class Driven(nnx.Module):
    """A map that draws its own noise from a key and knows its time: neither is part of the state."""

    def __init__(self):
        self.weights = nnx.Param(jnp.asarray(W))

    def __call__(self, carry, x):
        key, s, count = carry
        key, used = jax.random.split(key)
        noise = jax.random.normal(used, s.shape) / (1 + count.astype(s.dtype))
        s = jnp.tanh(s @ self.weights[...].T + noise)
        return (key, s, count + 1), s


@pytest.mark.parametrize("size", [(), (3,)], ids=["one", "batch"])
def test_keys_and_counters_are_given_data(size):
    """Held against the chain rule in NumPy on the states that a loop goes through."""
    step, s = Driven(), 0.1 * jnp.ones((*size, 2))
    carry = (jax.random.key(3), s, jnp.zeros((), jnp.int32))
    states, now = [], carry
    for _ in range(T):
        now, y = step(now, None)
        states.append(np.asarray(y, np.float64).reshape(-1, 2)[-1])
    matrices = [(1 - y**2)[:, None] * W for y in states]

    def last(array):
        return np.asarray(array).reshape(T, -1, *np.shape(array)[1 + len(size) :])[:, -1]

    path = analysis.trace(step, None, carry=carry, length=T)
    np.testing.assert_allclose(last(path.states[1:]), states, atol=1e-5)
    np.testing.assert_allclose(last(analysis.jacobians(step, path)), matrices, atol=1e-5)
    radius = [np.abs(np.linalg.eigvals(each)).max() for each in matrices]
    np.testing.assert_allclose(
        last(analysis.spectrum(step, path).spectral_radius), radius, atol=1e-3
    )
    found = analysis.lyapunov(step, carry=carry, length=T)
    determinant = np.mean([np.linalg.slogdet(each)[1] for each in matrices])
    np.testing.assert_allclose(np.sum(found.exponents, -1).reshape(-1)[-1], determinant, atol=1e-4)
    flow = analysis.gradient_flow(step, None, lambda y: y[-1].sum(), carry=carry, length=T)
    gradient = np.linalg.multi_dot([np.ones(2), *matrices[:0:-1]])
    np.testing.assert_allclose(last(flow.log_norms)[0], np.log(np.linalg.norm(gradient)), atol=1e-3)
    parts = analysis.lag_contributions(step, None, lambda y: y[-1].sum(), carry=carry, length=T)
    np.testing.assert_allclose(parts.fractions.sum(), 1, atol=1e-4)
    assert parts.difference < 1e-5
    certificates = analysis.diagnose(step, None, carry=carry, length=T).certificates
    assert max(certificates.jacobian, certificates.gradient) < 1e-5


def test_a_carry_without_floats_is_named():
    count = lambda n, x: (n + 1, n)  # noqa: E731
    path = analysis.trace(count, None, carry=jnp.zeros(3, jnp.int32), length=4)
    with pytest.raises(InputError, match=r"carry: got int32.*expected at least one leaf of floats"):
        analysis.jacobians(count, path)
    with pytest.raises(InputError, match=r"carry: got int32.*expected at least one leaf of floats"):
        analysis.lyapunov(count, carry=jnp.zeros(3, jnp.int32), length=4)


def test_a_step_for_a_batch_alone_has_fixed_points():
    found = analysis.fixed_points(batched, None, jnp.array([[0.5, 0.5], [0.9, 0.8]]))
    # s = sin(1.8 s): s ≈ 0.9036 by bisection
    low, high = 0.5, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.sin(1.8 * middle) > middle else (low, middle)
    np.testing.assert_allclose(found.states[0], [low, 0.9 * low], rtol=1e-5)


def test_inputs_of_one_sequence_each_and_of_all():
    def step(s, x):
        drive, time = x
        moved = jnp.tanh(W @ s + drive[:2] * jnp.cos(time))
        return moved, moved[0]

    drives, times = jax.random.normal(jax.random.key(0), (T, 3, 2)), jnp.arange(float(T))
    first = starts(step, 3)
    done = jaxrnn.unroll(step, (drives, times), carry=first)
    path = analysis.trace(step, (drives, times), carry=first)
    for sequence in range(3):
        s = first[sequence]
        for t in range(T):
            s, y = step(s, (drives[t, sequence], times[t]))
            np.testing.assert_allclose(done.carries[t, sequence], s, atol=1e-5)
            np.testing.assert_allclose(path.outputs[t, sequence], y, atol=1e-5)


def test_what_is_made_for_a_batch_is_left_alone():
    """Captured arrays of the batch's size, noise of its own for each sequence, a counter for all."""
    gains, first = jnp.array([[0.5], [2.0], [1.0]]), starts(None, 3)

    def captured(s, x):
        return jnp.tanh(s), gains * s

    done = jaxrnn.unroll(captured, None, carry=first, length=2)
    np.testing.assert_allclose(done.outputs[0], gains * first, rtol=1e-6)

    def noisy(carry, x):
        s, key = carry
        key, used = jax.random.split(key)
        return (s + jax.random.normal(used, s.shape), key), s

    s, _ = jaxrnn.unroll(noisy, None, carry=(jnp.zeros((3, 2)), jax.random.key(0)), length=1).carry
    assert len(np.unique(np.asarray(s))) == 6

    def counted(carry, x):
        s, count = carry
        return (henon(s, x)[0], count + 1), count

    done = jaxrnn.unroll(counted, None, carry=(first, jnp.zeros((), jnp.int32)), length=3)
    assert done.outputs.tolist() == [0, 1, 2]
    np.testing.assert_allclose(done.carries[0][-1, 0], states_of(henon, first[0])[3], rtol=1e-5)
