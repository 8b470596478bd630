"""Claims about memory: what a network can hold, what it learns to hold, and where it is held."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import sigmoid

from jaxrnn import analysis
from jaxrnn.cells import ElmanCell, LSTMCell
from jaxrnn.claims.claim import Claim, Lab, Source
from jaxrnn.claims.evidence import Check, Evidence, Line, Panel, Sample
from jaxrnn.claims.panels import strip
from jaxrnn.claims.rules import Exactly, Mean, Part, Rule, Solved
from jaxrnn.claims.runs import trained
from jaxrnn.experiments import NetworkConfig, RunConfig
from jaxrnn.training import FitConfig
from jaxrnn.unrolling import unroll

_CAPACITY = "Capacity and learning"
ACCURACY = "accuracy of weights set by hand"
_LONG = 10_000
_SEQUENCES = 64
_GAIN = 40.0  # of the sigmoids: at this slope a unit is 0 or 1 to 1e-8


def latch() -> ElmanCell:
    """Return a tanh unit with two stable states; an input of ± 3 sets it, an input of 0 leaves it."""
    cell = ElmanCell(1, 1, rngs=nnx.Rngs(0))
    cell.recurrent_kernel[...] = jnp.full((1, 1), 2.0)
    cell.kernel[...] = jnp.full((1, 1), 2.0)
    cell.bias[...] = jnp.zeros(1)
    return cell


def parity() -> ElmanCell:
    """Return two sigmoid units, OR and AND of the input with the parity before, which is OR − AND."""
    cell = ElmanCell(1, 2, activation_fn=sigmoid, rngs=nnx.Rngs(0))
    cell.recurrent_kernel[...] = _GAIN * jnp.array([[1.0, 1.0], [-1.0, -1.0]])
    cell.kernel[...] = jnp.full((1, 2), _GAIN)
    cell.bias[...] = -_GAIN * jnp.array([0.5, 1.5])
    return cell


def _by_hand(key: Any) -> dict[str, float]:
    """Return the accuracy of both networks on sequences of 10,000 steps."""
    bits = jax.random.bernoulli(key, 0.5, (_LONG, _SEQUENCES, 1)).astype(jnp.float32)
    first = jnp.zeros_like(bits).at[0].set(6 * bits[0] - 3)
    held = unroll(latch(), first).outputs[-1, :, 0] > 0
    start = jnp.zeros((_SEQUENCES, 2))
    last = unroll(parity(), bits, carry=start).outputs[-1]
    odd = bits.sum(axis=0)[:, 0] % 2
    return {
        "latch": float(jnp.mean(held == (bits[0, :, 0] > 0))),
        "parity": float(jnp.mean((last[:, 0] - last[:, 1] > 0.5) == (odd > 0.5))),
    }


@Claim(
    "incapable",
    topic=_CAPACITY,
    statement="Plain recurrent networks are incapable of holding anything over long sequences.",
    said_by=(Source("Charu", "completely incapable of long dependencies"),),
    why="Trained ones often forget.",
    measured="Accuracy of networks whose weights are set by hand on 10,000 steps: one tanh unit that holds "
    "the first input, and two sigmoid units that track the parity of all inputs.",
    rule=Rule((Part(ACCURACY, Exactly(at_most=0.6)),), universal=True),
    refuted_by="One plain network that is right after thousands of steps.",
    lessons={
        "refuted": "One tanh unit holds a bit for ten thousand steps ({latch:.0%} right), and two sigmoid "
        "units track a parity as long ({parity:.0%}): the capacity is there.",
        "confirmed": "Weights set by hand do not hold a bit either.",
    },
    published=("a latch of one tanh unit, Bengio et al. 1994",),
).measured_by
def incapable(lab: Lab) -> Evidence:
    """Run the networks that are set by hand."""
    found = [_by_hand(key) for key in lab.keys]
    samples = [
        Sample(ACCURACY, {"network": name}, [each[name] for each in found], lab.seeds)
        for name in ("latch", "parity")
    ]
    weak = latch()
    weak.recurrent_kernel[...] = jnp.full((1, 1), 0.9)
    pulse = jnp.zeros((_LONG, 1, 1)).at[0].set(3.0)
    left = float(jnp.abs(unroll(weak, pulse).outputs[-1]).max())
    return Evidence(
        samples,
        [
            Check(
                "negative control",
                "with a weight of 0.9 the tanh unit has one stable state, and forgets",
                left < 1e-6,
                f"{left:.1e} left",
            )
        ],
        [strip(samples, "network", "After 10,000 steps", {"chance": 0.5})],
        facts={"latch": np.mean(samples[0].values), "parity": np.mean(samples[1].values)},
        settings={"networks": f"weights set by hand, {_SEQUENCES} sequences a seed, T = 10,000"},
    )


SOLVED = "runs that solve parity"


@Claim(
    "can-hold-cannot-learn",
    topic=_CAPACITY,
    statement="A recurrent network has the capacity for a task, and training does not find it.",
    said_by=(
        Source("Issues", "training sticks although the network could represent the solution"),
    ),
    why="What weights can do and what gradients lead to are two things.",
    measured="Share of runs that solve the parity of strings longer than those trained on: weights set by "
    "hand, and an Elman network trained on strings of up to 40 letters.",
    rule=Rule((Part(SOLVED, Solved(more=False), ("weights", "set by hand")),)),
    refuted_by="Trained networks that solve it about as often as weights set by hand.",
    lessons={
        "confirmed": "Two units suffice for parity, and {share:.0%} of the trained networks with 32 find it.",
        "undecided": "Two units suffice for parity; {share:.0%} of the trained networks with 32 found it.",
        "refuted": "Trained networks solve parity as often as weights set by hand.",
    },
    published=("best of 10 runs solves parity, Delétang et al. 2023",),
).measured_by
def can_hold_cannot_learn(lab: Lab) -> Evidence:
    """Train on parity."""
    steps = lab.choose(400, 2_000)
    fit = FitConfig(
        steps=steps,
        every=steps,
        batch_size=32,
        learning_rate=3e-3,
        seeds=len(lab.seeds),
        seed=lab.seeds[0],
    )
    network = NetworkConfig("elman-tanh", 32)
    run = RunConfig("parity", {"tested": 60}, network=network, fit=fit, probes=False)
    scores = np.asarray(trained(lab, "parity", run).test_score)
    easy = dataclasses.replace(run, settings={"longest": 3, "tested": 4})
    # Of strings as long as those trained on: the control is of learning, not of generalisation.
    short = np.asarray(trained(lab, "parity-short", easy).history[-1]["valid_accuracy"])
    by_hand = [_by_hand(key)["parity"] for key in lab.keys]
    samples = [
        Sample(SOLVED, {"weights": name}, np.asarray(values) >= 0.95, lab.seeds)
        for name, values in (("set by hand", by_hand), ("trained", scores))
    ]
    shown = [
        Sample("accuracy", {"weights": name}, values, lab.seeds)
        for name, values in (
            ("set by hand", by_hand),
            ("trained", scores),
            ("trained, short", short),
        )
    ]
    return Evidence(
        samples,
        [
            Check(
                "positive control",
                "most networks learn the parity of three letters",
                np.mean(short >= 0.95) > 0.5,
                f"{np.mean(short >= 0.95):.0%}",
            )
        ],
        [strip(shown, "weights", "Parity of strings longer than in training", {"chance": 0.5})],
        facts={"share": np.mean(scores >= 0.95)},
        settings={"trained": f"Elman, 32 units, Adam 0.003, {steps} steps of 32 strings"},
    )


DIFFERENCE = "slope of the block ∂c/∂c less that of ∂h/∂h, nats a step"
CAPACITY = "memory capacity of c less that of h, steps"


@Claim(
    "cell-is-long-memory",
    topic="Where an LSTM remembers",
    statement="The cell state of an LSTM is its long memory, the hidden state its short one.",
    said_by=(Source("Charu", "c is the long-term memory, h the short-term memory"),),
    why="c is handed on by the forget gate alone, h is made anew at every step.",
    measured="Whether the block ∂c(T)/∂c(t) of the BPTT product fades more slowly with the lag than "
    "∂h(T)/∂h(t), and how many past inputs can be read from c and from h.",
    rule=Rule((Part(DIFFERENCE, Mean(above=0.01)), Part(CAPACITY, Mean(above=1.0)))),
    refuted_by="Blocks that fade alike, and states from which the same inputs can be read.",
    lessons={
        "confirmed": "An LSTM's c keeps more and for longer than its h.",
        "refuted": "Both blocks fade alike ({slope:+.4f} nats a step between them), for h is read from c at "
        "every step, and as much can be read from either ({capacity:+.1f} steps).",
        "depends": "Both answers differ: the blocks' slopes by {slope:+.4f} nats a step, the capacities by "
        "{capacity:+.1f} steps.",
        "undecided": "Between the blocks' slopes lie {slope:+.4f} nats a step, between the capacities "
        "{capacity:+.1f} steps.",
    },
).measured_by
def cell_is_long_memory(lab: Lab) -> Evidence:
    """Compare the blocks of the BPTT product, and what can be read from c and from h."""
    units, lags = 32, np.arange(10, 101, 10)
    slopes, capacities, curves = [], [], []
    for seed, key in zip(lab.seeds, lab.keys, strict=True):
        cell = LSTMCell(1, units, bias_init=LSTMCell.forget_bias(2.0), rngs=nnx.Rngs(seed))
        path = analysis.trace(cell, jax.random.normal(key, (120, 1)))
        logs = _block_norms(np.asarray(analysis.jacobians(cell, path), float), lags, units)
        curves.append(logs)
        slopes.append(np.polyfit(lags, logs[0] - logs[1], 1)[0])
        xs = jax.random.uniform(key, (lab.choose(2_000, 4_000), 1), minval=-1.0)
        c, h = (_capacity(cell, xs, part) for part in (0, 1))
        capacities.append(c - h)
    middle = np.median(np.array(curves), axis=0)
    return Evidence(
        [
            Sample(DIFFERENCE, {"cell": "LSTM"}, slopes, lab.seeds),
            Sample(CAPACITY, {"cell": "LSTM"}, capacities, lab.seeds),
        ],
        [],
        [
            Panel(
                "Blocks of the BPTT product",
                "lag, steps",
                "log norm, nats",
                [
                    Line(name, lags, values)
                    for name, values in zip(("∂c/∂c", "∂h/∂h", "∂h/∂c"), middle, strict=True)
                ],
            )
        ],
        facts={"slope": np.mean(slopes), "capacity": np.mean(capacities)},
        settings={"networks": "fresh LSTM, forget bias 2, H = 32, one input"},
    )


def _block_norms(jacobians: np.ndarray, lags: np.ndarray, units: int) -> np.ndarray:
    """Return the log norms of ∂c/∂c, ∂h/∂h and ∂h/∂c over the last k steps, for each lag [3, K]."""
    c, h = slice(0, units), slice(units, 2 * units)
    product, log_scale, found = np.eye(2 * units), 0.0, {}
    for k, jacobian in enumerate(jacobians[::-1], 1):
        product = product @ jacobian
        size = np.linalg.norm(product)
        product, log_scale = product / size, log_scale + np.log(size)
        if k in lags:
            blocks = (product[c, c], product[h, h], product[h, c])
            found[k] = [log_scale + np.log(np.linalg.norm(block)) for block in blocks]
    return np.array([found[lag] for lag in lags]).T


def _capacity(cell: Any, xs: Any, part: int) -> float:
    """Return the memory capacity of one part of the carry: of a trajectory that holds this part alone."""
    path = analysis.trace(cell, xs)
    alone = dataclasses.replace(path, carries=path.carries[part])
    return analysis.memory_capacity(alone, lags=60, washout=100).total
