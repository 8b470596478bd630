"""Recurrent networks in plain NumPy: the oracle of the cells and of `unroll`.

Written from the papers' equations: one sequence at a time, one step at a time, every gate by itself,
weights in the papers' orientation (W x with W [H, F]). Derivatives come from complex steps (Squire &
Trapp 1998), f'(x) = Im f(x + iε)/ε: no difference is taken, so they are exact to rounding. Every function
here therefore works on complex numbers. Nothing is shared with the package under test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Weights = Mapping[str, np.ndarray]
State = tuple[np.ndarray, ...]
Step = Callable[[Weights, State, np.ndarray], tuple[State, np.ndarray]]


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def relu(a):
    return np.where(a.real > 0, a, 0)


def elman(phi: Callable[[np.ndarray], np.ndarray]) -> Step:
    """Elman 1990; state (h,)."""

    def step(w, state, x):
        (h,) = state
        h = phi(w["W_h"] @ x + w["U_h"] @ h + w["b_h"])
        return (h,), h

    return step


def lstm(w: Weights, state: State, x: np.ndarray) -> tuple[State, np.ndarray]:
    """Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000; state (c, h)."""
    c, h = state
    i = sigmoid(w["W_i"] @ x + w["U_i"] @ h + w["b_i"])
    f = sigmoid(w["W_f"] @ x + w["U_f"] @ h + w["b_f"])
    g = np.tanh(w["W_g"] @ x + w["U_g"] @ h + w["b_g"])
    o = sigmoid(w["W_o"] @ x + w["U_o"] @ h + w["b_o"])
    c = f * c + i * g
    h = o * np.tanh(c)
    return (c, h), h


def gru(w: Weights, state: State, x: np.ndarray) -> tuple[State, np.ndarray]:
    """Cho et al. 2014 with the reset gate after the product; state (h,)."""
    (h,) = state
    r = sigmoid(w["W_r"] @ x + w["U_r"] @ h + w["b_r"])
    z = sigmoid(w["W_z"] @ x + w["U_z"] @ h + w["b_z"])
    n = np.tanh(w["W_n"] @ x + w["b_n"] + r * (w["U_n"] @ h + w["v"]))
    h = (1 - z) * n + z * h
    return (h,), h


STEPS: dict[str, Step] = {
    "elman-tanh": elman(np.tanh),
    "elman-relu": elman(relu),
    "elman-sigmoid": elman(sigmoid),
    "lstm": lstm,
    "gru": gru,
}

GATES = {
    "elman-tanh": "h",
    "elman-relu": "h",
    "elman-sigmoid": "h",
    "lstm": "ifgo",
    "gru": "rzn",
}


def separate(name: str, params: Weights) -> dict[str, np.ndarray]:
    """Cut weights that hold their gates side by side, [F, G·H], into one matrix a gate, [H, F].

    Args:
      name: the cell, a key of `STEPS`.
      params: ``kernel`` [F, G·H], ``recurrent_kernel`` [H, G·H], ``bias`` [G·H] and, for the GRU,
        ``recurrent_bias`` [H].
    """
    gates = GATES[name]
    weights = {}
    for letter, part in (("W", "kernel"), ("U", "recurrent_kernel"), ("b", "bias")):
        blocks = np.split(params[part], len(gates), axis=-1)
        weights |= {f"{letter}_{gate}": block.T for gate, block in zip(gates, blocks, strict=True)}
    if "recurrent_bias" in params:
        weights["v"] = params["recurrent_bias"]
    return weights


class Run(NamedTuple):
    """Outputs [T, *B, Y], the last state and all states, leaves [*B, H] and [T, *B, H]."""

    outputs: np.ndarray
    last: State
    states: State


def run(
    step: Step,
    weights: Weights,
    xs: np.ndarray,
    state: State,
    *,
    lengths: Any = None,
    mask: Any = None,
    resets: Any = None,
    reverse: bool = False,
) -> Run:
    """Carry a step through time over any batch axes; arguments as in `jaxrnn.unroll`."""
    times, batch = xs.shape[0], xs.shape[1:-1]
    valid = np.ones((times, *batch), bool) if mask is None else np.asarray(mask)
    if lengths is not None:
        valid = valid & np.stack([t < np.asarray(lengths) for t in range(times)])
    resets = np.zeros((times, *batch), bool) if resets is None else np.asarray(resets)

    runs = {
        place: _run_sequence(
            lambda s, x: step(weights, s, x),
            xs[(slice(None), *place)],
            tuple(leaf[place] for leaf in state),
            valid[(slice(None), *place)],
            resets[(slice(None), *place)],
            reverse,
        )
        for place in np.ndindex(*batch)
    }

    def gather(pick: Callable[[Run], np.ndarray], batch_axis: int) -> np.ndarray:
        parts = np.stack([pick(runs[place]) for place in np.ndindex(*batch)], batch_axis)
        return parts.reshape(*parts.shape[:batch_axis], *batch, *parts.shape[batch_axis + 1 :])

    leaves = range(len(state))
    return Run(
        outputs=gather(lambda r: r.outputs, 1),
        last=tuple(gather(lambda r, k=k: r.last[k], 0) for k in leaves),
        states=tuple(gather(lambda r, k=k: r.states[k], 1) for k in leaves),
    )


def _run_sequence(
    step: Callable[[State, np.ndarray], tuple[State, np.ndarray]],
    xs: np.ndarray,
    initial: State,
    valid: np.ndarray,
    resets: np.ndarray,
    reverse: bool,
) -> Run:
    state = initial
    states: dict[int, State] = {}
    outputs: dict[int, np.ndarray] = {}
    order: Sequence[int] = range(len(xs))[::-1] if reverse else range(len(xs))
    fresh = False
    for t in order:
        # An episode that begins at t + 1 ends at t, which is where the reading backwards enters it.
        fresh |= bool(t + 1 < len(xs) and resets[t + 1]) if reverse else bool(resets[t])
        if valid[t]:
            state, outputs[t] = step(initial if fresh else state, xs[t])
            fresh = False
        states[t] = state
    silence = np.zeros_like(initial[-1])
    return Run(
        outputs=np.stack([outputs.get(t, silence) for t in range(len(xs))]),
        last=state,
        states=tuple(np.stack([states[t][k] for t in range(len(xs))]) for k in range(len(initial))),
    )


def gradients(
    loss: Callable[[dict[str, np.ndarray]], Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Derivatives of ``loss(arrays)`` by every entry of every array, by complex steps."""
    tiny = 1e-30
    result = {}
    for name, array in arrays.items():
        result[name] = np.zeros(array.shape)
        for place in np.ndindex(*array.shape):
            nudged = array.astype(complex)
            nudged[place] += 1j * tiny
            result[name][place] = np.imag(loss({**arrays, name: nudged})) / tiny
    return result
