"""How it is measured: rivals take turns in one process, so that what disturbs one disturbs all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np


def take_turns(
    runs: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 1.5,
    turns: tuple[int, int] = (7, 60),
) -> dict[str, np.ndarray]:
    """Return seconds per run for each rival, all of the same length; run i of one follows run i of another.

    Args:
      runs: each a call that returns when its work is done; it is run once untimed.
      seconds: how long to go on, about.
      turns: the fewest and the most turns.
    """
    began = time.perf_counter()
    for run in runs.values():
        run()
    once = time.perf_counter() - began
    count = int(np.clip(seconds / once, *turns))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(count):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    return {name: np.array(values) for name, values in times.items()}


def quartiles(values: np.ndarray) -> list[float]:
    """Return the 25th, 50th and 75th percentile."""
    return [float(q) for q in np.percentile(values, [25, 50, 75])]
