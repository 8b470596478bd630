"""What is compiled for a step: once for all weights of a module, and never stale for a plain function."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.analysis import stack_gradient_flow
from jaxrnn.steps import compiled

H = 4


def gru(seed: int) -> jaxrnn.GRUCell:
    return jaxrnn.GRUCell(H, H, rngs=nnx.Rngs(seed))


class Scaling:
    """A plain step whose factor may change between calls."""

    def __init__(self, factor: float):
        self.factor = jnp.asarray(factor)

    def __call__(self, carry, x):
        moved = self.factor * carry + x
        return moved, moved


def outputs(cell, x, *, times: int):
    """The output of a cell's step, or the sum of those of a list."""
    cells = cell if isinstance(cell, list) else [cell]
    return times * sum(each(jnp.zeros(H), x)[1] for each in cells)


@pytest.mark.parametrize(
    "make",
    [gru, lambda seed: [gru(seed), gru(seed + 1)]],
    ids=["module", "list of modules"],
)
def test_modules_are_arguments(make):
    """New weights give new numbers from the program that is there."""
    traces = []

    @compiled
    def counted(cell, x, *, times: int):
        traces.append(times)
        return outputs(cell, x, times=times)

    found = [counted(make(seed), jnp.ones(H), times=1) for seed in (0, 1)]
    assert traces == [1]
    for seed in (0, 1):
        expected = outputs(make(seed), jnp.ones(H), times=1)
        np.testing.assert_allclose(found[seed], expected, rtol=1e-6)
    counted(make(0), jnp.ones(H), times=2)
    assert traces == [1, 2]


@pytest.mark.parametrize(
    "put",
    [lambda step: step, lambda step: [gru(0), step], jax.tree_util.Partial],
    ids=["alone", "beside a module", "as a pytree without arrays"],
)
def test_what_a_function_holds_is_never_stale(put):
    function, scaling = compiled(outputs), Scaling(0.0)
    step = lambda carry, x: scaling(carry + 1.0, x)  # noqa: E731
    cell = put(step)
    before = function(cell, jnp.zeros(H), times=1)
    scaling.factor = jnp.asarray(3.0)
    after = function(cell, jnp.zeros(H), times=1)
    np.testing.assert_allclose(after - before, 3.0, rtol=1e-6)


def test_a_module_without_arrays_is_a_step():
    class Leaky(nnx.Module):
        def __call__(self, carry, x):
            moved = 0.5 * carry + x
            return moved, moved

    np.testing.assert_allclose(compiled(outputs)(Leaky(), jnp.ones(H), times=3), 3.0)


def test_a_stack_of_a_module_and_a_function_that_changes():
    """The upper layer multiplies its own gradient by its factor at each step, whatever lies below."""
    upper, xs = Scaling(0.5), jax.random.normal(jax.random.key(0), (12, H))
    for factor in (0.5, 0.25):
        upper.factor = jnp.asarray(factor)
        low, high = stack_gradient_flow(
            [gru(0), upper], xs, lambda y: y[-1].sum(), carries=[None, jnp.zeros(H)]
        )
        np.testing.assert_allclose(high.log_gains, np.log(factor), rtol=1e-5)
        assert np.isfinite(low.log_norms).all()
