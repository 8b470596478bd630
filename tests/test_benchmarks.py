"""The page of speed says by itself which of its rows are older than the code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from benchmarks import revisions
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


def test_the_digest_of_the_engine_is_that_of_its_statements(tmp_path: Path):
    package = tmp_path / "jaxrnn"
    shutil.copytree(ROOT / "jaxrnn" / "unrolling", package / "unrolling")
    shutil.copy(ROOT / "jaxrnn" / "jaxprs.py", package)
    assert engine(package) == engine()
    file = package / "unrolling" / "scan.py"
    text = file.read_text()
    prose = text.replace('"""', '"""Otherwise: ', 1).replace("\n\n", "\n# A remark.\n\n", 1)
    file.write_text(prose.replace("import jax\n", "import jax\nimport math\n", 1))
    assert engine(package) == engine()
    indented = "    x = 1\n    y = 2\n"
    digests = set()
    for body in (f"if True:\n{indented}", "if True:\n    x = 1\ny = 2\n", "x = 1\ny = 2\n"):
        file.write_text(body)
        digests.add(engine(package))
    assert len(digests | {engine()}) == 4


def test_the_table_of_revisions_is_that_of_its_results():
    folder = ROOT / "benchmarks" / "results"
    results = json.loads((folder / "revisions.json").read_text("utf-8"))
    assert (folder / "revisions.md").read_text("utf-8") == revisions.page(results)
