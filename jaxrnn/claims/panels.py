"""Panels that several claims draw."""

from __future__ import annotations

import numpy as np

from jaxrnn.claims.evidence import Line, Panel, Sample


def strip(samples: list[Sample], factor: str, title: str, marks: dict[str, float]) -> Panel:
    """Draw every value of every sample, a column a condition; colours are levels of a factor."""
    names = [sample.name for sample in samples]
    levels: dict[str, tuple[list[float], list[float]]] = {}
    for column, sample in enumerate(samples):
        xs, ys = levels.setdefault(sample.condition[factor], ([], []))
        spread = np.linspace(-0.2, 0.2, len(sample.values)) if len(sample.values) > 1 else [0.0]
        xs.extend(column + np.asarray(spread))
        ys.extend(sample.values)
    lines = [Line(level, xs, ys, style="points") for level, (xs, ys) in levels.items()]
    lines = lines if len(lines) < len(samples) else [Line("", *_joined(levels), style="points")]
    return Panel(title, "", samples[0].quantity, lines, marks=marks, ticks=names)


def _joined(levels: dict[str, tuple[list[float], list[float]]]) -> tuple[list[float], list[float]]:
    return [x for xs, _ in levels.values() for x in xs], [
        y for _, ys in levels.values() for y in ys
    ]
