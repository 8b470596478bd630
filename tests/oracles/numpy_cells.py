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

from tests.oracles import elementwise, gated, structured
from tests.oracles.parts import Cell, State, Step, Weights

MAKERS: dict[str, Callable[..., Cell]] = {
    **gated.MAKERS,
    **structured.MAKERS,
    **elementwise.MAKERS,
}
"""The cells of the table by their names; each takes the options of ours that its equations know."""

STEPS: dict[str, Step] = {name: make().step for name, make in MAKERS.items()}


def separate(name: str, params: Weights, **options: Any) -> Weights:
    """Return the weights of the paper for a cell of `MAKERS` from the parameters of ours.

    Args:
      name: the cell.
      params: arrays by their names in our cells, ``recurrent_kernel.upper`` for one inside another (`flat`).
      options: of the cell, where they are not the default.
    """
    return MAKERS[name](**options).weights(params)


def flat(params: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Return nested parameters as arrays with dotted names."""
    arrays = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            arrays |= flat(value, f"{prefix}{name}.")
        else:
            arrays[prefix + name] = np.asarray(value)
    return arrays


def reachable(name: str, state: State, **options: Any) -> State:
    """Turn random numbers, leaves [..., H], into a state in which the cell can be."""
    if name == "clockwork":  # its clocks show one time, at which the slowest group soon moves
        clock, h = state
        times = 4 + np.arange(clock[..., 0].size)
        periods = options.get("periods", structured.PERIODS)
        waits = [structured.waits(time, clock.shape[-1], periods) for time in times]
        return np.reshape(waits, clock.shape).astype(clock.dtype), h
    if name == "slstm":  # a normaliser is a sum of exponentials
        c, n, m, h = state
        return c, np.exp(n), m, h
    return state


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
    silence = np.zeros_like(step(initial, xs[0])[1])
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
