"""Claims about gates: whether they take the vanishing of gradients away, and what that costs.

Along an LSTM's cell state the gradient is multiplied by the forget gate alone, σ(b) where nothing else enters
it: ln σ(b) nats a step, −0.693 for a bias of 0 and −0.313 for 1. A GRU keeps its state by an update gate near
1 in the same way. A gate that is open for good keeps all of the gradient, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn.cells import ElmanCell, GRUCell, LSTMCell
from jaxrnn.claims.claim import Claim, Lab, Source
from jaxrnn.claims.evidence import Check, Evidence, Sample
from jaxrnn.claims.gradients import (
    FEATURES,
    LEAST,
    SLOPE,
    STEPS,
    fresh_slopes,
    noise,
    trained_slopes,
)
from jaxrnn.claims.panels import strip
from jaxrnn.claims.rules import Mean, Part, Ranks, Rule
from jaxrnn.typing import Step

_GATES = "Gates against vanishing gradients"
_UNITS = 64
_NONE = {"no vanishing": 0.0}

Make = Callable[[nnx.Rngs], Step]


def _elman(rngs: nnx.Rngs) -> Step:
    return ElmanCell(FEATURES, _UNITS, rngs=rngs)


def _lstm(bias: float) -> Make:
    """Return what makes LSTMs with a bias of the forget gate."""
    init = LSTMCell.forget_bias(bias)
    return lambda rngs: LSTMCell(FEATURES, _UNITS, bias_init=init, rngs=rngs)


def _gru(bias: float) -> Make:
    """Return what makes GRUs with a bias of the update gate."""

    def make(rngs: nnx.Rngs) -> Step:
        cell = GRUCell(FEATURES, _UNITS, rngs=rngs)
        reset, _, new = jnp.split(cell.bias[...], 3)
        cell.bias[...] = jnp.concatenate([reset, jnp.full(_UNITS, bias), new])
        return cell

    return make


@Claim(
    "gates-mitigate",
    topic=_GATES,
    statement="Gated cells mitigate the vanishing of gradients.",
    said_by=(Source("Vanishing", "LSTM and GRU mitigate, and do not remove, the vanishing"),),
    why="A gate near 1 hands the state, and so the gradient, on as it is.",
    measured="Slopes of fresh GRUs and LSTMs against those of fresh tanh networks, with strong and with weak "
    "inputs.",
    rule=Rule((Part(SLOPE, Ranks(larger=True, difference=LEAST), ("cell", "Elman, tanh")),)),
    refuted_by="Gated cells whose slopes are no higher than those of tanh networks.",
    lessons={
        "confirmed": "Fresh gated cells vanish more slowly than tanh networks, whatever drives them.",
        "depends": "Gates help where large inputs saturate a tanh network ({tanh_strong:.2f} nats a step, an "
        "LSTM {lstm_strong:.2f}). With weak inputs it is {tanh_weak:.3f} for the tanh network, "
        "{lstm_weak:.3f} for an LSTM with forget bias 1 and {gru_weak:.3f} for a GRU.",
        "refuted": "Fresh gated cells vanish no more slowly than tanh networks.",
    },
    published=("slope along c is ln σ(b): −.693 for b = 0, −.313 for b = 1",),
).measured_by
def gates_mitigate(lab: Lab) -> Evidence:
    """Compare fresh networks."""
    cells: dict[str, Make] = {
        "Elman, tanh": _elman,
        "GRU": _gru(0.0),
        "LSTM, forget bias 0": _lstm(0.0),
        "LSTM, forget bias 1": _lstm(1.0),
    }
    found = {
        (name, words): fresh_slopes(lab, make, scale)
        for words, scale in (("inputs N(0, 1)", 1.0), ("inputs N(0, 0.01)", 0.1))
        for name, make in cells.items()
    }
    samples = [
        Sample(SLOPE, {"cell": name, "inputs": words}, values, lab.seeds)
        for (name, words), values in found.items()
    ]
    strong, weak = (
        {name: values.mean() for (name, words), values in found.items() if words == wanted}
        for wanted in ("inputs N(0, 1)", "inputs N(0, 0.01)")
    )
    return Evidence(
        samples,
        [_closed_gates(lab)],
        [strip(samples, "inputs", "Slopes of fresh cells", _NONE)],
        facts={
            "tanh_strong": strong["Elman, tanh"],
            "lstm_strong": strong["LSTM, forget bias 1"],
            "tanh_weak": weak["Elman, tanh"],
            "lstm_weak": weak["LSTM, forget bias 1"],
            "gru_weak": weak["GRU"],
        },
        settings={"networks": f"H = {_UNITS}, T = {STEPS}, orthogonal recurrent weights"},
    )


def _closed_gates(lab: Lab) -> Check:
    """An LSTM without weights has the slope ln σ(b) along c."""

    def make(rngs: nnx.Rngs) -> Step:
        cell = _lstm(1.0)(rngs)
        return jax.tree.map(lambda leaf: jnp.zeros_like(leaf) if leaf.ndim == 2 else leaf, cell)

    found = float(fresh_slopes(lab, make)[0])
    expected = float(jnp.log(jax.nn.sigmoid(1.0)))
    return Check(
        "positive control",
        "an LSTM without weights has the slope ln σ(1)",
        abs(found - expected) < 1e-3,
        f"{found:.4f} measured, {expected:.4f} expected",
    )


@Claim(
    "gru-eliminates",
    topic=_GATES,
    statement="A GRU eliminates the vanishing of gradients.",
    said_by=(Source("Charu", "a GRU can eliminate the risk of vanishing gradients"),),
    why="With the update gate at 1 the state is handed on unchanged, and the gradient with it.",
    measured="Slopes of GRUs: fresh, with update biases of 2 and 8, and trained on digits.",
    rule=Rule((Part(SLOPE, Mean(above=-LEAST)),)),
    refuted_by="Slopes below -0.01 nats a step: everywhere to refute it, in some to make it depend.",
    lessons={
        "confirmed": "No GRU tried lost its gradient.",
        "depends": "A GRU keeps its gradient if its update gate is biased to stay ({open:.4f} nats a step at "
        "a bias of 8), and then it writes next to nothing: {written:.1e} of an input a step. A fresh one "
        "loses {fresh:.2f} nats a step.",
        "refuted": "GRUs lose their gradient too, fresh ones by {fresh:.2f} nats a step.",
    },
).measured_by
def gru_eliminates(lab: Lab) -> Evidence:
    """Measure GRUs of several biases."""
    found = {f"fresh, update bias {bias:g}": fresh_slopes(lab, _gru(bias)) for bias in (0, 2, 8)}
    found["trained on digits"] = trained_slopes(lab, {"GRU": "gru"})["GRU"]
    samples = [
        Sample(SLOPE, {"network": name}, values, lab.seeds) for name, values in found.items()
    ]
    held, written = _writes(_gru(40.0)), _writes(_gru(8.0))
    return Evidence(
        samples,
        [
            Check(
                "negative control",
                "a GRU whose update gate is 1 writes nothing",
                held == 0,
                f"change of the state by a step: {held}",
            )
        ],
        [strip(samples, "network", "Slopes of GRUs", _NONE)],
        facts={
            "fresh": found["fresh, update bias 0"].mean(),
            "open": found["fresh, update bias 8"].mean(),
            "written": written,
        },
        settings=_trained_settings(lab),
    )


def _writes(make: Make) -> float:
    """Return the largest change of a unit in a step on a normal input."""
    cell = make(nnx.Rngs(0))
    x = noise(jax.random.key(0), 1)[0]
    start = jnp.zeros((len(x), _UNITS))
    return float(jnp.abs(cell(start, x)[0] - start).max())


def _trained_settings(lab: Lab) -> dict[str, str]:
    return {
        "fresh": f"H = {_UNITS}, T = {STEPS}, inputs N(0, 1)",
        "trained": f"digits, H = 32, T = 64, Adam 0.01, {lab.choose(300, 2_400)} steps",
    }


@Claim(
    "lstm-solves",
    topic=_GATES,
    statement="The LSTM solves the vanishing of gradients.",
    said_by=(Source("Analytics Vidhya", "LSTMs solve the problem of vanishing gradients"),),
    why="Its cell state is added to, not multiplied by weights: the constant error carousel.",
    measured="Slopes of LSTMs in the full state (c, h): fresh, with forget biases of 0, 1, 3 and 8, and "
    "trained on digits.",
    rule=Rule((Part(SLOPE, Mean(above=-LEAST)),)),
    refuted_by="Slopes below -0.01 nats a step: everywhere to refute it, in some to make it depend.",
    lessons={
        "confirmed": "No LSTM tried lost its gradient.",
        "depends": "An LSTM's gradient lives as long as its forget gate says: {zero:.2f} nats a step at a "
        "bias of 0, {one:.3f} at 1, {eight:.4f} at 8, {trained:.3f} after training on 64 pixels.",
        "refuted": "LSTMs lose their gradient too, by {one:.3f} nats a step when fresh.",
    },
    published=("forget bias 1 closes the gap to the GRU (Jozefowicz et al. 2015)",),
).measured_by
def lstm_solves(lab: Lab) -> Evidence:
    """Measure LSTMs of several biases."""
    found = {
        f"fresh, forget bias {bias:g}": fresh_slopes(lab, _lstm(bias)) for bias in (0, 1, 3, 8)
    }
    found["trained on digits"] = trained_slopes(lab, {"LSTM": "lstm"})["LSTM"]
    samples = [
        Sample(SLOPE, {"network": name}, values, lab.seeds) for name, values in found.items()
    ]
    means = {name: float(np.mean(values)) for name, values in found.items()}
    return Evidence(
        samples,
        [_closed_gates(lab)],
        [strip(samples, "network", "Slopes of LSTMs", _NONE)],
        facts={
            "zero": means["fresh, forget bias 0"],
            "one": means["fresh, forget bias 1"],
            "eight": means["fresh, forget bias 8"],
            "trained": means["trained on digits"],
        },
        settings=_trained_settings(lab),
    )
