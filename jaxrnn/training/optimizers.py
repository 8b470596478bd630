"""Optimisers, schedules and clipping, by optax; their numbers may differ between networks of an ensemble.

The gradient is clipped first, by value and then by norm, and what is left goes to the optimiser. Everything
optax makes of a rate is arithmetic, so a rate may be a traced number: one program trains all networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import optax

Schedule = Callable[[Any], Any]

Numbers = Mapping[str, Any]
"""One network's own numbers, by the setting's name; a setting that is not in use is absent."""

OPTIMIZERS: dict[str, Callable[[Schedule, Numbers], optax.GradientTransformation]] = {
    "adam": lambda rate, own: optax.adam(rate),
    "adamw": lambda rate, own: optax.adamw(rate, weight_decay=own.get("weight_decay", 0.0)),
    "nadam": lambda rate, own: optax.nadam(rate),
    "lion": lambda rate, own: optax.lion(rate, weight_decay=own.get("weight_decay", 0.0)),
    "rmsprop": lambda rate, own: optax.rmsprop(rate, momentum=own.get("momentum")),
    "adagrad": lambda rate, own: optax.adagrad(rate),
    "sgd": lambda rate, own: optax.sgd(rate, momentum=own.get("momentum")),
}
"""From a schedule and a network's own numbers to an optimiser."""

SCHEDULES: dict[str, Callable[[int], Schedule]] = {
    "cosine": lambda steps: optax.cosine_decay_schedule(1.0, steps),
    "linear": lambda steps: optax.linear_schedule(1.0, 0.0, steps),
    "constant": lambda steps: optax.constant_schedule(1.0),
}
"""From a number of steps to the share of the peak rate at each of them."""


def make_optimizer(config: Any, own: Numbers) -> optax.GradientTransformation:
    """Return the optimiser of one network.

    Args:
      config: a `FitConfig`.
      own: this network's own numbers: learning_rate, and what else is in use of clip_value, clip_norm,
        momentum and weight_decay.
    """
    share = SCHEDULES[config.schedule](config.steps - config.warmup)
    if config.warmup:
        rise = optax.linear_schedule(0.0, 1.0, config.warmup)
        share = optax.join_schedules([rise, share], [config.warmup])
    clips = {"clip_value": optax.clip, "clip_norm": optax.clip_by_global_norm}
    return optax.chain(
        *(clip(own[name]) for name, clip in clips.items() if name in own),
        OPTIMIZERS[config.optimizer](lambda step: own["learning_rate"] * share(step), own),
    )
