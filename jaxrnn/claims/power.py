"""What the rules can see: how often each test decides, by simulation, with an effect and without.

An experiment has two ways to be useless: it finds what is not there, or it cannot find what is. For each kind
of test, replicates are drawn with no effect and with an effect of one and two times the smallest that counts.
The spread between replicates is taken as half of the smallest effect; twice the spread needs four times the
replicates. At exactly the smallest effect the power cannot pass a half where the estimate itself must reach
it.

Exact claims have no power to speak of: nothing in them is random.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np

from jaxrnn.claims.claim import CLAIMS, SEEDS
from jaxrnn.claims.evidence import Evidence, Sample
from jaxrnn.claims.rules import (
    Comparable,
    Criterion,
    Mean,
    Part,
    Ranks,
    Rule,
    Share,
    Solved,
    Sooner,
    Trend,
)
from jaxrnn.claims.statistics import LEVEL

POWER_HEADER = (
    "test",
    "effect",
    "for, quick",
    "for, full",
    "for, full, corrected",
    "against, full",
)

Draw = Callable[[np.random.Generator, int, float], Evidence]
"""Draws an experiment: a generator, the number of replicates, the effect in units of the smallest."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of test with the experiments that it is tried on.

    Attributes:
      words: the test and the effects drawn.
      test: the test.
      draw: draws an experiment in which the statement is true by so many smallest effects.
    """

    words: str
    test: Criterion
    draw: Draw

    @property
    def rule(self) -> Rule:
        """The rule of this test alone."""
        versus = ("arm", "baseline") if self.test.needs == "baseline" else None
        return Rule((Part("x", self.test, versus),))


def _one(values: np.ndarray) -> Evidence:
    return Evidence((Sample("x", {}, values),))


def _two(arm: np.ndarray, baseline: np.ndarray, limit: float = math.inf) -> Evidence:
    """Return both arms; times beyond the limit are censored at it."""
    return Evidence(
        tuple(
            Sample(
                "x",
                {"arm": name},
                np.minimum(values, limit),
                censored=(values > limit) if limit < math.inf else (),
            )
            for name, values in (("arm", arm), ("baseline", baseline))
        )
    )


def _normal(rng: np.random.Generator, n: int, mean: float) -> np.ndarray:
    return rng.normal(mean, 0.5, n)


def _successes(rng: np.random.Generator, n: int, effect: float) -> Evidence:
    """Draw two arms whose probabilities lie around a half and differ by half the effect, at most by one."""
    half = min(effect / 4, 0.5)
    return _two(rng.binomial(1, 0.5 + half, n), rng.binomial(1, 0.5 - half, n))


def _comparable(rng: np.random.Generator, n: int, effect: float) -> Evidence:
    """Draw two arms whose means differ by the margin without an effect, and by less with one."""
    return _two(_normal(rng, n, max(1 - effect, 0)), _normal(rng, n, 0))


_LEVELS = ("0", "1", "2", "3", "4")


def _rising(rng: np.random.Generator, n: int, effect: float) -> Evidence:
    """Draw five levels whose means rise evenly, by 0.7 of the spread of one level for each effect.

    Between normal values that rise so the rank correlation is about the smallest that counts.
    """
    rise = 0.7 * 0.5 / (len(_LEVELS) - 1)
    return Evidence(
        tuple(
            Sample("x", {"level": name}, _normal(rng, n, effect * rise * i * 2))
            for i, name in enumerate(_LEVELS)
        )
    )


KINDS: dict[str, Kind] = {
    "mean": Kind(
        "Mean against a bound (t)", Mean(above=0.0), lambda rng, n, e: _one(_normal(rng, n, e))
    ),
    "share": Kind(
        "Share against 50 % (binomial); effects are half of the way to 100 %",
        Share(above=0.5),
        lambda rng, n, e: _one(rng.binomial(1, min(0.5 + e / 4, 1), n)),
    ),
    "ranks": Kind(
        "Two arms by ranks (Mann-Whitney)",
        Ranks(larger=True, difference=1.0),
        lambda rng, n, e: _two(_normal(rng, n, e), _normal(rng, n, 0)),
    ),
    "solved": Kind(
        "Runs that solve a task (Fisher), smallest effect 50 %", Solved(True), _successes
    ),
    "sooner": Kind(
        "Time to a target (log-rank), hazard ratio 2, a quarter censored",
        Sooner(sooner=True),
        lambda rng, n, e: _two(rng.exponential(2.0**-e, n), rng.exponential(1.0, n), math.log(4)),
    ),
    "trend": Kind(
        "Trend along five levels (Kendall), smallest rank correlation 0.3",
        Trend("level", _LEVELS, rising=True),
        _rising,
    ),
    "comparable": Kind(
        "Comparable within a margin (two one-sided tests)", Comparable(1.0), _comparable
    ),
}


@dataclasses.dataclass(frozen=True)
class Shares:
    """Shares of simulated experiments.

    Attributes:
      confirmed: at 5 %.
      refuted: at 5 %.
      corrected: confirmed at 5 % over the number of claims, as Holm's correction may ask at most.
    """

    confirmed: float
    refuted: float
    corrected: float


def shares(
    kind: Kind, replicates: int, effect: float, *, family: int = 1, experiments: int = 1_000
) -> Shares:
    """Simulate experiments and count what the rule says.

    Args:
      kind: the kind of test.
      replicates: in each arm.
      effect: in units of the smallest that counts; 0 for none.
      family: number of claims to correct for.
      experiments: how many to simulate.
    """
    rng = np.random.default_rng(0)
    found = [kind.rule.decide(kind.draw(rng, replicates, effect)) for _ in range(experiments)]
    confirmed = [decision.p or 0.0 for decision in found if decision.word == "confirmed"]
    return Shares(
        len(confirmed) / experiments,
        sum(decision.word == "refuted" for decision in found) / experiments,
        sum(p <= LEVEL / family for p in confirmed) / experiments,
    )


@functools.cache  # eleven seconds
def power_rows(experiments: int = 100) -> tuple[tuple[str, ...], ...]:
    """Return the table of power under `POWER_HEADER`; shares of 100 experiments are known to ± 0.1."""
    family = sum(claim.rule is not None and claim.rule.statistical for claim in CLAIMS.values())
    rows = []
    for kind in KINDS.values():
        for effect, words in ((0.0, "none"), (1.0, "smallest"), (2.0, "twice the smallest")):
            quick = shares(kind, SEEDS["quick"], effect, experiments=experiments)
            full = shares(
                kind, SEEDS["full"], effect, family=max(family, 1), experiments=experiments
            )
            numbers = (quick.confirmed, full.confirmed, full.corrected, full.refuted)
            rows.append((kind.words, words, *(f"{share:.2f}" for share in numbers)))
    return tuple(rows)
