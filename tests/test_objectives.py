"""Losses and metrics, against NumPy and scikit-learn, and worked out by hand for entities."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import f1_score, log_loss

from jaxrnn.tasks import LOSSES
from jaxrnn.tasks.objectives import (
    accuracy,
    bits,
    entity_f1,
    exact,
    mse,
    nats,
    nll,
    perplexity,
    rmse,
    whole,
)

RNG = np.random.default_rng(0)


def score(metric, *batches) -> float:
    """The metric over several batches."""
    sums = [np.asarray(metric.count(*map(jnp.asarray, batch))) for batch in batches]
    return metric.value(np.sum(sums, axis=0))


def test_bernoulli_is_the_sum_over_notes_of_binary_cross_entropies():
    logits = RNG.normal(size=(3, 4, 5)).astype(np.float32)
    notes = RNG.integers(0, 2, (3, 4, 5)).astype(np.float32)
    p = 1 / (1 + np.exp(-logits.astype(float)))
    expected = -(notes * np.log(p) + (1 - notes) * np.log(1 - p)).sum(-1)
    np.testing.assert_allclose(LOSSES["bernoulli"](logits, notes), expected, rtol=1e-5)
    extreme = LOSSES["bernoulli"](jnp.array([[800.0, -800.0]]), jnp.array([[1.0, 0.0]]))
    assert float(extreme[0]) == 0


def test_means_over_batches_are_those_over_all_that_counts():
    logits, classes = RNG.normal(size=(2, 6, 3)).astype(np.float32), RNG.integers(0, 3, (2, 6))
    mask = np.array([[True] * 6, [True, False, True, False, False, False]])
    kept, true = logits[mask], classes[mask]
    batches = [(logits[i : i + 1], classes[i : i + 1], mask[i : i + 1]) for i in range(2)]
    p = np.exp(kept) / np.exp(kept).sum(-1, keepdims=True)
    cost = log_loss(true, p, labels=[0, 1, 2])
    assert score(accuracy, *batches) == pytest.approx(np.mean(kept.argmax(-1) == true))
    assert score(nats, *batches) == pytest.approx(cost, rel=1e-5)
    assert score(bits, *batches) == pytest.approx(cost / math.log(2), rel=1e-5)
    assert score(perplexity, *batches) == pytest.approx(math.exp(cost), rel=1e-5)


def test_errors_of_numbers():
    values, true = RNG.normal(size=(2, 7, 2)).astype(np.float32), RNG.normal(size=(2, 7, 2))
    mask = np.ones((2, 7), bool)
    batch = (values, true.astype(np.float32), mask)
    assert score(mse, batch) == pytest.approx(np.mean((values - true) ** 2), rel=1e-5)
    assert score(rmse, batch) == pytest.approx(np.sqrt(np.mean((values - true) ** 2)), rel=1e-5)


def test_a_sequence_counts_when_all_its_answers_are_right():
    logits = np.zeros((3, 4, 2), np.float32)
    logits[..., 1] = 1  # always class 1
    classes = np.array([[1, 1, 0, 1], [1, 0, 1, 1], [1, 1, 1, 0]])
    mask = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 0]], bool)
    assert score(whole, (logits, classes, mask)) == 3 / 4
    vectors = np.stack([np.zeros_like(classes), classes], axis=-1).astype(np.float32)
    signs = np.where(logits > 0, 1.0, -1.0).astype(np.float32)
    assert score(exact, (signs, vectors, mask)) == 3 / 4
    assert score(nll, (100 * signs, vectors, mask)) == pytest.approx(100 / 10)


LABELS = ("O", "B-per", "I-per", "B-loc", "I-loc")


def spans(tags: list[str]) -> set[tuple[int, int, str]]:
    """The entities of a sentence: beginning, end and kind."""
    found, begin = set(), None
    for t, tag in enumerate([*tags, "O"]):
        goes_on = begin is not None and tag == f"I-{tags[begin][2:]}"
        if begin is not None and not goes_on:
            found.add((begin, t, tags[begin][2:]))
            begin = None
        if begin is None and tag != "O":
            begin = t
    return found


def test_entities_are_counted_whole():
    steps, sentences = 12, 200
    found, true = RNG.integers(0, 5, (2, steps, sentences))
    found = np.where(RNG.uniform(size=found.shape) < 0.8, true, found)
    lengths = RNG.integers(1, steps + 1, sentences)
    mask = np.arange(steps)[:, None] < lengths
    logits = np.eye(5, dtype=np.float32)[found]
    right = begun = gold = 0
    for b, n in enumerate(lengths):
        ours, theirs = ({*spans([LABELS[i] for i in tags[:n, b]])} for tags in (found, true))
        right, begun, gold = right + len(ours & theirs), begun + len(ours), gold + len(theirs)
    assert 0.2 < 2 * right / (begun + gold) < 0.9
    metric = entity_f1(LABELS)
    assert score(metric, (logits, true, mask)) == pytest.approx(2 * right / (begun + gold))
    assert metric.value(np.zeros(3)) == 0


def test_entities_of_one_word_have_the_f1_of_words():
    found, true = RNG.integers(0, 2, (2, 1, 300))
    logits = np.eye(2, dtype=np.float32)[found]
    expected = f1_score(true[0], found[0])
    metric = entity_f1(("O", "B-x"))
    assert score(metric, (logits, true, np.ones((1, 300), bool))) == pytest.approx(expected)


def test_better_is_higher_or_lower_and_never_nan():
    assert accuracy.better(0.6, 0.5)
    assert mse.better(0.5, 0.6)
    assert not accuracy.better(math.nan, accuracy.worst)
    assert not mse.better(math.nan, mse.worst)
    assert (
        score(
            perplexity, (np.full((1, 2), -1e4) * np.eye(2)[:1], np.zeros(1, int), np.ones(1, bool))
        )
        == math.inf
    )
