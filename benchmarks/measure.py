"""What a measuring process does: speed against rivals, memory against T, methods against each other."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxrnn
from benchmarks import rivals
from benchmarks.cases import Case, Work
from benchmarks.compiled import compiled
from benchmarks.products import product_rate
from benchmarks.timing import processor, quartiles, take_turns, turn
from jaxrnn import Associative, Blocked, Newton, Remat, Scan
from jaxrnn.training import environment


def about(cores: int) -> Iterator[dict[str, Any]]:
    """Hardware, versions, and the rate of one large matrix product (1024³, float32) on these cores."""
    found: dict[str, Any] = {**environment(), "processor": processor()}
    for name in ("torch", "keras"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    yield {"environment": found, "product_rate": product_rate()}


def speed(
    cores: int, cells: list[str], shapes: list[list[int]], works: list[Work]
) -> Iterator[dict[str, Any]]:
    """Time every case: seconds of each rival, and the ratios to `unroll` of the turns taken together."""
    if cores > 1:
        jaxrnn.devices.use_cores(cores)
    rate = product_rate()
    for cell in cells:
        for shape in shapes:
            for work in works:
                t, b, f, h = shape
                yield _row(Case(cell, (t, b, f, h), work), cores, rate)


LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""What has glibc, from 2.35 on, ask for pages of 2 MB; read as a process starts."""

_GIVEN = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_ASKED = "always [madvise] never"


def large_pages_on_request() -> bool:
    """Tell whether this system gives large pages to those who ask, and to no other."""
    name, version = platform.libc_ver()
    asks = name == "glibc" and tuple(map(int, version.split("."))) >= (2, 35)
    return asks and _GIVEN.exists() and _GIVEN.read_text().strip() == _ASKED


def pages(cores: int, cell: str, shape: list[int], size: str) -> Iterator[dict[str, Any]]:
    """Time one layer, forward and backward, in a process whose memory comes in pages of this size."""
    t, b, f, h = shape
    case = Case(cell, (t, b, f, h), "forward+backward")
    timed = _timed(case, cores, _turns(rivals.keepers(case)))
    yield {"pages": size, "keeps_signals": rivals.keeps_signals(case), **timed}


def _row(case: Case, cores: int, rate: float) -> dict[str, Any]:
    built = rivals.build(case, cores=cores)
    times = _turns(built)
    return {
        **_timed(case, cores, times),
        "compile_seconds": {name: seconds for name, (_, seconds) in built.items() if seconds},
        "fraction_of_product_rate": case.flops / float(np.median(times["unroll"])) / rate,
    }


def _turns(built: dict[str, rivals.Built]) -> dict[str, np.ndarray]:
    return take_turns({name: take for name, (take, _) in built.items()})


def _timed(case: Case, cores: int, times: dict[str, np.ndarray]) -> dict[str, Any]:
    ours = times["unroll"]
    return {
        "cell": case.cell,
        "shape": list(case.shape),
        "work": case.work,
        "cores": cores,
        "turns": len(ours),
        "seconds": {name: quartiles(values) for name, values in times.items()},
        "ratios": {n: quartiles(v / ours) for n, v in times.items() if n != "unroll"},
    }


METHODS: dict[str, Any] = {"Scan": Scan(), "Blocked": Blocked(), "Remat": Remat()}


def memory(cores: int, cell: str, shape: list[int], method: str) -> Iterator[dict[str, Any]]:
    """Temporary memory that the compiled gradient asks for, and what the process grew by when it ran.

    One method and one length a process: the peak of a process never falls again.
    """
    steps, batch, features, units = shape
    xs = jnp.ones((steps, batch, features))
    weights, last = (_nnx_last if method == "nnx.RNN" else _our_last)(cell, features, units, method)

    def gradient(weights, xs):
        def loss(weights):
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(last(weights, xs)))

        value, back = jax.vjp(loss, weights)
        return back(jnp.ones_like(value))

    made = compiled(gradient, weights, xs)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(made.program(weights, xs))
        times.append(time.perf_counter() - began)
    yield {
        "cell": cell,
        "shape": shape,
        "method": method,
        "cores": cores,
        "temporaries": made.temporaries,
        "grown": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before),
        "seconds": float(np.median(times)),
    }


def _nnx_last(cell: str, features: int, units: int, method: str) -> tuple[Any, Any]:
    """Return the weights of Flax's layer, and the last carry as a function of them and of inputs."""
    del method
    flax_cell = rivals.FLAX_CELLS[cell](features, units, rngs=nnx.Rngs(0))
    graph, weights = nnx.split(nnx.RNN(flax_cell, time_major=True, return_carry=True))
    return weights, lambda weights, xs: nnx.merge(graph, weights)(xs)[0]


def _our_last(cell: str, features: int, units: int, method: str) -> tuple[Any, Any]:
    """Return a cell of ours, and the last carry as a function of it and of inputs."""
    weights = jaxrnn.make_cell(cell, features, units, rngs=nnx.Rngs(0))
    return weights, lambda cell, xs: jaxrnn.unroll(cell, xs, method=METHODS[method]).carry


def methods(cores: int, lengths: list[int]) -> Iterator[dict[str, Any]]:
    """Time the methods against T, forward and backward: a small GRU, and a diagonal linear recurrence."""
    gru = jaxrnn.GRUCell(8, 8, rngs=nnx.Rngs(0))

    def leaky(carry, x):
        decay = jax.nn.sigmoid(x)
        moved = decay * carry + (1 - decay) * x
        return moved, moved

    everywhere: dict[str, Any] = {"Scan": Scan(), "Remat": Remat(inside=Scan())}
    nonlinear = {
        **METHODS,
        "Newton, dense": Newton(),
        "Newton, diagonal": Newton(jacobian="diagonal"),
    }
    steps = {
        "gru": (gru, nonlinear),
        "linear": (leaky, {**everywhere, "Associative": Associative()}),
    }
    for length in lengths:
        xs = jax.random.normal(jax.random.key(0), (length, 1, 8))
        for name, (step, ways) in steps.items():

            def gradient(xs, step, way):
                def loss(xs):
                    done = jaxrnn.unroll(step, xs, carry=jnp.zeros((1, 8)), method=way)
                    return jnp.sum(done.outputs**2), done.convergence

                return jax.grad(loss, has_aux=True)(xs)

            runs, converged = {}, {}
            for label, way in ways.items():
                compiled = jax.jit(functools.partial(gradient, step=step, way=way))
                _, convergence = compiled(xs)
                converged[label] = None if convergence is None else bool(convergence.converged)
                runs[label] = functools.partial(turn, functools.partial(_finish, compiled, xs))
            times = take_turns(runs)
            yield {
                "step": name,
                "length": length,
                "cores": cores,
                "seconds": {label: quartiles(values) for label, values in times.items()},
                "converged": converged,
            }


def _finish(function: Any, *arguments: Any) -> Any:
    return jax.block_until_ready(function(*arguments))
