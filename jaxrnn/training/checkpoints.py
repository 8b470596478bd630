"""Checkpoints, by Orbax: the one module that knows it.

A state is any pytree of arrays. It is stored as a flat dictionary from the path of a leaf to the leaf, so a
checkpoint says what it holds and does not depend on how a module is laid out in memory. Orbax writes while
training goes on, into a folder of another name, which it renames when it is whole: a run that is killed
leaves the last good one. With several processes each writes what lies on its own devices, and as many or
fewer may read it back.

A file can rot after it was whole. So a fingerprint of every leaf is stored beside it; a checkpoint that
cannot be read, or that holds other numbers than were written, is passed over for the one before. And it may
have been brought here from another run, in whose place it fits: each says of which run it is
(`jaxrnn.training.origin`), and one of another run is refused.

A checkpoint that is no longer needed is first renamed and then deleted, so a kill leaves no half of one under
its number.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.files import refuse_links
from jaxrnn.training.origin import Origin

_KEEP = 2
_FINGERPRINT = "fingerprint"
_ORIGIN = "origin"
_DELETED = "deleted"
_TEMPORARY = "*.orbax-checkpoint-tmp*"


class Checkpoints:
    """The checkpoints of one run, numbered by step; the last two are kept.

    Args:
      folder: where they lie.
      say: is told of a checkpoint that is damaged, and which one is read in its place.
      origin: returns what is known of the run now; it is stored in each checkpoint and compared with what is
        read. None stores nothing and compares nothing.
      writing: whether `save` will be called; without it nothing in the folder is changed.

    Raises:
      InputError: the folder is a symbolic link or holds one.
    """

    @checked
    def __init__(
        self,
        folder: str | os.PathLike[str],
        say: Callable[[str], None] = lambda text: None,
        *,
        origin: Callable[[], Origin] | None = None,
        writing: bool = True,
    ):
        self._folder, self._say, self._origin = Path(folder).absolute(), say, origin
        if self._folder.is_symlink():
            checks.refuse("checkpoints", f"the symbolic link {folder}", "a folder")
        refuse_links("checkpoints", self._folder)
        self._writing = writing
        self._open = ExitStack()

    def __enter__(self) -> Checkpoints:
        options = ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
        if self._writing:
            options = ocp.CheckpointManagerOptions(max_to_keep=_KEEP, todelete_subdir=_DELETED)
        with ExitStack() as begun, self._room():
            begun.enter_context(_quiet())
            self._manager = ocp.CheckpointManager(
                self._folder, options=options, item_handlers=ocp.StandardCheckpointHandler()
            )
            self._open = begun.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._open, self._room():
            self._manager.wait_until_finished()
            self._manager.close()
            self._delete_renamed()
            if (self._folder / _DELETED).exists() and jax.process_index() == 0 and self._writing:
                (self._folder / _DELETED).rmdir()

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Begin to store a state; the one before is then whole on the disk.

        Raises:
          InputError: there is no room, or no permission; the checkpoint before stays good.
        """
        about = None if self._origin is None else json.dumps(self._origin().at(step))
        with self._room():
            self._manager.save(
                step,
                args=ocp.args.StandardSave(_signed(state)),
                custom_metadata={_ORIGIN: about},
                force=True,
            )
            self._delete_renamed()

    def read(self) -> dict[str, Any]:
        """Return the newest intact state as a dictionary from the path of a leaf to the leaf.

        Raises:
          InputError: there is no intact checkpoint, or it is of another run.
        """
        return self._newest(self._intact)

    def restore(self, like: Any) -> Any:
        """Return the newest state that is intact, with the structure, shapes, dtypes and devices of `like`.

        Those that are damaged are passed over; `say` is told of them, and which one is read in their place.

        Raises:
          InputError: there is no intact checkpoint, it is of another run, or it holds something else than
            `like`.
        """
        wanted = {path: _placed(leaf) for path, leaf in _signed(like).items()}
        flat = self._newest(lambda step: self._intact(step, wanted))
        return jax.tree.unflatten(jax.tree.structure(like), [flat[path] for path in _flat(like)])

    def forget_others(self, step: int) -> None:
        """Delete what a run that goes on from a step has no use for.

        Those are the checkpoints after it, which were passed over and whose numbers will come again; what is
        older than those that are kept; and what a process left that was killed.
        """
        steps = self._manager.all_steps()
        kept = sorted(number for number in steps if number <= step)[-_KEEP:]
        with self._room():
            for number in steps:
                if number not in kept:
                    self._manager.delete(number)
            self._delete_renamed()
            if jax.process_index() == 0:
                for left in self._folder.glob(_TEMPORARY):
                    shutil.rmtree(left)

    def _newest(self, read: Callable[[int], dict[str, Any]]) -> dict[str, Any]:  # noqa: RET503
        """Return what `read` makes of the newest checkpoint that it finds intact.

        Steps are listed again after each failure: a run that goes on writing may have deleted the step that
        was tried, and written another.
        """
        tried: set[int] = set()
        while left := set(self._manager.all_steps(read=True)) - tried:
            step = max(left)
            tried.add(step)
            try:
                found = read(step)
            except (checks.InputError, MemoryError, PermissionError):
                raise
            except Exception as error:  # damage may surface as any error at all
                if "RESOURCE_EXHAUSTED" in str(error):
                    raise
                if (self._folder / str(step)).exists():  # or else it was deleted, not damaged
                    self._say(f"the checkpoint of step {step} is damaged ({_first_line(error)})")
            else:
                if len(tried) > 1:
                    self._say(f"read the checkpoint of step {step}")
                return found
        checks.refuse("run", "no intact checkpoint", "a run that has come to its first report")

    def _check_origin(self, step: int) -> None:
        """Refuse a checkpoint of another run; one of an older version does not say of which it is."""
        if self._origin is None:
            return
        about = (self._manager.metadata(step).custom_metadata or {}).get(_ORIGIN)
        if about is None:
            self._say(
                f"the checkpoint of step {step} is of an older version: its run is not checked"
            )
        else:
            self._origin().check(json.loads(about), step)

    def _delete_renamed(self) -> None:
        """Delete the checkpoints that were renamed because they are no longer needed."""
        renamed = self._folder / _DELETED
        if not self._writing or jax.process_index() != 0 or not renamed.exists():
            return
        for folder in renamed.iterdir():  # it stays itself: Orbax may be renaming into it
            shutil.rmtree(folder)

    def _intact(self, step: int, wanted: dict[str, Any] | None = None) -> dict[str, Any]:
        """Read a checkpoint, or raise what shows that it is damaged."""
        metadata = self._manager.item_metadata(step)
        self._check_origin(step)
        stored = {path: tuple(leaf.shape) for path, leaf in metadata.items()}
        if wanted is None:
            here = jax.sharding.SingleDeviceSharding(
                jax.local_devices()[0]
            )  # wherever it was written
            wanted = {
                path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
                for path, leaf in metadata.items()
            }
        expected = {path: leaf.shape for path, leaf in wanted.items()}
        if stored != expected:
            odd = sorted(set(stored.items()) ^ set(expected.items()))
            checks.refuse(
                "checkpoint", f"another state (differs in {odd[0][0]})", "the state of this model"
            )
        flat = dict(self._manager.restore(step, args=ocp.args.StandardRestore(wanted)))
        leaves = {path: leaf for path, leaf in flat.items() if path != _FINGERPRINT}
        if not bool(jnp.array_equal(_fingerprint(leaves), flat[_FINGERPRINT])):
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what Orbax logs, and what TensorStore prints of reads for which nobody waits any more.

    Orbax raises the first failure, which is enough. It ends its event loop then, while other reads are on
    their way; each of them would print a traceback when it comes back.
    """
    logger, hook = logging.getLogger("absl"), sys.unraisablehook

    def foreign(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    def unless_late(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    logger.addFilter(foreign)
    sys.unraisablehook = unless_late
    try:
        yield
    finally:
        sys.unraisablehook = hook
        logger.removeFilter(foreign)


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
