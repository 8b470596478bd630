"""What the NumPy cells are made of. All of it works on complex numbers, which choose by their real part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

Weights = Mapping[str, np.ndarray]
State = tuple[np.ndarray, ...]
Step = Callable[[Weights, State, np.ndarray], tuple[State, np.ndarray]]


class Cell(NamedTuple):
    """A cell of the papers.

    Attributes:
      weights: takes our parameters to the weights of the paper, computed ones too.
      step: the paper's step with these weights.
    """

    weights: Callable[[Weights], Weights]
    step: Step


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def relu(a):
    return np.where(a.real > 0, a, 0)


def size(a):
    return np.where(a.real > 0, a, -a)


def larger(a, b):
    return np.where(np.real(a) >= np.real(b), a, b)


def gates(names: str, params: Weights) -> dict[str, np.ndarray]:
    """Cut weights that hold their gates side by side, [F, G·H], into one matrix a gate, [H, F].

    Args:
      names: one letter a gate.
      params: of which ``kernel`` [F, G·H], ``recurrent_kernel`` [H, G·H] and ``bias`` [G·H] are cut, where
        they are there.
    """
    weights = {}
    for letter, part in (("W", "kernel"), ("U", "recurrent_kernel"), ("b", "bias")):
        if part in params:
            blocks = np.split(params[part], len(names), axis=-1)
            weights |= {f"{letter}_{g}": block.T for g, block in zip(names, blocks, strict=True)}
    return weights


def skew(upper: np.ndarray) -> np.ndarray:
    """Return the skew-symmetric matrix whose entries above the diagonal are these, row by row."""
    units = int((1 + np.sqrt(1 + 8 * len(upper))) / 2)
    matrix = np.zeros((units, units), upper.dtype)
    entries = iter(upper)
    for i in range(units):
        for j in range(i + 1, units):
            matrix[i, j] = next(entries)
            matrix[j, i] = -matrix[i, j]
    return matrix


def real_form(re: np.ndarray, im: np.ndarray) -> np.ndarray:
    """Return the real matrix [2H, 2H] that does to (Re h, Im h) what the complex one [H, H] does to h."""
    return np.block([[re, -im], [im, re]])
