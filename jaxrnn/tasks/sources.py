"""Where batches come from: examples that lie in memory, a sampler that makes them, or one long text.

Training never waits for data: examples lie on the device, and a batch is picked, or made, inside the compiled
step. What step i of a network sees depends on the network's key and on i alone. So a run needs no data
position but its number of steps, and a resumed one sees what it would have seen.

    Examples    rectangular arrays: sequences of one length, or padded to one
    Buckets     sequences of many lengths, in groups of like length, so that little is padding
    Sampler     sequences made from a random key, new ones at every step
    Text        one long row of tokens, read on from window to window with the state carried along
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import checks
from jaxrnn.tasks.base import Batch
from jaxrnn.typing import Key

_EVALUATION_BATCH = 512
_EVALUATION_LANES = 8


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

    @abc.abstractmethod
    def epoch(self, number: int, batch_size: int) -> list[Stretch]:
        """Return the order of the batches of an epoch."""

    @abc.abstractmethod
    def order(self, part: Any, key: Key) -> Any:
        """Return what `batch` needs to know of a part's order in an epoch of this key."""

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

    @property
    def ragged(self) -> bool:
        """Whether sequences differ in length."""
        return self.take(1).lengths is not None

    def take(self, count: int) -> Batch:
        """Return the first examples as one batch."""
        return next(self.batches(min(count, len(self))))


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
            _check_range(f"{name} inputs", self.inputs, task.tokens, "tokens")
        if task.loss == "cross_entropy":
            _check_range(f"{name} targets", self.targets, task.outputs, "class numbers")
        else:
            checks.finite(f"{name} targets", self.targets)

    def steps(self, batch_size: int) -> int:
        """Return how many batches an epoch has; the last one may be smaller."""
        return -(-len(self) // batch_size)

    def parts(self, batch_size: int) -> list[Any]:
        """Return the arrays."""
        del batch_size
        return [self._arrays]

    def epoch(self, number: int, batch_size: int) -> list[Stretch]:
        """Return one stretch of all batches."""
        del number
        return [Stretch(0, 0, self.steps(batch_size))]

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


def _check_range(name: str, numbers: np.ndarray, count: int, what: str) -> None:
    if not np.issubdtype(numbers.dtype, np.integer):
        checks.refuse(name, checks.describe(numbers), f"integers, {what}")
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high >= count:
        checks.refuse(name, f"values from {low} to {high}", f"{what} from 0 to {count - 1}")


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


def bucketed(inputs: Sequence[np.ndarray], targets: Sequence[Any], groups: int = 4) -> Source:
    """Return a source over sequences of many lengths, grouped so that groups have like numbers of steps.

    Args:
      inputs: one array a sequence, [T] tokens or [T, F] numbers, each with its own T.
      targets: one answer a sequence, or one array of answers a sequence, [T] or [T, Y].
      groups: how many shapes to have at most; each is compiled once.

    Raises:
      InputError: no sequences, an empty one, or as many of the one as not of the other.
    """
    checks.count("groups", groups)
    if not len(inputs) or len(inputs) != len(targets):
        got = f"{len(inputs)} sequences and {len(targets)} targets"
        checks.refuse("inputs", got, "as many of the one as of the other, and at least one")
    lengths = np.array([len(sequence) for sequence in inputs], np.int32)
    if lengths.min() < 1:
        checks.refuse(
            "inputs", f"sequence {lengths.argmin()} of no steps", "at least one step each"
        )
    by_length = np.argsort(lengths, kind="stable")
    share = (
        np.cumsum(lengths[by_length]) / lengths.sum()
    )  # of all steps, up to and with this sequence
    cuts = np.searchsorted(share, np.arange(1, groups) / groups)
    chosen = [part for part in np.split(by_length, np.unique(cuts)) if len(part)]
    made = tuple(_padded(inputs, targets, lengths, part) for part in chosen)
    return made[0] if len(made) == 1 else Buckets(made)


def _padded(inputs: Any, targets: Any, lengths: np.ndarray, chosen: np.ndarray) -> Examples:
    """Return examples padded with zeros to the longest among them."""

    def pad(sequences: Any) -> np.ndarray:
        each = [np.asarray(sequences[i]) for i in chosen]
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

    def epoch(self, number: int, batch_size: int) -> list[Stretch]:
        """Return one stretch of all batches."""
        del number
        return [Stretch(0, 0, self.steps(batch_size))]

    def order(self, part: Any, key: Key) -> Any:
        """Return nothing: there is no order."""
        return ()

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


@dataclasses.dataclass(frozen=True)
class Text(Source):
    """One long row of tokens, cut into as many lanes as a batch has sequences, read window by window.

    The target of a token is the token after it. Within a lane the state is handed on from one window to the
    next, while the gradient is cut (truncated BPTT).

    Attributes:
      tokens: [N].
      window: steps T between two cuts of the gradient.
    """

    tokens: np.ndarray
    window: int

    def __len__(self) -> int:
        return max((len(self.tokens) - 1) // self.window, 0)

    def check(self, name: str, task: Any) -> None:
        """Refuse a text shorter than one window, and tokens out of range."""
        if len(self) < 1:
            expected = f"more than one window of {self.window}"
            checks.refuse(name, f"{len(self.tokens)} tokens", expected)
        _check_range(name, self.tokens, task.tokens, "tokens")

    def steps(self, batch_size: int) -> int:
        """Return how many windows a lane has; the tokens that do not fill one in every lane are left out."""
        return len(self) // batch_size

    def parts(self, batch_size: int) -> list[Any]:
        """Return the lanes of inputs and of targets, [windows, T, B]."""
        return [self._lanes(batch_size)]

    def epoch(self, number: int, batch_size: int) -> list[Stretch]:
        """Return all windows, in order."""
        del number
        return [Stretch(0, 0, self.steps(batch_size))]

    def order(self, part: Any, key: Key) -> Any:
        """Return nothing: a text has the order of its words."""
        return ()

    def batch(self, part: Any, order: Any, index: Any, key: Key, batch_size: int) -> Batch:
        """Return a window of all lanes."""
        inputs, targets = (lanes[index] for lanes in part)
        return Batch(inputs, targets, jnp.ones(inputs.shape, bool), None, index == 0)

    def evaluation_size(self) -> int:
        """Return few lanes, since a text is begun anew in each."""
        return min(_EVALUATION_LANES, len(self))

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Go through the whole text in so many lanes; what fills their ends up does not count."""
        asked = len(self.tokens) - 1
        lane = -(-asked // batch_size)
        windows = -(-lane // self.window)
        places = np.arange(windows * self.window)[:, None] + lane * np.arange(batch_size)
        inside = (np.arange(windows * self.window)[:, None] < lane) & (places < asked)
        places = np.minimum(places, asked - 1)
        cut = (windows, self.window, batch_size)
        inputs, targets = self.tokens[places], self.tokens[places + 1]
        parts = (array.reshape(cut) for array in (inputs, targets, inside))
        for i, (shown, following, counts) in enumerate(zip(*parts, strict=True)):
            yield Batch(shown, following, counts, None, np.asarray(i == 0))

    def _lanes(self, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        steps = self.steps(batch_size)
        size = batch_size * steps * self.window

        def lanes(tokens: np.ndarray) -> np.ndarray:
            cut = tokens[:size].reshape(batch_size, steps, self.window)
            return np.ascontiguousarray(cut.transpose(1, 2, 0)).astype(np.int32)

        return lanes(self.tokens), lanes(self.tokens[1:])
