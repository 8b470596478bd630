"""Of which run a checkpoint is: its settings, its step, and a digest of the reports up to it.

A checkpoint of another run may fit in every shape. So each one holds what is known of its run when it is
written, and whoever reads it compares that with the folder in which it lies. The digest is SHA-256 over the
lines of ``metrics.jsonl``, written anew: line ends and blanks do not count, numbers do.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from typing import Any

from jaxrnn import checks


class Origin:
    """What checkpoints say of their run.

    Args:
      settings: as in ``config.json``.
      rows: the reports so far.
    """

    def __init__(self, settings: dict[str, Any], rows: Iterable[dict[str, Any]] = ()):
        self._settings = settings
        self._hash = hashlib.sha256()
        self._digests = {-1: self._hash.hexdigest()}  # by the step of a report
        for row in rows:
            self.add(row)

    def add(self, row: dict[str, Any]) -> None:
        """Take one more report into account."""
        self._hash.update(written(row).encode() + b"\n")
        self._digests[row["step"]] = self._hash.hexdigest()

    def at(self, step: int) -> dict[str, Any]:
        """Return what a checkpoint of this step says."""
        last = max(reported for reported in self._digests if reported <= step)
        return {"step": step, "settings": self._settings, "reports": self._digests[last]}

    def check(self, found: dict[str, Any], step: int) -> None:
        """Refuse what a checkpoint says if this run would have said something else.

        Raises:
          InputError: it is of another run or step, or ``metrics.jsonl`` is not as it was; the message says
            what differs.
        """
        expected = self.at(step)
        if found == expected:
            return
        name = f"the checkpoint of step {step}"
        changed = differences(found.get("settings"), self._settings)
        if changed:
            got = f"{name} of another run, with other settings ({changed})"
            checks.refuse("checkpoints", got, "those of the run in the folder")
        if found.get("step") != step:
            got = f"{name}, which was written at step {found.get('step')}"
            checks.refuse("checkpoints", got, "checkpoints under their own numbers")
        got = f"other reports up to step {step} than those with which its checkpoint was written"
        checks.refuse("metrics", got, "metrics.jsonl as the run wrote it, with its own checkpoints")


def differences(before: Any, now: Any) -> str:
    """Name every setting that differs, with both values; nothing where none does."""
    old, new = _flat(before), _flat(now)
    return "; ".join(
        f"{key} was {old.get(key)!r} and is {new.get(key)!r}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    )


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Name every setting by its path: ``fit.epochs``, ``runs.0.cell``."""
    if not isinstance(settings, (dict, list)):
        return {prefix.removesuffix("."): settings}
    parts = settings.items() if isinstance(settings, dict) else enumerate(settings)
    return {k: v for name, part in parts for k, v in _flat(part, f"{prefix}{name}.").items()}


_NOT_FINITE = ("nan", "inf", "-inf")


def written(content: Any, **layout: Any) -> str:
    """Return JSON that any program reads: numbers that are not finite become "nan", "inf", "-inf"."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(part) for name, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(part) for part in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(content), allow_nan=False, **layout)


def read(text: str) -> Any:
    """Return what `written` wrote."""

    def numbers(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: numbers(part) for name, part in value.items()}
        if isinstance(value, list):
            return [numbers(part) for part in value]
        return float(value) if value in _NOT_FINITE else value

    return numbers(json.loads(text))
