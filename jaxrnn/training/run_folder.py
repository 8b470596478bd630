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

A folder may come from a stranger: links inside it are refused, symbolic and hard ones, and no file of it is
trusted to have the right form.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import filelock
import jax

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.files import (
    UNFINISHED,
    append_line,
    open_regular,
    refuse_links,
    replace_file,
    writing,
)
from jaxrnn.training.origin import Origin, differences, read, written
from jaxrnn.versions import version_of

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

    Attributes:
      origin: what the checkpoints of this run say of it.

    Raises:
      InputError: the folder holds a run already, or one with other settings, or cannot be written.
    """

    @checked
    def __init__(
        self, path: str | os.PathLike[str], config: dict[str, Any], *, resume: bool = False
    ):
        self.path = Path(path)
        self._config = json.loads(json.dumps(config))  # what it will be when it is read back
        self._resume = resume
        self.origin = Origin(self._config)
        self._check()

    def _check(self) -> None:
        """Refuse a folder that holds what it should not, or not what it should."""
        if jax.process_index() != 0:  # the first process looks, and may have begun to write
            return
        settled = holds_run(self.path)
        with writing("out", self.path, "a folder"):
            others = os.path.lexists(self.path) and any(
                file.suffix != UNFINISHED and file.name != _LOCK for file in self.path.iterdir()
            )
        if self._resume and not settled:
            checks.refuse("resume", f"{self.path}, which holds no run", "the folder of a run")
        refuse_links("out", self.path)
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
            self.origin = Origin(self._config, self.rows())
            yield
            return
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.path / _LOCK, blocking=False)
            try:
                lock.acquire()
            except filelock.Timeout:
                checks.refuse(
                    "out", f"{self.path}, into which another process writes", "a folder of its own"
                )
        with lock:
            self._check()  # once more: another process may have been here since
            self.open()
            self.origin = Origin(self._config, self.rows())
            yield

    def open(self) -> None:
        """Make the folder and write down settings and environment; those of the first time stay."""
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            for left in self.path.glob(f"*{UNFINISHED}"):  # by a process that was killed
                left.unlink()
            _write(self.path / _CONFIG, json.dumps(self._config, indent=2))
            if not (self.path / _ENVIRONMENT).exists():
                _write(self.path / _ENVIRONMENT, json.dumps(environment(), indent=2))
            self.figures.mkdir(exist_ok=True)

    def _writing(self) -> AbstractContextManager[None]:
        return writing("out", self.path, "a folder that can be written")

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
        with self._writing():
            append_line(self.metrics, written(row))
        self.origin.add(row)

    def finish(self, result: dict[str, Any]) -> None:
        """Write down what training came to."""
        if jax.process_index() == 0:
            with self._writing():
                _write(self.path / _RESULT, written(result, indent=2))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Read the metrics; a last line that was cut off by a crash is left out."""
        return read_metrics(self.path)

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Forget the metrics after `step`, of which the checkpoint to go on from does not know.

        Returns:
          The rows that are left.
        """
        kept = [row for row in self.rows() if row["step"] <= step]
        self.origin = Origin(self._config, kept)
        if jax.process_index() == 0:
            lines = [written(row) + "\n" for row in kept]
            with self._writing():
                replace_file(self.metrics, "".join(lines).encode())
        return kept


@checked
def holds_run(path: str | os.PathLike[str]) -> bool:
    """Tell whether a folder holds a run that can be resumed."""
    return os.path.isfile(Path(path) / _CONFIG)


@checked
def read_metrics(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Read the metrics of a run; a last line that was cut off by a crash is left out.

    Raises:
      InputError: the file cannot be read, or a line is no report; steps must rise from line to line.
    """
    file = Path(path) / _METRICS
    if not os.path.lexists(file):
        return
    lines, before = _text("metrics", file).split("\n"), -1
    for number, line in enumerate(lines, 1):
        last = number == len(
            lines
        )  # what stands behind the last line feed: nothing, or a part of a line
        row = _report(line)
        if last and row is None:
            return
        if row is None or row["step"] <= before:
            got = f"{file}, line {number}: {_shortened(line)}"
            expected = "one report a line, an object with the whole number step, which rises"
            checks.refuse("metrics", got, expected)
        before = row["step"]
        yield row


def _report(line: str) -> dict[str, Any] | None:
    """Return the report that a line of metrics holds; None where it holds none."""
    try:
        row = read(line)
    except (
        ValueError,
        RecursionError,
    ):  # no JSON, digits without end, lists within lists without end
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return row if isinstance(step, int) and not isinstance(step, bool) and step >= 0 else None


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:79]}…")


@checked
def read_result(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return what a run came to; None if it has not come to its end.

    Raises:
      InputError: there is a result, but it cannot be read.
    """
    file = Path(path) / _RESULT
    return _object("result", file, read) if os.path.lexists(file) else None


@checked
def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the settings of a run.

    Raises:
      InputError: the folder holds no run, or a link.
    """
    file = Path(path) / _CONFIG
    if not holds_run(path):
        checks.refuse("run", str(path), f"a run's folder, with a readable {file.name}")
    refuse_links("run", path)
    return _object("run", file, json.loads)


def _object(argument: str, file: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """Read a file that holds one JSON object."""
    try:
        found = parse(_text(argument, file))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        checks.refuse(argument, f"{file}, which holds something else", "a JSON object")
    return found


def _text(argument: str, file: Path) -> str:
    """Read a text."""
    try:
        with open_regular(file) as stream:
            return stream.read().decode()
    except OSError as error:
        checks.refuse(argument, f"{file} ({error.strerror})", "a file that can be read")
    except UnicodeDecodeError:
        checks.refuse(argument, f"{file}, which is not UTF-8", "a text in UTF-8")


def environment() -> dict[str, Any]:
    """Return what a result depends on beside its settings: versions, devices, revision."""
    return {
        "versions": {name: version_of(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
        "revision": _revision(),
    }


def _revision() -> str | None:
    """Return the git revision of the code, if the code lies in a checkout.

    It ends in "-dirty" where a file of the package is not as it was committed; other files, such as results
    that are written into the checkout, do not count.
    """
    package = Path(__file__).parents[1]

    def git(*words: str) -> str:
        command = ["git", "-C", str(package), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        dirty = "-dirty" if git("status", "--porcelain", "--", ".") else ""
        return git("rev-parse", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return None


def _require_same(folder: Path, config: dict[str, Any]) -> None:
    changed = differences(read_config(folder), config)
    if changed:
        checks.refuse("resume", f"other settings ({changed})", "those of the run in the folder")


def _write(path: Path, text: str) -> None:
    replace_file(path, (text + "\n").encode())
