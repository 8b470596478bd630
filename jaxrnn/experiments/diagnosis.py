"""One network under the microscope: a trained run's, or a cell as it comes from its initialiser."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import matplotlib.pyplot as plt
from flax import nnx

from jaxrnn import checks, plot
from jaxrnn.analysis import PARTS, Diagnosis, FlowHistory, diagnose
from jaxrnn.cells import CELLS, make_cell
from jaxrnn.experiments.history import flow_history
from jaxrnn.experiments.runs import RunConfig, load_network
from jaxrnn.experiments.stages import Stages
from jaxrnn.report import Report
from jaxrnn.tasks import load_task
from jaxrnn.training import RunFolder, read_metrics, required, view, whole_sequences


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is to be diagnosed.

    Attributes:
      target: a run's folder, or a cell's name for a fresh cell.
      network: which network of a run, 0 the first.
      seed: random seed of a fresh cell.
      sequences: how many test sequences to run.
      hidden_features: number of units of a fresh cell; a run knows its own.
      task: whose test sequences a fresh cell reads; a run knows its own.
      data: folder with the task's files; by default where $JAXRNN_DATA points.
    """

    target: str
    network: int = 0
    seed: int = 0
    sequences: int = 4
    hidden_features: int = 64
    task: str = "digits"
    data: str | None = None

    def __post_init__(self):
        """Refuse what is neither a run nor a cell."""
        checks.count("sequences", self.sequences)
        if not self._is_run and self.target not in CELLS:
            got, cells = repr(self.target), ", ".join(CELLS)
            checks.refuse("target", got, f"a run's folder, or one of {cells}")

    @property
    def _is_run(self) -> bool:
        return Path(self.target).is_dir()

    @property
    def settings(self) -> dict[str, Any]:
        """What the diagnosis depends on: a run that has been trained on is another subject."""
        rows = list(read_metrics(self.target)) if self._is_run else []
        return {**dataclasses.asdict(self), "step": rows[-1]["step"] if rows else 0}

    @property
    def title(self) -> str:
        """What it is, for a heading."""
        if not self._is_run:
            return f"a fresh {self.target} of {self.hidden_features} units"
        members = RunConfig.of(self.target).fit.members
        settings = ", ".join(f"{name} {value}" for name, value in members[self.network].items())
        return f"{self.target}, network {self.network} of {len(members)} ({settings})"

    @property
    def history(self) -> FlowHistory | None:
        """The gradient flow through the run's training; None for a fresh cell."""
        path = Path(self.target)
        return flow_history(read_metrics(path)) if self._is_run else None

    def diagnose(self, part: Callable[[str, Callable[[], Any]], Any]) -> Diagnosis:
        """Diagnose it, on test sequences of its task.

        A run's network gets the loss of its task, a fresh cell a fixed random projection.

        Args:
          part: computes a part of the diagnosis, as in `jaxrnn.analysis.diagnose`.

        Raises:
          InputError: no run there, no checkpoint in it, no such network or task.
        """
        if not self._is_run:
            task = load_task(self.task, self.data)
            if not task.in_features:
                checks.refuse("task", self.task, "a task on numbers, for a fresh cell to read")
            xs = jnp.asarray(whole_sequences(task.test, self.sequences).inputs)
            rngs = nnx.Rngs(self.seed)
            cell = make_cell(self.target, task.in_features, self.hidden_features, rngs=rngs)
            return diagnose(cell, xs, part=part)
        task, model = load_network(self.target, self.network)
        seen = required(view(model, task, whole_sequences(task.test, self.sequences)))
        return diagnose(seen.cell, seen.xs, seen.loss, part=part)


def run_diagnosis(
    subject: Subject, out: Path | None = None, *, resume: bool = False
) -> tuple[Diagnosis, Path | None]:
    """Diagnose a run or a cell, and write ``report.md``, ``report.html`` and figures.

    Args:
      subject: what to diagnose.
      out: a new folder for the report; None writes none.
      resume: go on with a diagnosis that was broken off, part by part.

    Returns:
      The diagnosis, and the path of ``report.html``.

    Raises:
      InputError: nothing there to diagnose, or a folder that is in use.
    """
    if out is None and resume:
        checks.refuse(
            "resume", "True without a folder", "out, the folder of the diagnosis to go on with"
        )
    title = f"diagnosis of {subject.target}"
    if out is None:
        with Stages(title, len(PARTS)) as stages:
            return subject.diagnose(stages), None
    folder = RunFolder(out, subject.settings, resume=resume)
    with folder.opened(), Stages(title, len(PARTS), folder.path / "parts") as stages:
        diagnosis = subject.diagnose(stages)
        return diagnosis, _write_report(diagnosis, subject, folder)


def _write_report(diagnosis: Diagnosis, subject: Subject, folder: RunFolder) -> Path:
    report = Report(f"Diagnosis of {subject.title}")
    report.paragraph(f"```\n{diagnosis.text}\n```")
    report.paragraph(f"```\n{diagnosis.exponents.text}\n```")
    if diagnosis.fixed_points is not None:
        report.paragraph(f"```\n{diagnosis.fixed_points.text}\n```")
    drawings = [(name, text, partial(draw, diagnosis)) for name, text, draw in _FIGURES]
    if diagnosis.contributions is not None:
        drawings.append((*_LAGS, partial(plot.lag_contributions, diagnosis.contributions)))
    history = subject.history
    if history is not None:
        drawings.insert(1, (*_HISTORY, partial(plot.flow_history, history)))
    for name, caption, draw in drawings:
        with plot.house_style():
            figure, ax = plt.subplots(figsize=(6, 4.2))
            draw(ax)
            figure.savefig(folder.figures / f"{name}.png")
            plt.close(figure)
        report.figure(f"figures/{name}.png", caption)
    _, html = report.write(folder.path)
    return html


_HISTORY = (
    "flow_history",
    "Norm of the loss's gradient at each time step through training: median over networks and validation "
    "sequences.",
)

_LAGS = (
    "lag_contributions",
    "Part of the parameter gradient that comes from dependencies of up to k steps.",
)

_FIGURES: tuple[tuple[str, str, Callable[[Diagnosis, Any], Any]], ...] = (
    (
        "gradient_flow",
        "Norm of the loss's gradient at each time step, relative to the last: median and quartiles over "
        "sequences. The loss is read after the last step; going back in time is going left.",
        lambda diagnosis, ax: plot.gradient_flow(diagnosis.flow, ax),
    ),
    (
        "spectrum",
        "Eigenvalues of the step Jacobians along the first sequence, with the unit circle.",
        lambda diagnosis, ax: plot.spectrum(diagnosis.spectrum, ax),
    ),
    (
        "propagator",
        "Singular values of the BPTT product by lag, median over sequences, with the fitted rate.",
        lambda diagnosis, ax: plot.propagator(diagnosis.propagator, ax),
    ),
    (
        "lyapunov",
        "Leading Lyapunov exponents along the first sequence, with 95 % intervals.",
        lambda diagnosis, ax: plot.lyapunov(diagnosis.exponents, ax),
    ),
)
