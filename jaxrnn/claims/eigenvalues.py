"""The claim about eigenvalues: whether the largest one tells vanishing from exploding gradients.

For a linear network at infinite lag it does. The rule is asked at the lags at which networks learn, and of
weights and nonlinearities for which it was not made.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn import analysis
from jaxrnn.cells import ElmanCell
from jaxrnn.claims.claim import Claim, Lab, Source
from jaxrnn.claims.evidence import Check, Evidence, Line, Panel, Sample
from jaxrnn.claims.gradients import FEATURES, VANISHING, last
from jaxrnn.claims.rules import Part, Rule, Share

RIGHT = "networks about which the rule is right"
_ABOVE, _BELOW = "largest eigenvalue above 1", "largest eigenvalue below 1"


@Claim(
    "eigenvalue-rule",
    topic=VANISHING,
    statement="The gradient vanishes if the largest eigenvalue of the recurrent weights is below 1, and "
    "explodes if it is above 1.",
    said_by=(Source("OpenGenus", "an eigenvalue below 1 makes it vanish, above 1 explode"),),
    why="Without a nonlinearity and at long lags, the gradient is multiplied by the largest eigenvalue.",
    measured="Whether the gradient's slope at lags 25 to 100 has the sign that the rule predicts: for "
    "networks with normal, Gaussian and strongly non-normal weights of spectral radius 0.5 to 1.8, linear, "
    "tanh and ReLU, with and without inputs.",
    rule=Rule((Part(RIGHT, Share(above=0.75)),)),
    refuted_by="A region of weights and nonlinearities in which it is wrong in most networks.",
    lessons={
        "confirmed": "The spectral radius tells vanishing from exploding gradients.",
        "depends": "The rule is made for linear networks ({linear:.0%} right at these lags). It is right "
        "about {tanh_below:.0%} of tanh networks below 1 and {tanh_above:.0%} above: saturated units shrink "
        "what large weights stretch, and non-normal weights stretch although no eigenvalue says so.",
        "refuted": "The spectral radius of the weights does not tell vanishing from exploding gradients.",
    },
    published=(
        "largest singular value below 1/γ suffices to vanish, above 1/γ is necessary to explode "
        "(Pascanu et al. 2013)",
    ),
).measured_by
def eigenvalue_rule(lab: Lab) -> Evidence:
    """Ask the rule about networks of all kinds."""
    # 16 right of 16 would not stand a correction for 18 conditions.
    count = lab.choose(24, 28)
    conditions: list[_Condition] = list(
        itertools.product(_NONLINEARITIES, (_BELOW, _ABOVE), _MATRICES)
    )
    draws = {where: _draws(*where, count) for where in conditions}
    right = {where: (found.slope > 0) == (found.radius > 1) for where, found in draws.items()}
    samples = [
        Sample(
            RIGHT,
            dict(zip(("nonlinearity", "radius", "weights"), where, strict=True)),
            values.astype(float),
            range(count),
        )
        for where, values in right.items()
    ]

    def share(nonlinearity: str, *regions: str) -> float:
        chosen = (right[w] for w in conditions if w[0] == nonlinearity and w[1] in regions)
        return float(np.mean(list(chosen)))

    return Evidence(
        samples,
        _eigenvalue_controls(draws, right),
        [_slopes_by_radius(name, draws) for name in _NONLINEARITIES],
        facts={
            "linear": share("linear", _BELOW, _ABOVE),
            "tanh_above": share("tanh", _ABOVE),
            "tanh_below": share("tanh", _BELOW),
        },
        settings={"networks": f"{count} a condition, H = 24, T = 100, inputs N(0, s²), s = 0 or 1"},
    )


class _Draws(NamedTuple):
    """Networks of one condition: spectral radius, largest singular value and slope of each [N]."""

    radius: np.ndarray
    stretch: np.ndarray
    slope: np.ndarray


_Condition = tuple[str, str, str]  # nonlinearity, region of the radius, kind of weights


def _eigenvalue_controls(
    draws: dict[_Condition, _Draws], right: dict[_Condition, np.ndarray]
) -> list[Check]:
    everywhere = _Draws(*map(np.concatenate, zip(*draws.values(), strict=True)))
    bounded = everywhere.stretch < 1  # all three nonlinearities have γ = 1
    violations = everywhere.slope[bounded] > 1e-6
    return [
        Check(
            "positive control",
            "the rule is right about linear networks with normal weights",
            all(right["linear", region, "normal"].all() for region in (_BELOW, _ABOVE)),
        ),
        Check(
            "negative control",
            "no network whose largest singular value is below 1 explodes (Pascanu et al. 2013)",
            not violations.any(),
            f"{violations.sum()} of {bounded.sum()}",
        ),
    ]


def _slopes_by_radius(nonlinearity: str, draws: dict[_Condition, _Draws]) -> Panel:
    lines = []
    for kind in _MATRICES:
        below, above = (draws[nonlinearity, region, kind] for region in (_BELOW, _ABOVE))
        radius, slope = (
            np.append(getattr(below, n), getattr(above, n)) for n in ("radius", "slope")
        )
        lines.append(Line(kind, radius, slope, style="points"))
    return Panel(
        nonlinearity,
        "spectral radius of the weights",
        "slope, nats a step",
        lines,
        marks={"": 0.0},
    )


_NONLINEARITIES = {"linear": lambda a: a, "tanh": jnp.tanh, "ReLU": jax.nn.relu}
_UNITS = 24


def _normal(rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(_UNITS, _UNITS)))[0]


def _gaussian(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(_UNITS, _UNITS))


def _non_normal(rng: np.random.Generator) -> np.ndarray:
    """A Schur form with eigenvalues on a circle and as much above the diagonal, in a random basis."""
    basis = np.linalg.qr(rng.normal(size=(_UNITS, _UNITS)))[0]
    above = np.triu(rng.normal(size=(_UNITS, _UNITS)), 1)
    return basis @ (np.diag(rng.choice([-1.0, 1.0], _UNITS)) + above) @ basis.T


_MATRICES = {"normal": _normal, "Gaussian": _gaussian, "non-normal": _non_normal}


def _draws(nonlinearity: str, region: str, kind: str, count: int) -> _Draws:
    """Draw networks; those of one region and kind have the same weights under every nonlinearity."""
    first = 1_000 * (list(_MATRICES).index(kind) + 3 * (region == _ABOVE))
    found = [_draw(first + i, nonlinearity, region, kind) for i in range(count)]
    return _Draws(*map(np.array, zip(*found, strict=True)))


def _draw(seed: int, nonlinearity: str, region: str, kind: str) -> tuple[float, float, float]:
    """Return the spectral radius, the largest singular value and the slope at long lags of one network."""
    rng = np.random.default_rng(seed)
    radius = rng.uniform(0.5, 0.95) if region == _BELOW else rng.uniform(1.05, 1.8)
    weights = _MATRICES[kind](rng)
    weights *= radius / np.abs(np.linalg.eigvals(weights)).max()
    stretch = float(np.linalg.norm(weights, 2))
    activation = _NONLINEARITIES[nonlinearity]
    cell = ElmanCell(FEATURES, _UNITS, activation_fn=activation, rngs=nnx.Rngs(seed))
    cell.recurrent_kernel[...] = jnp.asarray(weights, jnp.float32)
    cell.bias[...] = jnp.asarray(0.1 * rng.normal(size=_UNITS), jnp.float32)
    inputs = rng.choice([0.0, 1.0]) * rng.normal(size=(100, 1, FEATURES))
    start = jnp.asarray(rng.normal(size=(1, _UNITS)), jnp.float32)
    try:
        flow = analysis.gradient_flow(cell, jnp.asarray(inputs, jnp.float32), last, carry=start)
    except ValueError:  # all ReLU units are dead: no gradient at all
        return radius, stretch, -np.inf
    norms = np.asarray(flow.log_norms)[:, 0]
    slope = (norms[0] - norms[75]) / 75 if np.isfinite(norms[[0, 75]]).all() else -np.inf
    return radius, stretch, float(slope)
