"""One network under the microscope: a trained run's, or a cell as it comes from its initialiser."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

from jaxrnn import checks, plot
from jaxrnn.analysis import PARTS, Diagnosis, FlowHistory, diagnose
from jaxrnn.annotations import checked
from jaxrnn.cells import CELLS, make_cell
from jaxrnn.experiments.figures import save_figure
from jaxrnn.experiments.history import flow_history
from jaxrnn.experiments.networks import MOST_UNITS
from jaxrnn.experiments.runs import RunConfig, load_network
from jaxrnn.experiments.stages import Stages
from jaxrnn.report import Report
from jaxrnn.tasks import load_task
from jaxrnn.training import RunFolder, read_metrics, required, view, whole_sequences

_MOST_SEQUENCES = 10_000


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
        checks.within("sequences", self.sequences, 1, _MOST_SEQUENCES)
        if not self._is_run and self.target not in CELLS:
            got, cells = repr(self.target), ", ".join(CELLS)
            checks.refuse("target", got, f"a run's folder, or one of {cells}")

    @property
    def _is_run(self) -> bool:
        return os.path.isdir(self.target)

    def find(self) -> Specimen:
        """Return the network or cell, and the sequences to run.

        A run's network gets the loss of its task, a fresh cell a fixed random projection.

        Raises:
          InputError: no run there, no checkpoint in it, no such network or task.
        """
        return self._of_run() if self._is_run else self._fresh()

    def _of_run(self) -> Specimen:
        config = RunConfig.of(self.target)
        task, model = load_network(self.target, self.network)
        batch = whole_sequences(task.test, self.sequences)
        seen = required(view(model, task, batch))
        members = config.members
        settings = ", ".join(f"{name} {value}" for name, value in members[self.network].items())
        name = f"{self.target}, network {self.network} of {len(members)} ({settings})"
        history = flow_history(read_metrics(self.target))
        return Specimen(name, seen.cell, seen.xs, seen.loss, (model, batch), history)

    def _fresh(self) -> Specimen:
        checks.within("seed", self.seed, 0, 2**31 - 1)
        checks.within("hidden_features", self.hidden_features, 1, MOST_UNITS)
        task = load_task(self.task, self.data)
        if not task.in_features:
            checks.refuse("task", self.task, "a task on numbers, for a fresh cell to read")
        xs = jnp.asarray(whole_sequences(task.test, self.sequences).inputs)
        rngs = nnx.Rngs(self.seed)
        cell = make_cell(self.target, task.in_features, self.hidden_features, rngs=rngs)
        name = f"a fresh {self.target} of {self.hidden_features} units"
        return Specimen(name, cell, xs, None, (cell, xs))


@dataclasses.dataclass(frozen=True)
class Specimen:
    """What a subject was found to be.

    Attributes:
      name: what it is, for a heading.
      cell: the network's cell, with its weights.
      xs: the sequences that it runs on [T, B, F].
      loss: of its outputs; None for a fresh cell.
      numbers: all that the diagnosis is computed from: weights, sequences and targets.
      history: the gradient flow through the run's training; None for a fresh cell.
    """

    name: str
    cell: Any
    xs: Any
    loss: Any
    numbers: Any
    history: FlowHistory | None = None

    @property
    def fingerprint(self) -> str:
        """A digest of all numbers that the diagnosis is computed from."""
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.numbers):
            array = np.asarray(leaf)
            digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()


@checked
def run_diagnosis(
    subject: Subject, out: Path | None = None, *, resume: bool = False
) -> tuple[Diagnosis, Path | None]:
    """Diagnose a run or a cell, and write ``report.md``, ``report.html`` and figures.

    Args:
      subject: what to diagnose.
      out: a new folder for the report; None writes none.
      resume: go on with a diagnosis that was broken off, part by part; its weights and sequences must be the
        same.

    Returns:
      The diagnosis, and the path of ``report.html``.

    Raises:
      InputError: nothing there to diagnose, a folder that is in use, or one with the diagnosis of something
        else.
    """
    if out is None and resume:
        checks.refuse(
            "resume", "True without a folder", "out, the folder of the diagnosis to go on with"
        )
    title = f"diagnosis of {subject.target}"
    found = subject.find()

    def examine(stages: Stages) -> Diagnosis:
        return diagnose(found.cell, found.xs, found.loss, part=stages)

    if out is None:
        with Stages(title, len(PARTS)) as stages:
            return examine(stages), None
    fingerprint = found.fingerprint
    settings = {**dataclasses.asdict(subject), "fingerprint": fingerprint}
    folder = RunFolder(out, settings, resume=resume)
    with (
        folder.opened(),
        Stages(title, len(PARTS), folder.path / "parts", fingerprint) as stages,
    ):
        diagnosis = examine(stages)
        return diagnosis, _write_report(diagnosis, found, folder)


def _write_report(diagnosis: Diagnosis, found: Specimen, folder: RunFolder) -> Path:
    report = Report(f"Diagnosis of {found.name}")
    report.verbatim(diagnosis.text)
    report.verbatim(diagnosis.exponents.text)
    if diagnosis.fixed_points is not None:
        report.verbatim(diagnosis.fixed_points.text)
    drawings = [(name, text, partial(draw, diagnosis)) for name, text, draw in _FIGURES]
    if diagnosis.contributions is not None:
        drawings.append((*_LAGS, partial(plot.lag_contributions, diagnosis.contributions)))
    if found.history is not None:
        drawings.insert(1, (*_HISTORY, partial(plot.flow_history, found.history)))
    for name, caption, draw in drawings:
        with plot.house_style():
            figure, ax = plt.subplots(figsize=(6, 4.2))
            draw(ax)
            save_figure(figure, folder.figures / f"{name}.png")
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
