"""Directions pushed through a split step, against the same step taken as a whole."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.analysis.tangents import Tangents, advance, nearly_orthonormal, same_flag
from tests.zoo import every_cell

F, H, T, K = 3, 4, 6, 3


@every_cell
def test_a_split_step_pushes_directions_as_the_whole_step_does(name, x64):
    """The recurrent weights are read once for state and directions; nothing else may change."""

    def build():
        return jaxrnn.make_cell(name, F, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))

    draw = np.random.default_rng(0)
    fill = lambda a: jnp.asarray(draw.normal(size=a.shape, scale=0.7))  # noqa: E731
    cell = jax.tree.map(fill, jax.eval_shape(build))
    for batch in ((), (2,)):
        xs = jnp.asarray(draw.normal(size=(T, *batch, F)))
        carry = jax.tree.map(fill, cell.initialize_carry((*batch, F)))
        size = sum(leaf.size for leaf in jax.tree.leaves(carry)) // int(np.prod(batch))
        rows = np.linalg.qr(draw.normal(size=(*batch, size, K)))[0]
        state = Tangents.at(carry, jnp.asarray(np.swapaxes(rows, -1, -2)))
        split, split_logs = advance(cell, xs, state, T)
        whole, whole_logs = advance(lambda carry, x: cell(carry, x), xs, state, T)
        np.testing.assert_allclose(split_logs, whole_logs, rtol=1e-12, atol=1e-12)
        for ours, theirs in zip(jax.tree.leaves(split), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("count", [5, 3])
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_a_basis_of_the_same_flag_gives_the_same_sums(batch, count, x64):
    """In between, any basis will do; NumPy's QR after every step is the reference."""
    draw = np.random.default_rng(0)
    steps = draw.normal(size=(6, *batch, 5, 5))
    start = np.linalg.qr(draw.normal(size=(*batch, 5, count)))[0]

    basis, expected = start, np.zeros((*batch, count))
    for step in steps:
        basis, r = np.linalg.qr(step @ basis)
        expected += np.log(np.abs(np.diagonal(r, axis1=-2, axis2=-1)))

    columns, sums = jnp.asarray(start), jnp.zeros((*batch, count))
    for i, step in enumerate(steps):
        factorise = same_flag if i < len(steps) - 1 else nearly_orthonormal
        columns, lengths, alive = factorise(step @ columns)
        assert alive.all()
        sums += jnp.log(lengths)
    np.testing.assert_allclose(sums, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.abs(columns), np.abs(basis), rtol=1e-10, atol=1e-12)


def test_a_direction_that_depends_on_those_before_is_not_alive():
    columns = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    columns = columns.at[:, 1].set(-2 * columns[:, 0])
    basis, _, alive = same_flag(columns)
    assert alive.tolist() == [True, False, True]
    assert np.linalg.matrix_rank(np.asarray(basis)) == 3
