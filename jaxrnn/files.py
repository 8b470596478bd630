"""Safe file access: atomic writes that follow no symbolic links, and reads of regular files only.

A file is written under an unpredictable, unused name and renamed when it is complete. A crash therefore
leaves either the old or the new file, and a symbolic link placed by somebody else is not followed. Only
regular files are read, because a device or a pipe may have no end.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from jaxrnn import checks

UNFINISHED = ".unfinished"
"""Suffix of the name of a file that is being written."""

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)  # without it, opening a pipe waits for a writer
_BINARY = getattr(os, "O_BINARY", 0)  # only on Windows, which lacks the other two flags


def replace_file(path: Path, content: bytes) -> None:
    """Write a file under another name, flush it to the disk, and rename it to `path`.

    Raises:
      OSError: the file cannot be written, or `path` is a link, a device or a folder; what was at `path` stays
        unchanged.
    """
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        raise FileExistsError(errno.EEXIST, "Not a regular file", str(path))
    unfinished = path.with_name(secrets.token_hex(8) + UNFINISHED)
    file = os.open(unfinished, _NEW | _BINARY, 0o666)
    try:
        with open(file, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(file)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, and flush it to the disk.

    Raises:
      OSError: the file cannot be written, or is a symbolic link.
    """
    with open(os.open(path, _APPEND | _BINARY, 0o666), "ab") as stream:
        stream.write(line.encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
      OSError: the file does not exist, cannot be read, or is a device, a pipe or a folder.
    """
    file = os.open(path, _READ | _BINARY)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return os.fdopen(file, "rb")


@contextmanager
def writing(argument: str, path: str | os.PathLike[str], expected: str) -> Iterator[None]:
    """Convert an `OSError` in the block to an `InputError` for the argument that gave the path.

    Raises:
      InputError: the block raised an `OSError`, or the path contains a null byte.
    """
    if "\0" in os.fspath(path):
        checks.refuse(argument, repr(os.fspath(path)), "a path without null bytes")
    try:
        yield
    except OSError as error:
        checks.refuse(argument, f"{path} ({error.strerror or error})", expected)


def refuse_links(argument: str, folder: str | os.PathLike[str]) -> None:
    """Refuse a folder that contains symbolic or hard links, through which a write could leave the folder.

    Raises:
      InputError: the folder contains such a link; the message names it.
    """
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            if os.path.islink(path):
                checks.refuse(argument, f"the symbolic link {path}", "a folder without any")
        for name in files:
            path = os.path.join(parent, name)
            if os.lstat(path).st_nlink > 1:
                expected = "a folder whose files have no other name, such as a copy of it"
                checks.refuse(argument, f"the hard link {path}", expected)
