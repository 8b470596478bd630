"""What a task is: data, loss, metric, and the two numbers that give a result its meaning.

An accuracy of 0.3 says nothing before one knows what guessing reaches (`chance`) and what counts as
having learnt it (`solved`), so a task owns both, beside its loss and its metric.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Shaped

from jaxrnn import checks


@dataclasses.dataclass(frozen=True)
class Split:
    """Labelled sequences.

    Attributes:
      inputs: [N, T, F], N examples, in order of time along T.
      labels: class numbers [N].
    """

    inputs: Float[np.ndarray, "N T F"]
    labels: Int[np.ndarray, "N"]

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class SequenceClassification:
    """Name the class of a whole sequence, after its last step.

    Attributes:
      name: how the command line calls it.
      train: examples to learn from.
      valid: examples to watch while learning.
      test: examples for the one number at the end.
      classes: number of classes C.
      solved: the accuracy from which the task counts as solved.
      source: what the data are and where they come from.
    """

    name: str
    train: Split
    valid: Split
    test: Split
    classes: int
    solved: float
    source: str

    def __post_init__(self):
        """Refuse empty parts and labels that are not class numbers."""
        for name in ("train", "valid", "test"):
            _check_part(f"{self.name}: {name}", getattr(self, name), self.classes)
            if getattr(self, name).inputs.shape[1:] != self.train.inputs.shape[1:]:
                got = f"sequences of {list(getattr(self, name).inputs.shape[1:])}"
                expected = f"{list(self.train.inputs.shape[1:])} [T, F], as in train"
                checks.refuse(f"{self.name}: {name}", got, expected)

    @property
    def length(self) -> int:
        """Steps T of a sequence."""
        return self.train.inputs.shape[1]

    @property
    def in_features(self) -> int:
        """Features F of a step."""
        return self.train.inputs.shape[2]

    @property
    def chance(self) -> float:
        """Test accuracy of always naming the commonest class of the training data."""
        return float(np.mean(self.test.labels == np.bincount(self.train.labels).argmax()))

    def loss(self, logits: Float[Array, "*B C"], labels: Int[Array, "*B"]) -> Float[Array, "*B"]:
        """Cross-entropy of each example, in nats."""
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    def correct(
        self, logits: Float[Array, "*B C"], labels: Int[Array, "*B"]
    ) -> Shaped[Array, "*B"]:
        """Tell which examples are named rightly; their mean is the accuracy."""
        return jnp.argmax(logits, axis=-1) == labels


def _check_part(name: str, part: Split, classes: int) -> None:
    """Refuse a split that is empty, misshapen, not finite, or whose labels are no class numbers."""
    if part.inputs.ndim != 3:
        checks.refuse(f"{name} inputs", checks.describe(part.inputs), "three axes, [N, T, F]")
    if len(part.inputs) != len(part.labels):
        got = f"{len(part.inputs)} sequences and {len(part.labels)} labels"
        checks.refuse(name, got, "as many of the one as of the other")
    if len(part) == 0:
        checks.refuse(name, "no examples", "at least one")
    checks.finite(f"{name} inputs", part.inputs)
    if not np.issubdtype(part.labels.dtype, np.integer):
        checks.refuse(f"{name} labels", checks.describe(part.labels), "integers, [N]")
    low, high = int(part.labels.min()), int(part.labels.max())
    if low < 0 or high >= classes:
        expected = f"class numbers from 0 to {classes - 1}"
        checks.refuse(f"{name} labels", f"values from {low} to {high}", expected)
