"""``jaxrnn``: the commands, which one is meant, and their help.

Each command is a frozen dataclass whose fields are its options and whose `run` does it. JAX and the command's
module are imported once it is known which one is meant, so that help and typing errors come at once.
"""

from __future__ import annotations

import difflib
import importlib
import io
import sys
from collections.abc import Sequence
from typing import Any

from jaxrnn.cli.index import COMMANDS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
      Its exit code: 0; 1 where a part of the work failed; 2 for bad input; 128 + n for signal n.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the terminal cannot show is written as \xb1
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] in (["-h"], ["--help"]):
        print(_help())
        return 0
    if words[:1] == ["--version"]:
        print(f"jaxrnn {importlib.import_module('jaxrnn').__version__}")
        return 0
    if not words or words[0] not in COMMANDS:
        print(f"jaxrnn: error: {_no_command(words)}", file=sys.stderr)
        return 2
    # Imported when it is needed: it imports JAX, which takes longer than all of the above.
    running: Any = importlib.import_module("jaxrnn.cli.running")
    return running.run(words)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: jaxrnn COMMAND …",
            "",
            "A laboratory for recurrent networks: train them, take their gradients apart.",
            "",
            *lines,
            "",
            "jaxrnn COMMAND --help says what a command takes; jaxrnn --version which version this is.",
        ]
    )


def _no_command(words: Sequence[str]) -> str:
    """Say that words begin with no command, and which one may have been meant."""
    known = f"one of {', '.join(COMMANDS)}"
    if not words:
        return f"command: got nothing; expected {known} (see jaxrnn --help)"
    near = difflib.get_close_matches(words[0], COMMANDS, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"command: got {words[0]!r}; expected {known}{hint} (see jaxrnn --help)"
