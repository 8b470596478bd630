"""The page of speed says by itself which of its rows are older than the code."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.page import page
from benchmarks.timing import engine

ROOT = Path(__file__).parents[1]
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "cpu.json").read_text())


def test_the_page_is_that_of_the_results_and_the_code():
    assert (ROOT / "docs" / "speed.md").read_text("utf-8") == page(RESULTS)


def test_rows_measured_with_other_code_are_named():
    current = {**RESULTS, "engines": dict.fromkeys(RESULTS["machines"], engine())}
    assert "Older than the code" not in page(current)
    current["engines"]["foreign"] = "another"
    assert "`unroll` has changed since these were measured: Flax's cells." in page(current)
