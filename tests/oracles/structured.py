"""Networks whose recurrent matrix, or whose time, has a structure: turning, oscillating, ticking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.linalg

from tests.oracles.parts import Cell, gates, real_form, relu, sigmoid, size, skew


def indrnn() -> Cell:
    """Li et al. 2018 with ReLU; state (h,)."""

    def weights(params):
        return {**gates("h", params), "u": params["recurrent_weight"]}

    def step(w, state, x):
        (h,) = state
        h = relu(w["W_h"] @ x + w["u"] * h + w["b_h"])
        return (h,), h

    return Cell(weights, step)


PERIODS = (1, 2, 4, 8)


def clockwork(periods: Sequence[int] = PERIODS) -> Cell:
    """Koutník et al. 2014: at time t those groups move whose period divides t; state (−t mod T_g, h)."""

    def weights(params):
        w = gates("h", params)
        entries = params["recurrent_kernel.entries"]
        of_unit = dealt(len(w["b_h"]), periods)
        U = np.zeros((len(of_unit), len(of_unit)), entries.dtype)
        rest = iter(entries)
        for source, slow in enumerate(of_unit):
            for target, fast in enumerate(of_unit):
                if slow >= fast:
                    U[target, source] = next(rest)
        return {**w, "U_h": U}

    def step(w, state, x):
        wait, h = state
        of_unit = dealt(len(h), periods)
        t = -np.round(wait.real) % of_unit  # the time as far as it matters to a unit
        new = np.tanh(w["W_h"] @ x + w["U_h"] @ h + w["b_h"])
        h = np.where(t % of_unit == 0, new, h)
        return (-(t + 1) % of_unit, h), h

    return Cell(weights, step)


def dealt(units: int, periods: Sequence[int]) -> np.ndarray:
    """Return the period of each unit; the first groups are one larger where H cannot be dealt evenly."""
    share, more = divmod(units, len(periods))
    return np.repeat(periods, [share + (g < more) for g in range(len(periods))])


def waits(time: Any, units: int, periods: Sequence[int]) -> np.ndarray:
    """Return the steps that each unit has to wait at a time."""
    return -time % dealt(units, periods)


def orthogonal() -> Cell:
    """Lezcano-Casado & Martínez-Rubio 2019, B = exp(A); state (h,)."""

    def weights(params):
        A = skew(params["recurrent_kernel.log.upper"]).T
        return {
            "T": params["kernel"].T,
            "B": scipy.linalg.expm(A),
            "b": params["threshold"],
        }

    def step(w, state, x):
        (h,) = state
        z = w["B"] @ h + w["T"] @ x
        h = np.sign(z.real) * relu(size(z) + w["b"])
        return (h,), h

    return Cell(weights, step)


def unitary() -> Cell:
    """Arjovsky et al. 2016 as real matrices [2H, 2H]; state (Re h, Im h)."""

    def weights(params):
        b = params["threshold"]
        still = np.zeros((len(b), len(b)))
        place = np.arange(len(b))
        angles = 2 * np.pi * np.outer(place, place) / len(b)
        F = real_form(np.cos(angles), -np.sin(angles)) / np.sqrt(len(b))
        Π = real_form(np.eye(len(b))[np.random.RandomState(0).permutation(len(b))], still)
        D1, D2, D3 = (
            real_form(np.diag(np.cos(phases)), np.diag(np.sin(phases)))
            for phases in params["phases.angles"]
        )
        R1, R2 = (reflection(*np.split(v, 2)) for v in params["normals.free"])
        V = np.vstack(np.split(params["kernel"].T, 2))
        return {"W": D3 @ R2 @ F.T @ D2 @ Π @ R1 @ F @ D1, "V": V, "b": b}

    def reflection(re, im):
        """I − 2 v v* / ‖v‖²."""
        square = re @ re + im @ im
        outer = np.outer(re, re) + np.outer(im, im), np.outer(im, re) - np.outer(re, im)
        return np.eye(2 * len(re)) - 2 * real_form(*outer) / square

    def step(w, state, x):
        z = w["W"] @ np.concatenate(state) + w["V"] @ x
        re, im = np.split(z, 2)
        length = np.sqrt(re**2 + im**2)
        stretch = relu(length + w["b"]) / length
        re, im = stretch * re, stretch * im
        return (re, im), np.concatenate([re, im])

    return Cell(weights, step)


def antisymmetric(step_size: float = 0.1, diffusion: float = 0.01) -> Cell:
    """Chang et al. 2019: an Euler step with W − Wᵀ − γ I; state (h,)."""

    def weights(params):
        A = skew(params["recurrent_kernel.upper"]).T
        return {**gates("h", params), "A": A - diffusion * np.eye(len(A))}

    def step(w, state, x):
        (h,) = state
        h = h + step_size * np.tanh(w["A"] @ h + w["W_h"] @ x + w["b_h"])
        return (h,), h

    return Cell(weights, step)


def lipschitz(step_size: float = 0.1, blend: float = 0.75, damping: float = 0.001) -> Cell:
    """Erichson et al. 2021 by Euler's method; state (h,)."""

    def weights(params):
        def blended(M):
            shift = damping * np.eye(len(M))
            return (1 - blend) * (M + M.T) + blend * (M - M.T) - shift

        A, U = (blended(params[f"{k}.free"].T) for k in ("linear", "recurrent_kernel"))
        return {**gates("h", params), "A": A, "U": U}

    def step(w, state, x):
        (h,) = state
        slope = w["A"] @ h + np.tanh(w["U"] @ h + w["W_h"] @ x + w["b_h"])
        h = h + step_size * slope
        return (h,), h

    return Cell(weights, step)


def cornn(step_size: float = 0.1, frequency: float = 1.0, damping: float = 1.0) -> Cell:
    """Rusch & Mishra 2021 with explicit damping; state (z, y)."""

    def weights(params):
        return {**gates("h", params), "V": params["velocity_kernel"].T}

    def step(w, state, x):
        z, y = state
        force = np.tanh(w["U_h"] @ y + w["V"] @ z + w["W_h"] @ x + w["b_h"])
        z = z + step_size * force - step_size * frequency * y - step_size * damping * z
        y = y + step_size * z
        return (z, y), y

    return Cell(weights, step)


def lem(step_size: float = 1.0) -> Cell:
    """Rusch et al. 2022; state (z, y). Gates 1 and 2 are steps, of z and of y."""

    def step(w, state, x):
        z, y = state
        of_z = step_size * sigmoid(w["U_1"] @ y + w["W_1"] @ x + w["b_1"])
        of_y = step_size * sigmoid(w["U_2"] @ y + w["W_2"] @ x + w["b_2"])
        z = (1 - of_z) * z + of_z * np.tanh(w["U_z"] @ y + w["W_z"] @ x + w["b_z"])
        y = (1 - of_y) * y + of_y * np.tanh(w["U_y"] @ z + w["W_y"] @ x + w["b_y"])
        return (z, y), y

    return Cell(lambda params: gates("12zy", params), step)


MAKERS: dict[str, Callable[..., Cell]] = {
    "indrnn": indrnn,
    "clockwork": clockwork,
    "orthogonal": orthogonal,
    "unitary": unitary,
    "antisymmetric": antisymmetric,
    "lipschitz": lipschitz,
    "cornn": cornn,
    "lem": lem,
}
