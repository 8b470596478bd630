"""``jaxrnn``: each command is a frozen dataclass whose fields are its options and whose `run` does it.

A mistake of the user's ends in one line on standard error and exit code 2; anything else is ours, and shows
its traceback.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from jaxrnn import checks
from jaxrnn.cli.commands import Cells, Demo, Diagnose, Train

_COMMANDS = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Diagnose, tyro.conf.subcommand("diagnose")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Cells, tyro.conf.subcommand("cells")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for bad input, 130 when interrupted."""
    try:
        _parse(arguments).run()
    except checks.InputError as error:
        print(f"jaxrnn: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxrnn: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    return 0


def _parse(arguments: Sequence[str] | None) -> Train | Diagnose | Demo | Cells:
    """Return the command that the words ask for; words that ask for none are an `InputError`."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            return tyro.cli(
                _COMMANDS,  # pyright: ignore[reportArgumentType]
                prog="jaxrnn",
                description="A laboratory for recurrent networks: train them, take their gradients apart.",
                args=arguments,
                config=(tyro.conf.OmitArgPrefixes,),
            )
        except SystemExit as end:
            if not end.code:  # help was asked for, and printed
                raise
            raise checks.InputError(
                f"{_first_paragraph(said.getvalue())} (see jaxrnn --help)"
            ) from None


def _first_paragraph(box: str) -> str:
    """Return what tyro frames in a box, up to the first rule, as one line."""
    lines = [line.strip("│ ") for line in box.splitlines() if line.startswith("│")]
    until_rule = itertools.takewhile(lambda line: not line.startswith("─"), lines)
    return " ".join(until_rule).rstrip(".") or "these words are no command"
