"""Figures as files."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from jaxrnn.files import replace_file, writing


def save_figure(figure: Figure, path: Path, argument: str = "out") -> None:
    """Write a figure whole or not at all, and close it; the path's ending says of what kind it is.

    Raises:
      InputError: the file cannot be written; the message names the argument.
    """
    content = io.BytesIO()
    try:
        figure.savefig(content, format=path.suffix.removeprefix(".").lower())
    finally:
        plt.close(figure)
    with writing(argument, path, "a file that can be written"):
        replace_file(path, content.getvalue())
