"""One cell on one task, in a run folder: the piece from which every experiment is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flax import nnx

from jaxrnn import checks
from jaxrnn.cells import CELLS, make_cell
from jaxrnn.experiments.history import flow_observer
from jaxrnn.models import SequenceClassifier
from jaxrnn.tasks import SequenceClassification, load_task
from jaxrnn.training import FitConfig, FitResult, RunFolder, fit, load_models, read_config


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What to train.

    Attributes:
      task: a task's name: digits, or mnist where its files are at hand.
      cell: a cell's name, as `jaxrnn cells` lists them.
      hidden_features: number of units.
      fit: how to train.
      data: folder with the task's files; by default where $JAXRNN_DATA points.
    """

    task: str = "digits"
    cell: str = "gru"
    hidden_features: int = 64
    fit: FitConfig = dataclasses.field(default_factory=FitConfig)
    data: str | None = None

    def __post_init__(self):
        """Refuse a cell that is not in the table, and a size that is none."""
        checks.choice("cell", self.cell, CELLS)
        checks.count("hidden_features", self.hidden_features)
        self.fit.check()

    @classmethod
    def of(cls, folder: str | Path) -> RunConfig:
        """Return the settings that a run's folder holds."""
        settings = read_config(folder)
        try:
            return cls(**{**settings, "fit": FitConfig(**settings["fit"])})
        except (KeyError, TypeError):
            checks.refuse("run", str(folder), "the folder of one training run")


def train(config: RunConfig, out: str | Path, *, resume: bool = False) -> FitResult:
    """Train one cell's ensemble into a run folder.

    Args:
      config: what to train.
      out: the run's folder; it must be new, or with `resume` hold the same run.
      resume: go on with a run that was broken off, from its last checkpoint.

    Raises:
      InputError: data that are missing or damaged, a folder that is in use, or one with another run.
    """
    task = load_task(config.task, config.data)
    folder = RunFolder(out, dataclasses.asdict(config), resume=resume)
    return fit(
        make_model(config, task),
        task,
        config.fit,
        folder=folder,
        title=config.cell,
        observe=flow_observer(task),
    )


def load(config: RunConfig, folder: Path) -> Any:
    """Return the ensemble of a run's newest checkpoint.

    Raises:
      InputError: the folder holds no checkpoint, or one of another network.
    """
    task = load_task(config.task, config.data)
    return load_models(make_model(config, task), task, config.fit, folder)


def make_model(
    config: RunConfig, task: SequenceClassification
) -> Callable[[nnx.Rngs], SequenceClassifier]:
    """Return the function that makes one network of a run from its random streams."""

    def make(rngs: nnx.Rngs) -> SequenceClassifier:
        cell = make_cell(config.cell, task.in_features, config.hidden_features, rngs=rngs)
        return SequenceClassifier(cell, task.classes, rngs=rngs)

    return make
