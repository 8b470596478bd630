"""Every result of ``make bench-full`` as a page, with what limits the engine and what was tried."""

from __future__ import annotations

from typing import Any

from benchmarks.cases import CELLS
from benchmarks.report import (
    RIVALS,
    about_line,
    geometric_mean,
    mean_and_worst,
    out_of_date,
    spread,
)
from benchmarks.tables import table

_BOTH = "forward+backward"

_HEAD = """# How fast, and what limits it

Written by `make bench-full` from its results. {about} Where rivals take turns, a ratio is the median over the
turns, with quartiles, of the rival's time over ours: **above 1, jaxrnn is the faster**. Programs are compiled
and warm where nothing else is said, and numbers float32."""

_SHAPES = """## Layers, shape by shape

Forward and backward, from given cotangents of all outputs to the gradients of weights and inputs. *Of peak*:
the rate of the layer's products over that of one product of 1024³ on as many cores."""

_FOREIGN = """## Flax's cells, as they are

`unroll` takes any step apart by its traced program, so a cell that knows nothing of this package gains too:
the time of `nnx.RNN` over that of `unroll`, both with the same cell of Flax's, and what either program asks
for beside its arguments and results. Forward and backward, one core."""

_DRAWN = """## Shapes that were drawn at random

Nothing was fitted to them."""

_LIMIT = """## What limits a layer

*Products alone* are the matrix products of a layer, compiled by XLA too, in the loops that they must stand in
(`benchmarks/products.py`): no gates, and no memory for what lies between. Their share of our time bounds what
is left to win with such products, and the time of `nnx.RNN` over theirs what anyone could win over it. One
core, forward and backward: geometric means over the shapes, and ranges.

{table}

What paid, by profiles of single operations: products over time and batch at once for all that waits for no
carry; the recurrent matrix turned once before the backward loop, since XLA's CPU backend multiplies by a
transposed one more slowly; kept arrays indexed in place rather than cut into blocks; one feature as no
product at all; input products inside the loop where a step has rows enough; signals kept only where they are
few or dear, since fresh pages cost time too; of drive and recurrent product one array, their sum, column by
column where gates see no more, and none of what is the same at all steps, such as peepholes of the new state;
the drive of the next step fetched ahead as one copy, without which no gate is vectorised, and in the backward
sweep the signal too, where a step reads eight slices or more, as an sLSTM's does; for an LSTM the copy costs
more than it brings.

What did not: zeros beside drive and product, so that all signals of a GRU are one sum; neighbouring sums as
one array; an LSTM's sum as four; gates packed into one tanh; a derivative of the gates written by hand;
vectors of 512 bits; one product for input and recurrent weights' gradients together; carries read a step back
from where they are kept; signals written over the drives. Cotangents written over the signals they belong to
save 2 %, as long as XLA sees that nothing else reads these: for an orthogonal cell or an IndRNN it does not,
and copies the whole array at every step."""


_PAGES = """## With large pages

Under glibc an array of 32 MB or more is new memory each time, and a system whose pages have 4 kB clears it at
the first touch of each: a price for whatever is kept for the way back. In pages of 2 MB it is low. A system
whose `/sys/kernel/mm/transparent_hugepage/enabled` reads `[always]` gives them to everybody; one that reads
`[madvise]`, as this one does, to those who ask, from glibc 2.35 on:

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python train.py

The same layers in small and in large pages, one core, forward and backward: ratios to `unroll` in the same
pages, and the time of `unroll` itself, which other processes measured, minutes apart. *Signals kept* is
`Blocked(keep_signals=True)`, which does not compute them again from the carries: below 1 it is the faster; a
dash where that is the default. Where nothing else is said on this page, pages are small."""


_CELLS = """## Every cell

The figures of the engine, cell by cell: the gradient of all outputs by the cell's default method on one core,
as ratios to the plain scan and to the same cell inside `nnx.RNN`, geometric means over the shapes below, in
parentheses the worst. *At most*: what `nnx.RNN` takes over the time that the cell's matrix products alone
would take at the rate of one product of 1024³, which is all that anyone could gain on it without fewer
operations. *Of peak*: our share of that rate at the largest H. *Compile time* and *memory* are ours over
those of `nnx.RNN`: what the programs ask for beside arguments and results, for the gradient of the last carry
over {long}."""

_CELLS_BY_SHAPE = """By shape, with `Associative` where the step is linear in its carry."""


def page(results: dict[str, Any]) -> str:
    """Write the results of ``make bench-full`` as Markdown."""
    parts = [
        _HEAD.format(about=about_line(results["machines"]["speed"])),
        *_out_of_date(results),
        *_machines(results["machines"]),
        *results.get("remarks", []),
        _SHAPES,
        table([_speed(row) for row in results["speed"] if row["work"] == _BOTH]),
        _limit([r for r in results["speed"] if r["work"] == _BOTH and r["cores"] == 1]),
        _FOREIGN,
        table([_foreign(row) for row in results["foreign"]]),
        _DRAWN,
        table([_speed(row) for row in results["unseen"] if row["work"] == _BOTH]),
        *_in_large_pages(results),
        "## Compile time\n\nSeconds to compile, forward and backward, and ours over that of `nnx.RNN`.",
        table(
            [_compile_time(r) for r in results["speed"] if r["work"] == _BOTH and r["cores"] == 1]
        ),
        "## Memory\n\nOf the gradient of the last carry: what the compiled program asks for, and what the "
        "process grew by.",
        table([_memory(row) for row in results["memory"]]),
        "## Methods against length\n\nForward and backward, batch 1, 8 units, milliseconds.",
        *[
            table([_times(row) for row in results["methods"] if row["step"] == step])
            for step in dict.fromkeys(row["step"] for row in results["methods"])
        ],
        *_every_cell(results),
        "## Lyapunov exponents\n\nOf the map h ← tanh(J h), float64, one core, against lyapax, against XLA's "
        "products of state and directions with the weights alone, and these at the rate of one of 1024³.",
        table([_lyapunov(row) for row in results["lyapunov"]]),
        "Large systems and long runs, float32, all cores, each in a process of its own: seconds with "
        "compilation, and by how much the process grew.",
        table([_large(row) for row in results["large"]]),
        "## Step Jacobians\n\nOne core: the structured path against what one would write without the "
        "package, `vmap(jacfwd)`, against our path for cells of no known structure, against zeros alone, "
        "written into a new array of the same size, and against the factors, which products of Jacobians and "
        "vectors need instead of entries (`factored_jacobians`).",
        table([_jacobian(row) for row in results["jacobians"]]),
        *_jacobians_in_large_pages(results),
        "## Fixed points\n\nOf an LSTM of 64 units, all cores, with the Jacobians and their eigenvalues: all "
        "candidates together, against one after another by the same function, and by hand as is usually "
        "done, Adam around a compiled gradient. These two are timed on a few candidates and multiplied up.",
        table([_fixed_points(row) for row in results["fixed_points"]]),
        "## Ensembles\n\nSeeds of a small LSTM trained at once, against so many times the time of one alone; "
        "compilation counted.",
        table([_ensemble(row) for row in results["ensembles"]]),
    ]
    return "\n\n".join(parts) + "\n"


def _speed(row: dict[str, Any]) -> dict[str, str]:
    return {
        "cell": row["cell"],
        "T, B, F, H": ", ".join(map(str, row["shape"])),
        "cores": str(row["cores"]),
        "ms": f"{1e3 * row['seconds']['unroll'][1]:.2f}",
        "of peak": f"{row['fraction_of_product_rate']:.0%}",
        **{name: spread(row["ratios"].get(name)) for name in RIVALS},
    }


def _foreign(row: dict[str, Any]) -> dict[str, str]:
    return {
        "cell": f"nnx.{row['cell']}",
        "T, B, F, H": ", ".join(map(str, row["shape"])),
        "ms": f"{1e3 * row['seconds']['unroll'][1]:.2f}",
        "nnx.RNN": spread(row["ratio"]),
        "compile time, ours / nnx.RNN": f"{_compile_ratio(row['compile_seconds']):.2f}",
        **{f"MB, {name}": f"{size / 1e6:.1f}" for name, size in row["temporaries"].items()},
    }


_PARTS = {
    "speed": "layers",
    "foreign": "Flax's cells",
    "unseen": "shapes drawn at random",
    "pages": "large pages",
    "memory": "memory",
    "methods": "methods against length",
    "cells": "every cell",
    "memory_of_cells": "the memory of every cell",
    "lyapunov": "Lyapunov exponents",
    "large": "large systems",
    "jacobians": "step Jacobians",
    "jacobians_large_pages": "Jacobians in large pages",
    "fixed_points": "fixed points",
    "ensembles": "ensembles",
}


def _out_of_date(results: dict[str, Any]) -> list[str]:
    """Say which parts were measured with other code than that of `unroll` now."""
    old = [_PARTS[part] for part in out_of_date(results)]
    if not old:
        return []
    return [
        f"**Older than the code**: `unroll` has changed since these were measured: {', '.join(old)}."
    ]


def _machines(machines: dict[str, Any]) -> list[str]:
    """Say what was measured on another machine than the layers, or with other versions."""
    others: dict[str, list[str]] = {}
    for part, about in machines.items():
        if about_line(about) != about_line(machines["speed"]):
            others.setdefault(about_line(about), []).append(_PARTS[part])
    return [
        f"**On another machine**, {line.removesuffix('.')}: {', '.join(parts)}. Ratios of one machine say "
        "little of another."
        for line, parts in others.items()
    ]


def _in_large_pages(results: dict[str, Any]) -> list[str]:
    """Return the section on pages, if this system was one to measure it on."""
    if "pages" not in results:
        return []
    small, large = (
        [row for row in results["pages"] if row["pages"] == size] for size in ("small", "large")
    )
    return [_PAGES, table([_pages(*pair) for pair in zip(small, large, strict=True)])]


def _jacobians_in_large_pages(results: dict[str, Any]) -> list[str]:
    if "jacobians_large_pages" not in results:
        return []
    rows = [_jacobian(row) for row in results["jacobians_large_pages"]]
    head = "The same [with large pages](#with-large-pages), where results of 32 MB and more are cheaper:"
    return [head, table(rows)]


def _pages(small: dict[str, Any], large: dict[str, Any]) -> dict[str, str]:
    """Return how long a layer takes in both sizes of page, and the ratios of the others to it."""
    sizes = {"small": small, "large": large}
    milliseconds = {f"ms, {s}": f"{1e3 * r['seconds']['unroll'][1]:.0f}" for s, r in sizes.items()}
    ratios = {
        f"{name}, {size}": spread(row["ratios"].get(name))
        for name in ("nnx.RNN", "PyTorch", "signals kept")
        for size, row in sizes.items()
    }
    shape = ", ".join(map(str, small["shape"]))
    if small["keeps_signals"]:
        ratios |= dict.fromkeys((name for name in ratios if name.startswith("signals")), "–")
    return {"cell": small["cell"], "T, B, F, H": shape, **milliseconds, **ratios}


def _limit(rows: list[dict[str, Any]]) -> str:
    def entry(cell: str) -> dict[str, str]:
        some = [r for r in rows if r["cell"] == cell]
        ours = [r["ratios"]["products alone"][1] for r in some]
        nnx = [r["ratios"]["nnx.RNN"][1] for r in some]
        bounds = [a / b for a, b in zip(nnx, ours, strict=True)]
        return {
            "cell": cell,
            "products alone / ours": _mean_and_range(ours),
            "nnx.RNN / ours": _mean_and_range(nnx),
            "nnx.RNN / products alone": _mean_and_range(bounds),
        }

    return _LIMIT.format(table=table([entry(cell) for cell in CELLS]))


def _compile_ratio(seconds: dict[str, float]) -> float:
    return seconds["unroll"] / seconds["nnx.RNN"]


def _compile_time(row: dict[str, Any]) -> dict[str, str]:
    seconds = row["compile_seconds"]
    return {
        "cell": row["cell"],
        "T, B, F, H": ", ".join(map(str, row["shape"])),
        **{name: f"{seconds[name]:.2f}" for name in ("unroll", "nnx.RNN")},
        "ours / nnx.RNN": f"{_compile_ratio(seconds):.2f}",
    }


def _memory(row: dict[str, Any]) -> dict[str, str]:
    return {
        "cell": row["cell"],
        "T, B, F, H": ", ".join(map(str, row["shape"])),
        "method": row["method"],
        "asked for, MB": f"{row['temporaries'] / 1e6:,.1f}",
        "grown, MB": f"{row['grown'] / 1e6:,.1f}",
        "seconds": f"{row['seconds']:.3f}",
    }


def _times(row: dict[str, Any]) -> dict[str, str]:
    def entry(method: str) -> str:
        found = f"{1e3 * row['seconds'][method][1]:.3g}"
        return f"{found}, by falling back" if row["converged"].get(method) is False else found

    return {
        "step": row["step"],
        "T": f"{row['length']:,}",
        **{method: entry(method) for method in row["seconds"]},
    }


def _every_cell(results: dict[str, Any]) -> list[str]:
    rows = results["cells"]
    memory = {row["cell"]: row["temporaries"] for row in results["memory_of_cells"]}
    steps, batch, features, units = results["memory_of_cells"][0]["shape"]
    named = dict.fromkeys(row["cell"] for row in rows)
    figures = [_figures([r for r in rows if r["cell"] == name], memory[name]) for name in named]
    long = f"{steps:,} steps of {batch} sequences, {features} features and {units} units"
    return [
        _CELLS.format(long=long),
        table(figures),
        _CELLS_BY_SHAPE,
        table(list(map(_cell, rows))),
    ]


def _figures(rows: list[dict[str, Any]], memory: dict[str, int]) -> dict[str, str]:
    """Return the figures of the engine for one cell: what is asked of a layer, over its shapes."""
    most = [row["seconds"]["nnx.RNN"][1] / row["products_at_full_rate"] for row in rows]
    wide = max(rows, key=lambda row: row["shape"][-1])
    compiling = [r["compile_seconds"]["default"] / r["compile_seconds"]["nnx.RNN"] for r in rows]
    flax = memory["nnx.RNN"]
    return {
        "cell": rows[0]["cell"],
        **{n: mean_and_worst([r["ratios"][n] for r in rows]) for n in ("Scan", "nnx.RNN")},
        "at most": f"{geometric_mean(most):.2f}",
        "of peak": f"{_of_peak(wide):.0%}",
        "compile time": f"{geometric_mean(compiling):.2f} ({max(compiling):.2f})",
        "memory": f"{memory['default'] / flax:.2f}",
        "memory, Remat": f"{memory['Remat'] / flax:.3f}",
    }


def _of_peak(row: dict[str, Any]) -> float:
    return row["products_at_full_rate"] / row["seconds"]["default"][1]


def _cell(row: dict[str, Any]) -> dict[str, str]:
    return {
        "cell": row["cell"],
        "T, B, F, H": ", ".join(map(str, row["shape"])),
        "default": row["method"],
        "ms": f"{1e3 * row['seconds']['default'][1]:.2f}",
        "of peak": f"{_of_peak(row):.0%}",
        **{name: spread(row["ratios"].get(name)) for name in ("Scan", "nnx.RNN", "Associative")},
    }


_OTHER_EXPONENTS = ("lyapax", "products alone", "at full rate")


def _lyapunov(row: dict[str, Any]) -> dict[str, str]:
    return {
        "N": f"{row['size']:,}",
        "exponents": str(row["exponents"]),
        "steps": f"{row['steps']:,}",
        "seconds": f"{row['seconds']['lyapunov'][1]:.3f}",
        **{name: spread(row["ratios"].get(name)) for name in _OTHER_EXPONENTS},
        "largest difference": f"{row['difference']:.0e}",
    }


def _large(row: dict[str, Any]) -> dict[str, str]:
    return {
        "N": f"{row['size']:,}",
        "exponents": str(row["exponents"]),
        "steps": f"{row['steps']:,}",
        "seconds": f"{row['seconds']:.1f}",
        "grown, MB": f"{row['grown'] / 1e6:,.0f}",
        "largest exponent": f"{row['largest']:.4f} ± {row['stderr']:.4f}",
        "mean field, N → ∞": f"{row['mean_field']:.4f}",
    }


_OTHER_WAYS = ("vmap(jacfwd)", "general", "zeros alone", "factors")


def _jacobian(row: dict[str, Any]) -> dict[str, str]:
    return {
        "cell": row["cell"],
        "size of the state": str(row["state"]),
        "steps": str(row["steps"]),
        "dtype": row["dtype"],
        "ms": f"{1e3 * row['seconds']['structured'][1]:.2f}",
        **{name: spread(row["ratios"][name]) for name in _OTHER_WAYS},
        "largest difference": f"{row['difference']:.0e}",
    }


def _fixed_points(row: dict[str, Any]) -> dict[str, str]:
    return {
        "candidates": f"{row['candidates']:,}",
        "converged": str(row["converged"]),
        "distinct": str(row["distinct"]),
        "seconds": f"{row['seconds']['together']:.1f}",
        **{
            f"{name}, of {row['samples'][name]} timed": f"{ratio:.1f}"
            for name, ratio in row["ratios"].items()
        },
    }


def _ensemble(row: dict[str, Any]) -> dict[str, str]:
    return {
        "seeds": str(row["networks"]),
        "steps": str(row["steps"]),
        "together, s": f"{row['together']:.1f}",
        "one alone, s": f"{row['alone'][1]:.1f}",
        "one after another / together": f"{row['ratio']:.1f}",
    }


def _mean_and_range(values: list[float]) -> str:
    return f"{geometric_mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"
