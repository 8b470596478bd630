"""Drawn tasks: what is asked is recomputed from what is shown, in plain Python, sequence by sequence."""

from __future__ import annotations

import itertools
import math
import statistics

import jax
import numpy as np
import pytest

from jaxrnn.checks import InputError
from jaxrnn.tasks import LOSSES, TASKS, load_task
from jaxrnn.tasks.objectives import Metric

B = 64
_KEPT = ("digits", "fitzhugh-nagumo", "lorenz", "mackey-glass", "characters", "words")
DRAWN = [name for name, entry in TASKS.items() if not entry.reads_files and name not in _KEPT]


def drawn(name: str, *, test: bool = False, seed: int = 0, **settings):
    """A task, and one batch of it as NumPy arrays."""
    task = load_task(name, **settings)
    source = task.test if test else task.train
    batch = jax.jit(source.draw, static_argnums=1)(jax.random.key(seed), B)
    return task, jax.tree.map(np.asarray, batch)


def tokens(batch) -> np.ndarray:
    """The tokens [T, B] of one-hot inputs."""
    np.testing.assert_array_equal(batch.inputs.sum(-1), 1)
    return batch.inputs.argmax(-1)


def lengths(batch) -> list[int]:
    return [len(batch.inputs)] * B if batch.lengths is None else batch.lengths.tolist()


def test_copy_memory_asks_for_the_string_after_the_delay():
    task, batch = drawn("copy-memory", delay=7, symbols=3, alphabet=5)
    shown = tokens(batch)
    assert shown.shape == (7 + 2 * 3, B)
    assert set(np.unique(shown[:3])) == {1, 2, 3, 4, 5}
    assert (shown[3:9] == 0).all()
    assert (shown[9] == 6).all()
    assert (shown[10:] == 0).all()
    assert (batch.targets[:10] == 0).all()
    np.testing.assert_array_equal(batch.targets[10:], shown[:3])
    assert batch.mask.all()
    assert task.chance == pytest.approx(3 * math.log(5) / 13)


def test_chance_of_copying_is_what_knowing_when_but_not_what_gets():
    task, batch = drawn("copy-memory")
    logits = np.zeros((*batch.targets.shape, 9), np.float32)
    logits[..., 0] = -1e9
    logits[:-10] = -1e9 * (np.arange(9) > 0)
    loss = np.asarray(task.mean_loss(logits, batch))
    assert loss == pytest.approx(task.chance, rel=1e-5)


def test_selective_copy_asks_for_the_symbols_in_their_order():
    _, batch = drawn("selective-copy", length=30, symbols=4, alphabet=3)
    shown = tokens(batch)
    for b in range(B):
        strewn = [token - 1 for token in shown[:30, b] if token]
        assert len(strewn) == 4
        np.testing.assert_array_equal(batch.targets[30:, b], strewn)
    assert (shown[30:] == 4).all()
    assert not batch.mask[:30].any()
    assert batch.mask[30:].all()


def test_first_token_and_agreement_ask_for_what_came_first():
    _, batch = drawn("first-token", length=9)
    np.testing.assert_array_equal(batch.targets, tokens(batch)[0])
    task, batch = drawn("agreement", gap=6, fillers=5, cues=3)
    np.testing.assert_array_equal(batch.targets, batch.inputs[0])
    assert batch.inputs[0].max() < 3 <= batch.inputs[1:-1].min()
    assert batch.inputs[1:-1].max() < 8 == batch.inputs[-1].min()
    assert batch.inputs.shape == (8, B)
    assert task.tokens == 9


@pytest.mark.parametrize("shift", [3, -2, 0])
def test_shifted_labels_are_those_of_so_many_steps_ago(shift: int):
    _, batch = drawn("delayed-labels", shift=shift, length=12)
    shown = tokens(batch)
    for t in range(12):
        assert batch.mask[t].all() == (0 <= t - shift < 12)
        if 0 <= t - shift < 12:
            np.testing.assert_array_equal(batch.targets[t], shown[t - shift])


def test_associative_recall_asks_for_the_value_beside_the_key():
    _, batch = drawn("associative-recall", pairs=4, keys=6, values=5)
    shown = tokens(batch)
    assert len(shown) == 9
    for b in range(B):
        pairs = {shown[2 * i, b]: shown[2 * i + 1, b] - 6 for i in range(4)}
        assert len(pairs) == 4
        assert batch.targets[b] == pairs[shown[8, b]]


def test_adding_adds_one_number_of_each_half():
    task, batch = drawn("adding", length=11)
    values, marks = batch.inputs[..., 0], batch.inputs[..., 1]
    assert (marks[:5].sum(0) == 1).all()
    assert (marks[5:].sum(0) == 1).all()
    np.testing.assert_allclose(batch.targets[:, 0], (values * marks).sum(0), rtol=1e-6)
    _, many = drawn("adding", length=2)
    assert task.chance == pytest.approx(
        float(np.var(np.random.default_rng(0).uniform(size=(2, 10**6)).sum(0))), rel=0.01
    )
    assert many.inputs[..., 1].min() == 1


def test_temporal_order_asks_for_both_symbols():
    _, batch = drawn("temporal-order", length=50)
    shown = tokens(batch)
    for b in range(B):
        (first, second) = np.flatnonzero(shown[:, b] < 2)
        assert 5 <= first < 10
        assert 25 <= second < 30
        assert batch.targets[b] == 2 * shown[first, b] + shown[second, b]
    assert set(batch.targets) == {0, 1, 2, 3}


@pytest.mark.parametrize("test", [False, True])
@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("parity", lambda letters: sum(letters) % 2),
        (
            "even-pairs",
            lambda letters: sum(a != b for a, b in itertools.pairwise(letters)) % 2,
        ),
        ("cycle", lambda letters: sum((0, 1, -1)[(x + 2) % 3] for x in letters) % 5),
    ],
)
def test_regular_languages_have_their_classes(name, answer, test: bool):
    _, batch = drawn(name, test=test, longest=8, tested=20)
    shown = tokens(batch)
    for b, n in enumerate(lengths(batch)):
        assert (9 <= n <= 20) if test else (1 <= n <= 8)
        assert batch.targets[b] == answer(shown[:n, b].tolist())
    assert len(set(lengths(batch))) > 4


def test_a_string_is_asked_backwards():
    _, batch = drawn("reverse-string", longest=6, tested=9)
    shown = tokens(batch)
    for b, n in enumerate(lengths(batch)):
        half = n // 2
        assert (shown[half:n, b] == 2).all()
        np.testing.assert_array_equal(batch.targets[half:n, b], shown[:half, b][::-1])
        np.testing.assert_array_equal(np.flatnonzero(batch.mask[:, b]), np.arange(half, n))


def test_anbn_allows_what_may_follow():
    _, batch = drawn("anbn", longest=5, tested=8)
    for b, length in enumerate(lengths(batch)):
        n = length // 2
        word = "".join("ab"[i] for i in batch.inputs[:length, b].argmax(-1))
        assert word == "a" * n + "b" * n
        for t in range(length):
            expected = "ab" if t < n else "b" if t < length - 1 else "$"
            allowed = {"ab$"[i] for i in np.flatnonzero(batch.targets[t, b])}
            assert allowed == set(expected)
        assert batch.mask[:, b].sum() == length


def test_dyck_words_are_well_nested_and_name_their_innermost_bracket():
    _, batch = drawn("dyck", kinds=3, longest=20, tested=24, depth=4)
    shown, deepest = tokens(batch), 0
    for b, length in enumerate(lengths(batch)):
        stack: list[int] = []
        assert batch.mask[:, b].sum() == length
        for t in range(length):
            bracket = shown[t, b]
            if bracket < 3:
                stack.append(bracket)
            else:
                assert stack.pop() == bracket - 3
            deepest = max(deepest, len(stack))
            allowed = set(np.flatnonzero(batch.targets[t, b]))
            assert allowed == {0, 1, 2} | ({3 + stack[-1]} if stack else set())
        assert not stack
    assert deepest == 4


def _evaluate(words: list[int]) -> tuple[int, list[int]]:
    """The value of a ListOps expression and what follows it."""
    head, rest = words[0], words[1:]
    if head < 10:
        return head, rest
    values = []
    while rest[0] != 14:
        value, rest = _evaluate(rest)
        values.append(value)
    assert 2 <= len(values) <= 5
    operator = (max, min, lambda v: int(statistics.median(v)), lambda v: sum(v) % 10)[head - 10]
    return operator(values), rest[1:]


@pytest.mark.parametrize(("length", "depth"), [(4, 1), (30, 3), (100, 5)])
def test_listops_have_their_values(length: int, depth: int):
    _, batch = drawn("listops", length=length, depth=depth)
    kinds, nesting = set(), 0
    for b, n in enumerate(lengths(batch)):
        words = batch.inputs[:n, b].tolist()
        value, rest = _evaluate(words)
        assert not rest
        assert value == batch.targets[b]
        kinds |= {word for word in words if 10 <= word < 14}
        nesting = max(nesting, max(np.cumsum([(10 <= w < 14) - (w == 14) for w in words])))
    assert kinds == {10, 11, 12, 13}
    assert nesting == depth


def test_a_random_walk_asks_for_its_next_change():
    task, batch = drawn("random-walk", length=20)
    np.testing.assert_allclose(np.diff(batch.inputs, axis=0), batch.targets[:-1], atol=1e-5)
    zeros = task.metric.count(np.zeros_like(batch.targets), batch.targets, batch.mask)
    assert task.metric.value(np.asarray(zeros)) == pytest.approx(task.chance, abs=0.05)


@pytest.mark.parametrize("name", DRAWN)
def test_what_is_drawn_is_what_the_task_says(name: str):
    task, batch = drawn(name)
    steps = batch.inputs.shape[:2]
    answers = (B,) if task.answers == "sequence" else steps
    assert batch.mask.shape == answers
    if task.in_features:
        assert batch.inputs.shape == (*steps, task.in_features)
    else:
        assert batch.inputs.max() < task.tokens
    if task.loss == "cross_entropy":
        assert 0 <= batch.targets.min() <= batch.targets.max() < task.outputs
    else:
        assert batch.targets.shape == (*answers, task.outputs)
    predictions = np.zeros((*answers, task.outputs), np.float32)
    assert np.isfinite(task.mean_loss(predictions, batch))
    assert isinstance(task.metric, Metric)
    assert task.loss in LOSSES


def test_another_key_draws_another_batch_and_the_same_key_the_same():
    _, one = drawn("adding")
    _, same = drawn("adding")
    _, other = drawn("adding", seed=1)
    np.testing.assert_array_equal(one.inputs, same.inputs)
    assert not np.allclose(one.inputs, other.inputs)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("adding", {"length": 1}, "length: got 1; expected at least 2 steps"),
        ("adding", {"lenght": 9}, "did you mean 'length'"),
        ("temporal-order", {"length": 9}, "length: got 9; expected at least 10"),
        ("copy-memory", {"delay": 0}, "delay: got 0; expected a whole number above 0"),
        ("selective-copy", {"length": 5}, "symbols: got 10; expected at most the 5 steps"),
        ("associative-recall", {"pairs": 27}, "pairs: got 27; expected at most the 26 keys"),
        ("delayed-labels", {"shift": 100}, "shift: got 100"),
        ("parity", {"tested": 40}, "tested: got 40; expected more than the 40"),
        ("dyck", {"longest": 51}, r"longest, tested: got \(51, 100\); expected even"),
        ("adding", {"length": "long"}, "length: got 'long'; expected int"),
        ("flip-flop", {"probability": "x"}, "probability: got 'x'; expected float"),
        ("look-ahead-labels", {"shift": 1.5}, "shift: got 1.5; expected int"),
        ("listops", {"most": 1}, "at least 2 values"),
        ("flip-flop", {"probability": 2.0}, "probability: got 2.0"),
        ("mackey-glass", {"delay": 0.0}, "delay: got 0.0"),
        ("lorenz", {"ahead": 0}, "ahead: got 0"),
        ("digits", {"length": 9}, "expected no settings"),
        ("adin", {}, "did you mean 'adding'"),
    ],
)
def test_impossible_settings_are_refused(name, settings, message):
    with pytest.raises(InputError, match=message):
        drawn(name, **settings)
