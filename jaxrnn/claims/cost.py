"""Claims about cost: seconds, parameters and memory, measured on the machine at hand.

Times are of compiled programs, warmed up, with the result waited for. The networks that are compared take
turns within each round, and a replicate is a round, so that whatever else the machine does falls on all of
them. A record names its machine; another machine may give another verdict.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn.cells import ElmanCell, GRUCell, LSTMCell
from jaxrnn.claims.claim import Claim, Lab, Source
from jaxrnn.claims.evidence import Check, Evidence, Line, Panel, Sample
from jaxrnn.claims.rules import Exactly, Mean, Part, Rule
from jaxrnn.layers import RNN, Bidirectional, Stack
from jaxrnn.models import TransformerEncoder

_FEATURES = 32
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


def _training_step(model: Any, xs: Any) -> Run:
    """Return a call of the gradient of a mean square by all weights."""

    def loss(model: Any, xs: Any) -> Any:
        return jnp.mean(jnp.square(model(xs)))

    program = jax.jit(jax.grad(loss)).lower(model, xs).compile()
    return lambda: program(model, xs)


def _parameters(model: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(model))


RATIO = "seconds of a training step, ratio to Elman's"

_NETWORKS: dict[str, Callable[[int, nnx.Rngs], Any]] = {
    "Elman": lambda h, r: RNN(ElmanCell(_FEATURES, h, rngs=r)),
    "GRU": lambda h, r: RNN(GRUCell(_FEATURES, h, rngs=r)),
    "LSTM": lambda h, r: RNN(LSTMCell(_FEATURES, h, rngs=r)),
    "bidirectional": lambda h, r: Bidirectional(
        RNN(ElmanCell(_FEATURES, h, rngs=r)), RNN(ElmanCell(_FEATURES, h, rngs=r))
    ),
    "three layers": lambda h, r: Stack(
        [RNN(ElmanCell(f, h, rngs=r)) for f in (_FEATURES, h, h)],
    ),
}


@Claim(
    "costs-more",
    topic="Cost",
    statement="LSTM, GRU, bidirectional and deep networks cost more to train than a plain one.",
    said_by=(
        Source("Charu", "an LSTM is slower because of its more parameters"),
        Source("Vanishing", "gated cells are costly"),
        Source("Issues", "bidirectional networks cost more"),
    ),
    why="They have several times the weights of a plain network of the same width.",
    measured="Seconds of a training step against a plain tanh network's: at the same number of units and at "
    "the same number of parameters.",
    rule=Rule((Part(RATIO, Mean(above=1.25)),)),
    refuted_by="Ratios not above 1.25: everywhere to refute it, at one of the two sizes to make it depend.",
    lessons={
        "confirmed": "At the same number of units and at the same number of parameters all of them take "
        "longer; an LSTM {lstm_units:.1f} and {lstm_parameters:.1f} times as long.",
        "depends": "An LSTM takes {lstm_units:.1f} times as long as a plain network of the same width, and "
        "{lstm_parameters:.1f} times as long as one with the same number of parameters.",
        "refuted": "None of them takes much longer than a plain network.",
    },
).measured_by
def costs_more(lab: Lab) -> Evidence:
    """Time training steps."""
    xs = jax.random.normal(jax.random.key(0), (32, lab.choose(50, 100), _FEATURES))
    plain = _NETWORKS["Elman"](128, nnx.Rngs(0))
    target = _parameters(plain)
    samples = []
    for size in ("the same units", "the same parameters"):
        models = {"Elman again": plain}
        for name, make in _NETWORKS.items():
            widths = _matched(make, target) if size == "the same parameters" else [128]
            models[name] = min(
                (make(width, nnx.Rngs(0)) for width in widths),
                key=lambda model: abs(_parameters(model) - target),
            )
        taken = seconds_by_round(lab, {n: _training_step(m, xs) for n, m in models.items()})
        samples += [
            Sample(RATIO, {"network": name, "size": size}, values / taken["Elman"])
            for name, values in taken.items()
            if name != "Elman"
        ]
    again = [s for s in samples if s.condition["network"] == "Elman again"]
    samples = [s for s in samples if s.condition["network"] != "Elman again"]
    median = {tuple(s.condition.values()): float(np.median(s.values)) for s in samples}
    worst = max(abs(float(np.median(s.values)) - 1) for s in again)
    return Evidence(
        samples,
        [
            Check(
                "negative control",
                "the same network, timed as another, takes as long",
                worst < 0.15,
                f"off by {worst:.0%}",
            )
        ],
        [_ratios(samples)],
        facts={
            "lstm_units": median["LSTM", "the same units"],
            "lstm_parameters": median["LSTM", "the same parameters"],
        },
        settings={
            "networks": f"128 units or as many parameters, T = {xs.shape[1]}, B = 32, F = 32"
        },
    )


def _matched(make: Callable[[int, nnx.Rngs], Any], target: int) -> list[int]:
    """Return the two widths between which the number of parameters reaches a target, by bisection."""
    low, high = 1, 256
    while high - low > 1:
        middle = (low + high) // 2
        size = _parameters(jax.eval_shape(lambda h=middle: make(h, nnx.Rngs(0))))
        low, high = (middle, high) if size < target else (low, middle)
    return [low, high]


def _ratios(samples: list[Sample]) -> Panel:
    names = list(dict.fromkeys(s.condition["network"] for s in samples))
    lines = []
    for i, size in enumerate(dict.fromkeys(s.condition["size"] for s in samples)):
        chosen = [s for s in samples if s.condition["size"] == size]
        values = np.array([s.values for s in chosen])
        x = np.arange(len(chosen)) + 0.2 * i - 0.1
        middle, low, high = np.median(values, 1), values.min(1), values.max(1)
        lines.append(Line(size, x, middle, low, high, style="points"))
    return Panel(
        "Training step", "", "seconds, ratio to Elman's", lines, marks={"Elman": 1.0}, ticks=names
    )


PARAMETERS = "parameters, share of the LSTM's"
SECONDS = "seconds of a training step, share of the LSTM's"


@Claim(
    "gru-cheaper",
    topic="Cost",
    statement="A GRU is cheaper than an LSTM.",
    said_by=(Source("Vanishing", "a GRU performs like an LSTM at a lower cost"),),
    why="It has three gates' worth of weights where an LSTM has four.",
    measured="Parameters and seconds of a training step at the same number of units. Whether it performs "
    "alike is another question, and needs training.",
    rule=Rule((Part(PARAMETERS, Exactly(at_most=0.8)), Part(SECONDS, Mean(below=1.0)))),
    refuted_by="As many parameters, or as many seconds.",
    lessons={
        "confirmed": "A GRU has {parameters:.0%} of an LSTM's parameters, and takes {seconds:.0%} of its "
        "time at 128 units.",
        "depends": "A GRU has {parameters:.0%} of an LSTM's parameters; that it saves time depends on its "
        "size ({seconds:.0%} at 128 units).",
        "refuted": "A GRU is no cheaper than an LSTM of the same width.",
    },
    published=("Cho et al. 2014; Chung et al. 2014 compare at equal parameters",),
).measured_by
def gru_cheaper(lab: Lab) -> Evidence:
    """Count and time."""
    xs = jax.random.normal(jax.random.key(0), (32, lab.choose(50, 100), _FEATURES))
    samples, shares = [], {}
    for units in (64, 128, 256):
        models = {name: _NETWORKS[name](units, nnx.Rngs(0)) for name in ("GRU", "LSTM")}
        taken = seconds_by_round(lab, {n: _training_step(m, xs) for n, m in models.items()})
        condition = {"units": f"{units} units"}
        share = _parameters(models["GRU"]) / _parameters(models["LSTM"])
        samples.append(Sample(PARAMETERS, condition, [share]))
        samples.append(Sample(SECONDS, condition, taken["GRU"] / taken["LSTM"]))
        shares[units] = (share, float(np.median(samples[-1].values)))
    times = [s for s in samples if s.quantity == SECONDS]
    values = np.array([s.values for s in times])
    line = Line("", range(3), np.median(values, 1), values.min(1), values.max(1), style="points")
    return Evidence(
        samples,
        [],
        [
            Panel(
                "GRU over LSTM",
                "",
                "seconds of a training step, share",
                [line],
                marks={"as long": 1.0, "parameters": shares[128][0]},
                ticks=[s.name for s in times],
            )
        ],
        facts={"parameters": shares[128][0], "seconds": shares[128][1]},
        settings={"networks": f"T = {xs.shape[1]}, B = 32, F = 32"},
    )


EXPONENT = "exponent of seconds in the length"


@Claim(
    "cost-in-length",
    topic="Cost",
    statement="Recurrent networks get costly out of proportion on very long sequences.",
    said_by=(Source("Vanishing", "costly to train, especially for very long sequences"),),
    why="Every step is computed after the one before, and all of them are kept for the gradient.",
    measured="Exponent of the seconds of a training step in the length, between 256 steps and sixteen times "
    "as many: of an LSTM and a GRU, and beside them of self-attention.",
    rule=Rule((Part(EXPONENT, Mean(above=1.1), where=(("kind", "recurrent"),)),)),
    refuted_by="Exponents not above 1.1: cost in proportion to the length.",
    lessons={
        "refuted": "The cost of a recurrent network is in proportion to the length (exponent {lstm:.2f} for "
        "an LSTM); it is self-attention whose cost grows faster ({attention:.2f}).",
        "confirmed": "The cost of a recurrent network grows faster than the length (exponent {lstm:.2f}).",
        "depends": "The exponent depends on the cell; for an LSTM it is {lstm:.2f}.",
        "undecided": "The exponent is {lstm:.2f} for an LSTM, and {attention:.2f} for self-attention.",
    },
    published=("attention costs T², recurrence T (Vaswani et al. 2017, Table 1)",),
).measured_by
def cost_in_length(lab: Lab) -> Evidence:
    """Time training steps at rising lengths."""
    lengths = np.array([256, 512, 1_024, lab.choose(2_048, 4_096)])
    makers: dict[str, Callable[[nnx.Rngs], Any]] = {
        "LSTM": lambda r: RNN(LSTMCell(_FEATURES, 32, rngs=r), time_major=True),
        "GRU": lambda r: RNN(GRUCell(_FEATURES, 32, rngs=r), time_major=True),
        "self-attention": lambda r: TransformerEncoder(_FEATURES, 32, depth=1, heads=1, rngs=r),
    }
    samples, lines = [], []
    for name, make in makers.items():
        model = make(nnx.Rngs(0))
        runs = {
            f"{length}": _training_step(model, jnp.ones((int(length), 2, _FEATURES)))
            for length in lengths
        }
        taken = np.array(list(seconds_by_round(lab, runs).values()))  # [lengths, rounds]
        slopes = np.polyfit(np.log(lengths), np.log(taken), 1)[0]
        kind = "attention" if name == "self-attention" else "recurrent"
        samples.append(Sample(EXPONENT, {"network": name, "kind": kind}, slopes))
        middle = 1e3 * np.median(taken, axis=1)
        lines.append(Line(name, lengths, middle, style="both"))
    means = [float(np.mean(s.values)) for s in samples]
    return Evidence(
        samples,
        [
            Check(
                "positive control",
                "the exponent of self-attention is above 1.1",
                means[2] > 1.1,
                f"{means[2]:.2f}",
            )
        ],
        [Panel("Training step", "length, steps", "milliseconds", lines, "log", "log")],
        facts={"lstm": means[0], "attention": means[2]},
        settings={"networks": "32 units, F = 32, B = 2"},
    )


RATE = "rate of a step, share of the machine's best matrix product"


@Claim(
    "memory-bound",
    topic="Cost",
    statement="An LSTM is bound by the memory's bandwidth, not by arithmetic.",
    said_by=(Source("Charu", "an LSTM needs high memory bandwidth and is bound by it"),),
    why="Each step reads all weights, and with one sequence uses each for two operations.",
    measured="Floating-point operations a second of an LSTM's forward pass at several batch sizes, relative "
    "to those of a large matrix product on the same machine; weights of 0.5 MB, which stay in the cache, and "
    "of 33 MB, which may not.",
    rule=Rule((Part(RATE, Mean(below=0.5)),)),
    refuted_by="Rates above half of the machine's best: everywhere to refute it, for some batches to make it "
    "depend.",
    lessons={
        "depends": "With one sequence an LSTM reaches {one:.0%} of the machine's arithmetic; with "
        "{many:.0f} sequences each weight is used {many:.0f} times as often and it reaches {large:.0%}. An "
        "accelerator's memory needs an accelerator to measure.",
        "confirmed": "At every batch size tried an LSTM reaches less than half of the machine's arithmetic: "
        "{one:.0%} with one sequence, {large:.0%} with {many:.0f}.",
        "refuted": "At every batch size tried an LSTM reaches more than half of the machine's arithmetic.",
    },
    published=(
        "intensity of the weights: B/2 FLOP a byte in float32 (Williams et al. 2009, roofline)",
    ),
).measured_by
def memory_bound(lab: Lab) -> Evidence:
    """Time forward passes and a matrix product."""
    batches = (1, 8, 64, 256)
    matrix = jnp.ones((1_024, 1_024))
    square = jax.jit(lambda a: a @ a)
    samples, lines = [], []
    for units, words in ((128, "weights of 0.5 MB"), (1_024, "weights of 33 MB")):
        runs: dict[str, Run] = {"matrix": lambda: square(matrix)}
        operations = {"matrix": 2 * 1_024**3}
        for batch in batches:
            model = RNN(LSTMCell(units, units, rngs=nnx.Rngs(0)), time_major=True)
            steps = max(4, (64 if units == 128 else 8) // max(1, batch // 64))
            xs = jnp.ones((steps, batch, units))
            program = jax.jit(lambda m, x: m(x)).lower(model, xs).compile()
            runs[f"{batch}"] = lambda p=program, m=model, x=xs: p(m, x)
            operations[f"{batch}"] = 2 * steps * batch * 4 * units * 2 * units
        taken = seconds_by_round(lab, runs)
        best = operations["matrix"] / taken["matrix"]
        shares = [operations[f"{b}"] / taken[f"{b}"] / best for b in batches]
        samples += [
            Sample(RATE, {"batch": f"{b} sequences", "size": words}, values)
            for b, values in zip(batches, shares, strict=True)
        ]
        lines.append(Line(words, batches, np.median(shares, axis=1), style="both"))
    median = [float(np.median(s.values)) for s in samples]
    return Evidence(
        samples,
        [],
        [
            Panel(
                "Forward pass of an LSTM",
                "sequences",
                "share of the best matrix product",
                lines,
                x_scale="log",
                marks={"half": 0.5},
            )
        ],
        facts={"one": median[0], "large": median[3], "many": batches[-1]},
        settings={"networks": "128 and 1,024 units, as many input features"},
    )
