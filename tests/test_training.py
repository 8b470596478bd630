"""Training: against a plain loop in the test, and what a broken-off run goes on with."""

from __future__ import annotations

import dataclasses
import errno
import importlib
import io
import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from rich.console import Console

import jaxrnn
from jaxrnn.checks import InputError
from jaxrnn.tasks import Examples, Task
from jaxrnn.tasks.objectives import accuracy
from jaxrnn.training import (
    Checkpoints,
    FitConfig,
    Placement,
    ProgressBar,
    RunFolder,
    Stopped,
    fit,
    load_models,
    view,
    whole_sequences,
)
from jaxrnn.training.interruption import Interruption
from jaxrnn.training.program import Program

loop = importlib.import_module("jaxrnn.training.loop")

_CONFIG = FitConfig(steps=24, every=8, batch_size=8, seeds=2, learning_rate=1e-2)


@pytest.fixture(scope="module")
def task() -> Task:
    """Tell whether the first of five numbers was positive."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(80, 5, 1)).astype(np.float32)
    labels = (inputs[:, 0, 0] > 0).astype(np.int32)
    parts = [
        Examples(inputs[part], labels[part]) for part in (slice(60), slice(60, 70), slice(70, 80))
    ]
    return Task(
        name="sign",
        source="made here",
        **dict(zip(("train", "valid", "test"), parts, strict=True)),
        answers="sequence",
        outputs=2,
        in_features=1,
        loss="cross_entropy",
        metric=accuracy,
        chance=0.5,
        solved=0.9,
    )


def _make(rngs: nnx.Rngs) -> Any:
    return jaxrnn.models.SequenceClassifier(jaxrnn.ElmanCell(1, 4, rngs=rngs), 2, rngs=rngs)


@pytest.fixture(scope="module")
def undisturbed(task):
    return fit(_make, task, _CONFIG)


def _assert_same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_an_ensemble_trains_as_one_network_would_in_a_plain_loop(task, undisturbed):
    weights, orders, _, _ = jax.random.split(jax.random.key(1), 4)
    model = _make(nnx.Rngs(weights))
    schedule = optax.cosine_decay_schedule(1e-2, 24)
    optimizer: Any = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    state = optimizer.init(model)
    inputs, labels = jnp.asarray(task.train.inputs), jnp.asarray(task.train.targets)

    @jax.jit
    def step(model, state, chosen):
        def loss(model):
            logits = model(jnp.swapaxes(inputs[chosen], 0, 1))
            picked = jax.nn.log_softmax(logits)[jnp.arange(len(chosen)), labels[chosen]]
            return -picked.mean()

        with jax.numpy_dtype_promotion("standard"):
            change, state = optimizer.update(jax.grad(loss)(model), state, model)
        return optax.apply_updates(model, change), state

    for epoch in range(3):
        order = jax.random.permutation(jax.random.fold_in(orders, epoch), 60)
        for start in range(0, 60, 8):  # the last batch of an epoch has four
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
    kernel = np.asarray(undisturbed.initial.layer.cell.kernel[...])
    assert not np.allclose(kernel[0], kernel[1])
    assert not np.allclose(kernel, undisturbed.models.layer.cell.kernel[...])


def test_accuracies_are_those_of_the_networks(task, undisturbed):
    for seed in range(2):
        model = jax.tree.map(lambda leaf, seed=seed: leaf[seed], undisturbed.models)
        logits = np.asarray(model(np.swapaxes(task.test.inputs, 0, 1)))
        assert undisturbed.test_score[seed] == np.mean(logits.argmax(-1) == task.test.targets)


def test_a_run_folder_holds_settings_environment_and_metrics(task, tmp_path: Path):
    folder = RunFolder(tmp_path / "run", dataclasses.asdict(_CONFIG))
    result = fit(_make, task, _CONFIG, folder=folder)
    assert json.loads((folder.path / "config.json").read_text()) == dataclasses.asdict(_CONFIG)
    assert json.loads((folder.path / "env.json").read_text())["versions"]["jax"] == jax.__version__
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 8, 16, 24]
    assert rows == result.history
    assert rows[0]["seconds"] == 0
    assert rows[1]["compile_seconds"] > 0
    assert result.seconds_per_step > 0


class _PulledPlugError(Exception):
    pass


def _break_off(monkeypatch: pytest.MonkeyPatch, step: int, *, after_metrics: bool) -> None:
    """Let the run die in a report: before its metrics are written, or between them and the checkpoint."""
    save, append = Checkpoints.save, RunFolder.append

    def dying_save(self, number, state):
        if after_metrics and number == step:
            raise _PulledPlugError
        save(self, number, state)

    def dying_append(self, row):
        if not after_metrics and row["step"] == step:
            raise _PulledPlugError
        append(self, row)

    monkeypatch.setattr(Checkpoints, "save", dying_save)
    monkeypatch.setattr(RunFolder, "append", dying_append)


@pytest.mark.parametrize(
    ("step", "after_metrics"),
    [(16, False), (16, True), pytest.param(0, False, marks=pytest.mark.slow), (0, True)],
)
def test_a_broken_off_run_goes_on_as_if_nothing_had_happened(
    task, undisturbed, tmp_path: Path, step: int, after_metrics: bool
):
    settings = dataclasses.asdict(_CONFIG)
    with pytest.MonkeyPatch.context() as monkeypatch:
        _break_off(monkeypatch, step, after_metrics=after_metrics)
        with pytest.raises(_PulledPlugError):
            fit(_make, task, _CONFIG, folder=RunFolder(tmp_path / "run", settings))
    folder = RunFolder(tmp_path / "run", settings, resume=True)
    resumed = fit(_make, task, _CONFIG, folder=folder)
    _assert_same(resumed.models, undisturbed.models)
    assert list(folder.rows()) == resumed.history
    assert _timeless(resumed) == _timeless(undisturbed)


def _timeless(result: Any) -> list[dict[str, Any]]:
    """Return the history without what no two runs share."""
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in result.history]


def test_a_finished_run_is_not_trained_again_but_read(task, undisturbed, tmp_path: Path, capsys):
    settings = dataclasses.asdict(_CONFIG)
    first = fit(_make, task, _CONFIG, folder=RunFolder(tmp_path / "run", settings))
    capsys.readouterr()
    again = fit(_make, task, _CONFIG, folder=RunFolder(tmp_path / "run", settings, resume=True))
    assert "compil" not in capsys.readouterr().err
    _assert_same(again.models, undisturbed.models)
    assert again.summary == first.summary
    assert again.memory > 0
    _assert_same(load_models(_make, task, _CONFIG, tmp_path / "run"), undisturbed.models)


def test_a_last_line_cut_off_by_a_crash_is_left_out(tmp_path: Path):
    folder = RunFolder(tmp_path / "run", {})
    folder.open()
    folder.append({"step": 0})
    with folder.metrics.open("a") as file:
        file.write('{"step": 1, "lo')
    assert list(folder.rows()) == [{"step": 0}]


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


def test_what_is_cut_off_in_the_middle_of_a_report_goes_on_bit_for_bit(task, undisturbed, tmp_path):
    """SIGTERM between two reports: the state is saved there, sums since the last report included."""
    settings = dataclasses.asdict(_CONFIG)
    train = Program.train

    def asked_to_end(self, state, stretch):
        if int(state.step) == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return train(self, state, stretch)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Program, "train", asked_to_end)
        monkeypatch.setattr(loop, "_PIECE_SECONDS", 0.0)  # a call a step
        with pytest.raises(Stopped, match="stopped after step 11 by SIGTERM") as end:
            fit(_make, task, _CONFIG, folder=RunFolder(tmp_path / "run", settings))
    assert (end.value.step, end.value.exit_code) == (11, 143)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    folder = RunFolder(tmp_path / "run", settings, resume=True)
    assert [row["step"] for row in folder.rows()] == [0, 8]
    resumed = fit(_make, task, _CONFIG, folder=folder)
    _assert_same(resumed.models, undisturbed.models)
    assert _timeless(resumed) == _timeless(undisturbed)


def test_a_request_that_comes_while_a_report_is_made_is_heard(task, tmp_path: Path):
    """Where every window is one call, there is no other moment."""
    append = RunFolder.append

    def asked_to_end(self, row):
        if row["step"] == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        append(self, row)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(RunFolder, "append", asked_to_end)
        with pytest.raises(Stopped, match="stopped after step 8 by SIGTERM"):
            fit(_make, task, _CONFIG, folder=RunFolder(tmp_path / "run", {}))


def test_a_network_whose_weights_are_not_numbers_is_never_the_best(task):
    config = dataclasses.replace(_CONFIG, learning_rate=1e38, clip_norm=None, select="best")
    result = fit(_make, task, config)
    assert np.isnan(result.history[-1]["valid_accuracy"]).any()  # or the test would say nothing
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.models))


def test_only_the_trainer_forgets_damaged_checkpoints(task, tmp_path: Path):
    fit(_make, task, _CONFIG, folder=RunFolder(tmp_path / "run", {}))
    steps = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    with pytest.MonkeyPatch.context() as monkeypatch:

        def full(*arguments, **options):
            raise MemoryError

        monkeypatch.setattr(ocp.CheckpointManager, "restore", full)
        with pytest.raises(MemoryError):
            load_models(_make, task, _CONFIG, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == steps


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("checkpoints", "resume: got no checkpoints, though there are metrics"),
        ("metrics.jsonl", "resume: got no metrics, though there are checkpoints"),
    ],
)
def test_a_run_of_which_a_part_is_lost_is_not_begun_anew(lost, message, task, tmp_path: Path):
    fit(_make, task, _CONFIG, folder=RunFolder(tmp_path / "run", {}))
    path = tmp_path / "run" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match=message):
        fit(_make, task, _CONFIG, folder=RunFolder(tmp_path / "run", {}, resume=True))


def test_a_folder_that_another_has_filled_since_is_refused(task, tmp_path: Path):
    first, second = RunFolder(tmp_path / "run", {"a": 1}), RunFolder(tmp_path / "run", {"a": 2})
    with first.opened():
        pass
    with pytest.raises(InputError, match="which is not empty"), second.opened():
        pass
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"a": 1}


def test_the_first_interrupt_asks_and_the_second_ends_at_once():
    before = signal.getsignal(signal.SIGINT)  # ignored by whoever runs in a shell's background
    with Interruption() as interruption:
        assert signal.getsignal(signal.SIGINT) is not before
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def _damage(folder: Path, how: str) -> None:
    """Spoil the newest checkpoint's largest file."""
    newest = max(
        (p for p in (folder / "checkpoints").iterdir() if p.name.isdigit()),
        key=lambda p: int(p.name),
    )
    files = [path for path in newest.rglob("*") if path.is_file() and path.stat().st_size]
    if how == "emptied":
        for path in files:
            path.write_bytes(b"")
        return
    victims = [p for p in files if "/d/" in str(p)]
    assert victims
    for path in victims:
        content = bytearray(path.read_bytes())
        if how == "truncated":
            content = content[: len(content) // 2]
        else:
            content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))


# TensorStore's other reads come back after the one that failed has ended the reading.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", ["emptied", "truncated", "a bit flipped"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    how, task, undisturbed, tmp_path: Path, capsys
):
    settings = dataclasses.asdict(_CONFIG)
    fit(_make, task, _CONFIG, folder=RunFolder(tmp_path / "run", settings))
    _damage(tmp_path / "run", how)
    folder = RunFolder(tmp_path / "run", settings, resume=True)
    resumed = fit(_make, task, _CONFIG, folder=folder)
    assert "the checkpoint of step 24 is damaged" in capsys.readouterr().err
    _assert_same(resumed.models, undisturbed.models)
    assert _timeless(resumed) == _timeless(undisturbed)


def test_without_an_intact_checkpoint_nothing_is_loaded(task, tmp_path: Path):
    config = dataclasses.replace(_CONFIG, steps=8)
    fit(_make, task, config, folder=RunFolder(tmp_path / "run", {}))
    for _ in range(2):
        _damage(tmp_path / "run", "emptied")
        shutil.rmtree(max((tmp_path / "run" / "checkpoints").iterdir()))
    with pytest.raises(InputError, match="run: got no intact checkpoint"):
        load_models(_make, task, config, tmp_path / "run")


def test_a_full_disk_is_said_and_leaves_the_last_checkpoint_good(task, undisturbed, tmp_path: Path):
    settings = dataclasses.asdict(_CONFIG)
    save = ocp.CheckpointManager.save

    def full(self, step, **rest):
        if step == 16:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(self, step, **rest)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(ocp.CheckpointManager, "save", full)
        with pytest.raises(InputError, match=r"checkpoints: got .*No space left.*resume goes on"):
            fit(_make, task, _CONFIG, folder=RunFolder(tmp_path / "run", settings))
    folder = RunFolder(tmp_path / "run", settings, resume=True)
    resumed = fit(_make, task, _CONFIG, folder=folder)
    _assert_same(resumed.models, undisturbed.models)
    assert _timeless(resumed) == _timeless(undisturbed)


def test_two_processes_cannot_write_one_folder(tmp_path: Path):
    folder = RunFolder(tmp_path / "run", {})
    with (
        folder.opened(),
        pytest.raises(InputError, match="into which another process writes"),
        RunFolder(tmp_path / "run", {}, resume=True).opened(),
    ):
        pass
    with RunFolder(tmp_path / "run", {}, resume=True).opened():
        pass


@pytest.mark.slow
def test_settings_of_which_several_are_tried_train_side_by_side(task, undisturbed):
    config = dataclasses.replace(_CONFIG, learning_rate=(1e-3, 1e-2), clip_norm=(0.5, 1.0))
    assert config.ensemble().members[5] == {"learning_rate": 1e-2, "clip_norm": 0.5, "seed": 1}
    both = fit(_make, task, config)
    assert len(both.test_score) == 8
    jax.tree.map(
        lambda many, two: np.testing.assert_allclose(many[6:], two, rtol=1e-5, atol=1e-6),
        both.models,
        undisturbed.models,
    )
    kernel = np.asarray(both.initial.layer.cell.kernel[...])
    np.testing.assert_array_equal(kernel[0], kernel[2])  # the same seed at another setting
    assert not np.allclose(
        both.models.layer.cell.kernel[...][0], both.models.layer.cell.kernel[...][2]
    )


def test_the_best_weights_are_those_of_the_best_report(task):
    config = dataclasses.replace(_CONFIG, learning_rate=0.5, select="best", steps=64, every=4)
    result = fit(_make, task, config)
    scores = np.array([row["valid_accuracy"] for row in result.history])
    for seed in range(2):
        model = jax.tree.map(lambda leaf, seed=seed: leaf[seed], result.models)
        logits = np.asarray(model(np.swapaxes(task.valid.inputs, 0, 1)))
        assert np.mean(logits.argmax(-1) == task.valid.targets) == scores[:, seed].max()
    assert (scores.max(axis=0) > scores[-1]).any()  # or the test would say nothing


def test_training_stops_when_nothing_has_become_better(task):
    config = dataclasses.replace(_CONFIG, learning_rate=1e-9, patience=2, steps=400)
    result = fit(_make, task, config)
    assert result.history[-1]["step"] == 16


def test_steps_that_are_not_finite_are_counted_and_left_out_where_asked(task):
    def broken(rngs):
        return _Fragile(_make(rngs))

    counted = fit(broken, task, _CONFIG)
    assert all(steps > 0 for steps in counted.history[-1]["nonfinite_steps"])
    assert not np.isfinite(counted.test_loss).all()
    kept = fit(broken, task, dataclasses.replace(_CONFIG, skip_nonfinite=True))
    assert all(steps > 0 for steps in kept.history[-1]["nonfinite_steps"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept.models))


class _Fragile(nnx.Module):
    """A classifier whose loss is not finite where the first number of a batch is large."""

    def __init__(self, model):
        self.model = model

    def __call__(self, xs, **options):
        return self.model(xs, **options) * jnp.where(xs[0, 0, 0] > 1.5, jnp.nan, 1)


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
        ({"steps": 0}, "steps: got 0; expected a whole number above 0"),
        ({"learning_rate": -1.0}, "learning_rate: got -1.0"),
        ({"seeds": 0}, "seeds: got 0"),
        ({"seed": -1}, "seed: got -1"),
        ({"optimizer": "adm"}, r"optimizer: got 'adm'.*did you mean 'adam'"),
        ({"schedule": "cosin"}, "schedule: got 'cosin'"),
        ({"select": "first"}, "select: got 'first'"),
        ({"warmup": 24}, "warmup: got 24; expected fewer than the 24 steps"),
        ({"clip_norm": 0.0}, "clip_norm: got 0.0"),
        ({"learning_rate": ()}, "learning_rate: got no value"),
        ({"momentum": 1.0}, "momentum: got 1.0"),
        ({"momentum": 0.9}, "momentum: got 0.9; expected 0, or one of the optimizers sgd"),
        ({"weight_decay": 0.1}, "weight_decay: got 0.1; expected 0, or one of the optim"),
        ({"seed": 2**31}, "seed: got 2147483648"),
        ({"learning_rate": (0.1, 0.1)}, r"learning_rate: got \(0.1, 0.1\); expected each value"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(
    task, tmp_path: Path, change, message
):
    config = dataclasses.replace(_CONFIG, **change)
    with pytest.raises(InputError, match=message):
        fit(_make, task, config, folder=RunFolder(tmp_path / "run", {}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        (Placement(data_devices=3), "data_devices: got 3; expected a divisor of the batch of 8"),
        (
            Placement(member_devices=3),
            "member_devices: got 3; expected a divisor of the 2 networks",
        ),
        (Placement(2, 8), "devices: got 16; expected at most the"),
        (Placement(0, 1), "member_devices: got 0"),
    ],
)
def test_devices_that_do_not_fit_are_refused(task, placement, message):
    with pytest.raises(InputError, match=message):
        fit(_make, task, _CONFIG, placement=placement)


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


def test_what_is_not_finite_is_read_back_from_strict_json(tmp_path: Path):
    row = {"step": 0, "train_loss": None, "valid_loss": [math.nan, 0.5], "log_norms": [[-math.inf]]}
    folder = RunFolder(tmp_path / "run", {})
    folder.open()
    folder.append(row)
    folder.rewind(0)

    def refuse(constant):
        raise AssertionError(constant)

    json.loads(folder.metrics.read_text(), parse_constant=refuse)
    (found,) = folder.rows()
    assert math.isnan(found["valid_loss"].pop(0))
    assert found == {**row, "valid_loss": [0.5]}


@pytest.mark.parametrize(
    "options", [{"zoneout": 0.5}, {"reverse": True}, {"carry_init": nnx.initializers.ones}]
)
def test_a_view_is_of_the_network_itself_or_none(task, options):
    rngs = nnx.Rngs(0)
    batch = whole_sequences(task.test, 8)

    def network(**options):
        layer = jaxrnn.RNN(jaxrnn.GRUCell(1, 4, rngs=rngs), rngs=rngs, **options)
        return jaxrnn.models.SequenceClassifier(layer, 2, rngs=rngs)

    model = network()
    seen = view(model, task, batch)
    assert seen is not None
    outputs = jaxrnn.unroll(seen.cell, seen.xs).outputs
    expected = task.losses(model(seen.xs), batch)
    np.testing.assert_allclose(seen.loss(outputs), expected, rtol=1e-5)
    assert view(network(**options), task, batch) is None
