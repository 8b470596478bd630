"""Parameters in safetensors files, which hold named arrays and a header but nothing executable.

    layers.0.cell.kernel    float32[3, 32]

A name is the path of the parameter in the module. The header contains `format: jaxrnn` and the version of
this naming. A file is written under a temporary name and renamed when it is complete, so a crash leaves the
old file.

Pickles (``.pt``, ``.pth``, ``.pkl``, ``.npy`` of objects) run code when they are opened, so no file is ever
passed to `pickle`, whatever its name. A file that is not safetensors is refused, and the message says how to
convert it.

Format: https://huggingface.co/docs/safetensors. Weakness: a file contains only parameters, not the module
around them; `load` needs a module of the same structure.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx
from safetensors import SafetensorError, safe_open

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.files import replace_file
from jaxrnn.interop.weights import device_array

_Module = TypeVar("_Module", bound=nnx.Module)
PathLike = str | os.PathLike[str]

_NAMED = 5
"""Number of a file's differences that an error lists."""

_METADATA = {"format": "jaxrnn", "version": "1"}
_BEGINNINGS = {
    b"PK\x03\x04": "a zip archive, as torch.save and np.savez write",
    b"\x93NUMPY": "an array of NumPy's",
    b"\x89HDF": "an HDF5 file, as Keras writes",
    b"\x80": "a pickle",
}
_EXPECTED = (
    "a safetensors file; pickles are not opened, for they run code: where the source is trusted, "
    "convert with safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
)


@checked
def save(path: PathLike, module: nnx.Module | Any) -> None:
    """Write the parameters of a module into a safetensors file, completely or not at all.

    Args:
      path: the file; an existing file is replaced.
      module: any module of arrays: a cell, a layer, a `SequenceClassifier`, a Flax module.

    Raises:
      InputError: the module contains something other than arrays, or the file cannot be written.

    Example:
      >>> import tempfile
      >>> from flax import nnx
      >>> import jaxrnn
      >>> cell = jaxrnn.GRUCell(3, 8, rngs=nnx.Rngs(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     jaxrnn.interop.save(f"{folder}/gru.safetensors", cell)
      ...     same = jaxrnn.interop.load(f"{folder}/gru.safetensors", cell)
      >>> bool((same.kernel[...] == cell.kernel[...]).all())
      True
    """
    arrays = {}
    for name, leaf in _named("module", module).items():
        if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            checks.refuse("module", f"{name}, {checks.describe(leaf)}", "arrays of numbers alone")
        arrays[name] = np.asarray(leaf, order="C")
    try:
        content = _in_order(safetensors.numpy.save(arrays, metadata=_METADATA))
    except SafetensorError as error:
        checks.refuse("module", str(error), "dtypes that safetensors has")
    try:
        replace_file(Path(path), content)
    except OSError as error:
        checks.refuse("path", f"{path} ({error.strerror})", "a file that can be written")


@checked
def load(path: PathLike, like: _Module) -> _Module:
    """Return a module with the parameters from a file that `save` wrote.

    Args:
      path: the file.
      like: a module of the same structure, which is not changed. ``jax.eval_shape(make)`` is enough, and
        avoids initialising one.

    Raises:
      InputError: the file is not a safetensors file of this package, is damaged, or its names, shapes or
        dtypes differ from those of `like`; the message says which.

    Example:
      See `save`.
    """
    metadata, arrays = read(path)
    written = {key: metadata.get(key, "none") for key in _METADATA}
    if written != _METADATA:
        got, expected = (
            ", ".join(f"{k} {v}" for k, v in each.items()) for each in (written, _METADATA)
        )
        checks.refuse("path", f"{path} ({got})", f"a file of jaxrnn.interop.save ({expected})")
    wanted = _named("like", like)
    differences = [
        *(f"{name} is missing" for name in wanted if name not in arrays),
        # Names may come from an untrusted file: quote and shorten them.
        *(f"{shortened(name)} is unexpected" for name in arrays if name not in wanted),
        *(
            f"{name} is {checks.describe(arrays[name])}, not {checks.describe(leaf)}"
            for name, leaf in wanted.items()
            if name in arrays and checks.describe(arrays[name]) != checks.describe(leaf)
        ),
    ]
    if differences:
        named = "; ".join(few(differences))
        checks.refuse("path", f"{path}, where {named}", "the parameters of `like`")
    leaves = [device_array(f"path ({name})", arrays[name]) for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def read(path: PathLike) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Return the metadata and the arrays of any safetensors file.

    Raises:
      InputError: the file does not exist, is damaged, or is of another kind, such as a pickle.
    """
    try:
        with safe_open(path, framework="np") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        checks.refuse("path", f"{path} ({error.strerror or error})", "a safetensors file")
    except (SafetensorError, AttributeError, TypeError) as error:
        # The last two are raised for dtypes that NumPy lacks.
        with open(path, "rb") as file:
            start = file.read(16)
        kinds = (kind for beginning, kind in _BEGINNINGS.items() if start.startswith(beginning))
        checks.refuse("path", f"{path}, {next(kinds, f'unreadable ({error})')}", _EXPECTED)


def _in_order(content: bytes) -> bytes:
    """Sort the metadata of a safetensors file, whose order varies, so that equal arrays give equal bytes."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # arrays begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + content[end:]


def few(differences: Sequence[str]) -> list[str]:
    """Return the first differences, and the number of the others."""
    more = len(differences) - _NAMED
    return [*differences[:_NAMED], *([f"and {more} more"] if more > 0 else [])]


def shortened(text: str) -> str:
    """Return the repr of a text, and so a single line, cut after 80 characters."""
    return repr(text if len(text) <= 80 else f"{text[:79]}…")


def _named(argument: str, module: Any) -> dict[str, Any]:
    """Name the leaves of a module by their paths, in pytree order."""
    if not isinstance(module, nnx.Module):
        checks.refuse(argument, type(module).__name__, "a module of Flax NNX")
    leaves = jax.tree_util.tree_leaves_with_path(module)
    named = {
        # A parameter is a pytree node of its own, with its value below it.
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): leaf
        for path, leaf in leaves
    }
    if len(named) < len(leaves):
        checks.refuse(argument, "two parameters of one name", "names without dots")
    return named
