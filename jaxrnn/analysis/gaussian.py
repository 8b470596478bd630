"""Expectations over normal variables, in float64 on the host, right to about 1e-12.

Gauss–Lobatto panels are halved where they have not converged, so that kinks and steps of a function are
found. It may have any shape, but structure that is finer than a few hundredths of a standard deviation and
flat around may be missed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.polynomial import legendre

_REACH = 10.0  # standard deviations, beyond which lie 1e-23 of the mass
_ORDER = 16
_EDGES = np.linspace(-_REACH, _REACH, 21)  # 0, where activations have their kinks, is one
_GROWTH = 50
_FINE, _COARSE = 1e-14, 1e-12


def mean(function: Callable[[Any], Any], tolerance: float = _FINE) -> float:
    """Return E function(z), z ~ N(0, 1)."""
    return float(_means(lambda _, z: function(z), 1, 0.0, tolerance)[0])


@np.errstate(over="ignore", invalid="ignore")
def _means(function: Callable[[Any, Any], Any], count: int, size: float, tolerance: float) -> Any:
    """Return E function(k, z) for k = 0 … count − 1, each on panels of its own.

    A panel is done when its two halves together agree with it to `tolerance` of the whole, or of `size` where
    that is more. The rounding of a function may never let them; then there is an end to the panels.
    """
    nodes, weights = _lobatto()

    def panels(k: Any, left: Any, right: Any) -> Any:
        half = 0.5 * (right - left)
        z = (0.5 * (right + left))[:, None] + half[:, None] * nodes
        density = np.exp(-0.5 * z**2) * (half[:, None] * weights / math.sqrt(2 * math.pi))
        found = function(np.repeat(k, z.shape[1]), z.reshape(-1))
        return (density * found.reshape(z.shape)).sum(axis=1)

    k = np.repeat(np.arange(count), len(_EDGES) - 1)
    left, right = np.tile(_EDGES[:-1], count), np.tile(_EDGES[1:], count)
    coarse = panels(k, left, right)
    allowed = tolerance * np.maximum(np.bincount(k, np.abs(coarse), count), size)
    total = np.zeros(count)
    limit = _GROWTH * len(k)
    while len(k):
        middle = 0.5 * (left + right)
        first, second = panels(k, left, middle), panels(k, middle, right)
        # NaN for a mean that is infinite, and will not get better.
        off = np.abs(first + second - coarse)
        done = ~(off > allowed[k]) | (middle - left < 1e-14) | (len(k) > limit)
        total += np.bincount(k[done], (first + second)[done], count)
        rest = ~done
        k = np.tile(k[rest], 2)
        left = np.concatenate([left[rest], middle[rest]])
        right = np.concatenate([middle[rest], right[rest]])
        coarse = np.concatenate([first[rest], second[rest]])
    return total


@functools.cache
def _lobatto() -> tuple[Any, Any]:
    """Return the Gauss–Lobatto rule, whose nodes at the ends show a kink that stands close to them."""
    last = legendre.Legendre.basis(_ORDER - 1)
    nodes = np.concatenate([[-1.0], np.sort(last.deriv().roots().real), [1.0]])
    return nodes, 2 / (_ORDER * (_ORDER - 1) * last(nodes) ** 2)


def pair_mean(function: Callable[[Any], Any], deviation: float, c: float) -> float:
    """Return E function(u₁) function(u₂) for normal u of this deviation and correlation c.

    u = z cos θ ± w sin θ with independent z and w, which is well behaved up to c = ±1.
    """
    if c == 0:
        return mean(lambda z: function(deviation * z)) ** 2
    along, across = deviation * math.sqrt((1 + c) / 2), deviation * math.sqrt((1 - c) / 2)
    largest = mean(lambda z: function(deviation * z) ** 2)  # by Cauchy and Schwarz

    def inner(w: Any) -> Any:
        def product(k: Any, z: Any) -> Any:
            one = function(along * z + across * w[k])
            return one * function(along * z - across * w[k])

        return _means(product, len(w), largest, _FINE)

    return mean(inner, _COARSE)
