"""Fixed points of an LSTM: many candidates at once, against the same and against the usual one at a time.

- **together**: `fixed_points` on all candidates, Jacobians and eigenvalues of every distinct point included.
- **one by one**: the same function, called with one candidate after another.
- **by hand**: what is usually done, one candidate after another: Adam on q in a Python loop around a compiled
  step until q < 10⁻¹² or 5000 steps are spent, then the Jacobian by reverse mode and NumPy's eigenvalues.

The last two are timed on a sample of the candidates and multiplied up, and the row says on how many. With
weights of the usual size an LSTM has one fixed point or few; a larger `gain` of the recurrent weights makes
many, hard to find.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxrnn
from jaxrnn.analysis import trace
from jaxrnn.analysis._fixed_points import candidates_from, fixed_points
from jaxrnn.steps import carry_of, flat_state

_ADAM_STEPS = 5000


def fixed_point_search(
    cores: int,
    units: int = 64,
    candidates: int = 1024,
    gain: float = 1.5,
    samples: tuple[int, int] = (16, 2),
) -> Iterator[dict[str, Any]]:
    """Time the three ways; `samples` are the candidates timed one by one and by hand."""
    cell, starts = _case(units, candidates, gain)
    x = jnp.zeros(cell.in_features)
    found, together = _timed(lambda: fixed_points(cell, x, starts))
    one_by_one = _each(lambda start: fixed_points(cell, x, start), starts, samples[0])
    by_hand = _each(_by_hand(cell, x, starts), starts, samples[1])
    yield {
        "cell": "lstm",
        "units": units,
        "gain": gain,
        "cores": cores,
        "candidates": candidates,
        "converged": int(found.converged.sum()),
        "distinct": len(found),
        "iterations": [float(q) for q in np.percentile(found.iterations, [50, 100])],
        "seconds": {
            "together": together,
            "one by one, extrapolated": one_by_one * candidates,
            "by hand, extrapolated": by_hand * candidates,
        },
        "samples": {"one by one": samples[0], "by hand": samples[1]},
        "ratios": {
            "one by one": one_by_one * candidates / together,
            "by hand": by_hand * candidates / together,
        },
    }


def _case(units: int, candidates: int, gain: float) -> tuple[jaxrnn.LSTMCell, Any]:
    cell = jaxrnn.LSTMCell(3, units, rngs=nnx.Rngs(0))
    scale = gain / np.sqrt(units)
    drawn = jax.random.normal(jax.random.key(0), cell.recurrent_kernel.shape)
    cell.recurrent_kernel[...] = scale * drawn
    path = trace(cell, jax.random.normal(jax.random.key(1), (100, 32, 3)))
    return cell, candidates_from(path, candidates, key=jax.random.key(2), noise=0.1)


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result and the seconds of the second run: the first compiles."""
    run()
    began = time.perf_counter()
    found = jax.block_until_ready(run())
    return found, time.perf_counter() - began


def _each(run: Callable[[Any], Any], starts: Any, count: int) -> float:
    """Return mean seconds a candidate, over `count` of them after one that compiles."""
    began = 0.0
    for i in range(count + 1):
        if i == 1:
            began = time.perf_counter()
        jax.block_until_ready(run(jax.tree.map(lambda leaf: leaf[i : i + 1], starts)))  # noqa: B023
    return (time.perf_counter() - began) / count


def _by_hand(cell: Any, x: Any, starts: Any) -> Callable[[Any], Any]:
    like = jax.tree.map(lambda leaf: leaf[0], starts)
    adam = optax.adam(optax.cosine_decay_schedule(0.02, _ADAM_STEPS))

    def moved(state):
        return flat_state(cell(carry_of(state, like), x)[0], 0)

    @jax.jit
    def step(state, memory):
        speed, gradient = jax.value_and_grad(lambda s: 0.5 * jnp.sum((moved(s) - s) ** 2))(state)
        move, memory = adam.update(gradient, memory)
        return state + move, memory, speed

    jacobian = jax.jit(jax.jacrev(moved))

    def run(start):
        state = flat_state(start, 1)[0]
        memory = adam.init(state)
        for _ in range(_ADAM_STEPS):
            state, memory, speed = step(state, memory)
            if speed < 1e-12:
                break
        return state, np.linalg.eigvals(np.asarray(jacobian(state)))

    return run
