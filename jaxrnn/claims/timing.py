"""Seconds and bytes of compiled programs, as the claims about cost measure them.

Times are of programs that were compiled and have run once, with the result waited for. Programs that are
compared take turns within each round, in random order, and a replicate is a round, so that whatever else the
machine does falls on all of them. Bytes are XLA's own account of a compiled program.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.claims.claim import Lab

# Seconds of a turn: long beside the clock and the call, short beside the machine's moods.
_TURN = 0.03

Run = Callable[[], Any]


def seconds_by_round(lab: Lab, runs: dict[str, Run]) -> dict[str, np.ndarray]:
    """Return the seconds of each program, one number a round, the programs taking turns in random order."""
    counts = {}
    for name, run in runs.items():
        jax.block_until_ready(run())  # it is compiled
        began = time.perf_counter()
        jax.block_until_ready(run())
        counts[name] = max(1, int(_TURN / max(time.perf_counter() - began, 1e-6)))
    taken: dict[str, list[float]] = {name: [] for name in runs}
    order = np.random.default_rng(0)
    for _ in lab.seeds:
        for name in order.permutation(list(runs)):
            began = time.perf_counter()
            jax.block_until_ready([runs[name]() for _ in range(counts[name])])
            taken[name].append((time.perf_counter() - began) / counts[name])
    return {name: np.array(values) for name, values in taken.items()}


def training_step(model: Any, xs: Any) -> Any:
    """Return the compiled gradient of a mean square by all weights, a program of (model, xs)."""

    def loss(model: Any, xs: Any) -> Any:
        return jnp.mean(jnp.square(model(xs)))

    return jax.jit(jax.grad(loss)).lower(model, xs).compile()


def forward_pass(model: Any, xs: Any) -> Any:
    """Return the compiled model, a program of (model, xs)."""
    return jax.jit(lambda model, xs: model(xs)).lower(model, xs).compile()


def call(program: Any, model: Any, xs: Any) -> Run:
    """Return a call of a compiled program."""
    return lambda: program(model, xs)


def memory(program: Any) -> int:
    """Return the bytes that a compiled program takes: arguments, results and what lies between."""
    use = program.memory_analysis()
    return use.argument_size_in_bytes + use.output_size_in_bytes + use.temp_size_in_bytes


def operations(program: Any) -> float:
    """Return the floating-point operations of a compiled program without loops, as XLA counts them."""
    return float(program.cost_analysis()["flops"])


def parameters(model: Any) -> int:
    """Return the number of parameters of a model."""
    return sum(leaf.size for leaf in jax.tree.leaves(model))
