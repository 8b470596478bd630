"""Long work in parts: each is reported when it is done, and kept, so that what was broken off goes on."""

from __future__ import annotations

import io
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import checks
from jaxrnn.files import open_regular, replace_file, writing
from jaxrnn.training.progress import ProgressBar
from jaxrnn.versions import version_of

_VERSION = version_of("jaxrnn")


class Stages:
    """Computes named parts once: what `diagnose` calls for its parts.

    Parts lie in a folder as pickles, of which nothing is read but arrays and records of the analyses. Each
    part names its subject, and parts of another subject are refused.

    Args:
      title: what is being done.
      total: number of parts.
      folder: where to keep them; None keeps nothing.
      subject: fingerprint of what the parts are computed from.
    """

    def __init__(self, title: str, total: int, folder: Path | None = None, subject: str = ""):
        self._bar = ProgressBar(title, total)
        self._folder, self._subject = folder, subject

    def __enter__(self) -> Stages:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def __call__(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return a part: the one that was kept, or else computed now.

        Raises:
          InputError: what was kept cannot be read or is of another subject, or the folder cannot be written.
        """
        file = None if self._folder is None else self._folder / f"{name.replace(' ', '_')}.pickle"
        if file is not None and os.path.isfile(file):
            found = _read(file, (_VERSION, self._subject, name))
            self._bar.advance(f"{name}: kept")
            return found
        began = time.perf_counter()
        found = jax.block_until_ready(compute())
        if file is not None:
            _write(file, (_VERSION, self._subject, name), found)
        self._bar.advance(f"{name}: {time.perf_counter() - began:.1f} s")
        return found


def _read(file: Path, expected: tuple[str, str, str]) -> Any:
    try:
        with open_regular(file) as stream:
            about, found = _Records(stream).load()
    except Exception:  # a damaged pickle can raise anything
        about, found = None, None
    if about != expected:
        version, _, name = expected
        got = f"{file}, which cannot be read or is of another subject"
        wanted = (
            f"{name!r} of this subject, written by jaxrnn {version}; delete it to compute it again"
        )
        checks.refuse("resume", got, wanted)
    return found


def _write(file: Path, about: tuple[str, str, str], found: Any) -> None:
    with writing("out", file, "a file that can be written"):
        file.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        _Writer(content).dump((about, found))
        replace_file(file, content.getvalue())


class _Writer(pickle.Pickler):
    """Writes arrays of JAX as NumPy's, to be read by ``jnp.asarray``."""

    def reducer_override(self, obj: Any) -> Any:
        """Return how an array of JAX is rebuilt; leave everything else to `pickle`."""
        if isinstance(obj, jax.Array):
            return jnp.asarray, (np.asarray(obj),)
        return NotImplemented


class _Records(pickle.Unpickler):
    """Reads arrays and the analyses' own classes: a pickle may call what it names, and these run nothing."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class that a pickle names; refuse any other, before its module is imported."""
        known = (module, name) in _ARRAYS
        if known or module.startswith("jaxrnn.analysis."):
            found = super().find_class(module, name)
            if known or (isinstance(found, type) and found.__module__ == module):
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a record")


_ARRAYS = {
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("jax.numpy", "asarray"),
}
"""What arrays of NumPy and JAX are rebuilt by."""
