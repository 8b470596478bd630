"""Mean-field theory of gated cells. Oracles: NumPy networks, sums of Gaussian means, the Elman theory."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import expit

import jaxrnn
from jaxrnn.analysis._gated_mean_field import gated_mean_field
from jaxrnn.analysis._mean_field import mean_field
from jaxrnn.checks import InputError
from tests.analysis.examples import blank

CELLS = {"elman": jaxrnn.ElmanCell, "gru": jaxrnn.GRUCell, "lstm": jaxrnn.LSTMCell}
GATES = {"elman": 1, "gru": 3, "lstm": 4}


def theory(name, gain, drive, mean=None, **settings):
    """The theory with the same gain and the same variance of the drive at every gate."""
    gates = GATES[name]
    return gated_mean_field(
        blank(CELLS[name], 1, 1),
        np.full(gates, gain),
        drive_mean=np.zeros(gates) if mean is None else np.asarray(mean),
        drive_variance=np.full(gates, drive),
        key=jax.random.key(0),
        **settings,
    )


def gru(state, delta, W, drive):
    """One step of a NumPy GRU and of a small difference."""
    (h,), (dh,) = state, delta
    r, z = expit(drive[0] + W[0] @ h), expit(drive[1] + W[1] @ h)
    p, dp = W[2] @ h, W[2] @ dh
    n = np.tanh(drive[2] + r * p)
    dr, dz = r * (1 - r) * (W[0] @ dh), z * (1 - z) * (W[1] @ dh)
    dn = (1 - n**2) * (dr * p + r * dp)
    return (z * h + (1 - z) * n,), (z * dh + (1 - z) * dn + dz * (h - n),)


def lstm(state, delta, W, drive):
    """One step of a NumPy LSTM and of a small difference."""
    (h, c), (dh, dc) = state, delta
    i, f, g, o = (a + w @ h for a, w in zip(drive, W, strict=True))
    di, df, dg, do = (w @ dh for w in W)
    i, f, g, o = expit(i), expit(f), np.tanh(g), expit(o)
    dc = f * dc + f * (1 - f) * df * c + i * (1 - i) * di * g + i * (1 - g**2) * dg
    c = f * c + i * g
    t = np.tanh(c)
    return (o * t, c), (o * (1 - o) * do * t + o * (1 - t**2) * dc, dc)


@functools.cache
def networks(name, gain, drive, mean=None, size=500, steps=200, count=5):
    """Rate and mean square of h of several draws, [count, 2]."""
    step, gates = {"gru": gru, "lstm": lstm}[name], GATES[name]
    rows = []
    for seed in range(count):
        draw = np.random.default_rng(seed)
        W = draw.normal(size=(gates, size, size)) * gain / np.sqrt(size)
        state, delta = draw.normal(size=(2, gates - 2, size))
        seen = []
        for t in range(steps + 60):
            noise = draw.normal(size=(gates, size)) * np.sqrt(drive)
            offset = np.zeros(gates) if mean is None else np.array(mean)
            state, delta = step(tuple(state), tuple(delta), W, noise + offset[:, None])
            length = np.linalg.norm(delta)
            delta = np.array(delta) / length
            seen += [(np.log(length), (state[0] ** 2).mean())] if t >= 60 else []
        rows.append(np.mean(seen, axis=0))
    return np.array(rows)


# GRU: state (h,), one leaf; LSTM: state (h, c).
SETTINGS = [
    ("gru", 1.0, 0.5, None),
    ("gru", 2.0, 1.0, None),
    ("lstm", 2.0, 1.0, (0.0, 1.0, 0.0, 0.0)),
]


@pytest.mark.parametrize(
    ("name", "gain", "drive", "mean"),
    [pytest.param(*SETTINGS[0], marks=pytest.mark.slow), *SETTINGS[1:]],
)
def test_networks_of_500_units(name, gain, drive, mean):
    """Within 5 standard errors of both, and 2/N for what does not average out."""
    found = theory(name, gain, drive, mean)
    measured = networks(name, gain, drive, mean)
    error = measured.std(axis=0, ddof=1) / np.sqrt(len(measured))
    rate, square = measured.mean(axis=0)
    assert found.status == "converged"
    slack = 5 * math.hypot(error[0], found.lyapunov_stderr) + 2 / 500
    assert abs(found.lyapunov - rate) < slack < 0.02
    slack = 5 * math.hypot(error[1], found.mean_square_stderr) + 2 / 500 * square
    assert abs(found.mean_square - square) < slack < 0.04 * square


@pytest.mark.slow
def test_slow_network_without_input():
    """In float32 the last steps' directions blur, and this comes out as 0.21."""
    found = theory("gru", 3.0, 0.0)
    square = networks("gru", 3.0, 0.0)[:, 1]
    error = math.hypot(square.std(ddof=1) / np.sqrt(len(square)), found.mean_square_stderr)
    assert abs(found.mean_square - square.mean()) < 5 * error
    assert found.mean_square > 0.24
    assert found.lyapunov > 0.05  # chaos, which N = 500 shows less of


@pytest.mark.parametrize(("name", "gain", "drive", "mean"), SETTINGS)
@pytest.mark.slow
def test_weights_that_are_new_at_each_step_give_another_rate(name, gain, drive, mean):
    """What the module says of the theory without memory: a fair variance, a wrong rate."""
    untied = theory(name, gain, drive, mean, memory=0)
    rate, square = networks(name, gain, drive, mean).mean(axis=0)
    assert untied.mean_square == pytest.approx(square, rel=0.25)
    assert rate - untied.lyapunov > 0.05


def test_untied_gru_in_closed_form():
    """E h² = (E (1 − z)² E n²) / (1 − E z²), and χ as in the module's text; Gauss–Hermite."""
    gain, drive = 1.5, 0.8
    x, w = hermegauss(40)
    w = w / w.sum()
    # r, p and the candidate's drive are independent: three axes.
    weight = w[:, None, None] * w[None, :, None] * w[None, None]

    def moments(square):
        gate = expit(math.sqrt(gain**2 * square + drive) * x)
        p = gain * math.sqrt(square) * x
        n = np.tanh(math.sqrt(drive) * x[None, None] + gate[:, None, None] * p[None, :, None])
        return gate, p, n, (weight * n**2).sum()

    square = 0.3
    for _ in range(100):
        gate, _, _, n_square = moments(square)
        square = w @ (1 - gate) ** 2 * n_square / (1 - w @ gate**2)
    gate, p, n, n_square = moments(square)
    slope = (1 - n**2) ** 2 * weight
    r = gate[:, None, None]
    closed = w @ (1 - gate) ** 2
    chi = (
        w @ gate**2
        + gain**2 * (square + n_square) * (w @ (gate * (1 - gate)) ** 2)
        + gain**2 * closed * (slope * r**2).sum()
        + gain**2 * closed * (slope * p[None, :, None] ** 2 * (r * (1 - r)) ** 2).sum()
    )
    found = theory("gru", gain, drive, memory=0)
    assert abs(found.mean_square - square) < 5 * found.mean_square_stderr
    assert abs(found.lyapunov - 0.5 * math.log(chi)) < 5 * found.lyapunov_stderr + 1e-3
    assert found.mean_square_stderr < 0.01 * square
    assert found.lyapunov_stderr < 0.005


@pytest.mark.parametrize("memory", [0, 8])
def test_elman_cell_has_the_elman_theory(memory):
    found = theory("elman", 2.0, 0.3, memory=memory)
    exact = mean_field(jnp.tanh, 2.0, input_variance=0.3)
    assert abs(found.mean_square - exact.mean_square) < 5 * found.mean_square_stderr + 1e-3
    assert abs(found.lyapunov - exact.lyapunov) < 5 * found.lyapunov_stderr + 1e-3
    assert found.lyapunov_stderr < 0.005


@pytest.mark.parametrize(
    ("name", "mean", "rate"),
    [
        ("lstm", (0.0, 1.0, 0.0, 0.0), math.log(expit(1.0))),
        ("gru", (0.0, -0.7, 0.0), math.log(expit(-0.7))),
    ],
)
def test_without_weights_the_gate_is_the_rate(name, mean, rate):
    found = theory(name, 0.0, 0.0, mean, units=20, steps=300)
    assert found.lyapunov == pytest.approx(rate, abs=1e-5)


def test_run_that_has_not_settled_is_said():
    slow = theory("lstm", 0.0, 0.5, (0.0, 6.0, 0.0, 0.0), steps=60, units=1000)
    assert slow.status == "still drifting"


def test_same_key_same_result():
    assert theory("gru", 1.0, 0.5, steps=20, units=30) == theory(
        "gru", 1.0, 0.5, steps=20, units=30
    )


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"gains": np.ones(2)}, "gains"),
        ({"gains": np.array([1.0, -1.0, 1.0])}, "gains"),
        ({"gains": np.ones(3, int)}, "gains"),
        ({"drive_mean": np.array([0.0, np.nan, 0.0])}, "drive_mean"),
        ({"drive_variance": np.array([0.0, -1.0, 0.0])}, "drive_variance"),
        ({"steps": 3}, "steps"),
        ({"units": 0}, "units"),
        ({"memory": -1}, "memory"),
    ],
)
def test_bad_settings_are_refused(settings, argument):
    given = {
        "gains": np.ones(3),
        "drive_mean": np.zeros(3),
        "drive_variance": np.ones(3),
    } | settings
    with pytest.raises(InputError, match=f"^{argument}: got"):
        gated_mean_field(
            blank(jaxrnn.GRUCell, 1, 1), given.pop("gains"), key=jax.random.key(0), **given
        )


def test_step_that_is_not_split_is_refused():
    with pytest.raises(InputError, match=r"^cell: got"):
        gated_mean_field(
            lambda s, x: (s, s),
            np.ones(1),
            drive_mean=np.zeros(1),
            drive_variance=np.ones(1),
            key=jax.random.key(0),
        )
