"""Checkpoints, by Orbax: the one module that knows it.

A state is any pytree of arrays. It is stored as a flat dictionary from the path of a leaf to the leaf, so a
checkpoint says what it holds and does not depend on how a module is laid out in memory. Orbax writes while
training goes on, into a folder of another name, which it renames when it is whole: a run that is killed
leaves the last good one. With several processes each writes what lies on its own devices, and as many or
fewer may read it back.

A file can rot after it was whole. So a fingerprint of every leaf is stored beside it; a checkpoint that
cannot be read, or that holds other numbers than were written, is passed over for the one before.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxrnn import checks

_KEEP = 2
_FINGERPRINT = "fingerprint"


class Checkpoints:
    """The checkpoints of one run, numbered by step; the last two are kept.

    Args:
      folder: where they lie.
      say: is told of a checkpoint that is damaged.
    """

    def __init__(
        self, folder: str | os.PathLike[str], say: Callable[[str], None] = lambda text: None
    ):
        self._folder, self._say = Path(folder).absolute(), say
        options = ocp.CheckpointManagerOptions(max_to_keep=_KEEP, create=True)
        self._manager = ocp.CheckpointManager(
            self._folder, options=options, item_handlers=ocp.StandardCheckpointHandler()
        )
        self._quiet = _Quiet()

    def __enter__(self) -> Checkpoints:
        logging.getLogger("absl").addFilter(self._quiet)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self._room():
                self._manager.wait_until_finished()
            self._manager.close()
        finally:
            logging.getLogger("absl").removeFilter(self._quiet)

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Begin to store a state; the one before is then whole on the disk.

        Raises:
          InputError: there is no room, or no permission; the checkpoint before stays good.
        """
        with self._room():
            self._manager.save(step, args=ocp.args.StandardSave(_signed(state)), force=True)

    def read(self) -> dict[str, Any]:
        """Return the newest state as a dictionary from the path of a leaf to the leaf.

        Raises:
          InputError: there is no checkpoint.
        """
        if self.latest is None:
            checks.refuse("run", "no checkpoint", "a run that has come to its first report")
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])  # wherever it was written
        wanted = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
            for path, leaf in self._manager.item_metadata(self.latest).items()
        }
        return dict(self._manager.restore(self.latest, args=ocp.args.StandardRestore(wanted)))

    def restore(self, like: Any) -> Any:  # noqa: RET503 (what refuses does not return)
        """Return the newest state that is intact, with the structure, shapes, dtypes and devices of `like`.

        Those that are damaged are passed over, and said.

        Raises:
          InputError: there is no intact checkpoint, or it holds something else than `like`.
        """
        wanted = {path: _placed(leaf) for path, leaf in _signed(like).items()}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                flat = self._intact(step, wanted)
            except (checks.InputError, MemoryError, PermissionError):
                raise
            except Exception as error:  # damage may surface as any error at all
                if "RESOURCE_EXHAUSTED" in str(error):
                    raise
                self._say(f"the checkpoint of step {step} is damaged ({_first_line(error)})")
            else:
                structure = jax.tree.structure(like)
                return jax.tree.unflatten(structure, [flat[path] for path in _flat(like)])
        checks.refuse("run", "no intact checkpoint", "a run that has come to its first report")

    def forget_after(self, step: int) -> None:
        """Delete the checkpoints after a step, which were passed over: their numbers will come again."""
        for later in self._manager.all_steps():
            if later > step:
                self._manager.delete(later)

    def _intact(self, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
        """Read a checkpoint, or raise what shows that it is damaged."""
        metadata = self._manager.item_metadata(step)
        stored = {path: tuple(leaf.shape) for path, leaf in metadata.items()}
        expected = {path: leaf.shape for path, leaf in wanted.items()}
        if stored != expected:
            odd = sorted(set(stored.items()) ^ set(expected.items()))
            checks.refuse(
                "checkpoint", f"another state (differs in {odd[0][0]})", "the state of this model"
            )
        flat = dict(self._manager.restore(step, args=ocp.args.StandardRestore(wanted)))
        signature = flat.pop(_FINGERPRINT)
        if not bool(jnp.array_equal(_fingerprint(flat), signature)):
            raise ValueError("it holds other numbers than were written")
        return flat

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Turn a disk that cannot be written into a refusal."""
        try:
            yield
        except Exception as error:
            # TensorStore's errors are ValueErrors, with the reason in the text.
            reason = _reason(error)
            if reason is None:
                raise
            expected = (
                "room and permission to write; what was saved before is good, --resume goes on"
            )
            checks.refuse("checkpoints", f"{self._folder} ({reason})", expected)


class _Quiet(logging.Filter):
    """Drops what Orbax logs: it raises each failure too, which is enough."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname


def _reason(error: BaseException) -> str | None:
    """Return why a disk could not be written; None where the error is another."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS):
        same = isinstance(error, OSError) and error.errno == number
        if same or os.strerror(number) in str(error):
            return os.strerror(number)
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _placed(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    """Return an array's shape and dtype, and where it lies."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _flat(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _signed(state: Any) -> dict[str, Any]:
    flat = _flat(state)
    return {**flat, _FINGERPRINT: _fingerprint(flat)}


@jax.jit
def _fingerprint(flat: dict[str, Any]) -> Any:
    """Return a number for each leaf that changes when any of its bits does.

    The bytes of a leaf, each times an odd number of its own place, summed modulo 2³²; computed where the leaf
    lies, so a leaf that is spread over machines needs not be brought together.
    """
    return jnp.stack([_leaf_fingerprint(flat[path]) for path in sorted(flat)])


def _leaf_fingerprint(leaf: Any) -> Any:
    leaf = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        leaf = jnp.stack([leaf.real, leaf.imag])
    bits = jax.lax.bitcast_convert_type(leaf, jnp.uint8).astype(jnp.uint32).reshape(-1)
    places = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1
    return jnp.sum(bits * (places * jnp.uint32(2654435761)), dtype=jnp.uint32)
