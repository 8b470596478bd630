"""Run claims: one, or a battery into a folder of records, which goes on claim by claim after a kill.

    FOLDER/NAME.json                    the evidence of a claim, written when its experiment is done
    FOLDER/runs/REVISION-SCALE-SEEDS/…  training runs, each resumed from its last checkpoint

Claims that train the same networks share the runs. Another revision, scale or number of seeds trains anew: a
record never names a revision at which its networks were not trained.

A record is kept on resumption if rule, scale and seeds are still the same; it then says at which revision it
was measured, and this is repeated aloud where it is not today's. Whatever does not match is measured anew.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.claims.claim import CLAIMS, SEEDS, Claim, Lab, Scale, known
from jaxrnn.claims.evidence import About, Evidence, read_evidence, short, write_evidence
from jaxrnn.claims.verdicts import judge
from jaxrnn.tasks import MissingDataError
from jaxrnn.training import ProgressBar, Stopped, environment

Status = Literal["measured", "kept", "not run", "failed"]

_MOST_SEEDS = 1_000


@dataclasses.dataclass(frozen=True)
class Done:
    """What became of one claim of a battery.

    Attributes:
      status: measured now, kept from before, not run (a file is missing) or failed.
      evidence: what was found; None where it was not run or failed.
      reason: why it was not run, or how it failed.
    """

    status: Status
    evidence: Evidence | None
    reason: str = ""


@checked
def run(
    name: str,
    *,
    scale: Scale = "quick",
    seeds: int | None = None,
    folder: str | Path | None = None,
) -> Evidence:
    """Run the experiment behind a claim.

    Args:
      name: of the claim; `CLAIMS` has them all.
      scale: quick or full.
      seeds: replicates; by default 6 at quick scale and 10 at full scale.
      folder: of a battery, in which training runs are kept and resumed; None keeps nothing.

    Returns:
      The evidence; `judge` says what follows from it.

    Raises:
      InputError: no claim of this name, or one that cannot be measured.
      MissingDataError: a file that the experiment needs is not there.

    Example:
      >>> from jaxrnn import claims
      >>> evidence = claims.run("sigmoid-slope")
      >>> claims.judge(evidence).text
      'confirmed'
    """
    return _run(known(name), _lab(scale, seeds, folder))


def _lab(scale: Scale, seeds: int | None, folder: str | Path | None) -> Lab:
    count = SEEDS[scale] if seeds is None else seeds
    checks.within("seeds", count, 1, _MOST_SEEDS)
    runs = None if folder is None else Path(folder) / "runs" / f"{_revision()}-{scale}-{count}"
    return Lab(scale, tuple(range(count)), runs)


def _revision() -> str:
    """Return the revision of the code, as short as it stands in reports."""
    return short(environment()["revision"] or "unknown")


def _run(claim: Claim, lab: Lab) -> Evidence:
    if claim.measure is None or claim.rule is None:
        checks.refuse("claim", repr(claim.name), "one that can be measured")
    began = time.perf_counter()
    found = claim.measure(lab)
    seconds = round(time.perf_counter() - began, 1)
    here = environment()
    about = About(
        claim=claim.name,
        scale=lab.scale,
        seeds=lab.seeds,
        rule=claim.rule.words,
        revision=here["revision"] or "unknown",
        machine=f"{here['machine']}; {', '.join(here['devices'])}; Python {here['python']}",
        versions=here["versions"],
        seconds=seconds,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )
    return dataclasses.replace(found, about=about)


@checked
def run_all(
    names: Sequence[str],
    out: str | Path,
    *,
    scale: Scale = "quick",
    seeds: int | None = None,
    resume: bool = False,
) -> dict[str, Done]:
    """Run claims into a folder of records, and go on where one fails.

    Args:
      names: of the claims.
      out: the folder; without `resume` it must hold no record of these claims.
      scale: quick or full.
      seeds: replicates; by default 6 at quick scale and 10 at full scale.
      resume: keep the records that match, and go on with training runs that were broken off.

    Returns:
      What became of each claim, in the order of `names`.

    Raises:
      InputError: a claim that there is not, or one whose record is in the folder already.
      Stopped: the process was asked to end; what was done is kept.
    """
    chosen = [known(name) for name in dict.fromkeys(names)]
    folder = Path(out)
    there = [claim.name for claim in chosen if os.path.lexists(_record(folder, claim))]
    if there and not resume:
        got = f"{folder}, which holds evidence of {', '.join(there)}"
        checks.refuse("out", got, "a folder without, or --resume to keep what matches")
    measurable = [claim for claim in chosen if claim.measure is not None]
    done: dict[str, Done] = {}
    lab = _lab(scale, seeds, folder)
    with ProgressBar("claims", len(measurable)) as bar:
        for claim in measurable:
            done[claim.name] = _one(claim, lab, _record(folder, claim), bar)
            bar.advance(f"{claim.name}: {_news(claim, done[claim.name])}")
    return done


def _record(folder: Path, claim: Claim) -> Path:
    return folder / f"{claim.name}.json"


def _one(claim: Claim, lab: Lab, record: Path, bar: ProgressBar) -> Done:
    if os.path.lexists(record):
        kept, differs = _kept(claim, lab, record)
        if not differs:
            return Done("kept", kept)
        bar.say(f"{claim.name}: measured anew, for its record has {differs}")
    try:
        evidence = _run(claim, lab)
        judge(evidence, claim)  # evidence that its rule cannot read is a failure of the claim
        write_evidence(record, evidence)
    except Stopped:
        raise
    except MissingDataError as error:
        return Done("not run", None, str(error))
    except Exception as error:  # whatever it is, the other claims go on
        bar.say(f"{claim.name} failed:\n{traceback.format_exc()}")
        return Done("failed", None, f"{type(error).__name__}: {error}")
    return Done("measured", evidence)


def _kept(claim: Claim, lab: Lab, record: Path) -> tuple[Evidence | None, str]:
    """Return a record, and in which way it does not match; empty where it does."""
    try:
        found = read_evidence(record)
    except checks.InputError as error:
        return None, f"another form ({error})"
    return found, "; ".join(_differences(claim, lab, found))


def _differences(claim: Claim, lab: Lab, found: Evidence) -> Iterator[str]:
    about = found.about
    if about is None or about.claim != claim.name:
        yield "no word on its claim"
        return
    if claim.rule is not None and about.rule != claim.rule.words:
        yield "another rule"
    if about.scale != lab.scale:
        yield f"scale {about.scale}"
    if about.seeds != lab.seeds:
        yield f"{len(about.seeds)} seeds"


def _news(claim: Claim, done: Done) -> str:
    if done.evidence is None or done.evidence.about is None:
        return f"{done.status} ({done.reason})"
    verdict = judge(done.evidence, claim).text
    about = done.evidence.about
    if done.status == "measured":
        return f"{verdict}, {about.seconds:.0f} s"
    here = environment()["revision"]
    revision = (
        "" if about.revision == here else f" at revision {short(about.revision)}, not today's"
    )
    return f"{verdict}, kept from {about.date}{revision}"


@checked
def read_folder(folder: str | Path) -> dict[str, Evidence]:
    """Return the evidence of every claim that has a record in a folder, in the order of the table.

    Raises:
      InputError: the folder is not there or holds no record, or a record cannot be read.
    """
    path = Path(folder)
    if not path.is_dir():
        checks.refuse("results", str(folder), "a folder with records of claims")
    found = {
        name: read_evidence(_record(path, claim))
        for name, claim in CLAIMS.items()
        if os.path.lexists(_record(path, claim))
    }
    if not found:
        checks.refuse("results", f"{folder}, without any record of a claim", "NAME.json files")
    return found
