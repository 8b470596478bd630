"""Training: against a plain loop in the test, and what a broken-off run goes on with."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from rich.console import Console

import jaxrnn
from jaxrnn.checks import InputError
from jaxrnn.tasks import SequenceClassification, Split
from jaxrnn.training import Checkpoints, FitConfig, ProgressBar, RunFolder, fit, load_models

_CONFIG = FitConfig(epochs=3, batch_size=8, seeds=2, learning_rate=1e-2)


@pytest.fixture(scope="module")
def task() -> SequenceClassification:
    """Tell whether the first of five numbers was positive."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(80, 5, 1)).astype(np.float32)
    labels = (inputs[:, 0, 0] > 0).astype(np.int32)
    parts = [
        Split(inputs[part], labels[part]) for part in (slice(60), slice(60, 70), slice(70, 80))
    ]
    return SequenceClassification("sign", *parts, classes=2, solved=0.9, source="made here")


def _make(rngs: nnx.Rngs) -> Any:
    return jaxrnn.models.SequenceClassifier(jaxrnn.ElmanCell(1, 4, rngs=rngs), 2, rngs=rngs)


@pytest.fixture(scope="module")
def undisturbed(task):
    return fit(_make, task, _CONFIG)


def _assert_same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_an_ensemble_trains_as_one_network_would_in_a_plain_loop(task, undisturbed):
    key = jax.random.split(jax.random.key(_CONFIG.seed), _CONFIG.seeds)[1]
    model = _make(nnx.Rngs(key))
    schedule = optax.cosine_decay_schedule(_CONFIG.learning_rate, 3 * 7)
    optimizer: Any = optax.chain(optax.clip_by_global_norm(_CONFIG.clip_norm), optax.adam(schedule))
    state = optimizer.init(model)
    inputs, labels = jnp.asarray(task.train.inputs), jnp.asarray(task.train.labels)

    @jax.jit
    def step(model, state, chosen):
        def loss(model):
            logits = model(jnp.swapaxes(inputs[chosen], 0, 1))
            picked = jax.nn.log_softmax(logits)[jnp.arange(len(chosen)), labels[chosen]]
            return -picked.mean()

        with jax.numpy_dtype_promotion("standard"):
            change, state = optimizer.update(jax.grad(loss)(model), state, model)
        return optax.apply_updates(model, change), state

    for epoch in range(1, 4):
        order = jax.random.permutation(jax.random.fold_in(key, epoch), 60)
        for start in range(0, 56, 8):
            model, state = step(model, state, order[start : start + 8])
    trained = jax.tree.map(lambda leaf: leaf[1], undisturbed.models)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), trained, model
    )


def test_training_learns_and_the_same_seed_gives_the_same_network(task, undisturbed):
    first, last = undisturbed.history[0]["valid_loss"], undisturbed.history[-1]["valid_loss"]
    assert np.mean(last) < np.mean(first)
    _assert_same(fit(_make, task, _CONFIG).models, undisturbed.models)


def test_seeds_differ_and_the_initial_networks_are_kept(undisturbed):
    kernel = np.asarray(undisturbed.initial.cell.kernel[...])
    assert not np.allclose(kernel[0], kernel[1])
    assert not np.allclose(kernel, undisturbed.models.cell.kernel[...])


def test_accuracies_are_those_of_the_networks(task, undisturbed):
    for seed in range(2):
        model = jax.tree.map(lambda leaf, seed=seed: leaf[seed], undisturbed.models)
        logits = np.asarray(model(np.swapaxes(task.test.inputs, 0, 1)))
        assert undisturbed.test_accuracy[seed] == np.mean(logits.argmax(-1) == task.test.labels)


def test_a_run_folder_holds_settings_environment_and_metrics(task, tmp_path: Path):
    folder = RunFolder(tmp_path / "run", dataclasses.asdict(_CONFIG))
    result = fit(_make, task, _CONFIG, folder=folder)
    assert json.loads((folder.path / "config.json").read_text()) == dataclasses.asdict(_CONFIG)
    assert json.loads((folder.path / "env.json").read_text())["versions"]["jax"] == jax.__version__
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    assert rows == result.history
    assert rows[0]["seconds"] == 0
    assert rows[1]["compile_seconds"] > 0
    assert result.seconds_per_step > 0


class _PulledPlugError(Exception):
    pass


def _break_off(monkeypatch: pytest.MonkeyPatch, epoch: int, *, after_metrics: bool) -> None:
    """Let the run die in `epoch`: before its metrics are written, or between metrics and checkpoint."""
    save, append = Checkpoints.save, RunFolder.append

    def dying_save(self, number, state):
        if after_metrics and number == epoch:
            raise _PulledPlugError
        save(self, number, state)

    def dying_append(self, row):
        if not after_metrics and row["epoch"] == epoch:
            raise _PulledPlugError
        append(self, row)

    monkeypatch.setattr(Checkpoints, "save", dying_save)
    monkeypatch.setattr(RunFolder, "append", dying_append)


@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("after_metrics", [False, True])
def test_a_broken_off_run_goes_on_as_if_nothing_had_happened(
    task, undisturbed, tmp_path: Path, epoch: int, after_metrics: bool
):
    settings = dataclasses.asdict(_CONFIG)
    with pytest.MonkeyPatch.context() as monkeypatch:
        _break_off(monkeypatch, epoch, after_metrics=after_metrics)
        with pytest.raises(_PulledPlugError):
            fit(_make, task, _CONFIG, folder=RunFolder(tmp_path / "run", settings))
    folder = RunFolder(tmp_path / "run", settings, resume=True)
    resumed = fit(_make, task, _CONFIG, folder=folder)
    _assert_same(resumed.models, undisturbed.models)
    assert list(folder.rows()) == resumed.history
    timeless = [
        [{k: v for k, v in row.items() if "seconds" not in k} for row in result.history]
        for result in (resumed, undisturbed)
    ]
    assert timeless[0] == timeless[1]


def test_a_finished_run_is_not_trained_again_but_read(task, undisturbed, tmp_path: Path, capsys):
    settings = dataclasses.asdict(_CONFIG)
    fit(_make, task, _CONFIG, folder=RunFolder(tmp_path / "run", settings))
    capsys.readouterr()
    again = fit(_make, task, _CONFIG, folder=RunFolder(tmp_path / "run", settings, resume=True))
    assert "compil" not in capsys.readouterr().err
    _assert_same(again.models, undisturbed.models)
    _assert_same(load_models(_make, task, _CONFIG, tmp_path / "run"), undisturbed.models)


def test_a_last_line_cut_off_by_a_crash_is_left_out(tmp_path: Path):
    folder = RunFolder(tmp_path / "run", {})
    folder.open()
    folder.append({"epoch": 0})
    with folder.metrics.open("a") as file:
        file.write('{"epoch": 1, "lo')
    assert list(folder.rows()) == [{"epoch": 0}]


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path: Path):
    RunFolder(tmp_path / "run", {"a": 1}).open()
    with pytest.raises(
        InputError, match=r"out: got .*run, which is not empty; expected .*--resume"
    ):
        RunFolder(tmp_path / "run", {"a": 2})
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"a": 1}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="expected a new folder"):
        RunFolder(tmp_path / "other", {"a": 1})


def test_only_a_run_can_be_resumed(tmp_path: Path):
    with pytest.raises(InputError, match=r"resume: got .*nowhere, which holds no run"):
        RunFolder(tmp_path / "nowhere", {"a": 1}, resume=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_start_that_was_killed_before_its_settings_were_written_is_no_run(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json.unfinished").write_text("{")
    RunFolder(tmp_path / "run", {"a": 1}).open()
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"a": 1}


def test_resuming_with_other_settings_shows_the_difference(tmp_path: Path):
    RunFolder(tmp_path / "run", {"fit": {"epochs": 3, "seeds": 1}}).open()
    with pytest.raises(InputError, match=r"fit\.epochs was 3 and is 4\); expected") as refusal:
        RunFolder(tmp_path / "run", {"fit": {"epochs": 4, "seeds": 1}}, resume=True)
    assert "seeds" not in str(refusal.value)


def test_a_checkpoint_of_another_network_is_refused(task, tmp_path: Path):
    fit(_make, task, _CONFIG, folder=RunFolder(tmp_path / "run", {}))

    def wider(rngs):
        return jaxrnn.models.SequenceClassifier(jaxrnn.ElmanCell(1, 5, rngs=rngs), 2, rngs=rngs)

    with pytest.raises(InputError, match=r"checkpoint: got another state \(differs in .*cell"):
        load_models(wider, task, _CONFIG, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 61}, "batch_size: got 61; expected at most the 60"),
        ({"epochs": 0}, "epochs: got 0; expected a whole number above 0"),
        ({"learning_rate": -1.0}, "learning_rate: got -1.0"),
        ({"seeds": 0}, "seeds: got 0"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(
    task, tmp_path: Path, change, message
):
    config = dataclasses.replace(_CONFIG, **change)
    with pytest.raises(InputError, match=message):
        fit(_make, task, config, folder=RunFolder(tmp_path / "run", {}))
    assert not (tmp_path / "run").exists()


def test_an_ensembles_networks_are_classifiers_of_their_own(undisturbed):
    assert undisturbed.parameters == 4 * (1 + 4 + 1) + 2 * (4 + 1)


@pytest.mark.parametrize(("terminal", "lines"), [(False, 3), (True, 0)])
def test_progress_is_plain_lines_in_a_log_and_a_bar_on_a_terminal(terminal: bool, lines: int):
    stream = io.StringIO()
    with ProgressBar(
        "work", 3, console=Console(file=stream, force_terminal=terminal, width=100)
    ) as progress:
        for i in range(3):
            progress.advance(f"part {i}")
    text = stream.getvalue()
    assert text.count("work: ") == lines
    assert ("\x1b[" in text) == terminal
    assert "3/3" in text
