"""Cells side by side: trained on one task at matched size, their gradients analysed before and after.

This is the laboratory's first experiment and what `jaxrnn demo` runs. Each cell is a run of its own in a
folder below, so an experiment that was broken off goes on where it stood. The report is made from the
results alone: nothing in it is typed by hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from jaxrnn import checks, plot
from jaxrnn.annotations import checked
from jaxrnn.cells import CELLS
from jaxrnn.experiments.figures import save_figure
from jaxrnn.experiments.networks import NetworkConfig
from jaxrnn.experiments.probing import Probe, probe
from jaxrnn.experiments.runs import RunConfig, train
from jaxrnn.models import matched_width
from jaxrnn.report import Report, plain
from jaxrnn.tasks import Task, load_task
from jaxrnn.training import FitConfig, FitResult, ProgressBar, RunFolder, environment, holds_run

_LEARNING_RATES = {"elman-tanh": 3e-3, "lstm": 2e-2, "gru": 2e-2}
"""Of 0.001, 0.003, 0.005, 0.01 (elman-tanh) and 0.003, 0.01, 0.02, 0.04 (lstm, gru), the ones with the best
validation accuracy on the digits after 60 epochs."""


@checked
def digits_comparison(
    *, epochs: int = 60, seeds: int = 5, parameters: int = 10_000
) -> list[RunConfig]:
    """Return the runs of the demonstration: three cells of one size on the digits.

    Args:
      epochs: passes over the training data.
      seeds: how many networks of each cell.
      parameters: what each network's number of parameters comes nearest to, readout included.
    """
    checks.count("epochs", epochs)
    checks.within("epochs", epochs, 1, 10**6)
    task = load_task("digits")
    epoch = task.train.steps(FitConfig.batch_size)
    runs = []
    for cell, rate in _LEARNING_RATES.items():
        units = matched_width(CELLS[cell], task.in_features, task.outputs, parameters)
        fit = FitConfig(steps=epochs * epoch, every=epoch, seeds=seeds, learning_rate=rate)
        runs.append(RunConfig("digits", network=NetworkConfig(cell, units), fit=fit))
    return runs


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was found about one cell.

    Attributes:
      run: what was trained.
      fit: how training went.
      before: its gradients at initialisation.
      after: its gradients after training.
    """

    run: RunConfig
    fit: FitResult
    before: Probe
    after: Probe

    @property
    def cell(self) -> str:
        """The cell's name."""
        return self.run.network.cell


@checked
def compare(runs: Sequence[RunConfig], out: str | Path, *, resume: bool = False) -> Path:
    """Train and diagnose each run, and write one report.

    Args:
      runs: what to train: runs of different cells on one task.
      out: the folder to write; it must be new, or with `resume` hold the same comparison.
      resume: go on with a comparison that was broken off.

    Returns:
      The path of ``report.html``.

    Raises:
      InputError: runs that cannot be compared, a folder that holds something else, or missing data.
    """
    _check_comparable(runs)
    task = runs[0].load_task()
    folder = RunFolder(out, {"runs": [dataclasses.asdict(run) for run in runs]}, resume=resume)
    with folder.opened():
        findings = [_study(run, task, folder.path / run.network.cell) for run in runs]
    return _write_report(task, findings, folder)


def _check_comparable(runs: Sequence[RunConfig]) -> None:
    cells, tasks = [run.network.cell for run in runs], {run.task for run in runs}
    if not cells or len(set(cells)) < len(cells):
        checks.refuse("runs", f"the cells {cells}", "one or more, each once")
    if len(tasks) > 1:
        checks.refuse("runs", f"the tasks {sorted(tasks)}", "one task for all")


def _study(run: RunConfig, task: Task, path: Path) -> Finding:
    fit = train(run, path, resume=holds_run(path))
    with ProgressBar(f"{run.network.cell}: diagnosis", total=2) as progress:
        before = probe(fit.initial, task)
        progress.advance("before training")
        after = probe(fit.models, task)
        progress.advance("after training")
    return Finding(run, fit, before, after)


def _write_report(task: Task, findings: list[Finding], folder: RunFolder) -> Path:
    report = Report(f"{', '.join(finding.cell for finding in findings)} on {task.name}")
    report.paragraph(_setting(task, findings))
    report.heading("Results")
    report.table(*_table(findings))
    report.paragraph(_LEGEND.format(unit=_unit(findings[0].run)))
    report.heading("Figures")
    for name, caption, draw in _FIGURES:
        with plot.house_style():
            save_figure(draw(findings, task), folder.figures / f"{name}.png")
        report.figure(f"figures/{name}.png", caption)
    _, html = report.write(folder.path)
    return html


def _setting(task: Task, findings: list[Finding]) -> str:
    about = environment()
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    trained = "; ".join(f"{finding.cell}: {_training(finding.run)}" for finding in findings)
    return (
        f"Data: {plain(task.source)}; {len(task.train)} sequences to train, {len(task.valid)} to validate, "
        f"{len(task.test)} to test, {len(task.test.take(1).inputs)} steps of {task.in_features} feature "
        f"each, {task.outputs} classes; always naming the commonest training class gives {task.chance:.3f}. "
        f"Training is by Adam, its rate falling to 0 along a cosine, all seeds of a cell at once. "
        f"{trained}. The test data are looked at once, at the end. Solved, by the task's own standard, is "
        f"{task.solved:g}. Training and compiling took {_seconds(findings):.0f} s on "
        f"{about['machine']} ({', '.join(about['devices'])}) with Python {about['python']}, {versions}."
    )


def _seconds(findings: list[Finding]) -> float:
    rows = [row for finding in findings for row in finding.fit.history]
    return sum(row["seconds"] + row["compile_seconds"] for row in rows)


def _training(run: RunConfig) -> str:
    return (
        f"{run.network.hidden_features} units, {run.fit.seeds} seeds, {run.fit.steps:,} steps, "
        f"batches of {run.fit.batch_size}, rate {run.fit.learning_rate}, "
        f"gradient norm clipped at {run.fit.clip_norm}"
    )


_LEGEND = (
    "Accuracy and rate: mean ± standard error over {unit}. Milliseconds a step: median wall time of one "
    "optimiser step of all seeds together, without compilation. Spectral radius: median over seeds, steps "
    "and sequences of max |λ| of the step Jacobian ∂s(t)/∂s(t−1). Decay rate: slope of log ‖∂L/∂s(t)‖ per "
    "step back in time; negative means that it vanishes. Horizon: steps back at which the gradient has "
    "faded to 1 %, median over seeds and sequences. Verdict: change of the gradient's norm from the last "
    "step to the first, with the 95 % interval of its mean over {unit}; balanced is within a factor of 10."
)


def _unit(run: RunConfig) -> str:
    if run.fit.seeds == 1:
        return "the test sequences of the one network trained (nothing is known of other seeds)"
    return f"{run.fit.seeds} seeds"


def _table(findings: list[Finding]) -> tuple[list[str], list[list[str]]]:
    header = [
        "cell",
        "parameters",
        "test accuracy",
        "ms a step",
        "compile s",
        "training",
        "spectral radius",
        "decay rate, nats a step",
        "horizon, steps",
        "verdict",
    ]
    rows = []
    for finding in findings:
        accuracy = finding.fit.test_score
        error = np.std(accuracy, ddof=1) / np.sqrt(len(accuracy)) if len(accuracy) > 1 else np.nan
        about = [
            finding.cell,
            f"{finding.fit.parameters:,}",
            _plus_minus(accuracy.mean(), error, ".3f"),
            f"{1e3 * finding.fit.seconds_per_step:.1f}",
            f"{finding.fit.compile_seconds:.1f}",
        ]
        rows.append([*about, "before", *_probe_cells(finding.before)])
        rows.append([""] * len(about) + ["after", *_probe_cells(finding.after)])
    return header, rows


def _probe_cells(found: Probe) -> list[str]:
    verdict = found.verdict
    rate = _plus_minus(*found.rate, "+.4f")
    return [f"{found.spectral_radius:.3f}", rate, verdict.horizon_text, verdict.sentence]


def _plus_minus(value: float, error: float, form: str) -> str:
    """Write a value with its error; a single value has none."""
    return f"{value:{form}}" if np.isnan(error) else f"{value:{form}} ± {error:{form.lstrip('+')}}"


def _learning_figure(findings: list[Finding], task: Task) -> Figure:
    figure, ax = plt.subplots(figsize=(6, 4))
    for finding in findings:
        plot.learning_curves(finding.fit.history, finding.fit.metric, ax, label=finding.cell)
    ax.axhline(
        task.chance,
        color="0.5",
        linestyle="--",
        linewidth=1,
        label="commonest class",
    )
    ax.legend(loc=(0.62, 0.25))
    return figure


def _flow_figure(findings: list[Finding], task: Task) -> Figure:
    del task
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for ax, when in zip(axes, ("before", "after"), strict=True):
        for finding in findings:
            plot.gradient_flows(getattr(finding, when).log_norms, ax, label=finding.cell)
        ax.axhline(0, color="0.5", linestyle="--", linewidth=1)
        ax.set_title(f"{when} training")
    axes[1].set_ylabel("")
    axes[0].legend()
    return figure


def _spectrum_figure(findings: list[Finding], task: Task) -> Figure:
    del task
    figure, axes = plt.subplots(2, len(findings), figsize=(4.4 * len(findings), 7.4), squeeze=False)
    for row, when in zip(axes, ("before", "after"), strict=True):
        for ax, finding in zip(row, findings, strict=True):
            plot.spectrum(getattr(finding, when).spectra[0], ax)
            ax.set_title(f"{finding.cell}, {when} training")
    return figure


def _propagator_figure(findings: list[Finding], task: Task) -> Figure:
    del task
    figure, axes = plt.subplots(
        2, len(findings), figsize=(4.4 * len(findings), 7), squeeze=False, sharex=True, sharey="col"
    )
    for row, when in zip(axes, ("before", "after"), strict=True):
        for ax, finding in zip(row, findings, strict=True):
            plot.propagator(getattr(finding, when).propagators[0], ax)
            ax.set_title(f"{finding.cell}, {when} training")
    return figure


_FIGURES = (
    (
        "learning",
        "Validation accuracy: mean over seeds, shaded from the worst seed to the best.",
        _learning_figure,
    ),
    (
        "gradient_flow",
        "Norm of the loss's gradient at each time step, relative to the last step: median over seeds and "
        "test sequences, shaded between the quartiles. The loss is read after the last step, so going back "
        "in time is going left.",
        _flow_figure,
    ),
    (
        "spectrum",
        "Eigenvalues of the step Jacobians ∂s(t)/∂s(t−1) along one test sequence, first seed; the dashed "
        "circle is |λ| = 1. An LSTM's state is (c, h): as h enters through the gates alone, about half of "
        "its eigenvalues lie near 0.",
        _spectrum_figure,
    ),
    (
        "propagator",
        "Singular values of the BPTT product ∂s(T)/∂s(T−k) by lag k, median over two test sequences, first "
        "seed. The dotted line is the rate fitted to the largest one.",
        _propagator_figure,
    ),
)
