"""Checkpoints, by Orbax: the one module that knows it.

A state is any pytree of arrays. It is stored as a flat dictionary from the path of a leaf to the leaf, so a
checkpoint says what it holds and does not depend on how a module is laid out in memory. Orbax writes into a
folder of another name and renames it when it is whole: a run that is killed leaves the last good one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxrnn import checks

_KEEP = 2


class Checkpoints:
    """The checkpoints of one run, numbered by epoch; the last two are kept."""

    def __init__(self, folder: str | os.PathLike[str]):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_KEEP, create=True, enable_async_checkpointing=False
        )
        self._manager = ocp.CheckpointManager(
            Path(folder).absolute(), options=options, item_handlers=ocp.StandardCheckpointHandler()
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """Epoch of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, epoch: int, state: Any) -> None:
        """Store a state; it is whole on the disk when this returns."""
        self._manager.save(epoch, args=ocp.args.StandardSave(_flat(state)))

    def restore(self, like: Any) -> Any:
        """Return the newest state, with the structure, shapes and dtypes of `like`.

        Raises:
          InputError: there is no checkpoint, or it holds something else than `like`.
        """
        if self.latest is None:
            checks.refuse("run", "no checkpoint", "a run that has finished at least one epoch")
        wanted = jax.eval_shape(lambda: _flat(like))
        metadata = self._manager.item_metadata(self.latest)
        stored = {path: tuple(leaf.shape) for path, leaf in metadata.items()}
        expected = {path: leaf.shape for path, leaf in wanted.items()}
        if stored != expected:
            odd = sorted(set(stored.items()) ^ set(expected.items()))
            checks.refuse(
                "checkpoint", f"another state (differs in {odd[0][0]})", "the state of this model"
            )
        flat = self._manager.restore(self.latest, args=ocp.args.StandardRestore(wanted))
        return jax.tree.unflatten(jax.tree.structure(like), [flat[path] for path in _flat(like)])


def _flat(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
