"""Leaves of inputs, carries and outputs that all sequences share, beside lengths, masks and resets.

The oracle is a loop in NumPy over the sequences, one at a time. B equals H throughout, so that an array [B]
put where [H] belongs would be broadcast without an error.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import Blocked, InputError, Remat, Scan

T, B, H = 5, 4, 4
LENGTHS = np.array([0, 2, 3, 5])
RESETS = np.random.default_rng(2).random((T, B)) < 0.4
MASK = np.random.default_rng(3).random((T, B)) < 0.7
OPTIONS: dict[str, dict[str, Any]] = {
    "lengths": {"seq_lengths": LENGTHS},
    "mask": {"mask": MASK},
    "resets": {"resets": RESETS},
    "all": {"seq_lengths": LENGTHS, "mask": MASK, "resets": RESETS},
}
WEIGHT = np.random.default_rng(0).normal(size=(H, H)) * 0.6
XS = np.random.default_rng(1).normal(size=(T, B, H))
START = np.random.default_rng(4).normal(size=(B, H))
TIMES = np.linspace(0.5, 1.5, T)

pytestmark = pytest.mark.usefixtures("x64")


def loop(options):
    """Carry h' = tanh(t (h W) + x) through time; return the outputs h' and the last h of each sequence."""
    valid = np.array(options.get("mask", np.ones((T, B), bool)))
    valid &= np.arange(T)[:, None] < options.get("seq_lengths", np.full(B, T))
    resets = options.get("resets", np.zeros((T, B), bool))
    outputs, last = np.zeros((T, B, H)), np.array(START)
    for b in range(B):
        h, fresh = START[b], False
        for t in range(T):
            fresh |= resets[t, b]
            if valid[t, b]:
                h = np.tanh(TIMES[t] * ((START[b] if fresh else h) @ WEIGHT) + XS[t, b])
                outputs[t, b], fresh = h, False
        last[b] = h
    return outputs, last


def moved(h, x, t):
    return jnp.tanh(jnp.broadcast_to(t, h.shape) * (h @ WEIGHT) + x)


def shared_input(carry, inputs):
    x, t = inputs
    h = moved(carry, x, t)
    return h, h


def shared_counter(carry, x):
    step, h = carry
    h = moved(h, x, jnp.asarray(TIMES)[step])
    return (step + 1, h), h


def shared_time(carry, x):
    t, h = carry
    h = moved(h, x, t)
    return (t + (TIMES[1] - TIMES[0]), h), h


XS_AND_TIMES = (XS, TIMES)
STEPS: dict[str, tuple[Any, Any, Any]] = {
    "input": (shared_input, XS_AND_TIMES, START),
    "counter": (shared_counter, XS, (np.zeros((), np.int32), START)),
    "time": (shared_time, XS, (np.full((), TIMES[0]), START)),
}


def h_of(carry):
    return jax.tree.leaves(carry)[-1]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("method", [None, Scan(), Remat(block=2)])
def test_shared_leaves_pass_lengths_masks_and_resets(name, options, method):
    step, xs, carry = STEPS[name]
    carry = jax.tree.map(jnp.asarray, carry)
    done = jaxrnn.unroll(step, xs, carry=carry, method=method, **OPTIONS[options])
    outputs, last = loop(OPTIONS[options])
    np.testing.assert_allclose(done.outputs, outputs, atol=1e-12)
    np.testing.assert_allclose(h_of(done.carry), last, atol=1e-12)
    if name == "counter":
        assert done.carry[0] == T


def test_the_default_takes_weights_out_of_the_loop_beside_shared_leaves():
    done = jaxrnn.unroll(shared_input, XS_AND_TIMES, carry=jnp.asarray(START), **OPTIONS["all"])
    assert isinstance(done.method, Blocked)


@pytest.mark.parametrize("name", ["input", "time"])
@pytest.mark.parametrize("method", [Blocked(block=2), Blocked(block=2, keep_signals=False)])
def test_gradients_beside_shared_leaves_are_those_of_scan(name, method):
    step, xs, carry = STEPS[name]
    carry = jax.tree.map(jnp.asarray, carry)

    def loss(xs, carry, method):
        done = jaxrnn.unroll(step, xs, carry=carry, method=method, **OPTIONS["all"])
        return jnp.sum(done.outputs**2) + jnp.sum(h_of(done.carry) ** 3)

    actual, expected = (jax.grad(loss, (0, 1))(xs, carry, m) for m in (method, Scan()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), actual, expected)


def test_an_output_without_batch_axes_stays_as_it_is():
    def with_a_constant(h, x):
        h = moved(h, x, 1.0)
        return h, {"h": h, "constant": jnp.float32(2)}

    done = jaxrnn.unroll(with_a_constant, XS, carry=jnp.asarray(START), seq_lengths=LENGTHS)
    np.testing.assert_array_equal(done.outputs["constant"], np.full(T, 2))
    assert not np.any(done.outputs["h"][2:, 1])


def test_random_keys_may_be_shared_or_one_for_each_sequence():
    def noisy(h, inputs):
        x, key = inputs
        noise = jax.random.normal(key, (H,)) if key.ndim == 0 else jax.vmap(_noise)(key)
        h = h + x + jnp.broadcast_to(noise, h.shape)
        return h, h

    shared = jax.random.split(jax.random.key(0), T)
    own = jax.random.split(jax.random.key(1), (T, B))
    for keys in (shared, own):
        done = jaxrnn.unroll(noisy, (XS, keys), carry=jnp.asarray(START), seq_lengths=LENGTHS)
        for b, length in enumerate(LENGTHS):
            drawn = [_noise(keys[t] if keys is shared else keys[t, b]) for t in range(length)]
            expected = START[b] + XS[:length, b].sum(axis=0) + np.sum(drawn, axis=0)
            np.testing.assert_allclose(done.carry[b], expected, atol=1e-12)


def _noise(key):
    return jax.random.normal(key, (H,))


def test_a_key_in_the_carry_is_shared():
    def step(carry, x):
        key, h = carry
        key, used = jax.random.split(key)
        return (key, h + x + jnp.broadcast_to(jax.random.normal(used, (H,)), h.shape)), h

    start = (jax.random.key(3), jnp.asarray(START))
    done = jaxrnn.unroll(step, XS, carry=start, seq_lengths=LENGTHS)
    key, drawn = start[0], []
    for _ in range(T):
        key, used = jax.random.split(key)
        drawn.append(_noise(used))
    for b, length in enumerate(LENGTHS):
        expected = START[b] + XS[:length, b].sum(axis=0) + np.sum(drawn[:length], axis=0)
        np.testing.assert_allclose(done.carry[1][b], expected, atol=1e-12)


@pytest.mark.parametrize("first", [True, False])
def test_a_counter_of_each_sequence_is_masked_wherever_it_stands(first):
    def step(carry, x):
        counts, h = carry if first else carry[::-1]
        moved = (counts + 1, h + x)
        return (moved if first else moved[::-1]), h

    carry = (jnp.zeros(B, jnp.int32), jnp.zeros((B, H)))
    carry = carry if first else carry[::-1]
    done = jaxrnn.unroll(step, XS, carry=carry, seq_lengths=LENGTHS)
    np.testing.assert_array_equal(done.carry[0 if first else 1], LENGTHS)


def test_lengths_say_which_axes_of_a_matrix_are_batch():
    def step(memory, x):
        return memory + x[..., :, None] * x[..., None, :], memory

    done = jaxrnn.unroll(step, XS, carry=jnp.zeros((B, H, H)), seq_lengths=LENGTHS)
    for b, length in enumerate(LENGTHS):
        np.testing.assert_allclose(done.carry[b], XS[:length, b].T @ XS[:length, b], atol=1e-12)


def test_a_foreign_cell_may_read_a_time_beside_its_features():
    class Timed(nnx.Module):
        num_feature_axes = 1

        def __call__(self, carry, inputs):
            return shared_input(carry, (inputs["x"], inputs["at"]))

    xs = {"at": jnp.asarray(TIMES), "x": jnp.asarray(XS)}
    done = jaxrnn.unroll(Timed(), xs, carry=jnp.asarray(START), **OPTIONS["all"])
    np.testing.assert_allclose(done.outputs, loop(OPTIONS["all"])[0], atol=1e-12)


def test_lengths_of_another_batch_are_refused():
    with pytest.raises(InputError, match=r"seq_lengths: got int64\[3\]; expected shape \[4\]"):
        jaxrnn.unroll(shared_input, XS_AND_TIMES, carry=jnp.asarray(START), seq_lengths=LENGTHS[:3])
    with pytest.raises(InputError, match=r"mask: got bool\[5\]; expected shape \[5, 4\]"):
        jaxrnn.unroll(shared_input, XS_AND_TIMES, carry=jnp.asarray(START), mask=MASK[:, 0])
