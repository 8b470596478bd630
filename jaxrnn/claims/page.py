"""The page of claims, made from records alone: a table to read in a minute, then a section a topic.

Statements that contradict each other share a topic, so they stand together. Nothing on the page is typed:
statements, rules and lessons are the claims' own, numbers are the evidence's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt

from jaxrnn.annotations import checked
from jaxrnn.claims.claim import ARTICLES, CLAIMS, SEEDS, Claim, known
from jaxrnn.claims.evidence import About, Evidence, short
from jaxrnn.claims.figures import draw
from jaxrnn.claims.power import POWER_HEADER, power_rows
from jaxrnn.claims.rules import Outcome
from jaxrnn.claims.statistics import Estimate
from jaxrnn.claims.verdicts import Verdict, judge_all
from jaxrnn.files import replace_file, writing
from jaxrnn.report import Report, plain

CLAIMS_HEADER = ("claim", "statement", "who", "verdict", "effect", "lesson")
_MANY = 12  # conditions above which a section's table shows the extremes alone

_LEGEND = (
    "A verdict follows from a rule that is fixed in code before the run. *confirmed*: every condition speaks "
    "for the statement. *refuted*: every condition speaks against it, or one does and the statement says "
    "always, must or can't. *depends*: some conditions speak for it and some against. *undecided*: an "
    "interval is too wide, or a control failed. *leaning*: fewer than eight replicates, or not significant "
    "at 5 % after Holm's correction for the number of claims. *stale*: the rule has changed since the run, "
    "so it decides nothing. Effects stand with their 95 % intervals; where conditions differ, the two that "
    "speak most clearly for and against are shown."
)


@checked
def claim_rows(evidence: Mapping[str, Evidence]) -> list[tuple[str, ...]]:
    """Return the table of all claims under `CLAIMS_HEADER`; a claim without evidence is *not run*."""
    verdicts = _verdicts(evidence)
    return [_row(claim, evidence.get(name), verdicts.get(name)) for name, claim in CLAIMS.items()]


def _verdicts(evidence: Mapping[str, Evidence]) -> dict[str, Verdict]:
    """Judge what was measured under today's rules."""
    return judge_all({name: found for name, found in evidence.items() if not _stale(name, found)})


def _stale(name: str, found: Evidence) -> bool:
    rule = CLAIMS[name].rule
    return rule is None or found.about is None or found.about.rule != rule.words


def verdict_text(claim: Claim, found: Evidence | None, verdict: Verdict | None) -> str:
    """Return the verdict of a claim in a few words."""
    if claim.rule is None:
        return "not measurable"
    if found is None:
        return "not run"
    return "stale" if verdict is None else verdict.text


def _row(claim: Claim, found: Evidence | None, verdict: Verdict | None) -> tuple[str, ...]:
    who = ", ".join(dict.fromkeys(source.article for source in claim.said_by))
    text = verdict_text(claim, found, verdict)
    if found is None or verdict is None:
        return (claim.name, claim.statement, who, text, "", _lesson(claim, found, text))
    named = len({outcome.part.quantity for outcome in verdict.outcomes}) > 1
    effect = "; ".join(_effect_where(outcome, named=named) for outcome in _extremes(verdict))
    return (claim.name, claim.statement, who, text, effect, _lesson(claim, found, verdict.word))


def _lesson(claim: Claim, found: Evidence | None, word: str) -> str:
    """Return the sentence to remember, with the evidence's numbers in it."""
    return "" if found is None else claim.lessons.get(word, "").format(**found.facts)


def _extremes(verdict: Verdict) -> list[Outcome]:
    """Return the outcome that speaks most clearly for the statement and the one most clearly against it.

    Both are of one quantity, if any quantity has both. Where all speak one way, the least clear one decides
    and stands alone.
    """
    quantities = dict.fromkeys(outcome.part.quantity for outcome in verdict.outcomes)
    for chosen in (*([quantity] for quantity in quantities), list(quantities)):
        outcomes = [o for o in verdict.outcomes if o.part.quantity in chosen]
        supporting = sorted((o for o in outcomes if o.says > 0), key=_clarity)
        opposing = sorted((o for o in outcomes if o.says < 0), key=_clarity)
        if supporting and opposing:
            return [supporting[0], opposing[0]]
    return [sorted(verdict.outcomes, key=_clarity)[-1]]


def _clarity(outcome: Outcome) -> tuple[float, float]:
    p = outcome.estimate.p
    return (0.0 if p is None else p, -abs(outcome.estimate.effect))


def effect_text(estimate: Estimate) -> str:
    """Return an effect with its interval, as in "-0.31 [-0.33, -0.29]"."""
    if estimate.p is None and math.isclose(estimate.low, estimate.high, rel_tol=1e-3, abs_tol=0):
        return f"{estimate.effect:.3g}"
    return f"{estimate.effect:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"


def _effect_where(outcome: Outcome, *, named: bool) -> str:
    """Return an effect and its condition, as in "-0.31 [-0.33, -0.29] (gru, fresh)".

    Where it is `named`, the quantity stands before it, without its unit.
    """
    condition = ", ".join(outcome.condition.values())
    name = outcome.part.quantity.partition(",")[0] + " " if named else ""
    return name + effect_text(outcome.estimate) + (f" ({condition})" if condition else "")


@checked
def write_report(
    evidence: Mapping[str, Evidence], folder: Path, *, figures: str = "figures"
) -> tuple[Path, Path]:
    """Write ``report.md``, ``report.html`` and the figures of all claims with evidence.

    Args:
      evidence: by the claims' names.
      folder: where to write.
      figures: the figures' folder, below it.

    Returns:
      The two reports' paths.

    Raises:
      InputError: the folder cannot be written.
    """
    with writing("out", folder, "a folder that can be written"):
        paths = _save_figures(evidence, folder, figures)
    return _report(evidence, paths).write(folder)


def _save_figures(evidence: Mapping[str, Evidence], folder: Path, figures: str) -> dict[str, str]:
    """Write the figures, and return their paths below the folder by the claims' names."""
    (folder / figures).mkdir(parents=True, exist_ok=True)
    paths = {name: f"{figures}/{name}.png" for name, found in evidence.items() if found.panels}
    for name, path in paths.items():
        figure = draw(evidence[name])
        figure.savefig(folder / path, metadata={"Software": None})  # same evidence, same bytes
        plt.close(figure)
    return paths


@checked
def write_page(evidence: Mapping[str, Evidence], path: Path) -> Path:
    """Write the page as one Markdown file, its figures into figures/claims beside it, and return its path.

    Raises:
      InputError: the files cannot be written.
    """
    with writing("page", path, "a file in a folder that exists"):
        paths = _save_figures(evidence, path.parent, "figures/claims")
        replace_file(path, _report(evidence, paths).text.encode())
    return path


@checked
def claim_text(name: str, evidence: Mapping[str, Evidence]) -> str:
    """Return one claim's section as Markdown, for the terminal.

    Raises:
      InputError: no claim of this name; the nearest is suggested.
    """
    claim = known(name)
    page = Report(name)
    _section(page, claim, evidence.get(name), _verdicts(evidence).get(name), {})
    return page.text


def _report(evidence: Mapping[str, Evidence], figures: Mapping[str, str]) -> Report:
    page = Report("What is true of recurrent networks")
    page.paragraph(_opening(evidence))
    page.table(CLAIMS_HEADER, [tuple(map(plain, row)) for row in claim_rows(evidence)])
    page.paragraph(_LEGEND)
    verdicts = _verdicts(evidence)
    topics: dict[str, list[Claim]] = {}
    for claim in CLAIMS.values():
        topics.setdefault(claim.topic, []).append(claim)
    for topic, claims in topics.items():
        page.heading(plain(topic))
        for claim in claims:
            _section(page, claim, evidence.get(claim.name), verdicts.get(claim.name), figures)
    page.heading("What the rules can see")
    page.paragraph(
        "Shares of simulated experiments that speak for a statement (and, in the last column, against it), "
        "where it has no effect, the smallest effect that counts, and twice that; the spread between "
        f"replicates is half of the smallest effect. quick has {SEEDS['quick']} replicates, full "
        f"{SEEDS['full']}; *corrected* is after Holm's correction at its strictest."
    )
    page.table(POWER_HEADER, power_rows())
    return page


def _opening(evidence: Mapping[str, Evidence]) -> str:
    """Say how many claims have been run, and whether one revision and scale stand behind all."""
    measurable = [claim for claim in CLAIMS.values() if claim.rule is not None]
    abouts = [found.about for found in evidence.values() if found.about is not None]
    revisions = {about.revision for about in abouts}
    scales = sorted({about.scale for about in abouts})
    text = (
        f"Five articles list what recurrent networks can't do. Each statement here is measured: "
        f"{len(evidence)} of {len(measurable)} claims have been run, at {' and '.join(scales)} scale."
    )
    if len(revisions) > 1:
        text += f" They were measured at {len(revisions)} revisions of the code; each section names its own."
    dirty = sum(about.revision.endswith("-dirty") for about in abouts)
    if dirty:
        text += f" {dirty} of them were measured with code that was not committed."
    return text


def _section(
    page: Report,
    claim: Claim,
    found: Evidence | None,
    verdict: Verdict | None,
    figures: Mapping[str, str],
) -> None:
    page.heading(f"`{claim.name}`: {plain(claim.statement)}", level=3)
    page.paragraph(
        "Said by: "
        + "; ".join(f"{plain(ARTICLES[s.article])} ({plain(s.passage)})" for s in claim.said_by)
        + "."
    )
    page.paragraph(f"Why one might believe it: {plain(claim.why)}")
    if claim.rule is None:
        page.paragraph(f"Not measurable: {plain(claim.refuted_by)}")
        return
    page.paragraph(f"Measured: {plain(claim.measured)}")
    page.paragraph(f"Rule: {plain(claim.rule.words)}")
    page.paragraph(f"What would change the verdict: {plain(claim.refuted_by)}")
    text = verdict_text(claim, found, verdict)
    reason = f": {verdict.reason}" if verdict is not None and verdict.word == "undecided" else ""
    page.paragraph(f"**Verdict: {plain(text)}**{plain(reason)}")
    if found is None:
        return
    if verdict is not None:
        lesson = _lesson(claim, found, verdict.word)
        if lesson:
            page.paragraph(f"> {plain(lesson)}")
        page.table(("quantity", "condition", "effect", "p", "speaks"), _outcome_rows(verdict))
    if claim.name in figures:
        page.figure(figures[claim.name], f"{claim.name}: {claim.measured}")
    _provenance(page, claim, found, verdict)


def _outcome_rows(verdict: Verdict) -> list[tuple[str, ...]]:
    outcomes = verdict.outcomes if len(verdict.outcomes) <= _MANY else _extremes(verdict)
    return [
        (
            plain(outcome.part.quantity),
            plain(", ".join(outcome.condition.values())),
            plain(effect_text(outcome.estimate)),
            "" if outcome.estimate.p is None else f"{outcome.estimate.p:.2g}",
            {1: "for", -1: "against", 0: "unclear"}[outcome.says],
        )
        for outcome in outcomes
    ]


def _provenance(page: Report, claim: Claim, found: Evidence, verdict: Verdict | None) -> None:
    """Add checks, published numbers, settings and provenance."""
    for check in found.checks:
        held = "held" if check.passed else "FAILED"
        page.paragraph(
            f"{check.kind.capitalize()} {held}: {plain(check.name)} ({plain(check.detail)})."
        )
    if claim.published:
        page.paragraph("Published: " + "; ".join(map(plain, claim.published)) + ".")
    if found.settings:
        page.paragraph(
            "Settings: " + "; ".join(f"{n} {v}" for n, v in found.settings.items()) + "."
        )
    if verdict is not None and verdict.p is not None:
        page.paragraph(
            f"p = {verdict.p:.2g}; after Holm's correction for all claims {verdict.p_corrected:.2g}."
        )
    if found.about is not None:
        page.paragraph(_about(found.about))


def _about(about: About) -> str:
    return (
        f"{about.scale} scale, {len(about.seeds)} seeds, {about.seconds:.0f} s on {about.date}; "
        f"revision `{short(about.revision)}`; "
        f"{plain(about.machine)}; jax {about.versions['jax']}, flax {about.versions['flax']}."
    )
