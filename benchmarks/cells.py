"""How long each cell of the table takes, forward and backward, beside the reference scan and ``nnx.RNN``.

The default method of each cell, `Scan`, the same cell inside ``nnx.RNN`` and, where the step is linear,
`Associative` take turns on the same weights and inputs. Above 1, the default is the faster.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import jaxrnn
from benchmarks.timing import processor, quartiles, take_turns, turn
from jaxrnn.cells import CELLS
from jaxrnn.unroll import Associative, Scan

SHAPE = (200, 16, 64, 128)
"""T, B, F, H; the mLSTM, whose state has H² numbers, with a quarter of the units."""


def cells(cores: int, shape: tuple[int, int, int, int] = SHAPE) -> Iterator[dict[str, Any]]:
    """Time the gradient of every cell's outputs: seconds by method, and ratios to the default."""
    steps, batch, features, units = shape
    xs = jax.random.normal(jax.random.key(0), (steps, batch, features))
    for name, entry in CELLS.items():
        size = units // 4 if name == "mlstm" else units
        cell = jaxrnn.make_cell(name, features, size, rngs=nnx.Rngs(0))
        ways = {"default": None, "Scan": Scan()} | (
            {"Associative": Associative()} if entry.parallel else {}
        )
        runs = {label: _unrolled(cell, xs, way) for label, way in ways.items()}
        runs["nnx.RNN"] = _in_nnx(cell, xs)
        times = take_turns(runs, seconds=1.0, turns=(5, 20))
        ours = times["default"]
        yield {
            "cell": name,
            "shape": [steps, batch, features, size],
            "method": type(jaxrnn.unroll(cell, xs[:2]).method).__name__,
            "cores": cores,
            "processor": processor(),
            "turns": len(ours),
            "seconds": {label: quartiles(values) for label, values in times.items()},
            "ratios": {n: quartiles(v / ours) for n, v in times.items() if n != "default"},
        }


def _unrolled(cell: Any, xs: Any, way: Any) -> Any:
    return _gradient(lambda cell, xs: jaxrnn.unroll(cell, xs, method=way).outputs, cell, xs)


def _in_nnx(cell: Any, xs: Any) -> Any:
    graph, weights, streams = nnx.split(nnx.RNN(cell, time_major=True), nnx.Param, ...)
    return _gradient(lambda weights, xs: nnx.merge(graph, weights, streams)(xs), weights, xs)


def _gradient(outputs: Any, weights: Any, xs: Any) -> Any:
    """Return a call that takes a turn of the gradient of the mean square of the outputs."""

    @jax.jit
    def gradient(weights, xs):
        return jax.grad(lambda *at: jnp.mean(outputs(*at) ** 2), (0, 1))(weights, xs)

    return functools.partial(turn, lambda: jax.block_until_ready(gradient(weights, xs)))
