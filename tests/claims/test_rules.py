"""Every kind of rule on evidence that must confirm, refute, depend and stay undecided."""

import dataclasses

import numpy as np
import pytest

from jaxrnn.checks import InputError
from jaxrnn.claims import (
    Check,
    Claim,
    Comparable,
    Evidence,
    Exactly,
    Mean,
    Part,
    Ranks,
    Rule,
    Sample,
    Share,
    Solved,
    Sooner,
    Source,
    Trend,
    judge,
    judge_all,
)

N = 10
SPREAD = np.linspace(-0.1, 0.1, N)
WORDS = ("confirmed", "refuted", "undecided")


def one(values, **condition: str) -> Sample:
    return Sample("x", condition, values)


def two(arm, baseline, **condition: str) -> list[Sample]:
    return [one(arm, arm="new", **condition), one(baseline, arm="old", **condition)]


def times(values, limit: float, **condition: str) -> Sample:
    values = np.asarray(values, float)
    return Sample("x", condition, np.minimum(values, limit), censored=values > limit)


VERSUS = ("arm", "old")
LEVELS = ("low", "middle", "high")
GROWING = np.arange(1.0, N + 1)
MIXED = [1, 0] * (N // 2)

# For each test: samples that speak for the statement, against it, and not clearly.
CASES = {
    "at most": (
        Exactly(at_most=1.0),
        None,
        [one([0.5, 1.0])],
        [one([2.0, 3.0])],
        [one([0.5, 2.0])],
    ),
    "at least": (Exactly(at_least=1.0), None, [one([1.0])], [one([0.5])], [one([0.5, 2.0])]),
    "below": (Mean(below=0.0), None, [one(SPREAD - 1)], [one(SPREAD + 1)], [one(SPREAD)]),
    "above": (Mean(above=0.0), None, [one(SPREAD + 1)], [one(SPREAD - 1)], [one(SPREAD)]),
    "share": (Share(above=0.5), None, [one([1] * N)], [one([0] * N)], [one(MIXED)]),
    "larger": (
        Ranks(larger=True, ratio=1.5),
        VERSUS,
        two(SPREAD + 2, SPREAD + 1),
        two(SPREAD + 1, SPREAD + 2),
        two(SPREAD + 1.2, SPREAD + 1),  # significant, but smaller than what counts
    ),
    "smaller": (
        Ranks(larger=False, difference=0.5),
        VERSUS,
        two(SPREAD, SPREAD + 1),
        two(SPREAD + 1, SPREAD),
        two(SPREAD, SPREAD),
    ),
    "solved": (
        Solved(more=True),
        VERSUS,
        two([1] * N, [0] * N),
        two([0] * N, [1] * N),
        two([1, 1, 1, 0] + [0] * (N - 4), [0] * N),
    ),
    "sooner": (
        Sooner(sooner=True),
        VERSUS,
        [times(GROWING, 50, arm="new"), times(GROWING + 40, 50, arm="old")],
        [times(GROWING + 40, 50, arm="new"), times(GROWING, 50, arm="old")],
        [times(GROWING, 5, arm="new"), times(GROWING, 5, arm="old")],
    ),
    "rising": (
        Trend("level", LEVELS, rising=True),
        None,
        [one(SPREAD + i, level=level) for i, level in enumerate(LEVELS)],
        [one(SPREAD - i, level=level) for i, level in enumerate(LEVELS)],
        [one(SPREAD, level=level) for level in LEVELS],
    ),
    "comparable": (
        Comparable(0.5),
        VERSUS,
        two(SPREAD, SPREAD + 0.01),
        two(SPREAD, SPREAD + 2),
        two(10 * SPREAD, 10 * SPREAD + 0.3),
    ),
}


def rule_of(test, versus, **settings) -> Rule:
    return Rule((Part("x", test, versus),), **settings)


def claim_of(rule: Rule, name: str = "tried") -> Claim:
    source = Source("Charu", "it")
    return Claim(name, "topic", "it holds", (source,), "why", "x", rule, "no x", {}, None)


def under(level: str, samples: list[Sample]) -> list[Sample]:
    """The same samples under a level of one more factor."""
    return [dataclasses.replace(s, condition={**s.condition, "cell": level}) for s in samples]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("case", range(3))
def test_one_condition(name, case):
    test, versus, *samples = CASES[name]
    decision = rule_of(test, versus).decide(Evidence(samples[case]))
    assert decision.word == WORDS[case]
    assert (decision.p is None) == isinstance(test, Exactly)


@pytest.mark.parametrize("name", CASES)
def test_conditions_that_disagree_make_it_depend_on_their_factor(name):
    test, versus, supporting, opposing, unclear = CASES[name]
    samples = [*under("gru", supporting), *under("lstm", opposing), *under("lem", unclear)]
    decision = rule_of(test, versus).decide(Evidence(samples))
    assert (decision.word, decision.factors) == ("depends", ("cell",))


@pytest.mark.parametrize("name", CASES)
def test_an_unclear_condition_leaves_it_undecided(name):
    test, versus, supporting, _, unclear = CASES[name]
    samples = [*under("gru", supporting), *under("lem", unclear)]
    assert rule_of(test, versus).decide(Evidence(samples)).word == "undecided"


@pytest.mark.parametrize("name", CASES)
def test_one_counter_example_refutes_what_says_always(name):
    test, versus, supporting, opposing, unclear = CASES[name]
    rule = rule_of(test, versus, universal=True)
    samples = [*under("gru", supporting), *under("lstm", opposing), *under("lem", unclear)]
    assert rule.decide(Evidence(samples)).word == "refuted"
    assert rule.decide(Evidence([*under("gru", supporting)])).word == "confirmed"


def test_a_weak_counter_example_does_not_refute_among_many():
    clear, weak = SPREAD + 1, SPREAD - 0.05  # p = .03 alone
    rule = rule_of(Mean(above=0.0), None, universal=True)
    assert rule.decide(Evidence([one(weak)])).word == "refuted"
    many = [one(clear, cell=f"{i}") for i in range(3)]
    assert rule.decide(Evidence([*many, one(weak, cell="weak")])).word == "undecided"


def test_it_depends_on_the_factors_that_matter_alone():
    up, down = SPREAD + 1, SPREAD - 1
    samples = [
        one(value, cell=cell, training=when)
        for cell in ("gru", "lstm")
        for when, value in (("before", down), ("after", up))
    ]
    decision = rule_of(Mean(above=0.0), None).decide(Evidence(samples))
    assert decision.factors == ("training",)


def test_a_baseline_may_lack_a_factor_of_the_arm():
    samples = [
        one(SPREAD, cell="elman"),
        one(SPREAD + 1, cell="lstm", bias="0"),
        one(SPREAD + 1, cell="lstm", bias="1"),
    ]
    rule = rule_of(Ranks(larger=True, difference=0.5), ("cell", "elman"))
    assert len(rule.decide(Evidence(samples)).outcomes) == 2
    with pytest.raises(InputError, match="no baseline 'elman' for 'lstm, 0'"):
        rule.decide(Evidence(samples[1:]))


def test_where_restricts_a_part_to_some_conditions():
    samples = [one(SPREAD + 1, cell="gru"), one(SPREAD - 1, cell="lstm")]
    rule = Rule((Part("x", Mean(above=0.0), where=(("cell", "gru"),)),))
    assert rule.decide(Evidence(samples)).word == "confirmed"


def test_evidence_without_the_quantity_is_refused():
    with pytest.raises(InputError, match="samples of 'y'"):
        Rule((Part("y", Mean(above=0.0)),)).decide(Evidence([one(SPREAD)]))


def test_a_test_and_its_baseline_belong_together():
    with pytest.raises(InputError, match="versus: got None"):
        Part("x", Solved(more=True))
    with pytest.raises(InputError, match="versus"):
        Part("x", Mean(above=0.0), ("arm", "old"))


UP = one(SPREAD + 1)
RULE = rule_of(Mean(above=0.0), None)


@pytest.mark.parametrize(
    ("kind", "word", "reason"),
    [
        ("positive control", "undecided", "a positive control failed: it"),
        ("negative control", "undecided", "a negative control failed: it"),
        ("rate grid", "undecided", "the grid's edge"),
        ("budget", "depends", "the budget"),
    ],
)
def test_a_check_that_fails(kind, word, reason):
    evidence = Evidence([UP], [Check(kind, "it", False)])
    verdict = judge(evidence, claim_of(RULE))
    assert verdict.word == word
    assert reason in verdict.reason
    assert judge(Evidence([UP], [Check(kind, "it", True)]), claim_of(RULE)).word == "confirmed"


@pytest.mark.parametrize(
    ("count", "text"),
    [(4, "undecided"), (5, "leaning: confirmed"), (7, "leaning: confirmed"), (8, "confirmed")],
)
def test_too_few_replicates(count, text):
    verdict = judge(Evidence([one(1 + 1e-3 * SPREAD[:count])]), claim_of(RULE))
    assert verdict.text == text


def test_exact_claims_need_no_replicates():
    rule = rule_of(Exactly(at_most=1.0), None)
    assert judge(Evidence([one([0.5])]), claim_of(rule)).text == "confirmed"


def test_the_correction_counts_claims_that_have_not_been_run():
    weak = one(0.1 + np.linspace(-0.4, 0.4, N))  # p = .3
    clear = one(0.4 + np.linspace(-0.6, 0.6, N))  # p = .01
    claims = {name: claim_of(RULE, name) for name in "abcdefgh"}
    alone = judge_all({"a": Evidence([clear])}, {"a": claims["a"]})["a"]
    among = judge_all({"a": Evidence([clear]), "b": Evidence([weak])}, claims)
    assert alone.text == "confirmed"
    assert among["a"].text == "leaning: confirmed"
    assert among["a"].p_corrected == pytest.approx(8 * (alone.p or 0))
    assert among["b"].word == "undecided"
