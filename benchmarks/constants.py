"""How much do the constants of `Blocked` matter, and how flat are their optima?

``python -m benchmarks.constants [NAME …]`` compiles the gradient of cells' outputs by all weights and inputs
with each constant of `jaxrnn/unrolling/blocked.py` at several values, and times the programs in turns, by
processor time on one core. A line gives the time at each value over the time at the present one: below 1, the
other value is faster. Values that give the same program have the same time, and are timed once.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from benchmarks.revisions import gradient, on_one_core, turns

_SHORT, _LONG = ("lstm", (100, 32, 128, 128)), ("gru", (1000, 16, 128, 128))

VALUES = {
    "_WHOLE_BYTES": [2**power for power in (20, 22, 23, 24, 26)],
    "_BLOCK_BYTES": [2**power for power in (18, 20, 21, 22, 24)],
    "_BLOCK_ROWS": [128, 256, 512, 1024, 2048],
    "_LOOP_ROWS": [1, 4, 8, 16, 64],
    "_KEPT_BYTES": [2**power for power in (20, 22, 24, 25, 27)],
    "_KEPT_INTENSITY": [0, 144, 288, 576, 1152],
}
"""The values that are tried, by constant."""

CASES = {
    "_WHOLE_BYTES": [
        _SHORT,
        _LONG,
        ("elman-tanh", (1000, 16, 128, 128)),
        ("lstm", (200, 16, 64, 128)),
    ],
    "_BLOCK_BYTES": [_LONG, ("lstm", (1000, 16, 128, 128)), ("lstm", (400, 64, 256, 256))],
    "_BLOCK_ROWS": [("lstm", (200, 16, 256, 512)), ("gru", (400, 4, 128, 1024))],
    "_LOOP_ROWS": [(name, (300, batch, 128, 128)) for name in ("lstm", "gru") for batch in (4, 16)],
    "_KEPT_BYTES": [_SHORT, _LONG, ("lstm", (200, 16, 64, 128))],
    "_KEPT_INTENSITY": [_LONG, ("lstm", (1000, 16, 128, 128)), ("lstm", (400, 32, 256, 256))],
}
"""Cells and T, B, F, H at which a constant decides something."""


def main() -> None:
    """Measure, and print a line for each constant and case."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.constants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="these constants alone")
    chosen = parser.parse_args()
    on_one_core("benchmarks.constants")
    for name in chosen.names or VALUES:
        for cell, shape in CASES[name]:
            ratios = " ".join(f"{value}: {ratio:.2f}" for value, ratio in _row(name, cell, shape))
            print(f"{name:16} {cell:12} {'x'.join(map(str, shape)):16} {ratios}", flush=True)


def _row(name: str, cell: str, shape: tuple[int, ...]) -> list[tuple[int, float]]:
    """Return the time at each value of a constant over the time at the present one."""
    import jax

    import jaxrnn
    from jaxrnn.unrolling import blocked

    present, programs, runs = getattr(blocked, name), {}, {}
    for value in VALUES[name]:
        setattr(blocked, name, value)
        jax.clear_caches()  # what was traced with another value
        function, arrays = gradient(jaxrnn, cell, shape, None)
        lowered = function.lower(*arrays)
        programs[value] = text = lowered.as_text()
        if text not in runs:
            runs[text] = _run(lowered.compile(), arrays)
    setattr(blocked, name, present)
    times = turns(runs)
    at_present = times[programs[present]]
    return [(value, float(np.median(times[text] / at_present))) for value, text in programs.items()]


def _run(program: Any, arrays: tuple[Any, ...]) -> Any:
    import jax

    return lambda: jax.block_until_ready(program(*arrays))


if __name__ == "__main__":
    main()
