"""Parse a command's options with tyro, run it, and say how it ended.

A mistake of the user's ends in one line on standard error and exit code 2; anything else is ours, and shows
its traceback.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
import tyro

from jaxrnn import checks
from jaxrnn.cli.commands import published
from jaxrnn.cli.index import COMMANDS
from jaxrnn.experiments import PUBLISHED
from jaxrnn.tasks import TASKS
from jaxrnn.training import ProcessLostError, Stopped


def run(words: Sequence[str]) -> int:
    """Run a command, given by its name and its options, and return the exit code."""
    try:
        return _parse(words).run() or 0
    except checks.InputError as error:
        print(f"jaxrnn: error: {error}", file=sys.stderr, flush=True)
        if jax.process_count() > 1:
            os._exit(2)  # the usual way out waits for the others, who wait for this one
        return 2
    except Stopped as end:
        print(f"jaxrnn: {end}; --resume goes on from there", file=sys.stderr)
        return end.exit_code
    except ProcessLostError as error:
        print(
            f"jaxrnn: {error}; --resume goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # the usual way out waits for the process that is lost
    except KeyboardInterrupt:
        print("jaxrnn: interrupted; what was finished is kept", file=sys.stderr)
        return 130


def _parse(words: Sequence[str]) -> Any:
    """Return the command with its options; options that it does not have are an `InputError`."""
    command = COMMANDS[words[0]]
    kind = getattr(importlib.import_module(command.module), command.name)
    name, options = words[0], list(words[1:])
    experiment = _experiment(words)
    default: Any = {}
    if experiment is not None:
        default = {"default": published(options.pop(0))}
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            parsed = tyro.cli(
                kind,
                prog=f"jaxrnn {name}",
                args=options,
                config=(tyro.conf.OmitArgPrefixes,),
                **default,
            )
        except SystemExit as end:
            if not end.code:  # help was asked for, and printed
                raise
            raise checks.InputError(
                f"{_first_paragraph(said.getvalue())} (see jaxrnn {name} --help)"
            ) from None
    if experiment is not None and parsed.task != PUBLISHED[experiment].config.task:
        checks.refuse("task", f"{experiment} and {parsed.task}", "an experiment or a task")
    return parsed


def _experiment(words: Sequence[str]) -> str | None:
    """Return the experiment whose name stands straight behind train; None where none does."""
    if words[0] != "train" or not words[1:]:
        return None
    for before, word in itertools.pairwise(words[1:]):
        if word in PUBLISHED and before not in ("--out", "--data"):
            checks.refuse("task", word, "an experiment's name straight behind train")
    if not words[1].startswith("-"):
        checks.choice("task", words[1], [*TASKS, *PUBLISHED])
    return words[1] if words[1] in PUBLISHED else None


def _first_paragraph(box: str) -> str:
    """Return what tyro frames in a box, below its title and up to the first rule, as one line.

    On a terminal without box-drawing characters the frame is of blanks and hyphens, and the title stands on a
    line of its own.
    """
    drawn = "╭" in box
    paragraphs: list[list[str]] = [[]]
    for line in box.splitlines():
        words = line.strip("│ ")
        if line.startswith(("╭", "╰")) or (words and not words.strip("-─")):
            paragraphs.append([])
        elif words:
            paragraphs[-1].append(words)
    said = [" ".join(lines) for lines in paragraphs if lines][0 if drawn else 1 :]
    return said[0].rstrip(".") if said else "these words are no command"
