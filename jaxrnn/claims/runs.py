"""Training runs of an experiment: into the battery's folder, from where they are resumed after a kill."""

from __future__ import annotations

from jaxrnn.analysis import GradientFlow, gradient_flow
from jaxrnn.claims.claim import Lab
from jaxrnn.experiments import RunConfig, each, network, train
from jaxrnn.training import FitResult, fit, holds_run, required, view, whole_sequences

_SEQUENCES = 32  # test sequences over which a network's slope is averaged


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
        return fit(network(config.network, task), task, config.fit, title=label)
    out = lab.folder / label
    return train(config, out, resume=holds_run(out))


def gradient_flows(config: RunConfig, result: FitResult) -> list[GradientFlow]:
    """Return the gradient flow of every trained network, by its own loss on test sequences."""
    task = config.load_task()
    batch = whole_sequences(task.test, _SEQUENCES)
    views = [required(view(model, task, batch)) for model in each(result.models)]
    return [gradient_flow(seen.cell, seen.xs, seen.loss) for seen in views]
