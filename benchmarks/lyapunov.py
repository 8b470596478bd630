"""Lyapunov spectra of a random tanh map against lyapax, the library that people use with JAX.

*Products alone* are XLA's products of every step, state and directions with the weights: what a method that
carries the directions step by step cannot do without. *At full rate* they would run as one product of 1024³
does, in the same precision.
"""

from __future__ import annotations

import functools
import importlib.util
import resource
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxrnn
from benchmarks.timing import quartiles, take_turns, turn
from jaxrnn.analysis import lyapunov, mean_field

_GAIN = 2.0
_SETTLE = 100
_FULL = 1024
"""Rows and columns of a product that runs at the machine's full rate."""


def lyapunov_spectra(cores: int, cases: list[list[int]]) -> Iterator[dict[str, Any]]:
    """Time `lyapunov` and lyapax, in float64, on cases (N, K, T); both settle for 100 steps before."""
    with jax.enable_x64(True):
        for size, count, steps in cases:
            yield {"cores": cores, **_row(size, count, steps)}


def large(cores: int, cases: list[list[int]]) -> Iterator[dict[str, Any]]:
    """Take leading exponents of large maps, or over many steps, and see how far the process grows.

    The first half of the steps settles. No rival takes part: none was found that holds so large a system.
    """
    for size, count, steps in cases:
        step = _tanh_map(size, jnp.float32)
        start = jnp.asarray(np.random.default_rng(1).normal(size=size), jnp.float32)
        before, began = _resident(), time.perf_counter()
        xs = jnp.zeros((steps, 1))
        found = lyapunov(step, xs, carry=start, k=count, warmup=steps // 2)
        yield {
            "cores": cores,
            "size": size,
            "exponents": count,
            "steps": steps,
            "seconds": time.perf_counter() - began,
            "grown": _resident() - before,
            "largest": float(found.exponents[0]),
            "stderr": float(found.stderr[0]),
            "mean_field": float(mean_field(jnp.tanh, _GAIN).lyapunov),
        }


def _resident() -> int:
    """Return the largest size that this process has had, in bytes (Linux counts in KiB)."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _row(size: int, count: int, steps: int) -> dict[str, Any]:
    step, start = _tanh_map(size), jnp.asarray(np.random.default_rng(1).normal(size=size))
    runs = {"lyapunov": functools.partial(_ours, step, start, count, steps)}
    if importlib.util.find_spec("lyapax"):
        runs["lyapax"] = functools.partial(_lyapax(step, count, steps), start)
    found = {name: np.asarray(run()) for name, run in runs.items()}  # compiles
    runs["products alone"] = _products(step, count + 1, steps)
    runs["at full rate"] = _full_product()
    turns = {name: functools.partial(turn, run) for name, run in runs.items()}
    times = take_turns(turns, seconds=10)
    times["at full rate"] *= size**2 * (count + 1) * (steps + _SETTLE) / _FULL**3
    ours = times["lyapunov"]
    return {
        "size": size,
        "exponents": count,
        "steps": steps,
        "turns": len(ours),
        "seconds": {name: quartiles(values) for name, values in times.items()},
        "ratios": {n: quartiles(v / ours) for n, v in times.items() if n != "lyapunov"},
        "largest": {name: float(values[0]) for name, values in found.items()},
        "difference": max(float(np.abs(v - found["lyapunov"]).max()) for v in found.values()),
    }


def _tanh_map(size: int, dtype: Any = jnp.float64) -> Any:
    """Return h ← tanh(J h), J ~ N(0, g²/N): an Elman cell whose input is zero."""
    coupling = _GAIN / np.sqrt(size) * np.random.default_rng(0).normal(size=(size, size))
    cell = jaxrnn.ElmanCell(1, size, param_dtype=dtype, rngs=nnx.Rngs(0))
    cell.recurrent_kernel[...] = jnp.asarray(coupling, dtype)
    return cell


def _ours(step: Any, start: Any, count: int, steps: int) -> Any:
    xs = jnp.zeros((steps + _SETTLE, 1))
    return lyapunov(step, xs, carry=start, warmup=_SETTLE, k=count).exponents


def _products(step: Any, rows: int, steps: int) -> Any:
    # The weights are of radius 1 here, so that nothing leaves the range of floats.
    weights = step.recurrent_kernel[...] / _GAIN
    start = jnp.ones((rows, len(weights)), weights.dtype)

    @jax.jit
    def carried(start: Any) -> Any:
        return jax.lax.fori_loop(0, steps + _SETTLE, lambda _, moved: moved @ weights, start)

    return lambda: jax.block_until_ready(carried(start))


def _full_product() -> Any:
    product = jax.jit(lambda a: a @ a)
    factor = jnp.ones((_FULL, _FULL))
    return lambda: jax.block_until_ready(product(factor))


def _lyapax(step: Any, count: int, steps: int) -> Any:
    import lyapax  # pyright: ignore[reportMissingImports]

    def spectrum(start: Any) -> Any:
        advance = lambda s: step(s, jnp.zeros(1))[0]  # noqa: E731
        settle = float(_SETTLE)
        found = lyapax.lyapunov_spectrum(advance, start, 1.0, steps, k=count, t_transient=settle)
        return jnp.sort(found.exponents, descending=True)

    compiled = jax.jit(spectrum)
    return lambda start: jax.block_until_ready(compiled(start))
