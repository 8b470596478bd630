"""Steps that are not of this package: functions made anew, modules that change, and images for inputs."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrnn import RNN, Bidirectional, Blocked, InputError, Scan, Stack, unroll

F, H, T, B = 3, 4, 5, 2


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def compiled(caplog):
    return [line for line in caplog.messages if "Compiling" in line]


# Functions.


def tanh_step(weight, scale=0.9):
    def step(carry, x):
        h = jnp.tanh(scale * (carry @ weight) + x)
        return h, h * 2.0

    return step


def relu_step(weight):
    return lambda carry, x: (jax.nn.relu(carry @ weight + x),) * 2


def looping_step(weight):
    def step(carry, x):
        moved = jax.lax.fori_loop(0, 2, lambda _, c: jnp.sin(c @ weight), carry)
        return jax.lax.switch(1, [lambda: moved, lambda: moved + x]), moved

    return step


@pytest.mark.parametrize("make", [tanh_step, relu_step, looping_step])
def test_a_function_made_anew_is_compiled_once(make, caplog):
    """With other weights each time, outside `jax.jit`; the numbers are those of `lax.scan`."""
    xs, start = draw(T + 8, B, H), draw(B, H, seed=1)
    for call in range(3):
        step = make(0.5 * draw(H, H, seed=call))
        last, expected = jax.lax.scan(step, start, xs)
        with jax.log_compiles():
            caplog.clear()
            done = unroll(step, xs, carry=start)
            assert bool(compiled(caplog)) == (call == 0)
        np.testing.assert_allclose(done.outputs, expected, atol=1e-6)
        np.testing.assert_allclose(done.carry, last, atol=1e-6)


def test_its_gradient_is_compiled_once(caplog):
    xs, start = draw(T + 9, B, H), draw(B, H, seed=1)

    def loss(weight, run):
        return jnp.sum(run(tanh_step(weight)) ** 2)

    for call in range(3):
        weight = draw(H, H, seed=call)
        with jax.log_compiles():
            caplog.clear()
            found = jax.grad(loss)(weight, lambda step: unroll(step, xs, carry=start).outputs)
            assert bool(compiled(caplog)) == (call == 0)
        expected = jax.grad(loss)(weight, lambda step: jax.lax.scan(step, start, xs)[1])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_functions_that_differ_are_told_apart():
    """By a constant, an operation, a comparison, or the rule of a derivative that is asked for."""
    xs, start = draw(T, B, H), draw(B, H, seed=1)

    def with_rule(factor):
        @jax.custom_jvp
        def same(x):
            return jnp.sin(x)

        same.defjvp(lambda primals, tangents: (same(*primals), factor * tangents[0]))
        return lambda carry, x: (same(carry) + x,) * 2

    steps = [
        *(tanh_step(jnp.eye(H), scale) for scale in (0.5, 0.25)),
        lambda c, x: (c + x, c),
        lambda c, x: (c - x, c),
        lambda c, x: (c + x, x),
        lambda c, x: (jnp.where(c > 0, c, x), x),
        lambda c, x: (jnp.where(c < 0, c, x), x),
        lambda c, x: (c.sum(axis=-1, keepdims=True) + x,) * 2,
        lambda c, x: (c.max(axis=-1, keepdims=True) + x,) * 2,
        with_rule(2.0),
        with_rule(3.0),
    ]

    def gradient(run):
        return jax.grad(lambda start: jnp.sum(run(start) ** 2))(start)

    with jax.numpy_rank_promotion("allow"):
        for step in steps:
            by_scan = lambda start, step=step: jax.lax.scan(step, start, xs)[1]  # noqa: E731
            ours = lambda start, step=step: unroll(step, xs, carry=start).outputs  # noqa: E731
            np.testing.assert_allclose(ours(start), by_scan(start), atol=1e-5)
            np.testing.assert_allclose(gradient(ours), gradient(by_scan), rtol=1e-4, atol=1e-4)


def test_forward_mode_by_what_a_function_closes_over():
    xs, start, weight = draw(T, B, H), draw(B, H, seed=1), draw(H, H, seed=2)

    def outputs(weight, method=None):
        return unroll(tanh_step(weight), xs, carry=start, method=method).outputs

    expected = jax.jvp(lambda w: jax.lax.scan(tanh_step(w), start, xs)[1], (weight,), (weight,))
    for found, right in zip(jax.jvp(outputs, (weight,), (weight,)), expected, strict=True):
        np.testing.assert_allclose(found, right, atol=1e-5)


def test_functions_with_other_derivative_rules_are_other_functions():
    def step_with(slope):
        @jax.custom_jvp
        def spike(a):
            return (a > 0).astype(a.dtype)

        @spike.defjvp
        def _(primals, tangents):
            return spike(*primals), slope * tangents[0]

        return lambda weight, h, x: (0.5 * h + spike(h @ weight + x),) * 2

    xs, start, weight = draw(T, B, H), draw(B, H, seed=1), draw(H, H, seed=2)

    def gradient(slope):
        step = step_with(slope)

        @jax.jit
        def loss(weight):
            one = functools.partial(step, weight)
            return jnp.sum(unroll(one, xs, carry=start, method=Scan()).outputs)

        by_hand = lambda w: jnp.sum(jax.lax.scan(functools.partial(step, w), start, xs)[1])  # noqa: E731
        return jax.grad(loss)(weight), jax.grad(by_hand)(weight)

    for slope in (1.0, 3.0):
        np.testing.assert_allclose(*gradient(slope), rtol=1e-4)


def test_a_function_whose_arrays_change_is_traced_anew():
    held = {"weight": jnp.eye(H)}

    def step(carry, x):
        h = carry @ held["weight"] + x
        return h, h

    xs, start = draw(T, B, H), draw(B, H, seed=1)
    first = unroll(step, xs, carry=start).carry
    held["weight"] = jnp.zeros((H, H))
    np.testing.assert_allclose(unroll(step, xs, carry=start).carry, xs[-1], atol=1e-6)
    assert np.abs(first - xs[-1]).max() > 0.1


# Modules that change.


class Changing(nnx.Module):
    """A cell with dropout, batch statistics and a counter; `nnx.RNN` takes it."""

    num_feature_axes = 1

    def __init__(self, rngs, *, sow=False):
        self.inner = nnx.GRUCell(F, H, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(F, rngs=rngs)
        self.count = nnx.Variable(jnp.zeros((), jnp.int32))
        self.sows = sow

    def initialize_carry(self, input_shape, rngs=None):
        return self.inner.initialize_carry(input_shape, rngs)

    def __call__(self, carry, x):
        self.count[...] = self.count[...] + 1
        carry, y = self.inner(carry, self.dropout(self.norm(x)))
        if self.sows:
            self.sow(nnx.Intermediate, "y", y)
        return carry, y


def variables(module):
    state = nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.Param)))
    return {path: jnp.asarray(leaf[...]) for path, leaf in state if "key" not in path}


def test_a_module_that_changes_gives_what_flax_gives():
    xs = draw(B, T, F)
    theirs, ours = Changing(nnx.Rngs(0)), Changing(nnx.Rngs(0))
    reference: Any = nnx.RNN(theirs)  # pyright: ignore[reportArgumentType]
    layer = RNN(ours)
    for _ in range(2):  # the second call goes on where the first stopped
        np.testing.assert_allclose(layer(xs), reference(xs), atol=1e-6)
    found, expected = variables(ours), variables(theirs)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, atol=1e-6)
    assert ours.count[...] == 2 * T


@pytest.mark.parametrize("reverse", [False, True])
def test_lengths_and_resets_are_those_of_the_carry_alone(reverse):
    """B equals F, so that statistics [F] could be mistaken for numbers of each sequence."""
    xs, lengths = draw(T, F, F), np.array([0, 2, T])
    resets = np.zeros((T, F), bool)
    resets[1] = True
    cell, reference = Changing(nnx.Rngs(0)), Changing(nnx.Rngs(0))
    done = unroll(cell, xs, seq_lengths=lengths, resets=resets, reverse=reverse)
    carry = start = np.zeros((F, H), np.float32)
    fresh = np.zeros(F, bool)
    outputs = np.zeros((T, F, H))
    for t in reversed(range(T)) if reverse else range(T):
        valid = t < lengths
        fresh |= resets[t + 1] if reverse and t + 1 < T else resets[t] & (not reverse)
        before = np.where(fresh[:, None], start, carry)
        moved, y = reference(jnp.asarray(before), jnp.where(valid[:, None], xs[t], 0))
        carry = np.where(valid[:, None], moved, carry)
        outputs[t] = np.where(valid[:, None], y, 0)
        fresh &= ~valid
    np.testing.assert_allclose(done.outputs, outputs, atol=1e-5)
    np.testing.assert_allclose(done.carry, carry, atol=1e-5)
    assert cell.count[...] == T


def test_what_a_module_sows_is_dropped():
    cell, xs = Changing(nnx.Rngs(0), sow=True), draw(B, T, F)
    with pytest.warns(DeprecationWarning, match="sow"):
        outputs = RNN(cell)(xs)
    np.testing.assert_allclose(outputs, RNN(Changing(nnx.Rngs(0)))(xs), atol=1e-6)


def test_a_module_trains_through_its_variables():
    cell, xs = Changing(nnx.Rngs(0)), draw(T, B, F)

    @nnx.jit
    def gradient(cell):
        return nnx.grad(lambda cell: jnp.sum(unroll(cell, xs).outputs ** 2))(cell)

    by_weights = gradient(cell)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(by_weights.inner))
    assert cell.count[...] == T


def test_variables_that_no_step_changes_cost_nothing():
    class Scaled(Changing):
        def __call__(self, carry, x):
            return self.inner(carry, x * (1.0 + self.norm.mean[...]))

    with jax.numpy_rank_promotion("allow"):
        done = unroll(Scaled(nnx.Rngs(0)), draw(T, B, F))
    assert isinstance(done.method, Blocked)
    assert isinstance(unroll(Changing(nnx.Rngs(0)), draw(T, B, F)).method, Scan)


# Images.


class ConvLSTM(nnx.Module):
    """Images [*B, R, S, F] for inputs, and (c, h) of images for a carry."""

    num_feature_axes = 3

    def __init__(self, features, units, rngs):
        self.units = units
        self.gates = nnx.Conv(features + units, 4 * units, (3, 3), rngs=rngs)

    def initialize_carry(self, input_shape, rngs=None):
        zeros = jnp.zeros((*input_shape[:-1], self.units))
        return zeros, zeros

    def __call__(self, carry, x):
        c, h = carry
        mixed = self.gates(jnp.concatenate([x, h], axis=-1))
        i, f, g, o = jnp.split(mixed, 4, axis=-1)
        c = nnx.sigmoid(f) * c + nnx.sigmoid(i) * jnp.tanh(g)
        h = nnx.sigmoid(o) * jnp.tanh(c)
        return (c, h), h


def conv_layers():
    rngs = nnx.Rngs(0)
    return [RNN(ConvLSTM(1, 2, rngs)), RNN(ConvLSTM(2, 3, rngs))]


@pytest.mark.parametrize("time_major", [False, True])
def test_a_stack_over_images_takes_lengths_masks_and_resets(time_major):
    layers, images = conv_layers(), draw(B, T, 4, 6, 1)
    mask = np.random.default_rng(1).random((B, T)) < 0.7
    lengths = np.array([2, T])
    resets = np.zeros((B, T), bool)
    resets[:, 3] = True

    def laid(array):
        return jnp.swapaxes(array, 0, 1) if time_major else jnp.asarray(array)

    options: Any = {"mask": laid(mask), "resets": laid(resets), "seq_lengths": lengths}
    stack = Stack(layers, time_major=time_major, return_carry=True)
    carries, outputs = stack(laid(images), **options)

    valid = mask & (np.arange(T) < lengths[:, None])
    xs = np.asarray(images)
    for layer, last in zip(layers, carries, strict=True):
        below, xs = xs, np.zeros((B, T, 4, 6, layer.cell.units), np.float32)
        for b in range(B):
            carry = start = layer.cell.initialize_carry((4, 6, 1))
            fresh = False
            for t in range(T):
                fresh |= resets[b, t]
                if valid[b, t]:
                    carry, xs[b, t] = layer.cell(
                        start if fresh else carry, jnp.asarray(below[b, t])
                    )
                    fresh = False
            for ours, theirs in zip(last, carry, strict=True):
                np.testing.assert_allclose(ours[b], theirs, atol=1e-5)
    np.testing.assert_allclose(outputs, laid(xs), atol=1e-5)


def test_layers_over_images_say_where_they_start():
    stack = Stack(conv_layers())
    first, second = stack.initialize_carry((B, 4, 6, 1))
    assert (first[0].shape, second[1].shape) == ((B, 4, 6, 2), (B, 4, 6, 3))
    images = draw(B, T, 4, 6, 1)
    np.testing.assert_allclose(stack(images, initial_carry=(first, second)), stack(images))


def test_both_directions_over_images():
    one, other = (RNN(ConvLSTM(1, 2, nnx.Rngs(seed))) for seed in (0, 1))
    images, lengths = draw(B, T, 4, 6, 1), np.array([2, T])
    outputs = Bidirectional(one, other)(images, seq_lengths=lengths)
    ahead, back = one(images, seq_lengths=lengths), other(images, seq_lengths=lengths, reverse=True)
    np.testing.assert_allclose(outputs, jnp.concatenate([ahead, back], axis=-1))


def test_a_learnt_start_of_unknown_size_is_refused():
    with pytest.raises(InputError, match=r"carry_init: got an initialiser, for a ConvLSTM"):
        RNN(ConvLSTM(1, 2, nnx.Rngs(0)), carry_init=jax.nn.initializers.zeros, rngs=nnx.Rngs(0))
