"""On a GPU: `unroll` and `CuDNN()` against `nnx.RNN` and PyTorch's cuDNN, in float32, TF32 and bfloat16.

``make bench-gpu`` prints microseconds a step, forward and forward with backward, and writes
``benchmarks/results/gpu.json``. In float32 products are exact to float32; in TF32 they may round their
factors to ten bits, which is what both libraries do unless told otherwise.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import jaxrnn
from benchmarks.cases import CELLS, GRID, Case, Work
from benchmarks.rivals import FLAX_CELLS
from benchmarks.timing import quartiles, take_turns, turn
from jaxrnn.training import environment

PRECISIONS = ("float32", "TF32", "bfloat16")
_RESULTS = Path(__file__).parent / "results" / "gpu.json"


def main() -> None:
    """Measure, print and write."""
    if jax.default_backend() != "gpu":
        sys.exit(f"benchmarks: JAX runs on {jax.default_backend()} here, and this needs a GPU")
    found: dict[str, Any] = {"environment": environment(), "rows": []}
    print("microseconds a step, median", flush=True)
    for row in rows(CELLS, GRID):
        found["rows"].append(row)
        shape = "×".join(map(str, row["shape"]))
        times = ", ".join(f"{name} {q[1]:.2f}" for name, q in row["microseconds"].items())
        print(f"{row['cell']:11}{shape:18}{row['precision']:9}{row['work']:17}{times}", flush=True)
        _RESULTS.parent.mkdir(exist_ok=True)
        _RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def rows(cells: Any, shapes: Any, precisions: Any = PRECISIONS) -> Iterator[dict[str, Any]]:
    """Time every case; yield quartiles of microseconds a step for each who takes part."""
    works: tuple[Work, ...] = ("forward", "forward+backward")
    for precision in precisions:
        exact = "highest" if precision == "float32" else "tensorfloat32"
        with jax.default_matmul_precision(exact):
            for cell in cells:
                for shape in shapes:
                    for work in works:
                        yield _row(Case(cell, shape, work), precision)


def _row(case: Case, precision: str) -> dict[str, Any]:
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    runs = {"unroll": _ours(case, dtype, None), "nnx.RNN": _nnx(case, dtype)}
    if case.cell == "lstm" and dtype == jnp.float32 and jax.default_backend() == "gpu":
        runs["CuDNN()"] = _ours(case, dtype, jaxrnn.CuDNN())
    if importlib.util.find_spec("torch"):
        runs |= _pytorch(case, precision)
    times = take_turns({name: functools.partial(turn, run) for name, run in runs.items()})
    per_step = {name: 1e6 * seconds / case.shape[0] for name, seconds in times.items()}
    return {
        "cell": case.cell,
        "shape": list(case.shape),
        "work": case.work,
        "precision": precision,
        "microseconds": {name: quartiles(values) for name, values in per_step.items()},
    }


def _ours(case: Case, dtype: Any, method: Any) -> Callable[[], Any]:
    *_, features, units = case.shape
    rngs = nnx.Rngs(0)
    cell = jaxrnn.make_cell(case.cell, features, units, rngs=rngs, param_dtype=dtype)
    return _run(case, dtype, lambda w, xs: jaxrnn.unroll(w, xs, method=method).outputs, cell)


def _nnx(case: Case, dtype: Any) -> Callable[[], Any]:
    *_, features, units = case.shape
    cell = FLAX_CELLS[
        case.cell
    ](
        features,
        units,
        rngs=nnx.Rngs(0),
        dtype=dtype,
        param_dtype=dtype,
        recurrent_kernel_init=jax.nn.initializers.lecun_normal(),  # not orthogonal: no QR in bfloat16
    )
    graph, weights = nnx.split(nnx.RNN(cell, time_major=True))
    return _run(case, dtype, lambda w, xs: nnx.merge(graph, w)(xs), weights)


def _run(
    case: Case, dtype: Any, forward: Callable[[Any, Any], Any], weights: Any
) -> Callable[[], Any]:
    xs, cotangent = (jnp.asarray(a, dtype) for a in case.arrays())

    def both(weights, xs, cotangent):
        outputs, back = jax.vjp(forward, weights, xs)
        return outputs, back(cotangent)

    arguments = (weights, xs) if case.work == "forward" else (weights, xs, cotangent)
    program = jax.jit(forward if case.work == "forward" else both).lower(*arguments).compile()
    return lambda: jax.block_until_ready(program(*arguments))


def _pytorch(case: Case, precision: str) -> dict[str, Callable[[], Any]]:
    import torch  # pyright: ignore[reportMissingImports]

    if not torch.cuda.is_available():
        return {}
    torch.backends.cuda.matmul.allow_tf32 = precision == "TF32"
    torch.backends.cudnn.allow_tf32 = precision == "TF32"
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    *_, features, units = case.shape
    make = {"elman-tanh": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}
    layer = make[case.cell](features, units).to("cuda", dtype)
    xs, cotangent = (torch.tensor(a).to("cuda", dtype) for a in case.arrays())
    xs.requires_grad_(case.work != "forward")

    def forward() -> None:
        with torch.no_grad():
            layer(xs)
        torch.cuda.synchronize()

    def both() -> None:
        layer.zero_grad()
        xs.grad = None
        outputs, _ = layer(xs)
        outputs.backward(cotangent)
        torch.cuda.synchronize()

    return {"PyTorch": forward if case.work == "forward" else both}


if __name__ == "__main__":
    main()
