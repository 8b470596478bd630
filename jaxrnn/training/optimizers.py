"""Optimisers, schedules and clipping, by optax; their numbers may differ between networks of an ensemble.

The gradient is clipped first, by value and then by norm, and what is left goes to the optimiser. Everything
optax makes of a rate is arithmetic, so a rate may be a traced number: one program trains all networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import optax

Schedule = Callable[[Any], Any]

OPTIMIZERS: dict[str, Callable[[Schedule, Any], optax.GradientTransformation]] = {
    "adam": lambda rate, config: optax.adam(rate),
    "adamw": lambda rate, config: optax.adamw(rate, weight_decay=config.weight_decay),
    "nadam": lambda rate, config: optax.nadam(rate),
    "lion": lambda rate, config: optax.lion(rate, weight_decay=config.weight_decay),
    "rmsprop": lambda rate, config: optax.rmsprop(rate, momentum=config.momentum),
    "adagrad": lambda rate, config: optax.adagrad(rate),
    "sgd": lambda rate, config: optax.sgd(rate, momentum=config.momentum or None),
}
"""From a schedule and the settings to an optimiser."""

SCHEDULES: dict[str, Callable[[int], Schedule]] = {
    "cosine": lambda steps: optax.cosine_decay_schedule(1.0, steps),
    "linear": lambda steps: optax.linear_schedule(1.0, 0.0, steps),
    "constant": lambda steps: optax.constant_schedule(1.0),
}
"""From a number of steps to the share of the peak rate at each of them."""


def make_optimizer(config: Any, values: Mapping[str, Any]) -> optax.GradientTransformation:
    """Return the optimiser of one network.

    Args:
      config: a `FitConfig`.
      values: this network's own numbers by name: learning_rate, and clip_value and clip_norm where the
        gradient is clipped.
    """
    share = SCHEDULES[config.schedule](config.steps - config.warmup)
    if config.warmup:
        rise = optax.linear_schedule(0.0, 1.0, config.warmup)
        share = optax.join_schedules([rise, share], [config.warmup])
    clips = {"clip_value": optax.clip, "clip_norm": optax.clip_by_global_norm}
    return optax.chain(
        *(clip(values[name]) for name, clip in clips.items() if name in values),
        OPTIMIZERS[config.optimizer](lambda step: values["learning_rate"] * share(step), config),
    )
