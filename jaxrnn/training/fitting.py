"""Train an ensemble: networks from many seeds and settings at once, each with its own weights and order.

A result from one seed is an anecdote. Because a module is a pytree, ``jax.vmap`` over stacked modules trains
all networks in one program, and every figure can carry an error. Many steps are one compiled call, with the
data on the device, so that a small network is not held up by Python.

Everything random at step i of a network follows from its seed and from i. A run that is resumed from a
checkpoint therefore goes on exactly as it would have.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.tasks import Sampler, Task
from jaxrnn.training.checkpoints import Checkpoints
from jaxrnn.training.config import FitConfig, Variants
from jaxrnn.training.interruption import Interruption, together
from jaxrnn.training.loop import Keeper, Nowhere, Observer, Run
from jaxrnn.training.origin import Origin
from jaxrnn.training.placement import Placement
from jaxrnn.training.program import Program, State
from jaxrnn.training.progress import ProgressBar
from jaxrnn.training.run_folder import RunFolder, read_config, read_metrics

_ONE_DEVICE = Placement()
_NO_VARIANTS: Variants = MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class TimeToTarget:
    """When each network first had a score on the validation data, at the resolution of the reports.

    Attributes:
      target: the score.
      steps: optimiser steps up to the report at which it was reached; up to the last one where it never was.
      seconds: seconds of training until then, of the whole ensemble, without compilation and evaluation.
      reached: whether it was; the times of those that did not reach it are censored.
    """

    target: float
    steps: Int[np.ndarray, "N"]
    seconds: Float[np.ndarray, "N"]
    reached: Bool[np.ndarray, "N"]

    @property
    def text(self) -> str:
        """How many networks reached the target, and after how many steps."""
        count, networks = int(self.reached.sum()), len(self.reached)
        when = f", after {np.median(self.steps[self.reached]):,.0f} steps (median)" if count else ""
        return f"{count} of {networks} networks reached {self.target:g}{when}"


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What training gave.

    Attributes:
      members: what distinguishes the networks: seed, and settings of which several were tried.
      metric: name of the score.
      higher_is_better: whether a larger score is a better one.
      chance: the score of an answer that ignores the inputs.
      solved: the score from which the task counts as solved; None where there is no such line.
      initial: the ensemble before training; every leaf has a leading axis of networks.
      models: the ensemble after training: the last weights, or with ``select="best"`` the best ones.
      history: rows as in ``metrics.jsonl``, one a report, beginning with step 0 before training.
      valid_score: the task's metric of `models` on the validation data, one a network.
      test_score: the task's metric on the test data, one a network.
      test_loss: mean loss on the test data, one a network.
      parameters: number of parameters of one network.
    """

    members: list[dict[str, Any]]
    metric: str
    higher_is_better: bool
    chance: float
    solved: float | None
    initial: Any
    models: Any
    history: list[dict[str, Any]]
    valid_score: Float[np.ndarray, "N"]
    test_score: Float[np.ndarray, "N"]
    test_loss: Float[np.ndarray, "N"]
    parameters: int

    @property
    def memory(self) -> int:
        """Bytes that a call of training took on a device at most; data of validation are not counted."""
        return max(row["memory"] for row in self.history)

    @property
    def waiting(self) -> float:
        """Share of the training's time in which the device waited for the host: for data, or for its word."""
        total = sum(row["seconds"] for row in self.history)
        return sum(row["waiting_seconds"] for row in self.history) / total if total else math.nan

    @property
    def seconds_per_step(self) -> float:
        """Median wall time of one optimiser step of the whole ensemble, without compilation."""
        paces = [row["seconds_per_step"] for row in self.history if row["seconds_per_step"]]
        return float(np.median(paces)) if paces else math.nan

    def time_to(self, target: float | None = None) -> TimeToTarget:
        """Return when each network first had a score on the validation data.

        Args:
          target: the score; by default the one from which the task counts as solved.

        Raises:
          InputError: no target, for a task that has no such line.
        """
        if target is None:
            target = self.solved
        if target is None:
            checks.refuse("target", None, f"a {self.metric}: the task has no line to be solved")
        scores = np.array([row[f"valid_{self.metric}"] for row in self.history])  # [reports, N]
        there = scores >= target if self.higher_is_better else scores <= target
        reached = np.asarray(there.any(axis=0))
        report = np.where(reached, there.argmax(axis=0), len(there) - 1)
        steps = np.array([row["step"] for row in self.history])
        seconds = np.cumsum([row["seconds"] for row in self.history])
        return TimeToTarget(float(target), steps[report], seconds[report], reached)

    @property
    def summary(self) -> dict[str, Any]:
        """What ``result.json`` holds."""
        solved = None if self.solved is None else self.time_to()
        return {
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "chance": self.chance,
            "solved": self.solved,
            "steps_to_solved": None if solved is None else solved.steps.tolist(),
            "reached_solved": None if solved is None else solved.reached.tolist(),
            "members": self.members,
            "test_score": self.test_score.tolist(),
            "test_loss": self.test_loss.tolist(),
            "parameters": self.parameters,
            "step": self.history[-1]["step"],
            "seconds": sum(row["seconds"] for row in self.history),
            "compile_seconds": self.compile_seconds,
            "waiting": self.waiting,
            "memory": self.memory,
        }

    @property
    def compile_seconds(self) -> float:
        """Time spent on compiling."""
        return float(sum(row["compile_seconds"] for row in self.history))


@checked
def fit(
    make_model: Callable[..., Any],
    task: Task,
    config: FitConfig,
    *,
    variants: Variants = _NO_VARIANTS,
    folder: RunFolder | None = None,
    title: str = "training",
    observe: Observer | None = None,
    placement: Placement = _ONE_DEVICE,
) -> FitResult:
    """Train an ensemble of networks on a task.

    Args:
      make_model: makes one network from its random streams. It is called as
        ``model(inputs, seq_lengths=…, dropout_key=…)`` with inputs [T, B, F] and returns [B, Y], or [T, B, Y]
        where the task asks at every step.
      task: data, loss and metric.
      config: how to train.
      variants: numbers that `make_model` takes by keyword, as in ``{"gain": (0.5, 1.0, 2.0)}``: their values
        are tried side by side, as those of `FitConfig` are. They arrive as traced scalars.
      folder: where metrics and checkpoints go; a run that was broken off goes on from its last checkpoint.
      title: what the progress bar calls it.
      observe: measures the ensemble before training and at every report.
      placement: how many devices to use, and for what.

    Returns:
      A `FitResult`. The test data are looked at once, at the end; nothing is chosen by them.

    Raises:
      InputError: a batch larger than the training data, more devices than exist, or a checkpoint of
        another network.
      Stopped: the process was asked to end (SIGTERM); the state is in the checkpoint.
      ProcessLostError: another process of the job is gone; the last checkpoint is good.
    """
    with together():
        program = _program(make_model, task, config, placement, variants)
        start = program.start()
        first = program.gather(start.members.model)
        run = Run(program, observe, title)
        if folder is None:
            with Interruption() as interruption:
                return _result(run, first, run.train(start, Nowhere(), interruption))
        say = ProgressBar(title, config.steps).say
        # Signals are handled until the result is written: until then there is something to save or to report.
        with folder.opened(), Interruption() as interruption:
            with Checkpoints(folder.checkpoints, say, origin=lambda: folder.origin) as checkpoints:
                keeper = Keeper(folder, checkpoints)
                state = run.train(keeper.resume(start, run), keeper, interruption)
            result = _result(run, first, state)
            folder.finish(result.summary)
            return result


def _result(run: Run, initial: Any, state: State) -> FitResult:
    """Look at the test data."""
    program, task, config = run.program, run.program.task, run.program.config
    models = _selected(state, config)
    loss, score = program.evaluate(models, program.batches(task.test))
    return FitResult(
        members=run.program.members,
        metric=task.metric.name,
        higher_is_better=task.metric.higher_is_better,
        chance=task.chance,
        solved=task.solved,
        initial=initial,
        models=program.gather(models),
        history=run.history,
        valid_score=_valid_score(run, state),
        test_score=score,
        test_loss=loss,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(models)) // len(run.program.members),
    )


def _valid_score(run: Run, state: State) -> Float[np.ndarray, "N"]:
    """Return the validation score of the weights that are returned."""
    if run.program.config.select == "best":
        return np.asarray(run.program.gather(state.members.best_score), float)
    return np.array(run.history[-1][f"valid_{run.program.task.metric.name}"], float)


@checked
def load_models(
    make_model: Callable[..., Any],
    task: Task,
    config: FitConfig,
    folder: Path,
    say: Callable[[str], None] = lambda text: None,
    *,
    variants: Variants = _NO_VARIANTS,
) -> Any:
    """Return the ensemble of a run's newest intact checkpoint; every leaf has a leading axis of networks.

    Args:
      make_model: makes one network from its random streams and its own numbers of `variants`.
      task: what the run learnt.
      config: how it was trained.
      folder: the run's folder.
      say: is told of checkpoints that are damaged, and which one is read in their place.
      variants: as the run had them.

    Raises:
      InputError: the folder holds no intact checkpoint, or one of another network or another run.
    """
    state = _program(make_model, task, config, Placement(), variants).start()

    def origin() -> Origin:
        return Origin(read_config(folder), read_metrics(folder))

    checkpoints = Checkpoints(folder / "checkpoints", say, origin=origin, writing=False)
    with checkpoints:
        found = checkpoints.restore(state)
    return _selected(found, config)


def _selected(state: State, config: FitConfig) -> Any:
    return state.members.best if config.select == "best" else state.members.model


def _program(
    make_model: Callable[..., Any],
    task: Task,
    config: FitConfig,
    placement: Placement,
    variants: Variants,
) -> Program:
    config.check()
    placement.check(len(config.ensemble(variants)), config.batch_size)
    if config.batch_size > len(task.train) and not isinstance(task.train, Sampler):
        expected = f"at most the {len(task.train)} training examples"
        checks.refuse("batch_size", config.batch_size, expected)
    return Program(make_model, task, config, placement.grid(), variants)
