"""Trajectories. Oracles: a NumPy loop over the papers' equations; the logistic map in closed form."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn.analysis import trace
from jaxrnn.checks import InputError
from tests.analysis.examples import (
    B,
    F,
    H,
    T,
    assert_close,
    compiles,
    inputs,
    make,
    numpy_step,
    travelled,
)
from tests.oracles import numpy_cells as oracle
from tests.zoo import every_plain_cell


@every_plain_cell
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_states_and_outputs_equal_a_numpy_loop(name, batch, x64):
    cell, path = travelled(name, batch)
    xs, carry = inputs(cell, batch)
    step = numpy_step(name, cell)
    first = tuple(np.asarray(leaf) for leaf in jax.tree.leaves(carry))
    run = oracle.run(lambda _, s, x: step(s, x), {}, np.asarray(xs), first)
    expected = [np.concatenate([a[None], rest]) for a, rest in zip(first, run.states, strict=True)]

    assert path.batch == batch
    assert path.length == T
    assert path.states.shape == (T + 1, *batch, H * len(first))
    assert_close(path.states, np.concatenate(expected, axis=-1), 1e-13)
    assert_close(path.outputs, run.outputs, 1e-13)


@every_plain_cell
def test_without_a_carry_the_cells_own_comes_first(name, x64):
    cell = make(name)
    xs, _ = inputs(cell)
    np.testing.assert_array_equal(trace(cell, xs).states[0], 0)


def test_lstm_state_is_c_then_h(x64):
    _, path = travelled("lstm")
    c, h = path.carries
    np.testing.assert_array_equal(path.states[..., :H], c)
    np.testing.assert_array_equal(path.states[..., H:], h)
    np.testing.assert_array_equal(path.outputs, h[1:])


def test_leaves_stand_in_pytree_order():
    def turn(carry, x):
        return {"b": carry["a"], "a": carry["b"]}, x  # a dictionary's leaves are sorted by name

    path = trace(turn, None, carry={"b": jnp.ones(1), "a": jnp.full(1, 2.0)}, length=2)
    np.testing.assert_array_equal(path.states, [[2.0, 1.0], [1.0, 2.0], [2.0, 1.0]])


def test_autonomous_system_follows_its_closed_form(x64):
    """Logistic map r = 4: x_t = sin²(2^t arcsin √x_0); an error doubles with every step."""
    first = np.array([0.1, 0.2, 0.7])
    path = trace(lambda s, x: (4.0 * s * (1.0 - s), s), None, carry=jnp.asarray(first), length=20)
    t = np.arange(21)[:, None]
    exact = np.sin(2.0**t * np.arcsin(np.sqrt(first))) ** 2
    assert_close(path.states, exact, 2**20 * 1e-15)
    np.testing.assert_array_equal(path.outputs, path.states[:-1])


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_inputs_that_are_not_finite_are_refused_with_their_place(bad):
    cell = make("lstm", jnp.float32)
    xs = jnp.ones((T, B, F)).at[2, 1, 0].set(bad)
    with pytest.raises(
        InputError, match=re.escape("xs: got 1 non-finite values, the first at [2, 1, 0]")
    ):
        trace(cell, xs)


def test_carry_that_is_not_finite_is_refused_with_its_leaf_and_place():
    cell = make("lstm", jnp.float32)
    xs, (c, h) = inputs(cell, dtype=jnp.float32)
    with pytest.raises(
        InputError, match=re.escape("carry[0]: got 1 non-finite values, the first at [1, 2]")
    ):
        trace(cell, xs, carry=(c.at[1, 2].set(jnp.nan), h))
    with pytest.raises(
        InputError, match=re.escape("carry[1]: got 1 non-finite values, the first at [0, 3]")
    ):
        trace(cell, xs, carry=(c, h.at[0, 3].set(jnp.nan)))


@every_plain_cell
def test_nan_in_any_weight_is_refused(name):
    cell = make(name, jnp.float32)
    xs, carry = inputs(cell, dtype=jnp.float32)
    leaves, treedef = jax.tree.flatten(cell)
    for k, leaf in enumerate(leaves):
        spoiled = [*leaves[:k], jnp.full_like(leaf, jnp.nan), *leaves[k + 1 :]]
        with pytest.raises(InputError, match=r"^cell: its states.* the first at \[1, 0, 0\]"):
            trace(jax.tree.unflatten(treedef, spoiled), xs, carry=carry)


def test_run_that_overflows_is_refused_with_its_step():
    def grow(s, x):
        return 1e10 * s, s

    assert trace(grow, None, carry=jnp.ones(1), length=3).length == 3
    with pytest.raises(
        InputError,
        match=re.escape("cell: its states: got 1 non-finite values, the first at [4, 0]"),
    ):
        trace(grow, None, carry=jnp.ones(1), length=4)


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({}, "xs"),
        ({"length": 3}, "carry"),
        ({"carry": 1.0}, "xs"),
        ({"carry": 1.0, "length": 0}, "length"),
    ],
)
def test_autonomous_system_needs_length_and_carry(arguments, argument):
    if "carry" in arguments:
        arguments = arguments | {"carry": jnp.ones(2)}
    with pytest.raises(InputError, match=f"^{argument}: got"):
        trace(lambda s, x: (s, s), None, **arguments)


def test_new_weights_do_not_compile_again(caplog):
    def run(seed, length=T):
        cell = make("lstm", jnp.float32, seed)
        xs, carry = inputs(cell, dtype=jnp.float32, length=length)
        trace(cell, xs, carry=carry)

    run(0)
    assert not compiles(caplog, lambda: run(1))
    assert compiles(caplog, lambda: run(1, 11))  # a new length, so the log can tell
