"""What a task is: where batches come from, what is asked, and two numbers that give a result its meaning.

A score of 0.3 says nothing before one knows what an answer reaches that ignores the inputs (`chance`) and
what counts as having learnt it (`solved`), so a task owns both, beside its loss and its metric.

A task asks for one answer a sequence or for one a step, and a mask says which answers count: those of
padding do not, nor those of steps at which nothing is asked. A loss or a metric is a mean over what counts.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from jaxrnn import checks
from jaxrnn.tasks.objectives import LOSSES, Metric
from jaxrnn.typing import Key


class Batch(NamedTuple):
    """Some sequences and what is asked about them; ``*A`` is [B] or [T, B], by what the task asks for.

    Attributes:
      inputs: numbers [T, B, F], or tokens [T, B].
      targets: classes [*A], or numbers [*A, Y].
      mask: which answers count [*A].
      lengths: valid steps of each sequence [B]; None where all are whole.
      fresh: whether the carry begins anew here (bool, []); False in the middle of a text that is read on.
    """

    inputs: Any
    targets: Any
    mask: Any
    lengths: Any = None
    fresh: Any = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Sequences, a question about them, and how answers are judged.

    Attributes:
      name: how the command line calls it.
      source: what the data are, and where they or the task come from.
      train: batches to learn from.
      valid: batches to watch while learning.
      test: batches for the one number at the end.
      answers: one answer a "sequence" or one a "step".
      outputs: numbers Y that a network gives for an answer: classes, or what is to be predicted.
      in_features: numbers F of a step's input; 0 where steps are tokens.
      tokens: size V of the vocabulary of the inputs; 0 where steps are numbers.
      loss: "cross_entropy", "mse" or "bernoulli".
      metric: the score.
      chance: the test score of an answer that ignores the inputs.
      forecast: whether answers are inputs yet to come, which a network that reads backwards would see.
      solved: the score from which the task counts as solved; None where there is no such line.
    """

    name: str
    source: str
    train: Any
    valid: Any
    test: Any
    answers: Literal["sequence", "step"]
    outputs: int
    in_features: int = 0
    tokens: int = 0
    loss: str
    metric: Metric
    chance: float
    solved: float | None
    forecast: bool = False

    def __post_init__(self):
        """Refuse a loss that nobody knows, and inputs that are neither numbers nor tokens."""
        checks.choice("loss", self.loss, LOSSES)
        if (self.in_features > 0) == (self.tokens > 0):
            got = f"in_features={self.in_features} and tokens={self.tokens}"
            checks.refuse(f"{self.name}", got, "one of the two above 0")
        for part in ("train", "valid", "test"):
            getattr(self, part).check(f"{self.name}: {part}", self)

    def predict(self, model: Any, batch: Batch, carry: Any, key: Key | None) -> tuple[Any, Any]:
        """Return a model's carry, where the task hands one on, and its answers [*A, Y].

        Args:
          model: maps inputs to answers.
          batch: what to answer.
          carry: what the call before returned; None before the first.
          key: draws the dropout masks; None drops nothing.
        """
        del carry
        return None, model(batch.inputs, seq_lengths=batch.lengths, dropout_key=key)

    def losses(self, predictions: Any, batch: Batch) -> Array:
        """Return the loss of every answer [*A], 0 where none counts."""
        each = LOSSES[self.loss](predictions, batch.targets)
        return jnp.where(batch.mask, each, jnp.zeros_like(each))

    def mean_loss(self, predictions: Any, batch: Batch) -> Array:
        """Return the mean loss over the answers that count."""
        each = self.losses(predictions, batch)
        return each.sum() / jnp.maximum(batch.mask.sum(), 1).astype(each.dtype)
