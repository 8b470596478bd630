"""Language models and encoder–decoders in plain NumPy, one sequence and one step at a time.

They read the weights of a model and share no code with it; the cells are those of `numpy_cells`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tests.oracles import numpy_cells

NAMES = {"LSTMCell": "lstm", "GRUCell": "gru", "ElmanCell": "elman-tanh"}
PARTS = ("kernel", "recurrent_kernel", "bias", "recurrent_bias")


class Walker:
    """A cell that holds its state."""

    def __init__(self, cell: Any, state: list[np.ndarray] | None = None):
        name = NAMES[type(cell).__name__]
        found = {p: np.asarray(getattr(cell, p)[...]) for p in PARTS if hasattr(cell, p)}
        self._step = numpy_cells.STEPS[name]
        self._weights = numpy_cells.separate(name, found)
        leaves = 2 if name == "lstm" else 1
        self.state = tuple(state or [np.zeros(cell.hidden_features)] * leaves)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.state, y = self._step(self._weights, self.state, x)
        return y


def weights(linear: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(linear.kernel[...]), np.asarray(linear.bias[...])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def language_model(model: Any, tokens: np.ndarray) -> np.ndarray:
    """Logits [T, V] of one sequence, for a model whose body is an RNN or a stack of them."""
    walkers = [Walker(layer.cell) for layer in getattr(model.body, "layers", [model.body])]
    table = np.asarray(model.embedding.table[...])
    kernel = table.T if model.kernel is None else np.asarray(model.kernel[...])
    rows = []
    for token in tokens:
        y = table[token]
        for walker in walkers:
            y = walker(y)
        rows.append(y @ kernel + np.asarray(model.bias[...]))
    return np.array(rows)


def read(cell: Any, xs: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Outputs and last state of one sequence."""
    walker = Walker(cell)
    return [walker(x) for x in xs], list(walker.state)


class Decoder:
    """The decoder of a model with a bidirectional encoder, after it has read one source."""

    def __init__(self, model: Any, source: np.ndarray):
        xs = np.asarray(model.source.table[...])[source]
        ahead, first = read(model.encoder.forward_rnn.cell, xs)
        back, last = read(model.encoder.backward_rnn.cell, xs[::-1])
        self.values = [np.concatenate(pair) for pair in zip(ahead, back[::-1], strict=True)]
        self.model, z = model, np.concatenate([*first, *last])
        kernel, bias = weights(model.first_carry)
        start = np.tanh(z @ kernel + bias)
        leaves = len(start) // model.cell.hidden_features
        self.cell = Walker(model.cell, list(np.split(start, leaves)))
        if model.attention is None:
            kernel, bias = weights(model.fixed_context)
            self.context = np.tanh(z @ kernel + bias)
        else:
            features = sum(
                rnn.cell.out_features
                for rnn in (model.encoder.forward_rnn, model.encoder.backward_rnn)
            )
            self.context = np.zeros(features)
        self.attention = np.zeros(0)

    def __call__(self, token: int) -> np.ndarray:
        """Read a token; return the logits of the next."""
        x = np.asarray(self.model.target.table[...])[token]
        y = self.cell(np.concatenate([x, self.context]))
        if self.model.attention is not None:
            scores = np.array([self._score(y, value) for value in self.values])
            raw = np.exp(scores - scores.max(initial=-np.inf))
            self.attention = raw / raw.sum()
            self.context = np.zeros_like(self.context)
            for weight, value in zip(self.attention, self.values, strict=True):
                self.context = self.context + weight * value
        kernel, bias = weights(self.model.readout)
        return np.concatenate([y, self.context]) @ kernel + bias

    def _score(self, query: np.ndarray, value: np.ndarray) -> float:
        attention = self.model.attention
        if type(attention).__name__ == "DotAttention":
            return float(np.dot(query, value))
        w, u, v = (
            np.asarray(getattr(attention, part)[...])
            for part in ("query_kernel", "value_kernel", "score_kernel")
        )
        return float(v[:, 0] @ np.tanh(w.T @ query + u.T @ value))


class Forced(NamedTuple):
    """Logits [T, V], contexts [T, Y] and attention weights [T, L] of one source and target."""

    logits: np.ndarray
    contexts: np.ndarray
    weights: np.ndarray


def forced(model: Any, source: np.ndarray, target: np.ndarray) -> Forced:
    """Teacher forcing."""
    decoder = Decoder(model, source)
    rows = [
        (decoder(token), decoder.context, decoder.attention)
        for token in [model.start, *target[:-1]]
    ]
    return Forced(*(np.array(part) for part in zip(*rows, strict=True)))


def log_probability(model: Any, source: np.ndarray, target: np.ndarray) -> float:
    """Log-probability of a target, in nats."""
    rows = log_softmax(forced(model, source, target).logits)
    return float(sum(row[token] for row, token in zip(rows, target, strict=True)))
