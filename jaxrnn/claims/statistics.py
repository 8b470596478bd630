"""The tests behind the verdicts: arrays of replicates in, an `Estimate` out.

Everything is SciPy's or statsmodels' where they have it: Student's t, exact binomial, Fisher and
Mann-Whitney tests, permutations, bootstrap and Newcombe intervals, two one-sided tests. The hazard ratio is
Peto's,

    log HR = (O − E) / V        O, E, V: events, their expectation and hypergeometric variance in one arm,

(Peto et al. 1977), whose error is √(1/V); it is finite where an arm has no event at all.

Weakness: a replicate is taken as independent of the others. Replicates are seeds, so that holds for different
initialisations and orders of data, not for the task's data themselves.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep
from statsmodels.stats.weightstats import ttost_ind

Values = Sequence[float] | np.ndarray | jax.Array
"""Numbers, one a replicate."""

CONFIDENCE = 0.95
"""Of every interval."""

LEVEL = 0.05
"""Of every two-sided test, and of the family of all claims after Holm's correction."""

_BOOTSTRAPS = 2_000  # the ends of an interval then vary by about 2 % of its width
_BOOTSTRAPS_OF_TREND = (
    400  # all pairs of values in each; the interval's ends vary by 5 % of its width
)
_PERMUTATIONS = 9_999  # all 924 of 6 against 6; of 10 against 10 a sample that resolves p = 1e-4
_NORMAL = float(stats.norm.ppf((1 + CONFIDENCE) / 2))


@dataclasses.dataclass(frozen=True)
class Estimate:
    """An effect with its error.

    Attributes:
      effect: what was estimated, in the test's own unit.
      low: lower end of its 95 % interval.
      high: upper end.
      p: two-sided p-value; for an equivalence test, of the alternative that the effect points to. None where
        nothing is random.
      direction: +1 where the effect speaks for the statement, −1 where it speaks against it, 0 for neither.
    """

    effect: float
    low: float
    high: float
    p: float | None
    direction: int


def mean_against(values: Values, threshold: float, sign: int) -> Estimate:
    """Compare a mean with a threshold by Student's t; `sign` +1 states that it is above, −1 below."""
    x = np.asarray(values, float)
    mean, error = float(x.mean()), float(stats.sem(x))
    half = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 1))
    # Where all replicates agree, t is infinite, or undefined on the threshold itself.
    p = _p(stats.ttest_1samp(x, threshold)) if error > 0 else float(mean == threshold)
    return Estimate(mean, mean - half, mean + half, p, sign * int(np.sign(mean - threshold)))


def _p(test: Any) -> float:
    """Return the p-value of a result of SciPy's, whose classes have no annotations."""
    return float(test.pvalue)


def share_against(values: Values, threshold: float, sign: int) -> Estimate:
    """Compare a share of successes, each 0 or 1, with a threshold by the exact binomial test."""
    successes, n = int(np.sum(values)), len(values)
    test = stats.binomtest(successes, n, threshold)
    interval = test.proportion_ci(CONFIDENCE)
    share = successes / n
    return Estimate(
        share,
        interval.low,
        interval.high,
        _p(test),
        sign * int(np.sign(share - threshold)),
    )


def ranks(arm: Values, baseline: Values, sign: int, ratio: bool) -> Estimate:
    """Compare two arms by the exact Mann-Whitney test.

    The effect is the ratio or the difference of the medians, with a bootstrap interval (percentiles).
    """
    x, y = np.asarray(arm, float), np.asarray(baseline, float)
    p = _p(stats.mannwhitneyu(x, y, method="exact" if _untied(x, y) else "auto"))

    def effect(x: np.ndarray, y: np.ndarray, axis: int = -1) -> Any:
        a, b = np.median(x, axis=axis), np.median(y, axis=axis)
        return a / b if ratio else a - b

    middle = float(effect(x, y))
    if np.ptp(x) == 0 and np.ptp(y) == 0:
        low = high = middle
    else:
        resampled = stats.bootstrap(
            (x, y),
            effect,
            n_resamples=_BOOTSTRAPS,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(0),
        )
        low, high = map(float, resampled.confidence_interval)
    # Medians may be equal where the ranks differ: then the ranks decide on the direction.
    greater = np.sign(np.subtract.outer(x, y)).sum()
    return Estimate(middle, low, high, p, sign * int(np.sign(greater)))


def _untied(x: np.ndarray, y: np.ndarray) -> bool:
    both = np.concatenate([x, y])
    return len(np.unique(both)) == len(both)


def solved(arm: Values, baseline: Values, sign: int) -> Estimate:
    """Compare the shares of runs that solve a task, each 0 or 1, by Fisher's exact test.

    The effect is the difference of the shares, with Newcombe's interval.
    """
    a, n, b, m = int(np.sum(arm)), len(arm), int(np.sum(baseline)), len(baseline)
    p = _p(stats.fisher_exact([[a, n - a], [b, m - b]]))
    low, high = confint_proportions_2indep(
        a, n, b, m, compare="diff", method="newcomb", alpha=1 - CONFIDENCE
    )
    difference = a / n - b / m
    return Estimate(difference, float(low), float(high), p, sign * int(np.sign(difference)))


def hazards(
    arm: Values,
    arm_censored: Sequence[bool] | np.ndarray,
    baseline: Values,
    baseline_censored: Sequence[bool] | np.ndarray,
    sign: int,
) -> Estimate:
    """Compare steps to a target by the log-rank test, over permutations of the runs.

    Runs that never reached the target are censored.

    The effect is Peto's hazard ratio, arm over baseline: above 1 the arm is faster.
    """
    times = np.concatenate([np.asarray(arm, float), np.asarray(baseline, float)])
    events = ~np.concatenate([np.asarray(arm_censored, bool), np.asarray(baseline_censored, bool)])
    scores, variance = _log_rank(times, events, len(arm))
    if variance == 0:  # nobody reached the target
        return Estimate(1.0, 0.0, math.inf, 1.0, 0)
    excess = float(scores[: len(arm)].sum())
    # χ² is too generous to ten replicates an arm: at 0.17 % it finds 0.3 % where there is nothing.
    test = stats.permutation_test(
        (scores[: len(arm)], scores[len(arm) :]),
        lambda x, y, axis: x.sum(axis=axis),
        vectorized=True,
        n_resamples=_PERMUTATIONS,
        rng=np.random.default_rng(0),
    )
    half = _NORMAL / math.sqrt(variance)
    low, middle, high = (math.exp(excess / variance + shift) for shift in (-half, 0.0, half))
    return Estimate(middle, low, high, _p(test), sign * int(np.sign(excess)))


def _log_rank(times: np.ndarray, events: np.ndarray, first: int) -> tuple[np.ndarray, float]:
    """Return every run's event less its expectation, and the variance of their sum over the first arm.

    The expectation is the pooled Nelson-Aalen hazard at the run's own time, so the sum over an arm is O − E.
    """
    hazard, variance = np.zeros(len(times)), 0.0
    for time in np.unique(times[events]):
        at_risk = times >= time
        count, in_first = int(at_risk.sum()), int(at_risk[:first].sum())
        found = int((events & (times == time)).sum())
        hazard[at_risk] += found / count
        if count > 1:
            rest = count - in_first
            variance += found * in_first * rest * (count - found) / (count**2 * (count - 1))
    return events - hazard, variance


def trend(levels: Sequence[Values], sign: int) -> Estimate:
    """Test whether values rise (`sign` +1) or fall (−1) along ordered levels, by Kendall's rank correlation.

    The effect is τ_b of level and value, with a bootstrap interval (percentiles) over the replicates of each
    level. With ties among the levels, as here, the test is that of Jonckheere and Terpstra.
    """
    values = [np.asarray(each, float) for each in levels]
    order, together = np.repeat(np.arange(len(values)), list(map(len, values))), np.hstack(values)
    if np.ptp(together) == 0:  # τ is not defined where nothing varies
        return Estimate(0.0, 0.0, 0.0, 1.0, 0)
    test: Any = stats.kendalltau(order, together)
    rng = np.random.default_rng(0)
    drawn = [rng.choice(each, (_BOOTSTRAPS_OF_TREND, len(each))) for each in values]
    found = _rank_correlations(order, np.hstack(drawn))
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    tau = float(test.statistic)
    return Estimate(tau, float(low), float(high), _p(test), sign * int(np.sign(tau)))


def _rank_correlations(x: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Return Kendall's τ_b of x [n] with each row of ys [K, n], 0 where a row is constant.

    SciPy's takes one row a call: a bootstrap by it would take a second.
    """
    i, j = np.triu_indices(len(x), 1)
    a, b = np.sign(x[j] - x[i]), np.sign(ys[:, j] - ys[:, i])
    pairs = np.sqrt(np.count_nonzero(a) * np.count_nonzero(b, axis=1))
    return (b @ a) / np.maximum(pairs, 1)


def comparable(arm: Values, baseline: Values, margin: float) -> Estimate:
    """Test whether two means differ by less than a margin, by two one-sided Welch tests.

    Speaks for "comparable" where both one-sided tests do; against it where the means differ by more than the
    margin. The interval is the 95 % one of the difference.
    """
    x, y = np.asarray(arm, float), np.asarray(baseline, float)
    difference = float(x.mean() - y.mean())
    if np.ptp(x) == 0 and np.ptp(y) == 0:
        within = abs(difference) < margin
        return Estimate(difference, difference, difference, 0.0, 1 if within else -1)
    test: Any = stats.ttest_ind(x, y, equal_var=False)
    interval = test.confidence_interval(CONFIDENCE)
    if abs(difference) < margin:
        # Twice the one-sided p: then 5 % says that the 95 % interval lies within the margin.
        p, direction = min(2 * float(ttost_ind(x, y, -margin, margin, usevar="unequal")[0]), 1.0), 1
    else:
        beyond = stats.ttest_ind(x - np.sign(difference) * margin, y, equal_var=False)
        p, direction = _p(beyond), -1
    return Estimate(difference, float(interval.low), float(interval.high), p, direction)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values after Holm's correction for the whole family."""
    if not p_values:
        return []
    return np.asarray(multipletests(p_values, method="holm")[1]).tolist()
