"""What is measured: cells, shapes, and which part of the work."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

Work = Literal["forward", "forward+backward"]

CELLS = ("elman-tanh", "gru", "lstm")

GRID = (
    (100, 32, 32, 64),
    (100, 32, 128, 128),
    (100, 64, 256, 256),
    (64, 100, 512, 512),
    (1000, 1, 64, 64),
    (1000, 16, 128, 128),
    (784, 128, 1, 128),
)
"""Shapes (T, B, F, H), from a small classifier to a language model's layer."""

QUICK = ((100, 32, 32, 64), (100, 32, 128, 128), (1000, 1, 64, 64), (1000, 16, 128, 128))

LARGEST = sorted(GRID, key=lambda shape: shape[0] * shape[1] * shape[3])[-3:]
"""Those of the grid with the most states, T·B·H numbers."""

UNSEEN = ((157, 24, 40, 96), (331, 7, 20, 200), (50, 200, 100, 144), (1201, 3, 12, 48))
"""Shapes drawn at random once, to see that nothing was won by fitting the grid."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One cell on one shape.

    Attributes:
      cell: its name in `jaxrnn.cells.CELLS`.
      shape: (T, B, F, H).
      work: what of it is timed.
    """

    cell: str
    shape: tuple[int, int, int, int]
    work: Work

    @property
    def gates(self) -> int:
        """Signals of a unit."""
        return {"elman-tanh": 1, "gru": 3, "lstm": 4}[self.cell]

    @property
    def flops(self) -> float:
        """Arithmetic of the matrix products: forward once, backward twice that."""
        steps, batch, features, units = self.shape
        forward = 2.0 * steps * batch * (features + units) * self.gates * units
        return forward if self.work == "forward" else 3 * forward

    def arrays(self) -> tuple[Any, Any]:
        """Inputs [T, B, F] and the cotangent of the outputs [T, B, H], the same for everyone."""
        steps, batch, features, units = self.shape
        random = np.random.default_rng(0)
        xs = random.normal(size=(steps, batch, features)).astype(np.float32)
        return xs, random.normal(size=(steps, batch, units)).astype(np.float32)
