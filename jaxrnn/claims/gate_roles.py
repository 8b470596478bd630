"""Claims about what gates do: whether each one does what it is named for.

A gate has a role if its value follows the input as its name says, and if the network needs it to: with the
gate held at its mean over time, the loss rises. Both are measured in trained networks on two tasks: adding
marked numbers (what is not marked must be kept out), and a flip-flop (what was held must be dropped when a
new pulse comes).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import sigmoid

from jaxrnn import analysis
from jaxrnn.claims.claim import Claim, Lab, Source
from jaxrnn.claims.evidence import Check, Evidence, Sample
from jaxrnn.claims.panels import strip
from jaxrnn.claims.rules import Mean, Part, Rule
from jaxrnn.claims.runs import trained
from jaxrnn.experiments import NetworkConfig, RunConfig, each
from jaxrnn.training import FitConfig, FitResult, View, required, view, whole_sequences
from jaxrnn.unrolling import unroll

CONTRAST = "opening of the gate, by its name's sign"
ABLATION = "rise of the loss, nats"
_UNITS, _SEQUENCES = 8, 128
_LEAST_CONTRAST = 0.1  # of a value between 0 and 1
_LEAST_ABLATION = float(np.log(1.5))

_ROLES = {
    ("adding", "lstm"): {"input": 1},
    ("adding", "gru"): {"update": -1},
    ("flip-flop", "lstm"): {"input": 1, "forget": -1},
    ("flip-flop", "gru"): {"update": -1, "reset": -1},
}
"""The sign by which a gate's value must change where something happens: a marked number, or a new sign.

An input gate opens, a forget gate closes; a GRU's update gate keeps the state at 1, so it closes too, and its
reset gate closes to let go of the state."""

_GATES = {"lstm": ("input", "forget", "output"), "gru": ("reset", "update")}
_NAMES = {"lstm": "LSTM", "gru": "GRU"}


@Claim(
    "gates-do-their-name",
    topic="Gates at work",
    statement="Each gate does what it is named for.",
    said_by=(
        Source("Charu", "the forget gate decides what is dropped, the input gate what is stored"),
        Source("Analytics Vidhya", "gates choose what to keep and what to throw away"),
        Source("Vanishing", "the update gate decides how much of the past is kept"),
    ),
    why="The equations multiply what is named by the gate.",
    measured="In networks trained on adding and on a flip-flop: how much a gate's value changes, in the "
    "direction of its name, where a number is marked or the sign flips; and how much the logarithm of the "
    "loss rises when the gate is held at its mean over time.",
    rule=Rule(
        (
            Part(CONTRAST, Mean(above=_LEAST_CONTRAST)),
            Part(ABLATION, Mean(above=_LEAST_ABLATION)),
        )
    ),
    refuted_by="Gates that do not follow the input, or that the network does as well without.",
    lessons={
        "confirmed": "Every gate follows the input as its name says, and every network needs all of them.",
        "depends": "Some gates do what they are named for and some don't, and that depends on the task. On "
        "adding an LSTM's input gate opens by {adding_input:.2f} at a marked number; on a flip-flop its "
        "forget gate closes by {flip_forget:.2f} when the sign changes. Held at its mean, the output gate "
        "costs a factor of {output_adding:.1f} in the loss on adding and of {output_flip:.1f} on the "
        "flip-flop.",
        "refuted": "No gate does what it is named for.",
        "undecided": "Some gates do what they are named for: on adding an LSTM's input gate opens by "
        "{adding_input:.2f} at a marked number, on a flip-flop its forget gate closes by "
        "{flip_forget:.2f} when the sign changes. For others the networks differ too much to tell: held at "
        "its mean, the output gate costs a factor of {output_adding:.1f} in the loss on adding and of "
        "{output_flip:.1f} on the flip-flop.",
    },
    published=(
        "without forget or output gate an LSTM loses most (Greff et al. 2017, ablation of eight variants)",
    ),
).measured_by
def gates_do_their_name(lab: Lab) -> Evidence:
    """Read and ablate the gates of trained networks."""
    samples, fresh, solved = [], [], []
    for (task, cell), signs in _ROLES.items():
        run = _run(lab, task, cell)
        result = trained(lab, f"{task}-{cell}-small", run)
        solved += list(result.test_score <= _line(result))
        after = [_look(run, model) for model in each(result.models)]
        before = [_look(run, model) for model in each(result.initial)]
        for gate, sign in signs.items():
            condition = {"gate": f"{_NAMES[cell]} {gate}", "task": task}
            values = [sign * look.contrast(gate) for look in after]
            samples.append(Sample(CONTRAST, condition, values, lab.seeds))
            fresh.append(np.mean([sign * look.contrast(gate) for look in before]))
        for gate in _GATES[cell]:
            condition = {"gate": f"{_NAMES[cell]} {gate}", "task": task}
            values = [look.ablation(gate) for look in after]
            samples.append(Sample(ABLATION, condition, values, lab.seeds))
    found = {(s.quantity, *s.condition.values()): float(np.median(s.values)) for s in samples}
    contrasts, ablations = (
        [s for s in samples if s.quantity == quantity] for quantity in (CONTRAST, ABLATION)
    )
    return Evidence(
        samples,
        [
            Check(
                "positive control",
                "four of five networks solve their task",
                np.mean(solved) >= 0.8,
                f"{np.mean(solved):.0%}",
            ),
            Check(
                "negative control",
                "before training no gate follows the input by 0.05",
                np.max(np.abs(fresh)) < 0.05,
                f"{np.max(np.abs(fresh)):.3f} at most",
            ),
        ],
        [
            strip(contrasts, "task", "Gates where something happens", {"counts": _LEAST_CONTRAST}),
            strip(ablations, "task", "Gates held at their means", {"counts": _LEAST_ABLATION}),
        ],
        facts={
            "adding_input": found[CONTRAST, "LSTM input", "adding"],
            "flip_forget": found[CONTRAST, "LSTM forget", "flip-flop"],
            "output_adding": np.exp(found[ABLATION, "LSTM output", "adding"]),
            "output_flip": np.exp(found[ABLATION, "LSTM output", "flip-flop"]),
        },
        settings={
            "networks": f"{_UNITS} units, Adam 0.01, {_steps(lab):,} steps of 32 sequences",
            "tasks": "adding of 20 steps; flip-flop of 50 steps with one channel, a pulse at every tenth",
        },
    )


def _line(result: FitResult) -> float:
    """Return the error up to which a task counts as solved."""
    assert result.solved is not None  # both tasks have such a line
    return result.solved


def _steps(lab: Lab) -> int:
    return lab.choose(1_500, 3_000)


def _run(lab: Lab, task: str, cell: str) -> RunConfig:
    settings = {"length": 20} if task == "adding" else {"length": 50, "bits": 1}
    steps = _steps(lab)
    fit = FitConfig(
        steps=steps, every=steps, learning_rate=0.01, seeds=len(lab.seeds), seed=lab.seeds[0]
    )
    return RunConfig(task, settings, NetworkConfig(cell, _UNITS), fit, probes=False)


class _Look(NamedTuple):
    """A network at work.

    Attributes:
      seen: the network with what it reads.
      gates: values of its gates by name [T, B, H].
      happens: where something happens [T, B].
      rests: where nothing does [T, B].
    """

    seen: View
    gates: dict[str, Any]
    happens: Any
    rests: Any

    def contrast(self, gate: str) -> float:
        """Return the gate's mean value where something happens less that where nothing does."""
        values = self.gates[gate].mean(axis=-1)
        return float(values[self.happens].mean() - values[self.rests].mean())

    def ablation(self, gate: str) -> float:
        """Return the log of the loss with the gate at its mean over time, over the loss as it is."""
        mean = jnp.asarray(self.gates[gate].mean(axis=(0, 1)))
        intact = self.seen.loss(unroll(self.seen.cell, self.seen.xs).outputs)
        start = self.seen.cell.initialize_carry(self.seen.xs.shape[1:])
        held = unroll(_held(self.seen.cell, gate, mean), self.seen.xs, carry=start).outputs
        return float(jnp.log(self.seen.loss(held).mean() / intact.mean()))


def _look(run: RunConfig, model: Any) -> _Look:
    task = run.load_task()
    batch = whole_sequences(task.test, _SEQUENCES)
    seen = required(view(model, task, batch))
    path = analysis.trace(seen.cell, seen.xs)
    sums = jax.vmap(lambda carry, x: seen.cell.project(x) + seen.cell.mix(carry))(
        path.before, seen.xs
    )
    names = seen.cell.gates
    values = np.asarray(sigmoid(sums), float)
    gates = dict(zip(names, np.split(values, len(names), axis=-1), strict=True))
    if run.task == "adding":
        happens = np.asarray(batch.inputs[..., 1]) > 0.5
        return _Look(seen, gates, happens, ~happens)
    targets = np.asarray(batch.targets[..., 0])
    happens = np.concatenate([np.zeros_like(targets[:1], bool), targets[1:] != targets[:-1]])
    return _Look(seen, gates, happens, np.asarray(batch.inputs[..., 0]) == 0)


def _held(cell: Any, gate: str, value: Any) -> Any:
    """Return the step of a cell with one gate held at a value [H], by what the gate's sigmoid reads."""
    place, units = cell.gates.index(gate), len(value)
    block = slice(place * units, (place + 1) * units)
    read = jnp.log(value) - jnp.log1p(-value)

    def step(carry: Any, x: Any) -> tuple[Any, Any]:
        drive, pull = cell.project(x), cell.mix(carry)
        drive = drive.at[..., block].set(0.0)
        pull = pull.at[..., block].set(jnp.broadcast_to(read, (*pull.shape[:-1], units)))
        moved = cell.update(carry, drive, pull)
        return moved, cell.readout(moved)

    return step
