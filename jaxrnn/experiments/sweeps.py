"""Sweeps over any setting: as networks of one ensemble where shapes agree, as runs side by side where not.

    learning_rate, clip_norm, recurrent_gain, l2, …    numbers of which one run tries several values
    cell, hidden_features, optimizer, task.length, …   a run for each value, in a folder of its own

What one run tries starts from the same weights and sees the same data, and costs one compilation. The best
settings are chosen by the validation score; the test score beside it has had no part in the choice, but the
largest of many validation scores is a lucky one: run the winner again on fresh seeds before it is reported.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from jaxrnn import checks, plot
from jaxrnn.annotations import checked
from jaxrnn.experiments.figures import save_figure
from jaxrnn.experiments.networks import NetworkConfig, network
from jaxrnn.experiments.runs import RunConfig, train
from jaxrnn.experiments.summary import Score, scores
from jaxrnn.report import Report, plain
from jaxrnn.training import (
    FitConfig,
    FitResult,
    Penalties,
    Placement,
    ProgressBar,
    RunFolder,
    holds_run,
)

Axes = Mapping[str, Sequence[Any]]
"""Values to try, by the name of a setting; ``task.NAME`` is a setting of the task."""

_ONE_DEVICE = Placement()
_MOST_RUNS = 1_000
_MOST_DRAWS = 2**16
_MOST_TICKS = 8  # values on an axis that are each named


@dataclasses.dataclass(frozen=True)
class Trial:
    """Networks that were trained with the same settings and differ in their seeds alone.

    Attributes:
      settings: the swept settings.
      run: name of the run's folder.
      valid: their scores on the validation data.
      test: their scores on the test data.
      reached: how many reached the score from which the task counts as solved; None where there is no such.
      chance: the score of an answer that ignores the inputs.
      parameters: of one network.
    """

    settings: dict[str, Any]
    run: str
    valid: Score
    test: Score
    reached: int | None
    chance: float
    parameters: int

    @property
    def name(self) -> str:
        """The settings in words."""
        return ", ".join(f"{name} {_word(value)}" for name, value in self.settings.items())


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep came to.

    Attributes:
      trials: every combination of settings, in the order in which they were given.
      metric: name of the score.
      higher_is_better: whether a larger score is a better one.
    """

    trials: list[Trial]
    metric: str
    higher_is_better: bool

    @property
    def ranked(self) -> list[Trial]:
        """The trials, the best mean validation score first; those without a score last."""
        sign = -1.0 if self.higher_is_better else 1.0

        def place(trial: Trial) -> float:
            return math.inf if math.isnan(trial.valid.mean) else sign * trial.valid.mean

        return sorted(self.trials, key=place)

    @property
    def best(self) -> Trial:
        """The trial with the best mean validation score."""
        return self.ranked[0]

    @property
    def header(self) -> list[str]:
        """The header of `rows`."""
        solved = [] if self.best.reached is None else ["solved"]
        names = [*self.best.settings, f"valid {self.metric}", f"test {self.metric}"]
        return [*names, *solved, "parameters"]

    @property
    def rows(self) -> list[list[str]]:
        """A row of words for each trial, the best first; means with 95 % intervals over seeds."""
        return [
            [
                *map(_word, trial.settings.values()),
                trial.valid.text,
                trial.test.text,
                *([] if trial.reached is None else [f"{trial.reached}/{len(trial.test.values)}"]),
                f"{trial.parameters:,}",
            ]
            for trial in self.ranked
        ]

    def __repr__(self) -> str:
        """The number of trials, and the best one."""
        return f"Sweep of {len(self.trials)} settings; best by validation: {self.best.name}"

    def draw(self) -> Figure:
        """Return a figure of the test scores: against each numeric setting, or a column a trial."""
        with plot.house_style():
            return _figure(self)


@checked
def random_settings(
    ranges: Mapping[str, tuple[float, float]], count: int, *, seed: int = 0
) -> dict[str, tuple[float, ...]]:
    """Draw settings for a random search (Bergstra & Bengio 2012), log-uniformly.

    Args:
      ranges: lowest and highest value of each setting, above 0.
      count: how many to draw.
      seed: of the draws.

    Returns:
      `count` values of each setting, for `sweep` with ``combine="paired"``.

    Raises:
      InputError: a range that is none, or a count out of its range.

    Example:
      >>> from jaxrnn.experiments import random_settings
      >>> drawn = random_settings({"learning_rate": (1e-4, 1e-1), "clip_norm": (0.1, 10.0)}, 5)
      >>> [len(values) for values in drawn.values()]
      [5, 5]
    """
    checks.within("count", count, 1, _MOST_DRAWS)
    checks.within("seed", seed, 0, 2**31 - 1)
    rng = np.random.default_rng(seed)
    drawn = {}
    for name, (low, high) in ranges.items():
        checks.positive_float32(name, low)
        checks.positive_float32(name, high)
        if low >= high:
            checks.refuse(name, f"{low:g} to {high:g}", "a range from a lower to a higher value")
        logs = rng.uniform(math.log(low), math.log(high), count)
        drawn[name] = tuple(float(f"{value:.4g}") for value in np.exp(logs))
    return drawn


@checked
def sweep_runs(config: RunConfig, over: Axes) -> dict[str, RunConfig]:
    """Return the runs of a sweep by the names of their folders.

    Args:
      config: what is the same in all of them.
      over: the values to try.

    Raises:
      InputError: a setting that there is not, a value that it cannot have, or too many runs.

    Example:
      >>> from jaxrnn.experiments import RunConfig, sweep_runs
      >>> runs = sweep_runs(
      ...     RunConfig("parity"), {"cell": ["lstm", "gru"], "learning_rate": [1e-3, 1e-2]}
      ... )
      >>> list(runs), len(runs["cell=gru"].members)
      (['cell=lstm', 'cell=gru'], 10)
    """
    for name, values in over.items():
        if not len(values):
            checks.refuse(name, repr(values), "a list of values to try")
    inside = {name: tuple(values) for name, values in over.items() if _is_of_member(name)}
    outside = {name: values for name, values in over.items() if name not in inside}
    count = math.prod(len(values) for values in outside.values())
    checks.within("over", count, 1, _MOST_RUNS, " runs")
    runs: dict[str, RunConfig] = {}
    for chosen in itertools.product(*outside.values()):
        settings = dict(zip(outside, chosen, strict=True))
        words = ",".join(f"{name}={_word(value)}" for name, value in settings.items())
        folder = re.sub(r"[^\w.=,+-]", "_", words) or "run"
        if folder in runs:
            checks.refuse("over", f"{folder} twice", "each value once")
        runs[folder] = _with(config, {**inside, **settings})
    return runs


@checked
def sweep(
    config: RunConfig,
    over: Axes,
    out: str | Path,
    *,
    resume: bool = False,
    placement: Placement = _ONE_DEVICE,
) -> Sweep:
    """Train with every combination of settings, and write a table and a figure.

    The folder then holds a run folder for each run, ``report.md``, ``report.html`` and ``figures/sweep.png``.

    Args:
      config: what is the same in all of them; with ``fit.combine="paired"`` the values of settings that one
        run tries go together in pairs, as `random_settings` draws them.
      over: the values to try, by the name of a setting of `NetworkConfig`, `FitConfig` or `Penalties`;
        ``task.NAME`` is a setting of the task.
      out: the folder; it must be new, or with `resume` hold the same sweep.
      resume: go on with a sweep that was broken off: what is finished is read, the rest is trained.
      placement: how many devices to use for each run, and for what.

    Raises:
      InputError: as `sweep_runs` and `train`; all networks are looked at before the first is trained.
      Stopped: the process was asked to end; what was done is kept.
    """
    runs = sweep_runs(config, over)
    for run in runs.values():
        _check_network(run)
    about = {"sweep": {name: list(values) for name, values in over.items()}}
    folder = RunFolder(out, {**dataclasses.asdict(config), **about}, resume=resume)
    sweeps: list[Sweep] = []
    with folder.opened(), ProgressBar("sweep", len(runs)) as bar:
        for name, run in runs.items():
            path = folder.path / name
            result = train(run, path, resume=holds_run(path), placement=placement)
            trials = list(_trials(over, run, name, result))
            sweeps.append(Sweep(trials, result.metric, result.higher_is_better))
            best = sweeps[-1].best
            bar.advance(f"{name}: best by validation {best.name}, test {best.test.text}")
    everything = [trial for part in sweeps for trial in part.trials]
    found = dataclasses.replace(sweeps[0], trials=everything)
    if jax.process_index() == 0:
        _write_report(found, config, folder)
    return found


def _trials(over: Axes, run: RunConfig, name: str, result: FitResult) -> Iterator[Trial]:
    """Group a run's networks by their settings."""
    solved = result.solved is not None
    reached = result.time_to().reached.astype(float) if solved else np.zeros(len(result.members))
    groups = zip(
        scores(result.members, result.valid_score),
        scores(result.members, result.test_score),
        scores(result.members, reached),
        strict=True,
    )
    for valid, test, count in groups:
        settings = {key: test.settings.get(key, _value(run, key)) for key in over}
        yield Trial(
            settings,
            name,
            valid,
            test,
            int(count.values.sum()) if solved else None,
            result.chance,
            result.parameters,
        )


def _check_network(run: RunConfig) -> None:
    """Make a run's network as shapes, so that what cannot be made is said before hours of training."""
    make = network(run.network, run.load_task())
    one = {name: values[0] for name, values in run.network.variants.items()}
    jax.eval_shape(lambda: make(nnx.Rngs(0), **one))


_PARTS = {"network": NetworkConfig, "fit": FitConfig, "penalties": Penalties}


def _part(name: str) -> str:
    """Return which part of a run's settings has one of this name."""
    if name.startswith("task."):
        return "task"
    for part, kind in _PARTS.items():
        if name in {field.name for field in dataclasses.fields(kind)} - {"penalties"}:
            return part
    known = [field.name for kind in _PARTS.values() for field in dataclasses.fields(kind)]
    checks.choice("over", name, [name for name in known if name != "penalties"])
    raise AssertionError(name)  # `choice` has refused it


def _is_of_member(name: str) -> bool:
    """Tell whether one run may try several values of a setting."""
    part = _part(name)
    if part == "task":
        return False
    kind: Any = _PARTS[part]
    annotation = {field.name: str(field.type) for field in dataclasses.fields(kind)}[name]
    return annotation.startswith("Values")


def _with(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Return a run's settings with other values of some of them, checked together."""
    changed: dict[str, dict[str, Any]] = {"task": {}, **{part: {} for part in _PARTS}}
    for name, value in values.items():
        if isinstance(_value(config, name), bool) and not isinstance(value, bool):
            checks.refuse(name, repr(value), "true or false")
        changed[_part(name)][name.removeprefix("task.")] = value
    penalties = dataclasses.replace(config.fit.penalties, **changed["penalties"])
    return dataclasses.replace(
        config,
        settings={**config.settings, **changed["task"]},
        network=dataclasses.replace(config.network, **changed["network"]),
        fit=dataclasses.replace(config.fit, **changed["fit"], penalties=penalties),
    )


def _value(config: RunConfig, name: str) -> Any:
    """Return a run's value of a setting."""
    part = _part(name)
    if part == "task":
        return config.settings.get(name.removeprefix("task."))
    owner = config.fit.penalties if part == "penalties" else getattr(config, part)
    value = getattr(owner, name)
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


def _word(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _write_report(found: Sweep, config: RunConfig, folder: RunFolder) -> Path:
    report = Report(f"A sweep on {config.task}")
    swept = ", ".join(found.best.settings)
    count = len(found.trials)
    report.paragraph(
        f"{count} settings of {plain(swept)}. Means with 95 % intervals over seeds; the best validation "
        f"score first. Score by chance: {found.best.chance:.4g}. The first row was chosen by its validation "
        f"score among {count}: train it again on other seeds before it is reported."
    )
    report.table(
        [plain(name) for name in found.header], [list(map(plain, row)) for row in found.rows]
    )
    save_figure(found.draw(), folder.figures / "sweep.png")
    caption = "Test scores: dots are networks, lines are means over seeds."
    report.figure("figures/sweep.png", caption)
    _, html = report.write(folder.path)
    return html


def _figure(found: Sweep) -> Figure:
    numeric = [name for name in found.best.settings if _is_numeric(found, name)]
    if not numeric:
        return _columns(found)
    figure, axes = plt.subplots(
        1, len(numeric), figsize=(max(5.0, 4.0 * len(numeric)), 4), sharey=True, squeeze=False
    )
    for ax, name in zip(axes[0], numeric, strict=True):
        for label, trials in _lines(found, numeric).items():
            _line(ax, name, label, trials, joined=len(numeric) == 1)
        ax.set_xlabel(name)
        values = sorted({float(trial.settings[name]) for trial in found.trials})
        if values[0] > 0 and values[-1] > 8 * values[0]:
            ax.set_xscale("log")
        if len(values) <= _MOST_TICKS:
            ax.set_xticks(values, map(_word, values))
            ax.minorticks_off()
    axes[0][0].set_ylabel(f"test {found.metric}")
    if len(_lines(found, numeric)) > 1:
        axes[0][-1].legend()
    return figure


def _is_numeric(found: Sweep, name: str) -> bool:
    values = [trial.settings[name] for trial in found.trials]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return numbers and len(set(values)) > 2


def _lines(found: Sweep, numeric: list[str]) -> dict[str, list[Trial]]:
    """Group trials by the settings that are no numbers on an axis."""
    lines: dict[str, list[Trial]] = {}
    for trial in found.trials:
        others = {k: v for k, v in trial.settings.items() if k not in numeric}
        label = ", ".join(f"{name} {_word(value)}" for name, value in others.items())
        lines.setdefault(label, []).append(trial)
    return lines


def _line(ax: Any, name: str, label: str, trials: list[Trial], *, joined: bool) -> None:
    """Draw every network, and with one axis the line of means."""
    trials = sorted(trials, key=lambda trial: trial.settings[name])
    x = [trial.settings[name] for trial in trials]
    each = np.repeat(x, [len(trial.test.values) for trial in trials])
    every = np.concatenate([trial.test.values for trial in trials])
    points = ax.plot(each, every, "o", markersize=3, alpha=0.5, label=None if joined else label)
    if joined:
        means = [trial.test.mean for trial in trials]
        ax.plot(x, means, "-", color=points[0].get_color(), label=label)


def _columns(found: Sweep) -> Figure:
    figure, ax = plt.subplots(figsize=(max(5.0, 0.9 * len(found.trials)), 4))
    for column, trial in enumerate(found.trials):
        values = trial.test.values
        points = ax.plot(np.full(len(values), column), values, "o", markersize=4, alpha=0.6)
        ax.plot(column, trial.test.mean, "_", markersize=18, color=points[0].get_color())
    ax.set_xticks(range(len(found.trials)), [trial.name for trial in found.trials], rotation=30)
    for label in ax.get_xticklabels():
        label.set_horizontalalignment("right")
    ax.set_ylabel(f"test {found.metric}")
    return figure
