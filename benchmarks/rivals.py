"""Who takes part: `unroll`, Flax's two layers, PyTorch and Keras, each as a call that does all the work.

The work is the same for all: from inputs [T, B, F] (or Keras' [B, T, F]) to outputs, and for the backward
pass from a given cotangent of the outputs to the gradients of all weights and of the inputs. PyTorch and
Keras take part where they are installed.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxrnn
from benchmarks import pytorch
from benchmarks.cases import Case
from benchmarks.compiled import compiled
from benchmarks.products import products
from jaxrnn import Blocked
from jaxrnn.unrolling import Method

Built = tuple[Callable[[], float], float]
"""A call that takes a turn (`benchmarks.timing`), and the seconds of the compilation before."""


FLAX_CELLS = {"elman-tanh": nnx.SimpleCell, "gru": nnx.GRUCell, "lstm": nnx.OptimizedLSTMCell}


def build(case: Case, *, cores: int) -> dict[str, Built]:
    """Return all who take part in a case, by name, with `cores` of them to use."""
    split = cores > 1 and case.shape[1] % cores == 0
    built = {
        "unroll": _ours_split(case) if split else _ours(case),
        "nnx.RNN": _nnx(case),
        "linen.RNN": _linen(case),
    }
    if cores == 1:
        built["products alone"] = _warm(*products(case))
    built |= _pytorch(case, cores)
    if importlib.util.find_spec("keras"):
        built["Keras"] = _keras(case)
    return built


def keepers(case: Case) -> dict[str, Built]:
    """Return `unroll` on one core, the same told to keep its signals, and rivals who keep their gates."""
    kept = _ours(case, Blocked(keep_signals=True))
    return {"unroll": _ours(case), "signals kept": kept, "nnx.RNN": _nnx(case), **_pytorch(case, 1)}


def keeps_signals(case: Case) -> bool:
    """Tell whether `unroll` keeps its signals without being told."""
    xs = jax.ShapeDtypeStruct(case.shape[:3], jnp.float32)
    return jax.eval_shape(jaxrnn.unroll, _cell(case), xs).method.keep_signals


def _pytorch(case: Case, cores: int) -> dict[str, Built]:
    installed = importlib.util.find_spec("torch")
    return {"PyTorch": (pytorch.start(case, cores), 0.0)} if installed else {}


def _compiled(
    case: Case, forward: Callable[[Any, Any], Any], weights: Any, time_axis: int = 0
) -> Built:
    """Compile a JAX rival: ``forward(weights, xs)`` returns the outputs."""
    xs, cotangent = (jnp.asarray(np.moveaxis(a, 0, time_axis)) for a in case.arrays())

    def both(weights, xs, cotangent):
        outputs, back = jax.vjp(forward, weights, xs)
        return outputs, back(cotangent)

    if case.work == "forward":
        return _warm(forward, (weights, xs))
    return _warm(both, (weights, xs, cotangent))


def _warm(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Built:
    made = compiled(function, *arguments)
    return made.taking_turns(*arguments), made.seconds


def _cell(case: Case) -> Any:
    *_, features, units = case.shape
    return jaxrnn.make_cell(case.cell, features, units, rngs=nnx.Rngs(0))


def _flax_cell(case: Case) -> Any:
    *_, features, units = case.shape
    return FLAX_CELLS[case.cell](features, units, rngs=nnx.Rngs(0))


def _ours(case: Case, method: Method | None = None) -> Built:
    """Return `unroll`, with a method other than the default if one is given."""
    return _compiled(
        case, lambda cell, xs: jaxrnn.unroll(cell, xs, method=method).outputs, _cell(case)
    )


def _ours_split(case: Case) -> Built:
    """The batch over the cores, as `jaxrnn.devices.split_batch` does it."""
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    whole, parts = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), (None, "batch")))
    cell = jax.device_put(_cell(case), whole)
    xs, cotangent = (jax.device_put(a, parts) for a in case.arrays())

    def outputs(cell, xs):
        return jaxrnn.unroll(cell, xs).outputs

    def both(cell, xs, cotangent):
        ys, back = jax.vjp(outputs, cell, xs)
        return ys, *back(cotangent)

    split = functools.partial(jaxrnn.devices.split_batch, mesh=mesh)
    if case.work == "forward":
        return _warm(split(outputs, in_axes=(None, 1), out_axes=1), (cell, xs))
    axes = {"in_axes": (None, 1, 1), "out_axes": (1, None, 1)}
    return _warm(split(both, **axes), (cell, xs, cotangent))


def _nnx(case: Case) -> Built:
    graph, weights = nnx.split(nnx.RNN(_flax_cell(case), time_major=True))
    return _compiled(case, lambda weights, xs: nnx.merge(graph, weights)(xs), weights)


def _linen(case: Case) -> Built:
    _, batch, features, units = case.shape
    make = {"elman-tanh": nn.SimpleCell, "gru": nn.GRUCell, "lstm": nn.OptimizedLSTMCell}
    layer = nn.RNN(make[case.cell](units), time_major=True)
    weights = layer.init(jax.random.key(0), jnp.ones((1, batch, features)))
    return _compiled(case, layer.apply, weights)


def _keras(case: Case) -> Built:
    os.environ["KERAS_BACKEND"] = "jax"
    # It reads the variable when it is imported.
    import keras  # pyright: ignore[reportMissingImports]

    _, batch, features, units = case.shape
    make = {
        "elman-tanh": keras.layers.SimpleRNN,
        "gru": keras.layers.GRU,
        "lstm": keras.layers.LSTM,
    }
    layer = make[case.cell](units, return_sequences=True)
    layer.build((batch, None, features))
    fixed = [v.value for v in layer.non_trainable_variables]
    weights = [v.value for v in layer.trainable_variables]

    def forward(weights, xs):
        return layer.stateless_call(weights, fixed, xs)[0]

    return _compiled(case, forward, weights, time_axis=1)
