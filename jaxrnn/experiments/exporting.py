"""A trained network for others: its program as StableHLO, its weights as safetensors.

    model.stablehlo        the whole network, weights inside, for CPU, CUDA and TPU; any numbers
                           of steps and of sequences
    model.safetensors      the weights alone, by name
    start.stablehlo        the state before the first step, and
    step.stablehlo         one time step, for inputs that arrive one by one; both for networks that read
                           forwards alone

The program takes inputs [T, B, F], or tokens [T, B], and where sequences differ in length their lengths [B];
it gives the answers. It needs JAX to run and nothing of this package:
``jax.export.deserialize(bytes).call(inputs)``. In the same way ``start.call(x)`` gives the state before
inputs x [B, F] of one step, of which it reads the shape alone, and ``step.call(state, x)`` state and answers
after them. Before programs are written they are read back and asked some test sequences, and their answers
are held against the network's own.
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
from jaxrnn.models import Stream, streaming
from jaxrnn.tasks import Task, Translation
from jaxrnn.unrolling import Scan

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
      difference: largest difference between the programs' answers and the network's, relative to the largest
        answer.
      step: path of the program of one time step; None where the network has none.
      no_step: why it has none; empty where it has one.
    """

    program: Path
    weights: Path
    steps: int
    lengths: bool
    difference: float
    step: Path | None
    no_step: str = ""


@checked
def export(run: str | Path, out: str | Path, *, network: int = 0) -> Exported:
    """Export one network of a run.

    Args:
      run: the run's folder.
      out: a folder for the files; files of their names are replaced.
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
    program = _program(model, arguments)
    difference = _difference(_deserialised(program).call(*arguments), expected)
    files = {"model.stablehlo": program}
    stream, no_step = _stream(model)
    if stream is not None:
        files |= _step_programs(stream, arguments[0])
        found = _by_steps(files, arguments[0], task.answers == "step")
        whole = expected if len(arguments) == 1 else _answers(model, arguments[0])
        difference = max(difference, _difference(found, whole))
    if not difference < _TOLERANCE:
        got = f"a program whose answers differ by {difference:.1e}"
        checks.refuse("export", got, f"less than {_TOLERANCE:.0e}, relative to the largest")
    for name, content in files.items():
        with writing("out", folder / name, "a file that can be written"):
            replace_file(folder / name, content)
    weights = folder / "model.safetensors"
    interop.save(weights, model)
    step = folder / "step.stablehlo" if stream is not None else None
    steps, lengths = len(arguments[0]), len(arguments) > 1
    return Exported(folder / "model.stablehlo", weights, steps, lengths, difference, step, no_step)


def _program(model: Any, arguments: list[Any]) -> bytes:
    """Return the whole network as a program, for open numbers of steps and of sequences."""
    steps, batch = jax.export.symbolic_shape("steps, batch")
    shapes = [
        jax.ShapeDtypeStruct((*sizes, *x.shape[len(sizes) :]), x.dtype)
        for x, sizes in zip(arguments, ((steps, batch), (batch,)), strict=False)
    ]
    return _serialised(lambda *arguments: _answers(model, *arguments), *shapes)


def _stream(model: Any) -> tuple[Stream | None, str]:
    """Return the network's time step, or why it has none."""
    try:
        return streaming(model), ""
    except checks.InputError as error:
        return None, str(error)


def _step_programs(stream: Stream, inputs: Any) -> dict[str, bytes]:
    """Return the programs of the start and of one step, for an open number of sequences."""
    (batch,) = jax.export.symbolic_shape("batch")
    x = jax.ShapeDtypeStruct((batch, *inputs.shape[2:]), inputs.dtype)
    state = jax.eval_shape(stream.start, x)
    return {
        "start.stablehlo": _serialised(stream.start, x),
        "step.stablehlo": _serialised(stream.step, state, x),
    }


def _by_steps(files: dict[str, bytes], inputs: Any, each: bool) -> Any:
    """Return the answers of the step's program: after every step, or the last one's alone."""
    start, step = (_deserialised(files[f"{name}.stablehlo"]) for name in ("start", "step"))
    _, answers = jax.lax.scan(step.call, start.call(inputs[0]), inputs)
    return answers if each else answers[-1]


def _serialised(function: Any, *shapes: Any) -> bytes:
    return bytes(jax.export.export(jax.jit(function), platforms=_PLATFORMS)(*shapes).serialize())


def _deserialised(program: bytes) -> Any:
    return jax.export.deserialize(bytearray(program))


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


def _difference(found: Any, expected: Any) -> float:
    found, expected = np.asarray(found), np.asarray(expected)
    return float(np.abs(found - expected).max() / np.abs(expected).max())
