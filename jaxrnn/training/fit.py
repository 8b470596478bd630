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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from jaxrnn import checks
from jaxrnn.tasks import Sampler, Stretch, Task
from jaxrnn.training.checkpoints import Checkpoints
from jaxrnn.training.config import FitConfig
from jaxrnn.training.interruption import Interruption, together
from jaxrnn.training.placement import Placement
from jaxrnn.training.program import Program, State
from jaxrnn.training.progress import ProgressBar
from jaxrnn.training.run_folder import RunFolder

Observer = Callable[[Any], dict[str, Any]]
"""Measures an ensemble; the numbers and lists that it returns join a report's line of metrics."""

_PIECE_SECONDS = 0.5
_ONE_DEVICE = Placement()


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
      models: the ensemble after training: the last weights, or the best ones if they were asked for.
      history: rows as in ``metrics.jsonl``, one a report, beginning with step 0 before training.
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
    test_score: Float[np.ndarray, "N"]
    test_loss: Float[np.ndarray, "N"]
    parameters: int

    @property
    def memory(self) -> int:
        """Bytes that training took on a device at most."""
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

    @property
    def summary(self) -> dict[str, Any]:
        """What ``result.json`` holds."""
        return {
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "chance": self.chance,
            "solved": self.solved,
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


def fit(
    make_model: Callable[[nnx.Rngs], Any],
    task: Task,
    config: FitConfig,
    *,
    folder: RunFolder | None = None,
    title: str = "training",
    observe: Observer | None = None,
    placement: Placement = _ONE_DEVICE,
) -> FitResult:
    """Train an ensemble of networks on a task.

    Args:
      make_model: makes one network from its random streams.
      task: data, loss and metric.
      config: how to train.
      folder: where metrics and checkpoints go; a run that was broken off goes on from its last checkpoint.
      title: what the progress bar calls it.
      observe: measures the ensemble before training and at every report.
      placement: how many devices to use, and for what.

    Returns:
      A `FitResult`. The test data are looked at once, at the end; nothing is chosen by them.

    Raises:
      InputError: a batch larger than the training data, devices that there are not, or a checkpoint of
        another network.
      Stopped: the process was asked to end (SIGTERM); the state is in the checkpoint.
      ProcessLostError: another process of the job is gone; the last checkpoint is good.
    """
    with together():
        program = _program(make_model, task, config, placement)
        start = program.start()
        first = program.gather(start.members.model)
        run = _Run(program, observe, title)
        if folder is None:
            return _result(run, first, run.train(start, _Nowhere()))
        say = ProgressBar(title, config.steps).say
        with folder.opened():
            with Checkpoints(folder.checkpoints, say) as checkpoints:
                keeper = _Keeper(folder, checkpoints)
                state = run.train(keeper.resume(start, run), keeper)
            result = _result(run, first, state)
            folder.finish(result.summary)
            return result


def _result(run: _Run, initial: Any, state: State) -> FitResult:
    """Look at the test data."""
    program, task, config = run.program, run.program.task, run.program.config
    models = _selected(state, config)
    loss, score = program.evaluate(models, program.batches(task.test))
    return FitResult(
        members=config.members,
        metric=task.metric.name,
        higher_is_better=task.metric.higher_is_better,
        chance=task.chance,
        solved=task.solved,
        initial=initial,
        models=program.gather(models),
        history=run.history,
        test_score=score,
        test_loss=loss,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(models)) // len(config.members),
    )


def load_models(
    make_model: Callable[[nnx.Rngs], Any], task: Task, config: FitConfig, folder: Path
) -> Any:
    """Return the ensemble of a run's newest checkpoint; every leaf has a leading axis of networks.

    Raises:
      InputError: the folder holds no checkpoint, or one of another network.
    """
    state = _program(make_model, task, config, Placement()).start()
    with Checkpoints(folder / "checkpoints") as checkpoints:
        found = checkpoints.restore(state)
    return _selected(found, config)


def _selected(state: State, config: FitConfig) -> Any:
    return state.members.best if config.select == "best" else state.members.model


def _ratios(sums: Any, counts: Any) -> list[float]:
    """Return the quotients; NaN where nothing was counted."""
    pairs = zip(np.asarray(sums).tolist(), np.asarray(counts).tolist(), strict=True)
    return [total / count if count else math.nan for total, count in pairs]


def _program(
    make_model: Callable[[nnx.Rngs], Any], task: Task, config: FitConfig, placement: Placement
) -> Program:
    config.check()
    placement.check(config)
    if config.batch_size > len(task.train) and not isinstance(task.train, Sampler):
        expected = f"at most the {len(task.train)} training examples"
        checks.refuse("batch_size", config.batch_size, expected)
    return Program(make_model, task, config, placement.grid())


class _Nowhere:
    """Keeps nothing: for training without a folder."""

    def report(self, row: dict[str, Any], state: State) -> None:
        pass

    def save(self, state: State) -> None:
        pass


class _Keeper:
    """Keeps metrics and checkpoints in a run's folder."""

    def __init__(self, folder: RunFolder, checkpoints: Checkpoints):
        self._folder, self._checkpoints = folder, checkpoints

    def resume(self, initial: State, run: _Run) -> State:
        """Return the newest state, and give the run the history up to it."""
        if self._checkpoints.latest is None:
            if any(row["step"] for row in self._folder.rows()):
                expected = "those that belong to metrics.jsonl, or a new folder"
                checks.refuse("resume", "no checkpoints, though there are metrics", expected)
            self._folder.rewind(-1)
            return initial
        state = self._checkpoints.restore(initial)
        self._checkpoints.forget_after(int(state.step))
        run.history = self._folder.rewind(int(state.step))
        if not run.history:
            expected = "metrics.jsonl, which belongs to the checkpoints"
            checks.refuse("resume", "no metrics, though there are checkpoints", expected)
        return state

    def report(self, row: dict[str, Any], state: State) -> None:
        """Keep a line of metrics and the state that belongs to it."""
        self._folder.append(row)
        self.save(state)

    def save(self, state: State) -> None:
        """Keep the state."""
        self._checkpoints.save(int(state.step), state)


class _Run:
    """One ensemble on its way from step 0 to the last."""

    def __init__(self, program: Program, observe: Observer | None, title: str):
        self.program, self._observe, self._title = program, observe, title
        self._config, self._task = program.config, program.task
        self._epoch_steps = self._task.train.steps(self._config.batch_size)
        self._stretch = 1
        self.history: list[dict[str, Any]] = []

    def train(self, state: State, keeper: _Keeper | _Nowhere) -> State:
        """Take the steps that are left."""
        if self._finished(state):
            return state
        with (
            ProgressBar(self._title, self._config.steps, done=int(state.step)) as progress,
            Interruption() as interruption,
        ):
            if int(state.step):
                progress.say(f"resumed after step {int(state.step)}")
            progress.say("compiling")
            compile_seconds = self.program.compile(state)
            progress.say(f"compiled in {compile_seconds:.1f} s")
            if not self.history:
                state = self._report(state, keeper)
            while not self._finished(state):
                state, times = self._advance(state, keeper, progress, interruption)
                state = self._report(state, keeper, **times, compile_seconds=compile_seconds)
                compile_seconds = 0.0
                self._tell(progress)
                if interruption.asked and not self._finished(state):
                    interruption.stop(int(state.step))
        return state

    def _finished(self, state: State) -> bool:
        """Tell whether all steps are taken, or nothing has become better for long."""
        config = self._config
        if int(state.step) >= config.steps:
            return True
        waited = int(state.step) - int(np.max(self.program.gather(state.members.best_step)))
        return bool(config.patience) and waited >= config.patience * config.every

    def _advance(
        self,
        state: State,
        keeper: _Keeper | _Nowhere,
        progress: ProgressBar,
        interruption: Interruption,
    ) -> tuple[State, dict[str, Any]]:
        """Train up to the next report; return the state, and how many steps that took, and how long."""
        first = step = int(state.step)
        every = self._config.every
        end = min((step // every + 1) * every, self._config.steps)
        began, busy = time.perf_counter(), 0.0
        for stretch in self._stretches(step, end):
            tick = time.perf_counter()
            state = jax.block_until_ready(self.program.train(state, stretch))
            took = time.perf_counter() - tick
            step, busy = step + stretch.batches, busy + took
            self._adapt(stretch.batches, took)
            progress.move(step)
            if interruption.asked and step < end:
                keeper.save(state)
                interruption.stop(step)
        seconds = time.perf_counter() - began
        return state, {"taken": end - first, "seconds": seconds, "waiting_seconds": seconds - busy}

    def _stretches(self, begin: int, end: int) -> Iterator[Stretch]:
        """Cut the steps from `begin` to `end` into pieces that each come from one part of the data."""
        while begin < end:
            number, offset = divmod(begin, self._epoch_steps)
            for stretch in self._task.train.epoch(number, self._config.batch_size):
                skipped = min(offset, stretch.batches)
                offset -= skipped
                first, left = stretch.first + skipped, stretch.batches - skipped
                while left and begin < end:
                    count = min(left, end - begin, self._stretch)
                    yield Stretch(stretch.part, first, count)
                    first, left, begin = first + count, left - count, begin + count

    def _adapt(self, count: int, seconds: float) -> None:
        """Let a call take as many steps as fit into half a second: progress shows, and signals are heard.

        Several processes must cut alike, and so do not cut at all.
        """
        if jax.process_count() > 1:
            self._stretch = self._config.every
        else:
            self._stretch = max(1, min(4 * count, int(_PIECE_SECONDS * count / max(seconds, 1e-6))))

    def _report(
        self,
        state: State,
        keeper: _Keeper | _Nowhere,
        taken: int = 0,
        seconds: float = 0.0,
        waiting_seconds: float = 0.0,
        compile_seconds: float = 0.0,
    ) -> State:
        """Evaluate, note the best weights, and keep a line of metrics and the state."""
        step, name, steps = int(state.step), self._task.metric.name, int(state.counted)
        valid_loss, valid_score = self.program.evaluate(state.members.model, self.program.valid)
        members = state.members
        loss, finite, nonfinite = self.program.gather(
            (members.loss, members.finite, members.nonfinite)
        )
        observed = self._observe(self.program.gather(members.model)) if self._observe else {}
        row = {
            "step": step,
            "epoch": step / self._epoch_steps,
            "train_loss": _ratios(loss, finite) if steps else None,
            "valid_loss": valid_loss.tolist(),
            f"valid_{name}": valid_score.tolist(),
            "nonfinite_steps": np.asarray(nonfinite).tolist(),
            "seconds": seconds,
            "seconds_per_step": seconds / taken if taken else None,
            "waiting_seconds": waiting_seconds,
            "compile_seconds": compile_seconds,
            "memory": self.program.memory,
            **observed,
        }
        state = self.program.compare(state, valid_score)
        self.history.append(row)
        keeper.report(row, state)
        return state

    def _tell(self, progress: ProgressBar) -> None:
        """Say how the last report's networks are doing."""
        row, name = self.history[-1], self._task.metric.name
        lost = [m for m, loss in enumerate(row["train_loss"]) if not math.isfinite(loss)]
        if lost:
            progress.say(f"step {row['step']}: the loss of network {lost} is not finite any more")
        progress.report(
            f"loss {np.mean(row['train_loss']):.4g}  valid {name} {np.mean(row[f'valid_{name}']):.4g}  "
            f"{1 / max(row['seconds_per_step'], 1e-9):.3g} steps/s"
        )
