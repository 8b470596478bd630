"""Two revisions of jaxrnn in one process, taking turns: is `unroll` faster or slower than it was?

``python -m benchmarks.revisions REVISION [--cells …] [--shapes T,B,F,H …] [--out FILE]`` takes the package as
it stood at a git revision, imports it under another name beside the present one, and times the gradient of
each cell's outputs by all weights and inputs. Ratios are the earlier revision's processor time over the
present one's, on one core: above 1, the present one is faster. Processor time and turns in random order keep
the ratio meaningful beside other work on the machine. Compile time and temporary memory are compared too.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import table
from jaxrnn.training import environment

_ROOT = Path(__file__).parents[1]
_EARLIER = "jaxrnn_earlier"
_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

SHAPES = ((200, 16, 64, 128), (100, 64, 256, 256), (1000, 1, 64, 64))
"""T, B, F, H of the every-cell table; the mLSTM, whose state has H² numbers, has a quarter of the units."""

UNSEEN_SHAPES = ((331, 7, 20, 200), (73, 24, 150, 90), (1210, 3, 5, 48))
"""Shapes that no constant was tuned on: drawn once at random, of middling size."""

LONG = (16_384, 16, 64, 128)
"""The sequences whose memory is compared."""

FLAX = ("nnx.SimpleCell", "nnx.GRUCell", "nnx.LSTMCell")

_TURN_SECONDS = 0.05
_TURNS = 7


def main() -> None:
    """Compare, print a line a row, and write the rows if told to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.revisions", description=__doc__)
    parser.add_argument("revision", help="the earlier revision, as git names it")
    parser.add_argument("--cells", nargs="+", help="all cells and Flax's three, if not given")
    parser.add_argument("--shapes", nargs="+", metavar="T,B,F,H", help="these shapes alone")
    parser.add_argument(
        "--memory", action="store_true", help="compare memory of long sequences too"
    )
    parser.add_argument("--out", type=Path, help="a JSON file for the rows")
    chosen = parser.parse_args()
    on_one_core("benchmarks.revisions")
    with tempfile.TemporaryDirectory() as folder:
        earlier = _import_revision(chosen.revision, Path(folder))
        rows = list(_rows(earlier, chosen))
    print(json.dumps(_summary(rows), indent=1))
    if chosen.out:
        about = {"earlier": chosen.revision, "now": _git("rev-parse", "HEAD").decode().strip()}
        about |= {"machine": environment()}
        chosen.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
        chosen.out.with_suffix(".md").write_text(page({**about, "rows": rows}))


def page(results: dict[str, Any]) -> str:
    """Return the rows as a table in Markdown: a cell a line, a shape a column."""
    rows = results["rows"]
    timed = [row for row in rows if "speed" in row]
    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in timed))
    memory = {row["cell"]: row["memory"] for row in rows if "speed" not in row}
    speeds = {(row["cell"], tuple(row["shape"])): row for row in timed}
    lines = [
        {"cell": cell}
        | {
            ", ".join(map(str, shape)): f"{row['speed']:.2f} ({row['scan']:.1f})"
            for shape in shapes
            for row in [speeds[cell, shape]]
        }
        | {"memory": f"{memory[cell]:.2f}" if cell in memory else ""}
        for cell in dict.fromkeys(row["cell"] for row in timed)
    ]
    summary = _summary(rows)
    note = (
        f"{results['note']}\n\n" if "note" in results else ""
    )  # of rows measured at another revision
    return (
        f"# `unroll` at {results['now'][:7]} against {results['earlier'][:7]}\n\n"
        "Forward and backward, one core, processor time, by `python -m benchmarks.revisions`. The earlier "
        "revision's time over the present one's: above 1, the present one is faster. In brackets `Scan`'s "
        "time over the present one's. Columns are T, B, F, H; memory is the temporary memory at "
        f"T = 16,384, present over earlier. Geometric means: speed {summary['speed']:.2f}, compile time "
        f"{summary['compile']:.2f}. {_machine(results['machine'])}\n\n{note}{table(lines)}\n"
    )


def _machine(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in ("jax", "flax"))
    return f"{found['machine']}; {versions}; Python {found['python']}."


def on_one_core(module: str) -> None:
    """Start a module's command anew, with one core and one thread for it."""
    if os.environ.get("XLA_FLAGS", "") != _ONE_THREAD:  # read as JAX starts
        os.environ["XLA_FLAGS"] = _ONE_THREAD
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=_ROOT, check=True, stdout=subprocess.PIPE).stdout


def _import_revision(revision: str, folder: Path) -> Any:
    """Import the package of a revision under the name `jaxrnn_earlier`."""
    with tarfile.open(fileobj=BytesIO(_git("archive", revision, "jaxrnn"))) as archive:
        archive.extractall(folder, filter="data")
    (folder / "jaxrnn").rename(folder / _EARLIER)
    for file in (folder / _EARLIER).rglob("*.py"):
        text = re.sub(
            r"^(\s*)(from|import) jaxrnn\b", rf"\1\2 {_EARLIER}", file.read_text(), flags=re.M
        )
        file.write_text(text)
    sys.path.insert(0, str(folder))
    return importlib.import_module(_EARLIER)


def _rows(earlier: Any, chosen: Any) -> Iterator[dict[str, Any]]:
    import jaxrnn

    names = chosen.cells or [*jaxrnn.cells.CELLS, *FLAX]
    given = chosen.shapes and [tuple(map(int, shape.split(","))) for shape in chosen.shapes]
    for name in names:
        for shape in given or (*SHAPES, *UNSEEN_SHAPES):
            row = _row(earlier, jaxrnn, name, shape)
            ratios = " ".join(f"{key} {row[key]:.2f}" for key in ("speed", "compile", "memory"))
            print(
                f"{name:16} {'x'.join(map(str, shape)):18} {ratios} scan {row['scan']:.2f}",
                flush=True,
            )
            yield row
        if chosen.memory:
            row = _memory_row(earlier, jaxrnn, name)
            print(f"{name:16} long: memory {row['memory']:.2f}", flush=True)
            yield row


def _row(earlier: Any, now: Any, name: str, shape: Any) -> dict[str, Any]:
    """Time one cell at one shape."""
    made = {
        "earlier": _compiled(earlier, name, shape, None),
        "now": _compiled(now, name, shape, None),
        "scan": _compiled(now, name, shape, now.Scan()),
    }
    times = turns({label: run for label, (run, *_) in made.items()})
    seconds = {label: float(np.median(taken)) for label, taken in times.items()}
    return {
        "cell": name,
        "shape": shape,
        "seconds": seconds,
        "speed": float(np.median(times["earlier"] / times["now"])),
        "scan": float(np.median(times["scan"] / times["now"])),
        "earlier_over_scan": float(np.median(times["scan"] / times["earlier"])),
        "compile": made["earlier"][1] / made["now"][1],
        "memory": made["now"][2] / max(made["earlier"][2], 1),
        "bytes": {label: found[2] for label, found in made.items()},
    }


def _memory_row(earlier: Any, now: Any, name: str) -> dict[str, Any]:
    """Compare the temporary memory of the gradient of a long sequence's last carry."""
    found = {
        label: _compiled(package, name, LONG, None, last=True)[2]
        for label, package in (("earlier", earlier), ("now", now))
    }
    return {
        "cell": name,
        "shape": LONG,
        "bytes": found,
        "memory": found["now"] / max(found["earlier"], 1),
    }


def _compiled(
    package: Any, name: str, shape: Any, method: Any, *, last: bool = False
) -> tuple[Callable[[], Any], float, int]:
    """Return the gradient's call, the seconds that it took to compile, and its temporary memory."""
    import jax

    function, arrays = gradient(package, name, shape, method, last=last)
    began = time.process_time()
    program = function.lower(*arrays).compile()
    seconds = time.process_time() - began
    analysed = program.memory_analysis()
    return (
        lambda: jax.block_until_ready(program(*arrays)),
        seconds,
        0 if analysed is None else analysed.temp_size_in_bytes,
    )


def gradient(
    package: Any, name: str, shape: Any, method: Any, *, last: bool = False
) -> tuple[Any, tuple[Any, Any]]:
    """Return the gradient of a cell's mean square by weights and inputs, and its arguments.

    Args:
      package: jaxrnn, or another revision of it.
      name: of a cell, or of one of `FLAX`.
      shape: T, B, F, H.
      method: of unrolling, or None.
      last: of the last carry, not of all outputs.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx

    steps, batch, features, units = shape
    rngs = nnx.Rngs(0)
    if name in FLAX:
        cell = getattr(nnx, name.removeprefix("nnx."))(features, units, rngs=rngs)
        graph, weights, rest = nnx.split(cell, nnx.Param, ...)
        make = lambda weights: nnx.merge(graph, weights, rest)  # noqa: E731
    else:
        units = units // 4 if name == "mlstm" else units
        weights = package.make_cell(name, features, units, rngs=rngs)
        make = lambda weights: weights  # noqa: E731
    xs = jax.random.normal(jax.random.key(0), (steps, batch, features))

    def loss(weights: Any, xs: Any) -> Any:
        done = package.unroll(make(weights), xs, method=method)
        looked_at = jax.tree.leaves(done.carry) if last else [done.outputs]
        return sum(jnp.mean(jnp.square(leaf)) for leaf in looked_at)

    return jax.jit(jax.grad(loss, argnums=(0, 1))), (weights, xs)


def turns(runs: dict[str, Callable[[], Any]]) -> dict[str, np.ndarray]:
    """Return processor seconds a run, one value a turn; the turns of all are taken in random order."""
    counts = {label: _runs_in_a_turn(run) for label, run in runs.items()}
    times: dict[str, list[float]] = {label: [] for label in runs}
    order = np.random.default_rng(0)
    for _ in range(_TURNS):
        for label in order.permutation(list(runs)):
            runs[label]()
            began = time.process_time()
            for _ in range(counts[label]):
                runs[label]()
            times[label].append((time.process_time() - began) / counts[label])
    return {label: np.array(taken) for label, taken in times.items()}


def _runs_in_a_turn(run: Callable[[], Any]) -> int:
    run()
    began = time.process_time()
    run()
    return max(2, int(_TURN_SECONDS / max(time.process_time() - began, 1e-6)))


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return geometric means, the least ratio, and the rows that lost what they had gained over `Scan`."""
    timed = [row for row in rows if "speed" in row]
    lost = [r for r in timed if r["speed"] < 0.9 and r["earlier_over_scan"] > 1.05]
    return {
        "rows": len(timed),
        "speed": float(np.exp(np.mean([np.log(r["speed"]) for r in timed]))) if timed else None,
        "least": min((r["speed"] for r in timed), default=None),
        "compile": float(np.exp(np.mean([np.log(r["compile"]) for r in timed]))) if timed else None,
        "lost": [(r["cell"], r["shape"], round(r["speed"], 3)) for r in lost],
    }


if __name__ == "__main__":
    main()
