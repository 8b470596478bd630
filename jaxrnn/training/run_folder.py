"""A run and its folder: everything that is needed to know what was done, and to go on with it.

    config.json      every setting, as it was asked for
    env.json         versions, devices, git revision
    metrics.jsonl    one line a report; numbers that are not finite as "nan", "inf", "-inf"
    checkpoints/     the state at each report; the last few are kept
    result.json      scores on the test data, once training has come to its end
    lock             held by the process that writes here
    figures/, report.md, report.html    what was found

A folder that already holds a run is never overwritten: it is refused, or, when asked, resumed. Resuming
insists on the settings of the first time and names every one that differs. While one process writes, another
is refused; of several processes that train together the first one writes.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import filelock
import jax

from jaxrnn import checks
from jaxrnn.files import UNFINISHED, replace_file

_CONFIG, _ENVIRONMENT, _METRICS = "config.json", "env.json", "metrics.jsonl"
_RESULT, _LOCK = "result.json", "lock"
_PACKAGES = ("jaxrnn", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class RunFolder:
    """The folder of one run.

    Args:
      path: where it is, or shall be.
      config: the settings, as a JSON-like dictionary.
      resume: go on with a run that is there; without it, a folder with a run is refused.

    Nothing is written before `open`.

    Raises:
      InputError: the folder holds a run already, or one with other settings, or cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], config: dict[str, Any], *, resume: bool = False
    ):
        self.path = Path(path)
        self._config = json.loads(json.dumps(config))  # what it will be when it is read back
        self._resume = resume
        self._check()

    def _check(self) -> None:
        """Refuse a folder that holds what it should not, or not what it should."""
        if jax.process_index() != 0:  # the first process looks, and may have begun to write
            return
        try:
            settled = (self.path / _CONFIG).exists()
            others = self.path.exists() and any(
                file.suffix != UNFINISHED and file.name != _LOCK for file in self.path.iterdir()
            )
        except OSError as error:
            checks.refuse("out", f"{self.path} ({error.strerror})", "a folder")
        if self._resume and not settled:
            checks.refuse("resume", f"{self.path}, which holds no run", "the folder of a run")
        if self._resume:
            _require_same(self.path, self._config)
        elif others:
            hint = "a new folder, or --resume to go on with the run" if settled else "a new folder"
            checks.refuse("out", f"{self.path}, which is not empty", hint)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the folder, so that no other process writes into it, and open it.

        Raises:
          InputError: another process holds it, or it cannot be written.
        """
        if jax.process_index() != 0:
            yield
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.path / _LOCK, blocking=False)
            lock.acquire()
        except filelock.Timeout:
            checks.refuse(
                "out", f"{self.path}, into which another process writes", "a folder of its own"
            )
        except OSError as error:
            self._refuse(error)
        with lock:
            self._check()  # once more: another process may have been here since
            self.open()
            yield

    def open(self) -> None:
        """Make the folder and write down settings and environment; those of the first time stay."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            _write(self.path / _CONFIG, json.dumps(self._config, indent=2))
            if not (self.path / _ENVIRONMENT).exists():
                _write(self.path / _ENVIRONMENT, json.dumps(environment(), indent=2))
            self.figures.mkdir(exist_ok=True)
        except OSError as error:
            self._refuse(error)

    def _refuse(self, error: OSError) -> NoReturn:
        checks.refuse("out", f"{self.path} ({error.strerror})", "a folder that can be written")

    @property
    def figures(self) -> Path:
        """Where figures go."""
        return self.path / "figures"

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The file of metrics."""
        return self.path / _METRICS

    def append(self, row: dict[str, Any]) -> None:
        """Add one line of metrics; it is on the disk when this returns."""
        if jax.process_index() != 0:
            return
        try:
            with self.metrics.open("a") as file:
                file.write(_written(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._refuse(error)

    def finish(self, result: dict[str, Any]) -> None:
        """Write down what training came to."""
        if jax.process_index() == 0:
            try:
                _write(self.path / _RESULT, _written(result, indent=2))
            except OSError as error:
                self._refuse(error)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Read the metrics; a last line that was cut off by a crash is left out."""
        return read_metrics(self.path)

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Forget the metrics after `step`, of which the checkpoint to go on from does not know.

        Returns:
          The rows that are left.
        """
        kept = [row for row in self.rows() if row["step"] <= step]
        if jax.process_index() == 0:
            lines = [_written(row) + "\n" for row in kept]
            try:
                replace_file(self.metrics, "".join(lines).encode())
            except OSError as error:
                self._refuse(error)
        return kept


def holds_run(path: Path) -> bool:
    """Tell whether a folder holds a run that can be resumed."""
    return (path / _CONFIG).exists()


def read_metrics(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Read the metrics of a run; a last line that was cut off by a crash is left out."""
    file = Path(path) / _METRICS
    if not file.exists():
        return
    for line in file.read_text().splitlines():
        try:
            yield _read(line)
        except json.JSONDecodeError:
            return


def read_result(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return what a run came to; None if it has not come to its end."""
    file = Path(path) / _RESULT
    return _read(file.read_text("utf-8")) if file.exists() else None


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the settings of a run.

    Raises:
      InputError: the folder holds no run.
    """
    file = Path(path) / _CONFIG
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):  # what is no JSON, or no text, is a ValueError
        checks.refuse("run", str(path), f"a run's folder, with a readable {file.name}")


def environment() -> dict[str, Any]:
    """Return what a result depends on beside its settings: versions, devices, revision."""
    return {
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
        "revision": _revision(),
    }


def _revision() -> str | None:
    """Return the git revision of the code, if the code lies in a checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _require_same(folder: Path, config: dict[str, Any]) -> None:
    before, now = _flat(read_config(folder)), _flat(config)
    changed = [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    if changed:
        checks.refuse(
            "resume", f"other settings ({'; '.join(changed)})", "those of the run in the folder"
        )


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Name every setting by its path: ``fit.epochs``, ``runs.0.cell``."""
    if not isinstance(settings, (dict, list)):
        return {prefix.removesuffix("."): settings}
    parts = settings.items() if isinstance(settings, dict) else enumerate(settings)
    return {k: v for name, part in parts for k, v in _flat(part, f"{prefix}{name}.").items()}


def _write(path: Path, text: str) -> None:
    replace_file(path, (text + "\n").encode())


_NOT_FINITE = ("nan", "inf", "-inf")


def _written(content: Any, **layout: Any) -> str:
    """Return JSON that any program reads: numbers that are not finite become "nan", "inf", "-inf"."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(part) for name, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(part) for part in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(content), allow_nan=False, **layout)


def _read(text: str) -> Any:
    """Return what `_written` wrote."""

    def numbers(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: numbers(part) for name, part in value.items()}
        if isinstance(value, list):
            return [numbers(part) for part in value]
        return float(value) if value in _NOT_FINITE else value

    return numbers(json.loads(text))
