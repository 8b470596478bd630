"""Claims about direction: what a network that reads forwards, both ways, or through a window can know.

Labels stand some steps later or earlier in the input. Whether a network *can* use that step is asked without
training it: states of random networks are read by least squares, which finds what is in them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn.cells import ElmanCell
from jaxrnn.claims.claim import Claim, Lab, Source
from jaxrnn.claims.evidence import Check, Evidence, Line, Panel, Sample
from jaxrnn.claims.rules import Mean, Part, Rule
from jaxrnn.models import (
    WindowedMLP,
)
from jaxrnn.unrolling import unroll

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


@Claim(
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
).measured_by
def unidirectional(lab: Lab) -> Evidence:
    """Read what is in the states of either direction."""
    found: dict[tuple[str, str], list[float]] = {}
    for key in lab.keys:
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


@Claim(
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
).measured_by
def bidirectional_needs_ends(lab: Lab) -> Evidence:
    """Begin the backward half a few steps after each answer."""
    widths = (0, 2, _AHEAD - 1, _AHEAD, 8, 16)
    found: dict[int, list[float]] = {width: [] for width in widths}
    for key in lab.keys:
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


@Claim(
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
).measured_by
def feedforward_no_past(lab: Lab) -> Evidence:
    """Read random features of windows."""
    windows = (1, _AHEAD, _AHEAD + 1, 2 * _AHEAD)
    found: dict[int, list[float]] = {window: [] for window in windows}
    for seed, key in zip(lab.seeds, lab.keys, strict=True):
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
