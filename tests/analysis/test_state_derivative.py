"""∂s_stop/∂s_start in one call, against the derivative of the unrolled loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn.analysis import state_derivative, trace
from jaxrnn.checks import InputError
from tests.analysis.examples import make


@pytest.mark.parametrize(("start", "stop"), [(0, None), (3, 9), (11, 12)])
def test_equals_the_derivative_of_the_loop(start, stop, x64):
    cell = make("gru")
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(12, 3)))
    path = trace(cell, xs)

    def loop(h):
        for x in xs[start:stop]:
            h, _ = cell(h, x)
        return h

    expected = jax.jacrev(loop)(path.states[start])
    found = state_derivative(cell, path, start, stop)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("start", "stop"), [(5, 5), (-1, 3), (0, 13), (0, 0)])
def test_states_that_are_not_there_are_refused(start, stop):
    step = lambda s, x: (0.5 * s, s)  # noqa: E731
    path = trace(step, None, carry=jnp.ones(2), length=12)
    with pytest.raises(InputError, match=r"st(art|op): got"):
        state_derivative(step, path, start, stop)


def test_a_product_that_overflows_is_refused():
    step = lambda s, x: (1e20 * s, s)  # noqa: E731
    path = trace(step, None, carry=jnp.zeros(2), length=3)
    with pytest.raises(InputError, match=r"product of its Jacobians: got 2 non-finite"):
        state_derivative(step, path)
