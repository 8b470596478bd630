"""Losses of one answer, and metrics over many.

    cross_entropy    −log softmax(z)_class                       nats
    mse              mean over Y of (z − target)²                the target's units, squared
    bernoulli        −Σ_Y log p(target_y), p = σ(z)              nats; for binary vectors, as notes of a chord

A metric over a whole split is not the mean of its batches' metrics, so a `Metric` says what to count in a
batch and what to make of the sums.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxrnn.annotations import checked
from jaxrnn.typing import ArrayLike

Count = Callable[[Any, Any, Any], Any]
"""``(answers [*A, Y], targets, mask [*A]) -> sums [K]``."""


def _cross_entropy(
    logits: Float[ArrayLike, "*A C"], classes: Int[ArrayLike, "*A"]
) -> Float[Any, "*A"]:
    return optax.softmax_cross_entropy_with_integer_labels(logits, classes)


def _mse(values: Float[ArrayLike, "*A Y"], targets: Float[ArrayLike, "*A Y"]) -> Float[Any, "*A"]:
    return jnp.mean((values - targets) ** 2, axis=-1)


def _bernoulli(
    logits: Float[ArrayLike, "*A Y"], targets: Float[ArrayLike, "*A Y"]
) -> Float[Any, "*A"]:
    return optax.sigmoid_binary_cross_entropy(logits, targets).sum(axis=-1)


LOSSES: dict[str, Callable[..., Any]] = {
    "cross_entropy": _cross_entropy,
    "mse": _mse,
    "bernoulli": _bernoulli,
}
"""From answers [*A, Y] and targets to the loss of each answer [*A]."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A score over all answers of a split.

    Attributes:
      name: of the score, as in ``valid_<name>``.
      higher_is_better: whether a larger score is a better one.
      count: what to sum up over batches.
      value: the score that the sums make.
    """

    name: str
    higher_is_better: bool
    count: Count
    value: Callable[[np.ndarray], float]

    def better(self, a: Any, b: Any) -> Any:
        """Tell whether score `a` is better than score `b`; NaN is never better."""
        return a > b if self.higher_is_better else a < b

    @property
    def worst(self) -> float:
        """The score that every other one beats."""
        return -math.inf if self.higher_is_better else math.inf


def _counted(values: Any, mask: Any) -> Array:
    """Return the sum of what counts and how many those are, [2]."""
    values = jnp.where(mask, values, jnp.zeros_like(values)).astype(jnp.float32)
    return jnp.stack([values.sum(), mask.sum().astype(jnp.float32)])


def _mean(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1])


def _exp(x: float) -> float:
    return math.inf if x > 700 else math.exp(x)


def _of_loss(name: str) -> Count:
    return lambda answers, targets, mask: _counted(LOSSES[name](answers, targets), mask)


def _right(answers: Any, targets: Any) -> Any:
    return jnp.argmax(answers, axis=-1) == targets


def _right_sets(logits: Any, targets: Any) -> Any:
    return jnp.all((logits > 0) == (targets > 0), axis=-1)


def _all_right(right: Callable[[Any, Any], Any]) -> Count:
    """Count the sequences all of whose answers are right."""

    def count(answers: Any, targets: Any, mask: Any) -> Any:
        whole = jnp.all(right(answers, targets) | ~mask, axis=0)
        return _counted(whole, jnp.any(mask, axis=0))

    return count


accuracy = Metric("accuracy", True, lambda z, y, mask: _counted(_right(z, y), mask), _mean)
"""Share of the answers whose largest logit is that of the target."""

whole = Metric("whole", True, _all_right(_right), _mean)
"""Share of the sequences all of whose answers are right."""

exact = Metric("exact", True, _all_right(_right_sets), _mean)
"""Share of the sequences all of whose binary vectors are right, each entry by the sign of its logit."""

mse = Metric("mse", False, _of_loss("mse"), _mean)
"""Mean squared error."""

rmse = Metric("rmse", False, _of_loss("mse"), lambda sums: math.sqrt(_mean(sums)))
"""Root of the mean squared error."""

nll = Metric("nll", False, _of_loss("bernoulli"), _mean)
"""Mean −log p of a binary vector, nats."""

bits = Metric("bits", False, _of_loss("cross_entropy"), lambda sums: _mean(sums) / math.log(2))
"""Mean −log₂ p(target): bits a character."""

nats = Metric("nats", False, _of_loss("cross_entropy"), _mean)
"""Mean −log p(target)."""

perplexity = Metric("perplexity", False, _of_loss("cross_entropy"), lambda sums: _exp(_mean(sums)))
"""exp of the mean −log p(target): of how many equally likely answers the truth was one."""


@checked
def entity_f1(labels: Sequence[str]) -> Metric:
    """Return the F1 of whole entities: those found with the right kind, beginning and end.

    Args:
      labels: "O" first, then B-… and I-… of each kind. An I that follows no tag of its kind begins an entity.
    """
    names = sorted({label[2:] for label in labels if label != "O"})
    kinds = np.array([0 if label == "O" else 1 + names.index(label[2:]) for label in labels])
    begins = np.array([label.startswith("B-") for label in labels])

    def entities(tags: Any) -> tuple[Any, Any, Any]:
        kind, steps = jnp.asarray(kinds)[tags], jnp.arange(len(tags))[:, None]
        before = jnp.pad(kind, ((1, 0), (0, 0)))[:-1]
        goes_on = (kind > 0) & (before == kind) & ~jnp.asarray(begins)[tags]
        last = ~jnp.pad(goes_on, ((0, 1), (0, 0)))[1:]
        end = jax.lax.cummin(jnp.where(last, steps, len(tags)), axis=0, reverse=True)
        return kind, (kind > 0) & ~goes_on, end

    def count(answers: Any, targets: Any, mask: Any) -> Any:
        found, begun, closed = entities(jnp.where(mask, jnp.argmax(answers, axis=-1), 0))
        true, begin, close = entities(jnp.where(mask, targets, 0))
        same = begun & begin & (found == true) & (closed == close)
        return jnp.stack([each.sum() for each in (same, begun, begin)]).astype(jnp.float32)

    def value(sums: np.ndarray) -> float:
        right, found, true = sums
        return float(2 * right / (found + true)) if found + true else 0.0

    return Metric("f1", True, count, value)
