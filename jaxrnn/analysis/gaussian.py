"""Expectations over normal variables, in float64 on the host, accurate to about 1e-12.

Gauss–Lobatto panels are halved until they converge, so kinks and jumps of a function are resolved. The
function may have any shape, but structure finer than a few hundredths of a standard deviation in an otherwise
flat region may be missed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.polynomial import legendre

_REACH = 10.0  # standard deviations, beyond which the mass is 1e-23
_ORDER = 16  # nodes of a panel
_EDGES = np.linspace(-_REACH, _REACH, 21)  # includes 0, where activations have their kinks
_GROWTH = 50  # factor by which panels may multiply before halving stops
_FINE, _COARSE = 1e-14, 1e-12  # relative tolerances of inner and outer integrals


def mean(function: Callable[[Any], Any], tolerance: float = _FINE) -> float:
    """Return E function(z), z ~ N(0, 1)."""
    return float(_means(lambda _, z: function(z), 1, 0.0, tolerance)[0])


@np.errstate(over="ignore", invalid="ignore")
def _means(function: Callable[[Any, Any], Any], count: int, size: float, tolerance: float) -> Any:
    """Return E function(k, z) for k = 0 … count − 1, each on its own panels.

    A panel is done when the sum of its two halves agrees with it to `tolerance` of the whole, or of `size` if
    that is larger. Rounding of the function may prevent this, so the number of panels is limited.
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
        # NaN stands for an infinite mean, which further halving cannot improve.
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
    """Return the Gauss–Lobatto rule, whose nodes at the ends detect a kink close to them."""
    last = legendre.Legendre.basis(_ORDER - 1)
    nodes = np.concatenate([[-1.0], np.sort(last.deriv().roots().real), [1.0]])
    return nodes, 2 / (_ORDER * (_ORDER - 1) * last(nodes) ** 2)


def pair_mean(function: Callable[[Any], Any], deviation: float, c: float) -> float:
    """Return E function(u₁) function(u₂) for normal u of this deviation and correlation c.

    It uses u = z cos θ ± w sin θ with independent z and w, which is well conditioned up to c = ±1.
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
