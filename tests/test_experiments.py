"""The demonstration end to end, small: its report says what its runs hold."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from jaxrnn.checks import InputError
from jaxrnn.experiments import compare, digits_comparison, probe, train
from jaxrnn.models import classifier_parameters
from jaxrnn.tasks import load_task


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory):
    """Two tiny cells, compared."""
    runs = [
        dataclasses.replace(run, hidden_features=6)
        for run in digits_comparison(epochs=1, seeds=2)
        if run.cell in ("elman-tanh", "lstm")
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
        result = train(run, out / run.cell, resume=True)
        row = next(line for line in text.splitlines() if line.startswith(f"| {run.cell} "))
        error = np.std(result.test_accuracy, ddof=1) / np.sqrt(2)
        assert f"{result.test_accuracy.mean():.3f} ± {error:.3f}" in row


def test_the_rate_is_the_mean_over_seeds_with_their_spread(compared):
    runs, out, _ = compared
    task = load_task("digits")
    found = probe(train(runs[0], out / runs[0].cell, resume=True).models, task)
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
        assert json.loads((out / run.cell / "config.json").read_text()) == dataclasses.asdict(run)


def test_the_demonstration_matches_its_cells_in_size():
    from jaxrnn.cells import CELLS

    counts = [
        classifier_parameters(CELLS[r.cell], 1, 10, r.hidden_features) for r in digits_comparison()
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
