"""Claims about structure: direction, depth, parallel time, feedback, attention, and what stays outside.

Whether a network *can* use a step of its input is asked without training it: states of random networks are
read by least squares, which finds what is in them, and the derivative by an input is exactly zero where that
input has no influence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn.cells import ElmanCell, GRUCell, LRUCell, LSTMCell
from jaxrnn.claims.claim import Claim, Lab, Source, add, claim
from jaxrnn.claims.depth import sequential_depth
from jaxrnn.claims.evidence import Check, Evidence, Line, Panel, Sample
from jaxrnn.claims.rules import Exactly, Mean, Part, Rule
from jaxrnn.layers import RNN, Stack
from jaxrnn.models import (
    AdditiveAttention,
    Embedding,
    EncoderDecoder,
    SequenceLabeller,
    TransformerEncoder,
    WindowedMLP,
    streaming,
)
from jaxrnn.unroll import Associative, Newton, Scan, unroll

# Parallel time.

SHARE = "sequential depth, share of that of one step after the other"


@claim(
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
        "refuted": "A linear recurrence takes {lru:.1%} of the sequential depth, a GRU by Newton's method "
        "{gru:.1%}. Only chaos makes it wait: there Newton's method takes {chaos:.0f} iterations for "
        "{steps:.0f} steps. On a CPU the plain loop is faster all the same.",
        "confirmed": "No recurrence tried could be computed in less than half of the depth.",
    },
    published=("DEER, Lim et al. 2024; ELK, Gonzalez et al. 2024; S5, Smith et al. 2023",),
)
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
    samples, errors, iterations = [], {}, {}
    for name, (cell, method) in cases.items():
        driven = 0.1 * xs if cell is chaotic else xs
        found, plain = unroll(cell, driven, method=method), unroll(cell, driven, method=Scan())
        taken = 1 if found.convergence is None else int(found.convergence.iterations)
        depth, slow = (
            sequential_depth(
                lambda c, x, m=m: unroll(c, x, method=m).outputs, cell, driven, rounds=n
            )
            for m, n in ((method, taken), (Scan(), 1))
        )
        samples.append(Sample(SHARE, {"recurrence": name}, [depth / slow]))
        errors[name] = float(jnp.abs(found.outputs - plain.outputs).max())
        iterations[name] = taken
    names = list(cases)
    return Evidence(
        samples,
        [
            Check(
                "positive control",
                "the parallel methods give what the loop gives",
                max(errors[name] for name in names[:2]) < 1e-4,
                ", ".join(f"{name} {error:.1e}" for name, error in errors.items()),
            )
        ],
        [
            Panel(
                f"Sequential depth at T = {steps:,}",
                "",
                "share of the loop's",
                [Line("", range(len(samples)), [s.values[0] for s in samples], style="points")],
                y_scale="log",
                marks={"the loop": 1.0},
                ticks=names,
            )
        ],
        facts={
            "lru": samples[0].values[0],
            "gru": samples[1].values[0],
            "chaos": iterations[names[2]],
            "steps": steps,
        },
        settings={"networks": f"H = {units}, T = {steps}, float32"},
    )


# Direction: labels that stand `AHEAD` steps later in the input, read from states of random networks.

ACCURACY = "accuracy"
_SYMBOLS, _AHEAD = 4, 4
_CHANCE = 1 / _SYMBOLS
_SOLVED = 0.95


def _symbols(key: Any, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return symbols [T] drawn alike, and as vectors [T, A]."""
    drawn = np.asarray(jax.random.randint(key, (steps,), 0, _SYMBOLS))
    return drawn, np.eye(_SYMBOLS, dtype=np.float32)[drawn]


def _states(key: Any, xs: np.ndarray) -> np.ndarray:
    """Return the states [T, H] of a random network whose memory fades slowly."""
    rngs = nnx.Rngs(int(jax.random.randint(key, (), 0, 2**31 - 1)))
    cell = ElmanCell(_SYMBOLS, 128, kernel_init=jax.nn.initializers.normal(0.1), rngs=rngs)
    cell.recurrent_kernel[...] *= 0.95
    return np.asarray(unroll(cell, jnp.asarray(xs)).outputs)


def _accuracy(features: np.ndarray, labels: np.ndarray) -> float:
    """Return how many labels a linear readout gets right on the second half, fitted on the first."""
    half = len(features) // 2
    with_bias = np.concatenate([features, np.ones((len(features), 1))], axis=1).astype(float)
    targets = np.eye(_SYMBOLS)[labels]
    weights = np.linalg.lstsq(with_bias[:half], targets[:half], rcond=1e-10)[0]
    return float(np.mean((with_bias[half:] @ weights).argmax(axis=1) == labels[half:]))


def _lines(samples: list[Sample], title: str, x: str, ticks: list[str]) -> Panel:
    means = np.array([np.mean(s.values) for s in samples])
    low, high = (np.array([f(s.values) for s in samples]) for f in (np.min, np.max))
    line = Line("", range(len(samples)), means, low, high, style="points")
    return Panel(
        title, x, ACCURACY, [line], marks={"chance": _CHANCE, "solved": _SOLVED}, ticks=ticks
    )


@claim(
    "unidirectional",
    topic="Direction",
    statement="A network that reads forwards lacks the future: it can't use what comes later.",
    said_by=(Source("Analytics Vidhya", "a unidirectional network sees the past alone"),),
    why="Its state at step t is a function of the inputs up to t.",
    measured=f"Accuracy on the symbol that comes {_AHEAD} steps later, read from states: forwards and "
    f"answered at once, forwards and answered {_AHEAD} steps late, and from both directions.",
    rule=Rule((Part(ACCURACY, Mean(below=_CHANCE + 0.1), where=(("direction", "forwards"),)),)),
    refuted_by="A network that reads forwards and is right more often than chance.",
    lessons={
        "depends": "What a forward network lacks is not the future but time: asked at once it is at chance "
        "({now:.2f}), asked {ahead:.0f} steps later it is right ({late:.2f}), like one that reads both ways "
        "({both:.2f}).",
        "confirmed": "A network that reads forwards is at chance about what comes later.",
        "refuted": "A network that reads forwards is right about what comes later.",
    },
)
def unidirectional(lab: Lab) -> Evidence:
    """Read what is in the states of either direction."""
    found: dict[tuple[str, str], list[float]] = {}
    for key in lab.keys():  # noqa: SIM118 (no mapping)
        symbols, xs = _symbols(key, 2_000)
        forwards, backwards = _states(key, xs), _states(key, xs[::-1])[::-1]
        for direction, answer, features, labels in (
            ("forwards", "at once", forwards[:-_AHEAD], symbols[_AHEAD:]),
            ("forwards", f"{_AHEAD} steps late", forwards[_AHEAD:], symbols[_AHEAD:]),
            (
                "both",
                "at once",
                np.concatenate([forwards, backwards], axis=1)[:-_AHEAD],
                symbols[_AHEAD:],
            ),
        ):
            found.setdefault((direction, answer), []).append(_accuracy(features, labels))
    samples = [
        Sample(ACCURACY, {"direction": direction, "answer": answer}, values, lab.seeds)
        for (direction, answer), values in found.items()
    ]
    now, late, both = (float(np.mean(values)) for values in found.values())
    return Evidence(
        samples,
        [Check("positive control", "both directions solve it", both > _SOLVED, f"{both:.3f}")],
        [_lines(samples, f"The symbol {_AHEAD} steps ahead", "", [s.name for s in samples])],
        facts={"now": now, "late": late, "both": both, "ahead": _AHEAD},
        settings={"networks": "random tanh, H = 128, linear readout by least squares, 2,000 steps"},
    )


@claim(
    "bidirectional-needs-ends",
    topic="Direction",
    statement="A bidirectional network must have the whole sequence, from its start to its end.",
    said_by=(Source("Issues", "bidirectional networks need to know start and end"),),
    why="The backward half begins at the last step.",
    measured=f"Accuracy on the symbol {_AHEAD} steps later when the backward half begins only so many steps "
    "after the answer, not at the end.",
    rule=Rule((Part(ACCURACY, Mean(below=_SOLVED)),), universal=True),
    refuted_by="One cut at which the answers are right although the end is not known.",
    lessons={
        "refuted": "A bidirectional network needs as much of the future as the answer does: with {few:.0f} "
        "steps it is at chance ({before:.2f}), with {enough:.0f} it is right ({after:.2f}).",
        "confirmed": "Without the end of the sequence a bidirectional network fails.",
    },
)
def bidirectional_needs_ends(lab: Lab) -> Evidence:
    """Begin the backward half a few steps after each answer."""
    widths = (0, 2, _AHEAD - 1, _AHEAD, 8, 16)
    found: dict[int, list[float]] = {width: [] for width in widths}
    for key in lab.keys():  # noqa: SIM118 (no mapping)
        symbols, xs = _symbols(key, 2_000)
        forwards = _states(key, xs)
        for width in widths:
            later = _chunked(key, xs, width)
            features = np.concatenate([forwards, later], axis=1)[: -max(widths)]
            found[width].append(_accuracy(features, symbols[_AHEAD : len(features) + _AHEAD]))
    samples = [
        Sample(ACCURACY, {"steps known after the answer": f"{width}"}, values, lab.seeds)
        for width, values in found.items()
    ]
    means = {width: float(np.mean(values)) for width, values in found.items()}
    return Evidence(
        samples,
        [
            Check(
                "negative control",
                "with fewer steps than the answer needs it is at chance",
                means[_AHEAD - 1] < _CHANCE + 0.1,
                f"{means[_AHEAD - 1]:.3f}",
            )
        ],
        [
            _lines(
                samples,
                f"The symbol {_AHEAD} steps ahead",
                "steps known after the answer",
                [f"{width}" for width in widths],
            )
        ],
        facts={
            "few": _AHEAD - 1,
            "before": means[_AHEAD - 1],
            "enough": _AHEAD,
            "after": means[_AHEAD],
        },
        settings={"networks": "random tanh, H = 128, linear readout by least squares, 2,000 steps"},
    )


def _chunked(key: Any, xs: np.ndarray, width: int) -> np.ndarray:
    """Return backward states [T, H] that know `width` steps after each step: a short run for every step."""
    padded = np.concatenate([xs, np.zeros((width, xs.shape[1]), xs.dtype)])
    chunks = np.stack([padded[width - i : width - i + len(xs)] for i in range(width + 1)])
    rngs = nnx.Rngs(int(jax.random.randint(key, (), 0, 2**31 - 1)) + 1)
    cell = ElmanCell(_SYMBOLS, 128, kernel_init=jax.nn.initializers.normal(0.1), rngs=rngs)
    return np.asarray(unroll(cell, jnp.asarray(chunks)).outputs)[-1]


@claim(
    "feedforward-no-past",
    topic="Direction",
    statement="Feed-forward networks can't use the past.",
    said_by=(Source("Charu", "a feed-forward network considers the current input alone"),),
    why="It has no state.",
    measured=f"Accuracy on the symbol of {_AHEAD} steps ago, read from a feed-forward network over a window "
    "of the last inputs.",
    rule=Rule((Part(ACCURACY, Mean(below=_SOLVED)),), universal=True),
    refuted_by="One window with which the past is used.",
    lessons={
        "refuted": "A feed-forward network uses the past as far as its window reaches: {short:.2f} with a "
        "window of {lag:.0f} steps, {long:.2f} with one more.",
        "confirmed": "No window lets a feed-forward network use the past.",
    },
)
def feedforward_no_past(lab: Lab) -> Evidence:
    """Read random features of windows."""
    windows = (1, _AHEAD, _AHEAD + 1, 2 * _AHEAD)
    found: dict[int, list[float]] = {window: [] for window in windows}
    for seed, key in zip(lab.seeds, lab.keys(), strict=True):
        symbols, xs = _symbols(key, 2_000)
        for window in windows:
            model = WindowedMLP(_SYMBOLS, 256, window=window, rngs=nnx.Rngs(seed))
            features = np.asarray(model(jnp.asarray(xs)[:, None]))[_AHEAD:, 0]
            found[window].append(_accuracy(features, symbols[:-_AHEAD]))
    samples = [
        Sample(ACCURACY, {"window": f"{window} steps"}, values, lab.seeds)
        for window, values in found.items()
    ]
    short, long = (float(np.mean(found[window])) for window in (_AHEAD, _AHEAD + 1))
    return Evidence(
        samples,
        [
            Check(
                "negative control",
                "a window that ends one step too early is at chance",
                short < _CHANCE + 0.1,
                f"{short:.3f}",
            )
        ],
        [
            _lines(
                samples,
                f"The symbol {_AHEAD} steps ago",
                "window, steps",
                [f"{w}" for w in windows],
            )
        ],
        facts={"short": short, "long": long, "lag": _AHEAD},
        settings={"networks": "random features, 256 units, linear readout by least squares"},
    )


# Feedback: what enters a step.

INFLUENCE = "influence, share of the last input's"


@claim(
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
)
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
        for seed, key in zip(lab.seeds, lab.keys(), strict=True):
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


@claim(
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
)
def output_is_fed_back(lab: Lab) -> Evidence:
    """Add something to the output of one step by the readout's bias, and differentiate the next output."""
    changes: dict[str, list[float]] = {name: [] for name in ("Jordan", "Elman", "GRU", "LSTM")}
    for seed, key in zip(lab.seeds, lab.keys(), strict=True):
        xs = jax.random.normal(key, (2, 4))
        rngs = nnx.Rngs(seed)
        back, into = rngs.params.normal((2, 32)), rngs.params.normal((4, 32)) / 2
        read = rngs.params.normal((32, 2)) / 6

        def jordan(y, x, bias, back=back, into=into, read=read):
            y = jnp.tanh(x @ into + y @ back) @ read + bias
            return y, y

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


# Attention.

CHANGE = "largest change of the context between output steps"


@claim(
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
)
def static_attention(lab: Lab) -> Evidence:
    """Decode with fresh networks."""
    found: dict[str, list[float]] = {"none": [], "additive": []}
    for seed, key in zip(lab.seeds, lab.keys(), strict=True):
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


@claim(
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
)
def whole_before_context(lab: Lab) -> Evidence:
    """Differentiate contexts by later inputs."""
    found: dict[str, list[float]] = {"all steps": [], "causal": []}
    for seed, key in zip(lab.seeds, lab.keys(), strict=True):
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


# Depth.

LAYERS = "slope over layers, nats a layer"
_DEPTH = 8
_LOST = float(np.log(0.01) / _DEPTH)


@claim(
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
)
def no_deep_stacks(lab: Lab) -> Evidence:
    """Compare the gradients of the layers of fresh stacks."""
    samples, lines = [], []
    for activation, phi in (("tanh", jnp.tanh), ("ReLU", jax.nn.relu)):
        for form in ("plain", "residual and norm"):
            curves = [
                _gradient_by_layer(seed, key, phi, form != "plain")
                for seed, key in zip(lab.seeds, lab.keys(), strict=True)
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


add(
    Claim(
        "hard-to-customise",
        topic="What is not measured",
        statement="Recurrent networks are difficult to implement.",
        said_by=(Source("OpenGenus", "implementation and customising are difficult"),),
        why="Whoever has written back-propagation through time by hand may find so.",
        measured="",
        rule=None,
        refuted_by="Difficulty is a matter of the reader's training and tools; no number of ours decides it.",
        lessons={},
        measure=None,
    )
)
