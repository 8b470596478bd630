"""Every test of the verdicts against a published example, a closed form, or SciPy called another way."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from jaxrnn.claims.statistics import (
    _rank_correlations,
    comparable,
    hazards,
    holm,
    mean_against,
    ranks,
    share_against,
    solved,
    trend,
)

# Weeks of remission of 42 children, with 6-mercaptopurine and with placebo (Freireich et al. 1963).
MERCAPTOPURINE = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
CENSORED = [0, 0, 0, 1, 0, 1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1]
PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]


def test_peto_hazard_ratio_and_log_rank_of_the_leukaemia_trial():
    marks = [bool(mark) for mark in CENSORED]
    found = hazards(MERCAPTOPURINE, marks, PLACEBO, [False] * 21, -1)
    # Published: 9 events for 19.25 expected, variance 6.257, chi-squared 16.79.
    assert found.effect == pytest.approx(math.exp((9 - 19.25) / 6.257), rel=1e-3)
    assert found.low == pytest.approx(math.exp(-10.25 / 6.257 - 1.96 / math.sqrt(6.257)), rel=2e-3)
    assert found.p == 1 / 5_000  # of 9,999 permutations none; by chi-squared it is 4e-5
    assert found.direction == 1  # relapse comes later


def test_log_rank_agrees_with_scipy_where_there_are_many_runs():
    rng = np.random.default_rng(1)
    x, y = rng.exponential(1.0, 80), rng.exponential(1.4, 80)
    late_x, late_y = x > 2, y > 2
    found = hazards(np.minimum(x, 2), late_x, np.minimum(y, 2), late_y, 1)
    censored = stats.CensoredData.right_censored
    expected: Any = stats.logrank(
        censored(np.minimum(x, 2), late_x), censored(np.minimum(y, 2), late_y)
    )
    assert 0.01 < expected.pvalue < 0.5
    assert found.p == pytest.approx(expected.pvalue, rel=0.1)


def test_nobody_reaches_the_target():
    found = hazards([10, 10], [True, True], [10, 10], [True, True], 1)
    assert (found.effect, found.p, found.direction) == (1.0, 1.0, 0)


def test_newcombe_interval_of_his_first_example():
    found = solved(
        [1] * 56 + [0] * 14, [1] * 48 + [0] * 32, 1
    )  # Newcombe 1998, table II, method 10
    assert (found.effect, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def test_fisher_on_the_lady_tasting_tea():
    assert solved([1, 1, 1, 0], [1, 0, 0, 0], 1).p == pytest.approx(34 / 70)


def test_the_smallest_p_of_the_rank_test_is_one_in_the_orders():
    found = ranks(np.arange(8.0), np.arange(8.0) + 10, -1, ratio=False)
    assert found.p == pytest.approx(2 / math.comb(16, 8))
    assert (found.effect, found.direction) == (-10.0, 1)


def test_ratio_of_medians_lies_within_its_interval():
    rng = np.random.default_rng(0)
    found = ranks(rng.lognormal(1, 0.2, 10), rng.lognormal(0, 0.2, 10), 1, ratio=True)
    assert found.low < found.effect < found.high
    assert found.low > 1


def test_mean_against_a_bound_is_a_t_test():
    x = [-0.05, -0.03, -0.04, -0.06]
    found = mean_against(x, -0.01, -1)
    mean, error = np.mean(x), np.std(x, ddof=1) / 2
    t = (mean + 0.01) / error
    assert found.p == pytest.approx(2 * stats.t.sf(abs(t), 3))
    assert found.high - found.effect == pytest.approx(3.182446 * error, rel=1e-5)  # t(.975, 3)
    assert found.direction == 1
    assert mean_against([1.0, 1.0], 0.0, 1).p == 0
    assert mean_against([1.0, 1.0], 1.0, 1).p == 1


def test_share_against_a_bound_is_the_binomial_test():
    found = share_against([1] * 20, 0.5, 1)
    assert found.p == pytest.approx(2 * 0.5**20)
    assert found.low == pytest.approx(0.025 ** (1 / 20))  # Clopper and Pearson, all successes
    assert found.direction == 1


def test_equivalence_is_twice_the_larger_of_two_one_sided_tests():
    rng = np.random.default_rng(3)
    x, y = rng.normal(0, 1, 12), rng.normal(0.1, 2, 9)
    found = comparable(x, y, 3.0)
    one: Any = stats.ttest_ind(x + 3, y, equal_var=False, alternative="greater")
    other: Any = stats.ttest_ind(x - 3, y, equal_var=False, alternative="less")
    assert found.p == pytest.approx(2 * max(one.pvalue, other.pvalue))
    assert found.direction == 1
    far = comparable(x + 9, y, 3.0)
    assert far.direction == -1
    assert (far.p or 0) < 1e-4


def test_holm_on_the_example_of_r():
    # p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.03, 0.01]) == pytest.approx([0.03, 0.02])
    assert holm([]) == []


def test_trend_is_kendalls_test_of_scipy_and_its_bootstrap_that_of_single_calls():
    rng = np.random.default_rng(0)
    levels = [np.round(rng.normal(mean, 1.0, 7), 1) for mean in (0.0, 0.4, 0.8, 1.2)]
    order = np.repeat(np.arange(4), 7)
    oracle: Any = stats.kendalltau(order, np.concatenate(levels))
    found = trend(levels, 1)
    assert (found.effect, found.p) == pytest.approx((oracle.statistic, oracle.pvalue))
    assert found.low < found.effect < found.high
    assert found.direction == 1 == -trend(levels, -1).direction
    rows = np.round(rng.normal(0.0, 1.0, (5, 28)), 1)
    expected: list[Any] = [stats.kendalltau(order, row) for row in rows]
    taus = [each.statistic for each in expected]
    np.testing.assert_allclose(_rank_correlations(order, rows), taus)


def test_a_trend_of_what_does_not_vary_is_none():
    found = trend([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]], 1)
    assert (found.effect, found.p, found.direction) == (0.0, 1.0, 0)
