"""Files that may come from a stranger, and files that a crash must not leave half written.

A file is written under a name that nobody can foresee, which must be free, and is renamed when it is whole: a
crash leaves the old file or the new one, and a symbolic link that lies in wait is not followed. Only regular
files are read: a device or a pipe may have no end.
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
"""How the name of a file ends that is being written."""

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)  # the opening of a pipe would wait for a writer
_BINARY = getattr(os, "O_BINARY", 0)  # of Windows, which has neither of the two others


def replace_file(path: Path, content: bytes) -> None:
    """Write a file under another name, down to the disk, and rename it to `path`.

    Raises:
      OSError: it cannot be written, or a link, a device or a folder stands at `path`; what stood there still
        does.
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
    """Add a line to a file; it is on the disk when this returns.

    Raises:
      OSError: it cannot be written, or is a symbolic link.
    """
    with open(os.open(path, _APPEND | _BINARY, 0o666), "ab") as stream:
        stream.write(line.encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file to read it.

    Raises:
      OSError: there is none, it may not be read, or it is a device, a pipe or a folder.
    """
    file = os.open(path, _READ | _BINARY)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return os.fdopen(file, "rb")


@contextmanager
def writing(argument: str, path: str | os.PathLike[str], expected: str) -> Iterator[None]:
    """Turn a failure of the disk into a refusal of the argument that named the path.

    Raises:
      InputError: what was tried within ended in an `OSError`, or the path holds a null byte.
    """
    if "\0" in os.fspath(path):
        checks.refuse(argument, repr(os.fspath(path)), "a path without null bytes")
    try:
        yield
    except OSError as error:
        checks.refuse(argument, f"{path} ({error.strerror or error})", expected)


def refuse_links(argument: str, folder: str | os.PathLike[str]) -> None:
    """Refuse a folder with a link below it, symbolic or hard, by which a write would reach outside it.

    Raises:
      InputError: there is one; the message names it.
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
