"""Every method gives what `Scan` gives, forward and backward; `Scan` itself is held to outside oracles in
`test_unroll.py`. What a method promises beyond that is tested in its own section."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import rnn

import jaxrnn
from jaxrnn import (
    Associative,
    Blocked,
    CuDNN,
    InputError,
    Newton,
    Remat,
    Scan,
    Stateful,
    Truncated,
    unroll,
)
from jaxrnn.cells import CELLS
from jaxrnn.jaxprs import flat
from jaxrnn.unrolling import Frames, cudnn
from jaxrnn.unrolling.blocks import even, segments
from jaxrnn.unrolling.dataflow import StepProgram
from tests.zoo import each_of, every_cell, table_of_cells

F, H, T, B = 3, 4, 7, 3
LENGTHS = np.array([0, 3, 7])
MASK = np.random.default_rng(1).random((T, B)) < 0.8
RESETS = np.random.default_rng(2).random((T, B)) < 0.3
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {"seq_lengths": LENGTHS, "mask": MASK, "resets": RESETS},
    "all-reverse": {"seq_lengths": LENGTHS, "mask": MASK, "resets": RESETS, "reverse": True},
}
METHODS = {
    "blocked": Blocked(),
    "blocked-step-by-step": Blocked(block=1),
    "blocked-in-blocks-and-a-rest": Blocked(block=3, keep_signals=False),
    "blocked-with-a-rest": Blocked(block=4, keep_signals=True),
    "blocked-computing-again": Blocked(block=4, keep_signals=False),
    "remat": Remat(),
    "remat-of-scan": Remat(block=4, inside=Scan()),
    "remat-in-blocks-and-a-rest": Remat(block=3),
    "newton": Newton(),
    "newton-diagonal": Newton(jacobian="diagonal"),
    "newton-damped": Newton(damping=0.3),
    "one-window": Truncated(T),
}
TOLERANCES = {"float32": 2e-4, "float64": 1e-10}


def draw(shape, dtype, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@functools.cache
def example(name, dtype):
    """A cell with random weights and biases, inputs and an initial carry."""

    def build():
        return jaxrnn.make_cell(name, F, H, param_dtype=dtype, rngs=nnx.Rngs(0))

    cell = jax.tree.map(lambda a: 0.7 * draw(a.shape, dtype, 3), jax.eval_shape(build))
    zeros = cell.initialize_carry((B, F))
    return cell, draw((T, B, F), dtype, 1), jax.tree.map(lambda a: draw(a.shape, dtype, 2), zeros)


@functools.partial(jax.jit, static_argnames=("method", "reverse"))
def loss_and_gradients(cell, xs, carry, method, reverse=False, **options):
    """All that `unroll` returns enters the loss, each in a way of its own."""

    def loss(cell, xs, carry):
        done = unroll(
            cell, xs, carry=carry, reset_carry=carry, method=method, reverse=reverse, **options
        )
        every = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(done.carries))
        last = sum(jnp.sum(leaf**3) for leaf in jax.tree.leaves(done.carry))
        return jnp.sum(jnp.sin(done.outputs)) + every + last, done.outputs

    return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(cell, xs, carry)


@functools.cache
def by_scan(name, options, dtype):
    return loss_and_gradients(*example(name, dtype), method=Scan(), **OPTIONS[options])


def assert_close(actual, expected, tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=tolerance, atol=tolerance * (1 + np.abs(b).max(initial=0))
        ),
        actual,
        expected,
    )


def test_there_are_several_blocks_and_a_rest():
    cell, xs, _ = example("gru", "float32")
    assert unroll(cell, xs, method=Blocked(block=3)).method == Blocked(3, keep_signals=True)
    assert [(s.blocks, s.size) for s in segments(T, 3)] == [(2, 3), (1, 1)]


_OF_EVERY_KIND = ("blocked", "blocked-with-a-rest", "blocked-computing-again")


def _is_quick(method: str, name: str, options: str) -> bool:
    """Tell what is always run: signals that are a sum and a pair, and, once a method, no recurrent weights.

    `Blocked` fetches the signals of an sLSTM ahead on the way back too, and finds those of an LEM by its
    program.

    What reads backwards with masks and resets reads forwards with them too, as the LSTM does in float32.
    """
    always = (name, options) in (("elman-tanh", "plain"), ("gru", "all-reverse"))
    defaults = ("blocked", "remat", "newton", "one-window")
    own = method in _OF_EVERY_KIND and name in ("slstm", "lem") and options == "all-reverse"
    return always or own or (method in defaults and (name, options) == ("mingru", "plain"))


@pytest.mark.parametrize(
    ("method", "name", "options"),
    [
        pytest.param(m, n, o, marks=[] if _is_quick(m, n, o) else pytest.mark.slow)
        for m, n, o in itertools.product(METHODS, CELLS, OPTIONS)
    ],
)
def test_every_method_equals_scan(method, name, options, x64):
    actual = loss_and_gradients(
        *example(name, "float64"), method=METHODS[method], **OPTIONS[options]
    )
    assert_close(actual, by_scan(name, options, "float64"), TOLERANCES["float64"])


some_methods = each_of(
    METHODS, "blocked-in-blocks-and-a-rest", "remat", "newton", argument="method"
)


@table_of_cells("lstm", among=("lstm", "gru"))
@some_methods
def test_every_method_equals_scan_in_float32(method, name):
    actual = loss_and_gradients(*example(name, "float32"), method=METHODS[method], **OPTIONS["all"])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(actual))
    assert_close(actual, by_scan(name, "all", "float32"), TOLERANCES["float32"])


@pytest.mark.parametrize("batch", [(), (2, 3)])
@pytest.mark.parametrize(
    "method",
    [
        "blocked-with-a-rest",
        *(  # they cut the steps up just as the first does
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("blocked-computing-again", "remat")
        ),
        "newton",
    ],
)
def test_any_number_of_batch_axes(method, batch, x64):
    cell, _, _ = example("gru", "float64")
    xs = draw((T, *batch, F), jnp.float64, 1)
    carry = draw((*batch, H), jnp.float64, 2)
    resets = np.random.default_rng(5).random((T, *batch)) < 0.3
    actual = loss_and_gradients(cell, xs, carry, method=METHODS[method], resets=resets)
    expected = loss_and_gradients(cell, xs, carry, method=Scan(), resets=resets)
    assert_close(actual, expected, 1e-10)


@pytest.mark.parametrize("rubbish", [np.nan, np.inf])
@some_methods
def test_padding_changes_neither_values_nor_gradients(method, rubbish):
    # In float32, whose programs are there from the test above.
    cell, xs, carry = example("lstm", "float32")
    valid = MASK & (np.arange(T)[:, None] < LENGTHS)
    spoilt = jnp.where(valid[..., None], xs, rubbish)
    run = functools.partial(loss_and_gradients, method=METHODS[method], **OPTIONS["all"])
    jax.tree.map(np.testing.assert_array_equal, run(cell, spoilt, carry), run(cell, xs, carry))


FOREIGN = ("remat", "newton", "newton-diagonal", "one-window")


def two_leaves(carry, x):
    """A plain function: not split, with an output that is no part of its carry."""
    a, b = carry
    a, b = jnp.tanh(0.5 * a + b), 0.9 * b + x
    return (a, b), jnp.cos(a) * x


@pytest.mark.parametrize("method", FOREIGN)
def test_a_plain_function_gives_what_scan_gives(method, x64):
    assert_close(gradients_of_two_leaves(METHODS[method]), gradients_of_two_leaves(Scan()), 1e-10)


@functools.cache
def gradients_of_two_leaves(method):
    def loss(scale, xs, carry):
        def step(carry, x):  # it closes over what is differentiated
            return two_leaves(carry, scale * x)

        done = unroll(step, xs, carry=carry, method=method, **OPTIONS["all"])
        return jnp.sum(done.outputs**2) + jnp.sum(done.carry[0])

    xs, carry = draw((T, B, F), jnp.float64, 1), (draw((B, F), jnp.float64, 2),) * 2
    return jax.grad(loss, argnums=(0, 1, 2))(jnp.float64(1.3), xs, carry)


@pytest.mark.parametrize("method", [Blocked(), Scan(), Remat(), Newton(), Truncated(2)])
def test_a_flax_cell_gives_what_scan_gives(method, x64):
    cell = nnx.GRUCell(F, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    xs = draw((T, B, F), jnp.float64, 1)
    done = unroll(cell, xs, method=method)
    assert_close((done.outputs, done.carries), _scanned(cell, xs), 1e-10)


def _scanned(cell, xs, carry=None):
    done = unroll(cell, xs, carry=carry, method=Scan())
    return done.outputs, done.carries


def test_the_default_and_what_it_says():
    cell, xs, _ = example("lstm", "float32")
    assert isinstance(unroll(cell, xs).method, Blocked)
    flax = nnx.GRUCell(F, H, rngs=nnx.Rngs(0))
    assert unroll(flax, xs).method == Blocked(T, keep_signals=True)
    assert unroll(lambda c, _: (c, c), None, carry=jnp.ones(2), length=3).method == Scan()


@pytest.mark.parametrize("method", [None, Blocked(3), Remat(), Newton(), Truncated(T)])
def test_forward_mode(method, x64):
    cell, xs, carry = example("lstm", "float64")
    direction = draw(xs.shape, jnp.float64, 8)

    def tangent(method):
        run = functools.partial(
            unroll, cell, carry=carry, reset_carry=carry, method=method, **OPTIONS["all"]
        )
        return jax.jvp(lambda xs: run(xs).outputs, (xs,), (direction,))[1]

    assert_close(tangent(method), tangent(Scan()), 1e-10)


@pytest.mark.slow
def test_an_ensemble_differentiates_under_vmap(x64):
    cell, xs, _ = example("lstm", "float64")
    pair = jax.tree.map(lambda a: jnp.stack([a, 0.5 * a]), cell)

    def gradients(method):
        def loss(cell):
            return jnp.sum(unroll(cell, xs, method=method, seq_lengths=LENGTHS).outputs ** 2)

        return jax.vmap(jax.grad(loss))(pair)

    expected = gradients(Scan())
    for method in (Blocked(block=4), Remat(), Newton()):
        assert_close(gradients(method), expected, 1e-10)


# Blocked.


@pytest.mark.parametrize(
    ("name", "weight"), [("lstm", "bias"), ("lstm-peephole", "peepholes"), ("gru", "kernel")]
)
def test_blocked_has_second_derivatives_by_forward_over_reverse(name, weight, x64):
    cell, xs, carry = example(name, "float64")

    def hessian(method):
        def loss(value, xs):
            changed = jax.tree.map(lambda a: a, cell)
            getattr(changed, weight)[...] = value
            return jnp.sum(unroll(changed, xs, carry=carry, method=method).outputs ** 2)

        return jax.jit(jax.hessian(loss, argnums=(0, 1)))(getattr(cell, weight)[...], xs)

    assert_close(hessian(Blocked(block=3)), hessian(Scan()), 1e-10)


@pytest.mark.parametrize("name", ["lstm", "mgu", "minlstm"])
def test_what_was_differentiated_before_changes_no_gradient(name, x64):
    """JAX keeps what it has traced: by the inputs, then by the weights, then by the inputs again."""
    cell, xs, _ = example(name, "float64")
    xs = jnp.concatenate([xs, xs, xs])  # a length of its own: nothing is traced before
    pair = jax.tree.map(lambda a: jnp.stack([a, 0.5 * a]), cell)

    def by_inputs(method):
        def loss(cell, xs):
            return jnp.sum(unroll(cell, xs, method=method).outputs ** 2)

        jax.grad(loss, argnums=1)(cell, xs)
        jax.vmap(jax.grad(loss), in_axes=(0, None))(pair, xs)
        return jax.grad(lambda xs: jnp.sum(jax.vmap(loss, in_axes=(0, None))(pair, xs)))(xs)

    assert_close(by_inputs(Blocked()), by_inputs(Scan()), 1e-10)


@pytest.mark.slow
def test_blocked_works_in_bfloat16():
    cell, xs, carry = jax.tree.map(lambda a: a.astype(jnp.bfloat16), example("gru", "float32"))
    run = functools.partial(loss_and_gradients, cell, xs, carry, **OPTIONS["all"])
    actual, expected = run(method=Blocked(block=3)), run(method=Scan())
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(actual))
    as_floats = functools.partial(jax.tree.map, lambda a: np.asarray(a, np.float32))
    assert_close(as_floats(actual), as_floats(expected), 0.05)


@every_cell
@pytest.mark.parametrize("keep", [True, False])
def test_every_derivative_of_every_cell(name, keep, x64):
    """Forward, linearised, and second derivatives of each kind by all arrays at once, as `Scan` has them."""
    arrays = example(name, "float64")
    seeds = itertools.count(20)
    direction = jax.tree.map(lambda a: draw(a.shape, a.dtype, next(seeds)), arrays)

    @functools.partial(jax.jit, static_argnames="method")
    def derivatives(arrays, direction, method):
        def loss(cell, xs, carry):
            done = unroll(cell, xs, carry=carry, method=method, **OPTIONS["all"])
            last = sum(jnp.sum(leaf**3) for leaf in jax.tree.leaves(done.carry))
            return jnp.sum(jnp.sin(done.outputs)) + last

        gradient = jax.grad(loss, argnums=(0, 1, 2))
        _, forward = jax.jvp(loss, arrays, direction)
        _, linear = jax.linearize(loss, *arrays)
        _, forward_over_reverse = jax.jvp(gradient, arrays, direction)
        _, back = jax.vjp(gradient, *arrays)
        return forward, linear(*direction), forward_over_reverse, back(direction)

    actual = derivatives(arrays, direction, method=Blocked(3, keep))
    assert_close(actual, derivatives(arrays, direction, method=Scan()), 1e-10)


@pytest.mark.parametrize("method", [Blocked(), Scan()])
@pytest.mark.parametrize("part", ["outputs", "carry", "carries", "nothing"])
def test_whatever_the_loss_leaves_out_has_no_gradient(part, method, x64):
    actual = gradients_of_a_part(part, method)
    total = sum(float(jnp.sum(jnp.abs(leaf))) for leaf in jax.tree.leaves(actual))
    assert (total == 0) == (part == "nothing")
    assert_close(actual, gradients_of_a_part(part, Scan()), 1e-10)


@functools.cache
def gradients_of_a_part(part, method):
    def loss(cell, xs, carry):
        done = unroll(cell, xs, carry=carry, method=method)
        looked_at = () if part == "nothing" else jax.tree.leaves(getattr(done, part))
        return sum((jnp.sum(leaf**2) for leaf in looked_at), jnp.zeros(()))

    return jax.grad(loss, argnums=(0, 1, 2))(*example("lstm", "float64"))


class LeakyCell(jaxrnn.ElmanCell):
    """A cell that breaks the contract: its update reads a weight."""

    def update(self, carry, drive, pull):
        leak = jnp.broadcast_to(jax.nn.sigmoid(self.bias[...]), drive.shape)
        return (1 - leak) * carry + leak * jnp.tanh(drive + pull)


@pytest.mark.parametrize("keep", [True, False])
def test_a_cell_whose_update_reads_weights(keep, x64):
    cell = LeakyCell(F, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    xs, carry = draw((T, B, F), jnp.float64, 1), draw((B, H), jnp.float64, 2)
    actual = loss_and_gradients(cell, xs, carry, Blocked(3, keep), **OPTIONS["all"])
    assert_close(actual, loss_and_gradients(cell, xs, carry, Scan(), **OPTIONS["all"]), 1e-10)


def test_blocked_refuses_what_multiplies_no_weights():
    with pytest.raises(InputError, match=r"method: got Blocked.*expected Scan"):
        unroll(two_leaves, jnp.ones((T, B, F)), carry=(jnp.zeros((B, F)),) * 2, method=Blocked())


def program_of(cell, carry, x):
    read, _ = flat(cell, carry, x)
    return StepProgram(read, len(jax.tree.leaves(carry)))


@pytest.mark.parametrize(
    ("name", "widths"),
    {
        "elman-tanh": [H],
        "lstm": [4 * H],
        "gru": [H] * 4,  # two sums, and the candidate's two terms, which meet a gate between them
        "lipschitz": [H, H],
        "orthogonal": [H],
        "slstm": [4 * H],
        "lstm-peephole": [4 * H],
        "mgu": [H, H],
        "lem": [3 * H, H],
    }.items(),
)
def test_of_sums_one_array_is_kept_and_of_constants_none(name, widths):
    cell, xs, carry = example(name, "float32")
    program = program_of(cell, carry, xs[0])
    assert [program.avals[v].shape[-1] for v in program.kept] == widths


def changed_cell(**methods):
    """Return a cell with two units' worth of carry and methods of its own."""
    names = {"carry_names": ("c", "h"), "readout": lambda self, carry: carry[0]}
    changed: Any = type("Changed", (jaxrnn.ElmanCell,), names | methods)
    return changed(F, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    "update",
    [
        lambda self, carry, drive, pull: (drive, pull),
        lambda self, carry, drive, pull: (drive + pull, pull),
        lambda self, carry, drive, pull: (drive + drive, pull + pull),
    ],
)
def test_drive_and_pull_used_beside_or_without_their_sum(update, x64):
    """Among them results that are the variables themselves, which no operation reads."""
    cell = changed_cell(
        update=update, mix=lambda self, carry: carry[1] @ self.recurrent_kernel[...]
    )
    xs, carry = draw((T, B, F), jnp.float64, 1), cell.initialize_carry((B, F))
    actual = loss_and_gradients(cell, xs, carry, method=Blocked(block=3))
    assert_close(actual, loss_and_gradients(cell, xs, carry, method=Scan()), 1e-10)


def crossed(self, carry, drive, pull):
    """Halves of unequal width, each added to the other's place; one is not used."""
    a, b = jnp.split(drive, [1], axis=-1)
    d, c = jnp.split(pull, [H - 1], axis=-1)
    return jnp.tanh(jnp.concatenate([a + c, b + d], axis=-1)), jnp.tanh(carry[0])


def half_used(self, carry, drive, pull):
    """A sum of some columns, and of others nothing."""
    a, _ = jnp.split(drive, [2], axis=-1)
    c, _ = jnp.split(pull, [2], axis=-1)
    return carry[1], jnp.concatenate([jnp.tanh(a + c), carry[0][..., 2:]], axis=-1)


def around(self, carry, drive, pull):
    """Constants before, between and behind."""
    p, a, q, b, r = jnp.split(pull, [H, H + 1, 2 * H + 1, 3 * H], axis=-1)
    moved = jnp.tanh(p * carry[1] + r * (drive + q * jnp.concatenate([a, b], axis=-1)))
    return moved, moved * carry[0]


def mix_around(self, carry):
    mixed = carry[1] @ self.recurrent_kernel[...]
    first, last = jnp.split(mixed, [1], axis=-1)
    beside = [jnp.broadcast_to(f(self.bias[...]), mixed.shape) for f in (jnp.cos, jnp.exp, jnp.sin)]
    return jnp.concatenate([beside[0], first, beside[1], last, beside[2]], axis=-1)


def mix_one(self, carry):
    return (carry[0] + carry[1]) @ self.recurrent_kernel[...]


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    ("update", "mix"), [(crossed, mix_one), (half_used, mix_one), (around, mix_around)]
)
def test_sums_of_any_columns(update, mix, keep, x64):
    cell = changed_cell(update=update, mix=mix)
    cell.bias[...] = draw((H,), jnp.float64, 5)
    xs = draw((T, B, F), jnp.float64, 1)
    carry = draw((B, H), jnp.float64, 2), draw((B, H), jnp.float64, 3)
    actual = loss_and_gradients(cell, xs, carry, Blocked(3, keep), **OPTIONS["all"])
    assert_close(actual, loss_and_gradients(cell, xs, carry, Scan(), **OPTIONS["all"]), 1e-10)


def mix_normed(self, carry):
    """Not differentiable where the carry is 0; the constant beside it is."""
    size = jnp.sqrt(jnp.sum(carry[1] ** 2, axis=-1, keepdims=True))
    mixed = carry[1] / size @ self.recurrent_kernel[...]
    return jnp.concatenate([mixed, jnp.broadcast_to(self.bias[...], mixed.shape)], axis=-1)


def gated(self, carry, drive, pull):
    a, b = jnp.split(pull, 2, axis=-1)
    return carry[1], jnp.tanh(drive + a) * b + 1


def test_a_product_of_what_is_not_differentiable_at_zero(x64):
    cell = changed_cell(update=gated, mix=mix_normed)
    cell.bias[...] = draw((H,), jnp.float64, 5)
    xs, carry = draw((T, B, F), jnp.float64, 1), (draw((B, H), jnp.float64, 2),) * 2
    actual = loss_and_gradients(cell, xs, carry, Blocked(3))
    assert_close(actual, loss_and_gradients(cell, xs, carry, Scan()), 1e-10)


def test_constants_alone_and_empty_drives(x64):
    """Where no column is left of the pull, or the drive is empty and of another dtype."""
    values = jnp.linspace(0.25, 0.5, H, dtype=jnp.float32)
    constant: Any = changed_cell(
        update=lambda self, carry, drive, pull: (carry[1], jnp.tanh(drive) * pull),
        mix=lambda self, carry: jnp.broadcast_to(values, carry[1].shape),
    )
    empty: Any = changed_cell(
        project=lambda self, x: x[..., :0].astype(jnp.float32),
        mix=mix_one,
        update=lambda self, carry, drive, pull: (carry[1], jnp.tanh(pull)),
    )
    xs, carry = draw((T, B, F), jnp.float64, 1), (draw((B, H), jnp.float64, 2),) * 2
    with jax.numpy_dtype_promotion("standard"):
        for cell in (constant, empty):
            actual = loss_and_gradients(cell, xs, carry, Blocked(3))
            assert_close(actual, loss_and_gradients(cell, xs, carry, Scan()), 1e-10)


def test_cotangents_of_constants_are_added_up_in_float32():
    """In bfloat16 a sum of so many steps would stand still."""
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), example("lstm-peephole", "float32")[0])
    half.peepholes[...] = jnp.full_like(half.peepholes[...], 0.1)
    xs = draw((2000, B, F), jnp.float32, 1)

    def by_peepholes(cell, xs):
        return jax.grad(lambda cell: jnp.sum(unroll(cell, xs).outputs.astype(jnp.float32)))(
            cell
        ).peepholes[...]

    exact = by_peepholes(jax.tree.map(lambda a: a.astype(jnp.float32), half), xs)
    found = by_peepholes(half, xs.astype(jnp.bfloat16)).astype(jnp.float32)
    of_new_state = slice(2 * H, None)
    error = jnp.linalg.norm((found - exact)[of_new_state]) / jnp.linalg.norm(exact[of_new_state])
    assert error < 0.05


@settings(deadline=None, derandomize=True)
@given(length=st.integers(1, 300), block=st.integers(1, 300))
def test_blocks_cover_every_step_once(length, block):
    cut = segments(length, block)
    steps = [s.first + i for s in cut for i in range(s.blocks * s.size)]
    assert steps == list(range(length))
    assert all(s.size == min(block, length) for s in cut[:1])
    size = even(length, block)
    assert size == length if block >= length else block / 2 <= size <= 2 * block
    if size not in (block, length):
        assert length % size == 0


class PlainSplitCell:
    """The protocol's methods on a class that is no pytree."""

    weight = jnp.ones((F, F))

    def project(self, x):
        return x

    def mix(self, carry):
        return carry @ self.weight

    def update(self, carry, drive, pull):
        return jnp.tanh(drive + pull)

    def readout(self, carry):
        return carry

    def __call__(self, carry, x):
        carry = self.update(carry, self.project(x), self.mix(carry))
        return carry, carry


def test_a_split_cell_that_is_no_pytree_is_taken_apart_by_its_program():
    run = functools.partial(unroll, PlainSplitCell(), jnp.ones((T, B, F)), carry=jnp.zeros((B, F)))
    assert isinstance(run().method, Blocked)
    assert_close(run().outputs, run(method=Scan()).outputs, 1e-6)


def test_forward_mode_of_vmap(x64):
    cell, xs, _ = example("gru", "float64")

    def outputs(xs, method=None):
        return unroll(cell, xs, method=method).outputs

    mapped = jax.jacfwd(jax.vmap(outputs, in_axes=1))(xs)
    assert_close(mapped, jax.jacfwd(jax.vmap(lambda x: outputs(x, Scan()), in_axes=1))(xs), 1e-12)


# Memory.


def temporaries(method, cell, xs) -> int:
    def loss(cell, xs):
        done = unroll(cell, xs, method=method)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(done.carry))

    compiled = jax.jit(jax.grad(loss)).lower(cell, xs).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes


@every_cell
def test_remat_needs_a_fifth_of_the_memory_of_scan_and_blocked_half(name):
    cell = jaxrnn.make_cell(name, 32, 32, rngs=nnx.Rngs(0))
    xs = jax.ShapeDtypeStruct((4096, 8, 32), jnp.float32)
    scan = temporaries(Scan(), cell, xs)
    assert temporaries(Remat(), cell, xs) < scan / 5
    if name in ("lstm", "gru"):
        assert temporaries(Blocked(keep_signals=False), cell, xs) < scan / 2


# Truncated.


@pytest.mark.parametrize("window", [1, 3, 5])
def test_truncated_stops_the_gradient_at_every_window(window, x64):
    cell, xs, carry = example("lstm", "float64")

    def by_hand(cell, xs, carry):
        outputs = []
        for t in range(T):
            if t and t % window == 0:
                carry = jax.lax.stop_gradient(carry)
            carry, y = cell(carry, xs[t])
            outputs.append(y)
        return jnp.sum(jnp.stack(outputs) ** 2) + jnp.sum(carry[0] ** 3)

    def ours(cell, xs, carry):
        done = unroll(cell, xs, carry=carry, method=Truncated(window))
        return jnp.sum(done.outputs**2) + jnp.sum(done.carry[0] ** 3)

    actual = jax.value_and_grad(ours, argnums=(0, 1, 2))(cell, xs, carry)
    assert_close(actual, jax.value_and_grad(by_hand, argnums=(0, 1, 2))(cell, xs, carry), 1e-12)


def test_pieces_of_a_stream_give_the_whole(x64):
    cell, xs, carry = example("lstm", "float64")
    whole = unroll(cell, xs, carry=carry)
    stream = Stateful(cell, carry)
    outputs = [stream(piece).outputs for piece in (xs[:2], xs[2:3], xs[3:])]
    assert_close(jnp.concatenate(outputs), whole.outputs, 1e-12)
    assert_close(stream.carry, whole.carry, 1e-12)
    stream.reset(carry)
    assert_close(stream(xs).outputs, whole.outputs, 1e-12)


def test_a_reset_in_a_later_piece_goes_back_to_where_the_stream_began(x64):
    cell, xs, carry = example("lstm", "float64")
    for first in (carry, None):
        whole = unroll(cell, xs, carry=first, reset_carry=first, resets=RESETS)
        stream = Stateful(cell, first)
        pieces = [stream(xs[a:b], resets=RESETS[a:b]).outputs for a, b in ((0, 2), (2, 7))]
        assert RESETS[2:].any()
        assert_close(jnp.concatenate(pieces), whole.outputs, 1e-12)


def test_a_reset_carry_of_another_form_is_refused():
    cell, xs, _ = example("gru", "float32")
    with pytest.raises(
        InputError, match=r"reset_carry: got float32\[1, 4\]; expected float32\[3, 4\]"
    ):
        unroll(cell, xs, reset_carry=jnp.zeros((1, H)))


@pytest.mark.parametrize("outer", [Remat, functools.partial(Truncated, 3)])
@pytest.mark.parametrize("inside", [CuDNN(), Newton()])
def test_what_does_not_nest_is_refused(outer, inside):
    with pytest.raises(InputError, match="inside: got"):
        outer(inside=inside)


@pytest.mark.parametrize("transform", [jax.jit, jax.grad])
def test_a_stream_does_not_leak_out_of_a_trace(transform):
    cell, xs, _ = example("gru", "float32")
    stream = Stateful(cell)
    with pytest.raises(InputError, match="Stateful: got a call under"):
        transform(lambda xs: jnp.sum(stream(xs).outputs))(xs)
    assert stream.carry is None


@pytest.mark.parametrize("option", [{"carry": jnp.zeros((B, H))}, {"reverse": True}])
def test_a_stream_has_its_own_carry_and_one_direction(option):
    cell, xs, _ = example("gru", "float32")
    with pytest.raises(InputError, match=next(iter(option))):
        Stateful(cell)(xs, **option)


# Associative.


def linear(carry, x):
    """Two diagonal linear recurrences, one of them gated by the input; the output may be anything."""
    slow, fast = carry
    decay = jax.nn.sigmoid(x)
    slow = decay * slow + (1 - decay) * x
    fast = jnp.where(x > 0, fast, -fast / 2) - 3 * x
    return (slow, fast), jnp.sin(slow) * fast


def numpy_linear(xs, carry, valid, resets):
    first, outputs, states = [np.asarray(c) for c in carry], [], []
    slow, fast = first
    fresh = np.zeros(B, bool)
    for t in range(T):
        x = np.asarray(xs[t])
        fresh |= resets[t]
        start = [np.where(fresh[:, None], f, c) for f, c in zip(first, (slow, fast), strict=True)]
        fresh &= ~valid[t]
        decay = 1 / (1 + np.exp(-x))
        moved = decay * start[0] + (1 - decay) * x, np.where(x > 0, start[1], -start[1] / 2) - 3 * x
        keep = valid[t][:, None]
        slow, fast = np.where(keep, moved[0], slow), np.where(keep, moved[1], fast)
        outputs.append(np.where(keep, np.sin(slow) * fast, 0))
        states.append((slow, fast))
    return np.stack(outputs), states[-1]


def test_associative_follows_the_numpy_loop(x64):
    xs = draw((T, B, F), jnp.float64, 1)
    carry = (draw((B, F), jnp.float64, 2), draw((B, F), jnp.float64, 3))
    done = unroll(linear, xs, carry=carry, method=Associative(), mask=MASK, resets=RESETS)
    outputs, last = numpy_linear(xs, carry, MASK, RESETS)
    assert_close(done.outputs, outputs, 1e-12)
    assert_close(done.carry, last, 1e-12)


@pytest.mark.parametrize("reverse", [pytest.param(False, marks=pytest.mark.slow), True])
def test_associative_has_the_gradient_of_scan(reverse, x64):
    xs = draw((T, B, F), jnp.float64, 1)
    carry = (draw((B, F), jnp.float64, 2), draw((B, F), jnp.float64, 3))

    def gradients(method):
        def loss(xs, carry):
            options = OPTIONS["all"] | {"reverse": reverse}
            done = unroll(linear, xs, carry=carry, method=method, **options)
            return jnp.sum(done.outputs**2) + jnp.sum(done.carry[1])

        return jax.grad(loss, argnums=(0, 1))(xs, carry)

    assert_close(gradients(Associative()), gradients(Scan()), 1e-12)


def test_associative_takes_complex_carries_and_no_inputs(x64):
    rotation = jnp.asarray(np.exp(0.3j * np.arange(1, 4)))

    def rotate(carry, _):
        moved = rotation * carry
        return moved, moved.real

    done = unroll(rotate, None, carry=jnp.ones(3, complex), length=9, method=Associative())
    expected = np.exp(0.3j * np.outer(np.arange(1, 10), np.arange(1, 4)))
    np.testing.assert_allclose(done.carries, expected, rtol=1e-12)
    np.testing.assert_allclose(done.outputs, np.real(expected), rtol=1e-12, atol=1e-12)


def test_associative_has_no_loop():
    def run(xs, method):
        return unroll(linear, xs, carry=(jnp.zeros(F),) * 2, method=method).carry

    xs = jnp.ones((1000, F))
    programs = {
        method: jax.jit(run, static_argnames="method").lower(xs, method=method).as_text()
        for method in (Scan(), Associative())
    }
    assert "while" in programs[Scan()]
    assert "while" not in programs[Associative()]


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (lambda c, x: (0.5 * c.astype(jnp.bfloat16).astype(jnp.float32) + x, c), "applies convert"),
        (lambda c, x: (jnp.tanh(c) + x, c), "applies tanh"),
        (lambda c, x: (c * c + x, c), "applies mul"),
        (lambda c, x: (x / c, c), "applies div"),
        (lambda c, x: (c @ jnp.ones((F, F)) + x, c), "applies dot_general"),
        (lambda c, x: (jnp.flip(c, -1) + x, c), "applies rev"),
        (lambda c, x: (c.astype(int).astype(c.dtype) + x, c), "applies convert_element_type"),
        (lambda c, x: (jnp.where(c > 0, c, x), c), "to its carry"),
        (lambda c, x: (jax.nn.relu(c) + x, c), "to its carry"),
    ],
)
def test_associative_refuses_what_is_not_diagonal_and_linear(step, why):
    with pytest.raises(InputError, match=f"method: got Associative.*{why}.*expected Scan"):
        unroll(step, jnp.ones((T, B, F)), carry=jnp.ones((B, F)), method=Associative())


def test_associative_refuses_to_count():
    def step(carry, x):
        state, count = carry
        return (0.5 * state + x, count + 1), x

    carry = (jnp.zeros(F), jnp.zeros(F, jnp.int32))
    with pytest.raises(InputError, match="counts in its carry"):
        unroll(step, jnp.ones((T, F)), carry=carry, method=Associative())


def rotation(carry, x):
    """Three leaves of which two turn into each other and feed nothing else; the third stands alone."""
    re, im, alone = carry
    a, b = jnp.cos(x), jnp.sin(x)
    moved = (0.9 * (a * re - b * im) + x, 0.9 * (b * re + a * im), 0.5 * alone - x)
    return moved, moved[0] + moved[2]


def numpy_rotation(xs, carry, valid, resets):
    """The same by complex numbers."""
    z, alone = np.asarray(carry[0]) + 1j * np.asarray(carry[1]), np.asarray(carry[2])
    first, fresh, outputs = (z, alone), np.zeros(B, bool), []
    for t in range(T):
        x = np.asarray(xs[t])
        fresh |= resets[t]
        start = np.where((fresh & valid[t])[:, None], first, (z, alone))
        moved = (0.9 * np.exp(1j * x) * start[0] + x, 0.5 * start[1] - x)
        z, alone = np.where(valid[t][:, None], moved, (z, alone))
        fresh &= ~valid[t]
        outputs.append(np.where(valid[t][:, None], z.real + alone, 0))
    return np.stack(outputs), (z.real, z.imag, alone)


def test_associative_takes_leaves_that_feed_each_other(x64):
    xs = draw((T, B, F), jnp.float64, 0)
    carry = tuple(draw((B, F), jnp.float64, seed) for seed in (1, 2, 3))
    options = {"carry": carry, "mask": MASK, "resets": RESETS}
    done = unroll(rotation, xs, method=Associative(), **options)
    outputs, last = numpy_rotation(xs, carry, np.asarray(MASK), np.asarray(RESETS))
    assert_close(done.outputs, outputs, 1e-12)
    assert_close(done.carry, last, 1e-12)

    def gradients(method):
        def loss(xs, carry):
            again = unroll(rotation, xs, method=method, **{**options, "carry": carry})
            return jnp.sum(again.outputs**2) + jnp.sum(again.carry[1])

        return jax.grad(loss, argnums=(0, 1))(xs, carry)

    assert_close(gradients(Associative()), gradients(Scan()), 1e-12)


# Cells without weights in their loop.


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("batch", [(), (3,), (0,)])
def test_gates_of_the_input_alone_are_kept_or_computed_again(keep, batch, x64):
    """Both ways, with masks and resets: what is kept goes all at once, by JAX's own derivative."""
    cell = jaxrnn.make_cell("minlstm", F, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    xs = draw((T, *batch, F), jnp.float64, 1)
    some: Any = {
        "mask": draw((T, *batch), jnp.float64, 2) > -0.5,
        "resets": draw((T, *batch), jnp.float64, 3) > 1,
    }

    def gradients(method):
        def loss(cell, xs):
            return jnp.sum(unroll(cell, xs, method=method, **some).outputs ** 2)

        return jax.grad(loss, (0, 1))(cell, xs)

    method = Blocked(block=T, keep_signals=keep)
    done = unroll(cell, xs, method=method, **some)
    assert done.method == method
    assert_close(done.outputs, unroll(cell, xs, method=Scan(), **some).outputs, 1e-12)
    assert_close(gradients(method), gradients(Scan()), 1e-11)


def test_kept_gates_are_not_computed_again():
    cell = jaxrnn.make_cell("minlstm", F, H, rngs=nnx.Rngs(0))

    def logistics(keep):
        def loss(cell, xs):
            method = Blocked(block=T, keep_signals=keep)
            return jnp.sum(unroll(cell, xs, method=method).outputs)

        return str(jax.make_jaxpr(jax.grad(loss))(cell, jnp.ones((T, B, F)))).count("logistic")

    assert logistics(keep=True) < logistics(keep=False)


# Newton.


@pytest.mark.parametrize("length", [2, 3, 8, 100])
def test_rounds_count_what_waits_for_what_came_before(length):
    cell, xs, _ = example("lru", "float32")
    xs = jnp.resize(xs, (length, *xs.shape[1:]))
    combinations = []
    jax.lax.associative_scan(lambda a, b: combinations.append(1) or a + b, jnp.arange(length))
    assert unroll(cell, xs, method=Associative()).rounds == len(combinations)
    assert unroll(cell, xs).rounds == unroll(cell, xs, method=Scan()).rounds == length
    gru = example("gru", "float32")[0]
    found = jax.jit(lambda cell, xs: unroll(cell, xs, method=Newton()))(gru, xs)
    assert int(found.rounds) == int(found.convergence.iterations) * len(combinations)


def test_newton_says_how_it_fared(x64):
    cell, xs, carry = example("gru", "float64")
    done = unroll(cell, xs, carry=carry, method=Newton(tol=1e-9))
    assert done.convergence is not None
    assert bool(done.convergence.converged)
    assert 1 <= int(done.convergence.iterations) <= T
    assert 0 <= float(done.convergence.residual) <= 1e-9


def test_a_linear_system_takes_newton_one_iteration(x64):
    matrix = 0.5 * draw((H, H), jnp.float64, 1)

    def step(carry, x):
        moved = carry @ matrix + x
        return moved, moved

    xs = draw((T, B, H), jnp.float64, 2)
    done = unroll(step, xs, carry=jnp.zeros((B, H)), method=Newton())
    assert done.convergence is not None
    assert int(done.convergence.iterations) == 1
    assert_close(done.outputs, _scanned(step, xs, jnp.zeros((B, H)))[0], 1e-12)


def logistic(x, _):
    moved = 3.9 * x * (1 - x)
    return moved, moved


@pytest.mark.parametrize("jacobian", ["dense", "diagonal"])
def test_where_newton_does_not_converge_the_loop_answers_and_says_so(jacobian, x64):
    start = jnp.array([[0.3], [0.61]])
    run = functools.partial(unroll, logistic, None, length=200)

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(method):
        return jax.grad(lambda c: jnp.sum(run(carry=c, method=method).outputs[:20]))(start)

    method = Newton(max_iters=2, jacobian=jacobian)
    done = run(carry=start, method=method)
    assert done.convergence is not None
    assert not bool(done.convergence.converged)
    assert int(done.convergence.iterations) == 2
    assert float(done.convergence.residual) > 1e-6
    assert int(done.rounds) == 2 * 14 + 200  # 200 halves seven times; then the loop's own steps
    np.testing.assert_array_equal(done.outputs, run(carry=start, method=Scan()).outputs)
    assert_close(gradient(method), gradient(Scan()), 1e-9)


def test_newtons_gradient_is_finite_where_products_of_jacobians_are_not():
    """Over 2000 chaotic steps they overflow float32; a loss on the first ones needs none of those."""
    start = jnp.full((1,), 0.3)
    run = functools.partial(unroll, logistic, None, length=2000)

    def gradient(method):
        return jax.grad(lambda c: run(carry=c, method=method).outputs[:20].sum())(start)

    actual = gradient(Newton(max_iters=2))
    assert np.isfinite(actual).all()
    assert_close(actual, gradient(Scan()), 1e-4)


@pytest.mark.parametrize("damping", [0.0, 0.5, 1.0])
def test_every_iteration_makes_another_step_exact(damping, x64):
    """So even a chaotic map is found in T iterations, whatever the damping."""
    method = Newton(max_iters=30, damping=damping, tol=1e-12)
    done = unroll(logistic, None, length=30, carry=jnp.full((1,), 0.3), method=method)
    assert done.convergence is not None
    assert bool(done.convergence.converged)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"tol": 0.0}, "tol"),
        ({"max_iters": 0}, "max_iters"),
        ({"damping": 1.5}, "damping"),
    ],
)
def test_newton_refuses_settings_out_of_range(settings, name):
    with pytest.raises(InputError, match=name):
        Newton(**settings)


def test_newton_refuses_a_carry_that_counts():
    with pytest.raises(InputError, match="carry: got int32"):
        unroll(
            lambda n, x: (n + 1, x), jnp.ones(T), carry=jnp.zeros((1,), jnp.int32), method=Newton()
        )


def test_newton_refuses_a_carry_of_two_precisions(x64):
    carry = (jnp.zeros((1, 2), jnp.float32), jnp.zeros((1, 2)))
    with pytest.raises(InputError, match=r"carry: got .*; expected float32 or float64 throughout"):
        unroll(lambda c, x: (c, x), jnp.ones((T, 1)), carry=carry, method=Newton())


# CuDNN: what of it can be tested without a GPU.


def test_cudnn_is_refused_without_a_gpu():
    cell, xs, _ = example("lstm", "float32")
    if jax.default_backend() == "gpu":
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match=r"method: got CuDNN\(\) on cpu; expected Blocked\(\)"):
        unroll(cell, xs, method=CuDNN())


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"mask": MASK}, "mask"),
        ({"resets": RESETS}, "resets"),
        ({"reverse": True, "seq_lengths": LENGTHS}, "reverse"),
        ({"xs": jnp.ones((T, F))}, "xs"),
        ({"cell": "gru"}, "method: got CuDNN.. for GRUCell"),
    ],
)
def test_cudnn_refuses_what_it_cannot_do(change, name):
    cell, xs, _ = example(change.get("cell", "lstm"), "float32")
    options = {"xs": xs, "method": CuDNN(), **change, "cell": cell}
    with pytest.raises(InputError, match=name):
        unroll(**options)


def reference(x, h, c, weights, lengths, features, units, layers, dropout, both):
    """JAX's own description of what cuDNN computes, on the same arguments."""
    unpacked = rnn.unpack_lstm_weights(weights, features, units, layers, both)
    return rnn.lstm_ref(x, h, c, *unpacked, lengths, features, units, layers, dropout, both)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_cudnn_gets_its_weights_lengths_and_carries_in_order(lengths):
    cell, xs, carry = example("lstm", "float32")
    valid = None if lengths is None else jnp.asarray(np.arange(T)[:, None] < lengths)
    frames = Frames(xs, valid, None)
    last, carries = cudnn.carry_through(reference, cell, carry, frames, T)
    done = unroll(cell, xs, carry=carry, seq_lengths=lengths, method=Scan())
    assert_close((last, carries), (done.carry, done.carries), 1e-5)


# All of them.


@pytest.mark.parametrize("make", [Blocked, Remat])
@pytest.mark.parametrize("block", [0, -1])
def test_blocks_are_whole_numbers_of_steps(make, block):
    with pytest.raises(InputError, match="block"):
        make(block=block)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_lowers_for_every_platform(method):
    cell, xs, carry = example("lstm", "float32")
    platforms = ("cpu", "cuda", "tpu")
    run = jax.jit(lambda cell, xs: loss_and_gradients(cell, xs, carry, method=METHODS[method]))
    assert jax.export.export(run, platforms=platforms)(cell, xs).platforms == platforms
