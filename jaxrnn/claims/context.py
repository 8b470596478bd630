"""Claims about what enters a step: the input and the output before, and the context of attention.

A step uses an array if its derivative by it is not zero: where there is no path, the derivative is exactly
zero, whatever the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn.cells import ElmanCell, GRUCell, JordanCell, LSTMCell
from jaxrnn.claims.claim import Claim, Lab, Source
from jaxrnn.claims.evidence import Evidence, Line, Panel, Sample
from jaxrnn.claims.rules import Exactly, Part, Rule
from jaxrnn.layers import RNN
from jaxrnn.models import (
    AdditiveAttention,
    Embedding,
    EncoderDecoder,
    SequenceLabeller,
    TransformerEncoder,
    streaming,
)
from jaxrnn.unrolling import unroll

INFLUENCE = "influence, share of the last input's"


@Claim(
    "input-is-two-steps",
    topic="What a step sees",
    statement="A recurrent network works on two inputs: the present one and the one before.",
    said_by=(Source("Charu", "its inputs are the present and the recent past, x(t) and x(t − 1)"),),
    why="Drawings of a network unrolled show one arrow from each step to the next.",
    measured="Norm of the derivative of the last state by the input of k steps ago, relative to the last "
    "input's, in fresh networks.",
    rule=Rule((Part(INFLUENCE, Exactly(at_most=0.0)),)),
    refuted_by="Influence of an input that is more than one step old.",
    lessons={
        "refuted": "Older inputs count: in a fresh LSTM the input of ten steps ago has {lstm:.2g} of the "
        "last one's influence, in a tanh network {tanh:.2g}.",
        "confirmed": "Inputs that are more than one step old have no influence.",
        "depends": "In some networks older inputs count.",
    },
).measured_by
def input_is_two_steps(lab: Lab) -> Evidence:
    """Differentiate the last state by older inputs."""
    lags = (2, 5, 10)
    cells: dict[str, Callable[[nnx.Rngs], Any]] = {
        "Elman, tanh": lambda rngs: ElmanCell(4, 32, rngs=rngs),
        "GRU": lambda rngs: GRUCell(4, 32, rngs=rngs),
        "LSTM": lambda rngs: LSTMCell(4, 32, rngs=rngs),
    }
    samples, curves = [], []
    for name, make in cells.items():
        norms = []
        for seed, key in zip(lab.seeds, lab.keys, strict=True):
            cell, xs = make(nnx.Rngs(seed)), jax.random.normal(key, (20, 4))
            start = cell.initialize_carry((4,))
            by_inputs = jax.jacrev(lambda xs, c=cell, s=start: unroll(c, xs, carry=s).outputs[-1])(
                xs
            )
            sizes = np.linalg.norm(np.asarray(by_inputs), axis=(0, 2))[::-1]
            norms.append(sizes / sizes[0])
        for lag in lags:
            condition = {"cell": name, "lag": f"{lag} steps"}
            samples.append(
                Sample(INFLUENCE, condition, np.array([n[lag] for n in norms]), lab.seeds)
            )
        curves.append(Line(name, range(20), np.median(norms, axis=0)))
    ten = {
        s.condition["cell"]: np.median(s.values)
        for s in samples
        if s.condition["lag"] == "10 steps"
    }
    return Evidence(
        samples,
        [],
        [Panel("Influence of older inputs", "lag, steps", "relative", curves, y_scale="log")],
        facts={"lstm": ten["LSTM"], "tanh": ten["Elman, tanh"]},
        settings={"networks": "fresh, H = 32, inputs N(0, 1)"},
    )


FEEDBACK = "largest derivative of an output by the output before"


@Claim(
    "output-is-fed-back",
    topic="What a step sees",
    statement="A recurrent network feeds its output back into its input.",
    said_by=(
        Source("Charu", "the output of the previous step is fed as input to the current step"),
        Source("OpenGenus", "the output is saved and fed back to the input"),
    ),
    why="So Jordan (1986) built his. Elman's (1990), and all that are used today, feed the state back.",
    measured="Derivative of the next output by what is added to the output of a step, as teacher forcing "
    "adds the difference to the target.",
    rule=Rule((Part(FEEDBACK, Exactly(at_least=1e-6)),)),
    refuted_by="Networks whose next output does not depend on it.",
    lessons={
        "depends": "Jordan networks feed their output back. Elman networks, GRUs and LSTMs with a readout do "
        "not: what goes on is the state, and an overwritten output changes nothing.",
        "confirmed": "All networks tried feed their output back.",
        "refuted": "No network tried feeds its output back.",
    },
).measured_by
def output_is_fed_back(lab: Lab) -> Evidence:
    """Add something to the output of one step by the readout's bias, and differentiate the next output."""
    changes: dict[str, list[float]] = {name: [] for name in ("Jordan", "Elman", "GRU", "LSTM")}
    for seed, key in zip(lab.seeds, lab.keys, strict=True):
        xs = jax.random.normal(key, (2, 4))
        rngs = nnx.Rngs(seed)
        cell = JordanCell(4, 32, out_features=2, activation_fn=lambda y: y, rngs=rngs)

        def jordan(y, x, bias, cell=cell):
            moved = jax.tree.map(lambda leaf: leaf, cell)
            moved.output_bias[...] = bias
            return moved(y, x)

        nothing = jnp.zeros(2)
        changes["Jordan"].append(_fed_back(jordan, nothing, xs, nothing))
        for name, kind in (("Elman", ElmanCell), ("GRU", GRUCell), ("LSTM", LSTMCell)):
            model: Any = SequenceLabeller(RNN(kind(4, 32, rngs=rngs)), 2, rngs=rngs)

            def step(state, x, bias, model=model):
                moved = jax.tree.map(lambda leaf: leaf, model)
                moved.readout.bias[...] = bias
                return streaming(moved).step(state, x)

            start = streaming(model).start(xs[0])
            changes[name].append(_fed_back(step, start, xs, model.readout.bias[...]))
    samples = [Sample(FEEDBACK, {"network": n}, values, lab.seeds) for n, values in changes.items()]
    return Evidence(
        samples,
        settings={"networks": "fresh, H = 32, two outputs"},
    )


def _fed_back(step: Callable[..., Any], start: Any, xs: Any, bias: Any) -> float:
    """Return the largest derivative of the second output by what is added to the first."""

    def second(added):
        state, _ = step(start, xs[0], bias + added)
        return step(state, xs[1], bias)[1]

    return float(jnp.abs(jax.jacrev(second)(jnp.zeros_like(bias))).max())


CHANGE = "largest change of the context between output steps"


@Claim(
    "static-attention",
    topic="Context",
    statement="An encoder-decoder has one context vector for the whole series.",
    said_by=(Source("Issues", "one static context vector must hold the whole input"),),
    why="The first encoder-decoders handed on the encoder's last state alone.",
    measured="Change of the context over the steps of the output, in fresh networks with and without "
    "attention.",
    rule=Rule((Part(CHANGE, Exactly(at_most=0.0)),)),
    refuted_by="A context that changes from one output step to the next.",
    lessons={
        "depends": "Without attention the context is one vector for all steps; with additive attention it "
        "changes at every step (by up to {additive:.2g}).",
        "confirmed": "The context is one vector, with and without attention.",
        "refuted": "The context changes at every step, with and without attention.",
    },
    published=("Bahdanau et al. 2015",),
).measured_by
def static_attention(lab: Lab) -> Evidence:
    """Decode with fresh networks."""
    found: dict[str, list[float]] = {"none": [], "additive": []}
    for seed, key in zip(lab.seeds, lab.keys, strict=True):
        sources, targets = jax.random.randint(key, (2, 10, 3), 2, 9)
        for name, values in found.items():
            contexts = _translator(name == "additive", nnx.Rngs(seed))(sources, targets).contexts
            # A variance of equal numbers is not zero to the last digit; their differences are.
            values.append(float(jnp.abs(contexts - contexts[:1]).max()))
    samples = [Sample(CHANGE, {"attention": n}, values, lab.seeds) for n, values in found.items()]
    return Evidence(
        samples,
        facts={"additive": np.mean(found["additive"])},
        settings={"networks": "GRU, 16 units, sources and targets of 10 tokens"},
    )


def _translator(attends: bool, rngs: nnx.Rngs) -> EncoderDecoder:
    source, target = (Embedding(9, 8, rngs=rngs) for _ in range(2))
    encoder = RNN(GRUCell(8, 16, rngs=rngs))
    attention = AdditiveAttention(16, 16, 16, rngs=rngs) if attends else None
    cell = GRUCell(8 + 16, 16, rngs=rngs)
    return EncoderDecoder(
        source, encoder, target, cell, attention=attention, start=0, end=1, rngs=rngs
    )


LATER = "largest derivative of a context by a later input"


@Claim(
    "whole-before-context",
    topic="Context",
    statement="Attention needs the whole series before it can form any context.",
    said_by=(Source("Issues", "the whole series must be read before a context is there"),),
    why="The weights of attention are normalised over all positions.",
    measured="Derivative of the context of each step by the inputs of later steps: attention over all steps, "
    "and causal attention over those so far.",
    rule=Rule((Part(LATER, Exactly(at_least=1e-9)),), universal=True),
    refuted_by="One form of attention whose contexts do not depend on later inputs.",
    lessons={
        "refuted": "Causal attention forms a context at every step from the steps so far: later inputs have "
        "no influence at all on it.",
        "confirmed": "Every form of attention tried depends on later inputs.",
    },
).measured_by
def whole_before_context(lab: Lab) -> Evidence:
    """Differentiate contexts by later inputs."""
    found: dict[str, list[float]] = {"all steps": [], "causal": []}
    for seed, key in zip(lab.seeds, lab.keys, strict=True):
        xs = jax.random.normal(key, (8, 4))
        for name, values in found.items():
            model = TransformerEncoder(
                4, 16, depth=1, heads=2, causal=name == "causal", rngs=nnx.Rngs(seed)
            )
            by_inputs = np.asarray(jax.jacrev(lambda xs, m=model: m(xs[:, None])[:, 0])(xs))
            later = [np.abs(by_inputs[t, :, t + 1 :]).max() for t in range(len(xs) - 1)]
            values.append(float(np.max(later)))
    samples = [
        Sample(LATER, {"attention over": n}, values, lab.seeds) for n, values in found.items()
    ]
    return Evidence(samples, settings={"networks": "TransformerEncoder, 16 features, 8 steps"})
