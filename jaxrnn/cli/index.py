"""The commands: where the class of each one is, and the first line of its docstring.

The summaries are written out here so that ``jaxrnn --help`` imports no command; a test compares them.
"""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """Where a command's class is, and the first line of its docstring."""

    module: str
    name: str
    summary: str


_HERE = "jaxrnn.cli.commands"

COMMANDS = {
    "train": Command(
        _HERE,
        "Train",
        "Train one network on a task, from several seeds and settings at once, into a run folder.",
    ),
    "sweep": Command(
        _HERE,
        "Sweep",
        "Train with several values of any settings, and write a table and a figure of the scores.",
    ),
    "diagnose": Command(
        _HERE, "Diagnose", "Take the gradients of a trained run, or of a fresh cell, apart."
    ),
    "demo": Command(
        _HERE,
        "Demo",
        "Train an Elman network, an LSTM and a GRU of one size on real digits and report on their gradients.",
    ),
    "claims": Command(
        "jaxrnn.cli.claims",
        "Claims",
        "Decide statements about recurrent networks by measurement: list, run, show or report them.",
    ),
    "cells": Command(
        _HERE,
        "Cells",
        "List the cells: equations, state size, parameters, cost, Jacobian, and whether parallel in time.",
    ),
    "tasks": Command(
        _HERE, "Tasks", "List the tasks: what they are, their settings, and where they come from."
    ),
    "experiments": Command(
        _HERE,
        "Experiments",
        "List the published experiments: what is trained, how, and what others report.",
    ),
    "export": Command(
        _HERE,
        "Export",
        "Export a trained network: its programs as StableHLO, its weights as safetensors, all checked.",
    ),
    "generate": Command(_HERE, "Generate", "Let a trained language model write on from a prompt."),
    "translate": Command(
        _HERE,
        "Translate",
        "Translate a sentence with a trained network, and draw which words it looked at.",
    ),
}
"""The commands in the order of the help text."""
