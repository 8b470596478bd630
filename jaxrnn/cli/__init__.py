"""The command line: parse, call, print."""

from jaxrnn.cli.main import main

__all__ = ["main"]
