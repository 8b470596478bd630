"""Claims about what vanishing gradients do to the weights: whether they still move, and in which direction.

A tanh network is asked for the sign of its first input after T steps of noise, so that only the longest lag
is of any use. Two optimisers train it for 100 updates: SGD, whose updates are as small as its gradients, and
Adam, which divides by their size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxrnn.cells import ElmanCell
from jaxrnn.claims.claim import Claim, Lab, Source
from jaxrnn.claims.evidence import Check, Evidence, Sample
from jaxrnn.claims.panels import strip
from jaxrnn.claims.rules import Exactly, Mean, Part, Rule
from jaxrnn.unrolling import unroll

_TOPIC = "Updates"
_UNITS, _BATCH, _UPDATES = 32, 32, 100
# Updates after which no network has learnt yet: one that has stops moving for that reason.
_FIRST = 10
_SHORT, _LONG = 5, 200
_OPTIMISERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "SGD": lambda: optax.sgd(0.1),
    "Adam": lambda: optax.adam(1e-3),
}


class Network(NamedTuple):
    """A tanh network with a readout [H] of the last state."""

    cell: ElmanCell
    readout: Any


def _fresh(seed: int) -> Network:
    rngs = nnx.Rngs(seed)
    return Network(ElmanCell(1, _UNITS, rngs=rngs), rngs.params.normal((_UNITS,)) / _UNITS**0.5)


def _flipped(network: Network) -> Network:
    """Return the network whose states are the negatives: tanh is odd, so it computes the same logits."""
    cell = jax.tree.map(lambda leaf: leaf, network.cell)
    cell.kernel[...] = -cell.kernel[...]
    cell.bias[...] = -cell.bias[...]
    return Network(cell, -network.readout)


@functools.partial(jax.jit, static_argnames=("steps", "optimiser", "updates"))
def _train(
    network: Network, key: Any, *, steps: int, optimiser: str, updates: int = _UPDATES
) -> tuple[Network, Any]:
    """Return the network after the updates, and the losses [updates]."""
    rule: Any = _OPTIMISERS[optimiser]()

    def loss(network: Network, key: Any) -> Any:
        for_signs, for_noise = jax.random.split(key)
        signs = jax.random.rademacher(for_signs, (_BATCH,), jnp.float32)
        xs = 0.1 * jax.random.normal(for_noise, (steps, _BATCH, 1))
        last = unroll(network.cell, xs.at[0, :, 0].set(signs)).outputs[-1]
        return jnp.mean(jnp.log1p(jnp.exp(-signs * (last @ network.readout))))

    def update(state: Any, key: Any) -> tuple[Any, Any]:
        network, memory = state
        value, gradient = jax.value_and_grad(loss)(network, key)
        with jax.numpy_dtype_promotion("standard"):  # Optax raises floats to whole powers
            change, memory = rule.update(gradient, memory)
        return (jax.tree.map(jnp.add, network, change), memory), value

    keys = jax.random.split(key, updates)
    (network, _), losses = jax.lax.scan(update, (network, rule.init(network)), keys)
    return network, losses


def _kernel(network: Network) -> np.ndarray:
    return np.asarray(network.cell.recurrent_kernel[...])


CHANGE = "log ratio of the change of the recurrent weights, long over short sequences"


@Claim(
    "null-updates",
    topic=_TOPIC,
    statement="With vanishing gradients the weights end up not being trained at all.",
    said_by=(
        Source("Charu", "weights receive vanishingly small updates and stop training"),
        Source("OpenGenus", "the updates become null"),
    ),
    why="An update is a learning rate times a gradient, and that vanishes.",
    measured=f"Change of the recurrent weights in the first {_FIRST} updates on sequences of {_LONG} steps, "
    f"against that on sequences of {_SHORT}, when only the first input is of use.",
    rule=Rule((Part(CHANGE, Mean(below=-float(np.log(1.5)))),)),
    refuted_by="Weights that move as far on long sequences as on short ones.",
    lessons={
        "confirmed": "On sequences of 200 steps the weights move less than on short ones, by a factor of "
        "{sgd:.2g} under SGD and {adam:.2g} under Adam.",
        "depends": "It depends on the optimiser: on sequences of 200 steps the weights move {sgd:.2g} times "
        "as far as on short ones under SGD, and {adam:.2g} times under Adam, which divides by the gradient's "
        "size. That they move does not say that they learn: the loss stays at {loss:.2f} (chance 0.69).",
        "refuted": "The weights move as far on long sequences as on short ones ({sgd:.2g} times under SGD, "
        "{adam:.2g} under Adam), only not towards what is asked: the loss stays at {loss:.2f} (chance 0.69).",
        "undecided": "On long sequences the weights move {sgd:.2g} times as far as on short ones under SGD, "
        "{adam:.2g} times under Adam.",
    },
).measured_by
def null_updates(lab: Lab) -> Evidence:
    """Train on short and on long sequences."""
    samples, moved, losses = [], [], {}
    for optimiser in _OPTIMISERS:
        distances: dict[int, list[float]] = {}
        for steps in (_SHORT, _LONG):
            for seed, key in zip(lab.seeds, lab.keys, strict=True):
                before = _fresh(seed)
                settings = {"steps": steps, "optimiser": optimiser}
                _, loss = _train(before, key, **settings)
                after, _ = _train(before, key, **settings, updates=_FIRST)
                distance = np.linalg.norm(_kernel(after) - _kernel(before))
                distances.setdefault(steps, []).append(float(distance))
                losses[optimiser, steps] = float(loss[-10:].mean())
        ratios = np.log(np.array(distances[_LONG]) / np.array(distances[_SHORT]))
        samples.append(Sample(CHANGE, {"optimiser": optimiser}, ratios, lab.seeds))
        moved.append(min(distances[_SHORT]))
    sgd, adam = (float(np.exp(np.mean(s.values))) for s in samples)
    return Evidence(
        samples,
        [
            Check(
                "positive control",
                "on short sequences the weights move and the loss falls",
                min(moved) > 1e-3 and losses["Adam", _SHORT] < 0.65,
                f"moved by {min(moved):.2g}, loss {losses['Adam', _SHORT]:.2f}",
            )
        ],
        [strip(samples, "optimiser", "Change of the recurrent weights", {"as far": 0.0})],
        facts={"sgd": sgd, "adam": adam, "loss": losses["Adam", _LONG]},
        settings={
            "network": "Elman, tanh, 32 units; SGD 0.1, Adam 0.001, 100 updates of 32 sequences"
        },
    )


CROSSED = "recurrent weights that went from above zero to below"


@Claim(
    "never-below-zero",
    topic=_TOPIC,
    statement="Weights cannot be updated below zero.",
    said_by=(Source("OpenGenus", "the weights cannot be updated below zero"),),
    why="Some activations are never negative.",
    measured=f"Number of recurrent weights of a tanh network that are above zero before {_UPDATES} updates "
    "and below zero after them.",
    rule=Rule((Part(CROSSED, Exactly(at_most=0)),), universal=True),
    refuted_by="One weight that goes below zero.",
    lessons={
        "refuted": "Weights go below zero like any number ({count:.0f} of 1,024 did in 100 updates by SGD), "
        "and a tanh network with all signs turned round trains just alike.",
        "confirmed": "No weight went below zero.",
    },
).measured_by
def never_below_zero(lab: Lab) -> Evidence:
    """Train networks and those with all signs turned round."""
    crossed, differences = [], []
    for seed, key in zip(lab.seeds, lab.keys, strict=True):
        before = _fresh(seed)
        after, losses = _train(before, key, steps=_SHORT, optimiser="SGD")
        _, again = _train(_flipped(before), key, steps=_SHORT, optimiser="SGD")
        crossed.append(int(((_kernel(before) > 0) & (_kernel(after) < 0)).sum()))
        differences.append(float(jnp.abs(losses - again).max()))
    samples = [Sample(CROSSED, {"optimiser": "SGD"}, crossed, lab.seeds)]
    return Evidence(
        samples,
        [
            Check(
                "positive control",
                "a network with all signs turned round trains alike",
                max(differences) < 1e-4,
                f"losses differ by {max(differences):.1e}",
            )
        ],
        [strip(samples, "optimiser", "Weights that went below zero", {})],
        facts={"count": np.mean(crossed)},
        settings={
            "network": "Elman, tanh, 32 units, SGD 0.1, 100 updates of 32 sequences of 5 steps"
        },
    )
