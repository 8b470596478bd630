"""``jaxrnn claims``: list, run, show and report the claims."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.markdown import Markdown

from jaxrnn import checks
from jaxrnn.claims import (
    CLAIMS,
    CLAIMS_HEADER,
    Evidence,
    claim_rows,
    claim_text,
    judge_all,
    read_folder,
    run_all,
    write_page,
    write_report,
)
from jaxrnn.cli.tables import print_table
from jaxrnn.devices import join_processes

_RESULTS = (Path("docs/evidence"), Path("runs/claims"))
"""Where results are looked for if no folder is named: a checkout's own, and the default of `claims run`."""


@dataclasses.dataclass(frozen=True)
class ClaimsList:
    """List the claims with their verdicts.

    Attributes:
      results: a folder of `jaxrnn claims run`; by default docs/evidence or runs/claims, where one is there.
    """

    results: Path | None = None

    def run(self) -> None:
        """Print the table."""
        rows = [(row[0], row[1], row[2], row[3]) for row in claim_rows(_evidence(self.results))]
        print_table("Claims", CLAIMS_HEADER[:4], rows)


def _evidence(results: Path | None) -> dict[str, Evidence]:
    """Return the evidence of the folder named, or of the first that is there, or none."""
    if results is not None:
        return read_folder(results)
    for folder in _RESULTS:
        if folder.is_dir():
            return read_folder(folder)
    return {}


@dataclasses.dataclass(frozen=True)
class ClaimsRun:
    """Run the experiments behind claims into a folder of records.

    Examples: jaxrnn claims run vanishing eigenvalue-rule --scale full --out runs/claims
              jaxrnn claims run --all --resume

    What was broken off goes on with the same words and --resume: records that match are kept, training runs
    go on from their last checkpoints.

    Attributes:
      names: which claims (`jaxrnn claims` lists them).
      all: all of them.
      out: the folder for records NAME.json.
      scale: quick (minutes for all; no more than leanings) or full.
      seeds: replicates; by default 6 at quick scale and 10 at full scale.
      resume: keep the records that are there and match.
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    all: bool = False
    out: Path = Path("runs/claims")
    scale: Literal["quick", "full"] = "quick"
    seeds: int | None = None
    resume: bool = False

    def run(self) -> int:
        """Run them, print the verdicts, and return 1 if one failed."""
        if self.all == bool(self.names):
            checks.refuse("names", "both or neither", "names of claims, or --all")
        join_processes()
        done = run_all(
            self.names or tuple(CLAIMS),
            self.out,
            scale=self.scale,
            seeds=self.seeds,
            resume=self.resume,
        )
        found = {name: one.evidence for name, one in done.items() if one.evidence is not None}
        verdicts = judge_all(found)
        for name, one in done.items():
            print(f"{name:24} {verdicts[name].text if name in verdicts else one.status}")
            if one.reason:
                print(f"jaxrnn: {name}: {one.reason}", file=sys.stderr)
        print(f"records: {self.out}; make the page of them with: jaxrnn claims report {self.out}")
        return int(any(one.status == "failed" for one in done.values()))


@dataclasses.dataclass(frozen=True)
class ClaimsShow:
    """Show one claim: statement, measurement, rule, and the evidence if there is any.

    Attributes:
      name: of the claim.
      results: a folder of `jaxrnn claims run`; by default docs/evidence or runs/claims, where one is there.
    """

    name: tyro.conf.Positional[str]
    results: Path | None = None

    def run(self) -> None:
        """Print it."""
        Console().print(Markdown(claim_text(self.name, _evidence(self.results))))


@dataclasses.dataclass(frozen=True)
class ClaimsReport:
    """Write report.md, report.html and the figures of a folder of records, without running anything.

    Attributes:
      results: the folder of `jaxrnn claims run`.
      out: where to write; by default into the same folder.
      page: a Markdown file to write in place of the reports, as docs/claims.md is.
    """

    results: tyro.conf.Positional[Path]
    out: Path | None = None
    page: Path | None = None

    def run(self) -> None:
        """Write and say where."""
        evidence = read_folder(self.results)
        if self.page is not None:
            print(f"wrote {write_page(evidence, self.page)}")
            return
        markdown, html = write_report(evidence, self.out or self.results)
        print(f"report: {html} (and {markdown.name} beside it)")


@dataclasses.dataclass(frozen=True)
class Claims:
    """Decide statements about recurrent networks by measurement: list, run, show or report them.

    Attributes:
      action: what to do; without one, the claims are listed.
    """

    action: (
        Annotated[ClaimsList, tyro.conf.subcommand("list")]
        | Annotated[ClaimsRun, tyro.conf.subcommand("run")]
        | Annotated[ClaimsShow, tyro.conf.subcommand("show")]
        | Annotated[ClaimsReport, tyro.conf.subcommand("report")]
    ) = dataclasses.field(default_factory=ClaimsList)

    def run(self) -> int | None:
        """Do it."""
        return self.action.run()
