"""Claims about cost: seconds, parameters, operations and memory of one network beside another.

At the same number of units and at the same number of parameters are two questions, and the articles ask the
first. A record names its machine; another machine may give another verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxrnn.cells import ElmanCell, GRUCell, LSTMCell
from jaxrnn.claims.claim import Claim, Lab, Source
from jaxrnn.claims.evidence import Check, Evidence, Line, Panel, Sample
from jaxrnn.claims.rules import Exactly, Mean, Part, Rule
from jaxrnn.claims.timing import (
    call,
    forward_pass,
    memory,
    operations,
    parameters,
    seconds_by_round,
    training_step,
)
from jaxrnn.layers import RNN, Bidirectional, Stack
from jaxrnn.models import MultiDimensionalLSTM

_FEATURES = 32

SECONDS_RATIO = "seconds of a training step, ratio to the plain network's"
TRAINING_MEMORY = "memory of a training step, ratio to the plain network's"
TESTING_MEMORY = "memory of a forward pass, ratio to the plain network's"
OPERATIONS = "operations of a time step, ratio to the plain network's"

_COSTS_MORE = Rule(
    (
        Part(SECONDS_RATIO, Mean(above=1.25)),
        Part(TRAINING_MEMORY, Exactly(at_least=1.25)),
        Part(TESTING_MEMORY, Exactly(at_least=1.25)),
        Part(OPERATIONS, Exactly(at_least=1.25)),
    )
)

Make = Callable[[int, nnx.Rngs], Any]
"""Makes a network of so many units."""

_NETWORKS: dict[str, Make] = {
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
    statement="LSTM, GRU, bidirectional and deep networks cost more than a plain one.",
    said_by=(
        Source("Charu", "an LSTM is slower because of its more parameters, and takes more memory"),
        Source("Vanishing", "gated cells are costly"),
        Source("Issues", "bidirectional networks cost more"),
    ),
    why="They have several times the weights of a plain network of the same width.",
    measured="Seconds and bytes of a training step, bytes of a forward pass and operations of a time step "
    "against a plain tanh network's: at the same number of units and at the same number of parameters.",
    rule=_COSTS_MORE,
    refuted_by="Ratios not above 1.25: everywhere to refute it, at one of the two sizes to make it depend.",
    lessons={
        "confirmed": "At the same number of units and at the same number of parameters all of them cost "
        "more; an LSTM takes {lstm_units:.1f} and {lstm_parameters:.1f} times as long.",
        "depends": "An LSTM takes {lstm_units:.1f} times as long as a plain network of the same width, with "
        "{lstm_operations:.1f} times the operations and {lstm_memory:.1f} times the memory; with as many "
        "parameters it takes {lstm_parameters:.1f} times as long, with {lstm_operations_parameters:.1f} "
        "times the operations.",
        "refuted": "None of them costs much more than a plain network.",
    },
).measured_by
def costs_more(lab: Lab) -> Evidence:
    """Time and count networks beside a plain one."""
    xs = jax.random.normal(jax.random.key(0), (32, lab.choose(50, 100), _FEATURES))
    samples, again = _against_plain(lab, "Elman", _NETWORKS, 128, xs)
    found = {(s.quantity, *s.condition.values()): float(np.median(s.values)) for s in samples}
    return Evidence(
        samples,
        [again],
        [_ratios(samples, quantity) for quantity in (SECONDS_RATIO, TRAINING_MEMORY)],
        facts={
            "lstm_units": found[SECONDS_RATIO, "LSTM", "the same units"],
            "lstm_parameters": found[SECONDS_RATIO, "LSTM", "the same parameters"],
            "lstm_memory": found[TRAINING_MEMORY, "LSTM", "the same units"],
            "lstm_operations": found[OPERATIONS, "LSTM", "the same units"],
            "lstm_operations_parameters": found[OPERATIONS, "LSTM", "the same parameters"],
        },
        settings={
            "networks": f"128 units or as many parameters, T = {xs.shape[1]}, B = 32, F = 32"
        },
    )


_IMAGES: dict[str, Make] = {
    "LSTM, pixel by pixel": lambda h, r: _PixelByPixel(RNN(LSTMCell(_FEATURES, h, rngs=r))),
    "multi-dimensional LSTM": lambda h, r: MultiDimensionalLSTM(_FEATURES, h, rngs=r),
}


class _PixelByPixel(nnx.Module):
    """A layer that reads the pixels of images [*B, rows, columns, F] one after another."""

    def __init__(self, layer: RNN):
        self.layer = layer

    def __call__(self, images: Any) -> Any:
        """Return the outputs [*B, rows, columns, Y]."""
        *batch, rows, columns, features = images.shape
        read = self.layer(images.reshape(*batch, rows * columns, features))
        return read.reshape(*batch, rows, columns, read.shape[-1])


@Claim(
    "mdrnn-cost",
    topic="Cost",
    statement="A multi-dimensional recurrent network costs more than a one-dimensional one.",
    said_by=(Source("Issues", "multi-dimensional networks have a high computational cost"),),
    why="It reads an image from four corners, each step with two pasts and one more gate.",
    measured="Seconds and bytes of a training step, bytes of a forward pass and operations a pixel of a "
    "multi-dimensional LSTM on images, against those of an LSTM that reads the pixels one after another: at "
    "the same number of units and at the same number of parameters.",
    rule=_COSTS_MORE,
    refuted_by="Ratios not above 1.25: everywhere to refute it, at one of the two sizes to make it depend.",
    lessons={
        "confirmed": "A multi-dimensional LSTM costs more than one that reads pixel by pixel: with as many "
        "units {units:.1f} times the seconds, with as many parameters {parameters:.1f} times.",
        "depends": "With as many units a multi-dimensional LSTM takes {units:.1f} times as long as one that "
        "reads pixel by pixel; with as many parameters {parameters:.1f} times as long, with {operations:.1f} "
        "times the operations and {memory:.1f} times the memory.",
        "refuted": "A multi-dimensional LSTM costs no more than one that reads pixel by pixel.",
    },
    published=("four directions, two forget gates (Graves et al. 2007)",),
).measured_by
def mdrnn_cost(lab: Lab) -> Evidence:
    """Time and count both networks on images."""
    side = lab.choose(14, 28)
    images = jax.random.normal(jax.random.key(0), (8, side, side, _FEATURES))
    samples, again = _against_plain(lab, "LSTM, pixel by pixel", _IMAGES, 32, images)
    found = {(s.quantity, s.condition["size"]): float(np.median(s.values)) for s in samples}
    return Evidence(
        samples,
        [again],
        [_sizes(samples)],
        facts={
            "units": found[SECONDS_RATIO, "the same units"],
            "parameters": found[SECONDS_RATIO, "the same parameters"],
            "operations": found[OPERATIONS, "the same parameters"],
            "memory": found[TRAINING_MEMORY, "the same parameters"],
        },
        settings={
            "networks": f"32 units or as many parameters, {side} × {side} pixels, B = 8, F = 32"
        },
    )


def _against_plain(
    lab: Lab, plain: str, networks: dict[str, Make], units: int, xs: Any
) -> tuple[list[Sample], Check]:
    """Compare networks with the plain one among them, at its units and at its number of parameters.

    The plain one also stands against itself: the times of two programs that are the same must agree.
    """
    baseline = networks[plain](units, nnx.Rngs(0))
    target = parameters(baseline)
    one_step = xs[(slice(1),) * (xs.ndim - 1)]
    samples, off = [], []
    for size in ("the same units", "the same parameters"):
        models = {plain: baseline, "the plain one again": baseline}
        for name, make in networks.items():
            if name != plain:
                widths = _matched(make, target) if size == "the same parameters" else [units]
                models[name] = min(
                    (make(width, nnx.Rngs(0)) for width in widths),
                    key=lambda model: abs(parameters(model) - target),
                )
        training = {name: training_step(model, xs) for name, model in models.items()}
        testing = {name: forward_pass(model, xs) for name, model in models.items()}
        counted = {name: operations(forward_pass(m, one_step)) for name, m in models.items()}
        taken = seconds_by_round(lab, {n: call(training[n], m, xs) for n, m in models.items()})
        off.append(abs(float(np.median(taken["the plain one again"] / taken[plain])) - 1))
        for name in models:
            if name not in (plain, "the plain one again"):
                condition = {"network": name, "size": size}
                samples += [
                    Sample(SECONDS_RATIO, condition, taken[name] / taken[plain]),
                    Sample(TRAINING_MEMORY, condition, [_over(memory, training, name, plain)]),
                    Sample(TESTING_MEMORY, condition, [_over(memory, testing, name, plain)]),
                    Sample(OPERATIONS, condition, [counted[name] / counted[plain]]),
                ]
    return samples, Check(
        "negative control",
        "the same network, timed as another, takes as long",
        max(off) < 0.15,
        f"off by {max(off):.0%}",
    )


def _over(of: Callable[[Any], float], programs: dict[str, Any], name: str, plain: str) -> float:
    return of(programs[name]) / of(programs[plain])


def _matched(make: Make, target: int) -> list[int]:
    """Return the two widths between which the number of parameters reaches a target, by bisection."""
    low, high = 1, 256
    while high - low > 1:
        middle = (low + high) // 2
        size = parameters(jax.eval_shape(lambda h=middle: make(h, nnx.Rngs(0))))
        low, high = (middle, high) if size < target else (low, middle)
    return [low, high]


def _ratios(samples: list[Sample], quantity: str) -> Panel:
    """Draw one quantity of all networks, a colour a size."""
    samples = [s for s in samples if s.quantity == quantity]
    names = list(dict.fromkeys(s.condition["network"] for s in samples))
    lines = []
    for i, size in enumerate(dict.fromkeys(s.condition["size"] for s in samples)):
        chosen = [s for s in samples if s.condition["size"] == size]
        x = np.arange(len(chosen)) + 0.2 * i - 0.1
        lines.append(_medians(size, x, chosen))
    what, _, ratio = quantity.partition(", ")
    return Panel(what.capitalize(), "", ratio, lines, marks={"plain": 1.0}, ticks=names)


def _sizes(samples: list[Sample]) -> Panel:
    """Draw all quantities of one network, a colour a size."""
    quantities = list(dict.fromkeys(s.quantity for s in samples))
    lines = []
    for i, size in enumerate(dict.fromkeys(s.condition["size"] for s in samples)):
        chosen = [s for s in samples if s.condition["size"] == size]
        lines.append(_medians(size, np.arange(len(chosen)) + 0.2 * i - 0.1, chosen))
    ticks = [quantity.partition(", ")[0].replace(" of ", "\nof ") for quantity in quantities]
    title = "Multi-dimensional LSTM"
    return Panel(title, "", "ratio to pixel by pixel", lines, marks={"plain": 1.0}, ticks=ticks)


def _medians(label: str, x: Any, samples: list[Sample]) -> Line:
    """Return the medians of samples, with bands from the smallest to the largest value."""
    values = [np.asarray(s.values) for s in samples]
    middle, low, high = ([f(each) for each in values] for f in (np.median, np.min, np.max))
    return Line(label, x, middle, low, high, style="points")


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
        taken = seconds_by_round(
            lab, {n: call(training_step(m, xs), m, xs) for n, m in models.items()}
        )
        condition = {"units": f"{units} units"}
        share = parameters(models["GRU"]) / parameters(models["LSTM"])
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
