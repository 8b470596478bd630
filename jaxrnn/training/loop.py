"""The way from the first step to the last: pieces of compiled training between reports.

A report evaluates, notes which weights were the best so far, and keeps a line of metrics and a checkpoint
that belong together. Between two of them, training is cut into calls of half a second, so that progress shows
and a request to end is noticed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxrnn import checks
from jaxrnn.tasks import Stretch
from jaxrnn.training.checkpoints import Checkpoints
from jaxrnn.training.interruption import Interruption
from jaxrnn.training.program import Program, State
from jaxrnn.training.progress import ProgressBar
from jaxrnn.training.run_folder import RunFolder

Observer = Callable[[Any], dict[str, Any]]
"""Measures an ensemble; the numbers and lists that it returns join a report's line of metrics."""

_PIECE_SECONDS = 0.5


class Nowhere:
    """Keeps nothing: for training without a folder."""

    def report(self, row: dict[str, Any], state: State) -> None:
        """Keep nothing."""

    def save(self, state: State) -> None:
        """Keep nothing."""


class Keeper:
    """Keeps metrics and checkpoints in a run's folder."""

    def __init__(self, folder: RunFolder, checkpoints: Checkpoints):
        self._folder, self._checkpoints = folder, checkpoints

    def resume(self, initial: State, run: Run) -> State:
        """Return the newest state, and give the run the history up to it."""
        reported = [row["step"] for row in self._folder.rows()]
        if self._checkpoints.latest is None:
            if any(reported):
                expected = "those that belong to metrics.jsonl, or a new folder"
                checks.refuse("resume", "no checkpoints, though there are metrics", expected)
            self._folder.rewind(-1)
            return initial
        if not reported:
            expected = "metrics.jsonl, which belongs to the checkpoints"
            checks.refuse("resume", "no metrics, though there are checkpoints", expected)
        state = self._checkpoints.restore(initial)
        self._checkpoints.forget_others(int(state.step))
        run.history = self._folder.rewind(int(state.step))
        return state

    def report(self, row: dict[str, Any], state: State) -> None:
        """Keep a line of metrics and the state that belongs to it."""
        self._folder.append(row)
        self.save(state)

    def save(self, state: State) -> None:
        """Keep the state."""
        self._checkpoints.save(int(state.step), state)


class Run:
    """One ensemble on its way from step 0 to the last."""

    def __init__(self, program: Program, observe: Observer | None, title: str):
        self.program, self._observe, self._title = program, observe, title
        self._config, self._task = program.config, program.task
        self._epoch_steps = self._task.train.steps(self._config.batch_size)
        self._stretch = 1
        self.history: list[dict[str, Any]] = []

    def train(self, state: State, keeper: Keeper | Nowhere, interruption: Interruption) -> State:
        """Take the steps that are left."""
        if self._finished(state):
            return state
        with ProgressBar(self._title, self._config.steps, done=int(state.step)) as progress:
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
                if interruption.asked:
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
        keeper: Keeper | Nowhere,
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
        """Let a call take as many steps as fit into half a second: progress shows, and signals are noticed.

        Several processes must cut alike, and so do not cut at all.
        """
        if jax.process_count() > 1:
            self._stretch = self._config.every
        else:
            self._stretch = max(1, min(4 * count, int(_PIECE_SECONDS * count / max(seconds, 1e-6))))

    def _report(
        self,
        state: State,
        keeper: Keeper | Nowhere,
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


def _ratios(sums: Any, counts: Any) -> list[float]:
    """Return the quotients; NaN where nothing was counted."""
    pairs = zip(np.asarray(sums).tolist(), np.asarray(counts).tolist(), strict=True)
    return [total / count if count else math.nan for total, count in pairs]
