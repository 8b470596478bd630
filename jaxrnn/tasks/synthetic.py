"""Tasks whose sequences are drawn: training, validation and test from one law, never from one key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxrnn.tasks.base import Batch, Task
from jaxrnn.tasks.sources import Sampler

_EXAMPLES = 1_024
_VALID_SEED, _TEST_SEED = 2**31 - 1, 2**31 - 2  # seeds that no network is trained from


def synthetic(
    name: str,
    draw: Callable[[Any, int], Batch],
    *,
    draw_test: Callable[[Any, int], Batch] | None = None,
    examples: int = _EXAMPLES,
    **about: Any,
) -> Task:
    """Return a task from a function that draws its batches.

    Args:
      name: of the task.
      draw: ``(key, B) -> Batch``; runs inside compiled code.
      draw_test: draws the test's batches, where they are to be others, as longer ones.
      examples: how many sequences validation and test look at.
      about: the other fields of `Task`.
    """
    return Task(
        name=name,
        train=Sampler(draw, examples, _VALID_SEED),
        valid=Sampler(draw, examples, _VALID_SEED),
        test=Sampler(draw_test or draw, examples, _TEST_SEED),
        **about,
    )
