"""Claims about what cost grows with: the length of sequences, and the batch on a machine's memory.

A record names its machine; another machine may give another verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn.cells import GRUCell, LSTMCell
from jaxrnn.claims.claim import Claim, Lab, Source
from jaxrnn.claims.evidence import Check, Evidence, Line, Panel, Sample
from jaxrnn.claims.rules import Exactly, Mean, Part, Rule
from jaxrnn.claims.timing import Run, call, memory, seconds_by_round, training_step
from jaxrnn.layers import RNN
from jaxrnn.models import TransformerEncoder

_FEATURES = 32

EXPONENT = "exponent of seconds in the length"
MEMORY_EXPONENT = "exponent of memory in the length"
_RECURRENT = (("kind", "recurrent"),)
_ABOVE = 1.1  # an exponent that counts as more than in proportion


@Claim(
    "cost-in-length",
    topic="Cost",
    statement="Recurrent networks get costly out of proportion on very long sequences.",
    said_by=(Source("Vanishing", "costly to train, especially for very long sequences"),),
    why="Every step is computed after the one before, and all of them are kept for the gradient.",
    measured="Exponents of the seconds and bytes of a training step in the length, between 256 steps and "
    "sixteen times as many: of an LSTM and a GRU, and beside them of self-attention.",
    rule=Rule(
        (
            Part(EXPONENT, Mean(above=_ABOVE), where=_RECURRENT),
            Part(MEMORY_EXPONENT, Exactly(at_least=_ABOVE), where=_RECURRENT),
        )
    ),
    refuted_by="Exponents not above 1.1: cost in proportion to the length.",
    lessons={
        "refuted": "The cost of a recurrent network is in proportion to the length (an LSTM's exponents are "
        "{lstm:.2f} for time and {lstm_memory:.2f} for memory); it is self-attention whose cost grows faster "
        "({attention:.2f} and {attention_memory:.2f}).",
        "confirmed": "The cost of a recurrent network grows faster than the length (exponent {lstm:.2f}).",
        "depends": "An LSTM's exponents are {lstm:.2f} for time and {lstm_memory:.2f} for memory.",
        "undecided": "An LSTM's exponents are {lstm:.2f} for time and {lstm_memory:.2f} for memory, "
        "self-attention's {attention:.2f} and {attention_memory:.2f}.",
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
    samples, seconds, megabytes = [], [], []
    for name, make in makers.items():
        model = make(nnx.Rngs(0))
        inputs = [jnp.ones((int(length), 2, _FEATURES)) for length in lengths]
        steps = [training_step(model, xs) for xs in inputs]
        pairs = zip(lengths, steps, inputs, strict=True)
        runs = {f"{length}": call(step, model, xs) for length, step, xs in pairs}
        taken = np.array(list(seconds_by_round(lab, runs).values()))  # [lengths, rounds]
        held = np.array([memory(step) for step in steps])
        kind = "attention" if name == "self-attention" else "recurrent"
        condition = {"network": name, "kind": kind}
        samples.append(Sample(EXPONENT, condition, _exponents(lengths, taken)))
        samples.append(Sample(MEMORY_EXPONENT, condition, _exponents(lengths, held)))
        seconds.append(Line(name, lengths, 1e3 * np.median(taken, axis=1), style="both"))
        megabytes.append(Line(name, lengths, held / 1e6, style="both"))
    found = {(s.quantity, s.condition["network"]): float(np.mean(s.values)) for s in samples}
    attention = found[EXPONENT, "self-attention"]
    return Evidence(
        samples,
        [
            Check(
                "positive control",
                "the exponent of self-attention's time is above 1.1",
                attention > _ABOVE,
                f"{attention:.2f}",
            )
        ],
        [
            Panel(
                "Time of a training step", "length, steps", "milliseconds", seconds, "log", "log"
            ),
            Panel("Memory of a training step", "length, steps", "MB", megabytes, "log", "log"),
        ],
        facts={
            "lstm": found[EXPONENT, "LSTM"],
            "lstm_memory": found[MEMORY_EXPONENT, "LSTM"],
            "attention": attention,
            "attention_memory": found[MEMORY_EXPONENT, "self-attention"],
        },
        settings={"networks": "32 units, F = 32, B = 2"},
    )


def _exponents(lengths: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Return the slopes of the log of a cost [lengths, ...] in the log of the length."""
    flat = np.log(cost).reshape(len(lengths), -1)
    return np.polyfit(np.log(lengths), flat, 1)[0]


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
