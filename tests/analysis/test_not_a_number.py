"""No NaN that a result does not speak of: numbers beyond the range of floats, and weights that are NaN."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.analysis import (
    covariant_vectors,
    edge_of_chaos,
    factored_jacobians,
    input_jacobians,
    jacobians,
    judge,
    mean_field,
    modes_of,
    propagator,
    pseudospectrum,
    spectrum,
    spectrum_of,
    trace,
    trajectory_bound,
)
from jaxrnn.checks import InputError


@pytest.mark.parametrize("function", [spectrum_of, modes_of, pseudospectrum])
def test_a_matrix_that_float32_cannot_hold_is_refused(function):
    with pytest.raises(
        InputError, match=r"matri.* in float32: got 2 non-finite values, .* at \[0, 0\]"
    ):
        function(1e39 * np.eye(2))


@pytest.mark.parametrize(
    "function",
    [
        jacobians,
        input_jacobians,
        factored_jacobians,
        trajectory_bound,
        covariant_vectors,
        spectrum,
        propagator,
    ],
)
def test_weights_that_are_nan_are_refused(function):
    """A trajectory does not know the cell that made it, and so not whether its weights are still good."""
    cell = jaxrnn.GRUCell(3, 5, rngs=nnx.Rngs(0))
    path = trace(cell, jnp.ones((20, 2, 3)))
    lost = jax.tree.map(lambda leaf: leaf * jnp.nan, cell)
    with pytest.raises(InputError, match=r"cell: its derivative.*: got .* non-finite values"):
        function(lost, path)


@pytest.mark.parametrize("growth", [1e20, 1e-20])
def test_steps_whose_squares_leave_float32(growth):
    step = lambda s, x: (growth * s, s)  # noqa: E731
    path = trace(step, None, carry=jnp.zeros(2), length=12)
    exponents = covariant_vectors(step, path).exponents
    np.testing.assert_allclose(exponents, [np.log(growth)] * 2, rtol=1e-6)
    assert float(trajectory_bound(step, path).rate_bound) == pytest.approx(np.log(growth))


@pytest.mark.parametrize("changes", [[np.nan], [0.1, np.nan], []])
def test_no_verdict_on_nan(changes):
    with pytest.raises(
        InputError, match=r"changes: got .* NaN of .*; expected one or more numbers"
    ):
        judge(changes, np.zeros((3, 1)))


@pytest.mark.parametrize("gain", [1e4, 1e8, 1e10])
def test_mean_field_of_units_like_switches(gain):
    """φ² → 1, and g² E φ'² → 4 g / 3 √(2π), for ∫ sech⁴ = 4/3."""
    found = mean_field(jnp.tanh, gain)
    assert found.variance == pytest.approx(gain**2, rel=1 / gain)
    assert found.chi == pytest.approx(4 / 3 / np.sqrt(2 * np.pi) * gain, rel=max(1 / gain, 1e-9))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gain": 1e30}, "gain: got 1e\\+30; expected a number above 0 and up to 1e\\+10"),
        ({"gain": 1.0, "bias_variance": 1e60}, "bias_variance: got 1e\\+60; expected"),
        ({"gain": 1.0, "input_variance": 1e60}, "input_variance: got 1e\\+60; expected"),
    ],
)
def test_mean_field_beyond_its_integrals_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        mean_field(jnp.tanh, **settings)


def test_bracket_beyond_the_integrals_is_refused():
    with pytest.raises(InputError, match="bracket: got"):
        edge_of_chaos(jnp.tanh, bracket=(0.1, 1e30))
