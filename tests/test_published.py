"""The published experiments: the table, its command, and (slowly) what the networks come to learn."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxrnn import plot
from jaxrnn.checks import InputError
from jaxrnn.cli import commands, main
from jaxrnn.experiments import (
    PUBLISHED,
    NetworkConfig,
    RunConfig,
    experiment_rows,
    train,
    translate,
)
from jaxrnn.tasks import END, TASKS
from jaxrnn.training import FitConfig

# What the best network of a row must reach on the test data; for losses and errors, fall to.
_REACHED = {
    "jsb-elman": 8.75,
    "jsb-lstm": 8.65,
    "jsb-gru": 8.9,
    "adding-lstm": 0.005,
    "adding-gru": 0.001,
    "adding-lem": 0.0005,
    "copy-orthogonal": 0.001,
    "parity-elman": 0.999,
    "parity-lstm": 0.999,
    "oscillator-lem": 0.003,
    "oscillator-lstm": 0.012,
    "oscillator-gru": 0.004,
    "digits-elman": 0.97,
    "digits-lstm": 0.95,
    "digits-gru": 0.95,
    "mnist-14-gru": 0.97,
    "mnist-14-lem": 0.97,
    "sentiment-elman": 0.74,
    "sentiment-lstm": 0.75,
    "sentiment-gru": 0.75,
    "entities-lstm": 0.12,
    "entities-gru": 0.12,
    "captions-gru": 6,
    "plays-gru": 2.4,
}
_STUCK = {"copy-lstm"}  # as reported: no better than chance


def test_every_row_has_its_test():
    assert {*_REACHED, *_STUCK} == set(PUBLISHED)


def test_no_name_is_a_task_and_an_experiment():
    assert not set(PUBLISHED) & set(TASKS)


def test_the_table_says_what_the_rows_hold():
    rows = {name: words for name, *words in experiment_rows()}
    assert rows["jsb-lstm"][:2] == ["jsb-chorales (needs files)", "lstm, 36 units"]
    assert rows["jsb-lstm"][2] == "3,000 steps at 0.001 or 0.003 or 0.01, 3 seeds"
    assert rows["captions-gru"][1:3] == [
        "gru, 128 units, both ways",
        "2,300 steps at 0.003, 1 seed",
    ]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_command_trains_the_row(name: str, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def train_nothing(config: RunConfig, out: Path, **_: Any):
        asked.append((config, out))
        raise InputError("enough")

    monkeypatch.setattr(commands, "train", train_nothing)
    assert main(["train", name]) == 2
    assert asked == [(PUBLISHED[name].config, Path("runs") / name)]


@pytest.mark.slow
def test_a_word_behind_the_name_takes_the_place_of_the_row(tmp_path: Path):
    out = tmp_path / "run"
    words = ["--steps", "2", "--every", "1", "--seeds", "1", "--hidden-features", "4"]
    assert main(["train", "adding-gru", *words, "--set", "length=6", "--out", str(out)]) == 0
    config = RunConfig.of(out)
    row = PUBLISHED["adding-gru"].config
    assert config.settings == {"length": 6}
    assert config.fit == dataclasses.replace(row.fit, steps=2, every=1, seeds=1)
    assert config.network == dataclasses.replace(row.network, hidden_features=4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--steps", "10", "jsb-lstm"],
            "task: got jsb-lstm; expected an experiment's name straight",
        ),
        (["jsb-lstm", "digits"], "task: got jsb-lstm and digits; expected an experiment or a task"),
        (["jsb-lsmt"], "did you mean 'jsb-lstm'?"),
        (["digit", "--out", "jsb-lstm"], "did you mean 'digits'?"),
    ],
)
def test_a_name_that_is_misplaced_or_misspelt_is_explained(words, message, capsys):
    assert main(["train", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_network_learns_what_is_reported(name: str, tmp_path: Path):
    config = PUBLISHED[name].config
    try:
        config.load_task()
    except InputError as error:  # its data are not here
        pytest.skip(str(error))
    result = train(config, tmp_path / name)
    if name in _STUCK:
        np.testing.assert_allclose(result.test_score, result.chance, rtol=0.05)
    elif result.higher_is_better:
        assert result.test_score.max() >= _REACHED[name] > result.chance
    else:
        assert result.test_score.min() <= _REACHED[name] < result.chance


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt to write every word of a sentence in the other language."""
    folder = tmp_path_factory.mktemp("pairs")
    numbers = (("eins", "one"), ("zwei", "two"), ("drei", "three"), ("vier", "four"))
    draw = np.random.default_rng(0)
    for part, count in (("train", 400), ("val", 20), ("test2016", 20)):
        drawn = [draw.integers(4, size=draw.integers(2, 4)) for _ in range(count)]
        for side, code in enumerate(("de", "en")):
            lines = [" ".join(numbers[word][side] for word in words) for words in drawn]
            (folder / f"{part}.{code}").write_text("\n".join(lines) + "\n", "utf-8")
    out = folder / "run"
    fit = FitConfig(steps=300, every=150, learning_rate=1e-2, seeds=1)
    body = NetworkConfig("gru", 16, embedding_features=8)
    train(RunConfig("multi30k", {}, body, fit, data=str(folder), probes=False), out)
    return out


def test_a_translator_translates_and_shows_where_it_looked(translator: Path):
    found = translate(translator, "vier eins drei")
    assert found.text == "four one three"
    assert found.source == ("vier", "eins", "drei")
    assert found.target == ("four", "one", "three", END)
    assert found.attention.shape == (4, 3)
    np.testing.assert_allclose(found.attention.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found.attention[:3].argmax(axis=1), [0, 1, 2])  # word for word
    assert found.ended
    assert found.unknown == ()


def test_translate_says_what_a_translation_lacks(translator: Path, capsys):
    assert main(["translate", str(translator), "eins hundert", "--longest", "1"]) == 0
    said = capsys.readouterr()
    assert said.out == "one\n"
    assert "words that it does not know: hundert" in said.err
    assert "cut off after 1 words" in said.err
    assert translate(translator, "eins hundert").source == ("eins", "<unk>")


@pytest.mark.slow
def test_translate_draws_a_map(translator: Path, tmp_path: Path, capsys):
    picture = tmp_path / "attention.png"
    assert main(["translate", str(translator), "zwei eins", "--figure", str(picture)]) == 0
    assert capsys.readouterr().out.startswith("two one\n")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eins", "--network", "3"], "network: got 3"),
        ([" "], "sentence: got ' '; expected at least one word"),
        (["eins", "--width", "0"], "width: got 0"),
        (["eins", "--figure", "no/folder/a.png"], "figure: got no/folder/a.png"),
        (["eins", "--figure", "."], "figure: got ."),
        (["eins", "--figure", "attention.word"], "figure: got attention.word"),
    ],
)
def test_bad_words_to_translate_are_one_line(translator: Path, words, message, capsys):
    assert main(["translate", str(translator), *words]) == 2
    assert message in capsys.readouterr().err


def test_only_a_translator_translates(tmp_path: Path):
    fit = FitConfig(steps=1, every=1, seeds=1)
    train(RunConfig("adding", {"length": 4}, NetworkConfig("gru", 2), fit), tmp_path / "run")
    with pytest.raises(InputError, match="run: got a run of adding"):
        translate(tmp_path / "run", "eins")


def test_the_map_of_attention_shows_the_weights():
    weights = np.array([[0.9, 0.1], [0.3, 0.7], [0.5, 0.5]])
    ax = plot.attention(weights, ["a", "b"], ["x", "y", "z"])
    np.testing.assert_array_equal(ax.images[0].get_array(), weights)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["a", "b"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["x", "y", "z"]
    with pytest.raises(InputError, match=r"weights: .* expected \[1, 2\]"):
        plot.attention(weights, ["a", "b"], ["x"])
