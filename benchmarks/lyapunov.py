"""Lyapunov spectra of a random tanh map against lyapax, the library that people use with JAX."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.timing import quartiles, take_turns, turn
from jaxrnn.analysis import lyapunov

_GAIN = 2.0
_SETTLE = 100


def lyapunov_spectra(cores: int, cases: list[list[int]]) -> Iterator[dict[str, Any]]:
    """Time `lyapunov` and lyapax, in float64, on cases (N, K, T); both settle for 100 steps before."""
    with jax.enable_x64(True):
        for size, count, steps in cases:
            yield {"cores": cores, **_row(size, count, steps)}


def _row(size: int, count: int, steps: int) -> dict[str, Any]:
    step, start = TanhMap(size), jnp.asarray(np.random.default_rng(1).normal(size=size))
    runs = {"lyapunov": functools.partial(_ours, step, start, count, steps)}
    if importlib.util.find_spec("lyapax"):
        runs["lyapax"] = functools.partial(_lyapax(step, count, steps), start)
    found = {name: np.asarray(run()) for name, run in runs.items()}  # compiles
    turns = {name: functools.partial(turn, run) for name, run in runs.items()}
    times = take_turns(turns, seconds=10)
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


class TanhMap(nnx.Module):
    """h ← J tanh h, J ~ N(0, g²/N): a module, so that nothing is compiled twice."""

    def __init__(self, size: int):
        coupling = _GAIN / np.sqrt(size) * np.random.default_rng(0).normal(size=(size, size))
        self.coupling = nnx.Param(jnp.asarray(coupling))

    def __call__(self, carry: Any, x: Any) -> tuple[Any, Any]:
        """Take one step."""
        del x
        moved = jnp.tanh(carry) @ self.coupling[...]
        return moved, moved


def _ours(step: Any, start: Any, count: int, steps: int) -> Any:
    return lyapunov(step, carry=start, length=steps + _SETTLE, warmup=_SETTLE, k=count).exponents


def _lyapax(step: Any, count: int, steps: int) -> Any:
    import lyapax  # pyright: ignore[reportMissingImports]

    def spectrum(start: Any) -> Any:
        advance = lambda s: step(s, None)[0]  # noqa: E731
        settle = float(_SETTLE)
        found = lyapax.lyapunov_spectrum(advance, start, 1.0, steps, k=count, t_transient=settle)
        return jnp.sort(found.exponents, descending=True)

    compiled = jax.jit(spectrum)
    return lambda start: jax.block_until_ready(compiled(start))
