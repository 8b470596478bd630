"""Training runs of an experiment: into the battery's folder, from where they are resumed after a kill."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import nnx

from jaxrnn.analysis import GradientFlow, gradient_flow
from jaxrnn.claims.claim import Lab
from jaxrnn.claims.evidence import Check
from jaxrnn.experiments import RunConfig, each, network, scores, train
from jaxrnn.tasks import Task
from jaxrnn.training import (
    FitConfig,
    FitResult,
    RunFolder,
    fit,
    holds_run,
    required,
    view,
    whole_sequences,
)

_SEQUENCES = 32  # test sequences over which a network's slope is averaged
_OTHER_SEEDS = 10_000  # the first of those on which rates are chosen
_CHOOSING = 3  # networks by which a rate is chosen


def trained(lab: Lab, label: str, config: RunConfig) -> FitResult:
    """Train an ensemble, or go on with it, or read it if it is finished.

    Args:
      lab: of the claim; without a folder nothing is kept.
      label: name of the run's folder; claims that train the same share it, and no other run has it.
      config: what to train.

    Raises:
      MissingDataError: a file of the task is not there.
      InputError: the folder holds a run with other settings.
      Stopped: the process was asked to end; what was done is kept.
    """
    if lab.folder is None:
        task = config.load_task()
        make, variants = network(config.network, task), config.network.variants
        return fit(make, task, config.fit, variants=variants, title=label)
    out = lab.folder / label
    return train(config, out, resume=holds_run(out))


def fitted(
    lab: Lab, label: str, make: Callable[[nnx.Rngs], Any], task: Task, config: FitConfig
) -> FitResult:
    """Train an ensemble of networks that no `NetworkConfig` describes; otherwise as `trained`."""
    if lab.folder is None:
        return fit(make, task, config, title=label)
    out = lab.folder / label
    settings = {"network": label, "task": task.name, "fit": dataclasses.asdict(config)}
    folder = RunFolder(out, settings, resume=holds_run(out))
    return fit(make, task, config, folder=folder, title=label)


def at_best_rate(
    lab: Lab, label: str, config: RunConfig, rates: tuple[float, ...]
) -> tuple[RunConfig, Check]:
    """Choose the learning rate by validation, on other seeds than those that are tested.

    Args:
      lab: of the claim.
      label: name of the networks; the runs that choose lie beside theirs.
      config: what will be trained.
      rates: the grid, in order.

    Returns:
      `config` at the best rate, and whether that lies inside the grid.
    """
    search = dataclasses.replace(
        config.fit, learning_rate=rates, seeds=_CHOOSING, seed=_OTHER_SEEDS
    )
    found = trained(lab, f"{label}-rates", dataclasses.replace(config, fit=search))
    means = [score.mean for score in scores(found.members, found.valid_score)]
    worst = -np.inf if found.higher_is_better else np.inf
    means = np.nan_to_num(means, nan=worst)
    best = int(np.argmax(means) if found.higher_is_better else np.argmin(means))
    inside = Check(
        "rate grid",
        f"the best rate of {label} lies inside the grid",
        0 < best < len(rates) - 1,
        f"{rates[best]:g} of {', '.join(f'{rate:g}' for rate in rates)}",
    )
    chosen = dataclasses.replace(config.fit, learning_rate=rates[best])
    return dataclasses.replace(config, fit=chosen), inside


def gradient_flows(config: RunConfig, result: FitResult) -> list[GradientFlow]:
    """Return the gradient flow of every trained network, by its own loss on test sequences."""
    task = config.load_task()
    batch = whole_sequences(task.test, _SEQUENCES)
    views = [required(view(model, task, batch)) for model in each(result.models)]
    return [gradient_flow(seen.cell, seen.xs, seen.loss) for seen in views]
