"""How long the step Jacobians take: the structured path against ``vmap(jacfwd)`` and the general path.

The rival is what one would write without this package: flatten the carry, differentiate one step forward, map
over steps and sequences. It is a strong one: where the recurrent product is linear in the carry, the basis
vectors are the same at every step, so `jax.vmap` multiplies them by the weights once and for all, and what is
left per step is the arithmetic of the gates on arrays [S, S]. The general path, which takes the steps one
by one, pays for the products. All are compiled beforehand and take turns.

Results beyond 32 MB are fresh pages at each call under glibc, and to have them cleared takes longer than to
compute what goes there. So zeros alone are written too, into a new array of the same size, and all is
measured once more where pages are large (`benchmarks.measure.LARGE_PAGES`).

Where the Jacobians are only multiplied with, they need no entries: their factors are timed too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxrnn
from benchmarks.timing import quartiles, take_turns, turn
from jaxrnn.analysis import Trajectory, trace
from jaxrnn.analysis._jacobians import (
    factors_of,
    general_jacobians,
    structured_jacobians,
)
from jaxrnn.steps import carry_of, flat_state

CASES = (
    ("elman-tanh", 256, (1, 1)),
    ("elman-tanh", 256, (16, 4)),
    ("gru", 256, (1, 1)),
    ("gru", 256, (16, 4)),
    ("lstm", 16, (100, 10)),
    ("lstm", 64, (40, 10)),
    ("lstm", 256, (1, 1)),
    ("lstm", 256, (4, 4)),
    ("lstm", 256, (16, 4)),
)
"""Cells, units H and steps (T, B). An LSTM's state is 2H."""

FEATURES = 32


def jacobians(
    cores: int, cases: Any = CASES, dtypes: tuple[str, ...] = ("float32", "float64")
) -> Iterator[dict[str, Any]]:
    """Time the step Jacobians of T × B steps: seconds of each way, and ratios to the structured one."""
    for dtype in dtypes:
        with jax.enable_x64(dtype == "float64"):
            for name, units, shape in cases:
                yield _row(name, units, shape, dtype, cores)


def _row(name: str, units: int, shape: tuple[int, int], dtype: str, cores: int) -> dict[str, Any]:
    cell = jaxrnn.make_cell(name, FEATURES, units, rngs=nnx.Rngs(0), param_dtype=jnp.dtype(dtype))
    xs = jax.random.normal(jax.random.key(0), (*shape, FEATURES), jnp.dtype(dtype))
    path = trace(cell, xs)
    programs = {
        "structured": structured_jacobians,
        "general": general_jacobians,
        "vmap(jacfwd)": jax.jit(_by_jacfwd),
    }
    results = {label: np.asarray(program(cell, path)) for label, program in programs.items()}
    like = results["structured"]
    zero = jnp.zeros((), like.dtype)
    programs["factors"] = factors_of
    programs["zeros alone"] = lambda *_: _filled(zero, shape=like.shape)
    times = take_turns({label: _taker(program, cell, path) for label, program in programs.items()})
    ours = times["structured"]
    return {
        "cell": name,
        "state": path.states.shape[-1],
        "steps": shape[0] * shape[1],
        "dtype": dtype,
        "cores": cores,
        "turns": len(ours),
        "seconds": {label: quartiles(values) for label, values in times.items()},
        "ratios": {n: quartiles(v / ours) for n, v in times.items() if n != "structured"},
        "difference": float(np.abs(results["structured"] - results["vmap(jacfwd)"]).max()),
    }


def _taker(program: Callable[..., Any], cell: Any, path: Trajectory) -> Callable[[], float]:
    return lambda: turn(lambda: jax.block_until_ready(program(cell, path)))


@functools.partial(jax.jit, static_argnames="shape")
def _filled(value: Any, *, shape: tuple[int, ...]) -> Any:
    return jnp.full(shape, value)


def _by_jacfwd(cell: Any, path: Trajectory) -> Any:
    one = jax.tree.map(lambda leaf: leaf[0, 0], path.before)

    def step(state: Any, x: Any) -> Any:
        return flat_state(cell(carry_of(state, one), x)[0], 0)

    every = jax.vmap(jax.vmap(jax.jacfwd(step)))
    return every(path.states[:-1], path.xs)
