"""The command line: parse, call, print."""

from jaxrnn.cli.entry import main

__all__ = ["main"]
