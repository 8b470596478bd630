"""Examples that lie in memory: rectangular arrays, in groups where sequences differ in length.

An epoch shows each example once, in an order of its own; the last batch of a part is filled up with what
does not count. Sequences of many lengths are grouped by length, so that little is padding and few shapes are
compiled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.tasks.base import Batch
from jaxrnn.tasks.sources import Source, Stretch, check_range
from jaxrnn.typing import Key


@dataclasses.dataclass(frozen=True)
class Examples(Source):
    """Sequences of one length, or padded to one.

    Attributes:
      inputs: numbers [N, T, F], or tokens [N, T].
      targets: one answer a sequence, [N] or [N, Y], or one a step, [N, U] or [N, U, Y]; U is T, but where a
        sequence is answered by another one, as in translation.
      by_step: whether answers are one a step.
      lengths: valid steps of each sequence [N]; None where all are whole.
      mask: which answers count, [N] or [N, U]; None where all do.
    """

    inputs: np.ndarray
    targets: np.ndarray
    by_step: bool = False
    lengths: np.ndarray | None = None
    mask: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def check(self, name: str, task: Any) -> None:
        """Refuse arrays that are misshapen, empty or not finite, and classes or tokens out of range."""
        _check_shapes(name, self, task)
        checks.finite(f"{name} inputs", self.inputs)
        if task.tokens:
            check_range(f"{name} inputs", self.inputs, task.tokens, "tokens")
        if task.loss == "cross_entropy":
            check_range(f"{name} targets", self.targets, task.outputs, "class numbers")
        else:
            checks.finite(f"{name} targets", self.targets)

    def steps(self, batch_size: int) -> int:
        """Return how many batches an epoch has; the last one may be smaller."""
        return -(-len(self) // batch_size)

    def parts(self, batch_size: int) -> list[Any]:
        """Return the arrays."""
        del batch_size
        return [self._arrays]

    def order(self, part: Any, key: Key) -> Any:
        """Return the examples' order: a permutation."""
        return jax.random.permutation(key, len(part[0]))

    def batch(self, part: Any, order: Any, index: Any, key: Key, batch_size: int) -> Batch:
        """Return a batch; where the data end within it, its rest does not count."""
        del key
        places = index * batch_size + jnp.arange(batch_size)
        return _gather(part, order.at[places].get(mode="clip"), places < len(order))

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Go through the examples in order; the last batch is filled up with what does not count."""
        for start in range(0, len(self), batch_size):
            places = np.arange(start, start + batch_size)
            inside = places < len(self)
            yield _gather(self._arrays, np.minimum(places, len(self) - 1), inside)

    @property
    def _arrays(self) -> Any:
        answers = self.targets.shape[: 2 if self.by_step else 1]
        mask = np.ones(answers, bool) if self.mask is None else self.mask
        return (self.inputs, self.targets, self.lengths, mask)


def _check_shapes(name: str, part: Examples, task: Any) -> None:
    axes = "three axes, [N, T, F]" if task.in_features else "two axes, [N, T]"
    if part.inputs.ndim != (3 if task.in_features else 2):
        checks.refuse(f"{name} inputs", checks.describe(part.inputs), axes)
    if len(part.inputs) != len(part.targets):
        got = f"{len(part.inputs)} sequences and {len(part.targets)} targets"
        checks.refuse(name, got, "as many of the one as of the other")
    if len(part) == 0:
        checks.refuse(name, "no examples", "at least one")
    if task.in_features and part.inputs.shape[2] != task.in_features:
        got = f"{part.inputs.shape[2]} features a step"
        checks.refuse(f"{name} inputs", got, f"{task.in_features}, those of the task")


def _gather(arrays: Any, chosen: Any, inside: Any) -> Batch:
    """Pick examples and put time first; those outside do not count."""
    inputs, targets, lengths, mask = jax.tree.map(lambda array: array[chosen], arrays)
    mask = mask & inside.reshape(-1, *[1] * (mask.ndim - 1))
    if mask.ndim == 2:
        targets, mask = targets.swapaxes(0, 1), mask.swapaxes(0, 1)
    return Batch(inputs.swapaxes(0, 1), targets, mask, lengths)


@dataclasses.dataclass(frozen=True)
class Buckets(Source):
    """Sequences of many lengths in groups of like length.

    Attributes:
      groups: examples, each group padded to its own longest sequence.
    """

    groups: tuple[Examples, ...]

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    def check(self, name: str, task: Any) -> None:
        """Refuse what does not fit in any group."""
        for group in self.groups:
            group.check(name, task)

    def steps(self, batch_size: int) -> int:
        """Return how many batches an epoch has."""
        return sum(group.steps(batch_size) for group in self.groups)

    def parts(self, batch_size: int) -> list[Any]:
        """Return the groups' arrays."""
        return [part for group in self.groups for part in group.parts(batch_size)]

    def epoch(self, number: int, batch_size: int) -> list[Stretch]:
        """Return every batch of every group, in an order of the epoch's own."""
        each = [
            Stretch(part, i, 1)
            for part, group in enumerate(self.groups)
            for i in range(group.steps(batch_size))
        ]
        return [each[i] for i in np.random.default_rng(number).permutation(len(each))]

    def order(self, part: Any, key: Key) -> Any:
        """Return the order within a group."""
        return self.groups[0].order(part, key)

    def batch(self, part: Any, order: Any, index: Any, key: Key, batch_size: int) -> Batch:
        """Return a batch of a group."""
        return self.groups[0].batch(part, order, index, key, batch_size)

    def take(self, count: int) -> Batch:
        """Return the first examples of the group with the longest sequences."""
        return self.groups[-1].take(count)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Go through the groups, the shortest sequences first."""
        for group in self.groups:
            yield from group.batches(batch_size)


@checked
def bucketed(inputs: Sequence[np.ndarray], targets: Sequence[Any], groups: int = 4) -> Source:
    """Return a source over sequences of many lengths, grouped so that groups have like numbers of steps.

    Args:
      inputs: one array a sequence, [T] tokens or [T, F] numbers, each with its own T.
      targets: one answer a sequence, or one array of answers a sequence, [T] or [T, Y].
      groups: how many shapes to have at most; each is compiled once.

    Raises:
      InputError: no sequences, an empty one, as many of the one as not of the other, or entries that are no
        numbers or differ in more than their first axis.
    """
    checks.count("groups", groups)
    if not len(inputs) or len(inputs) != len(targets):
        got = f"{len(inputs)} sequences and {len(targets)} targets"
        checks.refuse("inputs", got, "as many of the one as of the other, and at least one")
    inputs, targets = _alike("inputs", inputs), _alike("targets", targets)
    if not inputs[0].ndim:
        checks.refuse("inputs", "numbers without axes", "one array a sequence, [T] or [T, F]")
    lengths = np.array([len(sequence) for sequence in inputs], np.int32)
    if lengths.min() < 1:
        checks.refuse(
            "inputs", f"sequence {lengths.argmin()} of no steps", "at least one step each"
        )
    by_length = np.argsort(lengths, kind="stable")
    # The share of all steps that lies in the sequences up to and with each.
    share = np.cumsum(lengths[by_length]) / lengths.sum()
    cuts = np.searchsorted(share, np.arange(1, groups) / groups)
    chosen = [part for part in np.split(by_length, np.unique(cuts)) if len(part)]
    made = tuple(_padded(inputs, targets, lengths, part) for part in chosen)
    return made[0] if len(made) == 1 else Buckets(made)


def _alike(argument: str, entries: Sequence[Any]) -> list[np.ndarray]:
    """Return entries as arrays of one dtype, that holds all their numbers; only T may differ."""
    arrays = [checks.host_array(f"{argument}[{i}]", entry) for i, entry in enumerate(entries)]
    for i, array in enumerate(arrays):
        if array.dtype.kind not in "biuf":
            checks.refuse(f"{argument}[{i}]", checks.describe(entries[i]), "real numbers")
        if (array.ndim, array.shape[1:]) != (arrays[0].ndim, arrays[0].shape[1:]):
            expected = f"as the first has, {checks.describe(arrays[0])}, but for the first axis"
            checks.refuse(f"{argument}[{i}]", checks.describe(array), expected)
    dtype = np.result_type(*{array.dtype for array in arrays})
    return [array.astype(dtype, copy=False) for array in arrays]


def _padded(
    inputs: list[np.ndarray], targets: list[np.ndarray], lengths: np.ndarray, chosen: np.ndarray
) -> Examples:
    """Return examples padded with zeros to the longest among them."""

    def pad(sequences: list[np.ndarray]) -> np.ndarray:
        each = [sequences[i] for i in chosen]
        rows = np.zeros((len(each), max(map(len, each)), *each[0].shape[1:]), each[0].dtype)
        for row, sequence in zip(rows, each, strict=True):
            row[: len(sequence)] = sequence
        return rows

    if not np.ndim(targets[chosen[0]]):
        return Examples(
            pad(inputs), np.array([targets[i] for i in chosen]), lengths=lengths[chosen]
        )
    answered = np.array([len(targets[i]) for i in chosen])
    answers = pad(targets)
    mask = np.arange(answers.shape[1]) < answered[:, None]
    return Examples(pad(inputs), answers, True, lengths[chosen], mask)
