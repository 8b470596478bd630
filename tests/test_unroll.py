"""Carrying steps through time.

Oracles: a NumPy loop for cells of ours under every option, complex steps for its derivatives, and Flax's
own RNN layers or a Python loop for foreign steps.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxrnn
from jaxrnn import Scan
from tests.oracles import numpy_cells as oracle

F, H, T, B = 3, 4, 5, 3
TOLERANCE = 1e-12

pytestmark = pytest.mark.usefixtures("x64")


def assert_close(actual, expected, tolerance=TOLERANCE):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def assert_trees_close(actual, expected, tolerance=TOLERANCE):
    jax.tree.map(functools.partial(assert_close, tolerance=tolerance), actual, expected)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def filled(tree, seed=0):
    """The same tree with random numbers in it."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(random.normal(size=a.shape, scale=0.7)), tree)


def make(name, seed=0):
    """A cell of random weights and biases."""

    def build():
        return jaxrnn.make_cell(name, F, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))

    return filled(jax.eval_shape(build), seed)


def initial(cell, batch):
    zeros = cell.initialize_carry((*batch, F))
    return jax.tree.map(lambda a: draw(*a.shape, seed=2), zeros)


def params(cell):
    return {name: np.asarray(a) for name, a in nnx.to_pure_dict(nnx.state(cell)).items()}


def numpy_run(name, arrays, xs, carry, **options):
    state = tuple(np.asarray(leaf) for leaf in jax.tree.leaves(carry))
    weights = oracle.separate(name, arrays)
    return oracle.run(oracle.STEPS[name], weights, np.asarray(xs), state, **options)


def assert_is_the_numpy_run(done, expected):
    assert_close(done.outputs, expected.outputs)
    assert_trees_close(tuple(jax.tree.leaves(done.carry)), expected.last)
    assert_trees_close(tuple(jax.tree.leaves(done.carries)), expected.states)


LENGTHS = np.array([0, 3, 5])
MASK = np.array([[1, 1, 0, 1, 1], [0, 1, 1, 0, 1], [1, 0, 0, 1, 0]], bool).T
RESETS = np.array([[0, 1, 0, 0, 1], [1, 0, 1, 0, 0], [0, 0, 0, 1, 0]], bool).T
OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "lengths": {"seq_lengths": LENGTHS},
    "mask": {"mask": MASK},
    "resets": {"resets": RESETS},
    "all": {"seq_lengths": LENGTHS, "mask": MASK, "resets": RESETS},
}


def in_numpy(options) -> dict[str, Any]:
    """The same options under the oracle's names."""
    return {"lengths" if k == "seq_lengths" else k: value for k, value in options.items()}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_follows_the_numpy_loop(options, reverse):
    cell, xs = make("lstm"), draw(T, B, F, seed=1)
    carry = initial(cell, (B,))
    done = jaxrnn.unroll(
        cell, xs, carry=carry, reset_carry=carry, reverse=reverse, **OPTIONS[options]
    )
    assert_is_the_numpy_run(
        done,
        numpy_run("lstm", params(cell), xs, carry, reverse=reverse, **in_numpy(OPTIONS[options])),
    )


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)])
def test_any_number_of_batch_axes(batch):
    cell, xs = make("gru"), draw(T, *batch, F, seed=1)
    carry = initial(cell, batch)
    random = np.random.default_rng(3)
    options = {
        "seq_lengths": random.integers(0, T + 1, batch),
        "mask": random.random((T, *batch)) < 0.7,
        "resets": random.random((T, *batch)) < 0.3,
    }
    done = jaxrnn.unroll(cell, xs, carry=carry, reset_carry=carry, reverse=True, **options)
    assert done.outputs.shape == (T, *batch, H)
    assert_is_the_numpy_run(
        done, numpy_run("gru", params(cell), xs, carry, reverse=True, **in_numpy(options))
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_lengths_of_any_shape(data):
    """T, batch and direction from a short list, for each combination compiles; lengths at will."""
    steps = data.draw(st.sampled_from([1, 4]), label="steps")
    batch = data.draw(st.sampled_from([(), (2,), (1, 3)]), label="batch")
    reverse = data.draw(st.booleans(), label="reverse")
    count = int(np.prod(batch))
    drawn = data.draw(st.lists(st.integers(0, steps), min_size=count, max_size=count))
    lengths = np.array(drawn, int).reshape(batch)

    cell, xs = make("elman-tanh"), draw(steps, *batch, F, seed=1)
    carry = initial(cell, batch)
    done = jaxrnn.unroll(cell, xs, carry=carry, seq_lengths=lengths, reverse=reverse)
    assert_is_the_numpy_run(
        done, numpy_run("elman-tanh", params(cell), xs, carry, lengths=lengths, reverse=reverse)
    )


def test_without_a_carry_a_cell_starts_from_its_own():
    cell, xs = make("lstm"), draw(T, B, F, seed=1)
    zeros = cell.initialize_carry((B, F))
    jax.tree.map(
        np.testing.assert_array_equal,
        jaxrnn.unroll(cell, xs).carries,
        jaxrnn.unroll(cell, xs, carry=zeros).carries,
    )


@pytest.mark.parametrize("reverse", [False, True])
def test_length_zero_returns_the_initial_carry_and_padding_reads_zero(reverse):
    cell, xs = make("lstm"), draw(T, B, F, seed=1)
    carry = initial(cell, (B,))
    done = jaxrnn.unroll(cell, xs, carry=carry, seq_lengths=LENGTHS, reverse=reverse)
    empty = list(LENGTHS).index(0)
    for last, first in zip(jax.tree.leaves(done.carry), jax.tree.leaves(carry), strict=True):
        np.testing.assert_array_equal(last[empty], first[empty])
    for sequence, length in enumerate(LENGTHS):
        assert not np.any(done.outputs[length:, sequence])
        assert np.all(done.outputs[:length, sequence])


# Derivatives.


@functools.partial(jax.jit, static_argnames="reverse")
@functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
def loss_and_gradients(cell, xs, carry, options, reverse):
    return jnp.sum(
        jaxrnn.unroll(cell, xs, carry=carry, reset_carry=carry, reverse=reverse, **options).outputs
        ** 2
    )


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_equal_complex_steps(reverse):
    cell, xs = make("lstm"), draw(T, B, F, seed=1)
    c, h = initial(cell, (B,))
    options = OPTIONS["all"]
    _, (by_cell, by_xs, by_carry) = loss_and_gradients(cell, xs, (c, h), options, reverse=reverse)

    def numpy_loss(a):
        run = numpy_run("lstm", a, a["xs"], (a["c"], a["h"]), reverse=reverse, **in_numpy(options))
        return np.sum(run.outputs**2)

    arrays = {**params(cell), "xs": np.asarray(xs), "c": np.asarray(c), "h": np.asarray(h)}
    ours = {**params(by_cell), "xs": by_xs, "c": by_carry[0], "h": by_carry[1]}
    assert_trees_close(ours, oracle.gradients(numpy_loss, arrays))


@pytest.mark.parametrize("rubbish", [np.nan, np.inf, -np.inf, 1e300])
def test_padding_changes_neither_values_nor_gradients(rubbish):
    cell, xs = make("lstm"), draw(T, B, F, seed=1)
    carry, options = initial(cell, (B,)), OPTIONS["all"]
    valid = MASK & (np.arange(T)[:, None] < LENGTHS)
    clean = loss_and_gradients(cell, xs, carry, options, reverse=False)
    spoilt_xs = jnp.where(valid[..., None], xs, rubbish)
    spoilt = loss_and_gradients(cell, spoilt_xs, carry, options, reverse=False)
    jax.tree.map(np.testing.assert_array_equal, spoilt, clean)
    assert not np.any(spoilt[1][1][~valid])


def test_forward_mode_equals_a_complex_step():
    cell, xs = make("lstm"), draw(T, B, F, seed=1)
    carry, direction = initial(cell, (B,)), draw(T, B, F, seed=3)
    _, tangent = jax.jvp(
        lambda xs: (
            jaxrnn.unroll(cell, xs, carry=carry, reset_carry=carry, **OPTIONS["all"]).outputs
        ),
        (xs,),
        (direction,),
    )
    nudged = np.asarray(xs) + 1e-30j * np.asarray(direction)
    run = numpy_run("lstm", params(cell), nudged, carry, **in_numpy(OPTIONS["all"]))
    assert_close(tangent, np.imag(run.outputs) / 1e-30)


def test_hessian_equals_differences_of_complex_steps():
    cell, xs = make("elman-tanh"), draw(T, F, seed=1)
    start = np.asarray(initial(cell, ()))

    @jax.jit
    @jax.hessian
    def hessian(carry):
        return jnp.sum(jaxrnn.unroll(cell, xs, carry=carry, seq_lengths=4).outputs ** 2)

    def numpy_loss(arrays):
        run = numpy_run("elman-tanh", params(cell), xs, arrays["h"], lengths=4)
        return np.sum(run.outputs**2)

    def gradient(h):
        return oracle.gradients(numpy_loss, {"h": h})["h"]

    step = 1e-5  # error of order step² = 1e-10, rounding of order 1e-16 / step
    rows = [(gradient(start + e) - gradient(start - e)) / (2 * step) for e in step * np.eye(H)]
    assert_close(hessian(start), np.stack(rows), tolerance=1e-8)


# Foreign steps.


FLAX_CELLS = (nnx.LSTMCell, nnx.GRUCell, nnx.SimpleCell)


@functools.cache
def flax_cell(make):
    zeros = jax.nn.initializers.zeros
    cell = make(
        F,
        H,
        kernel_init=zeros,
        recurrent_kernel_init=zeros,
        dtype=jnp.float64,
        param_dtype=jnp.float64,
        rngs=nnx.Rngs(0),
    )
    return filled(cell)


@pytest.mark.parametrize("make", FLAX_CELLS)
def test_a_flax_cell_gives_what_flax_rnn_gives(make):
    cell, xs = flax_cell(make), draw(T, 2, F, seed=1)
    lengths = jnp.array([2, T])  # Flax's own carry is wrong at length 0
    done = jaxrnn.unroll(cell, xs, seq_lengths=lengths)
    layer = nnx.RNN(cell, time_major=True, return_carry=True)
    last, outputs = layer(xs, seq_lengths=lengths)
    outputs = np.asarray(outputs)
    assert_trees_close(done.carry, last)
    assert_close(done.outputs[:2, 0], outputs[:2, 0])
    assert_close(done.outputs[:, 1], outputs[:, 1])
    assert not np.any(done.outputs[2:, 0])


@pytest.mark.parametrize("make", [nn.LSTMCell, nn.GRUCell, nn.SimpleCell])
def test_a_linen_cell_bound_to_its_weights_gives_what_linen_rnn_gives(make):
    cell, xs = make(H, param_dtype=jnp.float64), draw(T, 2, F, seed=1)
    layer = nn.RNN(cell, time_major=True, return_carry=True)
    variables = filled(jax.eval_shape(layer.init, jax.random.key(0), xs))
    last, outputs = layer.apply(variables, xs)

    step = functools.partial(cell.apply, {"params": variables["params"]["cell"]})
    carry = cell.initialize_carry(jax.random.key(0), (2, F))
    done = jaxrnn.unroll(step, xs, carry=carry)
    assert_close(done.outputs, outputs)
    assert_trees_close(done.carry, last)


def leaky_sum(carry, x):
    """A plain function: inputs and carry are trees, the output is not part of the carry."""
    total, count = carry
    total = 0.9 * total + x["a"] * x["b"]
    return (total, count + 1), jnp.sin(total)


def test_a_plain_function_of_trees_gives_what_a_loop_gives():
    xs = {"a": draw(T, 2, F, seed=1), "b": draw(T, 2, F, seed=2)}
    carry = (draw(2, F, seed=3), jnp.zeros((2, 1), jnp.int32))
    mask = np.array([[1, 1, 0, 1, 1], [1, 0, 0, 1, 1]], bool).T
    done = jaxrnn.unroll(leaky_sum, xs, carry=carry, mask=mask)

    for b in range(2):
        total, count = np.asarray(carry[0][b]), 0
        for t in range(T):
            output = np.zeros(F)
            if mask[t, b]:
                total, count = 0.9 * total + xs["a"][t, b] * xs["b"][t, b], count + 1
                output = np.sin(total)
            assert_close(done.outputs[t, b], output)
            assert_close(done.carries[0][t, b], total)
            assert done.carries[1][t, b, 0] == count


def test_every_carry_is_kept_the_cell_state_included():
    cell, xs = flax_cell(nnx.LSTMCell), draw(T, 2, F, seed=1)
    done = jaxrnn.unroll(cell, xs)
    carry = cell.initialize_carry((2, F), nnx.Rngs(0))
    for t in range(T):
        carry, _ = cell(carry, xs[t])
        assert_trees_close(jax.tree.map(lambda a, t=t: a[t], done.carries), carry)


def logistic(x, _):
    return 3.7 * x * (1 - x), x


@pytest.mark.parametrize("batch", [(), (2,)])
def test_an_autonomous_system_needs_only_a_length(batch):
    start = jnp.full((*batch, 1), 0.3)
    done = jaxrnn.unroll(logistic, None, carry=start, length=6)
    x = np.asarray(start)
    for t in range(6):
        assert_close(done.outputs[t], x)
        x = 3.7 * x * (1 - x)
        assert_close(done.carries[t], x)
    assert_close(done.carry, x)


def test_an_autonomous_system_may_have_lengths():
    done = jaxrnn.unroll(
        logistic, None, carry=jnp.full((2, 1), 0.3), length=6, seq_lengths=np.array([0, 2])
    )
    assert_close(done.carry[:, 0], [0.3, done.carries[1, 1, 0]])


# Methods and compilation.


@pytest.mark.parametrize("steps", [2, 7])
def test_unrolling_the_compiled_loop_changes_nothing(steps):
    cell, xs = make("lstm"), draw(T, B, F, seed=1)
    carry = initial(cell, (B,))
    done = jaxrnn.unroll(
        cell, xs, carry=carry, reset_carry=carry, method=Scan(unroll=steps), **OPTIONS["all"]
    )
    assert_is_the_numpy_run(
        done, numpy_run("lstm", params(cell), xs, carry, **in_numpy(OPTIONS["all"]))
    )


def test_the_result_names_its_method():
    cell, xs = make("elman-tanh"), draw(T, F, seed=1)
    assert jaxrnn.unroll(cell, xs, method=Scan()).method == Scan(unroll=1)
    assert jaxrnn.unroll(cell, xs, method=Scan(unroll=5)).method == Scan(unroll=5)


def compiled(caplog):
    return [line for line in caplog.messages if "Compiling" in line]


@pytest.mark.parametrize(
    "make_cell", [functools.partial(make, "gru"), lambda _: flax_cell(nnx.GRUCell)]
)
def test_a_second_call_compiles_nothing(make_cell, caplog):
    """Outside `jax.jit`, with other weights, inputs and lengths of the same shapes."""
    arguments = [
        (make_cell(seed), draw(17, 2, F, seed=seed), np.array([seed, 17])) for seed in (0, 1)
    ]
    with jax.log_compiles():
        for call, (cell, xs, lengths) in enumerate(arguments):
            caplog.clear()
            jaxrnn.unroll(cell, xs, seq_lengths=lengths)
            assert bool(compiled(caplog)) == (call == 0)


def test_lengths_may_be_constants_of_a_compiled_function():
    cell, xs = make("gru"), draw(T, B, F)
    for lengths in (LENGTHS, jnp.asarray(LENGTHS)):
        jitted = jax.jit(lambda xs, n=lengths: jaxrnn.unroll(cell, xs, seq_lengths=n).carry)
        assert_close(jitted(xs), jaxrnn.unroll(cell, xs, seq_lengths=LENGTHS).carry)


def test_lengths_may_be_traced(caplog):
    cell, xs = make("gru"), draw(T, B, F, seed=1)
    carry = initial(cell, (B,))

    @jax.jit
    def run(lengths):
        return jaxrnn.unroll(cell, xs, carry=carry, seq_lengths=lengths)

    for lengths in (jnp.array([5, 0, 2]), jnp.array([1, 3, 4])):
        caplog.clear()
        with jax.log_compiles():
            done = run(lengths)
        expected = numpy_run("gru", params(cell), xs, carry, lengths=np.asarray(lengths))
        assert_is_the_numpy_run(done, expected)
    assert not compiled(caplog)


def test_an_ensemble_unrolls_under_vmap():
    members, xs = [make("gru", seed) for seed in (0, 1)], draw(T, B, F, seed=1)
    ensemble = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    outputs = jax.vmap(lambda cell: jaxrnn.unroll(cell, xs).outputs)(ensemble)
    for member, actual in zip(members, outputs, strict=True):
        assert_close(actual, jaxrnn.unroll(member, xs).outputs)


def test_inputs_without_a_feature_axis_get_their_batch_from_the_carry():
    tokens = jnp.array([[1, 2], [0, 1], [2, 2]])  # [T, B]
    table = jnp.arange(6.0).reshape(3, 2)

    def add_embedding(carry, token):
        moved = carry + table[token]
        return moved, moved

    mask = jnp.array([[True, True], [True, False], [True, True]])
    done = jaxrnn.unroll(add_embedding, tokens, carry=jnp.zeros((2, 2)), mask=mask)
    np.testing.assert_array_equal(done.carry[0], table[1] + table[0] + table[2])
    np.testing.assert_array_equal(done.carry[1], table[2] + table[2])


def test_no_episode_sees_another_in_either_direction():
    """Two episodes in one sequence give what each gives alone."""
    cell = jaxrnn.GRUCell(3, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    xs = jax.random.normal(jax.random.key(0), (9, 2, 3))
    resets = jnp.zeros((9, 2), bool).at[4].set(True)
    for reverse in (False, True):
        together = jaxrnn.unroll(cell, xs, resets=resets, reverse=reverse).outputs
        apart = [jaxrnn.unroll(cell, part, reverse=reverse).outputs for part in (xs[:4], xs[4:])]
        np.testing.assert_allclose(together, np.concatenate(apart), atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_reset_on_padding_still_parts_the_episodes(reverse):
    """Steps 3 and 4 are padding around the border, wherever in it the flag stands."""
    cell = jaxrnn.GRUCell(3, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    xs = jax.random.normal(jax.random.key(0), (9, 3, 3))
    mask = jnp.ones((9, 3), bool).at[3:5].set(False)
    resets = jnp.zeros((9, 3), bool).at[jnp.array([3, 4, 5]), jnp.arange(3)].set(True)
    together = jaxrnn.unroll(cell, xs, mask=mask, resets=resets, reverse=reverse)
    apart = [jaxrnn.unroll(cell, part, reverse=reverse) for part in (xs[:3], xs[5:])]
    np.testing.assert_allclose(together.outputs[:3], apart[0].outputs, atol=1e-12)
    np.testing.assert_allclose(together.outputs[5:], apart[1].outputs, atol=1e-12)
    np.testing.assert_allclose(together.carry, apart[0 if reverse else 1].carry, atol=1e-12)


def test_resets_in_the_padding_at_the_end_leave_the_last_carry():
    cell = jaxrnn.GRUCell(3, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    xs = jax.random.normal(jax.random.key(0), (9, 2, 3))
    resets = jnp.zeros((9, 2), bool).at[6:].set(True)
    done = jaxrnn.unroll(cell, xs, seq_lengths=jnp.array([5, 5]), resets=resets)
    np.testing.assert_allclose(done.carry, jaxrnn.unroll(cell, xs[:5]).carry, atol=1e-12)


def test_lengths_of_a_small_integer_type_do_not_wrap():
    cell = jaxrnn.ElmanCell(1, 2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    xs = jnp.ones((300, 4, 1))
    lengths = np.array([1, 20, 200, 255])
    small = jaxrnn.unroll(cell, xs, seq_lengths=lengths.astype(np.uint8))
    valid = np.abs(np.asarray(small.outputs)).sum(axis=-1) > 0
    np.testing.assert_array_equal(valid.sum(axis=0), lengths)
