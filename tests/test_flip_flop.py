"""The flip-flop task: against a loop that remembers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn.checks import InputError
from jaxrnn.tasks.flip_flop import flip_flop


@pytest.mark.parametrize("bits", [1, 3])
def test_targets_are_the_last_pulses(bits):
    inputs, targets = flip_flop(jax.random.key(0), steps=60, batch=5, bits=bits)
    assert inputs.shape == targets.shape == (60, 5, bits)
    memory = np.zeros((5, bits))
    for pulse, target in zip(np.asarray(inputs), np.asarray(targets), strict=True):
        memory = np.where(pulse != 0, pulse, memory)
        np.testing.assert_array_equal(target, memory)


def test_pulses_come_as_often_as_said_and_with_either_sign():
    inputs, _ = flip_flop(jax.random.key(1), steps=1001, batch=10, probability=0.2)
    assert set(np.unique(inputs)) == {-1.0, 0.0, 1.0}
    assert np.all(inputs[0] != 0)  # every memory is defined from the start
    # 30 000 draws of probability 0.2: standard error 0.0023; 6000 signs: 0.013.
    assert np.mean(inputs[1:] != 0) == pytest.approx(0.2, abs=0.01)
    assert np.mean(inputs[inputs != 0]) == pytest.approx(0.0, abs=0.06)


def test_probability_0_and_1():
    never, held = flip_flop(jax.random.key(2), steps=9, batch=2, probability=0.0)
    assert np.all(never[1:] == 0)
    assert np.all(held == never[:1])
    always, followed = flip_flop(jax.random.key(2), steps=9, batch=2, probability=1.0)
    np.testing.assert_array_equal(always, followed)


def test_same_key_same_draw_and_default_precision(dtype):
    one, other, third = (flip_flop(jax.random.key(k), steps=9, batch=2) for k in (0, 0, 1))
    np.testing.assert_array_equal(one[0], other[0])
    assert np.any(one[0] != third[0])
    assert one[0].dtype == one[1].dtype == dtype


def test_can_be_compiled():
    inputs, targets = jax.jit(lambda key: flip_flop(key, steps=9, batch=2))(jax.random.key(0))
    assert bool(jnp.all(targets[0] == inputs[0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: got 0"),
        ({"batch": -2}, "batch: got -2"),
        ({"bits": -1}, "bits: got -1"),
        ({"probability": 1.5}, "probability: got 1.5; expected a number from 0 to 1"),
    ],
)
def test_bad_sizes_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        flip_flop(jax.random.key(0), **{"steps": 5, "batch": 2, **options})
