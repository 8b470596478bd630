"""Training runs of an experiment: into the claim's folder, from where they are resumed after a kill."""

from __future__ import annotations

from jaxrnn.claims.claim import Lab
from jaxrnn.experiments import RunConfig, network, train
from jaxrnn.training import FitResult, fit, holds_run


def trained(lab: Lab, label: str, config: RunConfig) -> FitResult:
    """Train an ensemble, or go on with it, or read it if it is finished.

    Args:
      lab: of the claim; without a folder nothing is kept.
      label: name of the run's folder, which no other run of this claim has.
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
