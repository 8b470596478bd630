"""Every cell of the table by its default method, beside the reference scan and ``nnx.RNN``.

The default method of each cell, `Scan`, the same cell inside ``nnx.RNN`` and, where the step is linear,
`Associative` take turns on the same weights and inputs. Above 1, the default is the faster. Beside the times
stands what the cell's matrix products alone would take at the rate of one product of 1024³: what is then left
of the time of ``nnx.RNN`` is the most that anyone could gain on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import jaxprs_in_params

import jaxrnn
from benchmarks.compiled import Compiled, compiled
from benchmarks.products import product_rate
from benchmarks.timing import quartiles, take_turns
from jaxrnn.cells import CELLS
from jaxrnn.typing import prepared
from jaxrnn.unrolling import Associative, Remat, Scan

SHAPES = ((200, 16, 64, 128), (100, 64, 256, 256), (1000, 1, 64, 64))
"""T, B, F, H; the mLSTM, whose state has H² numbers, with a quarter of the units."""

LONG = (16_384, 16, 64, 128)
"""The sequences whose memory is asked for."""


def cells(cores: int, shapes: list[list[int]]) -> Iterator[dict[str, Any]]:
    """Time the gradient of every cell's outputs: seconds by method, and ratios to the default."""
    rate = product_rate()
    for name, entry in CELLS.items():
        for shape in shapes:
            cell, xs = _cell_and_inputs(name, shape)
            ways = {"default": None, "Scan": Scan()}
            if entry.parallel:
                ways["Associative"] = Associative()
            built = {label: _in_unroll(cell, way, _outputs, xs) for label, way in ways.items()}
            built["nnx.RNN"] = _in_nnx(cell, _outputs, xs)
            times = take_turns(
                {n: take for n, (_, take) in built.items()}, seconds=1.0, turns=(5, 20)
            )
            ours, seconds = times["default"], {n: quartiles(taken) for n, taken in times.items()}
            at_full_rate = _product_flops(cell, xs) / rate
            yield {
                "cell": name,
                "shape": [*xs.shape, cell.hidden_features],
                "method": type(jax.eval_shape(jaxrnn.unroll, cell, xs).method).__name__,
                "cores": cores,
                "turns": len(ours),
                "seconds": seconds,
                "ratios": {n: quartiles(v / ours) for n, v in times.items() if n != "default"},
                "compile_seconds": {n: built[n][0].seconds for n in ("default", "nnx.RNN")},
                "products_at_full_rate": at_full_rate,
            }


def memory(cores: int, shape: list[int]) -> Iterator[dict[str, Any]]:
    """Temporary memory that the gradient of every cell's last carry asks for, in bytes by method."""
    for name in CELLS:
        cell, xs = _cell_and_inputs(name, shape)
        built = {
            "nnx.RNN": _in_nnx(cell, _last, xs),
            "default": _in_unroll(cell, None, _last, xs),
            "Remat": _in_unroll(cell, Remat(), _last, xs),
        }
        asked_for = {label: made.temporaries for label, (made, _) in built.items()}
        yield {"cell": name, "shape": shape, "cores": cores, "temporaries": asked_for}


def _cell_and_inputs(name: str, shape: list[int]) -> tuple[Any, Any]:
    *_, features, units = shape
    size = units // 4 if name == "mlstm" else units
    cell = jaxrnn.make_cell(name, features, size, rngs=nnx.Rngs(0))
    return cell, jax.random.normal(jax.random.key(0), shape[:3])


Built = tuple[Compiled, Callable[[], float]]
"""A compiled gradient, and a call that takes a turn of it."""

Chosen = Callable[[Any, Any], list[Any]]
"""What the loss looks at, of a last carry and outputs."""


def _outputs(carry: Any, outputs: Any) -> list[Any]:
    del carry
    return [outputs]


def _last(carry: Any, outputs: Any) -> list[Any]:
    del outputs
    return jax.tree.leaves(carry)


def _in_unroll(cell: Any, way: Any, chosen: Chosen, xs: Any) -> Built:
    def run(cell, xs):
        done = jaxrnn.unroll(cell, xs, method=way)
        return chosen(done.carry, done.outputs)

    return _gradient(run, cell, xs)


def _in_nnx(cell: Any, chosen: Chosen, xs: Any) -> Built:
    layer = nnx.RNN(cell, time_major=True, return_carry=True)
    graph, weights, streams = nnx.split(layer, nnx.Param, ...)
    return _gradient(
        lambda weights, xs: chosen(*nnx.merge(graph, weights, streams)(xs)), weights, xs
    )


def _gradient(run: Callable[[Any, Any], list[Any]], weights: Any, xs: Any) -> Built:
    """Compile the gradient of the mean squares of what `run` returns."""

    def gradient(weights, xs):
        def loss(weights, xs):
            return sum((jnp.mean(leaf**2) for leaf in run(weights, xs)), jnp.zeros(()))

        return jax.grad(loss, (0, 1))(weights, xs)

    made = compiled(gradient, weights, xs)
    return made, made.taking_turns(weights, xs)


def _product_flops(cell: Any, xs: Any) -> float:
    """Return the arithmetic of a cell's matrix products: forward once, backward twice that."""
    steps, *batch, _ = xs.shape
    carry = cell.initialize_carry(xs.shape[1:])
    step = jax.make_jaxpr(lambda cell, carry, x: cell(carry, x))
    return (
        3 * steps * _flops_of(step(prepared(cell), carry, jnp.zeros((*batch, xs.shape[-1]))).jaxpr)
    )


def _flops_of(program: Any) -> int:
    total = 0
    for eqn in program.eqns:
        total += sum(_flops_of(inner) for inner in jaxprs_in_params(eqn.params))
        if eqn.primitive.name == "dot_general":
            ((contracted, _), _), shape = eqn.params["dimension_numbers"], eqn.invars[0].aval.shape
            inner = math.prod(shape[axis] for axis in contracted)
            total += 2 * inner * eqn.outvars[0].aval.size
    return total
