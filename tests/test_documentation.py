"""The README's tour runs, CONTRIBUTING's example is a cell, and notebooks are in step with their sources."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import jax
import jupytext
import matplotlib as mpl
import numpy as np
import pytest
from flax import nnx

from jaxrnn import analysis, claims
from jaxrnn.cells import CELLS
from jaxrnn.checks import InputError
from jaxrnn.experiments import PUBLISHED
from jaxrnn.report import CELLS_HEADER, cells_page, plain
from jaxrnn.tasks import TASKS, load_task

mpl.use("Agg")

_ROOT = Path(__file__).parents[1]


def _text(name: str) -> str:
    return (_ROOT / name).read_text("utf-8")


def _python_blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", _text(name), flags=re.DOTALL)


def test_the_tour_of_the_readme_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    *tour, _ = _python_blocks("README.md")
    with jax.numpy_dtype_promotion("standard"):
        exec(compile("".join(tour), "README.md", "exec"), {})
    assert "gradient's rate" in capsys.readouterr().out


def test_the_arithmetic_of_scaling_is_that_of_its_formula():
    text = _text("docs/scaling.md")
    lines = re.findall(
        r"^\| ([\d,]+) × (\d+) \| ([\d.]+) ms \| ([\d.]+) ms \| (\d+) % \|", text, re.M
    )
    assert len(lines) == 4
    parameters = CELLS["lstm"].parameters(128, 1024)
    for devices, sequences, *told in lines:
        d = int(devices.replace(",", ""))
        compute = 256 * int(sequences) * 6 * parameters / 20e12
        traffic = 8 * parameters * (d - 1) / d / 50e9
        share = compute / (compute + traffic + 10e-6 * np.log2(d))
        expected = (1e3 * compute, 1e3 * traffic, 100 * share)
        np.testing.assert_allclose([float(x) for x in told], expected, rtol=0.02)


def test_the_page_of_data_names_each_file_that_is_looked_for(monkeypatch):
    monkeypatch.delenv("JAXRNN_DATA", raising=False)
    rows = re.findall(r"^\| (`.*?`) \| `(.*?)` \| (`.*?`) \|", _text("docs/data.md"), re.M)
    assert len(rows) == 6
    for tasks, folder, files in rows:
        for task in re.findall(r"`(.*?)`", tasks):
            with pytest.raises(InputError) as refused:
                load_task(task)
            asked = re.search(
                r"a folder with (.*) \(\.gz or not\), .* above (.*)/$", str(refused.value)
            )
            assert asked is not None
            assert sorted(asked[1].split(", ")) == sorted(re.findall(r"`(.*?)`", files))
            assert asked[2] == folder


def test_the_readme_counts_the_tasks():
    for name in ("README.md", "CHANGELOG.md"):
        assert re.search(rf"{len(TASKS)} (tasks|of them with their presets)", _text(name))
    assert f"Published experiments, {len(PUBLISHED)} of them" in _text("CHANGELOG.md")


def test_the_readme_counts_the_cells():
    readme = _text("README.md")
    assert f"Works: {len(CELLS)} cells" in readme


def test_the_lines_for_all_cores_run():
    *_, lines = _python_blocks("README.md")
    lines += """
from flax import nnx

xs = jax.numpy.ones((20, 2 * jax.device_count(), 3))
value, by_cell = gradient(jaxrnn.GRUCell(3, 8, rngs=nnx.Rngs(0)), xs)
assert by_cell.kernel.shape == (3, 24)
"""
    done = subprocess.run(
        [sys.executable, "-c", lines], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_example_cell_of_contributing_keeps_the_contract():
    example, _ = _python_blocks("CONTRIBUTING.md")
    assert example.count("\n") < 40
    names: dict = {"__name__": "example"}
    exec(compile(example, "CONTRIBUTING.md", "exec"), names)
    cell = names["CoupledLSTMCell"](3, 5, rngs=nnx.Rngs(0))
    path = analysis.trace(cell, jax.random.normal(jax.random.key(0), (6, 2, 3)))
    structured = analysis.jacobians(cell, path)
    general = analysis.jacobians(lambda carry, x: cell(carry, x), path)
    np.testing.assert_allclose(structured, general, atol=1e-6)


def test_the_example_claim_of_contributing_is_measured_and_decided():
    _, example = _python_blocks("CONTRIBUTING.md")
    assert example.count("\n") <= 40
    before = dict(claims.CLAIMS)
    try:
        exec(compile(example, "CONTRIBUTING.md", "exec"), {"__name__": "example"})
        evidence = claims.run("tanh-vanishes")
        assert claims.judge(evidence).word != "undecided"
        assert "tanh-vanishes" in claims.claim_text("tanh-vanishes", {"tanh-vanishes": evidence})
    finally:
        claims.CLAIMS.clear()
        claims.CLAIMS.update(before)


def test_the_page_of_claims_is_what_the_evidence_says():
    folder = _ROOT / "docs" / "evidence"
    page = (_ROOT / "docs" / "claims.md").read_text("utf-8")
    for row in claims.claim_rows(claims.read_folder(folder)):
        assert "| " + " | ".join(map(plain, row)) + " |" in page


def test_the_page_of_cells_is_what_the_table_says():
    """All but the FLOPs, which are XLA's count and change with its version."""

    def without_flops(text: str) -> list[str]:
        place = CELLS_HEADER.index("FLOPs") + 1
        lines = [line.split(" | ") for line in text.splitlines()]
        return [
            " | ".join(p[: place - 1] + p[place:]) for p in lines if len(p) == len(CELLS_HEADER)
        ]

    committed = (_ROOT / "docs" / "cells.md").read_text("utf-8")
    written = cells_page(1, 64)
    table, page = without_flops(committed), without_flops(written)
    assert len(table) == len(CELLS) + 2
    assert table == page
    assert committed.split("\n## ")[1:] == written.split("\n## ")[1:]


@pytest.mark.parametrize(
    "source", sorted((_ROOT / "notebooks").glob("*.py")), ids=lambda path: path.stem
)
def test_a_notebook_is_in_step_with_its_source(source: Path):
    written = jupytext.read(source)
    notebook = jupytext.read(source.with_suffix(".ipynb"))
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in written.cells
    ]
    assert not any(cell.get("outputs") for cell in notebook.cells)


def test_every_target_of_the_makefile_that_the_readme_names_exists():
    makefile = (_ROOT / "Makefile").read_text("utf-8")
    for target in set(re.findall(r"make ([a-z-]+)", _text("README.md"))):
        assert re.search(rf"^[a-z -]*\b{target}\b[a-z -]*:", makefile, flags=re.MULTILINE), target
