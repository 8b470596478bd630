"""One long text, read on from window to window with the state carried along.

In training a text is cut into as many lanes as a batch has sequences, and what does not fill a window in
every lane is left out; an evaluation reads all of it, in few lanes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrnn import checks
from jaxrnn.tasks.base import Batch
from jaxrnn.tasks.sources import Source, check_range
from jaxrnn.typing import Key

_EVALUATION_LANES = 8


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
        check_range(name, self.tokens, task.tokens, "tokens")

    def steps(self, batch_size: int) -> int:
        """Return how many windows a lane has; the tokens that do not fill one in every lane are left out."""
        return len(self) // batch_size

    def parts(self, batch_size: int) -> list[Any]:
        """Return the lanes of inputs and of targets, [windows, T, B]."""
        return [self._lanes(batch_size)]

    def batch(self, part: Any, order: Any, index: Any, key: Key, batch_size: int) -> Batch:
        """Return a window of all lanes."""
        inputs, targets = (lanes[index] for lanes in part)
        return Batch(inputs, targets, jnp.ones(inputs.shape, bool), None, index == 0)

    def evaluation_size(self) -> int:
        """Return few lanes, since a text is begun anew in each."""
        return min(_EVALUATION_LANES, len(self))

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Go through the whole text in parallel lanes; the padding at their ends does not count."""
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
