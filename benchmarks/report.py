"""Results as people read them: a line while it runs, a table for the README, a figure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.cases import CELLS
from benchmarks.tables import table
from benchmarks.timing import engine
from jaxrnn.plot.style import COLOURS, house_style

RIVALS = ("nnx.RNN", "linen.RNN", "PyTorch", "Keras")
MARKERS = ("<!-- benchmarks -->", "<!-- end of benchmarks -->")


def heading() -> str:
    """The line above `line`'s."""
    columns = "".join(f"{name:>19}" for name in RIVALS)
    return f"{'cell':11}{'T, B, F, H':20}{'work':17}{'cores':>5}{'ms':>9}{columns}{'of peak':>9}"


def line(row: dict[str, Any]) -> str:
    """One result: our time, and how many times as long each rival took, with quartiles."""
    shape = ", ".join(map(str, row["shape"]))
    ratios = "".join(f"{spread(row['ratios'].get(name)):>19}" for name in RIVALS)
    milliseconds = 1e3 * row["seconds"]["unroll"][1]
    return (
        f"{row['cell']:11}{shape:20}{row['work']:17}{row['cores']:5}{milliseconds:9.2f}"
        f"{ratios}{row['fraction_of_product_rate']:9.0%}"
    )


def spread(quartiles: list[float] | None) -> str:
    """Write a median with its quartiles; a dash for nothing."""
    if quartiles is None:
        return "–"
    low, middle, high = quartiles
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def geometric_mean(values: Iterable[float]) -> float:
    """Return exp of the mean logarithm; NaN of nothing."""
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def summary(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: geometric mean over the shapes, and the worst shape, of each rival's ratio."""
    lines = []
    kinds = {(r["cores"], r["work"], r["cell"]) for r in rows}
    for kind in sorted(kinds, key=lambda k: (*k[:2], CELLS.index(k[2]))):
        some = [r for r in rows if (r["cores"], r["work"], r["cell"]) == kind]
        ratios = {name: [r["ratios"][name] for r in some if name in r["ratios"]] for name in RIVALS}
        cores, work, cell = kind
        means = {name: mean_and_worst(each) for name, each in ratios.items()}
        lines.append({"cell": cell, "work": work, "cores": str(cores), **means})
    return table(lines)


def mean_and_worst(quartiles: list[list[float]]) -> str:
    """Write the geometric mean of ratios' medians, and the least of these; a dash for nothing."""
    medians = [middle for _, middle, _ in quartiles]
    return f"{geometric_mean(medians):.2f} ({min(medians):.2f})" if medians else "–"


def machine(about: dict[str, Any]) -> str:
    """Name a processor and its speed: what `measure.about` found."""
    return f"{about['environment']['processor']}, {about['product_rate'] / 1e9:.0f} GFLOP/s a core"


def about_line(about: dict[str, Any]) -> str:
    """Say on what was measured, with what."""
    found = about["environment"]
    rivals = {k: found[k] for k in ("torch", "keras") if found[k]}
    versions = ", ".join(f"{k} {v}" for k, v in sorted({**found["versions"], **rivals}.items()))
    return f"{machine(about)}, {found['machine']}, {versions}."


def into_readme(results: dict[str, Any], readme: Path) -> None:
    """Write the table between the README's markers."""
    rows = results["speed"]
    shapes = len({tuple(r["shape"]) for r in rows})
    text = (
        f"{MARKERS[0]}\n"
        f"How many times as long as `unroll` each rival takes: geometric mean over {shapes} shapes (in "
        "parentheses the worst); above 1, `unroll` is the faster. float32, one machine: "
        f"{about_line(results['machines']['speed'])} Paired runs, medians, compile time apart; written by "
        f"`make bench-full`{_age(results)}. Shape by shape, with every cell and analysis: "
        "[docs/speed.md](docs/speed.md).\n\n"
        f"{summary(rows)}\n\n{_foreign(results)}\n\n{_worst_cases(results)}\n{MARKERS[1]}"
    )
    pattern = re.escape(MARKERS[0]) + ".*" + re.escape(MARKERS[1])
    old = readme.read_text()
    new, count = re.subn(pattern, lambda _: text, old, flags=re.DOTALL)
    if not count:
        raise SystemExit(f"benchmarks: {readme} has no markers {MARKERS[0]} … {MARKERS[1]}")
    readme.write_text(new)


def out_of_date(results: dict[str, Any]) -> list[str]:
    """Return the parts that were measured with other code than that of `unroll` now."""
    measured, now = results.get("engines", {}), engine()
    return [part for part in results["machines"] if measured.get(part) != now]


def _age(results: dict[str, Any]) -> str:
    is_old = not {"speed", "foreign"}.isdisjoint(out_of_date(results))
    return ", **before `unroll` last changed**" if is_old else ""


def _foreign(results: dict[str, Any]) -> str:
    """Say what Flax's own cells gain inside `unroll`."""
    rows = results["foreign"]
    gains = []
    for cell in dict.fromkeys(row["cell"] for row in rows):
        ratios = [row["ratio"] for row in rows if row["cell"] == cell]
        gains.append(f"{mean_and_worst(ratios)} with `nnx.{cell}`")
    shapes = len({tuple(row["shape"]) for row in rows})
    return (
        "**Flax's own cells, unchanged:** inside `nnx.RNN` they take, forward and backward on one core, "
        f"{', '.join(gains)} times as long as inside `unroll` (geometric mean over {shapes} shapes, in "
        f"parentheses the worst; on {machine(results['machines']['foreign'])})."
    )


def _worst_cases(results: dict[str, Any]) -> str:
    """Say where `unroll` is behind, on shapes that were chosen and on shapes that were drawn."""

    def worst(rows: list[dict[str, Any]], cell: str, work: str, cores: int, rival: str) -> str:
        kind = (cell, work, cores)
        rows = [r for r in rows if (r["cell"], r["work"], r["cores"]) == kind]
        return f"{min((r['ratios'][rival][1] for r in rows if rival in r['ratios']), default=math.nan):.2f}"

    speed, unseen = results["speed"], results["unseen"]
    large = [r for r in results.get("pages", []) if r["pages"] == "large"]
    drawn = len({tuple(r["shape"]) for r in unseen})
    counts = list(dict.fromkeys(r["cores"] for r in speed))
    pytorch = [
        f"{worst(speed, 'lstm', 'forward', n, 'PyTorch')} of our time forward and "
        f"{worst(speed, 'lstm', 'forward+backward', n, 'PyTorch')} forward and backward on {n} "
        f"core{'s' * (n > 1)}"
        for n in counts
    ]
    of_drawn = worst(unseen, "lstm", "forward+backward", 1, "PyTorch")
    flax = [worst(unseen, cell, "forward", 1, "nnx.RNN") for cell in CELLS]
    said = (
        "**Where `unroll` is the slower:** PyTorch's LSTM, which calls oneDNN, takes on the shape that suits "
        f"it best {', '.join(pytorch)}; on {drawn} shapes drawn at random {of_drawn}, forward and backward "
        f"on one core. `nnx.RNN`, forward alone, takes on the best of those {', '.join(flax)} of our time "
        f"({', '.join(CELLS)})."
    )
    if not large:
        return said
    flax = [worst(large, cell, "forward+backward", 1, "nnx.RNN") for cell in CELLS]
    return (
        f"{said} With [large pages](docs/speed.md#with-large-pages), where it costs little to keep much, "
        f"forward and backward, `nnx.RNN` takes at best {', '.join(flax)}, and PyTorch's LSTM "
        f"{worst(large, 'lstm', 'forward+backward', 1, 'PyTorch')}."
    )


def figure(results: dict[str, Any], path: Path) -> None:
    """Draw ratios by shape, memory by T and methods by T."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with house_style():
        fig, axes = plt.subplots(1, 3, figsize=(15, 4.6))
        _draw_speed(axes[0], results["speed"])
        _draw_memory(axes[1], results["memory"])
        _draw_methods(axes[2], results["methods"])
        fig.savefig(path)
        plt.close(fig)


def _draw_speed(ax: Any, rows: list[dict[str, Any]]) -> None:
    rows = [r for r in rows if r["cores"] == 1 and r["work"] == "forward+backward"]
    shapes = list(dict.fromkeys(tuple(r["shape"]) for r in rows))
    for colour, (name, shift) in zip(
        COLOURS, {"nnx.RNN": -0.15, "PyTorch": 0.15}.items(), strict=False
    ):
        for cell, marker in zip(CELLS, "osD", strict=True):
            some = [r for r in rows if r["cell"] == cell and name in r["ratios"]]
            places = [shapes.index(tuple(r["shape"])) + shift for r in some]
            ratios = [r["ratios"][name][1] for r in some]
            if some:
                ax.plot(places, ratios, marker, color=colour, ms=5, label=f"{name}, {cell}")
    ax.axhline(1, color="0.35", linewidth=1, linestyle="--")
    ax.set_yscale("log")
    labels = ["×".join(map(str, s)) for s in shapes]
    ax.set_xticks(range(len(shapes)), labels, rotation=30, ha="right", fontsize=8)
    ax.set(xlabel="T × B × F × H", ylabel="time of the rival / time of unroll")
    ax.set_title("forward + backward, one core: above 1 unroll is faster", fontsize=10)
    ax.legend(fontsize=8, ncols=2)


def _draw_memory(ax: Any, rows: list[dict[str, Any]]) -> None:
    styles = dict(
        zip(("nnx.RNN", "Scan", "Blocked", "Remat"), ("o-", "x--", "s-", "D-"), strict=True)
    )
    for method, style in styles.items():
        some = [r for r in rows if r["method"] == method]
        memory = [r["temporaries"] / 1e6 for r in some]
        ax.plot([r["shape"][0] for r in some], memory, style, label=method)
    _, *shape = rows[0]["shape"]
    ax.set(xscale="log", yscale="log", xlabel="steps T", ylabel="temporary memory (MB)")
    title = (
        f"gradient of the last carry, {rows[0]['cell']}, B × F × H = {'×'.join(map(str, shape))}"
    )
    ax.set_title(title, fontsize=10)
    ax.legend(fontsize=8)


def _draw_methods(ax: Any, rows: list[dict[str, Any]]) -> None:
    for step, style in (("gru", "o-"), ("linear", "s--")):
        some = [r for r in rows if r["step"] == step]
        for method in some[0]["seconds"] if some else ():
            times = [1e3 * r["seconds"][method][1] for r in some]
            ax.plot([r["length"] for r in some], times, style, ms=4, label=f"{step}: {method}")
    ax.set(xscale="log", yscale="log", xlabel="steps T", ylabel="time (ms)")
    ax.set_title("forward + backward, B = 1, H = 8", fontsize=10)
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
