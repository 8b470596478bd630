"""Record what PyTorch's recurrent layers compute with several layers, both directions and packed sequences.

    pip install torch==2.13.0 numpy
    python tests/recorded/make_pytorch_layers.py

writes ``pytorch_layers.npz`` beside this file: inputs [T, B, F], lengths [B], and for every case, under
``case/``, the ``state_dict`` (``case/weights/weight_ih_l0``, ...), initial and last states [L·D, B, H]
(``initial_h``, ``last_h``, of an LSTM ``initial_c`` and ``last_c`` too) and the outputs of the packed
sequences, padded with zeros, [T, B, D·H]. All in float64, from weights, inputs and states that are float32
numbers, so that they can be cast without loss.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

FEATURES, HIDDEN, STEPS, LENGTHS = 3, 4, 7, (7, 4, 1)


def record(torch: Any, layer: Any, inputs: Any) -> dict[str, np.ndarray]:
    """Run one layer and return every array of it, under its name."""
    for weight in layer.parameters():  # the default draws would leave gates and units nearly linear
        torch.nn.init.normal_(weight, std=0.5)
        weight.data = weight.data.float().double()
    names = "hc" if isinstance(layer, torch.nn.LSTM) else "h"
    rows = layer.num_layers * (1 + layer.bidirectional)
    sizes = {"h": layer.proj_size or HIDDEN, "c": HIDDEN}
    initial = [torch.randn(rows, len(LENGTHS), sizes[name]).double() for name in names]
    packed = torch.nn.utils.rnn.pack_padded_sequence(inputs, LENGTHS)
    outputs, last = layer(packed, tuple(initial) if len(names) > 1 else initial[0])
    tensors = {"outputs": torch.nn.utils.rnn.pad_packed_sequence(outputs)[0]}
    for name, first, final in zip(names, initial, last if len(names) > 1 else [last], strict=True):
        tensors |= {f"initial_{name}": first, f"last_{name}": final}
    tensors |= {f"weights/{name}": weight for name, weight in layer.state_dict().items()}
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def main() -> None:
    """Write the file."""
    torch: Any = importlib.import_module("torch")

    torch.manual_seed(0)
    rnn, lstm, gru = torch.nn.RNN, torch.nn.LSTM, torch.nn.GRU
    cases = {
        "rnn_tanh": (rnn, {"num_layers": 2, "bidirectional": True}),
        "rnn_relu": (rnn, {"nonlinearity": "relu", "bidirectional": True}),
        "lstm": (lstm, {"num_layers": 2, "bidirectional": True}),
        "gru": (gru, {"num_layers": 2, "bidirectional": True}),
        "lstm_without_bias": (lstm, {"num_layers": 3, "bias": False}),
        "gru_without_bias": (gru, {"bias": False}),
        "lstm_projected": (lstm, {"proj_size": 2}),
        "lstm_projected_both": (lstm, {"num_layers": 2, "proj_size": 2, "bidirectional": True}),
        "lstm_projected_without_bias": (lstm, {"proj_size": 2, "bias": False}),
    }
    inputs = torch.randn(STEPS, len(LENGTHS), FEATURES).double()
    arrays: dict[str, Any] = {"inputs": inputs.numpy(), "lengths": np.asarray(LENGTHS)}
    for case, (make, options) in cases.items():
        layer = make(FEATURES, HIDDEN, dtype=torch.float64, **options)
        arrays |= {f"{case}/{name}": array for name, array in record(torch, layer, inputs).items()}
    arrays |= {"torch_version": np.asarray(torch.__version__)}
    arrays |= {"numpy_version": np.asarray(np.__version__)}
    path = Path(__file__).with_name("pytorch_layers.npz")
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    main()
