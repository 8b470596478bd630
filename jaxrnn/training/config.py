"""How to train: every setting of `fit`, its check, and the ensemble that the settings span.

A setting that takes several values is trained with each of them: with ``seeds=5`` and ``learning_rate=(1e-3,
1e-2)`` ten networks train at once, and seed s starts from the same weights and sees the same data at both
rates. So two rates are compared on what differs, not on luck.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

from jaxrnn import checks
from jaxrnn.training.optimizers import OPTIMIZERS, SCHEDULES
from jaxrnn.training.penalties import Penalties

Values = float | tuple[float, ...]
"""One value for all networks, or several, each of which is tried."""

_SWEPT = ("learning_rate", "clip_norm", "clip_value")
_LARGEST = 2**31 - 1  # steps and seeds are counted in int32
_MOST_NETWORKS = 2**20


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How to train.

    Attributes:
      steps: optimiser steps.
      every: steps between two reports; each one evaluates, writes a line of metrics and a checkpoint.
      batch_size: sequences a step, for each network.
      optimizer: adam, adamw, nadam, lion, rmsprop, adagrad or sgd, by optax.
      learning_rate: peak learning rate; several are tried side by side.
      schedule: cosine (falls to 0), linear (falls to 0) or constant.
      warmup: steps through which the rate rises from 0.
      momentum: of sgd and rmsprop; for the others the decay of the mean gradient is optax's own.
      weight_decay: of adamw and lion.
      clip_norm: the gradient is scaled down to this norm where it is larger (Pascanu et al. 2013); several
        are tried side by side; None scales nothing.
      clip_value: entries of the gradient are cut off at ± this value (Mikolov 2012), before its norm is
        taken; several are tried side by side; None cuts nothing.
      weight_noise: standard deviation of normal noise on all weights, new at every step (Graves 2011).
      penalties: what is added to the loss.
      skip_nonfinite: leave a network as it is where its loss or gradient is not finite; counted either way.
      patience: stop when no network has beaten its best validation score for this many reports; 0 never.
      select: test the last weights, or the best ones by validation score: "last" or "best".
      seeds: how many networks to train at once for each combination of settings.
      seed: the first seed; the others follow it.
    """

    steps: int = 1_000
    every: int = 100
    batch_size: int = 32
    optimizer: str = "adam"
    learning_rate: Values = 3e-3
    schedule: str = "cosine"
    warmup: int = 0
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: Values | None = 1.0
    clip_value: Values | None = None
    weight_noise: float = 0.0
    penalties: Penalties = dataclasses.field(default_factory=Penalties)
    skip_nonfinite: bool = False
    patience: int = 0
    select: str = "last"
    seeds: int = 5
    seed: int = 0

    def check(self) -> None:
        """Refuse settings with which nothing can be trained."""
        for field in ("steps", "every", "batch_size", "seeds"):
            checks.count(field, getattr(self, field))
            most = _MOST_NETWORKS if field == "seeds" else _LARGEST
            checks.within(field, getattr(self, field), 1, most)
        for field in ("warmup", "patience", "seed"):
            checks.within(field, getattr(self, field), 0, _LARGEST)
        checks.within("seed", self.seed, 0, _LARGEST - self.seeds, ", for the seeds follow it")
        for field, values in self.tried.items():
            if not values:
                checks.refuse(field, "no value", "at least one")
            for value in values:
                checks.positive_float32(field, value)
            if len(set(values)) < len(values):
                checks.refuse(field, repr(values), "each value once")
        networks = self.seeds * math.prod(map(len, self.tried.values()))
        if networks > _MOST_NETWORKS:
            checks.refuse("seeds", f"{networks} networks", f"at most {_MOST_NETWORKS} in all")
        checks.rate("momentum", self.momentum)
        for field in ("weight_decay", "weight_noise"):
            checks.not_negative(field, getattr(self, field))
            if getattr(self, field):
                checks.positive_float32(field, getattr(self, field))
        self.penalties.check()
        checks.choice("optimizer", self.optimizer, OPTIMIZERS)
        for field, takers in (
            ("momentum", ("sgd", "rmsprop")),
            ("weight_decay", ("adamw", "lion")),
        ):
            if getattr(self, field) and self.optimizer not in takers:
                expected = f"0, or one of the optimizers {', '.join(takers)}"
                checks.refuse(field, getattr(self, field), expected)
        checks.choice("schedule", self.schedule, SCHEDULES)
        checks.choice("select", self.select, ("last", "best"))
        if self.warmup >= self.steps:
            checks.refuse("warmup", self.warmup, f"fewer than the {self.steps} steps")

    @property
    def members(self) -> list[dict[str, Any]]:
        """What distinguishes the networks: the seed, and the settings of which several are tried."""
        swept = {name: values for name, values in self.tried.items() if len(values) > 1}
        axes = [*swept.values(), range(self.seed, self.seed + self.seeds)]
        names = [*swept, "seed"]
        return [dict(zip(names, values, strict=True)) for values in itertools.product(*axes)]

    @property
    def by_member(self) -> dict[str, list[float]]:
        """The value of each setting that may be swept, one a network."""
        return {
            name: [member.get(name, values[0]) for member in self.members]
            for name, values in self.tried.items()
        }

    @property
    def tried(self) -> dict[str, tuple[float, ...]]:
        """The values that are tried of each setting that may be swept, where it is set."""
        chosen = {name: getattr(self, name) for name in _SWEPT}
        return {
            name: tuple(value) if isinstance(value, (tuple, list)) else (value,)
            for name, value in chosen.items()
            if value is not None
        }
