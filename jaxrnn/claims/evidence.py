"""What an experiment found, without a word on what it means: samples, checks, and the figure's numbers.

    Sample    the values of one quantity under one condition, one value a replicate
    Check     a control, a grid of rates or a budget that held, or did not
    Panel     lines of one panel of the figure

A record is small and plain JSON, so that the page and its figures can be made again from it in seconds.
Numbers are kept to eight digits: more than any verdict depends on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.claims.statistics import Values
from jaxrnn.files import open_regular, replace_file, writing
from jaxrnn.training.origin import read, written

_DIGITS = 8
_MOST_BYTES = 2**24  # a record is some ten kilobytes


def _numbers(values: Values) -> tuple[float, ...]:
    """Return numbers as Python's, to eight digits."""
    return tuple(
        float(f"{value:.{_DIGITS}g}") for value in np.ravel(np.asarray(values, float)).tolist()
    )


@dataclasses.dataclass(frozen=True)
class Sample:
    """Values of one quantity under one condition.

    Attributes:
      quantity: what was measured, with its unit, as in "slope, nats a step".
      condition: the level of every factor that was varied, as in {"cell": "gru", "training": "after"}.
      values: one a replicate.
      seeds: the seeds of the replicates; empty where nothing is random.
      censored: for times to an event, whether it had not yet happened; empty for other quantities.
    """

    quantity: str
    condition: dict[str, str]
    values: Values
    seeds: Sequence[int] = ()
    censored: Sequence[bool] | np.ndarray = ()

    def __post_init__(self):
        """Make plain numbers of the values and refuse other numbers of seeds or marks than of values."""
        object.__setattr__(self, "values", _numbers(self.values))
        object.__setattr__(self, "seeds", tuple(map(int, self.seeds)))
        object.__setattr__(self, "censored", tuple(map(bool, self.censored)))
        if not self.values:
            checks.refuse("values", "none", f"one or more of {self.quantity!r}")
        for name in ("seeds", "censored"):
            marks = getattr(self, name)
            if len(marks) and len(marks) != len(self.values):
                checks.refuse(
                    name, f"{len(marks)}", f"one for each of the {len(self.values)} values"
                )

    @property
    def name(self) -> str:
        """The condition in words."""
        return ", ".join(self.condition.values()) or "all"


@dataclasses.dataclass(frozen=True)
class Check:
    """Something that must hold for the evidence to count.

    Attributes:
      kind: a control that must succeed, one that must fail, the grid of learning rates (the best one must not
        stand at its edge), or the budget (twice the steps must not change the answer).
      name: what was checked.
      passed: whether it held.
      detail: the numbers by which it was decided.
    """

    kind: Literal["positive control", "negative control", "rate grid", "budget"]
    name: str
    passed: bool | np.bool
    detail: str = ""

    def __post_init__(self):
        """Make NumPy's booleans Python's."""
        object.__setattr__(self, "passed", bool(self.passed))


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a figure: points with an optional band around them.

    Attributes:
      label: for the legend; empty for none.
      x: abscissae.
      y: ordinates.
      low: lower edge of the band, or empty.
      high: upper edge of the band, or empty.
      style: "line", "points" or "both".
    """

    label: str
    x: Values
    y: Values
    low: Values = ()
    high: Values = ()
    style: Literal["line", "points", "both"] = "line"

    def __post_init__(self):
        """Make plain numbers of all coordinates."""
        for name in ("x", "y", "low", "high"):
            object.__setattr__(self, name, _numbers(getattr(self, name)))
        if len({len(self.x), len(self.y)} | {len(e) for e in (self.low, self.high) if len(e)}) > 1:
            got = f"{len(self.x)}, {len(self.y)}, {len(self.low)}, {len(self.high)} of x, y, low, high"
            checks.refuse(f"line {self.label!r}", got, "equally many")


@dataclasses.dataclass(frozen=True)
class Panel:
    """One panel of the figure.

    Attributes:
      title: above it.
      x: label of the abscissa, with unit.
      y: label of the ordinate, with unit.
      lines: what is drawn.
      x_scale: "linear" or "log".
      y_scale: "linear" or "log".
      marks: dashed horizontal lines: their names and heights.
      ticks: names of the abscissae 0, 1, 2, … where these are conditions; empty for numbers.
    """

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    x_scale: Literal["linear", "log"] = "linear"
    y_scale: Literal["linear", "log"] = "linear"
    marks: dict[str, float] = dataclasses.field(default_factory=dict)
    ticks: Sequence[str] = ()

    def __post_init__(self):
        """Hold sequences as tuples, as they will be when they are read back."""
        object.__setattr__(self, "lines", tuple(self.lines))
        object.__setattr__(self, "ticks", tuple(self.ticks))


@dataclasses.dataclass(frozen=True)
class About:
    """How evidence came about.

    Attributes:
      claim: the claim's name.
      scale: quick or full.
      seeds: seeds of the replicates.
      rule: the rule in words, as it stood before the run.
      revision: git revision of the code; it ends in "-dirty" where the code was not committed.
      machine: the machine and its devices.
      versions: of the packages.
      seconds: how long the experiment took, with compilation.
      date: of the run, as in 2026-01-31.
    """

    claim: str
    scale: str
    seeds: tuple[int, ...]
    rule: str
    revision: str
    machine: str
    versions: dict[str, str]
    seconds: float
    date: str


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What the experiment behind a claim found.

    Attributes:
      samples: what was measured.
      checks: controls, grids and budgets.
      panels: the figure.
      facts: numbers that the page's sentences quote, by name.
      settings: what the reader needs to repeat it, by name, as text.
      about: how it came about; None until the claim has been run as a whole.
    """

    samples: Sequence[Sample]
    checks: Sequence[Check] = ()
    panels: Sequence[Panel] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    settings: dict[str, str] = dataclasses.field(default_factory=dict)
    about: About | None = None

    def __post_init__(self):
        """Hold sequences as tuples and facts as plain numbers, as they will be when they are read back."""
        for name in ("samples", "checks", "panels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        facts = {name: _numbers([float(value)])[0] for name, value in self.facts.items()}
        object.__setattr__(self, "facts", facts)

    def of(self, quantity: str) -> tuple[Sample, ...]:
        """Return the samples of one quantity, in the order in which they were measured."""
        return tuple(sample for sample in self.samples if sample.quantity == quantity)

    def __repr__(self) -> str:
        """A line a sample: its condition, median and number of replicates."""
        head = "Evidence" if self.about is None else f"Evidence of {self.about.claim!r}"
        lines = [f"{head}: {len(self.samples)} samples, {len(self.checks)} checks"]
        for sample in self.samples:
            values = f"median {np.median(sample.values):.4g} of {len(sample.values)}"
            lines.append(f"  {sample.quantity} | {sample.name}: {values}")
        for check in self.checks:
            held = "held" if check.passed else "FAILED"
            lines.append(f"  {check.kind} {held}: {check.name} ({check.detail})")
        return "\n".join(lines)


def short(revision: str) -> str:
    """Return a revision with twelve digits, and whether the code was as committed."""
    return revision[:12] + "-dirty" * revision.endswith("-dirty")


@checked
def write_evidence(path: Path, evidence: Evidence) -> None:
    """Write evidence as JSON.

    Raises:
      InputError: the file cannot be written.
    """
    text = written(dataclasses.asdict(evidence), indent=1, ensure_ascii=False)
    with writing("out", path, "a file that can be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, (_short_lists(text) + "\n").encode())


def _short_lists(text: str) -> str:
    """Put each list of numbers on one line, so that a record is short and its changes are readable."""
    lines: list[str] = []
    opened: int | None = None
    for line in text.split("\n"):
        if line.endswith("["):
            opened = len(lines)
        elif opened is not None and line.strip() in ("]", "],"):
            packed = lines[opened] + " ".join(part.strip() for part in lines[opened + 1 :])
            lines[opened:] = [packed + line.strip()]
            opened = None
            continue
        elif line.endswith("{"):
            opened = None
        lines.append(line)
    return "\n".join(lines)


@checked
def read_evidence(path: Path) -> Evidence:
    """Read what `write_evidence` wrote.

    Raises:
      InputError: the file cannot be read, or holds no evidence.
    """
    expected = "a record of evidence, as jaxrnn claims run writes it"
    try:
        with open_regular(path) as stream:
            content = read(stream.read(_MOST_BYTES).decode())
        return _evidence(content)
    except OSError as error:
        checks.refuse("evidence", f"{path} ({error.strerror})", "a file that can be read")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        checks.refuse("evidence", f"{path} ({type(error).__name__}: {error})", expected)


def _evidence(content: dict[str, Any]) -> Evidence:
    about = content["about"]
    return Evidence(
        samples=tuple(Sample(**sample) for sample in content["samples"]),
        checks=tuple(Check(**check) for check in content["checks"]),
        panels=tuple(
            Panel(**{**panel, "lines": tuple(Line(**line) for line in panel["lines"])})
            for panel in content["panels"]
        ),
        facts=content["facts"],
        settings=content["settings"],
        about=None if about is None else About(**{**about, "seeds": tuple(about["seeds"])}),
    )
