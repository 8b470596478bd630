"""What an ensemble's training came to: means over seeds with intervals, for each combination of settings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import scipy.stats

from jaxrnn.annotations import checked
from jaxrnn.training import FitResult


@dataclasses.dataclass(frozen=True)
class Score:
    """The test scores of networks that differ in their seeds alone.

    Attributes:
      settings: the values of the swept hyperparameters.
      values: one score a seed.
    """

    settings: dict[str, Any]
    values: np.ndarray

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.values))

    @property
    def margin(self) -> float:
        """Half the 95 % interval of the mean by Student's t; NaN for one seed."""
        count = len(self.values)
        if count < 2:
            return math.nan
        error = np.std(self.values, ddof=1) / math.sqrt(count)
        return float(scipy.stats.t.ppf(0.975, count - 1) * error)

    @property
    def text(self) -> str:
        """The mean with its interval, as words."""
        spread = "" if math.isnan(self.margin) else f" ± {self.margin:.2g}"
        return f"{self.mean:.4g}{spread}"


@checked
def scores(members: Sequence[dict[str, Any]], values: Iterable[float]) -> list[Score]:
    """Return the scores of an ensemble's members, one for each combination of settings."""
    groups: dict[tuple[Any, ...], list[float]] = {}
    for member, score in zip(members, values, strict=True):
        settings = tuple((name, value) for name, value in member.items() if name != "seed")
        groups.setdefault(settings, []).append(float(score))
    return [Score(dict(settings), np.array(values)) for settings, values in groups.items()]


@checked
def training_summary(result: FitResult) -> str:
    """Say in a few lines what training came to."""
    lines = []
    for score in scores(result.members, result.test_score):
        each = "mean and 95 % interval over seeds" if len(score.values) > 1 else "one seed"
        about = ", ".join(f"{name} {value:g}" for name, value in score.settings.items())
        lines.append(f"test {result.metric:<11}{score.text}, {each}{about and f' ({about})'}")
    solved = "" if result.solved is None else f"; solved from {result.solved:g}"
    if result.solved is not None:
        lines.append(f"to be solved    {result.time_to().text}, by validation {result.metric}")
    lost = sum(result.history[-1]["nonfinite_steps"])
    lines += [
        f"by chance       {result.chance:.4g}{solved}",
        f"parameters      {result.parameters:,} a network, {len(result.members)} networks",
        f"time            {1e3 * result.seconds_per_step:.1f} ms a step of all networks, median",
        f"waiting         {result.waiting:.1%} of the training's time, for data or for the host",
        f"memory          {result.memory / 2**20:,.1f} MiB on a device at most",
        f"compilation     {result.compile_seconds:.1f} s",
    ]
    if lost:
        lines.append(f"not finite      {lost} steps had a loss or gradient that was not finite")
    return "\n".join(lines)
