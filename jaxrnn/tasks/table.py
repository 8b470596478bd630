"""The table of tasks: a name, what makes the task, and the settings under which it was published.

A name with settings is a preset: ``adding-600`` is `adding` with ``length=600``, as Bai et al. (2018) ran it.
Any setting can be given another value by whoever loads the task.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.tasks.arithmetic import adding, temporal_order
from jaxrnn.tasks.base import Task
from jaxrnn.tasks.formal import anbn, cycle, dyck, even_pairs, listops, parity, reverse_string
from jaxrnn.tasks.images import digits, mnist
from jaxrnn.tasks.language import characters, shakespeare, words
from jaxrnn.tasks.piano_rolls import jsb_chorales
from jaxrnn.tasks.recall import (
    agreement,
    associative_recall,
    copy_memory,
    first_token,
    flip_flop,
    selective_copy,
    shifted_labels,
)
from jaxrnn.tasks.sentences import sentiment, wnut17
from jaxrnn.tasks.series import fitzhugh_nagumo, lorenz, mackey_glass, random_walk
from jaxrnn.tasks.translation import multi30k

_FOLDER = "folder"
_LARGEST = 10**6  # the largest value of a setting: no task has as many steps


@dataclasses.dataclass(frozen=True)
class TaskEntry:
    """A row of the table.

    Attributes:
      make: makes the task from keyword settings; one that reads files takes their `folder` first.
      settings: the preset's settings, where they are not the defaults of `make`.
    """

    make: Callable[..., Task]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The first line of what `make` says of itself."""
        return (inspect.getdoc(self.make) or "").splitlines()[0]

    @property
    def reads_files(self) -> bool:
        """Whether the task needs a folder of data."""
        return _FOLDER in inspect.signature(self.make).parameters

    @property
    def choices(self) -> dict[str, Any]:
        """Every setting with its value."""
        parameters = inspect.signature(self.make).parameters
        defaults = {name: p.default for name, p in parameters.items() if name != _FOLDER}
        return {**defaults, **self.settings}


TASKS: dict[str, TaskEntry] = {
    "copy-memory": TaskEntry(copy_memory),
    "copy-memory-300": TaskEntry(copy_memory, {"delay": 300}),
    "copy-memory-500": TaskEntry(copy_memory, {"delay": 500}),
    "selective-copy": TaskEntry(selective_copy),
    "first-token": TaskEntry(first_token),
    "flip-flop": TaskEntry(flip_flop),
    "agreement": TaskEntry(agreement),
    "delayed-labels": TaskEntry(shifted_labels),
    "look-ahead-labels": TaskEntry(shifted_labels, {"shift": -10}),
    "associative-recall": TaskEntry(associative_recall),
    "adding": TaskEntry(adding),
    "adding-600": TaskEntry(adding, {"length": 600}),
    "adding-2000": TaskEntry(adding, {"length": 2_000}),
    "temporal-order": TaskEntry(temporal_order),
    "parity": TaskEntry(parity),
    "even-pairs": TaskEntry(even_pairs),
    "cycle": TaskEntry(cycle),
    "anbn": TaskEntry(anbn),
    "dyck": TaskEntry(dyck),
    "reverse-string": TaskEntry(reverse_string),
    "listops": TaskEntry(listops),
    "fitzhugh-nagumo": TaskEntry(fitzhugh_nagumo),
    "lorenz": TaskEntry(lorenz),
    "mackey-glass": TaskEntry(mackey_glass),
    "random-walk": TaskEntry(random_walk),
    "digits": TaskEntry(digits),
    "mnist": TaskEntry(mnist),
    "mnist-permuted": TaskEntry(mnist, {"permuted": True}),
    "mnist-14": TaskEntry(mnist, {"side": 14}),
    "jsb-chorales": TaskEntry(jsb_chorales),
    "characters": TaskEntry(characters),
    "words": TaskEntry(words),
    "shakespeare": TaskEntry(shakespeare),
    "sentiment": TaskEntry(sentiment),
    "wnut17": TaskEntry(wnut17),
    "multi30k": TaskEntry(multi30k),
}


@checked
def load_task(name: str, folder: str | os.PathLike[str] | None = None, **settings: Any) -> Task:
    """Load a task by its name.

    Args:
      name: a name of the table.
      folder: where the task's files lie; by default below ``$JAXRNN_DATA``.
      settings: in place of the preset's.

    Raises:
      InputError: no such task or setting, or its data are missing or damaged.

    Example:
      >>> import jaxrnn
      >>> task = jaxrnn.tasks.load_task("digits")
      >>> task.in_features, task.outputs, len(task.test)
      (1, 10, 360)
    """
    checks.choice("task", name, TASKS)
    entry = TASKS[name]
    for setting in settings:
        if not entry.choices:
            checks.refuse(f"{name}: {setting}", settings[setting], "no settings: it has none")
        checks.choice(f"{name}: setting", setting, entry.choices)
    for setting, value in settings.items():
        _check_kind(setting, value, entry.choices[setting])
    if folder is not None and not entry.reads_files:
        expected = f"none, for {name} reads no folder"
        hint = "; a text is given as the setting file" if "file" in entry.choices else ""
        checks.refuse("data", folder, expected + hint)
    files = {_FOLDER: folder} if entry.reads_files else {}
    try:
        task = entry.make(**files, **{**entry.settings, **settings})
    except MemoryError:
        given = ", ".join(f"{setting}={value}" for setting, value in settings.items())
        checks.refuse(
            name, f"{given or 'data'} that fill more memory than there is", "smaller ones"
        )
    return dataclasses.replace(task, name=name)


def _check_kind(setting: str, value: Any, default: Any) -> None:
    """Refuse a value of another kind than the default's, and immense ones; a float may be whole."""
    if isinstance(value, int | float) and not abs(value) <= _LARGEST:
        checks.refuse(setting, repr(value), f"a number of at most {_LARGEST:,}")
    kind = str if default is None else type(default)
    if kind is float and type(value) is int:
        return
    if type(value) is not kind and not (default is None and value is None):
        checks.refuse(setting, repr(value), f"{kind.__name__}, such as {default!r}")
