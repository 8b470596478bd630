"""``make bench``: `unroll` against Flax's own layer, forward and backward, in paired runs.

The cells are ours in both cases, so the ratio is that of the two ways through time and of nothing else. Both
are compiled first, which is timed apart; then they take turns, and the median of the turns' ratios is
printed with its quartiles. A ratio above 1 means that `unroll` is the faster. Pin the process to one core
(``taskset -c 0``) for one-thread figures, and run nothing beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxrnn
from jaxrnn.training import environment

_SHAPES = ((100, 32, 32, 64), (100, 32, 128, 128), (1000, 1, 64, 64))
_CELLS = ("elman-tanh", "lstm", "gru")
_TURNS = 15


def main() -> None:
    """Print the table."""
    about = environment()
    print(f"{about['machine']}, {', '.join(about['devices'])}, {about['versions']}, float32")
    print("forward + backward; speed of unroll (Scan) relative to nnx.RNN, median [quartiles]")
    for name in _CELLS:
        for shape in _SHAPES:
            print(f"{name:12} T, B, F, H = {shape!s:22} {_line(name, *shape)}", flush=True)


def _line(name: str, steps: int, batch: int, features: int, units: int) -> str:
    cell = jaxrnn.make_cell(name, features, units, rngs=nnx.Rngs(0))
    xs = jax.random.normal(jax.random.key(0), (steps, batch, features))

    def ours(cell: Any, xs: Any) -> Any:
        return jnp.sum(jaxrnn.unroll(cell, xs).outputs ** 2)

    def theirs(cell: Any, xs: Any) -> Any:
        outputs: Any = nnx.RNN(cell, time_major=True)(xs)
        return jnp.sum(outputs**2)

    rivals = [_compiled(loss, cell, xs) for loss in (ours, theirs)]
    times = np.array([[_seconds(run) for run, _ in rivals] for _ in range(_TURNS)])
    low, middle, high = np.percentile(times[:, 1] / times[:, 0], [25, 50, 75])
    spent = " and ".join(f"{seconds:.2f}" for _, seconds in rivals)
    milliseconds = 1e3 * np.median(times[:, 0])
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]   {milliseconds:.2f} ms   compiled in {spent} s"


def _compiled(loss: Callable[..., Any], cell: Any, xs: Any) -> tuple[Callable[[], Any], float]:
    """Return a warm run of a loss's gradients, and the seconds of its compilation."""
    began = time.perf_counter()
    program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(cell, xs).compile()
    seconds = time.perf_counter() - began

    def run() -> Any:
        return jax.block_until_ready(program(cell, xs))

    run()
    return run, seconds


def _seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
