"""One network under the microscope: a trained run's, or a cell as it comes from its initialiser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

from jaxrnn import checks, plot
from jaxrnn.analysis import Diagnosis, diagnose
from jaxrnn.cells import CELLS, make_cell
from jaxrnn.experiments.probe import each
from jaxrnn.experiments.runs import RunConfig, load
from jaxrnn.report import Report
from jaxrnn.tasks import load_task
from jaxrnn.training import RunFolder


def diagnose_run(path: Path, *, seed: int = 0, sequences: int = 4) -> Diagnosis:
    """Diagnose one network of a trained run on test sequences of its task, with its own loss.

    Args:
      path: the run's folder.
      seed: which network of the ensemble, 0 the first.
      sequences: how many test sequences.

    Raises:
      InputError: no run there, no checkpoint in it, or no such network.
    """
    config = RunConfig.of(path)
    if not 0 <= seed < config.fit.seeds:
        checks.refuse("seed", seed, f"0 to {config.fit.seeds - 1}, the networks of the run")
    task = load_task(config.task, config.data)
    model = list(each(load(config, path)))[seed]
    labels = jnp.asarray(task.test.labels[:sequences])
    return diagnose(
        model.cell,
        _inputs(config.task, config.data, sequences),
        lambda outputs: task.loss(model.readout(outputs[-1]), labels),
    )


def diagnose_cell(
    name: str,
    *,
    hidden_features: int,
    task: str,
    seed: int = 0,
    sequences: int = 4,
    data: str | None = None,
) -> Diagnosis:
    """Diagnose a fresh cell on test sequences of a task, with a fixed random projection as its loss.

    Raises:
      InputError: no such cell or task.
    """
    checks.choice("cell", name, CELLS)
    xs = _inputs(task, data, sequences)
    cell = make_cell(name, xs.shape[-1], hidden_features, rngs=nnx.Rngs(seed))
    return diagnose(cell, xs)


def write_diagnosis(diagnosis: Diagnosis, title: str, out: Path) -> Path:
    """Write a diagnosis as ``report.md``, ``report.html`` and figures; return the HTML file's path.

    Raises:
      InputError: the folder is not empty.
    """
    folder = RunFolder(out, {"diagnosis": title})
    folder.open()
    report = Report(f"Diagnosis of {title}")
    report.paragraph(f"```\n{diagnosis.text}\n```")
    for name, caption, draw in _FIGURES:
        with plot.house_style():
            figure, ax = plt.subplots(figsize=(6, 4.2))
            draw(diagnosis, ax)
            figure.savefig(folder.figures / f"{name}.png")
            plt.close(figure)
        report.figure(f"figures/{name}.png", caption)
    _, html = report.write(folder.path)
    return html


def _inputs(task: str, data: str | None, sequences: int) -> Any:
    checks.count("sequences", sequences)
    inputs = load_task(task, data).test.inputs[:sequences]
    return jnp.asarray(np.swapaxes(inputs, 0, 1))


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
)
