"""How it is measured: rivals take turns, so that what disturbs one disturbs all.

A turn is a few runs in a row, of which the first does not count: a program that runs again and again, as
in training, finds its memory touched and its threads awake, and not as another left them.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import time
import tokenize
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

_PACKAGE = Path(__file__).parents[1] / "jaxrnn"
_BLOCKS = {tokenize.INDENT: "{", tokenize.DEDENT: "}"}
_RUNS = 3
"""Timed runs of a turn; their median is the turn's time."""


def take_turns(
    rivals: Mapping[str, Callable[[], float]],
    *,
    seconds: float = 2.0,
    turns: tuple[int, int] = (5, 40),
) -> dict[str, np.ndarray]:
    """Return seconds per run for each rival, one value a turn; turn i of one follows turn i of another.

    Args:
      rivals: each a call that takes a turn and returns the seconds of a run.
      seconds: how long to go on, about.
      turns: the fewest and the most turns.
    """
    began = time.perf_counter()
    for take in rivals.values():
        take()
    count = int(np.clip(seconds / (time.perf_counter() - began), *turns))
    times: dict[str, list[float]] = {name: [] for name in rivals}
    order = np.random.default_rng(0)
    for _ in range(count):
        for name in order.permutation(list(rivals)):  # nobody always follows the same one
            times[name].append(rivals[name]())
    return {name: np.array(values) for name, values in times.items()}


def turn(run: Callable[[], object]) -> float:
    """Run a few times; return the median seconds of all but the first."""
    run()
    return float(np.median([_seconds(run) for _ in range(_RUNS)]))


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def processor() -> str:
    """Return the processor's name and its widest vectors, where the system tells them.

    Two machines of one name, one with AVX-512 and one without, differ by more than most rivals do.
    """
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        pairs = (line.partition(":") for line in lines)
        told = {name.strip(): text.strip() for name, _, text in pairs}
        flags = told.get("flags", told.get("Features", "")).split()
        vectors = {"avx512f": "AVX-512", "avx2": "AVX2", "sve": "SVE", "asimd": "NEON"}
        widest = next((name for flag, name in vectors.items() if flag in flags), "")
        return ", ".join(filter(None, (told.get("model name", ""), widest)))
    return platform.processor()


def engine(package: Path = _PACKAGE) -> str:
    """Return a digest of the code behind `unroll`: a row that another digest stands beside is out of date.

    Docstrings, comments, layout and imports do not count: they change no program.
    """
    files = [package / "jaxprs.py", *sorted((package / "unrolling").glob("*.py"))]
    return hashlib.sha256("\n".join(map(_code, files)).encode()).hexdigest()[:12]


def _code(file: Path) -> str:
    """Return the tokens of a file's statements, a line a statement."""
    lines: list[str] = []
    line: list[str] = []
    with tokenize.open(file) as stream:
        for token in tokenize.generate_tokens(stream.readline):
            if token.type == tokenize.NEWLINE:
                if line[0] not in ("import", "from") and not line[0].startswith('"'):  # a docstring
                    lines.append(" ".join(line))
                line = []
            elif token.type in _BLOCKS:
                lines.append(_BLOCKS[token.type])
            elif token.type not in (tokenize.COMMENT, tokenize.NL):
                line.append(token.string)
    return "\n".join(lines)


def quartiles(values: np.ndarray) -> list[float]:
    """Return the 25th, 50th and 75th percentile."""
    return [float(q) for q in np.percentile(values, [25, 50, 75])]
