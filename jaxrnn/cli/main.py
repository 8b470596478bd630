"""``jaxrnn``: each command is a frozen dataclass whose fields are its options and whose `run` does it.

A mistake of the user's ends in one line on standard error and exit code 2; anything else is ours, and shows
its traceback.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import tyro

from jaxrnn import checks
from jaxrnn.cli.claims import Claims
from jaxrnn.cli.commands import (
    Cells,
    Demo,
    Diagnose,
    Experiments,
    Export,
    Generate,
    Sweep,
    Tasks,
    Train,
    Translate,
    published,
)
from jaxrnn.experiments import PUBLISHED
from jaxrnn.tasks import TASKS
from jaxrnn.training import ProcessLostError, Stopped

_OTHERS = (
    Annotated[Diagnose, tyro.conf.subcommand("diagnose")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[Claims, tyro.conf.subcommand("claims")]
    | Annotated[Cells, tyro.conf.subcommand("cells")]
    | Annotated[Tasks, tyro.conf.subcommand("tasks")]
    | Annotated[Experiments, tyro.conf.subcommand("experiments")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Translate, tyro.conf.subcommand("translate")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
      Its exit code: 0; 1 where a part of the work failed; 2 for bad input; 128 + n for signal n.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the terminal cannot show is written as \xb1
            stream.reconfigure(errors="backslashreplace")
    try:
        return _parse(arguments).run() or 0
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


def _parse(arguments: Sequence[str] | None) -> Any:
    """Return the command that the words ask for; words that ask for none are an `InputError`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    train: Any = tyro.conf.subcommand("train")
    experiment = _experiment(words)
    if experiment is not None:
        train = tyro.conf.subcommand("train", default=published(words.pop(1)))
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            command: Any = tyro.cli(
                Annotated[Train, train] | _OTHERS,  # pyright: ignore[reportArgumentType]
                prog="jaxrnn",
                description="A laboratory for recurrent networks: train them, take their gradients apart.",
                args=words,
                config=(tyro.conf.OmitArgPrefixes,),
            )
        except SystemExit as end:
            if not end.code:  # help was asked for, and printed
                raise
            raise checks.InputError(
                f"{_first_paragraph(said.getvalue())} (see jaxrnn --help)"
            ) from None

    if experiment is not None and command.task != PUBLISHED[experiment].config.task:
        checks.refuse("task", f"{experiment} and {command.task}", "an experiment or a task")
    return command


def _experiment(words: Sequence[str]) -> str | None:
    """Return the experiment whose name stands straight behind train; None where none does."""
    if words[:1] != ["train"] or not words[1:]:
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
