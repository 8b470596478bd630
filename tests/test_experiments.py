"""The demonstration end to end, small: its report says what its runs hold."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrnn.checks import InputError
from jaxrnn.experiments import (
    NetworkConfig,
    RunConfig,
    Subject,
    compare,
    digits_comparison,
    flow_history,
    network,
    probe,
    probes,
    run_diagnosis,
    train,
)
from jaxrnn.experiments.stages import Stages
from jaxrnn.models import classifier_parameters
from jaxrnn.tasks import load_task
from jaxrnn.training import FitConfig, Penalties, RunFolder, read_metrics, whole_sequences


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory):
    """Two tiny cells, compared."""
    runs = [
        dataclasses.replace(run, network=dataclasses.replace(run.network, hidden_features=6))
        for run in digits_comparison(epochs=1, seeds=2)
        if run.network.cell in ("elman-tanh", "lstm")
    ]
    out = tmp_path_factory.mktemp("compare") / "out"
    return runs, out, compare(runs, out)


def test_the_report_has_its_table_and_figures_inside(compared):
    _, out, html = compared
    text = (out / "report.md").read_text("utf-8")
    assert set(re.findall(r"figures/(\w+)\.png", text)) == {
        "learning",
        "gradient_flow",
        "spectrum",
        "propagator",
    }
    for word in ("test accuracy", "spectral radius", "decay rate", "horizon", "verdict"):
        assert word in text
    assert html.read_text("utf-8").count("data:image/png;base64,") == 4


def test_the_reported_accuracy_is_the_runs_own(compared):
    runs, out, _ = compared
    text = (out / "report.md").read_text("utf-8")
    for run in runs:
        result = train(run, out / run.network.cell, resume=True)
        row = next(line for line in text.splitlines() if line.startswith(f"| {run.network.cell} "))
        error = np.std(result.test_score, ddof=1) / np.sqrt(2)
        assert f"{result.test_score.mean():.3f} ± {error:.3f}" in row


def test_the_rate_is_the_mean_over_seeds_with_their_spread(compared):
    runs, out, _ = compared
    task = load_task("digits")
    found = probe(train(runs[0], out / runs[0].network.cell, resume=True).models, task)
    rates = [float(flow.rate) for flow in found.flows]
    assert found.rate == pytest.approx((np.mean(rates), np.std(rates, ddof=1) / np.sqrt(2)))
    changes = [np.mean(flow.log_norms[0] - flow.log_norms[-1]) for flow in found.flows]
    assert found.verdict.change == pytest.approx(np.mean(changes), rel=1e-4)
    # Two seeds: a 95 % interval is t with one degree of freedom, 12.7 standard errors.
    error = np.std(changes, ddof=1) / np.sqrt(2)
    assert found.verdict.margin == pytest.approx(12.706 * error, rel=1e-3)


def test_a_comparison_goes_on_where_it_stood(compared, capsys):
    runs, out, _ = compared
    (out / "report.md").unlink()
    compare(runs, out, resume=True)
    assert (out / "report.md").exists()
    assert "compiling" not in capsys.readouterr().err
    with pytest.raises(InputError, match="which is not empty"):
        compare(runs, out)


def test_each_cell_keeps_its_settings(compared):
    runs, out, _ = compared
    for run in runs:
        assert RunConfig.of(out / run.network.cell) == run


def test_the_demonstration_matches_its_cells_in_size():
    from jaxrnn.cells import CELLS

    counts = [
        classifier_parameters(CELLS[r.network.cell], 1, 10, r.network.hidden_features)
        for r in digits_comparison()
    ]
    assert max(counts) / min(counts) < 1.02


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path):
    run = digits_comparison()[0]
    with pytest.raises(InputError, match="each once"):
        compare([run, run], tmp_path / "x")
    with pytest.raises(InputError, match="one or more"):
        compare([], tmp_path / "x")
    other = dataclasses.replace(digits_comparison()[1], task="mnist")
    with pytest.raises(InputError, match="one task for all"):
        compare([run, other], tmp_path / "x")
    assert not (tmp_path / "x").exists()


# Parts that are kept.


def test_parts_are_computed_once_and_outlive_a_crash(tmp_path: Path, capsys):
    calls = []

    def part(value):
        def compute():
            calls.append(value)
            return {"value": jnp.asarray(value)}

        return compute

    def die():
        raise KeyboardInterrupt

    stages = Stages("work", 3, tmp_path / "parts")
    stages("first part", part(1.0))
    with pytest.raises(KeyboardInterrupt):
        stages("second", die)
    with Stages("work", 3, tmp_path / "parts") as stages:
        assert float(stages("first part", part(1.0))["value"]) == 1.0
        assert float(stages("second", part(2.0))["value"]) == 2.0
    assert calls == [1.0, 2.0]
    assert "first part: kept" in capsys.readouterr().err


@pytest.mark.parametrize("damaged", [b"no pickle", b"garbage\n", pickle.dumps([]), b""])
def test_a_part_that_cannot_be_read_is_refused(damaged, tmp_path: Path):
    (tmp_path / "part.pickle").write_bytes(damaged)
    with pytest.raises(InputError, match=r"resume: got .*part.pickle, which cannot be read"):
        Stages("work", 1, tmp_path)("part", dict)


class _Malicious:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_a_part_that_would_run_code_is_refused_unread(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    version = importlib.metadata.version("jaxrnn")
    Path("part.pickle").write_bytes(pickle.dumps((version, "part", _Malicious())))
    with pytest.raises(InputError, match=r"resume: got .*part.pickle, which cannot be read"):
        Stages("work", 1, tmp_path)("part", dict)
    assert not Path("harmed").exists()


@pytest.mark.parametrize("named", ["this\nd", "jaxrnn.analysis.roots\nsearch", "builtins\neval"])
def test_a_part_names_nothing_but_records(named, tmp_path: Path):
    version = importlib.metadata.version("jaxrnn")
    whole = f"(V{version}\nVpart\nc{named}\nt."  # (version, "part", what is named)
    (tmp_path / "part.pickle").write_bytes(whole.encode())
    with pytest.raises(InputError, match=r"resume: got .*part.pickle, which cannot be read"):
        Stages("work", 1, tmp_path)("part", dict)
    assert "this" not in sys.modules  # nor is a module imported to look


def test_a_diagnosis_goes_on_where_it_was_broken_off(tmp_path: Path, monkeypatch, capsys):
    subject = Subject("elman-tanh", hidden_features=6, sequences=2)

    def die(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module("jaxrnn.analysis._diagnose"), "fixed_points", die)
        with pytest.raises(KeyboardInterrupt):
            run_diagnosis(subject, tmp_path / "out")
    assert not (tmp_path / "out" / "report.md").exists()
    diagnosis, html = run_diagnosis(subject, tmp_path / "out", resume=True)
    assert "Lyapunov exponents: kept" in capsys.readouterr().err
    assert html is not None
    assert diagnosis.text in html.with_name("report.md").read_text()
    assert run_diagnosis(subject)[0].text == diagnosis.text


def test_the_flow_through_training_is_in_the_metrics(tmp_path: Path):
    fit = FitConfig(steps=40, every=20, seeds=2)
    network = NetworkConfig("elman-tanh", 6)
    train(RunConfig("digits", network=network, fit=fit), tmp_path / "run")
    history = flow_history(read_metrics(tmp_path / "run"))
    assert history is not None
    assert history.steps.tolist() == [0, 20, 40]
    assert history.log_norms.shape == (3, 2, 64)
    assert flow_history([{"step": 0}]) is None


def test_networks_that_have_died_do_not_stop_the_others():
    task = load_task("digits", None)
    make = network(NetworkConfig("elman-tanh", 6), task)
    models: Any = jax.vmap(lambda key: make(nnx.Rngs(key)))(jax.random.split(jax.random.key(0), 2))
    bias = models.layer.cell.bias
    bias[...] = bias[...].at[1].set(jnp.nan)
    measured = probes(task)(models)
    (alive, dead), radii = measured["log_gradient_norms"], measured["spectral_radius"]
    assert np.isfinite(radii[0])
    assert np.isnan(radii[1])
    assert np.isfinite(alive).all()
    assert np.isnan(dead).all()


def test_resume_needs_a_folder():
    with pytest.raises(InputError, match="resume: got True without a folder"):
        run_diagnosis(Subject("gru"), resume=True)


def test_settings_survive_their_folder(tmp_path: Path):
    fit = FitConfig(learning_rate=(1e-3, 1e-2), clip_norm=None, penalties=Penalties(l2=0.1))
    config = RunConfig("adding", {"length": 20}, NetworkConfig("lstm", 6), fit, probes=False)
    RunFolder(tmp_path / "run", dataclasses.asdict(config)).open()
    assert RunConfig.of(tmp_path / "run") == config


def test_what_foretells_does_not_read_backwards():
    task = load_task("random-walk")
    with pytest.raises(InputError, match="bidirectional: got True; expected False: random-walk"):
        network(NetworkConfig(bidirectional=True), task)


def test_analyses_read_sequences_of_one_length_with_their_own_answers():
    batch = whole_sequences(load_task("parity").test, 4)
    tokens = np.asarray(batch.inputs).argmax(-1)
    assert batch.lengths is None
    assert tokens.shape[0] > 400
    np.testing.assert_array_equal(batch.targets, tokens.sum(0) % 2)
    plain = whole_sequences(load_task("digits").test, 4)
    assert plain.inputs.shape == (64, 4, 1)
    stepwise = whole_sequences(load_task("anbn").test, 4)
    assert len(stepwise.inputs) == len(stepwise.targets) == len(stepwise.mask) > 190
    assert np.asarray(stepwise.mask).all()
