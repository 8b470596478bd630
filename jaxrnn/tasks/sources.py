"""Where batches come from: examples that lie in memory, a sampler that makes them, or one long text.

Training never waits for data: examples lie on the device, and a batch is picked, or made, inside the compiled
step. What step i of a network sees depends on the network's key and on i alone. So a run needs no data
position but its number of steps, and a resumed one sees what it would have seen.

    Sampler     sequences made from a random key, new ones at every step: here
    Examples    sequences of one length, Buckets of many: `jaxrnn.tasks.examples`
    Text        one long row of tokens, read on from window to window: `jaxrnn.tasks.texts`
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import checks
from jaxrnn.tasks.base import Batch
from jaxrnn.typing import Key

_EVALUATION_BATCH = 512


class Stretch(NamedTuple):
    """Batches that follow each other in training and come from one part of the data.

    Attributes:
      part: index among a source's parts.
      first: index of the first batch in its part.
      batches: how many there are.
    """

    part: int
    first: int
    batches: int


class Source(abc.ABC):
    """What gives batches, for training and for evaluation."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of examples; for evaluation all of them are looked at, each once."""

    @abc.abstractmethod
    def steps(self, batch_size: int) -> int:
        """Return how many batches an epoch has."""

    @abc.abstractmethod
    def parts(self, batch_size: int) -> list[Any]:
        """Return the data, one tree of NumPy arrays for each shape that batches have."""

    def epoch(self, number: int, batch_size: int) -> list[Stretch]:
        """Return the order of the batches of an epoch: of one part, from its first to its last."""
        del number
        return [Stretch(0, 0, self.steps(batch_size))]

    def order(self, part: Any, key: Key) -> Any:
        """Return what `batch` needs to know of a part's order in an epoch of this key: nothing."""
        del part, key
        return ()

    @abc.abstractmethod
    def batch(self, part: Any, order: Any, index: Any, key: Key, batch_size: int) -> Batch:
        """Return batch `index` of a part; `key` is the step's own. Runs inside compiled code."""

    @abc.abstractmethod
    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Go through all examples once, in order, as evaluation does."""

    @abc.abstractmethod
    def check(self, name: str, task: Any) -> None:
        """Refuse data that do not fit the task; `name` says which they are."""

    def evaluation_size(self) -> int:
        """Return how many sequences to evaluate at once; the size of training's batches changes no score."""
        return min(_EVALUATION_BATCH, len(self))

    def take(self, count: int) -> Batch:
        """Return the first examples as one batch."""
        return next(self.batches(min(count, len(self))))


@dataclasses.dataclass(frozen=True)
class Sampler(Source):
    """Sequences made from a random key, on the device.

    Attributes:
      draw: ``(key, B) -> Batch``.
      examples: how many one evaluation looks at, always the same ones; an epoch of training has as many.
      seed: of the evaluation's sequences; training never draws from it.
    """

    draw: Callable[[Any, int], Batch]
    examples: int
    seed: int

    def __len__(self) -> int:
        return self.examples

    def check(self, name: str, task: Any) -> None:
        """Refuse a number of examples that is none."""
        checks.count(f"{name} examples", self.examples)

    def steps(self, batch_size: int) -> int:
        """Return how many batches make as many examples as an evaluation has."""
        return -(-self.examples // batch_size)

    def parts(self, batch_size: int) -> list[Any]:
        """Return nothing: there are no data."""
        del batch_size
        return [()]

    def batch(self, part: Any, order: Any, index: Any, key: Key, batch_size: int) -> Batch:
        """Draw a batch from the step's key."""
        return self.draw(key, batch_size)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Draw the evaluation's examples."""
        draw = jax.jit(self.draw, static_argnums=1)
        key = jax.random.key(self.seed)
        for i in range(self.steps(batch_size)):
            batch = draw(jax.random.fold_in(key, i), batch_size)
            inside = np.arange(i * batch_size, (i + 1) * batch_size) < self.examples
            yield batch._replace(mask=batch.mask & jnp.broadcast_to(inside, batch.mask.shape))


def check_range(name: str, numbers: np.ndarray, count: int, what: str) -> None:
    """Refuse numbers that are not whole, or not from 0 to `count` − 1; `what` says what they are."""
    if not np.issubdtype(numbers.dtype, np.integer):
        checks.refuse(name, checks.describe(numbers), f"integers, {what}")
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high >= count:
        checks.refuse(name, f"values from {low} to {high}", f"{what} from 0 to {count - 1}")
