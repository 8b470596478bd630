"""Networks whose units do not hear each other: gates from the input, and linear state spaces."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg

from tests.oracles.parts import Cell, gates, sigmoid


def sru() -> Cell:
    """Lei et al. 2018 with W_s x + b_s on the highway; state (c, h)."""

    def weights(params):
        v_f, v_r = np.split(params["peepholes"], 2)
        return {**gates("frns", params), "v_f": v_f, "v_r": v_r}

    def step(w, state, x):
        c, _ = state
        f = sigmoid(w["W_f"] @ x + w["v_f"] * c + w["b_f"])
        r = sigmoid(w["W_r"] @ x + w["v_r"] * c + w["b_r"])
        c = f * c + (1 - f) * (w["W_n"] @ x + w["b_n"])
        h = r * c + (1 - r) * (w["W_s"] @ x + w["b_s"])
        return (c, h), h

    return Cell(weights, step)


def mingru() -> Cell:
    """Feng et al. 2024; state (h,)."""

    def step(w, state, x):
        (h,) = state
        z = sigmoid(w["W_z"] @ x + w["b_z"])
        h = (1 - z) * h + z * (w["W_n"] @ x + w["b_n"])
        return (h,), h

    return Cell(lambda params: gates("zn", params), step)


def minlstm() -> Cell:
    """Feng et al. 2024, gates normalised to sum to 1; state (h,)."""

    def step(w, state, x):
        (h,) = state
        f = sigmoid(w["W_f"] @ x + w["b_f"])
        i = sigmoid(w["W_i"] @ x + w["b_i"])
        n = w["W_n"] @ x + w["b_n"]
        h = f / (f + i) * h + i / (f + i) * n
        return (h,), h

    return Cell(lambda params: gates("fin", params), step)


def rg_lru() -> Cell:
    """De et al. 2024, c = 8; state (h,)."""

    def weights(params):
        return {**gates("rin", params), "a": sigmoid(params["log_odds"])}

    def step(w, state, x):
        (h,) = state
        r = sigmoid(w["W_r"] @ x + w["b_r"])
        i = sigmoid(w["W_i"] @ x + w["b_i"])
        a = w["a"] ** (8 * r)
        h = a * h + np.sqrt(1 - a**2) * (i * (w["W_n"] @ x + w["b_n"]))
        return (h,), h

    return Cell(weights, step)


# Linear state spaces: each complex unit is a real pair, on which its number acts as a matrix [2, 2].


def _as_matrix(re, im):
    return np.array([[re, -im], [im, re]])


def _pairs(w, state, x):
    """Take the step s' = λ s + γ B x of all units; w["λ"] and w["γ"] hold a matrix [2, 2] for each."""
    before = np.stack(state, axis=-1)
    driven = np.stack([w["B_re"] @ x, w["B_im"] @ x], axis=-1)
    moved = [
        turn @ s + scale @ u
        for turn, s, scale, u in zip(w["λ"], before, w["γ"], driven, strict=True)
    ]
    re, im = np.transpose(moved)
    return (re, im), np.concatenate([re, im])


def _input_map(params):
    B_re, B_im = np.split(params["kernel"].T, 2)
    return {"B_re": B_re, "B_im": B_im}


def lru() -> Cell:
    """Orvieto et al. 2023, λ = exp(−exp(ν) + i exp(θ)); state (Re s, Im s)."""

    def weights(params):
        radius = np.exp(-np.exp(params["log_decay"]))
        angle = np.exp(params["log_phase"])
        scale = np.exp(params["log_scale"])
        turns = [r * _as_matrix(np.cos(a), np.sin(a)) for r, a in zip(radius, angle, strict=True)]
        return {**_input_map(params), "λ": turns, "γ": [s * np.eye(2) for s in scale]}

    return Cell(weights, _pairs)


def s5() -> Cell:
    """Smith et al. 2023: ds/dt = Λ s + B x with x held for Δ, solved as one matrix exponential.

    exp(Δ [[Λ, I], [0, 0]]) = [[exp(Λ Δ), ∫₀^Δ exp(Λ t) dt], [0, I]] (Van Loan 1978).
    """

    def weights(params):
        turns, scales = [], []
        for decay, frequency, step in zip(
            np.exp(params["log_decay"]),
            params["frequency"],
            np.exp(params["log_step"]),
            strict=True,
        ):
            rates = _as_matrix(-decay, frequency)
            both = np.block([[rates, np.eye(2)], [np.zeros((2, 4))]])
            moved = scipy.linalg.expm(both * step)
            turns.append(moved[:2, :2])
            scales.append(moved[:2, 2:])
        return {**_input_map(params), "λ": turns, "γ": scales}

    return Cell(weights, _pairs)


MAKERS: dict[str, Callable[..., Cell]] = {
    "sru": sru,
    "mingru": mingru,
    "minlstm": minlstm,
    "rg-lru": rg_lru,
    "lru": lru,
    "s5": s5,
}
