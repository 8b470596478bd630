"""Rules: what must be measured for a statement to be confirmed, fixed before the run.

A rule is a list of parts. Each part names a quantity and a test, and the test is made under every condition
that was measured: on its sample alone, against a baseline's, or along the levels of a factor. Each condition
then speaks *for* the statement, *against* it, or is *unclear*:

    for        the test is significant at 5 %, and the effect is at least the smallest that counts
    against    the same in the other direction
    unclear    anything else

    confirmed  every condition speaks for the statement
    refuted    every condition speaks against it; for a statement that says always, can't or must,
               one condition is enough
    depends    some speak for it and some against it: on the factors in which these differ
    undecided  anything else, or a check failed

The p-value of a rule follows from those of its conditions: the largest one where all must agree (an
intersection–union test), the smallest one times their number where one is enough (Bonferroni). Parts in which
nothing is random have no p-value. `jaxrnn.claims.verdicts` corrects for the number of claims.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from jaxrnn import checks
from jaxrnn.claims import statistics
from jaxrnn.claims.evidence import Evidence, Sample
from jaxrnn.claims.statistics import LEVEL, Estimate

Word = Literal["confirmed", "refuted", "depends", "undecided"]
"""What a rule says about a statement."""


class Criterion(abc.ABC):
    """What one condition must pass."""

    needs: ClassVar[Literal["one", "baseline", "levels"]] = "one"
    """What is tested: one sample, a sample and its baseline, or samples along the levels of a factor."""

    @abc.abstractmethod
    def estimate(self, *samples: Sample) -> Estimate:
        """Return the effect with its error, and which way it points."""

    def counts(self, effect: float) -> bool:
        """Tell whether an effect is at least the smallest one that counts; bounds and margins hold it."""
        del effect
        return True

    @property
    @abc.abstractmethod
    def words(self) -> str:
        """What must hold, behind the name of the quantity."""


@dataclasses.dataclass(frozen=True)
class Exactly(Criterion):
    """Every value is at most, or at least, a bound: for identities and counts, where nothing is random."""

    at_most: float | None = None
    at_least: float | None = None

    def estimate(self, *samples: Sample) -> Estimate:
        """Return the value that is nearest to breaking the bound."""
        (arm,) = samples
        low, high = min(arm.values), max(arm.values)
        within = [
            (self.at_most is None or value <= self.at_most)
            and (self.at_least is None or value >= self.at_least)
            for value in arm.values
        ]
        direction = 1 if all(within) else -1 if not any(within) else 0
        return Estimate(high if self.at_least is None else low, low, high, None, direction)

    @property
    def words(self) -> str:
        """The bounds."""
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (("at least", self.at_least), ("at most", self.at_most))
            if bound is not None
        ]
        return f"is {' and '.join(bounds)}, every time"


@dataclasses.dataclass(frozen=True)
class Mean(Criterion):
    """The mean is below, or above, a bound, by Student's t."""

    below: float | None = None
    above: float | None = None

    def __post_init__(self):
        """Refuse two bounds, or none."""
        if (self.below is None) == (self.above is None):
            checks.refuse("below, above", f"{self.below}, {self.above}", "one of the two")

    def estimate(self, *samples: Sample) -> Estimate:
        """Return the mean."""
        (arm,) = samples
        if self.below is not None:
            return statistics.mean_against(arm.values, self.below, -1)
        return statistics.mean_against(arm.values, self.above or 0.0, 1)

    @property
    def words(self) -> str:
        """The bound."""
        below = self.below is not None
        bound = self.below if below else self.above
        return f"is {'below' if below else 'above'} {bound:g} on average (t test)"


@dataclasses.dataclass(frozen=True)
class Share(Criterion):
    """The share of successes, each 0 or 1, is above a bound, by the exact binomial test."""

    above: float

    def estimate(self, *samples: Sample) -> Estimate:
        """Return the share."""
        (arm,) = samples
        return statistics.share_against(arm.values, self.above, 1)

    @property
    def words(self) -> str:
        """The bound."""
        return f"is above {self.above:.0%} (binomial test)"


@dataclasses.dataclass(frozen=True)
class Ranks(Criterion):
    """An arm has larger, or smaller, values than the baseline, by the exact Mann-Whitney test.

    Attributes:
      larger: whether the statement says that the arm's values are larger.
      ratio: the smallest ratio of medians that counts, above 1; or else
      difference: the smallest difference of medians that counts, above 0.
    """

    larger: bool
    ratio: float | None = None
    difference: float | None = None
    needs: ClassVar[Literal["one", "baseline", "levels"]] = "baseline"

    def __post_init__(self):
        """Refuse two smallest effects, or none."""
        if (self.ratio is None) == (self.difference is None):
            checks.refuse("ratio, difference", f"{self.ratio}, {self.difference}", "one of the two")

    def estimate(self, *samples: Sample) -> Estimate:
        """Return the ratio, or the difference, of the medians."""
        arm, baseline = samples
        sign = 1 if self.larger else -1
        return statistics.ranks(arm.values, baseline.values, sign, self.ratio is not None)

    def counts(self, effect: float) -> bool:
        """Compare with the smallest effect that counts, in either direction."""
        if self.ratio is not None:
            return effect >= self.ratio or effect <= 1 / self.ratio
        return abs(effect) >= (self.difference or 0.0)

    @property
    def words(self) -> str:
        """The direction and the smallest effect."""
        least = f"{self.ratio:g}-fold" if self.ratio is not None else f"by {self.difference:g}"
        word = "larger" if self.larger else "smaller"
        return f"is {word} than the baseline's, {least} at least (Mann-Whitney test)"


@dataclasses.dataclass(frozen=True)
class Solved(Criterion):
    """More, or fewer, runs of an arm solve the task than of the baseline, by Fisher's exact test."""

    more: bool
    difference: float = 0.5
    needs: ClassVar[Literal["one", "baseline", "levels"]] = "baseline"

    def estimate(self, *samples: Sample) -> Estimate:
        """Return the difference of the shares."""
        arm, baseline = samples
        return statistics.solved(arm.values, baseline.values, 1 if self.more else -1)

    def counts(self, effect: float) -> bool:
        """Compare with the smallest difference that counts."""
        return abs(effect) >= self.difference

    @property
    def words(self) -> str:
        """The direction and the smallest effect."""
        word = "above" if self.more else "below"
        return f"is {word} the baseline's, by {self.difference:.0%} at least (Fisher's test)"


@dataclasses.dataclass(frozen=True)
class Sooner(Criterion):
    """An arm reaches the target sooner, or later, than the baseline, by the log-rank test."""

    sooner: bool
    ratio: float = 2.0
    needs: ClassVar[Literal["one", "baseline", "levels"]] = "baseline"

    def estimate(self, *samples: Sample) -> Estimate:
        """Return the hazard ratio, arm over baseline."""
        arm, baseline = samples
        marks = [tuple(s.censored) or (False,) * len(s.values) for s in samples]
        sign = 1 if self.sooner else -1
        return statistics.hazards(arm.values, marks[0], baseline.values, marks[1], sign)

    def counts(self, effect: float) -> bool:
        """Compare with the smallest hazard ratio that counts."""
        return effect >= self.ratio or effect <= 1 / self.ratio

    @property
    def words(self) -> str:
        """The direction and the smallest effect."""
        word = "sooner" if self.sooner else "later"
        return f"comes {word} than the baseline's, hazard ratio {self.ratio:g} at least (log-rank test)"


@dataclasses.dataclass(frozen=True)
class Comparable(Criterion):
    """Two means differ by less than a margin, by two one-sided tests; a missing difference is no proof."""

    margin: float
    needs: ClassVar[Literal["one", "baseline", "levels"]] = "baseline"

    def estimate(self, *samples: Sample) -> Estimate:
        """Return the difference of the means."""
        arm, baseline = samples
        return statistics.comparable(arm.values, baseline.values, self.margin)

    @property
    def words(self) -> str:
        """The margin."""
        return f"is within ± {self.margin:g} of the baseline's (two one-sided tests)"


@dataclasses.dataclass(frozen=True)
class Trend(Criterion):
    """Values rise, or fall, along the ordered levels of a factor, by Kendall's rank correlation.

    Attributes:
      factor: the factor.
      levels: its levels, from the lowest to the highest.
      rising: whether the statement says that values rise.
      correlation: the smallest |τ| that counts.
    """

    factor: str
    levels: tuple[str, ...]
    rising: bool
    correlation: float = 0.3
    needs: ClassVar[Literal["one", "baseline", "levels"]] = "levels"

    def __post_init__(self):
        """Refuse fewer levels than a trend has."""
        if len(set(self.levels)) < 3 or len(set(self.levels)) < len(self.levels):
            checks.refuse("levels", repr(self.levels), "three levels or more, each once")

    def estimate(self, *samples: Sample) -> Estimate:
        """Return the rank correlation of level and value."""
        return statistics.trend([s.values for s in samples], 1 if self.rising else -1)

    def counts(self, effect: float) -> bool:
        """Compare with the smallest correlation that counts, in either direction."""
        return abs(effect) >= self.correlation

    @property
    def words(self) -> str:
        """The direction, the levels and the smallest correlation."""
        word = "rises" if self.rising else "falls"
        return (
            f"{word} along {self.factor} = {', '.join(self.levels)}, rank correlation {self.correlation:g} "
            "at least (Kendall's test)"
        )


@dataclasses.dataclass(frozen=True)
class Part:
    """A quantity and the test that it must pass under every condition.

    Attributes:
      quantity: as the samples have it.
      test: what must hold.
      versus: (factor, level) of the baseline that every other level of this factor is compared with; None for
        tests of one sample.
      where: only conditions with these levels, as pairs (factor, level).
    """

    quantity: str
    test: Criterion
    versus: tuple[str, str] | None = None
    where: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        """Refuse a baseline for a test that takes none, and the other way round."""
        takes = self.test.needs == "baseline"
        if takes != (self.versus is not None):
            expected = "(factor, level)" if takes else "None: the test takes no baseline"
            checks.refuse("versus", repr(self.versus), expected)

    def groups(self, evidence: Evidence) -> Iterator[tuple[dict[str, str], tuple[Sample, ...]]]:
        """Go through the conditions, each with the samples to test together.

        Raises:
          InputError: the evidence has no sample of this quantity, or a baseline or a level is missing.
        """
        found = [
            sample
            for sample in evidence.of(self.quantity)
            if all(sample.condition.get(factor) == level for factor, level in self.where)
        ]
        if isinstance(self.test, Trend):
            groups = list(_along(self.test, found))
        elif self.versus is None:
            groups = [(sample.condition, (sample,)) for sample in found]
        else:
            factor, level = self.versus
            groups = [
                (sample.condition, (sample, _baseline(sample, found, factor, level)))
                for sample in found
                if sample.condition.get(factor) != level
            ]
        if not groups:
            checks.refuse("evidence", "none", f"samples of {self.quantity!r}")
        yield from groups

    @property
    def words(self) -> str:
        """The part as a sentence."""
        limits = "".join(f", for {level}" for _, level in self.where)
        baseline = f" Baseline: {self.versus[1]}." if self.versus else ""
        return f"{self.quantity}{limits}: {self.test.words}.{baseline}"


def _baseline(sample: Sample, found: Sequence[Sample], factor: str, level: str) -> Sample:
    wanted = {**sample.condition, factor: level}
    # A baseline may be shared by conditions that do not exist for it, such as a forget bias.
    fitting = [
        other
        for other in found
        if other.condition.get(factor) == level and other.condition.items() <= wanted.items()
    ]
    if not fitting:
        got = f"no baseline {level!r} for {sample.name!r}"
        checks.refuse("evidence", got, "one to compare with")
    return max(fitting, key=lambda other: len(other.condition))


def _along(
    trend: Trend, found: Sequence[Sample]
) -> Iterator[tuple[dict[str, str], tuple[Sample, ...]]]:
    """Yield each condition of the other factors, with its samples in the order of the levels."""
    conditions = [
        {name: level for name, level in sample.condition.items() if name != trend.factor}
        for sample in found
    ]
    seen: list[dict[str, str]] = []
    for condition in conditions:
        if condition in seen:
            continue
        seen.append(condition)
        levels = {
            sample.condition.get(trend.factor): sample
            for sample, other in zip(found, conditions, strict=True)
            if other == condition
        }
        if missing := [level for level in trend.levels if level not in levels]:
            got = f"nothing for {trend.factor} = {', '.join(missing)}"
            checks.refuse("evidence", got, f"samples for {', '.join(trend.levels)}")
        yield condition, tuple(levels[level] for level in trend.levels)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one condition says.

    Attributes:
      part: the part of the rule.
      condition: the condition.
      estimate: the effect.
      says: +1 for the statement, −1 against it, 0 unclear.
      replicates: the smaller number of values of the samples that were compared.
    """

    part: Part
    condition: dict[str, str]
    estimate: Estimate
    says: int
    replicates: int


@dataclasses.dataclass(frozen=True)
class Decision:
    """What a rule says about evidence, before the correction for the number of claims.

    Attributes:
      word: confirmed, refuted, depends or undecided.
      outcomes: of every condition.
      p: of the rule; None where nothing is random.
      factors: on which factors it depends; empty where it does not.
    """

    word: Word
    outcomes: tuple[Outcome, ...]
    p: float | None
    factors: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Rule:
    """Parts that must all hold, under all conditions.

    Attributes:
      parts: what must hold.
      universal: whether the statement says always, can't or must, so that one counter-example refutes it.
    """

    parts: tuple[Part, ...]
    universal: bool = False

    def __post_init__(self):
        """Refuse a rule that says nothing."""
        if not self.parts:
            checks.refuse("parts", "none", "one or more")

    @property
    def words(self) -> str:
        """The rule in words, as the page shows it and as a record keeps it."""
        end = " One counter-example refutes." if self.universal else ""
        return " ".join(part.words for part in self.parts) + end

    @property
    def statistical(self) -> bool:
        """Whether any part has a p-value."""
        return any(not isinstance(part.test, Exactly) for part in self.parts)

    def decide(self, evidence: Evidence) -> Decision:
        """Apply the rule.

        Raises:
          InputError: the evidence lacks what a part needs.
        """
        outcomes = tuple(
            _outcome(part, *group) for part in self.parts for group in part.groups(evidence)
        )
        supporting = [o for o in outcomes if o.says > 0]
        opposing = [o for o in outcomes if o.says < 0]
        everything = max((_p(o) for o in outcomes), default=0.0)
        if len(supporting) == len(outcomes):
            return _decision("confirmed", outcomes, everything)
        if len(opposing) == len(outcomes):
            return _decision("refuted", outcomes, everything)
        if opposing and self.universal:
            return _decision("refuted", outcomes, len(outcomes) * min(map(_p, opposing)))
        if supporting and opposing:
            best = max(min(map(_p, supporting)), min(map(_p, opposing)))
            factors = _differing(supporting, opposing)
            return _decision("depends", outcomes, len(outcomes) * best, factors)
        return _decision("undecided", outcomes, everything)


def _decision(
    word: Word, outcomes: tuple[Outcome, ...], p: float, factors: tuple[str, ...] = ()
) -> Decision:
    random = any(outcome.estimate.p is not None for outcome in outcomes)
    p = min(p, 1.0)
    if random and p > LEVEL:
        word, factors = "undecided", ()
    return Decision(word, outcomes, p if random else None, factors)


def _outcome(part: Part, condition: dict[str, str], samples: tuple[Sample, ...]) -> Outcome:
    estimate = part.test.estimate(*samples)
    significant = estimate.p is None or estimate.p <= LEVEL
    says = estimate.direction if significant and part.test.counts(estimate.effect) else 0
    replicates = min(len(sample.values) for sample in samples)
    return Outcome(part, condition, estimate, says, replicates)


def _p(outcome: Outcome) -> float:
    """Return an outcome's p-value; 0 where nothing is random."""
    return 0.0 if outcome.estimate.p is None else outcome.estimate.p


def _differing(supporting: Sequence[Outcome], opposing: Sequence[Outcome]) -> tuple[str, ...]:
    """Return the factors on which the answer depends.

    These are the factors by which two conditions with different answers differ, and as few of them as there
    are: a pair that differs in one factor shows that this one matters.
    """
    pairs = [_difference(a, b) for a in supporting for b in opposing]
    fewest = min(map(len, pairs))
    found: dict[str, Any] = {}
    for pair in pairs:
        if len(pair) == fewest:
            found.update(dict.fromkeys(pair))
    return tuple(found)


def _difference(a: Outcome, b: Outcome) -> tuple[str, ...]:
    """Return the factors in which two conditions differ; the quantity, where they differ in none."""
    names = [
        name
        for name in {**a.condition, **b.condition}
        if a.condition.get(name) != b.condition.get(name)
    ]
    return tuple(names) or ("the quantity",)
