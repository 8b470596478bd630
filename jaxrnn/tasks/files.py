"""Where a task's files lie: a folder that is given, or one of the task's name below ``$JAXRNN_DATA``.

A file may be compressed, with ``.gz`` behind its name. What is missing is named, with every place that was
looked at. Only regular files are read, and a small file may not unpack to an immense one: a text packs to a
third, and to a thirtieth where it repeats itself, but a gzip bomb to a thousandth.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

from jaxrnn import checks
from jaxrnn.files import open_regular

_MOST_RATIO = 32
_ALWAYS_UNPACKED = 64 * 2**20  # bytes that any file may unpack to


class MissingDataError(checks.InputError):
    """A file of a task that is not there; the message names it and every place that was looked at."""


def find_files(
    task: str, folder: str | os.PathLike[str] | None, names: Mapping[str, str]
) -> dict[str, Path]:
    """Return the paths of a task's files.

    Args:
      task: its name, also that of its folder below ``$JAXRNN_DATA``.
      folder: where the files lie; None for ``$JAXRNN_DATA/<task>``.
      names: what each file holds, and what it is called, ``.gz`` behind it or not.

    Raises:
      MissingDataError: no folder is known, or a file is not there.
    """
    if folder is None:
        root = os.environ.get("JAXRNN_DATA")
        if not root:
            expected = f"a folder with {', '.join(names.values())} (.gz or not), or JAXRNN_DATA above {task}/"
            checks.refuse(task, "no folder, and JAXRNN_DATA is not set", expected, MissingDataError)
        folder = Path(root) / task
    found = {}
    for what, name in names.items():
        candidates = [Path(folder) / name, Path(folder) / f"{name}.gz"]
        there = [path for path in candidates if os.path.isfile(path)]
        if not there:
            looked = " nor ".join(map(str, candidates))
            checks.refuse(task, f"neither {looked}", what, MissingDataError)
        found[what] = there[0]
    return found


def read_bytes(path: Path, expected: str, count: int | None = None) -> bytes:
    """Read a file, unpacked if it is compressed.

    Args:
      path: the file.
      expected: what it should be, for the message.
      count: bytes to read at most; None reads all.

    Raises:
      InputError: it cannot be read or unpacked, is a device or a pipe, or unpacks to more than 32 times its
        size, and more than 64 MiB.
    """
    try:
        with open_regular(path) as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not packed:
                return raw.read() if count is None else raw.read(count)
            most = max(_MOST_RATIO * os.fstat(raw.fileno()).st_size, _ALWAYS_UNPACKED)
            with gzip.open(raw) as stream:
                content = stream.read(most + 1 if count is None else min(count, most + 1))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        checks.refuse(str(path), f"a file that cannot be read ({error})", expected)
    if len(content) > most:
        checks.refuse(str(path), f"a file that unpacks to more than {most:,} bytes", expected)
    return content


def read_text(path: Path, expected: str, encoding: str = "utf-8") -> str:
    """Read a file as text.

    Raises:
      InputError: it cannot be read, or is not text in this encoding.
    """
    try:
        return read_bytes(path, expected).decode(encoding)
    except UnicodeDecodeError as error:
        checks.refuse(
            str(path), f"bytes that are not {encoding} ({error.reason} at {error.start})", expected
        )


def read_lines(path: Path, expected: str, encoding: str = "utf-8") -> list[str]:
    """Read the lines of a text, which end where a line feed stands and nowhere else.

    Python's own ``splitlines`` also cuts at form feeds and at the Latin-1 character 0x85, which occur within
    sentences of real data.
    """
    lines = read_text(path, expected, encoding).split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]
