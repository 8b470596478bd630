"""Claims: statements about recurrent networks, experiments that measure them, verdicts by fixed rules.

claim.py        what a claim is, and the table `CLAIMS`
evidence.py     what an experiment returns: samples, checks, the figure's numbers; as JSON
rules.py        tests of conditions, and what they say together
verdicts.py     checks and Holm's correction: confirmed, refuted, depends, undecided
running.py      one claim, or a battery into a folder
page.py         the page, from records alone
table.py        the claims by subject: gradients.py, memory.py, cost.py, …
"""

from jaxrnn.claims import table  # noqa: F401 (it fills `CLAIMS`)
from jaxrnn.claims.claim import ARTICLES, CLAIMS, Claim, Lab, Source
from jaxrnn.claims.evidence import (
    About,
    Check,
    Evidence,
    Line,
    Panel,
    Sample,
    read_evidence,
    write_evidence,
)
from jaxrnn.claims.page import CLAIMS_HEADER, claim_rows, claim_text, write_page, write_report
from jaxrnn.claims.rules import (
    Comparable,
    Decision,
    Exactly,
    Mean,
    Outcome,
    Part,
    Ranks,
    Rule,
    Share,
    Solved,
    Sooner,
    Trend,
)
from jaxrnn.claims.running import Done, read_folder, run, run_all
from jaxrnn.claims.verdicts import Verdict, judge, judge_all

__all__ = [
    "ARTICLES",
    "CLAIMS",
    "CLAIMS_HEADER",
    "About",
    "Check",
    "Claim",
    "Comparable",
    "Decision",
    "Done",
    "Evidence",
    "Exactly",
    "Lab",
    "Line",
    "Mean",
    "Outcome",
    "Panel",
    "Part",
    "Ranks",
    "Rule",
    "Sample",
    "Share",
    "Solved",
    "Sooner",
    "Source",
    "Trend",
    "Verdict",
    "claim_rows",
    "claim_text",
    "judge",
    "judge_all",
    "read_evidence",
    "read_folder",
    "run",
    "run_all",
    "write_evidence",
    "write_page",
    "write_report",
]
