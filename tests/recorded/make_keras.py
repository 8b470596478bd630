"""Record what Keras's recurrent layers compute, one direction and two, with masks.

    pip install keras torch==2.13.0 numpy
    KERAS_BACKEND=torch python tests/recorded/make_keras.py

writes ``keras_layers.npz`` beside this file: inputs [B, T, F], lengths [B] (the mask is True before them),
and for every case, under ``case/``, what ``get_weights()`` gives (``case/weights/0``, ...), the outputs
[B, T, H], zero where the mask is False, and the last states (``state_0``, ...: h, of an LSTM h and c, forward
before backward). All in float32: Keras 3 rounds its products to that, whatever the dtype of its layers.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

FEATURES, UNITS, STEPS, LENGTHS = 3, 4, 7, (7, 4, 1)


def main() -> None:
    """Write the file."""
    keras: Any = importlib.import_module("keras")

    layers = keras.layers
    options: Any = {"return_sequences": True, "return_state": True}
    cases = {
        "simple_rnn": layers.SimpleRNN(UNITS, **options),
        "simple_rnn_relu": layers.SimpleRNN(UNITS, activation="relu", **options),
        "lstm": layers.LSTM(UNITS, **options),
        "lstm_without_bias": layers.LSTM(UNITS, use_bias=False, **options),
        "gru": layers.GRU(UNITS, **options),
        "bidirectional_lstm": layers.Bidirectional(layers.LSTM(UNITS, **options)),
        "bidirectional_gru": layers.Bidirectional(layers.GRU(UNITS, **options)),
        "gru_reset_before": layers.GRU(UNITS, reset_after=False, **options),
        "bidirectional_gru_reset_before": layers.Bidirectional(
            layers.GRU(UNITS, reset_after=False, **options)
        ),
    }
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(len(LENGTHS), STEPS, FEATURES)).astype(np.float32)
    mask = np.arange(STEPS) < np.asarray(LENGTHS)[:, None]
    arrays: dict[str, Any] = {"inputs": inputs, "lengths": np.asarray(LENGTHS)}
    for case, layer in cases.items():
        layer.build(inputs.shape)
        layer.set_weights([draw.normal(size=w.shape, scale=0.5) for w in layer.get_weights()])
        outputs, *states = (
            keras.ops.convert_to_numpy(a)
            for a in layer(
                keras.ops.convert_to_tensor(inputs), mask=keras.ops.convert_to_tensor(mask)
            )
        )
        arrays[f"{case}/outputs"] = np.where(mask[..., None], outputs, 0)
        arrays |= {f"{case}/state_{i}": state for i, state in enumerate(states)}
        arrays |= {f"{case}/weights/{i}": w for i, w in enumerate(layer.get_weights())}
    arrays["keras_version"] = np.asarray(f"{keras.__version__} on {keras.config.backend()}")
    arrays["numpy_version"] = np.asarray(np.__version__)
    path = Path(__file__).with_name("keras_layers.npz")
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    main()
