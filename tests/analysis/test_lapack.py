"""No compiled program holds two factorisations that could run side by side: on two cores they never end."""

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.extend.core import Var

import jaxrnn
from jaxrnn.analysis import _continuation as continuation
from jaxrnn.analysis import _input_sensitivity as input_sensitivity
from jaxrnn.analysis import _propagator as propagator
from jaxrnn.analysis import benettin, covariant, lapack, least_squares, roots
from jaxrnn.analysis._gated_mean_field import _populate
from jaxrnn.analysis.exponents import Position
from jaxrnn.analysis.tangents import Tangents
from jaxrnn.tasks import load_task
from jaxrnn.training import FitConfig, Penalties, Placement
from jaxrnn.training.program import Program
from tests.analysis.examples import inputs, make

CALLS = {
    "cholesky",
    "eig",
    "eigh",
    "geqrf",
    "householder_product",
    "lu",
    "qr",
    "svd",
    "triangular_solve",
}


def programs_in(eqn):
    """The programs that an equation holds: bodies of loops, branches, compiled functions."""
    for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
        value = getattr(value, "jaxpr", value)
        if hasattr(value, "eqns"):
            yield value


def factorises(eqn):
    return eqn.primitive.name in CALLS or any(
        factorises(inner) for program in programs_in(eqn) for inner in program.eqns
    )


def side_by_side(program):
    """Pairs of factorisations neither of which needs the other, in a program and those inside it."""
    reached = {}  # variable -> the factorising equations that it depends on
    found = []
    for i, eqn in enumerate(program.eqns):
        before = set().union(*(reached.get(v, set()) for v in eqn.invars if isinstance(v, Var)))
        if factorises(eqn):
            others = {j for j, e in enumerate(program.eqns[:i]) if factorises(e)} - before
            found += [(program.eqns[j].primitive.name, eqn.primitive.name) for j in others]
            before |= {i}
        for out in eqn.outvars:
            reached[out] = before
        # The branches of a choice exclude each other; a loop's condition and body take turns.
        found += itertools.chain.from_iterable(map(side_by_side, programs_in(eqn)))
    return found


def test_two_that_are_independent_are_seen():
    a = jnp.ones((2, 3, 3))

    def apart(a):
        return jnp.linalg.qr(a)[0], jnp.linalg.svd(a, compute_uv=False)

    def in_turn(a):
        return jnp.linalg.svd(jnp.linalg.qr(a)[0], compute_uv=False)

    def within_a_loop(a):
        return jax.lax.fori_loop(0, 3, lambda _, s: apart(s[0]), (a, jnp.ones((2, 3))))

    assert side_by_side(jax.make_jaxpr(apart)(a).jaxpr)
    assert side_by_side(jax.make_jaxpr(within_a_loop)(a).jaxpr)
    assert not side_by_side(jax.make_jaxpr(in_turn)(a).jaxpr)


def factorised(program):
    """Shapes of what is factorised, in a program and those inside it."""
    for eqn in program.eqns:
        if eqn.primitive.name in CALLS:
            yield eqn.invars[0].aval.shape
        yield from itertools.chain.from_iterable(map(factorised, programs_in(eqn)))


def searches(cell, xs, carry):
    """Programs of the searches for fixed points: a batch of candidates, and one point of a branch."""
    like = jax.tree.map(lambda leaf: leaf[0], carry)
    settings = {"method": least_squares.LevenbergMarquardt(), "period": 1}
    inputs, states = jnp.broadcast_to(xs[0, 0], (6, *xs.shape[2:])), jnp.ones((6, 8))
    set_out = functools.partial(roots._set_out.bound(cell), like, **settings)
    places = jax.eval_shape(set_out, (inputs, states))
    go_on = functools.partial(roots._go_on.bound(cell), like, 1e-5, **settings)
    confirm = functools.partial(roots._confirm.bound(cell), like, 1e-5, 1e-4, period=1)
    path = lambda mu: jnp.broadcast_to(mu, xs.shape[2:])  # noqa: E731
    corrected = functools.partial(continuation._corrected.bound(cell), like, path=path)
    return {
        "search": (go_on, jnp.asarray(3, jnp.int32), (inputs, places)),
        "confirmation": (confirm, (inputs, states)),
        "correction": (corrected, jnp.ones(9), jnp.ones(9), 1e-5),
    }


def traced_exponents(cell, xs):
    """The run of exponents that can be a part of other programs, and its gradient."""

    def run(carry):
        start = Position(carry, jnp.broadcast_to(jnp.eye(8), (2, 8, 8)), 0)
        return benettin.traced(cell, xs, start, 1, len(xs), 2, 1.0).rates

    return run, jax.grad(lambda carry: run(carry).sum())


def cases():
    cell = make("lstm", jnp.float32)
    xs, carry = inputs(cell, dtype=jnp.float32)
    matrices = jnp.ones((6, 2, 8, 8))
    tangents = Tangents.at(carry, jnp.ones((2, 8, 8)))
    count, blocks = jnp.asarray(2, jnp.int32), jnp.ones(16, jnp.int32)
    chunk = functools.partial(benettin._chunk.bound(cell), xs)
    traced, gradient = traced_exponents(cell, xs)
    return {
        "eigenvalues": (lapack.eigenvalues, matrices),
        "singular values": (lapack.singular_values, matrices),
        "product": (functools.partial(propagator._values, lags=(1, 6)), matrices),
        "its directions": (
            functools.partial(propagator._directions, lags=(1, 6), leading=2),
            matrices,
        ),
        "triangles": (input_sensitivity._triangles, matrices[..., :3]),
        "inputs": (
            functools.partial(input_sensitivity._input_logs, lags=(0, 3)),
            matrices,
            matrices[..., :3, :],
        ),
        "exponents": (chunk, tangents, blocks, count, jnp.asarray(True)),
        "determinants": (
            functools.partial(benettin._determinants.bound(cell), xs),
            tangents,
            count,
        ),
        "traced exponents": (traced, carry),
        "gradient of exponents": (gradient, carry),
        **searches(cell, xs, carry),
        "covariant, forward": (covariant._forward, matrices, jnp.ones((2, 8, 3))),
        "covariant, backward": (covariant._backward, matrices, jnp.ones((2, 8, 8))),
    }


@pytest.mark.parametrize("name", cases())
def test_factorisations_take_turns(name):
    function, *arguments = cases()[name]
    program = jax.make_jaxpr(function)(*arguments)
    assert side_by_side(program.jaxpr) == []
    assert any(factorises(eqn) for eqn in program.jaxpr.eqns)


def test_what_may_run_side_by_side_is_no_batch():
    """The pulls of state and difference are independent, and drawn with one matrix each."""
    populate = functools.partial(
        _populate.bound(make("lstm", jnp.float32)), memory=3, steps=4, units=5
    )
    settings = [jnp.ones(4)] * 3
    program = jax.make_jaxpr(populate)(jax.random.key(0), *settings).jaxpr
    assert list(factorised(program)) == [(3, 3), (3, 3)]


# Ensembles: where the weights are drawn, any number of layers and gates may be factorised at once.


def test_an_ensemble_of_cells_is_drawn_one_after_another():
    def make(key):
        return jaxrnn.GRUCell(3, 4, rngs=nnx.Rngs(key))

    program = jax.make_jaxpr(jax.vmap(make))(jax.random.split(jax.random.key(0), 6)).jaxpr
    assert {*factorised(program)} == {(4, 4)}


class Foreign(nnx.Module):
    """A network that is none of ours, with two orthogonal kernels of Flax's."""

    def __init__(self, rngs):
        draw = nnx.initializers.orthogonal()
        self.kernels = nnx.List(nnx.Param(draw(rngs.params(), (10, 10))) for _ in range(2))

    def __call__(self, xs, seq_lengths, dropout_key):
        return jnp.tanh(xs.sum(axis=0) @ self.kernels[0][:1]) @ self.kernels[1][...]


def test_so_is_one_of_any_networks():
    task, config = load_task("digits"), FitConfig(steps=1, every=1, seeds=6)
    program = Program(Foreign, task, config, Placement().grid(), {})
    shapes = {*factorised(jax.make_jaxpr(program._start)(program._keys, program._values).jaxpr)}
    assert shapes
    assert all(len(shape) == 2 for shape in shapes), shapes


def deep(rngs):
    """A network of two layers, each of which computes its recurrent matrix at every step."""
    layers = [jaxrnn.RNN(jaxrnn.OrthogonalCell(f, 4, rngs=rngs), time_major=True) for f in (1, 4)]
    return jaxrnn.models.EncoderClassifier(jaxrnn.Stack(layers), 10, rngs=rngs)


def shallow(rngs):
    """A network of one such layer."""
    cell = jaxrnn.OrthogonalCell(1, 4, rngs=rngs)
    return jaxrnn.models.SequenceClassifier(cell, 10, rngs=rngs)


@pytest.mark.parametrize(
    ("make", "penalties"), [(deep, Penalties()), (shallow, Penalties(l2=1e-3))]
)
def test_networks_that_factorise_several_times_a_step_train_one_after_another(make, penalties):
    task = load_task("digits")
    config = FitConfig(steps=1, every=1, seeds=3, penalties=penalties)
    program = Program(make, task, config, Placement().grid(), {})
    state = jax.eval_shape(program._start, program._keys, program._values)
    batch = jax.tree.map(jnp.asarray, task.valid.take(5))
    (part,) = task.train.parts(config.batch_size)
    place = jnp.zeros(2, jnp.int32)
    for function, arguments in (
        (program._run, (state, program._keys, program._values, part, place)),
        (program._answer_all, (state.members.model, batch, None)),
    ):
        shapes = {*factorised(jax.make_jaxpr(function)(*arguments).jaxpr)}
        assert shapes
        assert all(len(shape) == 2 for shape in shapes), shapes
