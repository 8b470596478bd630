"""Flax's own cells inside `unroll`, as they are, against the same cells inside ``nnx.RNN``.

Forward and backward: from given cotangents of all outputs to the gradients of weights and inputs. Temporary
memory is what the compiled programs ask for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxrnn
from benchmarks.compiled import compiled
from benchmarks.timing import quartiles, take_turns

CELLS = {
    "SimpleCell": nnx.SimpleCell,
    "GRUCell": nnx.GRUCell,
    "LSTMCell": nnx.LSTMCell,
    "OptimizedLSTMCell": nnx.OptimizedLSTMCell,
}


def foreign(cores: int, shapes: list[list[int]]) -> Iterator[dict[str, Any]]:
    """Time every cell of Flax's on shapes (T, B, F, H): seconds, memory, and ratios to `unroll`."""
    for name, make in CELLS.items():
        for shape in shapes:
            yield {"cell": name, "shape": shape, "cores": cores, **_row(make, *shape)}


def _row(make: Any, steps: int, batch: int, features: int, units: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    xs = jnp.asarray(random.normal(size=(steps, batch, features)), jnp.float32)
    cotangent = jnp.asarray(random.normal(size=(steps, batch, units)), jnp.float32)
    graph, weights, rest = nnx.split(make(features, units, rngs=nnx.Rngs(0)), nnx.Param, ...)

    def in_unroll(weights, xs):
        return jaxrnn.unroll(nnx.merge(graph, weights, rest), xs).outputs

    def in_nnx(weights, xs):
        return nnx.RNN(nnx.merge(graph, weights, rest), time_major=True)(xs)

    turns, memory, compiling = {}, {}, {}
    for name, forward in (("unroll", in_unroll), ("nnx.RNN", in_nnx)):

        def both(weights, xs, cotangent, forward=forward):
            outputs, back = jax.vjp(forward, weights, xs)
            return outputs, back(cotangent)

        made = compiled(both, weights, xs, cotangent)
        compiling[name], memory[name] = made.seconds, made.temporaries
        turns[name] = made.taking_turns(weights, xs, cotangent)
    times = take_turns(turns)
    return {
        "turns": len(times["unroll"]),
        "seconds": {label: quartiles(values) for label, values in times.items()},
        "compile_seconds": compiling,
        "temporaries": memory,
        "ratio": quartiles(times["nnx.RNN"] / times["unroll"]),
    }
