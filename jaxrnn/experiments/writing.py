"""Text from a trained language model."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.experiments.runs import load_network
from jaxrnn.models import generate
from jaxrnn.tasks import LanguageModelling
from jaxrnn.training import ProgressBar

_MOST = 2**20  # characters or words, all of which are held at once


@checked
def write(
    run: str | Path,
    prompt: str,
    count: int,
    *,
    network: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    end: str | None = None,
    seed: int = 0,
) -> str:
    """Return a text that a run's language model writes on from a prompt, the prompt included.

    Characters or words of the prompt that training did not know are named on standard error.

    Args:
      run: the run's folder.
      prompt: what stands before; at least one character or word.
      count: characters or words to write.
      network: which of the run's networks, 0 the first.
      temperature: below 1 the probable becomes more so; 0 takes the most probable.
      top_k: draw from the k most probable alone.
      top_p: draw from the fewest alone that together have this probability.
      end: a character or word that training knew, after which the text ends; it is written.
      seed: of what is drawn.

    Raises:
      InputError: no run of a language model there, no such network, or an argument out of its range.
    """
    checks.within("count", count, 1, _MOST)
    checks.within("seed", seed, 0, 2**31 - 1)
    task, model = load_network(run, network)
    if not isinstance(task, LanguageModelling):
        checks.refuse("run", f"a run of {task.name}", "a run of a language model")
    tokens = task.encode(prompt)
    if not len(tokens):
        checks.refuse("prompt", repr(prompt), "at least one character or word")
    if unknown := task.unknown(prompt):
        names = ", ".join(map(repr, unknown))
        ProgressBar(str(run), 1).say(f"the prompt holds what training did not: {names}")
    written = generate(
        model,
        jnp.asarray(tokens)[:, None],
        count,
        key=jax.random.key(seed),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        end=None if end is None else _token(task, end),
    )
    tokens = written.tokens[: int(written.lengths[0]), 0]
    return prompt + task.joint + task.decode(tokens)


def _token(task: LanguageModelling, end: str) -> int:
    """Return the token of one character or word."""
    tokens = task.encode(end)
    if len(tokens) != 1 or task.unknown(end):
        checks.refuse("end", repr(end), "one character or word that training knew")
    return int(tokens[0])
