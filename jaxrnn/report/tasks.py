"""The table of tasks, as `jaxrnn tasks` prints it."""

from __future__ import annotations

from jaxrnn.tasks import TASKS

TASKS_HEADER = ("task", "what", "settings", "files")


def task_rows() -> list[tuple[str, ...]]:
    """Return a row of words for each task."""
    return [
        (
            name,
            entry.summary,
            ", ".join(f"{setting}={value}" for setting, value in entry.choices.items()),
            "needs files" if entry.reads_files else "",
        )
        for name, entry in TASKS.items()
    ]
