"""Train an ensemble: the same network from many seeds at once, each with its own weights and its own order.

A result from one seed is an anecdote. Because a module is a pytree, ``jax.vmap`` over stacked modules trains
all seeds in one program, and every figure can carry an error. One epoch is one compiled call: a
``lax.scan`` over its batches, data on the device.

Everything random in epoch e of seed s follows from the pair (s, e). A run that is resumed from the checkpoint
after epoch e therefore goes on exactly as it would have.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxrnn import checks
from jaxrnn.tasks import SequenceClassification, Split
from jaxrnn.training.checkpoints import Checkpoints
from jaxrnn.training.progress import ProgressBar
from jaxrnn.training.run_folder import RunFolder
from jaxrnn.typing import Key

_EVALUATION_BATCH = 512


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How to train.

    Attributes:
      epochs: passes over the training data.
      batch_size: examples a step, for each seed.
      learning_rate: peak rate of Adam; it falls to zero along a cosine.
      clip_norm: the gradient is scaled down to this norm where it is larger (Pascanu et al. 2013).
      seeds: how many networks to train at once.
      seed: the first seed; the others follow it.
    """

    epochs: int = 30
    batch_size: int = 32
    learning_rate: float = 3e-3
    clip_norm: float = 1.0
    seeds: int = 5
    seed: int = 0

    def check(self) -> None:
        """Refuse settings with which nothing can be trained."""
        for field in ("epochs", "batch_size", "seeds"):
            checks.count(field, getattr(self, field))
        for field in ("learning_rate", "clip_norm"):
            checks.positive(field, getattr(self, field))
        if self.seed < 0:
            checks.refuse("seed", self.seed, "0 or more")


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What training gave.

    Attributes:
      initial: the ensemble before training; every leaf has a leading axis of seeds.
      models: the ensemble after training.
      history: rows as in ``metrics.jsonl``, one an epoch, beginning with epoch 0 before training.
      test_accuracy: accuracy on the test data after the last epoch, one a seed.
      parameters: number of parameters of one network.
    """

    initial: Any
    models: Any
    history: list[dict[str, Any]]
    test_accuracy: Float[np.ndarray, "seeds"]
    parameters: int

    @property
    def seconds_per_step(self) -> float:
        """Median wall time of one optimiser step of the whole ensemble, without compilation."""
        return float(
            np.median([row["seconds"] / row["steps"] for row in self.history if row["steps"]])
        )

    @property
    def compile_seconds(self) -> float:
        """Time spent on compiling."""
        return float(sum(row["compile_seconds"] for row in self.history))


class _State(NamedTuple):
    models: Any
    optimizer: Any


def fit(
    make_model: Callable[[nnx.Rngs], Any],
    task: SequenceClassification,
    config: FitConfig,
    *,
    folder: RunFolder | None = None,
    title: str = "training",
    observe: Callable[[Any], dict[str, Any]] | None = None,
) -> FitResult:
    """Train an ensemble of networks on a task.

    Args:
      make_model: makes one network from its random streams; a network maps [T, B, F] to logits [B, C].
      task: data, loss and metric.
      config: how to train.
      folder: where metrics and checkpoints go; a run that was broken off goes on from its last checkpoint.
      title: what the progress bar calls it.
      observe: measures the ensemble before training and after every epoch; what it returns, numbers and
        lists of them, joins that epoch's row of the history.

    Returns:
      A `FitResult`. The test data are looked at once, after the last epoch; nothing is chosen by them.

    Raises:
      InputError: a batch larger than the training data, or a checkpoint of another network.
    """
    run, state = _begin(make_model, task, config, observe or _nothing)
    initial = state.models
    if folder is None:
        state, history = _epochs(run, state, [], title=title, keep=lambda row, state: None)
    else:
        folder.open()
        with Checkpoints(folder.checkpoints) as checkpoints:
            if checkpoints.latest is None:
                folder.rewind(-1)
            else:
                state = checkpoints.restore(state)
                folder.rewind(checkpoints.latest)
            history = list(folder.rows())

            def keep(row, state):
                folder.append(row)
                checkpoints.save(row["epoch"], state)

            state, history = _epochs(run, state, history, title=title, keep=keep)
    _, accuracy = run.evaluate(state.models, task.test)
    leaves = jax.tree.leaves(initial)
    return FitResult(
        initial=initial,
        models=state.models,
        history=history,
        test_accuracy=accuracy,
        parameters=sum(leaf.size for leaf in leaves) // config.seeds,
    )


def load_models(
    make_model: Callable[[nnx.Rngs], Any],
    task: SequenceClassification,
    config: FitConfig,
    folder: Path,
) -> Any:
    """Return the ensemble of a run's newest checkpoint; every leaf has a leading axis of seeds.

    Raises:
      InputError: the folder holds no checkpoint, or one of another network.
    """
    _, state = _begin(make_model, task, config, _nothing)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        return checkpoints.restore(state).models


def _nothing(models: Any) -> dict[str, Any]:
    return {}


def _begin(
    make_model: Callable[[nnx.Rngs], Any],
    task: SequenceClassification,
    config: FitConfig,
    observe: Callable[[Any], dict[str, Any]],
) -> tuple[_Run, _State]:
    """Return the run's compiled parts and the state from which it starts."""
    config.check()
    if config.batch_size > len(task.train):
        checks.refuse(
            "batch_size", config.batch_size, f"at most the {len(task.train)} training examples"
        )
    steps = config.epochs * (len(task.train) // config.batch_size)
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, steps)),
    )
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    models = jax.vmap(lambda key: make_model(nnx.Rngs(key)))(keys)
    state = _State(models, jax.vmap(optimizer.init)(models))
    return _Run(task, config, optimizer, keys, observe), state


def _epochs(
    run: _Run,
    state: _State,
    history: list[dict[str, Any]],
    *,
    title: str,
    keep: Callable[[dict[str, Any], _State], None],
) -> tuple[_State, list[dict[str, Any]]]:
    """Train the epochs that the history does not have yet."""
    done = history[-1]["epoch"] if history else 0
    if done == run.config.epochs:
        return state, history
    with ProgressBar(title, run.config.epochs, done=done) as progress:
        if done:
            progress.say(f"resumed after epoch {done}")
        progress.say("compiling")
        compile_seconds = run.compile(state)
        progress.say(f"compiled in {compile_seconds:.1f} s")
        if not history:
            history.append(run.row(0, state, losses=None, seconds=0.0))
            keep(history[0], state)
        for epoch in range(done + 1, run.config.epochs + 1):
            began = time.perf_counter()
            state, losses = jax.block_until_ready(run.epoch(state, epoch))
            seconds = time.perf_counter() - began
            row = run.row(epoch, state, losses=losses, seconds=seconds)
            row["compile_seconds"] = compile_seconds if epoch == done + 1 else 0.0
            history.append(row)
            keep(row, state)
            accuracy, loss = np.mean(row["valid_accuracy"]), np.mean(row["train_loss"])
            lost = [s for s, value in enumerate(row["train_loss"]) if not np.isfinite(value)]
            if lost:
                progress.say(f"epoch {epoch}: the loss of network {lost} is not finite any more")
            pace = f"{1e3 * seconds / row['steps']:.1f} ms a step"
            progress.advance(f"loss {loss:.3f}  valid accuracy {accuracy:.3f}  {pace}")
    return state, history


class _Run:
    """The compiled parts of one training run."""

    def __init__(
        self,
        task: SequenceClassification,
        config: FitConfig,
        optimizer: optax.GradientTransformation,
        keys: Key,
        observe: Callable[[Any], dict[str, Any]],
    ):
        self.task, self.config, self.steps = task, config, len(task.train) // config.batch_size
        self._optimizer, self._keys, self._observe = optimizer, keys, observe
        self._data = (jnp.asarray(task.train.inputs), jnp.asarray(task.train.labels))
        self._evaluate = jax.jit(jax.vmap(self._score, in_axes=(0, None, None)))
        self._epoch: Any = None

    def compile(self, state: _State) -> float:
        """Compile one epoch and return the seconds that took."""
        began = time.perf_counter()
        by_seed = jax.vmap(self._train, in_axes=(0, 0, None, None, None))
        arguments = (state, self._keys, jnp.asarray(1), *self._data)
        self._epoch = jax.jit(by_seed).lower(*arguments).compile()
        self.evaluate(state.models, self.task.valid)
        return time.perf_counter() - began

    def epoch(self, state: _State, epoch: int) -> tuple[_State, Float[Array, "seeds steps"]]:
        """Train every seed for one epoch; return the new state and the loss of each step."""
        return self._epoch(state, self._keys, jnp.asarray(epoch), *self._data)

    def evaluate(
        self, models: Any, split: Split
    ) -> tuple[Float[np.ndarray, "seeds"], Float[np.ndarray, "seeds"]]:
        """Return mean loss and accuracy on a split, one a seed."""
        losses, hits = [], []
        for start in range(0, len(split), _EVALUATION_BATCH):
            part = slice(start, start + _EVALUATION_BATCH)
            loss, hit = self._evaluate(models, split.inputs[part], split.labels[part])
            losses.append(np.asarray(loss, np.float64))
            hits.append(np.asarray(hit, np.float64))
        return np.sum(losses, axis=0) / len(split), np.sum(hits, axis=0) / len(split)

    def row(self, epoch: int, state: _State, *, losses: Any, seconds: float) -> dict[str, Any]:
        """Return one line of metrics."""
        valid_loss, valid_accuracy = self.evaluate(state.models, self.task.valid)
        return {
            "epoch": epoch,
            "steps": 0 if losses is None else self.steps,
            "train_loss": None if losses is None else np.mean(losses, axis=1).tolist(),
            "valid_loss": valid_loss.tolist(),
            "valid_accuracy": valid_accuracy.tolist(),
            "seconds": seconds,
            "compile_seconds": 0.0,
            **self._observe(state.models),
        }

    def _train(
        self, state: _State, key: Key, epoch: Int[Array, ""], inputs: Array, labels: Array
    ) -> Any:
        """Train one seed for one epoch."""
        order = jax.random.permutation(jax.random.fold_in(key, epoch), len(labels))
        batches = order[: self.steps * self.config.batch_size].reshape(self.steps, -1)

        def step(state: _State, chosen: Int[Array, "B"]) -> tuple[_State, Float[Array, ""]]:
            def loss(model):
                logits = model(jnp.swapaxes(inputs[chosen], 0, 1))
                return self.task.loss(logits, labels[chosen]).mean()

            value, gradient = jax.value_and_grad(loss)(state.models)
            with jax.numpy_dtype_promotion("standard"):  # optax multiplies floats with integers
                change, optimizer = self._optimizer.update(gradient, state.optimizer, state.models)
            return _State(optax.apply_updates(state.models, change), optimizer), value

        return jax.lax.scan(step, state, batches)

    def _score(self, model: Any, inputs: Array, labels: Array) -> tuple[Array, Array]:
        """Return the summed loss and the number of right answers of one network."""
        logits = model(jnp.swapaxes(inputs, 0, 1))
        return self.task.loss(logits, labels).sum(), self.task.correct(logits, labels).sum()
