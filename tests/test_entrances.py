"""Every public entrance under attack: nonsense is refused by name, or the answer is right.

Each entrance has one call that is right. A drawn call puts another value in the place of one or two of its
arguments: nonsense, extremes, or the same value in another form. It must give an `InputError`, or an answer
without NaN; in another form the same answer as before. Never another exception.
"""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import InputError, analysis, experiments, interop, models, plot, tasks, training
from jaxrnn.analysis._mean_field import DIVERGES_FIRST, NO_EDGE
from jaxrnn.cells import initializers

F, H, T, B, V = 3, 4, 5, 2, 6
ALL_CALLS = 10_000


def draw(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def bowl(x: Any) -> Any:
    return jnp.sum(jnp.square(x))


@functools.cache
def cell() -> Any:
    return jaxrnn.GRUCell(F, H, rngs=nnx.Rngs(0))


@functools.cache
def lstm() -> Any:
    return jaxrnn.LSTMCell(F, H, rngs=nnx.Rngs(0))


@functools.cache
def elman() -> Any:
    return jaxrnn.ElmanCell(F, H, rngs=nnx.Rngs(0))


@functools.cache
def language_model() -> Any:
    rngs = nnx.Rngs(0)
    body = jaxrnn.RNN(jaxrnn.GRUCell(F, H, rngs=rngs))
    return models.LanguageModel(models.Embedding(V, F, rngs=rngs), body, rngs=rngs)


@functools.cache
def translator() -> Any:
    rngs = nnx.Rngs(0)
    source, target = (models.Embedding(V, F, rngs=rngs) for _ in range(2))
    encoder = jaxrnn.RNN(jaxrnn.GRUCell(F, H, rngs=rngs))
    decoder = jaxrnn.GRUCell(F + H, H, rngs=rngs)
    return models.EncoderDecoder(source, encoder, target, decoder, start=0, end=1, rngs=rngs)


@functools.cache
def flow() -> Any:
    return analysis.Flow(lambda s, x: jax.tree.map(jnp.negative, s), 0.1)


@functools.cache
def trajectory() -> Any:
    return analysis.trace(cell(), XS)


@functools.cache
def long_trajectory() -> Any:
    return analysis.trace(elman(), draw(200, 1, F))


def loss(outputs: Any) -> Any:
    return jnp.sum(outputs[-1] ** 2)


XS = draw(T, B, F)
TOKENS = np.random.default_rng(0).integers(0, V, (T, B)).astype(np.int32)
KEY = jax.random.key(0)
RNGS = nnx.Rngs(0)
TWO = {"cell": cell, "trajectory": trajectory}
EACH = {"in_features": F, "hidden_features": H, "rngs": RNGS}
WEIGHTS = {"param_dtype": jnp.float32, "kernel_init": initializers.glorot()}


def called(make: Callable[[], Any]) -> Callable[..., Any]:
    """A module's call, as a function."""
    return lambda **arguments: make()(**arguments)


@functools.cache
def rnn() -> Any:
    return jaxrnn.RNN(cell(), time_major=True)


@functools.cache
def stack() -> Any:
    rngs = nnx.Rngs(0)
    cells = jaxrnn.GRUCell(F, H, rngs=rngs), jaxrnn.LSTMCell(H, H, rngs=rngs)
    return jaxrnn.Stack([jaxrnn.RNN(each) for each in cells], time_major=True)


# An entrance, and arguments that are right; what is a function without arguments is made at the call.
LAYER = {"inputs": XS, "initial_carry": None, "seq_lengths": np.array([T, 2])}
LAYER |= {"mask": np.ones((T, B), bool), "resets": np.zeros((T, B), bool), "dropout_key": None}
LAYER |= {"return_carry": False, "time_major": True}
MEAN = {"activation": jnp.tanh, "gain": 1.5, "bias_variance": 0.1, "input_variance": 0.0}
SEARCH = {"cell": cell, "x": np.zeros(F, np.float32), "candidates": draw(6, H)}
SEARCH |= {"tolerance": None, "distinct": None, "outlier": 10.0, "batch": None}
ENTRANCES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "GRUCell": (jaxrnn.GRUCell, EACH | WEIGHTS | {"bias_init": jax.nn.initializers.zeros}),
    "LSTMCell": (jaxrnn.LSTMCell, EACH | WEIGHTS | {"recurrent_kernel_init": None}),
    "ElmanCell": (jaxrnn.ElmanCell, EACH | WEIGHTS | {"activation_fn": jnp.tanh}),
    "CTRNNCell": (jaxrnn.CTRNNCell, EACH | {"time_constant": 5.0}),
    "LRUCell": (jaxrnn.LRUCell, EACH | {"radius": (0.4, 0.9), "largest_phase": 1.0}),
    "S5Cell": (jaxrnn.S5Cell, EACH | {"steps": (0.01, 0.1)}),
    "CoRNNCell": (jaxrnn.CoRNNCell, EACH | {"step_size": 0.1, "frequency": 1.0, "damping": 1.0}),
    "ClockworkCell": (jaxrnn.ClockworkCell, EACH | {"periods": (1, 2)}),
    "SLSTMCell": (jaxrnn.SLSTMCell, EACH | {"heads": 2}),
    "make_cell": (jaxrnn.make_cell, EACH | {"name": "mgu"}),
    "a cell": (called(cell), {"carry": draw(B, H), "x": XS[0]}),
    "initialize_carry": (
        lambda **arguments: cell().initialize_carry(**arguments), {"input_shape": (B, F)}
    ),
    "chrono": (jaxrnn.GRUCell.chrono, {"max_lag": 20}),
    "unroll": (
        jaxrnn.unroll,
        {"cell": cell, "xs": XS, "carry": draw(B, H), "length": T, "reverse": False, "method": None}
        | {"mask": LAYER["mask"], "resets": LAYER["resets"], "seq_lengths": LAYER["seq_lengths"]},
    ),
    "unroll with Scan": (
        lambda unroll, **arguments: jaxrnn.unroll(**arguments, method=jaxrnn.Scan(unroll=unroll)),
        {"cell": cell, "xs": XS, "unroll": 1},
    ),
    "Newton": (jaxrnn.Newton, {"tol": None, "max_iters": 9, "damping": 0.1, "jacobian": "dense"}),
    "Blocked": (jaxrnn.Blocked, {"block": 2, "keep_signals": True}),
    "Remat": (jaxrnn.Remat, {"block": 2, "inside": None}),
    "Truncated": (jaxrnn.Truncated, {"window": 2, "inside": None}),
    "RNN": (
        jaxrnn.RNN,
        {"cell": cell, "time_major": True, "reverse": False, "method": None, "carry_init": None}
        | {"dropout": 0.1, "recurrent_dropout": 0.1, "zoneout": 0.0, "rngs": RNGS},
    ),
    "a RNN": (called(rnn), LAYER | {"reverse": False}),
    "a Stack": (called(stack), LAYER),
    "Stack": (
        jaxrnn.Stack, {"layers": lambda: list(stack().layers), "residual": False, "norms": None}
    ),
    "Embedding": (models.Embedding, {"tokens": V, "features": F, "table_init": None, "rngs": RNGS}),
    "an Embedding": (called(lambda: language_model().embedding), {"tokens": TOKENS}),
    "a LanguageModel": (
        called(language_model),
        {"tokens": TOKENS, "seq_lengths": np.array([T, 2]), "dropout_key": None},
    ),
    "generate": (
        models.generate,
        {"model": language_model, "prompt": TOKENS, "steps": 3, "key": KEY, "temperature": 0.7}
        | {"top_k": 3, "top_p": 0.9, "end": 1, "carry": None, "seq_lengths": None},
    ),
    "sample": (
        models.sample,
        {"logits": draw(B, V), "key": KEY, "temperature": 0.7, "top_k": 3, "top_p": 0.9},
    ),
    "cross_entropy": (
        models.cross_entropy,
        {"logits": draw(T, B, V), "targets": TOKENS, "mask": np.ones((T, B), bool)},
    ),
    "perplexity": (models.perplexity, {"nats": 1.5}),
    "last_step": (models.last_step, {"outputs": jnp.asarray(XS), "lengths": np.array([T, 2])}),
    "mean_step": (models.mean_step, {"outputs": jnp.asarray(XS), "lengths": np.array([T, 2])}),
    "mask_tokens": (
        models.mask_tokens,
        {"tokens": TOKENS, "key": KEY, "mask_id": 0, "vocabulary": V, "rate": 0.2, "eligible": None},
    ),
    "greedy_search": (
        models.greedy_search,
        {"model": translator, "sources": TOKENS, "steps": 3, "seq_lengths": np.array([T, 2])},
    ),
    "beam_search": (
        models.beam_search,
        {"model": translator, "sources": TOKENS, "steps": 3, "width": 2, "length_penalty": 1.0}
        | {"seq_lengths": np.array([T, 2])},
    ),
    "SequenceClassifier": (models.SequenceClassifier, {"cell": cell, "classes": 3, "rngs": RNGS}),
    "TCN": (
        models.TCN, EACH | {"depth": 1, "kernel_size": 3, "dropout": 0.1, "param_dtype": jnp.float32}
    ),
    "TransformerEncoder": (
        models.TransformerEncoder,
        {"in_features": F, "features": 4, "depth": 1, "heads": 2, "dropout": 0.0, "rngs": RNGS},
    ),
    "WindowedMLP": (models.WindowedMLP, EACH | {"window": 2, "depth": 1}),
    "trace": (analysis.trace, {"cell": cell, "xs": XS, "carry": draw(B, H), "length": T}),
    "jacobians": (analysis.jacobians, TWO),
    "input_jacobians": (analysis.input_jacobians, TWO),
    "factored_jacobians": (analysis.factored_jacobians, TWO),
    "spectrum": (analysis.spectrum, TWO),
    "spectrum_of": (analysis.spectrum_of, {"matrices": draw(2, H, H)}),
    "modes": (analysis.modes, TWO),
    "modes_of": (analysis.modes_of, {"matrices": draw(2, H, H)}),
    "weight_spectrum": (analysis.weight_spectrum, {"cell": cell}),
    "propagator": (analysis.propagator, TWO | {"lags": [1, 2]}),
    "propagator_directions": (
        analysis.propagator_directions, TWO | {"lags": [1, 2], "leading": 2}
    ),
    "product_spectrum": (analysis.product_spectrum, TWO | {"lags": [1, 2]}),
    "input_sensitivity": (analysis.input_sensitivity, TWO | {"lags": [1, 2]}),
    "gradient_flow": (
        analysis.gradient_flow,
        {"cell": cell, "xs": XS, "loss": loss, "carry": draw(B, H), "length": None},
    ),
    "lag_contributions": (
        analysis.lag_contributions,
        {"cell": cell, "xs": XS, "loss": loss, "carry": None, "max_lag": 3},
    ),
    "lyapunov": (
        analysis.lyapunov,
        {"cell": cell, "xs": draw(30, B, F), "carry": None, "k": 2, "warmup": 2, "key": KEY}
        | {"renorm_every": 3},
    ),
    "covariant_vectors": (
        analysis.covariant_vectors, TWO | {"k": 2, "settle": 1, "key": KEY}
    ),
    "trajectory_bound": (analysis.trajectory_bound, TWO),
    "weight_bound": (
        analysis.weight_bound,
        {"kernel": draw(H, H), "activation": jnp.tanh, "preactivations": None},
    ),
    "slope_bound": (analysis.slope_bound, {"activation": jnp.tanh}),
    "candidates_from": (
        analysis.candidates_from, {"trajectory": trajectory, "count": 5, "key": KEY, "noise": 0.1}
    ),
    "fixed_points": (analysis.fixed_points, SEARCH | {"slow": None}),
    "cycles": (analysis.cycles, SEARCH | {"period": 2}),
    "mean_field": (analysis.mean_field, MEAN | {"input_correlation": 1.0}),
    "correlation_map": (analysis.correlation_map, MEAN | {"correlation": 0.5}),
    "edge_of_chaos": (
        analysis.edge_of_chaos,
        {"activation": jnp.tanh, "bias_variance": 0.1, "bracket": (0.1, 10.0)},
    ),
    "state_derivative": (analysis.state_derivative, TWO | {"start": 1, "stop": 3}),
    "series_exponent": (
        analysis.series_exponent,
        {"series": draw(200), "dimension": 2, "fit": (0, 4), "delay": 1, "theiler": None}
        | {"radius": None, "time_step": 1.0, "method": "rosenstein"},
    ),
    "flow_modes": (
        analysis.flow_modes, {"flow": flow, "x": np.zeros(F, np.float32), "carries": draw(2, H)}
    ),
    "streaming": (models.streaming, {"model": language_model}),
    "pseudospectrum": (
        analysis.pseudospectrum, {"matrix": draw(H, H), "points": 5, "extent": (-1, 1, -1, 1)}
    ),
    "linear_memory": (
        analysis.linear_memory,
        {"kernel": draw(H, H) / 8, "input_kernel": draw(H), "lags": 3, "noise_variance": 0.1},
    ),
    "memory_capacity": (
        analysis.memory_capacity, {"trajectory": long_trajectory, "lags": 3, "washout": 5}
    ),
    "from_pytorch": (
        interop.from_pytorch,
        {"state_dict": {"weight_ih_l0": draw(16, 3), "weight_hh_l0": draw(16, 4)}, "prefix": ""},
    ),
    "carry_from_pytorch": (
        interop.carry_from_pytorch, {"layer": lstm, "state": (draw(B, H), draw(B, H))}
    ),
    "carry_to_pytorch": (interop.carry_to_pytorch, {"layer": cell, "carry": draw(B, H)}),
    "from_keras": (
        interop.from_keras, {"weights": [draw(3, 12), draw(4, 12)], "reset_after": True}
    ),
    "from_equinox": (
        interop.from_equinox,
        {"cell": types.SimpleNamespace(weight_ih=draw(16, 3), weight_hh=draw(16, 4), bias=None)},
    ),
    "from_nnx": (interop.from_nnx, {"cell": lambda: nnx.GRUCell(F, H, rngs=nnx.Rngs(0))}),
    "to_pytorch": (interop.to_pytorch, {"layer": rnn, "prefix": ""}),
    "to_keras": (interop.to_keras, {"layer": rnn}),
    "to_nnx": (interop.to_nnx, {"cell": lstm, "kind": None}),
    "to_linen": (interop.to_linen, {"cell": cell}),
    "adding": (tasks.load_task, {"name": "adding", "length": 10}),
    "copy": (tasks.load_task, {"name": "copy-memory", "delay": 5, "symbols": 2}),
    "parity": (tasks.load_task, {"name": "parity", "longest": 4, "tested": 8}),
    "read_idx": (tasks.read_idx, {"path": "nowhere"}),
    "Vocabulary": (tasks.Vocabulary, {"words": ["a", "b"]}),
    "bucketed": (
        tasks.bucketed, {"inputs": [draw(3, F), draw(5, F)], "targets": [0, 1], "groups": 1}
    ),
    "hessian_extremes": (
        analysis.hessian_extremes,
        {"loss": bowl, "parameters": draw(4), "key": KEY, "count": 1, "steps": 4, "tolerance": 0.01},
    ),
    "cuckoo_search": (
        training.cuckoo_search,
        {"loss": bowl, "start": draw(4), "key": KEY, "evaluations": 40, "spread": 1.0, "nests": 5}
        | {"abandoned": 0.25},
    ),
    "random_search": (
        training.random_search,
        {"loss": bowl, "start": draw(4), "key": KEY, "evaluations": 20, "spread": 1.0},
    ),
    "random_settings": (
        experiments.random_settings,
        {"ranges": {"learning_rate": (1e-3, 0.1)}, "count": 4, "seed": 0},
    ),
    "JordanCell": (jaxrnn.JordanCell, EACH | WEIGHTS | {"out_features": 2, "activation_fn": jnp.tanh}),
    "plot.spectrum": (
        lambda **arguments: plot.spectrum(**arguments) and None,
        {"result": lambda: analysis.spectrum(cell(), trajectory()), "ax": None, "sequence": 0},
    ),
}  # fmt: skip

NONSENSE: tuple[Any, ...] = (
    None, "", "tanh", b"x", object(), [], (), {}, [1, [2, 3]], ["a", None], {"a": 1}, int, print,
    True, 0, -1, 1, 7, 2**31, 2**63, -(2**70), 10**40, 0.5, -0.5, 1.5, 1e-300, 1e300, 1j,
    float("nan"), float("inf"), -float("inf"), np.float16(0.5), np.int8(2), np.bool_(True),
    np.zeros(0, np.float32), np.zeros((0, B, F), np.float32), np.zeros((T, 0, F), np.float32),
    np.zeros((), np.float32), np.zeros((T, B, F)), np.zeros((T, B, F), int), np.zeros((T, B), bool),
    np.full((T, B, F), np.nan, np.float32), np.full((T, B, F), np.inf, np.float32),
    np.full((T, B, F), 1e30, np.float32), np.zeros((H, H), np.complex64), np.array(["a", "b"]),
    np.array([None, 1], object), np.zeros((2, 2, 2, 2, 2), np.float32), np.arange(3), np.arange(-3, 0),
    draw(H, H), draw(B, H), draw(T, B, 1), draw(T, B + 1, F), draw(H, H).astype(np.float16),
    jnp.zeros((T, B, F), jnp.bfloat16), jnp.int32(3), jnp.float32(0.5), jnp.float32(jnp.nan),
    jax.ShapeDtypeStruct((T, B, F), jnp.float32), jax.random.key(1), jax.random.split(KEY, 3),
    nnx.Rngs(0), jnp.tanh, lambda: None, lambda x: None, lambda *a: a, jnp.float16, "float32",
    range(3), slice(3), {1, 2}, iter([1, 2]), nnx.Linear(2, 2, rngs=nnx.Rngs(0)), jnp.zeros((H,)),
)  # fmt: skip


# Networks compute with NaN as with any number; analyses refuse it.
NETWORKS = (
    "a cell", "unroll", "unroll with Scan", "a RNN", "a Stack", "last_step", "mean_step", "sample",
    "cross_entropy", "perplexity", "carry_to_pytorch",
)  # fmt: skip


def arguments_of(name: str) -> dict[str, Any]:
    """The right arguments of an entrance; those that are made by a function without arguments, made."""
    return {
        key: value()
        if getattr(value, "__module__", None) == __name__ and value not in (loss, bowl)
        else value
        for key, value in ENTRANCES[name][1].items()
    }


def count_nan(result: Any) -> int:
    """Count the leaves of a result, of a record that is no pytree too, in which NaN stands.

    A theory that says by its status that it has no value is right to hold NaN.
    """
    if getattr(result, "status", "") in (NO_EDGE, DIVERGES_FIRST):
        return 0
    fields = result if isinstance(result, nnx.Module) else getattr(result, "__dict__", result)
    return sum(
        bool(np.isnan(np.asarray(leaf, np.complex128)).any())
        for leaf in jax.tree.leaves(fields)
        if isinstance(leaf, float | complex | np.ndarray | np.generic | jax.Array)
        and getattr(leaf, "dtype", np.dtype(complex)).kind in "fcV"  # V: bfloat16 and its like
    )


@functools.cache
def nan_of_the_right_call(name: str) -> int:
    """Count those of the right call: a rate that two blocks cannot tell is NaN, as its page says."""
    return count_nan(ENTRANCES[name][0](**arguments_of(name)))


def fault(name: str, changed: dict[str, Any]) -> str | None:
    """Say what is wrong with what an entrance makes of changed arguments; None if nothing is."""
    function, _ = ENTRANCES[name]
    functions = (
        argument
        for argument in changed
        if argument.endswith(("_init", "_fn", "activation", "cell"))
    )
    if any(callable(changed[each]) for each in functions) or callable(changed.get("loss")):
        return None  # a function of the caller's, whose errors are the caller's
    try:
        with warnings.catch_warnings(action="ignore"):
            result = function(**arguments_of(name) | changed)
            wrong = count_nan(result) > nan_of_the_right_call(name)
    except InputError:
        return None
    except Exception as error:
        return f"{changed!r:.200}: {type(error).__name__}: {error!s:.200}"
    return f"{changed!r:.200}: NaN" if wrong and name not in NETWORKS else None


@pytest.mark.parametrize("name", ENTRANCES)
def test_an_object_in_the_place_of_any_argument_is_refused(name):
    _, right = ENTRANCES[name]
    found = [fault(name, {argument: object()}) for argument in right]
    assert [each for each in found if each] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ENTRANCES)
def test_nonsense_is_refused_or_the_answer_is_right(name):
    rng = np.random.default_rng(list(name.encode()))
    arguments, found = list(ENTRANCES[name][1]), []
    if name != "read_idx":  # whose right call would need a file
        with warnings.catch_warnings(action="ignore"):
            ENTRANCES[name][0](**arguments_of(name))
    for _ in range(-(-ALL_CALLS // len(ENTRANCES))):
        chosen = rng.choice(arguments, size=min(len(arguments), rng.integers(1, 3)), replace=False)
        found.append(fault(name, {each: NONSENSE[rng.integers(len(NONSENSE))] for each in chosen}))
    assert [each for each in found if each] == []
