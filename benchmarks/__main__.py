"""``make bench`` (minutes, prints) and ``make bench-full`` (an hour; results, page, table and figure).

Ratios are how many times as long a rival takes as `unroll`: above 1, `unroll` is the faster. Run nothing
beside it. PyTorch and Keras take part where they are installed (``make rivals``).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.cases import CELLS, GRID, LARGEST, QUICK, UNSEEN
from benchmarks.cells import LONG, SHAPES
from benchmarks.measure import LARGE_PAGES, large_pages_on_request
from benchmarks.page import page
from benchmarks.timing import engine
from benchmarks.worker import results

_ROOT = Path(__file__).parents[1]
_RESULTS = _ROOT / "benchmarks" / "results" / "cpu.json"
_FIGURE = _ROOT / "docs" / "figures" / "benchmarks.png"
_PAGE = _ROOT / "docs" / "speed.md"


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--full", action="store_true", help="everything, and write the results")
    what.add_argument(
        "--render", action="store_true", help="page, table and figure from kept results"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="PART",
        help="some parts: with --full, the others stay as they are",
    )
    chosen = parser.parse_args()
    if chosen.render:
        _render(_kept())
    else:
        _measure(full=chosen.full, only=chosen.only)


def _kept() -> dict[str, Any]:
    return json.loads(_RESULTS.read_text())


def _measure(*, full: bool, only: list[str] | None) -> None:
    cores = len(os.sched_getaffinity(0))
    (about,) = results("measure.about", 1)
    print(json.dumps(about["environment"], indent=1))
    print(f"one product of 1024³ in float32 on one core: {about['product_rate'] / 1e9:.0f} GFLOP/s")
    print("how many times as long each rival takes as unroll, median [quartiles]\n")
    parts = {"speed": _speed("the grid" if full else "part of the grid", cores, full)}
    parts |= {
        "foreign": _foreign(full),
        "cells": _cells(full),
        "lyapunov": _lyapunov(),
        "jacobians": _jacobians(),
        "large": _large(cores),
        "fixed_points": _fixed_points(cores),
        "ensembles": _ensembles(cores),
    }
    if full:
        parts |= {"unseen": _speed("unseen shapes", cores, full)}
        parts |= {"memory": _memory(), "methods": _methods(cores)}
        parts |= {"memory_of_cells": _memory_of_cells()}
        if large_pages_on_request():
            parts |= {"pages": _pages(), "jacobians_large_pages": _jacobians(LARGE_PAGES)}
    if unknown := set(only or ()) - set(parts):
        sys.exit(f"benchmarks: no part {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    found: dict[str, Any] = _kept() if full and only else {"machines": {}}
    for name in only or parts:
        found["machines"][name] = about
        found.setdefault("engines", {})[name] = engine()
        found[name] = []
        for row in parts[name]:
            found[name].append(row)
            if full:  # after every row: a run that is broken off leaves what it has
                _RESULTS.parent.mkdir(exist_ok=True)
                _RESULTS.write_text(_row_by_row(found))
    if full:
        _render(found)


def _row_by_row(found: dict[str, Any]) -> str:
    """Write results as JSON with a row a line, which can be read and compared."""

    def lines(part: Any) -> str:
        if not isinstance(part, list):
            return json.dumps(part)
        return "[\n" + ",\n".join(json.dumps(row) for row in part) + "\n]"

    return "{\n" + ",\n".join(f"{json.dumps(k)}: {lines(v)}" for k, v in found.items()) + "\n}\n"


def _render(found: dict[str, Any]) -> None:
    report.into_readme(found, _ROOT / "README.md")
    report.figure(found, _FIGURE)
    _PAGE.write_text(page(found), "utf-8")
    print(f"wrote {_PAGE}, {_FIGURE} and the table in README.md, from {_RESULTS}")


_SHAPES = {"part of the grid": QUICK, "the grid": GRID, "unseen shapes": UNSEEN}


def _speed(title: str, cores: int, full: bool) -> Iterator[dict[str, Any]]:
    works = ["forward", "forward+backward"] if full else ["forward+backward"]
    rows = []
    for count in dict.fromkeys((1, cores)):
        print(f"{title}, {count} of {cores} cores\n{report.heading()}", flush=True)
        for row in results("measure.speed", count, cells=CELLS, shapes=_SHAPES[title], works=works):
            rows.append(row)
            print(report.line(row), flush=True)
            yield row
    print(f"\n{report.summary(rows)}\n", flush=True)


def _foreign(full: bool) -> Iterator[dict[str, Any]]:
    print("\nFlax's cells inside unroll, forward and backward, one core: ms, and nnx.RNN's ratio")
    for row in results("foreign.foreign", 1, shapes=GRID if full else QUICK):
        shape = ", ".join(map(str, row["shape"]))
        milliseconds = 1e3 * row["seconds"]["unroll"][1]
        ratio = report.spread(row["ratio"])
        print(f"{row['cell']:18}{shape:20}{milliseconds:9.2f}{ratio:>19}", flush=True)
        yield row


def _cells(full: bool) -> Iterator[dict[str, Any]]:
    print("\nevery cell, forward and backward, one core: seconds, and how many times the default's")
    for row in results("cells.cells", 1, shapes=SHAPES if full else SHAPES[:1]):
        shape = ", ".join(map(str, row["shape"]))
        print(f"{row['cell']:17}{shape:20}{row['method']:9}{_seconds(row)}", flush=True)
        yield row


def _memory_of_cells() -> Iterator[dict[str, Any]]:
    print("\ntemporary memory of the gradient of every cell's last carry, long sequences, MB")
    for row in results("cells.memory", 1, shape=LONG):
        sizes = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in row["temporaries"].items())
        print(f"{row['cell']:17}{sizes}", flush=True)
        yield row


def _lyapunov() -> Iterator[dict[str, Any]]:
    print("\nLyapunov exponents of a tanh map, float64, one core: (N, K, T), seconds")
    cases = [[64, 64, 1000], [128, 128, 1000], [256, 256, 300], [1024, 10, 300]]
    for row in results("lyapunov.lyapunov_spectra", 1, cases=cases):
        print(
            f"{row['size']:5}, {row['exponents']:3}, {row['steps']:5}: {_seconds(row)}, "
            f"largest difference {row['difference']:.0e}",
            flush=True,
        )
        yield row


def _large(cores: int) -> Iterator[dict[str, Any]]:
    print("\nlarge systems and long runs, float32: (N, K, T), seconds and growth of the process")
    for case in ([4096, 32, 2000], [64, 4, 1_000_000]):
        (row,) = results("lyapunov.large", cores, cases=[case])
        print(
            f"{row['size']:5}, {row['exponents']:3}, {row['steps']:8}: {row['seconds']:.1f} s, "
            f"{row['grown'] / 1e6:.0f} MB, largest exponent {row['largest']:.4f} ± {row['stderr']:.4f}"
            f" (mean field {row['mean_field']:.4f})",
            flush=True,
        )
        yield row


def _ensembles(cores: int) -> Iterator[dict[str, Any]]:
    print(
        "\n32 seeds of a small LSTM at once against one after another, compilation counted, seconds"
    )
    for row in results("ensembles.ensembles", cores, steps=500):
        print(
            f"{row['networks']} together {row['together']:.1f}, one {row['alone'][1]:.1f}: "
            f"{_ratio(row['ratio'])}",
            flush=True,
        )
        yield row


def _pages() -> Iterator[dict[str, Any]]:
    print("\nin pages of 4 kB and of 2 MB, one core, forward and backward, seconds")
    for cell, shape in itertools.product(CELLS, LARGEST):
        for size, environment in (("small", {}), ("large", LARGE_PAGES)):
            case = {"cell": cell, "shape": shape, "size": size}
            for row in results("measure.pages", 1, environment=environment, **case):
                print(f"{cell:11}{shape}, {size}: {_seconds(row)}", flush=True)
                yield row


def _jacobians(environment: dict[str, str] | None = None) -> Iterator[dict[str, Any]]:
    print("\nstep Jacobians, one core, seconds")
    for row in results("jacobians.jacobians", 1, environment=environment):
        case = f"{row['cell']:11}S = {row['state']:4}, {row['steps']} steps, {row['dtype']}"
        print(f"{case}: {_seconds(row)}", flush=True)
        yield row


def _fixed_points(cores: int) -> Iterator[dict[str, Any]]:
    print("\nfixed points of an LSTM of 64 units from 1024 candidates, seconds")
    for row in results("fixed_points.fixed_point_search", cores):
        times = ", ".join(f"{name} {value:.1f}" for name, value in row["seconds"].items())
        print(f"{row['converged']} converged to {row['distinct']} points: {times}", flush=True)
        yield row


def _seconds(row: dict[str, Any]) -> str:
    ratios = {name: f" ({_ratio(middle)})" for name, (_, middle, _) in row["ratios"].items()}
    times = row["seconds"].items()
    return ", ".join(f"{name} {middle:.4f}{ratios.get(name, '')}" for name, (_, middle, _) in times)


def _ratio(value: float) -> str:
    return f"{value:.2f}×"


def _memory() -> Iterator[dict[str, Any]]:
    print("temporary memory of the gradient of the last carry, and growth of the process")
    for steps in (1000, 10_000, 100_000):
        for method in ("nnx.RNN", "Scan", "Blocked", "Remat"):
            for row in results(
                "measure.memory", 1, cell="lstm", shape=[steps, 4, 64, 64], method=method
            ):
                print(
                    f"T = {steps:7} {method:9} {row['temporaries'] / 1e6:9.1f} MB asked for, "
                    f"{row['grown'] / 1e6:9.1f} MB grown, {row['seconds']:7.3f} s",
                    flush=True,
                )
                yield row


def _methods(cores: int) -> Iterator[dict[str, Any]]:
    print("\nmethods against T, milliseconds forward and backward")
    for row in results("measure.methods", cores, lengths=[100, 1000, 10_000]):
        times = ", ".join(f"{k} {1e3 * v[1]:.2f}" for k, v in row["seconds"].items())
        print(
            f"{row['step']:7} T = {row['length']:6}: {times}; converged: {row['converged']}",
            flush=True,
        )
        yield row


if __name__ == "__main__":
    main()
