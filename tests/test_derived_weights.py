"""Weights computed from parameters: what each promises, and that no loop computes one anew.

Oracles: NumPy's and SciPy's linear algebra on the same parameters; the step with nothing prepared.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from flax import nnx

import jaxrnn
from jaxrnn import Blocked, Scan
from jaxrnn.cells import CELLS
from jaxrnn.cells.weights import (
    Blended,
    BlockTriangular,
    Directions,
    Orthogonal,
    Phases,
    SkewSymmetric,
)
from jaxrnn.typing import DerivedWeight, prepared

F, H, T, B = 3, 4, 5, 2
DERIVED = {
    "orthogonal": {"recurrent_kernel"},
    "antisymmetric": {"recurrent_kernel"},
    "lipschitz": {"recurrent_kernel", "linear"},
    "clockwork": {"recurrent_kernel"},
    "unitary": {"phases", "normals"},
}
PLAIN = [name for name in CELLS if name not in DERIVED]
KEY = jax.random.key(0)
normal = jax.nn.initializers.normal()


def filled(module, dtype, scale=0.7):
    draw = np.random.default_rng(0)
    return jax.tree.map(
        lambda a: jnp.asarray(draw.normal(size=a.shape, scale=scale), dtype), module
    )


def make(name, dtype=jnp.float32):
    """A cell of random weights."""

    def build():
        return jaxrnn.make_cell(name, F, H, param_dtype=dtype, rngs=nnx.Rngs(0))

    return filled(jax.eval_shape(build), dtype)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_skew_symmetric_is_skew_to_the_bit(size, dtype):
    weight = SkewSymmetric(size, init=normal, param_dtype=dtype, key=KEY)
    A = np.asarray(weight[...])
    assert A.dtype == dtype
    np.testing.assert_array_equal(A, -A.T)
    np.testing.assert_array_equal(A[np.triu_indices(size, 1)], weight.upper[...])


@pytest.mark.parametrize("size", [1, 7, 32])
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_orthogonal_is_orthogonal_to_rounding(size, scale, dtype):
    weight = filled(Orthogonal(size, param_dtype=dtype, key=KEY), dtype, scale)
    W = np.asarray(weight[...], np.float64)
    # The squarings of expm double a rounding each: they undo the halvings of ‖A‖ to below about 4.
    norm = max(4.0, np.linalg.norm(weight.log[...], 1))
    rounding = float(norm * np.finfo(dtype).eps * size)
    np.testing.assert_allclose(W @ W.T, np.eye(size), rtol=0, atol=rounding)
    assert np.linalg.det(W) == pytest.approx(1, abs=rounding)


def test_orthogonal_is_the_exponential_of_its_generator(x64):
    weight = filled(Orthogonal(7, param_dtype=jnp.float64, key=KEY), jnp.float64)
    expected = scipy.linalg.expm(np.asarray(weight.log[...]))
    np.testing.assert_allclose(weight[...], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [2, 5])
def test_a_fresh_orthogonal_matrix_turns_planes_of_coordinates(size, x64):
    weight = Orthogonal(size, param_dtype=jnp.float64, key=KEY)
    angles = np.diag(weight.log[...], 1)[::2]
    assert np.all(np.abs(angles) <= np.pi)
    assert len(set(np.abs(angles))) == size // 2
    expected = np.eye(size)
    for k, a in enumerate(angles):
        plane = slice(2 * k, 2 * k + 2)
        expected[plane, plane] = [[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]
    np.testing.assert_allclose(weight[...], expected, rtol=0, atol=1e-14)


def test_orthogonal_in_half_precision_is_the_rounded_one():
    weight = Orthogonal(4, param_dtype=jnp.bfloat16, key=KEY)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), weight)
    assert weight[...].dtype == jnp.bfloat16
    np.testing.assert_array_equal(weight[...], wide[...].astype(jnp.bfloat16))


def spectrum(matrix):
    """Eigenvalues by imaginary part: of the real parts some differ by rounding alone."""
    found = np.sort_complex(np.linalg.eigvals(matrix))
    return found[np.argsort(found.imag, kind="stable")]


@pytest.mark.parametrize(
    ("blend", "of"),
    [(0.0, lambda M: M + M.T), (0.5, lambda M: M), (1.0, lambda M: M - M.T)],
)
def test_blended_has_the_spectrum_of_what_it_blends_moved_to_the_left(blend, of, x64):
    weight = blended(blend, damping=0.3)
    found, expected = spectrum(weight[...]), spectrum(of(np.asarray(weight.free[...]))) - 0.3
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("blend", [0.5, 0.65, 0.9, 1.0])
def test_blended_grows_no_faster_than_its_symmetric_part(blend, x64):
    """Re λ lies within the eigenvalues of (1 − β)(M + Mᵀ) − γ I; with β = 1 it is −γ."""
    weight = blended(blend, damping=0.3)
    M = np.asarray(weight.free[...])
    symmetric = np.linalg.eigvalsh((1 - blend) * (M + M.T)) - 0.3
    found = spectrum(weight[...]).real
    assert symmetric[0] - 1e-13 <= found.min()
    assert found.max() <= symmetric[-1] + 1e-13
    np.testing.assert_allclose(np.trace(weight[...]), symmetric.sum(), rtol=1e-13)


def blended(blend, damping):
    options = {"init": normal, "param_dtype": jnp.float64, "key": KEY}
    return filled(Blended(6, blend=blend, damping=damping, **options), jnp.float64)


def test_block_triangular_has_no_entries_from_fast_units_to_slow_ones(dtype):
    group = [0, 0, 1, 2, 2]
    weight = BlockTriangular(group, init=normal, param_dtype=dtype, key=KEY)
    W = np.asarray(weight[...])
    read = np.array([[source >= target for target in group] for source in group])
    np.testing.assert_array_equal(W != 0, read)
    np.testing.assert_array_equal(W[read], weight.entries[...])
    assert W.dtype == dtype


def test_phases_are_numbers_of_size_one(dtype):
    weight = filled(Phases((3, 7), param_dtype=dtype, key=KEY), dtype, scale=5.0)
    re, im = np.moveaxis(np.asarray(weight[...], np.float64), -2, 0)
    θ = np.asarray(weight.angles[...], np.float64)
    np.testing.assert_allclose(re + 1j * im, np.exp(1j * θ), rtol=0, atol=np.finfo(dtype).eps)


def test_directions_have_norm_one(dtype):
    weight = filled(Directions((2, 7), param_dtype=dtype, key=KEY), dtype, scale=5.0)
    v = np.asarray(weight.free[...], np.float64)
    expected = v / np.linalg.norm(v, axis=-1, keepdims=True)
    np.testing.assert_allclose(weight[...], expected, rtol=4 * np.finfo(dtype).eps)


def norms(vectors):
    return np.linalg.norm(np.asarray(vectors), axis=-1)


@pytest.mark.parametrize("kind", [Phases, Directions])
def test_what_has_size_one_does_not_round_it_away_in_half_precision(kind):
    weight = kind((2, 6), param_dtype=jnp.bfloat16, key=KEY)
    assert weight[...].dtype == jnp.float32 == weight.dtype
    size = jnp.hypot(*jnp.moveaxis(weight[...], -2, 0)) if kind is Phases else norms(weight[...])
    np.testing.assert_allclose(size, 1, rtol=1e-6)
    assert {leaf.dtype for leaf in jax.tree.leaves(weight)} == {jnp.dtype(jnp.bfloat16)}


def test_a_fast_unit_of_the_clockwork_does_not_move_a_slow_one():
    cell = make("clockwork")
    clock, h = cell.initialize_carry((F,))  # at time 0 all units move
    moved = jax.jacfwd(lambda h: cell((clock, h), jnp.ones(F))[1])(h)
    np.testing.assert_array_equal(moved != 0, np.triu(np.ones((H, H), bool)))


# Preparation.


def equations(program, inside=False):
    """Yield every operation of a program with whether a loop over time holds it."""
    for eqn in program.eqns:
        yield eqn.primitive.name, inside
        for value in jax.tree.leaves(eqn.params, is_leaf=is_program):
            if is_program(value):
                within = inside or eqn.primitive.name in ("scan", "while")
                yield from equations(getattr(value, "jaxpr", value), within)


def is_program(value):
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def factorisations(function, *arguments):
    """Return for each LU factorisation, of which a matrix exponential has one, whether a loop holds it."""
    program = jax.make_jaxpr(function)(*arguments).jaxpr
    return [inside for name, inside in equations(program) if name == "lu"]


def one(name, dtype=jnp.float32):
    cell = make(name, dtype)
    draw = np.random.default_rng(1)
    return cell, jnp.asarray(draw.normal(size=(T, B, F)), dtype)


@pytest.mark.parametrize("method", [Scan(), Blocked(), Blocked(block=2)], ids=repr)
def test_an_unrolled_orthogonal_cell_has_one_exponential_and_not_in_its_loop(method):
    def loss(cell, xs):
        return jnp.sum(jaxrnn.unroll(cell, xs, method=method).outputs ** 2)

    def unprepared(cell, xs):
        return jax.lax.scan(cell, cell.initialize_carry((B, F)), xs)

    once = factorisations(lambda cell: cell.recurrent_kernel[...], one("orthogonal")[0])
    in_loop = factorisations(unprepared, *one("orthogonal"))
    assert len(once) == len(in_loop) > 0
    assert all(in_loop)
    assert factorisations(loss, *one("orthogonal")) == once == [False] * len(once)
    assert not any(factorisations(jax.grad(loss), *one("orthogonal")))


@pytest.mark.parametrize("name", DERIVED)
def test_a_prepared_cell_holds_its_weights_and_is_a_copy(name):
    cell = make(name)
    weights = {
        key: part[...] for key, part in vars(cell).items() if isinstance(part, DerivedWeight)
    }
    assert set(weights) >= DERIVED[name]
    ready = prepared(cell)
    for key in DERIVED[name]:
        assert isinstance(getattr(cell, key), nnx.Module)
        assert type(getattr(ready, key)) is nnx.Param
        np.testing.assert_array_equal(getattr(ready, key)[...], weights[key])


@pytest.mark.parametrize("name", DERIVED)
def test_gradients_through_preparation_are_those_of_the_plain_step(name, x64):
    cell, xs = one(name, jnp.float64)

    def looped(cell, xs, ready):
        step, carry = ready(cell), cell.initialize_carry((B, F))
        outputs = []
        for x in xs:
            carry, y = step(carry, x)
            outputs.append(y)
        return jnp.sum(jnp.stack(outputs) ** 2)

    gradient = jax.jit(jax.grad(looped, argnums=(0, 1)), static_argnums=2)
    found, expected = gradient(cell, xs, prepared), gradient(cell, xs, lambda cell: cell)
    assert type(found[0]) is type(cell)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)
    jax.tree.map(close, found, expected)


@pytest.mark.parametrize("name", PLAIN)
def test_a_cell_without_derived_weights_is_left_alone(name):
    cell = make(name)
    assert prepared(cell) is cell


def test_a_function_is_left_alone_and_a_list_is_prepared_one_by_one():
    cell, plain = make("orthogonal"), make("gru")

    def step(carry, x):
        return carry, x

    ready = prepared([step, cell, plain])
    assert ready[0] is step
    assert ready[2] is plain
    assert type(ready[1].recurrent_kernel) is nnx.Param


def test_cells_inside_a_module_are_prepared():
    class Pair(nnx.Module):
        def __init__(self):
            self.first, self.second = make("orthogonal"), make("gru")

    pair = Pair()
    ready = prepared(pair)
    assert type(ready.first.recurrent_kernel) is nnx.Param
    assert isinstance(pair.first.recurrent_kernel, Orthogonal)
    np.testing.assert_array_equal(
        ready.first.recurrent_kernel[...], pair.first.recurrent_kernel[...]
    )
