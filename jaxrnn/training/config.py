"""How to train: every setting of `fit`, its check, and the ensemble that the settings span.

A setting that takes several values is trained with each of them: with ``seeds=5`` and ``learning_rate=(1e-3,
1e-2)`` ten networks train at once, and seed s starts from the same weights and sees the same data at both
rates. So two rates are compared on what differs, not on luck. Several such settings are tried in all
combinations, or, with ``combine="paired"``, the first values together, then the second ones: so a random
search is one ensemble.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from jaxrnn import checks
from jaxrnn.training.optimizers import OPTIMIZERS, SCHEDULES
from jaxrnn.training.penalties import Penalties, Values, several

# What may be tried with several values, and how each value is checked. All are plain factors in what is
# compiled, so that one program serves every value.
_SWEPT: dict[str, Callable[[str, Any], None]] = {
    "learning_rate": checks.positive_float32,
    "clip_norm": checks.positive_float32,
    "clip_value": checks.positive_float32,
    "momentum": checks.rate,
    "weight_decay": checks.not_negative_float32,
    "weight_noise": checks.not_negative_float32,
}
Variants = Mapping[str, tuple[float, ...]]
"""Values of settings of the network, of each of which several are tried."""

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
      momentum: of sgd and rmsprop; for the others the decay of the mean gradient is optax's own; several are
        tried side by side.
      weight_decay: of adamw and lion; several are tried side by side.
      clip_norm: the gradient is scaled down to this norm where it is larger (Pascanu et al. 2013); several
        are tried side by side; None scales nothing.
      clip_value: entries of the gradient are cut off at ± this value (Mikolov 2012), before its norm is
        taken; several are tried side by side; None cuts nothing.
      weight_noise: standard deviation of normal noise on all weights, new at every step (Graves 2011);
        several are tried side by side.
      penalties: what is added to the loss.
      combine: how settings of which several values are tried go together: "product", every value with every
        other, or "paired", the first ones together, the second ones, and so on.
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
    momentum: Values = 0.0
    weight_decay: Values = 0.0
    clip_norm: Values | None = 1.0
    clip_value: Values | None = None
    weight_noise: Values = 0.0
    penalties: Penalties = dataclasses.field(default_factory=Penalties)
    combine: str = "product"
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
        checks.choice("combine", self.combine, ("product", "paired"))
        for field, check in _SWEPT.items():
            check_values(field, getattr(self, field), check, once=self.combine == "product")
        self.penalties.check()
        checks.choice("optimizer", self.optimizer, OPTIMIZERS)
        for field, takers in (
            ("momentum", ("sgd", "rmsprop")),
            ("weight_decay", ("adamw", "lion")),
        ):
            if field in self.tried and self.optimizer not in takers:
                expected = f"0, or one of the optimizers {', '.join(takers)}"
                checks.refuse(field, getattr(self, field), expected)
        checks.choice("schedule", self.schedule, SCHEDULES)
        checks.choice("select", self.select, ("last", "best"))
        if self.warmup >= self.steps:
            checks.refuse("warmup", self.warmup, f"fewer than the {self.steps} steps")
        self.ensemble()

    @property
    def tried(self) -> dict[str, tuple[float, ...]]:
        """The values that are tried of each setting that may have several, where it is in use."""
        given = {name: several(getattr(self, name)) for name in _SWEPT}
        return {name: values for name, values in given.items() if any(values)} | (
            self.penalties.wanted
        )

    def ensemble(self, variants: Variants = MappingProxyType({})) -> Ensemble:
        """Return the networks that are trained at once.

        Args:
          variants: values of settings of the network, of each of which several are tried.

        Raises:
          InputError: settings of different numbers of values that are to be paired, or too many networks.
        """
        tried = {**self.tried, **variants}
        swept = {name: values for name, values in tried.items() if len(values) > 1}
        if self.combine == "paired":
            counts = {name: len(values) for name, values in swept.items()}
            if len(set(counts.values())) > 1:
                got = ", ".join(f"{count} of {name}" for name, count in counts.items())
                checks.refuse("combine", f"'paired', with {got}", "equally many values of each")
            settings = list(zip(*swept.values(), strict=True)) or [()]
            networks = self.seeds * len(settings)
        else:
            settings = itertools.product(*swept.values())
            networks = self.seeds * math.prod(map(len, swept.values()))
        if networks > _MOST_NETWORKS:
            checks.refuse("seeds", f"{networks} networks", f"at most {_MOST_NETWORKS} in all")
        members = [
            {**dict(zip(swept, values, strict=True)), "seed": seed}
            for values in settings
            for seed in range(self.seed, self.seed + self.seeds)
        ]
        return Ensemble(
            members,
            {name: [m.get(name, values[0]) for m in members] for name, values in tried.items()},
        )


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """The networks that are trained at once.

    Attributes:
      members: what distinguishes each: its seed, and the settings of which several values are tried.
      values: of each setting that may have several values and is in use, the value of each network.
    """

    members: list[dict[str, Any]]
    values: dict[str, list[float]]

    def __len__(self) -> int:
        """Return the number of networks."""
        return len(self.members)


def check_values(field: str, given: Any, check: Callable[[str, Any], None], *, once: bool) -> None:
    """Check every value of a setting that may have several.

    Raises:
      InputError: no value, one that `check` refuses, or, where each must stand once, one twice.
    """
    values = several(given)
    if not values and given is not None:
        checks.refuse(field, "no value", "at least one")
    for value in values:
        check(field, value)
    if once and len(set(values)) < len(values):
        checks.refuse(field, repr(values), "each value once")
