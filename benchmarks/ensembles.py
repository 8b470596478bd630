"""Many networks at once against one after another: what an ensemble costs, compilation counted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.timing import quartiles
from jaxrnn.experiments import NetworkConfig, network
from jaxrnn.tasks import load_task
from jaxrnn.training import FitConfig, fit

_NETWORKS, _ALONE = 32, 5
_NETWORK = NetworkConfig("lstm", 16)


def ensembles(cores: int, steps: int) -> Iterator[dict[str, Any]]:
    """Time the training of 32 seeds of a small LSTM together, and of a few of them each alone."""
    together = _seconds(FitConfig(steps=steps, every=steps, seeds=_NETWORKS))
    alone = [
        _seconds(FitConfig(steps=steps, every=steps, seeds=1, seed=seed)) for seed in range(_ALONE)
    ]
    low, middle, high = quartiles(np.array(alone))
    yield {
        "cores": cores,
        "networks": _NETWORKS,
        "steps": steps,
        "together": together,
        "alone": [low, middle, high],
        "ratio": _NETWORKS * middle / together,
    }


def _seconds(config: FitConfig) -> float:
    """Return the time of one call of `fit`, which compiles its own program."""
    task = load_task("adding", length=50)
    began = time.perf_counter()
    fit(network(_NETWORK, task), task, config)
    return time.perf_counter() - began
