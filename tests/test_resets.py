"""A reset goes back to the start of the layer or cell, not to the carry that was handed in.

The right value is that of two calls: one up to the reset, and one from there without a carry.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import RNN, Bidirectional, InputError, Scan, Stack
from jaxrnn.models import Embedding, LanguageModel

F, H, T, B = 3, 4, 6, 2
BORDER = 4

pytestmark = pytest.mark.usefixtures("x64")


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def cell(name="lstm", features=F):
    return jaxrnn.make_cell(name, features, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))


def learnt(name="lstm", features=F):
    normal = jax.nn.initializers.normal(1.0)
    return RNN(cell(name, features), carry_init=normal, rngs=nnx.Rngs(1))


def flax_cell():
    return nnx.GRUCell(F, H, dtype=jnp.float64, param_dtype=jnp.float64, rngs=nnx.Rngs(0))


LAYERS = {
    "rnn": lambda: RNN(cell("gru")),
    "of-flax": lambda: RNN(flax_cell()),
    "learnt": learnt,
    "own-clock": lambda: RNN(cell("clockwork")),
    "zoneout": lambda: RNN(cell(), zoneout=0.3),
    "scan": lambda: RNN(cell(), method=Scan()),
    "stack": lambda: Stack([learnt(), RNN(cell("gru", H))]),
}


def elsewhere(layer):
    """A carry as an earlier piece may have left it."""
    leaves, structure = jax.tree.flatten(layer.initialize_carry((B, F)))
    moved = [leaf + draw(*leaf.shape, seed=i).astype(leaf.dtype) for i, leaf in enumerate(leaves)]
    return structure.unflatten(moved)


def flags(steps=T):
    return jnp.zeros((B, steps), bool).at[:, BORDER].set(True)


def assert_close(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), actual, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_gives_what_two_pieces_give(name):
    layer: Any = LAYERS[name]()
    xs, carry = draw(B, T, F), elsewhere(layer)
    last, whole = layer(xs, initial_carry=carry, resets=flags(), return_carry=True)
    first = layer(xs[:, :BORDER], initial_carry=carry)
    expected, second = layer(xs[:, BORDER:], return_carry=True)
    assert_close(whole, jnp.concatenate([first, second], axis=1))
    assert_close(last, expected)
    # The carry that was handed in makes a difference, so the test can fail.
    assert np.abs(layer(xs[:, BORDER:], initial_carry=carry) - second).max() > 0.01


@pytest.mark.parametrize("variational", [True, False])
def test_recurrent_dropout_goes_back_to_the_start_of_the_layer(variational):
    layer = RNN(cell(), recurrent_dropout=0.4, variational=variational)
    xs, key = draw(B, T, F), jax.random.key(0)

    def run(carry):
        return layer(xs, initial_carry=carry, resets=flags(), dropout_key=key)

    assert_close(run(elsewhere(layer))[:, BORDER:], run(None)[:, BORDER:])
    assert np.abs(run(elsewhere(layer)) - run(None))[:, :BORDER].max() > 0.01


def test_both_directions_go_back_to_their_own_starts():
    layer = Bidirectional(learnt(), RNN(cell("gru")))
    xs, carry = draw(B, T, F), elsewhere(layer)
    whole = layer(xs, initial_carry=carry, resets=flags())
    # Read backwards, the episode after the border is the first, and it starts from the carry given.
    first = layer(
        xs[:, :BORDER], initial_carry=(carry[0], layer.backward_rnn.initialize_carry((B, F)))
    )
    second = layer(
        xs[:, BORDER:], initial_carry=(layer.forward_rnn.initialize_carry((B, F)), carry[1])
    )
    assert_close(whole, jnp.concatenate([first, second], axis=1))


@pytest.mark.parametrize("name", LAYERS)
def test_reset_carry_is_where_a_reset_goes(name):
    layer: Any = LAYERS[name]()
    xs, carry = draw(B, T, F), elsewhere(layer)
    whole = layer(xs, resets=flags(), reset_carry=carry)
    assert_close(whole[:, BORDER:], layer(xs[:, BORDER:], initial_carry=carry))


def test_a_learnt_start_has_the_gradient_of_every_reset():
    layer = learnt()
    xs, carry = draw(B, T, F), elsewhere(layer)

    def at_once(layer):
        return jnp.sum(layer(xs, initial_carry=carry, resets=flags()) ** 2)

    def in_pieces(layer):
        first = layer(xs[:, :BORDER], initial_carry=carry)
        return jnp.sum(first**2) + jnp.sum(layer(xs[:, BORDER:]) ** 2)

    actual, expected = jax.grad(at_once)(layer), jax.grad(in_pieces)(layer)
    assert_close(actual, expected)
    assert np.abs(actual.carry[0][...]).max() > 0.01


@pytest.mark.parametrize("make", [cell, flax_cell])
def test_unroll_goes_back_to_the_start_of_the_cell(make):
    xs, carry = draw(T, B, F), elsewhere(RNN(make()))
    done = jaxrnn.unroll(make(), xs, carry=carry, resets=flags().T)
    assert_close(done.carry, jaxrnn.unroll(make(), xs[BORDER:]).carry)
    again = jaxrnn.unroll(make(), xs, carry=carry, resets=flags().T, reset_carry=carry)
    assert_close(again.carry, jaxrnn.unroll(make(), xs[BORDER:], carry=carry).carry)


def test_unroll_of_a_function_goes_back_to_the_carry_given():
    xs = draw(T, B, F)
    done = jaxrnn.unroll(lambda c, x: (c + x, c), xs, carry=jnp.ones((B, F)), resets=flags().T)
    assert_close(done.carry, 1 + xs[BORDER:].sum(axis=0))


def test_a_cell_that_cannot_be_asked_for_its_start_needs_a_reset_carry():
    class Pairs(nnx.Module):
        def initialize_carry(self, input_shape, rngs=None):
            return jnp.zeros((*input_shape[:-1], F))

        def __call__(self, carry, x):
            return carry + x[0] * x[1], carry

    xs, carry = (draw(T, B, F), draw(T, B, F)), jnp.ones((B, F))
    with pytest.raises(
        InputError, match=r"reset_carry: got None; expected an initial carry, where"
    ):
        jaxrnn.unroll(Pairs(), xs, carry=carry, resets=flags().T)
    done = jaxrnn.unroll(Pairs(), xs, carry=carry, resets=flags().T, reset_carry=carry)
    assert_close(done.carry, 1 + (xs[0] * xs[1])[BORDER:].sum(axis=0))


def test_a_language_model_begins_a_new_text_at_a_reset():
    rngs = nnx.Rngs(0)
    model = LanguageModel(
        Embedding(7, F, rngs=rngs), RNN(jaxrnn.GRUCell(F, H, rngs=rngs)), rngs=rngs
    )
    tokens, carry = jnp.arange(T * B).reshape(T, B) % 7, jnp.ones((B, H), jnp.float32)
    _, logits = model.read(tokens, carry=carry, resets=flags().T)
    np.testing.assert_allclose(logits[BORDER:], model(tokens[BORDER:]), atol=1e-6)  # float32
    _, logits = model.read(tokens, resets=flags().T, reset_carry=carry)
    _, expected = model.read(tokens[BORDER:], carry=carry)
    np.testing.assert_allclose(logits[BORDER:], expected, atol=1e-6)


@pytest.mark.parametrize("argument", ["initial_carry", "reset_carry"])
def test_carries_of_several_layers_are_refused_by_name(argument):
    pair = Bidirectional(RNN(cell()), RNN(cell("gru")))
    for layer, expected in (
        (pair, "a pair of carries"),
        (Stack([pair]), "one carry for each of 1"),
    ):
        carries: dict[str, Any] = {argument: (jnp.zeros((B, H)),) * 3}
        with pytest.raises(InputError, match=f"{argument}: got .*; expected {expected}"):
            layer(draw(B, T, F), **carries)


def test_every_layer_says_where_it_starts():
    """As cells do: `initialize_carry` of the shape of one step's inputs."""
    ahead = learnt()
    stack = Stack([Bidirectional(ahead, RNN(cell("gru"))), RNN(cell("gru", 2 * H))])
    start: Any = stack.initialize_carry((5, F))
    c, h = (vector[...] for vector in ahead.carry)
    assert_close(start[0][0], (jnp.broadcast_to(c, (5, H)), jnp.broadcast_to(h, (5, H))))
    assert_close((start[0][1], start[1]), (jnp.zeros((5, H)),) * 2)
    xs = draw(5, T, F)
    assert_close(stack(xs, initial_carry=start), stack(xs))
