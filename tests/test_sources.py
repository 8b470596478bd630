"""Where batches come from: every example once an epoch, nothing of the padding, texts read in order."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn.checks import InputError
from jaxrnn.tasks import Batch, Buckets, Examples, Sampler, Text, bucketed
from jaxrnn.tasks.sources import Source


def epoch(source: Source, number: int, batch_size: int, seed: int = 0) -> list[Batch]:
    """All batches of an epoch, as training sees them."""
    parts, found = jax.tree.map(jnp.asarray, source.parts(batch_size)), []
    for stretch in source.epoch(number, batch_size):
        part = parts[stretch.part]
        order = source.order(part, jax.random.key(seed))
        found += [
            source.batch(part, order, jnp.asarray(i), jax.random.key(i), batch_size)
            for i in range(stretch.first, stretch.first + stretch.batches)
        ]
    return found


def ragged(count: int = 23) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Token sequences of many lengths, sequence i made of the number i, and labels of their steps."""
    rng = np.random.default_rng(0)
    inputs = [np.full(n, i, np.int32) for i, n in enumerate(rng.integers(1, 30, count), start=1)]
    return inputs, [10 * x + np.arange(len(x), dtype=np.int32) for x in inputs]


def test_an_epoch_shows_every_example_once_in_an_order_of_its_own():
    source = Examples(np.arange(22.0).reshape(11, 2, 1), np.arange(11))
    batches = epoch(source, 0, 4)
    assert len(batches) == source.steps(4) == 3
    shown = [int(t) for b in batches for t, m in zip(b.targets, b.mask, strict=True) if m]
    assert sorted(shown) == list(range(11))
    assert shown != list(range(11))
    assert shown != [int(t) for b in epoch(source, 0, 4, seed=1) for t in b.targets][:11]
    for batch in batches:
        numbers = np.asarray(batch.targets)
        np.testing.assert_array_equal(batch.inputs[0, :, 0], 2 * numbers)
        np.testing.assert_array_equal(batch.inputs[1, :, 0], 2 * numbers + 1)


def test_evaluation_goes_through_all_examples_in_order():
    source = Examples(np.arange(22.0).reshape(11, 2, 1), np.arange(11))
    batches = list(source.batches(4))
    assert [len(b.mask) for b in batches] == [4, 4, 4]
    assert np.concatenate([b.targets[b.mask] for b in batches]).tolist() == list(range(11))


def test_buckets_lose_no_step_and_pad_little():
    inputs, targets = ragged()
    source = bucketed(inputs, targets, groups=4)
    assert isinstance(source, Buckets)
    assert len(source) == len(inputs)
    for batches in (epoch(source, 0, 4), list(source.batches(4))):
        seen = {}
        for batch in batches:
            for b in range(4):
                length = int(batch.lengths[b])
                if not batch.mask[:, b].any():
                    continue  # what a batch is filled up with
                assert batch.mask[:, b].tolist() == [t < length for t in range(len(batch.inputs))]
                number = int(batch.inputs[0, b])
                assert number not in seen
                seen[number] = np.asarray(batch.targets)[:length, b]
                assert (np.asarray(batch.inputs)[length:, b] == 0).all()
        for i, target in enumerate(targets, start=1):
            np.testing.assert_array_equal(seen[i], target)
    steps = sum(group.inputs.size for group in source.groups)
    assert steps < 1.3 * sum(map(len, inputs)) < 30 * len(inputs)


def test_the_order_of_buckets_changes_with_the_epoch():
    source = bucketed(*ragged(), groups=4)
    assert sorted(source.epoch(0, 4)) == sorted(source.epoch(1, 4))
    assert source.epoch(0, 4) != source.epoch(1, 4)
    assert source.epoch(0, 4) == source.epoch(0, 4)


def test_answers_of_another_length_than_their_sequences_have_their_own_mask():
    inputs = [np.ones(n, np.int32) for n in (3, 5)]
    targets = [np.arange(1, n, dtype=np.int32) for n in (7, 3)]
    source = bucketed(inputs, targets, groups=1)
    assert isinstance(source, Examples)
    (batch,) = source.batches(2)
    assert batch.inputs.shape == (5, 2)
    assert batch.targets.shape == batch.mask.shape == (6, 2)
    assert batch.mask.sum(0).tolist() == [6, 2]
    assert batch.lengths.tolist() == [3, 5]


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        ([], [], "0 sequences and 0 targets"),
        ([np.ones(2)], [1, 2], "1 sequences and 2 targets"),
        ([np.ones(2), np.ones(0)], [1, 2], "sequence 1 of no steps; expected at least one step"),
        (
            [np.ones(2), np.ones(3)],
            [1, [2, 3]],
            r"targets\[1\]: got int64\[2\]; expected as the first",
        ),
        ([np.ones(2)], [[1, [2, 3]]], r"targets\[0\]: got .*; expected an array of numbers"),
        ([np.ones(2)], [None], r"targets\[0\]: got NoneType None; expected real numbers"),
        ([np.ones((2, 3)), np.ones((2, 4))], [1, 2], r"inputs\[1\]: got float64\[2, 4\]"),
    ],
)
def test_sequences_that_cannot_be_grouped_are_refused(inputs, targets, message):
    with pytest.raises(InputError, match=message):
        bucketed(inputs, targets)


def test_no_digit_is_lost_where_sequences_have_several_dtypes():
    source = bucketed([np.ones(2, int), np.full(2, 0.5)], [np.ones(2, int), np.full(2, 0.25)], 1)
    (batch,) = source.batches(2)
    np.testing.assert_array_equal(batch.inputs, [[1.0, 0.5]] * 2)
    np.testing.assert_array_equal(batch.targets, [[1.0, 0.25]] * 2)


def test_a_text_is_read_in_order_with_each_token_the_target_of_the_one_before():
    text = np.arange(2 * 5 * 3 + 4)
    source = Text(text, window=5)
    assert source.steps(2) == 3
    batches = epoch(source, 0, 2)
    lanes = np.concatenate([batch.inputs for batch in batches])
    np.testing.assert_array_equal(lanes, np.stack([np.arange(15), np.arange(15, 30)], axis=1))
    np.testing.assert_array_equal(np.concatenate([b.targets for b in batches]), lanes + 1)
    assert [bool(batch.fresh) for batch in batches] == [True, False, False]


@pytest.mark.parametrize(("length", "lanes"), [(34, 2), (31, 2), (12, 2), (47, 3)])
def test_a_text_is_evaluated_whole_each_token_once(length: int, lanes: int):
    text = np.arange(length)
    batches = list(Text(text, window=5).batches(lanes))
    asked = np.concatenate([batch.targets[batch.mask] for batch in batches])
    assert sorted(asked) == list(range(1, length))
    for batch in batches:
        np.testing.assert_array_equal(batch.targets[batch.mask], batch.inputs[batch.mask] + 1)
    for lane in range(lanes):
        read = np.concatenate([batch.inputs[batch.mask[:, lane], lane] for batch in batches])
        np.testing.assert_array_equal(np.diff(read), 1)  # in order, without a gap
    assert [bool(batch.fresh) for batch in batches] == [True] + [False] * (len(batches) - 1)


def test_a_sampler_evaluates_the_same_sequences_and_trains_on_new_ones():
    def draw(key, batch):
        values = jax.random.normal(key, (3, batch, 1))
        return Batch(values, values.sum((0, 2)), jnp.ones(batch, bool))

    source = Sampler(draw, examples=10, seed=7)
    first, again = list(source.batches(4)), list(source.batches(4))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert sum(int(batch.mask.sum()) for batch in first) == 10
    (one, two, _) = epoch(source, 0, 4)
    assert not np.allclose(one.inputs, two.inputs)
    assert not np.allclose(one.inputs, first[0].inputs)
