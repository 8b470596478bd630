"""The matrix products of a layer alone, in XLA: what is left when gates cost nothing.

A recurrent product waits for that of the step before, so it stays in a loop, with as few rows as the batch
has sequences. The kernels' gradients and that of the inputs are taken at once over all steps; the product of
the inputs stands in the loop where a step has rows enough, which spares its result the way to memory. A sum
over the gates, and on the way back their copies, tie each step to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import Case
from benchmarks.compiled import compiled
from benchmarks.timing import take_turns

_LOOP_ROWS = 8


def product_rate() -> float:
    """Measure the rate of one large matrix product, 1024³ in float32, in operations a second."""
    matrix = jnp.ones((1024, 1024))
    run = {"product": compiled(jnp.matmul, matrix, matrix).taking_turns(matrix, matrix)}
    return 2 * 1024**3 / float(np.median(take_turns(run)["product"]))


def products(case: Case) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return a function that takes a layer's products, and its arguments."""
    steps, batch, features, units = case.shape
    signals = case.gates * units
    random = np.random.default_rng(0)

    def drawn(*shape: int) -> Any:
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    def kernels(rows: int) -> Any:
        return drawn(rows, signals) / jnp.sqrt(jnp.float32(case.gates * rows))

    def rows(array: Any) -> Any:
        return array.reshape(steps * batch, array.shape[-1])

    def forward(kernel: Any, recurrent: Any, xs: Any, hs: Any) -> Any:
        in_loop = batch >= _LOOP_ROWS
        drives = xs if in_loop or features == 1 else (rows(xs) @ kernel).reshape(steps, batch, -1)

        def step(h: Any, drive: Any) -> Any:
            mixed = h @ recurrent
            if features > 1:  # one feature needs no product
                mixed = mixed + (drive @ kernel if in_loop else drive)
            return sum(jnp.split(mixed, case.gates, axis=1)), None

        return jax.lax.scan(step, hs[0], drives)[0]

    def both(kernel: Any, recurrent: Any, xs: Any, hs: Any, deltas: Any) -> Any:
        turned = jax.lax.optimization_barrier(recurrent.T)

        def step_back(_: Any, delta: Any) -> Any:
            return jnp.tile(delta, case.gates) @ turned

        back = jax.lax.fori_loop(0, steps, step_back, hs[0])
        deltas = rows(deltas)
        found = forward(kernel, recurrent, xs, hs), back, rows(hs).T @ deltas
        return found if features == 1 else (*found, rows(xs).T @ deltas, deltas @ kernel.T)

    xs, hs = (drawn(steps, batch, width) for width in (features, units))
    arguments = kernels(features), kernels(units), xs, hs
    if case.work == "forward":
        return forward, arguments
    return both, (*arguments, drawn(steps, batch, signals))
