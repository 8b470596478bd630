"""A trained network for others: its program as StableHLO, its weights as safetensors.

    model.stablehlo        the whole network, weights inside, for CPU, CUDA and TPU; any numbers
                           of steps and of sequences
    model.safetensors      the weights alone, by name

The program takes inputs [T, B, F], or tokens [T, B], and where sequences differ in length their lengths [B];
it gives the answers. It needs JAX to run and nothing of this package:
``jax.export.deserialize(bytes).call(inputs)``. Before it is written it is read back and asked some test
sequences, and its answers are held against the network's own.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn import checks, interop
from jaxrnn.annotations import checked
from jaxrnn.experiments.runs import load_network
from jaxrnn.files import replace_file, writing
from jaxrnn.layers import RNN
from jaxrnn.tasks import Task, Translation
from jaxrnn.unroll import Scan

_PLATFORMS = ("cpu", "cuda", "tpu")
_SEQUENCES = 8
_TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
      program: path of the StableHLO program.
      weights: path of the safetensors file.
      steps: T of the sequences that the program was held to; others may have any number.
      lengths: whether the program takes the sequences' lengths [B] beside the inputs.
      difference: largest difference between the program's answers and the network's, relative to the largest
        answer.
    """

    program: Path
    weights: Path
    steps: int
    lengths: bool
    difference: float


@checked
def export(run: str | Path, out: str | Path, *, network: int = 0) -> Exported:
    """Export one network of a run.

    Args:
      run: the run's folder.
      out: a folder for the two files; files of their names are replaced.
      network: which of the run's networks, 0 the first.

    Raises:
      InputError: no run there, no such network, a task whose network takes more than one input, no package to
        serialise with, or a program that answers otherwise than the network.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        checks.refuse(
            "export", "no flatbuffers", "pip install flatbuffers, or jaxrnn with its extra `export`"
        )
    task, model = load_network(run, network)
    if isinstance(task, Translation):
        checks.refuse("run", "a translator, whose decoder needs its own words", "another network")
    folder = Path(out)
    with writing("out", folder, "a folder that can be written"):
        folder.mkdir(parents=True, exist_ok=True)
    arguments = _arguments(task)
    expected = _answers(model, *arguments)
    _read_step_by_step(model)
    steps, batch = jax.export.symbolic_shape("steps, batch")
    shapes = [
        jax.ShapeDtypeStruct((*sizes, *x.shape[len(sizes) :]), x.dtype)
        for x, sizes in zip(arguments, ((steps, batch), (batch,)), strict=False)
    ]
    answer = jax.jit(lambda *arguments: _answers(model, *arguments))
    program = bytes(jax.export.export(answer, platforms=_PLATFORMS)(*shapes).serialize())
    difference = _difference(program, expected, arguments)
    if not difference < _TOLERANCE:
        got = f"a program whose answers differ by {difference:.1e}"
        checks.refuse("export", got, f"less than {_TOLERANCE:.0e}, relative to the largest")
    paths = folder / "model.stablehlo", folder / "model.safetensors"
    with writing("out", paths[0], "a file that can be written"):
        replace_file(paths[0], program)
    interop.save(paths[1], model)
    return Exported(*paths, len(arguments[0]), len(arguments) > 1, difference)


def _arguments(task: Task) -> list[Any]:
    """Return inputs of a few test sequences and, where they differ in length, their lengths."""
    batch = task.test.take(_SEQUENCES)
    each = [batch.inputs] if batch.lengths is None else [batch.inputs, batch.lengths]
    return [jnp.asarray(x) for x in each]


def _answers(model: Any, inputs: Any, lengths: Any = None) -> Any:
    return model(inputs, seq_lengths=lengths)


def _read_step_by_step(model: Any) -> None:
    """Let every layer take the one method that asks nothing of sizes, which stay open."""
    for _, module in nnx.iter_graph(model):
        if isinstance(module, RNN):
            module.method = Scan()


def _difference(program: bytes, expected: Any, arguments: list[Any]) -> float:
    found = np.asarray(jax.export.deserialize(bytearray(program)).call(*arguments))
    expected = np.asarray(expected)
    return float(np.abs(found - expected).max() / np.abs(expected).max())
