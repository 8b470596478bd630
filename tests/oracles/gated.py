"""Networks with one nonlinearity, and with gates that read the state."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from tests.oracles.parts import Cell, gates, larger, relu, sigmoid, size


def elman(phi: Callable[[np.ndarray], np.ndarray]) -> Cell:
    """Elman 1990; Le, Jaitly & Hinton 2015 with ReLU; state (h,)."""

    def step(w, state, x):
        (h,) = state
        h = phi(w["W_h"] @ x + w["U_h"] @ h + w["b_h"])
        return (h,), h

    return Cell(functools.partial(gates, "h"), step)


def jordan(out_features: int | None = None) -> Cell:
    """Jordan 1986 without decay of the context; state (y,)."""
    del out_features  # the weights' shapes have it

    def weights(params):
        return {
            **gates("h", params),
            "V": params["output_kernel"].T,
            "d": params["output_bias"],
        }

    def step(w, state, x):
        (y,) = state
        h = np.tanh(w["W_h"] @ x + w["U_h"] @ y + w["b_h"])
        y = np.tanh(w["V"] @ h + w["d"])
        return (y,), y

    return Cell(weights, step)


def leaky(time_constant: float = 5.0) -> Cell:
    """Funahashi & Nakamura 1993, τ dh/dt = −h + tanh(…) by Euler steps of 1; state (h,)."""

    def step(w, state, x):
        (h,) = state
        slope = (-h + np.tanh(w["W_h"] @ x + w["U_h"] @ h + w["b_h"])) / time_constant
        return (h + slope,), h + slope

    return Cell(functools.partial(gates, "h"), step)


def lstm() -> Cell:
    """Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000; state (c, h)."""

    def step(w, state, x):
        c, h = state
        i = sigmoid(w["W_i"] @ x + w["U_i"] @ h + w["b_i"])
        f = sigmoid(w["W_f"] @ x + w["U_f"] @ h + w["b_f"])
        g = np.tanh(w["W_g"] @ x + w["U_g"] @ h + w["b_g"])
        o = sigmoid(w["W_o"] @ x + w["U_o"] @ h + w["b_o"])
        c = f * c + i * g
        h = o * np.tanh(c)
        return (c, h), h

    return Cell(functools.partial(gates, "ifgo"), step)


def peephole_lstm() -> Cell:
    """Gers & Schmidhuber 2000: i and f see the old cell state, o sees the new one; state (c, h)."""

    def weights(params):
        p_i, p_f, p_o = np.split(params["peepholes"], 3)
        return {**gates("ifgo", params), "p_i": p_i, "p_f": p_f, "p_o": p_o}

    def step(w, state, x):
        c, h = state
        i = sigmoid(w["W_i"] @ x + w["U_i"] @ h + w["p_i"] * c + w["b_i"])
        f = sigmoid(w["W_f"] @ x + w["U_f"] @ h + w["p_f"] * c + w["b_f"])
        g = np.tanh(w["W_g"] @ x + w["U_g"] @ h + w["b_g"])
        c = f * c + i * g
        o = sigmoid(w["W_o"] @ x + w["U_o"] @ h + w["p_o"] * c + w["b_o"])
        h = o * np.tanh(c)
        return (c, h), h

    return Cell(weights, step)


def projected_lstm(projection_features: int | None = None) -> Cell:
    """Sak, Senior & Beaufays 2014, without peepholes: what recurs is r = P m; state (c, r)."""
    del projection_features  # the weights show it

    def weights(params):
        return {**gates("ifgo", params), "P": params["projection"].T}

    def step(w, state, x):
        c, r = state
        (c, m), _ = lstm().step(w, (c, r), x)
        r = w["P"] @ m
        return (c, r), r

    return Cell(weights, step)


def gru() -> Cell:
    """Cho et al. 2014 with the reset gate after the product; state (h,)."""

    def weights(params):
        return {**gates("rzn", params), "v": params["recurrent_bias"]}

    def step(w, state, x):
        (h,) = state
        r = sigmoid(w["W_r"] @ x + w["U_r"] @ h + w["b_r"])
        z = sigmoid(w["W_z"] @ x + w["U_z"] @ h + w["b_z"])
        n = np.tanh(w["W_n"] @ x + w["b_n"] + r * (w["U_n"] @ h + w["v"]))
        h = (1 - z) * n + z * h
        return (h,), h

    return Cell(weights, step)


def reset_before_gru() -> Cell:
    """Cho et al. 2014; state (h,)."""

    def step(w, state, x):
        (h,) = state
        r = sigmoid(w["W_r"] @ x + w["U_r"] @ h + w["b_r"])
        z = sigmoid(w["W_z"] @ x + w["U_z"] @ h + w["b_z"])
        n = np.tanh(w["W_n"] @ x + w["U_n"] @ (r * h) + w["b_n"])
        h = z * h + (1 - z) * n
        return (h,), h

    return Cell(functools.partial(gates, "rzn"), step)


def ogru() -> Cell:
    """Wang et al. 2019 as the cell's file reads it: the update gate hears what the reset gate lets pass."""

    def step(w, state, x):
        (h,) = state
        passed = sigmoid(w["W_r"] @ x + w["U_r"] @ h + w["b_r"]) * h
        z = sigmoid(w["W_z"] @ x + w["U_z"] @ passed + w["b_z"])
        n = np.tanh(w["W_n"] @ x + w["U_n"] @ passed + w["b_n"])
        h = z * h + (1 - z) * n
        return (h,), h

    return Cell(functools.partial(gates, "rzn"), step)


def mgu() -> Cell:
    """Zhou et al. 2016; state (h,)."""

    def step(w, state, x):
        (h,) = state
        f = sigmoid(w["W_f"] @ x + w["U_f"] @ h + w["b_f"])
        n = np.tanh(w["W_n"] @ x + w["U_n"] @ (f * h) + w["b_n"])
        h = (1 - f) * h + f * n
        return (h,), h

    return Cell(functools.partial(gates, "fn"), step)


# xLSTM, Beck et al. 2024, without the stabiliser: exponentials as they are, fit for small exponents alone.
# Memory and normaliser are divided by e^m only to hand the state on as the cells keep it.


def slstm(heads: int = 1) -> Cell:
    """Beck et al. 2024, forget gate σ; state (c e^−m, n e^−m, m, h)."""

    def weights(params):
        blocks = params["recurrent_kernel"]
        of_head = blocks.shape[1]
        w = gates("zifo", {k: a for k, a in params.items() if k != "recurrent_kernel"})
        for g, gate in enumerate("zifo"):
            matrix = np.zeros((heads * of_head, heads * of_head), blocks.dtype)
            for n in range(heads):
                units = slice(n * of_head, (n + 1) * of_head)
                matrix[units, units] = blocks[n][:, g * of_head : (g + 1) * of_head].T
            w[f"R_{gate}"] = matrix
        return w

    def step(w, state, x):
        c, n, m, h = state
        c, n = c * np.exp(m), n * np.exp(m)
        z, log_i, f, o = (w[f"W_{g}"] @ x + w[f"R_{g}"] @ h + w[f"b_{g}"] for g in "zifo")
        i, f = np.exp(log_i), sigmoid(f)
        c = f * c + i * np.tanh(z)
        n = f * n + i
        h = sigmoid(o) * (c / n)
        m = larger(np.log(f) + m, log_i)
        return (c * np.exp(-m), n * np.exp(-m), m, h), h

    return Cell(weights, step)


def mlstm() -> Cell:
    """Beck et al. 2024, forget gate σ; state (C e^−m, n e^−m, m)."""

    def weights(params):
        w = gates("qkvo", params)
        w["w_i"], w["w_f"] = params["gate_kernel"].T
        w["b_i"], w["b_f"] = params["gate_bias"]
        return w

    def step(w, state, x):
        memory, n, m = state
        memory, n = memory * np.exp(m), n * np.exp(m)
        q, k, v, o = (w[f"W_{g}"] @ x + w[f"b_{g}"] for g in "qkvo")
        k = k / np.sqrt(len(k))
        log_i, f = w["w_i"] @ x + w["b_i"], sigmoid(w["w_f"] @ x + w["b_f"])
        i = np.exp(log_i)
        memory = f * memory + i * np.outer(v, k)
        n = f * n + i * k
        y = sigmoid(o) * (memory @ q) / larger(size(n @ q), 1)
        m = larger(np.log(f) + m, log_i)
        return (memory * np.exp(-m), n * np.exp(-m), m), y

    return Cell(weights, step)


MAKERS: dict[str, Callable[..., Cell]] = {
    "elman-tanh": functools.partial(elman, np.tanh),
    "elman-relu": functools.partial(elman, relu),
    "elman-sigmoid": functools.partial(elman, sigmoid),
    "irnn": functools.partial(elman, relu),
    "jordan": jordan,
    "ctrnn": leaky,
    "lstm": lstm,
    "lstm-peephole": peephole_lstm,
    "lstm-projected": projected_lstm,
    "gru": gru,
    "gru-reset-before": reset_before_gru,
    "ogru": ogru,
    "mgu": mgu,
    "slstm": slstm,
    "mlstm": mlstm,
}
