"""PyTorch's layers, in a process of their own: its threads wait for work by spinning, on cores others need.

``python -m benchmarks.pytorch CASE CORES`` prints the seconds of one turn for every line that it reads.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

from benchmarks.cases import Case
from benchmarks.timing import turn


def start(case: Case, cores: int) -> Callable[[], float]:
    """Start the process; return a call that has it take a turn, and returns the seconds of a run."""
    command = [sys.executable, "-m", "benchmarks.pytorch", json.dumps(vars(case)), str(cores)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    asking, answering = process.stdin, process.stdout
    assert asking is not None
    assert answering is not None

    def take_turn() -> float:
        print("turn", file=asking, flush=True)
        return float(answering.readline())

    take_turn()
    return take_turn


def main() -> None:
    """Take a turn for every line."""
    import torch  # pyright: ignore[reportMissingImports]

    case, cores = Case(**json.loads(sys.argv[1])), int(sys.argv[2])
    torch.set_num_threads(cores)
    *_, features, units = case.shape
    make = {"elman-tanh": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}
    layer = make[case.cell](features, units)
    xs, cotangent = map(torch.tensor, case.arrays())
    forward_only = case.work == "forward"
    xs.requires_grad_(not forward_only)

    def forward() -> None:
        with torch.no_grad():
            layer(xs)

    def both() -> None:
        layer.zero_grad()
        xs.grad = None
        outputs, _ = layer(xs)
        outputs.backward(cotangent)

    for _ in sys.stdin:
        print(turn(forward if forward_only else both), flush=True)


if __name__ == "__main__":
    main()
