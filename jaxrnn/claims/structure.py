"""Claims about structure: whether time can be parallel, and what recurrent layers can be stacked with.

Parallel time is counted, not timed: the longest chain of dependent operations bounds every machine. Depth is
asked of fresh stacks, as vanishing in time is asked of fresh cells. Whether recurrent layers and others learn
together is asked by training them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn.cells import ElmanCell, GRUCell, LRUCell
from jaxrnn.claims.claim import Claim, Lab, Source
from jaxrnn.claims.depth import sequential_depth
from jaxrnn.claims.evidence import Check, Evidence, Line, Panel, Sample
from jaxrnn.claims.panels import strip
from jaxrnn.claims.rules import Exactly, Mean, Part, Rule
from jaxrnn.claims.runs import fitted
from jaxrnn.layers import RNN, Stack
from jaxrnn.models import TCN, EncoderClassifier, SequenceEncoder, TransformerEncoder
from jaxrnn.tasks import load_task
from jaxrnn.training import FitConfig
from jaxrnn.unrolling import Associative, Newton, Scan, unroll

SHARE = "sequential depth, share of that of one step after the other"


@Claim(
    "no-parallelism",
    topic="Parallel time",
    statement="Recurrence can't be parallelised over time: each step must wait for the one before.",
    said_by=(Source("OpenGenus", "the steps depend on each other, so training can't be parallel"),),
    why="Step t needs the state of step t − 1, as it is written down.",
    measured="The longest chain of dependent operations of the whole unrolling, against that of `Scan`: a "
    "linear recurrence by an associative scan, a GRU and a chaotic tanh network by Newton's method over all "
    "steps.",
    rule=Rule((Part(SHARE, Exactly(at_least=0.5)),), universal=True),
    refuted_by="One recurrence whose states come out right in less than half of the depth.",
    lessons={
        "refuted": "A linear recurrence takes {lru:.1%} of the sequential depth. By Newton's method a GRU "
        "takes {gru:.1%}, and a chaotic tanh network needs {chaos:.0f} iterations for {steps:.0f} steps.",
        "confirmed": "No recurrence tried could be computed in less than half of the depth.",
    },
    published=("DEER, Lim et al. 2024; ELK, Gonzalez et al. 2024; S5, Smith et al. 2023",),
).measured_by
def no_parallelism(lab: Lab) -> Evidence:
    """Count depths, and compare results."""
    steps, units = lab.choose(512, 1_024), 32
    xs = jax.random.normal(jax.random.key(0), (steps, units))
    chaotic = ElmanCell(units, units, rngs=nnx.Rngs(0))
    chaotic.recurrent_kernel[...] *= 3.0
    cases = {
        "LRU, associative scan": (LRUCell(units, units, rngs=nnx.Rngs(0)), Associative()),
        "GRU, Newton": (GRUCell(units, units, rngs=nnx.Rngs(0)), Newton()),
        "chaotic tanh, Newton": (chaotic, Newton(max_iters=steps)),
    }
    found = {
        name: _against_the_loop(cell, method, 0.1 * xs if cell is chaotic else xs)
        for name, (cell, method) in cases.items()
    }
    lru, gru, chaos = found.values()
    shares = [one.share for one in found.values()]
    samples = [Sample(SHARE, {"recurrence": name}, [one.share]) for name, one in found.items()]
    return Evidence(
        samples,
        [
            Check(
                "positive control",
                "the parallel methods give what the loop gives, where nothing is chaotic",
                max(lru.error, gru.error) < 1e-4,
                ", ".join(f"{name} {one.error:.1e}" for name, one in found.items()),
            )
        ],
        [
            Panel(
                f"Sequential depth at T = {steps:,}",
                "",
                "share of the loop's",
                [Line("", range(len(found)), shares, style="points")],
                y_scale="log",
                marks={"the loop": 1.0},
                ticks=list(found),
            )
        ],
        facts={
            "lru": lru.share,
            "gru": gru.share,
            "chaos": chaos.iterations,
            "steps": steps,
        },
        settings={"networks": f"H = {units}, T = {steps}, float32"},
    )


class _Parallel(NamedTuple):
    """A parallel method beside the loop: depth as a share of the loop's, largest error, iterations."""

    share: float
    error: float
    iterations: int


def _against_the_loop(cell: Any, method: Any, xs: Any) -> _Parallel:
    found, plain = unroll(cell, xs, method=method), unroll(cell, xs, method=Scan())
    iterations = 1 if found.convergence is None else int(found.convergence.iterations)

    def depth(how: Any) -> int:
        return sequential_depth(
            lambda cell, xs: unroll(cell, xs, method=how).outputs, cell, xs, rounds=iterations
        )

    error = float(jnp.abs(found.outputs - plain.outputs).max())
    return _Parallel(depth(method) / depth(Scan()), error, iterations)


LAYERS = "slope over layers, nats a layer"
_DEPTH = 8
_LOST = float(np.log(0.01) / _DEPTH)


@Claim(
    "no-deep-stacks",
    topic="Depth",
    statement="Recurrent layers can't be stacked into deep networks.",
    said_by=(Source("OpenGenus", "recurrent networks can't be stacked into very deep models"),),
    why="The gradient goes through every layer as it goes through every step, and vanishes twice.",
    measured="Slope of the log norm of the gradient of the recurrent weights from the top to the bottom of "
    "eight layers: plain, and with residual connections and layer norm, tanh and ReLU.",
    rule=Rule((Part(LAYERS, Mean(below=_LOST)),)),
    refuted_by="Stacks whose lowest layer gets more than 1 % of the top layer's gradient.",
    lessons={
        "confirmed": "The lowest of eight recurrent layers gets less than 1 % of the gradient.",
        "depends": "Whether the lowest of eight layers gets a gradient depends on how they are stacked: "
        "{plain:.2f} nats a layer plain, {residual:.2f} with residual connections and norms (tanh).",
        "refuted": "Eight recurrent layers pass the gradient down: {plain:.2f} nats a layer plain, "
        "{residual:.2f} with residual connections and norms (tanh), where a loss of 99 % were "
        "{lost:.2f}.",
    },
    published=("stacks of 8 LSTM layers with residual connections, Wu et al. 2016",),
).measured_by
def no_deep_stacks(lab: Lab) -> Evidence:
    """Compare the gradients of the layers of fresh stacks."""
    samples, lines = [], []
    for activation, phi in (("tanh", jnp.tanh), ("ReLU", jax.nn.relu)):
        for form in ("plain", "residual and norm"):
            curves = [
                _gradient_by_layer(seed, key, phi, form != "plain")
                for seed, key in zip(lab.seeds, lab.keys, strict=True)
            ]
            slopes = [np.polyfit(np.arange(_DEPTH), curve, 1)[0] for curve in curves]
            samples.append(
                Sample(LAYERS, {"activation": activation, "stack": form}, slopes, lab.seeds)
            )
            median = np.median(np.array(curves), axis=0)
            lines.append(Line(f"{activation}, {form}", range(_DEPTH), median - median[0]))
    means = [float(np.mean(s.values)) for s in samples]
    return Evidence(
        samples,
        [],
        [
            Panel(
                "Gradient of the recurrent weights",
                "layers below the top",
                "log norm, nats, relative to the top",
                lines,
                marks={"1 %": float(np.log(0.01))},
            )
        ],
        facts={"plain": means[0], "residual": means[1], "lost": _LOST},
        settings={"networks": "8 Elman layers, 32 units, T = 50, inputs N(0, 1), last output"},
    )


def _gradient_by_layer(seed: int, key: Any, phi: Any, residual: bool) -> np.ndarray:
    """Return the log norms of the recurrent weights' gradients, from the top layer to the bottom."""
    rngs = nnx.Rngs(seed)
    layers = [RNN(ElmanCell(32, 32, activation_fn=phi, rngs=rngs)) for _ in range(_DEPTH)]
    norms = [nnx.LayerNorm(32, rngs=rngs) for _ in range(_DEPTH)] if residual else None
    stack = Stack(layers, residual=residual, norms=norms)
    xs, read = jax.random.normal(key, (4, 50, 32)), jax.random.normal(key, (32,))
    gradient = jax.grad(lambda stack: (stack(xs)[:, -1] @ read).mean())(stack)
    sizes = [float(jnp.linalg.norm(layer.cell.recurrent_kernel[...])) for layer in gradient.layers]
    return np.log(np.array(sizes[::-1]))


ACCURACY = "test accuracy on digits"
_WIDTH = 32


class _Chain(SequenceEncoder):
    """Parts one above the other, each a layer or an encoder [T, *B, F] -> [T, *B, Y]."""

    def __init__(self, *parts: Any, in_features: int):
        self.parts = nnx.data(list(parts))
        self.in_features, self.out_features = in_features, _WIDTH

    def encode(self, xs: Any, seq_lengths: Any, dropout_key: Any) -> Any:
        """Return what the highest part makes of the sequences."""
        del seq_lengths, dropout_key  # digits are of one length, and nothing is dropped
        for part in self.parts:
            xs = part(xs, time_major=True) if isinstance(part, RNN) else part(xs)
        return xs


def _convolution(features: int, rngs: nnx.Rngs) -> Any:
    return TCN(features, _WIDTH, depth=1, rngs=rngs)


def _recurrence(features: int, rngs: nnx.Rngs) -> Any:
    return RNN(GRUCell(features, _WIDTH, rngs=rngs))


def _attention(features: int, rngs: nnx.Rngs) -> Any:
    return TransformerEncoder(features, _WIDTH, depth=1, heads=4, causal=True, rngs=rngs)


_CHAINS = {
    "convolution below a GRU": (_convolution, _recurrence),
    "GRU below attention": (_recurrence, _attention),
    "attention below a GRU": (_attention, _recurrence),
}


@Claim(
    "no-other-models",
    topic="Depth",
    statement="Recurrent layers can't be combined with other kinds of models.",
    said_by=(Source("OpenGenus", "recurrent networks can't be stacked with other models"),),
    why="Gradients that vanish in the recurrent part do not reach what lies below it.",
    measured="Accuracy on digits, read pixel by pixel, of a convolution below a GRU, and of a layer of "
    "attention below and above one, all trained together.",
    rule=Rule((Part(ACCURACY, Mean(below=0.5)),), universal=True),
    refuted_by="One combination that learns: with more than half of the digits right, where chance is a "
    "tenth.",
    lessons={
        "refuted": "A convolution below a GRU learns to read {convolution:.1%} of the digits, a GRU below "
        "attention {attention:.1%}; a GRU alone {alone:.1%} at the same number of steps.",
        "confirmed": "No combination of recurrent and other layers learns.",
        "depends": "Some combinations of recurrent and other layers learn, and some don't.",
    },
    published=("convolution, LSTM and dense layers for speech, CLDNN, Sainath et al. 2015",),
).measured_by
def no_other_models(lab: Lab) -> Evidence:
    """Train chains of layers of two kinds."""
    task = load_task("digits")
    steps = lab.choose(300, 600)
    fit = FitConfig(
        steps=steps, every=steps, learning_rate=0.005, seeds=len(lab.seeds), seed=lab.seeds[0]
    )

    def scores_of(label: str, parts: tuple[Any, ...]) -> np.ndarray:
        def make(rngs: nnx.Rngs) -> Any:
            features, made = task.in_features, []
            for part in parts:
                made.append(part(features, rngs))
                features = _WIDTH
            chain = _Chain(*made, in_features=task.in_features)
            return EncoderClassifier(chain, task.outputs, rngs=rngs)

        return np.asarray(fitted(lab, label.replace(" ", "-"), make, task, fit).test_score)

    found = {label: scores_of(label, parts) for label, parts in _CHAINS.items()}
    alone = scores_of("GRU alone", (_recurrence,))
    samples = [
        Sample(ACCURACY, {"network": name}, values, lab.seeds) for name, values in found.items()
    ]
    shown = [*samples, Sample(ACCURACY, {"network": "GRU alone"}, alone, lab.seeds)]
    return Evidence(
        samples,
        [
            Check(
                "positive control",
                "a GRU alone learns the task",
                np.mean(alone) > 0.5,
                f"{np.mean(alone):.1%}",
            )
        ],
        [strip(shown, "network", "Digits, pixel by pixel", {"chance": task.chance})],
        facts={
            "convolution": np.mean(found["convolution below a GRU"]),
            "attention": np.mean(found["GRU below attention"]),
            "alone": np.mean(alone),
        },
        settings={"networks": f"{_WIDTH} features, Adam 0.005, {steps:,} steps of 32 digits"},
    )
