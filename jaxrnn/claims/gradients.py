"""Claims about gradients: whether they vanish, why, and what takes that away.

Rates are of the full state, in nats a step of lag: an LSTM's state is (c, h). The loss reads the last step
only, so that no gradient enters on the way.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import sigmoid

from jaxrnn.claims.claim import Lab, Source, claim
from jaxrnn.claims.evidence import Check, Evidence, Line, Panel, Sample
from jaxrnn.claims.rules import Exactly, Part, Rule

_VANISHING = "The slope of the sigmoid"


@claim(
    "sigmoid-slope",
    topic=_VANISHING,
    statement="The derivative of the sigmoid is never above 1/4.",
    said_by=(Source("Charu", "the sigmoid's derivative is always below .25"),),
    why="σ' = σ (1 − σ), a product of two numbers that add up to 1.",
    measured="σ' on a grid from −20 to 20 in float64, at 0, and at random points.",
    rule=Rule((Part("derivative of the sigmoid", Exactly(at_most=0.25)),)),
    refuted_by="One point at which the derivative is above 1/4.",
    lessons={
        "confirmed": "The sigmoid's slope is at most 1/4, and it is {at_zero:.4g} at 0: "
        "at most, not below.",
    },
)
def sigmoid_slope(lab: Lab) -> Evidence:
    """Evaluate the derivative of the sigmoid."""
    with jax.enable_x64(True):
        slope = jax.vmap(jax.grad(sigmoid))
        grid = jnp.linspace(-20.0, 20.0, 4_001, dtype=jnp.float64)
        points = 10 * jax.random.normal(lab.keys()[0], (10_000,), jnp.float64)
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
