"""Writing files so that a crash leaves the old one or the new one, and never half of one."""

from __future__ import annotations

import os
from pathlib import Path

UNFINISHED = ".unfinished"
"""How the name of a file ends that is being written."""


def replace_file(path: Path, content: bytes) -> None:
    """Write a file under another name, down to the disk, and rename it to `path`.

    Raises:
      OSError: it cannot be written; what stood at `path` still does.
    """
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
