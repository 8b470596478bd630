"""The table of published experiments: a name, every setting, and what others report.

``jaxrnn train jsb-lstm`` trains the row as it stands into runs/jsb-lstm, and any option after the name takes
the place of the row's. The chorales have the paper's sizes; adding and copying have the shortest lengths that
are published, 200 and 100 steps; elsewhere networks are of a size that a laptop trains in minutes. Rates and
steps are ours, chosen coarsely by validation and not tuned to what is reported. Where a paper reports on
longer sequences or on another network, `reported` says so; where nobody reports anything it is empty.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxrnn.experiments.networks import NetworkConfig
from jaxrnn.experiments.runs import RunConfig
from jaxrnn.tasks import TASKS
from jaxrnn.training import FitConfig


@dataclasses.dataclass(frozen=True)
class Published:
    """A row of the table.

    Attributes:
      config: every setting of the run.
      reported: what others report, and who; empty where nobody does.
    """

    config: RunConfig
    reported: str = ""


def _row(
    task: str, cell: str, units: int, fit: FitConfig, reported: str = "", **network: Any
) -> Published:
    body = NetworkConfig(cell, units, **network)
    return Published(RunConfig(task, network=body, fit=fit), reported)


_CHORALES = FitConfig(
    steps=3_000,
    every=50,
    batch_size=8,
    learning_rate=(1e-3, 3e-3, 1e-2),
    schedule="constant",
    seeds=3,
    select="best",
)
_DIGITS = FitConfig(steps=4_700, every=470, learning_rate=(3e-3, 2e-2), seeds=3)
_ADDING = FitConfig(steps=6_000, every=600, seeds=3)
_COPY = FitConfig(steps=2_000, every=200, seeds=3)
_PARITY = FitConfig(steps=6_000, every=600, batch_size=64, seeds=10)
_OSCILLATOR = FitConfig(steps=3_000, every=300, learning_rate=9e-3, seeds=3)
_PIXELS = FitConfig(steps=8_000, every=800, batch_size=64, seeds=1)
_REVIEWS = FitConfig(
    steps=1_200, every=100, batch_size=64, learning_rate=(1e-3, 3e-3), seeds=3, select="best"
)
_MESSAGES = FitConfig(steps=3_000, every=100, learning_rate=(3e-3, 1e-2), seeds=3, select="best")
_CAPTIONS = FitConfig(steps=2_300, every=460, batch_size=64, seeds=1, select="best")
_PLAYS = FitConfig(steps=6_000, every=600, seeds=1)

_CONVOLUTION = "0.761, a convolution (Kim 2014)"
_ENTITIES = "0.42, with words of other corpora (Derczynski et al. 2017)"

PUBLISHED: dict[str, Published] = {
    "jsb-elman": _row("jsb-chorales", "elman-tanh", 100, _CHORALES, "9.10 (Chung et al. 2014)"),
    "jsb-lstm": _row("jsb-chorales", "lstm", 36, _CHORALES, "8.67 (Chung et al. 2014)"),
    "jsb-gru": _row("jsb-chorales", "gru", 46, _CHORALES, "8.54 (Chung et al. 2014)"),
    "adding-lstm": _row("adding", "lstm", 64, _ADDING, "0.164 at 600 steps (Bai et al. 2018)"),
    "adding-gru": _row("adding", "gru", 64, _ADDING, "5.3e-5 at 600 steps (Bai et al. 2018)"),
    "adding-lem": _row("adding", "lem", 64, _ADDING, "5.3e-5 at 2,000 steps (Rusch et al. 2022)"),
    "copy-lstm": _row("copy-memory", "lstm", 40, _COPY, "near chance (Arjovsky et al. 2016)"),
    "copy-orthogonal": _row(
        "copy-memory",
        "orthogonal",
        128,
        _COPY,
        "solved by a unitary network (Arjovsky et al. 2016)",
    ),
    "parity-elman": _row(
        "parity", "elman-tanh", 32, _PARITY, "1, best of 10 (Delétang et al. 2023)"
    ),
    "parity-lstm": _row("parity", "lstm", 32, _PARITY, "1, best of 10 (Delétang et al. 2023)"),
    "oscillator-lem": _row("fitzhugh-nagumo", "lem", 16, _OSCILLATOR, "0.0024 (Rusch et al. 2022)"),
    "oscillator-lstm": _row("fitzhugh-nagumo", "lstm", 16, _OSCILLATOR),
    "oscillator-gru": _row("fitzhugh-nagumo", "gru", 16, _OSCILLATOR),
    "digits-elman": _row("digits", "elman-tanh", 100, _DIGITS),
    "digits-lstm": _row("digits", "lstm", 48, _DIGITS),
    "digits-gru": _row("digits", "gru", 56, _DIGITS),
    "mnist-14-gru": _row("mnist-14", "gru", 96, _PIXELS),
    "mnist-14-lem": _row("mnist-14", "lem", 96, dataclasses.replace(_PIXELS, learning_rate=1e-3)),
    "sentiment-elman": _row("sentiment", "elman-tanh", 64, _REVIEWS, _CONVOLUTION, dropout=0.5),
    "sentiment-lstm": _row("sentiment", "lstm", 64, _REVIEWS, _CONVOLUTION, dropout=0.5),
    "sentiment-gru": _row("sentiment", "gru", 64, _REVIEWS, _CONVOLUTION, dropout=0.5),
    "entities-lstm": _row(
        "wnut17", "lstm", 64, _MESSAGES, _ENTITIES, dropout=0.5, bidirectional=True
    ),
    "entities-gru": _row(
        "wnut17", "gru", 64, _MESSAGES, _ENTITIES, dropout=0.5, bidirectional=True
    ),
    "captions-gru": _row("multi30k", "gru", 128, _CAPTIONS, dropout=0.2, bidirectional=True),
    "plays-gru": _row("shakespeare", "gru", 256, _PLAYS),
}


EXPERIMENTS_HEADER = ("experiment", "task", "network", "training", "reported")


def experiment_rows() -> list[tuple[str, ...]]:
    """Return a row of words for each experiment."""
    return [(name, *_words(row)) for name, row in PUBLISHED.items()]


def _words(row: Published) -> tuple[str, ...]:
    network, fit = row.config.network, row.config.fit
    direction = ", both ways" if network.bidirectional else ""
    rates = " or ".join(f"{rate:g}" for rate in fit.tried["learning_rate"])
    files = " (needs files)" if TASKS[row.config.task].reads_files else ""
    return (
        f"{row.config.task}{files}",
        f"{network.cell}, {network.hidden_features} units{direction}",
        f"{fit.steps:,} steps at {rates}, {fit.seeds} seed{'s' if fit.seeds > 1 else ''}",
        row.reported,
    )
