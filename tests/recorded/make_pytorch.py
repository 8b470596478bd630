"""Record what PyTorch's recurrent layers compute, forward and backward, in float64.

    pip install torch==2.13.0 numpy
    python tests/recorded/make_pytorch.py

writes ``pytorch_{rnn_tanh,rnn_relu,lstm,gru}.npz`` beside this file: the weights under PyTorch's own names
(LSTM gates in the order i, f, g, o; GRU gates r, z, n), inputs [T, B, F], initial and last states [B, H],
outputs [T, B, H], the gradients of sum(outputs²) by weights, inputs and initial states, and the versions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

FEATURES, HIDDEN, STEPS, BATCH = 3, 5, 7, 2


def record(torch, make, state_names: str) -> dict[str, np.ndarray]:
    """Run one layer of PyTorch and return every array of it."""
    torch.manual_seed(0)
    layer = make(FEATURES, HIDDEN, dtype=torch.float64)
    for weight in layer.parameters():  # the default draws would leave gates and units nearly linear
        torch.nn.init.normal_(weight, std=0.7)
    inputs = torch.randn(STEPS, BATCH, FEATURES, dtype=torch.float64, requires_grad=True)
    initial = {
        name: torch.randn(1, BATCH, HIDDEN, dtype=torch.float64, requires_grad=True)
        for name in state_names
    }
    # PyTorch hands states over as h alone, or as (h, c).
    outputs, last = layer(inputs, initial["h"] if state_names == "h" else tuple(initial.values()))
    outputs.square().sum().backward()

    tensors = {"inputs": inputs, "outputs": outputs, "grad_inputs": inputs.grad}
    for name, state in zip(state_names, (last,) if state_names == "h" else last, strict=True):
        tensors[f"initial_{name}"] = initial[name][0]
        tensors[f"last_{name}"] = state[0]
        tensors[f"grad_initial_{name}"] = initial[name].grad[0]
    for name, weight in layer.named_parameters():
        tensors[name.removesuffix("_l0")] = weight
        tensors["grad_" + name.removesuffix("_l0")] = weight.grad
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def main() -> None:
    """Write the four files."""
    import torch  # pyright: ignore[reportMissingImports]

    layers = {
        "rnn_tanh": (torch.nn.RNN, "h"),
        "rnn_relu": (lambda *a, **k: torch.nn.RNN(*a, nonlinearity="relu", **k), "h"),
        "lstm": (torch.nn.LSTM, "hc"),
        "gru": (torch.nn.GRU, "h"),
    }
    for name, (make, state_names) in layers.items():
        np.savez_compressed(
            Path(__file__).with_name(f"pytorch_{name}.npz"),
            torch_version=np.asarray(torch.__version__),
            numpy_version=np.asarray(np.__version__),
            **record(torch, make, state_names),  # pyright: ignore[reportArgumentType]
        )


if __name__ == "__main__":
    main()
