"""From evidence to verdicts: the rule's decision, the checks, and Holm's correction over all claims.

    verdict     confirmed, refuted, depends (and on what) or undecided (and why)
    leaning     the rule has decided, but with fewer than eight replicates, or not after the correction

A family of sixty claims has some p-values below 5 % by chance alone. Holm's correction keeps the probability
of a single wrong verdict among all of them at 5 %. The family is the whole table of claims: a claim that has
not been run yet counts as p = 1, so that a verdict does not get weaker when another claim is run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.claims.claim import CLAIMS, Claim, known
from jaxrnn.claims.evidence import Check, Evidence
from jaxrnn.claims.rules import Decision, Outcome, Rule
from jaxrnn.claims.statistics import LEVEL, holm

FEWEST = 5
"""Replicates below which nothing is decided: the exact rank test of 4 against 4 cannot pass 2 %."""

_NAMED = 3  # conditions that a verdict names

ENOUGH = 8
"""Replicates from which a verdict is more than a leaning: 8 against 8 reach p = 1.6e-4."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is decided about a claim.

    Attributes:
      word: confirmed, refuted, depends or undecided.
      leaning: whether that is no more than a tendency.
      reason: why it is undecided, or on what it depends; empty where the word says all.
      outcomes: what each condition says.
      p: of the rule; None where nothing is random.
      p_corrected: after Holm's correction for the number of claims.
    """

    word: str
    leaning: bool
    reason: str
    outcomes: tuple[Outcome, ...]
    p: float | None
    p_corrected: float | None

    @property
    def text(self) -> str:
        """The verdict in a few words."""
        text = {"depends": f"depends on {self.reason}"}.get(self.word, self.word)
        return f"leaning: {text}" if self.leaning else text


@checked
def judge(evidence: Evidence, claim: Claim | None = None) -> Verdict:
    """Decide one claim as if no other had been run.

    Args:
      evidence: from `run`, or read from a record.
      claim: whose rule decides; by default the claim that the evidence names.

    Raises:
      InputError: evidence that names no claim, or lacks what the rule needs.
    """
    if claim is None:
        if evidence.about is None:
            checks.refuse("evidence", "evidence that names no claim", "that of a claim's run")
        claim = known(evidence.about.claim)
    if claim.rule is None:
        checks.refuse("claim", repr(claim.name), "one that can be measured")
    return judge_all({claim.name: evidence}, {**CLAIMS, claim.name: claim})[claim.name]


def judge_all(
    evidence: Mapping[str, Evidence], claims: Mapping[str, Claim] = CLAIMS
) -> dict[str, Verdict]:
    """Decide all claims for which there is evidence, with Holm's correction over the whole table.

    Raises:
      InputError: evidence that lacks what its rule needs.
    """
    decisions: dict[str, Decision] = {}
    for name, found in evidence.items():
        rule = claims[name].rule
        if rule is not None:
            decisions[name] = rule.decide(found)
    corrected = _corrected(decisions, claims)
    return {
        name: _verdict(decision, evidence[name].checks, corrected.get(name))
        for name, decision in decisions.items()
    }


def _corrected(decisions: Mapping[str, Decision], claims: Mapping[str, Claim]) -> dict[str, float]:
    tested = {name: d.p for name, d in decisions.items() if d.p is not None}
    family = [name for name, claim in claims.items() if _is_statistical(claim.rule)]
    missing = len(set(family) - set(tested))
    adjusted = holm([*tested.values(), *[1.0] * missing])
    return dict(zip(tested, adjusted, strict=False))


def _is_statistical(rule: Rule | None) -> bool:
    return rule is not None and rule.statistical


def _verdict(decision: Decision, found: Sequence[Check], p_corrected: float | None) -> Verdict:
    rest: tuple[Any, ...] = (decision.outcomes, decision.p, p_corrected)
    random = [o for o in decision.outcomes if o.estimate.p is not None]
    replicates = min((o.replicates for o in random), default=ENOUGH)
    failed = [check for check in found if not check.passed]
    undecided = [_complaint(check) for check in failed if check.kind != "budget"]
    if replicates < FEWEST:
        undecided.append(f"{replicates} replicates are too few")
    if undecided:
        return Verdict("undecided", False, "; ".join(undecided), *rest)
    if decision.word == "undecided":
        return Verdict("undecided", False, _unclear(decision), *rest)
    leaning = replicates < ENOUGH or (p_corrected is not None and p_corrected > LEVEL)
    if failed:
        return Verdict(
            "depends", leaning, f"the budget ({failed[0].detail or failed[0].name})", *rest
        )
    return Verdict(decision.word, leaning, ", ".join(decision.factors), *rest)


def _unclear(decision: Decision) -> str:
    """Say which conditions do not speak clearly."""
    unclear = [
        ", ".join(o.condition.values()) or "the sample" for o in decision.outcomes if not o.says
    ]
    if not unclear:
        return "its p-value does not stand after the correction for its conditions"
    more = f" and {len(unclear) - _NAMED} more" if len(unclear) > _NAMED else ""
    return f"no clear answer for {'; '.join(unclear[:_NAMED])}{more}"


def _complaint(check: Check) -> str:
    detail = f" ({check.detail})" if check.detail else ""
    if check.kind == "rate grid":
        return f"the best learning rate stands at the grid's edge: {check.name}{detail}"
    return f"a {check.kind} failed: {check.name}{detail}"
