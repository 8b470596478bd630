"""Sweeps: what becomes one ensemble and what a run of its own, the table, the figure, and going on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jaxrnn.checks import InputError
from jaxrnn.cli import main
from jaxrnn.experiments import (
    NetworkConfig,
    RunConfig,
    random_settings,
    sweep,
    sweep_runs,
)
from jaxrnn.training import FitConfig

CONFIG = RunConfig(
    "adding",
    {"length": 8},
    NetworkConfig("gru", 4),
    FitConfig(steps=4, every=2, batch_size=8, seeds=2),
    probes=False,
)
OVER = {"cell": ["gru", "elman-tanh"], "learning_rate": [1e-3, 1e-2, 1e-1]}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps") / "sweep"
    return sweep(CONFIG, OVER, folder), folder


def test_rates_are_one_ensemble_and_cells_are_runs():
    runs = sweep_runs(CONFIG, {**OVER, "task.length": [8, 12]})
    assert list(runs) == [
        f"cell={cell},task.length={length}" for cell in OVER["cell"] for length in (8, 12)
    ]
    run = runs["cell=elman-tanh,task.length=12"]
    assert run.settings == {"length": 12}
    assert run.network.cell == "elman-tanh"
    assert len(run.members) == 6


def test_settings_that_need_each_other_are_checked_together():
    runs = sweep_runs(CONFIG, {"momentum": [0.5, 0.9], "optimizer": ["sgd", "rmsprop"]})
    assert [run.fit.momentum for run in runs.values()] == [(0.5, 0.9)] * 2
    assert len(sweep_runs(CONFIG, {"l2": [0.0, 0.1]})["run"].members) == 4


def test_every_combination_is_a_trial(swept):
    found, folder = swept
    settings = [(t.settings["cell"], t.settings["learning_rate"]) for t in found.trials]
    assert settings == [(cell, rate) for cell in OVER["cell"] for rate in OVER["learning_rate"]]
    assert all(len(trial.test.values) == 2 for trial in found.trials)
    valid = [trial.valid.mean for trial in found.ranked]
    assert valid == sorted(valid)  # an error: the smallest first
    assert found.best.name in repr(found)
    assert len(found.rows) == 6
    report = (folder / "report.md").read_text()
    assert "| cell | learning\\_rate |" in report
    assert (folder / "figures" / "sweep.png").stat().st_size > 5_000
    result = json.loads((folder / "cell=gru" / "result.json").read_text())
    np.testing.assert_allclose(
        result["test_score"], np.concatenate([t.test.values for t in found.trials[:3]])
    )


def test_a_sweep_that_was_broken_off_goes_on(swept, capsys):
    found, folder = swept
    with pytest.raises(InputError, match="out: got"):
        sweep(CONFIG, OVER, folder)
    again = sweep(CONFIG, OVER, folder, resume=True)
    assert again.rows == found.rows
    with pytest.raises(InputError, match="sweep"):
        sweep(CONFIG, {"cell": ["gru"]}, folder, resume=True)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"celll": ["gru"]}, "over: got 'celll'.*did you mean 'cell'"),
        ({"cell": "gru"}, "over: got dict.*expected a mapping of text, a sequence"),
        ({"cell": []}, r"cell: got \[\]; expected a list"),
        ({"cell": ["gru", "gru"]}, "over: got cell=gru twice"),
        ({"hidden_features": [0]}, "hidden_features: got 0"),
        ({"residual": ["yes"]}, "residual: got 'yes'; expected true or false"),
        ({"learning_rate": [0.1, -1.0]}, "learning_rate: got -1.0"),
        ({"task.lenght": [3]}, "lenght"),
        (
            {"cell": ["gru", "mingru"], "recurrent_gain": [0.5, 2.0]},
            "recurrent_gain: got 0.5 for a MinGRU",
        ),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_is_trained(over, message, tmp_path):
    with pytest.raises(InputError, match=message):
        sweep(CONFIG, over, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_random_settings_are_log_uniform_in_their_ranges():
    drawn = random_settings({"learning_rate": (1e-4, 1e-1), "clip_norm": (0.1, 10.0)}, 2_000)
    logs = np.log10(drawn["learning_rate"])
    assert -4 <= logs.min() < -3.99 < -1.01 < logs.max() <= -1
    counts, _ = np.histogram(logs, 3, (-4, -1))
    assert np.abs(counts - 2_000 / 3).max() < 100
    assert abs(np.corrcoef(logs, np.log10(drawn["clip_norm"]))[0, 1]) < 0.1
    assert random_settings({"l2": (0.1, 1.0)}, 3) == random_settings({"l2": (0.1, 1.0)}, 3)
    with pytest.raises(InputError, match=r"learning_rate: got 1 to 0\.1"):
        random_settings({"learning_rate": (1.0, 0.1)}, 3)


def test_the_command_line_sweeps_and_searches(tmp_path: Path, capsys):
    common = ["--set", "length=8", "--steps", "4", "--every", "2", "--seeds", "2"]
    size = ["--hidden-features", "4"]
    out = tmp_path / "sweep"
    over = ["--over", "cell=gru,elman-tanh", "residual=false"]
    assert main(["sweep", "adding", *over, *common, *size, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "best by validation: cell" in printed
    assert (out / "report.html").exists()
    random = ["--random", "learning_rate=1e-4:1e-1", "clip_norm=0.1:10", "--draws", "3"]
    out = tmp_path / "search"
    assert main(["sweep", "adding", *random, *common, *size, "--out", str(out)]) == 0
    assert "clip_norm" in capsys.readouterr().out
    assert len(json.loads((out / "run" / "result.json").read_text())["members"]) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "over: got nothing"),
        (["--over", "cell"], "over: got 'cell'; expected name=value"),
        (["--random", "learning_rate=1"], "random: got 'learning_rate=1'"),
        (["--draws", "3"], "random: got nothing"),
        (["--random", "learning_rate=0.1:1"], "count: got 0"),
    ],
)
def test_bad_words_are_one_line(words, message, tmp_path: Path, capsys):
    assert main(["sweep", "adding", *words, "--out", str(tmp_path / "x")]) == 2
    assert message in capsys.readouterr().err
