"""Claims about gradients: whether they vanish, by which rule, and whether it is the sigmoid's fault.

Slopes are of the gradient's norm with the lag, in nats a step: negative is vanishing. They are of the full
state, so an LSTM's is (c, h), and the loss reads the last step alone, so that no gradient enters on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import sigmoid

from jaxrnn import analysis
from jaxrnn.cells import ElmanCell, GRUCell, LSTMCell
from jaxrnn.claims.claim import Claim, Lab, Source
from jaxrnn.claims.evidence import Check, Evidence, Line, Panel, Sample
from jaxrnn.claims.panels import strip
from jaxrnn.claims.rules import Exactly, Mean, Part, Rule
from jaxrnn.claims.runs import gradient_flows, trained
from jaxrnn.experiments import NetworkConfig, RunConfig
from jaxrnn.training import FitConfig
from jaxrnn.typing import Step

SLOPE = "slope of the gradient, nats a step"
FEATURES, SEQUENCES = 4, 4
STEPS = 200
LEAST = 0.01
"""The smallest slope that counts, nats a step: over 200 steps a factor of seven."""


def noise(key: Any, steps: int = STEPS, scale: float = 1.0) -> Any:
    """Return normal inputs [T, B, F]."""
    return scale * jax.random.normal(key, (steps, SEQUENCES, FEATURES))


def fresh_slopes(lab: Lab, make: Callable[[nnx.Rngs], Step], scale: float = 1.0) -> np.ndarray:
    """Return the slope of one fresh network a seed, on normal inputs of 200 steps."""
    return np.array(
        [
            float(analysis.gradient_flow(make(nnx.Rngs(seed)), noise(key, scale=scale), last).rate)
            for seed, key in zip(lab.seeds, lab.keys, strict=True)
        ]
    )


def last(outputs: Any) -> Any:
    """The loss: a sum over the outputs of the last step."""
    return outputs[-1].sum()


_SIGMOID = "The sigmoid"


@Claim(
    "sigmoid-slope",
    topic=_SIGMOID,
    statement="The derivative of the sigmoid is never above 1/4.",
    said_by=(Source("Charu", "the sigmoid's derivative is always below .25"),),
    why="σ' = σ (1 − σ), a product of two numbers that add up to 1.",
    measured="σ' on a grid from −20 to 20 in float64, at 0, and at random points.",
    rule=Rule((Part("derivative of the sigmoid", Exactly(at_most=0.25)),)),
    refuted_by="One point at which the derivative is above 1/4.",
    lessons={
        "confirmed": "The sigmoid's slope is at most 1/4, and it is {at_zero:.4g} at 0: "
        "at most, not below.",
        "refuted": "The sigmoid's slope is above 1/4 somewhere.",
    },
).measured_by
def sigmoid_slope(lab: Lab) -> Evidence:
    """Evaluate the derivative of the sigmoid."""
    with jax.enable_x64(True):
        slope = jax.vmap(jax.grad(sigmoid))
        grid = jnp.linspace(-20.0, 20.0, 4_001, dtype=jnp.float64)
        points = 10 * jax.random.normal(lab.keys[0], (10_000,), jnp.float64)
        on_grid, at_points = np.asarray(slope(grid)), np.asarray(slope(points))
    shown = slice(1_400, 2_601, 20)
    return Evidence(
        samples=[
            Sample("derivative of the sigmoid", {"points": "grid"}, (on_grid.max(),)),
            Sample("derivative of the sigmoid", {"points": "random"}, (at_points.max(),)),
        ],
        checks=[
            Check(
                "positive control",
                "the slope is a quarter at 0",
                on_grid[2_000] == 0.25,
                f"{on_grid[2_000]}",
            )
        ],
        panels=[
            Panel(
                "Slope of the sigmoid",
                "x",
                "σ'(x)",
                [Line("", np.asarray(grid)[shown], on_grid[shown])],
                marks={"1/4": 0.25},
            )
        ],
        facts={"at_zero": on_grid[2_000]},
    )


VANISHING = "Vanishing gradients"


def _cells(hidden: int) -> dict[str, Callable[[nnx.Rngs], Step]]:
    return {
        "Elman, sigmoid": lambda rngs: ElmanCell(
            FEATURES, hidden, activation_fn=sigmoid, rngs=rngs
        ),
        "Elman, tanh": lambda rngs: ElmanCell(FEATURES, hidden, rngs=rngs),
        "GRU": lambda rngs: GRUCell(FEATURES, hidden, rngs=rngs),
        "LSTM": lambda rngs: LSTMCell(FEATURES, hidden, rngs=rngs),
    }


_TRAINED = {"Elman, tanh": "elman-tanh", "GRU": "gru", "LSTM": "lstm"}


def trained_slopes(lab: Lab, cells: dict[str, str]) -> dict[str, np.ndarray]:
    """Return the slopes of networks trained on the digits, read pixel by pixel, one network a seed."""
    found = {}
    for name, cell in cells.items():
        fit = FitConfig(
            steps=lab.choose(300, 2_400),
            every=lab.choose(300, 1_200),
            learning_rate=0.01,
            seeds=len(lab.seeds),
            seed=lab.seeds[0],
        )
        run = RunConfig("digits", network=NetworkConfig(cell, 32), fit=fit, probes=False)
        flows = gradient_flows(run, trained(lab, f"digits-{cell}", run))
        found[name] = np.array([float(flow.rate) for flow in flows])
    return found


@Claim(
    "vanishing",
    topic=VANISHING,
    statement="The gradient of a recurrent network shrinks exponentially with the lag.",
    said_by=(
        Source("Charu", "gradients become too small to train on long sequences"),
        Source("OpenGenus", "gradients vanish as they are multiplied step by step"),
        Source("Analytics Vidhya", "the gradient shrinks as it goes back through time"),
        Source("Vanishing", "gradients vanish exponentially in plain networks"),
    ),
    why="The gradient at lag k is a product of k Jacobians; if all shrink it, it is exponential in k.",
    measured="Slope of the gradient's norm with the lag: of fresh networks on 200 steps of normal inputs, "
    "and of networks trained on digits read pixel by pixel, by their own loss.",
    rule=Rule((Part(SLOPE, Mean(below=-LEAST)),)),
    refuted_by="Slopes not below -0.01 nats a step: for all cells to refute it, for some to make it depend.",
    lessons={
        "confirmed": "Gradients shrink exponentially in every network tried, by {fresh_tanh:.2f} nats a step "
        "in a fresh tanh network.",
        "depends": "A fresh network loses its gradient exponentially ({fresh_tanh:.2f} nats a step for tanh, "
        "{fresh_gru:.2f} for a GRU); training takes much of that away ({trained_gru:.3f} for a GRU trained "
        "on 64 pixels).",
        "refuted": "The gradients of these networks do not shrink exponentially.",
        "undecided": "Fresh networks lose their gradient exponentially ({fresh_tanh:.2f} nats a step for "
        "tanh, {fresh_gru:.2f} for a GRU); after training ({trained_gru:.3f} for a GRU) some are too near to "
        "what counts.",
    },
    published=("fresh networks vanish, Hochreiter 1991; Bengio et al. 1994",),
).measured_by
def vanishing(lab: Lab) -> Evidence:
    """Measure slopes of four cells, before and after training."""
    fresh = {name: fresh_slopes(lab, make) for name, make in _cells(64).items()}
    after = trained_slopes(lab, _TRAINED)
    samples = [
        Sample(SLOPE, {"cell": name, "training": when}, values, lab.seeds)
        for when, found in (("fresh", fresh), ("trained", after))
        for name, values in found.items()
    ]
    return Evidence(
        samples,
        [_orthogonal_control(lab), _theory_control(lab)],
        [strip(samples, "training", "Slope of the gradient", {"no vanishing": 0.0})],
        facts={
            "fresh_tanh": fresh["Elman, tanh"].mean(),
            "fresh_gru": fresh["GRU"].mean(),
            "trained_gru": after["GRU"].mean(),
        },
        settings={
            "fresh": "H = 64, F = 4, T = 200, inputs N(0, 1)",
            "trained": f"digits, H = 32, T = 64, Adam 0.01, {lab.choose(300, 2_400)} steps",
        },
    )


def _orthogonal_control(lab: Lab) -> Check:
    """A linear network with orthogonal weights has slope 0: what does not vanish is not found to vanish."""

    def make(rngs: nnx.Rngs) -> Step:
        init = jax.nn.initializers.orthogonal()
        return ElmanCell(
            FEATURES, 64, activation_fn=lambda a: a, recurrent_kernel_init=init, rngs=rngs
        )

    worst = float(np.abs(fresh_slopes(lab, make)).max())
    return Check(
        "negative control",
        "a linear network with orthogonal weights has slope 0",
        worst < 1e-4,
        f"largest slope {worst:.1e}",
    )


def _theory_control(lab: Lab) -> Check:
    """A random tanh network vanishes as mean-field theory says, ½ ln χ a step."""
    gain, units = 1.2, 256

    def make(rngs: nnx.Rngs) -> Step:
        normal = jax.nn.initializers.normal
        return ElmanCell(
            FEATURES,
            units,
            recurrent_kernel_init=normal(gain / units**0.5),
            kernel_init=normal(0.5),
            rngs=rngs,
        )

    theory = analysis.mean_field(jnp.tanh, gain, input_variance=0.25 * FEATURES).lyapunov
    found = float(fresh_slopes(lab, make).mean())
    return Check(
        "positive control",
        "a random tanh network vanishes as fast as mean-field theory says",
        abs(found - theory) < 0.03,
        f"{found:.3f} measured, {theory:.3f} by theory, nats a step",
    )


@Claim(
    "sigmoid-hence-vanishing",
    topic=_SIGMOID,
    statement="The sigmoid's slope is at most 1/4, hence the gradient of a sigmoid network must vanish.",
    said_by=(Source("Charu", "derivatives below .25, multiplied, make the gradient vanish"),),
    why="A product of factors of at most 1/4 vanishes. But the weights stand in the product, too.",
    measured="Slope of fresh sigmoid networks, and of one whose weights are 4 times the identity, at rest at "
    "h = 1/2, where the sigmoid's slope is 1/4.",
    rule=Rule((Part(SLOPE, Exactly(at_most=-LEAST)),), universal=True),
    refuted_by="One sigmoid network whose gradient does not vanish.",
    lessons={
        "refuted": "A sigmoid network need not vanish: with weights of 4 and units at 1/2 every Jacobian is "
        "the identity and the slope is {built:.4f}. Fresh ones do, by {fresh:.2f} nats a step.",
        "confirmed": "Every sigmoid network tried vanishes.",
    },
).measured_by
def sigmoid_hence_vanishing(lab: Lab) -> Evidence:
    """Measure fresh networks and one that is built."""
    fresh = fresh_slopes(lab, _cells(64)["Elman, sigmoid"])
    cell = ElmanCell(FEATURES, 8, activation_fn=sigmoid, rngs=nnx.Rngs(0))
    cell.recurrent_kernel[...] = 4 * jnp.eye(8)
    cell.bias[...] = jnp.full(8, -2.0)
    nothing, half = jnp.zeros((STEPS, 1, FEATURES)), jnp.full((1, 8), 0.5)
    flow = analysis.gradient_flow(cell, nothing, last, carry=half)
    jacobian = analysis.jacobians(cell, analysis.trace(cell, nothing, carry=half))[0, 0]
    built = float(flow.rate)
    samples = [
        Sample(SLOPE, {"weights": "fresh"}, fresh, lab.seeds),
        Sample(SLOPE, {"weights": "built"}, [built]),
    ]
    identity = bool(jnp.array_equal(jacobian, jnp.eye(8)))
    return Evidence(
        samples,
        [Check("positive control", "the built network's Jacobian is the identity", identity)],
        [strip(samples, "weights", "Slope of sigmoid networks", {"no vanishing": 0.0})],
        facts={"built": built, "fresh": fresh.mean()},
        settings={"fresh": "H = 64, T = 200", "built": "W = 4 I, b = −2, h = 1/2, no inputs"},
    )


CHANGE = "change of the slope, nats a step"


@Claim(
    "output-sigmoid",
    topic=_SIGMOID,
    statement="The sigmoid at the output makes the gradient vanish.",
    said_by=(Source("Analytics Vidhya", "blames the activation of the output"),),
    why="The output's sigmoid is one more factor below 1/4 in the chain rule.",
    measured="Change of the gradient's slope in time when the sigmoid at the output is replaced by a linear "
    "readout with the same weights.",
    rule=Rule((Part(CHANGE, Exactly(at_least=LEAST)),)),
    refuted_by="No change of the slope: the output stands in the chain once, not at every step.",
    lessons={
        "refuted": "The output's sigmoid scales the whole gradient once, by {factor:.2f} here, and leaves "
        "its slope in time as it is.",
        "confirmed": "Without the output's sigmoid the gradient shrinks more slowly.",
        "depends": "Whether the output's sigmoid matters depends on the network.",
    },
).measured_by
def output_sigmoid(lab: Lab) -> Evidence:
    """Read the same networks by a sigmoid and by a linear output."""
    changes, factors, curves = [], [], []
    for seed, key in zip(lab.seeds, lab.keys, strict=True):
        cell = ElmanCell(FEATURES, 64, rngs=nnx.Rngs(seed))
        weights = jax.random.normal(jax.random.fold_in(key, 1), (64,)) / 8
        linear, squashed = (
            analysis.gradient_flow(cell, noise(key), lambda ys, f=f, v=weights: f(ys[-1] @ v).sum())
            for f in (lambda a: a, sigmoid)
        )
        changes.append(abs(float(squashed.rate) - float(linear.rate)))
        factors.append(np.exp(np.asarray(squashed.log_norms - linear.log_norms)[-1]).mean())
        curves = [np.asarray(flow.log_norms)[:, 0] for flow in (linear, squashed)]
    lags = np.arange(STEPS)[::-1]
    return Evidence(
        [Sample(CHANGE, {"cell": "Elman, tanh"}, changes, lab.seeds)],
        [
            Check(
                "positive control",
                "the sigmoid's factor is at most 1/4, and more than nothing",
                0 < np.mean(factors) <= 0.25,
                f"{np.mean(factors):.3f}",
            )
        ],
        [
            Panel(
                "One network with either output",
                "lag, steps",
                "log norm of the gradient, nats",
                [
                    Line(name, lags[::4], curve[::4])
                    for name, curve in zip(("linear", "sigmoid"), curves, strict=True)
                ],
            )
        ],
        facts={"factor": np.mean(factors)},
        settings={"network": "Elman, tanh, H = 64, T = 200, inputs N(0, 1)"},
    )
