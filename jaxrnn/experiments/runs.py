"""One network on one task, in a run folder: the piece from which every experiment is made."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.experiments.history import probes
from jaxrnn.experiments.networks import NetworkConfig, network
from jaxrnn.tasks import TASKS, Task, load_task
from jaxrnn.training import (
    FitConfig,
    FitResult,
    Penalties,
    Placement,
    ProgressBar,
    RunFolder,
    fit,
    load_models,
    read_config,
)

_ONE_DEVICE = Placement()


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What to train, on what, and how.

    Attributes:
      task: a task's name, as `jaxrnn tasks` lists them.
      settings: of the task, in place of the preset's.
      network: what to train.
      fit: how to train.
      data: folder with the task's files; by default below $JAXRNN_DATA.
      probes: measure gradient flow and spectral radius at every report.
    """

    task: str = "digits"
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    fit: FitConfig = dataclasses.field(default_factory=FitConfig)
    data: str | None = None
    probes: bool = True

    def __post_init__(self):
        """Refuse a task or a cell that nobody knows, and settings with which nothing can be trained."""
        checks.choice("task", self.task, TASKS)
        self.network.check()
        self.fit.check()
        self.fit.ensemble(self.network.variants)

    @classmethod
    def of(cls, folder: str | Path) -> RunConfig:
        """Return the settings that a run's folder holds."""
        settings = read_config(folder)
        try:
            training = _with_tuples(settings["fit"])
            penalties = Penalties(**_with_tuples(training["penalties"]))
            parts = {
                "network": NetworkConfig(**_with_tuples(settings["network"])),
                "fit": FitConfig(**{**training, "penalties": penalties}),
            }
            return cls(**{**settings, **parts})
        except (AttributeError, KeyError, TypeError):
            checks.refuse("run", str(folder), "the folder of one training run")

    def load_task(self) -> Task:
        """Return the task, with its data."""
        return load_task(self.task, self.data, **self.settings)

    @property
    def members(self) -> list[dict[str, Any]]:
        """What distinguishes the networks of the run."""
        return self.fit.ensemble(self.network.variants).members


def _with_tuples(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings with tuples for the lists that JSON makes of them."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }


@checked
def train(
    config: RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    placement: Placement = _ONE_DEVICE,
) -> FitResult:
    """Train one ensemble into a run folder.

    Args:
      config: what to train.
      out: the run's folder; it must be new, or with `resume` hold the same run.
      resume: go on with a run that was broken off, from its last checkpoint.
      placement: how many devices to use, and for what.

    Raises:
      InputError: data that are missing or damaged, a folder that is in use, or one with another run.
      Stopped: the process was asked to end; what was done is kept.
    """
    task = config.load_task()
    folder = RunFolder(out, dataclasses.asdict(config), resume=resume)
    return fit(
        network(config.network, task),
        task,
        config.fit,
        variants=config.network.variants,
        folder=folder,
        title=config.network.cell,
        observe=probes(task) if config.probes else None,
        placement=placement,
    )


@checked
def load_network(run: str | Path, number: int) -> tuple[Task, Any]:
    """Return a run's task and one of its networks, from the newest intact checkpoint.

    If newer ones are damaged, standard error says so, and which one is read.

    Raises:
      InputError: no run there, no intact checkpoint of it, or no such network.
    """
    config = RunConfig.of(run)
    count = len(config.members)
    if number not in range(count):
        checks.refuse("network", number, f"0 to {count - 1}, the networks of the run")
    task = config.load_task()
    say = ProgressBar(str(run), 1).say
    variants = config.network.variants
    make = network(config.network, task)
    models = load_models(make, task, config.fit, Path(run), say, variants=variants)
    return task, jax.tree.map(lambda leaf: leaf[number], models)
