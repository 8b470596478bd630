"""The ends of a Hessian's spectrum against the whole Hessian, and against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

import jaxrnn
from jaxrnn.analysis import hessian_extremes
from jaxrnn.checks import InputError

KEY = jax.random.key(0)


def loss_of_cell(dtype):
    cell = jaxrnn.GRUCell(2, 4, param_dtype=dtype, rngs=nnx.Rngs(0))
    xs = jax.random.normal(KEY, (6, 3, 2), dtype)

    def loss(cell):
        return jnp.mean(jaxrnn.unroll(cell, xs).outputs ** 2)

    return loss, cell


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-4), (jnp.float64, 1e-9)])
@pytest.mark.parametrize("count", [1, 3])
def test_extremes_of_a_cell_are_those_of_the_whole_hessian(x64, dtype, tolerance, count):
    loss, cell = loss_of_cell(dtype)
    flat, restore = ravel_pytree(cell)
    expected = np.linalg.eigvalsh(jax.hessian(lambda theta: loss(restore(theta)))(flat))
    found = hessian_extremes(loss, cell, key=KEY, count=count, steps=flat.size)
    assert found.converged
    ends = np.r_[expected[:count], expected[-count:]]
    np.testing.assert_allclose(found.eigenvalues, ends, atol=tolerance * abs(expected).max())
    gradient = jax.grad(lambda theta: loss(restore(theta)))(flat)
    assert found.gradient_norm == pytest.approx(float(jnp.linalg.norm(gradient)), rel=1e-5)


def test_errors_bound_the_distance_to_an_eigenvalue(x64):
    spectrum = np.linspace(-1, 10, 40)
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(40, 40)))[0]
    matrix = jnp.asarray(basis @ np.diag(spectrum) @ basis.T)
    for steps in (3, 6, 12):
        found = hessian_extremes(
            lambda x: 0.5 * x @ matrix @ x, jnp.ones(40), key=KEY, count=1, steps=steps
        )
        for value, error in zip(found.eigenvalues, found.errors, strict=True):
            assert np.abs(spectrum - value).min() <= error + 1e-12
        assert not found.converged
        assert "not converged" in found.text


def test_a_space_that_is_exhausted_ends_the_search():
    found = hessian_extremes(lambda x: jnp.sum(x**2), jnp.ones(9), key=KEY)
    assert (found.steps, found.converged) == (1, True)
    np.testing.assert_allclose(found.eigenvalues, [2.0], rtol=1e-6)
    flat = hessian_extremes(lambda x: jnp.sum(x["a"]), {"a": jnp.ones(3)}, key=KEY)
    np.testing.assert_array_equal(flat.eigenvalues, [0.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": jnp.arange(3)}, "parameters"),
        ({"parameters": {}}, "parameters: got none"),
        ({"loss": lambda x: x}, "loss: .*a scalar"),
        ({"count": 0}, "count: got 0"),
        ({"steps": 0}, "steps: got 0"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"parameters": jnp.array([jnp.nan])}, "parameters"),
        ({"loss": lambda x: jnp.sum(jnp.sqrt(x - 1))}, "curvature"),
    ],
)
def test_bad_input_is_refused(change, message):
    given = {"loss": lambda x: jnp.sum(x**2), "parameters": jnp.ones(3), **change}
    with pytest.raises(InputError, match=message):
        hessian_extremes(given.pop("loss"), given.pop("parameters"), key=KEY, **given)
