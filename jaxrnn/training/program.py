"""The compiled parts of training: many steps of a whole ensemble in one call, and its evaluation.

    batch  = the source's, from the network's key and the step's number
    loss   = the task's, of the network's answers
    change = the optimiser's, of the clipped gradient

Networks of an ensemble lie along the first axis of every array.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float

from jaxrnn import checks
from jaxrnn.cells.weights import Orthogonal
from jaxrnn.tasks import Batch, Source, Stretch, Task
from jaxrnn.training.config import FitConfig, Variants
from jaxrnn.training.optimizers import make_optimizer
from jaxrnn.training.penalties import check_penalties, penalty
from jaxrnn.training.placement import Grid, memory_bytes
from jaxrnn.typing import Key


class Member(NamedTuple):
    """One network of an ensemble, and what its training needs to go on.

    Attributes:
      model: the network.
      optimizer: the optimiser's state.
      carry: the state that the next window of a text begins from; None for tasks without.
      loss: sum of the training losses since the last report, those that were finite.
      finite: how many those are.
      nonfinite: steps so far whose loss or gradient was not finite.
      best: the network with the best validation score so far.
      best_score: that score.
      best_step: when it was reached.
    """

    model: Any
    optimizer: Any
    carry: Any
    loss: Any
    finite: Any
    nonfinite: Any
    best: Any
    best_score: Any
    best_step: Any


class State(NamedTuple):
    """All that training goes on from; `members` has an axis of networks in front.

    Attributes:
      step: steps taken.
      counted: steps taken since the last report.
      members: the networks.
    """

    step: Any
    counted: Any
    members: Member


class _Keys(NamedTuple):
    """A network's random streams."""

    weights: Key
    orders: Key
    draws: Key
    masks: Key


class Program:
    """What is compiled for one run.

    Args:
      make_model: makes one network from its random streams and its own numbers of `variants`.
      task: what to learn.
      config: how.
      grid: on which devices.
      variants: values of settings of the network, of each of which several are tried.
    """

    def __init__(
        self,
        make_model: Callable[..., Any],
        task: Task,
        config: FitConfig,
        grid: Grid,
        variants: Variants,
    ):
        self.task, self.config = task, config
        self.members = config.ensemble(variants).members
        self._make_model, self._grid, self._variants = make_model, grid, tuple(variants)
        seeds = np.array([member["seed"] for member in self.members], np.int32)
        self._keys = jax.jit(jax.vmap(_streams), out_shardings=grid.spread)(seeds)
        by_member = config.ensemble(variants).values
        values = {name: np.array(each, np.float32) for name, each in by_member.items()}
        self._values = grid.place(values)
        self._parts: list[Any] = []
        self._train: list[Any] = []
        self._state = State(grid.shared, grid.shared, grid.spread)  # where each part of it lies
        self._compare = jax.jit(self._compared, out_shardings=self._state)
        self._evaluate = jax.jit(self._answer_all, out_shardings=(grid.shared, grid.spread))
        self.gather = jax.jit(lambda tree: tree, out_shardings=grid.shared)

    # The state.

    def start(self) -> State:
        """Return the state before the first step.

        Raises:
          InputError: the networks need more memory than their devices have.
        """
        started = jax.jit(self._start, out_shardings=self._state).trace(self._keys, self._values)
        _check_memory(started.out_info, self._grid.devices)
        return started.lower().compile()(self._keys, self._values)

    def _start(self, keys: _Keys, values: Any) -> State:
        zero = jnp.zeros((), jnp.int32)
        # In turn: orthogonal kernels, as Flax's cells have them, are drawn by factorisations.
        return State(zero, zero, self._each(self._member, in_turn=True)(keys, values))

    def _each(self, function: Callable[..., Any], *, in_turn: bool) -> Callable[..., Any]:
        """Return a function of all networks out of one of one network.

        Side by side, unless they must take turns and one device has them all: batches of factorisations may
        wait for each other for ever (`jaxrnn.analysis.lapack` says how).
        """
        if in_turn and self._grid.axis is None:
            return lambda *networks: jax.lax.map(lambda one: function(*one), networks)
        return jax.vmap(function, spmd_axis_name=self._grid.axis)

    @functools.cached_property
    def _factorises(self) -> bool:
        """Whether a network factorises several matrices at every step, which only a CPU may not finish."""
        one = {name: np.float32(0) for name in self._variants}
        model = jax.eval_shape(lambda: self._make_model(nnx.Rngs(0), **one))
        orthogonal = sum(isinstance(part, Orthogonal) for _, part in nnx.iter_modules(model))
        looks = 1 + len(self.config.penalties.wanted)  # each penalty prepares the network by itself
        return orthogonal * looks > 1 and jax.default_backend() == "cpu"

    def _member(self, keys: _Keys, values: Any) -> Member:
        own = {name: values[name] for name in self._variants}
        model = self._make_model(nnx.Rngs(keys.weights), **own)
        optimizer = make_optimizer(self.config, values).init(model)
        batch = jax.tree.map(jnp.asarray, self.task.train.take(self.config.batch_size))
        check_penalties(self.config.penalties, model, self.task, batch)
        carry, _ = jax.eval_shape(lambda: self.task.predict(model, batch, None, None))
        return Member(
            model=model,
            optimizer=optimizer,
            carry=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), carry),
            loss=jnp.zeros(()),
            finite=jnp.zeros((), jnp.int32),
            nonfinite=jnp.zeros((), jnp.int32),
            best=model,
            best_score=jnp.asarray(self.task.metric.worst, jnp.float32),
            best_step=jnp.zeros((), jnp.int32),
        )

    def compare(self, state: State, scores: Float[np.ndarray, "N"]) -> State:
        """Begin a new report: where a score is the best so far, remember the network."""
        given = self._grid.place(np.asarray(scores, np.float32))
        return self._compare(state, given)

    def _compared(self, state: State, scores: Any) -> State:
        better = self.task.metric.better

        def remember(member: Member, score: Any, step: Any) -> Member:
            wins = better(score, member.best_score)
            new = (member.model, score, step)
            old = (member.best, member.best_score, member.best_step)
            best, score, step = jax.tree.map(lambda a, b: jnp.where(wins, a, b), new, old)
            return member._replace(
                loss=jnp.zeros_like(member.loss),
                finite=jnp.zeros_like(member.finite),
                best=best,
                best_score=score,
                best_step=step,
            )

        steps = jnp.broadcast_to(state.step, scores.shape)
        members = jax.vmap(remember)(state.members, scores, steps)
        return State(state.step, jnp.zeros_like(state.counted), members)

    # Training.

    def compile(self, state: State) -> float:
        """Place the data, compile training and evaluation; return the seconds that took."""
        began = time.perf_counter()
        parts = self.task.train.parts(self.config.batch_size)
        self._parts = [self._grid.replicate(part) for part in parts]
        run = jax.jit(self._run, out_shardings=self._state)
        for number in range(len(parts)):
            arguments = self._arguments(state, Stretch(number, 0, 1))
            self._train.append(run.lower(*arguments).compile())
        self.evaluate(state.members.model, self.valid)
        return time.perf_counter() - began

    @functools.cached_property
    def memory(self) -> int:
        """Bytes that a call of training takes on a device at most: states, its data, and what lies between.

        Data that it does not read, those of validation and of other lengths, are not counted.
        """
        uses = [run.memory_analysis() for run in self._train]
        return max(
            (
                use.argument_size_in_bytes + use.output_size_in_bytes + use.temp_size_in_bytes
                for use in uses
                if use is not None
            ),
            default=0,
        )

    def train(self, state: State, stretch: Stretch) -> State:
        """Take the steps of a stretch."""
        return self._train[stretch.part](*self._arguments(state, stretch))

    def _arguments(self, state: State, stretch: Stretch) -> tuple[Any, ...]:
        place = self._grid.replicate(np.array([stretch.first, stretch.batches], np.int32))
        return state, self._keys, self._values, self._parts[stretch.part], place

    def _run(self, state: State, keys: _Keys, values: Any, part: Any, place: Any) -> State:
        first, count = place
        epoch = state.step // self.task.train.steps(self.config.batch_size)

        def run(member: Member, keys: _Keys, values: Any) -> Member:
            order = self.task.train.order(part, jax.random.fold_in(keys.orders, epoch))

            def step(i: Any, member: Member) -> Member:
                number = state.step + i
                key = jax.random.fold_in(keys.draws, number)
                size = self.config.batch_size
                batch = self.task.train.batch(part, order, first + i, key, size)
                masks = jax.random.fold_in(keys.masks, number)
                batch = self._grid.split(batch, by_step=self.task.answers == "step")
                return self._step(member, values, batch, masks)

            return jax.lax.fori_loop(0, count, step, member)

        members = self._each(run, in_turn=self._factorises)(state.members, keys, values)
        return State(state.step + count, state.counted + count, members)

    def _step(self, member: Member, values: Any, batch: Batch, key: Key) -> Member:
        """Take one step of one network."""
        for_masks, for_noise = jax.random.split(key)

        def loss(model: Any) -> Any:
            carry, answers = self.task.predict(model, batch, member.carry, for_masks)
            return self.task.mean_loss(answers, batch), carry

        def objective(model: Any) -> Any:
            if "weight_noise" in values:
                model = _noisy(model, values["weight_noise"], for_noise)
            value, carry = loss(model)
            weights = {name: values[name] for name in self.config.penalties.wanted}
            added = penalty(weights, model, self.task, batch, lambda model: loss(model)[0])
            return value + added, (value, carry)

        found, gradient = jax.value_and_grad(objective, has_aux=True)(member.model)
        _, (value, carry) = found
        optimizer = make_optimizer(self.config, values)
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies floats with integers
            change, state = optimizer.update(gradient, member.optimizer, member.model)
        finite = jnp.isfinite(value) & _all_finite(gradient)
        after = (optax.apply_updates(member.model, change), state, carry)
        if self.config.skip_nonfinite:
            before = (member.model, member.optimizer, member.carry)
            after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)
        model, state, carry = after
        return member._replace(
            model=model,
            optimizer=state,
            carry=carry,
            loss=member.loss + jnp.where(finite, value, 0).astype(member.loss.dtype),
            finite=member.finite + jnp.where(finite, 1, 0),
            nonfinite=member.nonfinite + jnp.where(finite, 0, 1),
        )

    # Evaluation.

    @functools.cached_property
    def valid(self) -> list[Batch]:
        """The validation data, which every report looks at."""
        return list(self.batches(self.task.valid))

    def batches(self, source: Source) -> Iterator[Batch]:
        """Place a split's batches on the devices, one after another."""
        for batch in source.batches(source.evaluation_size()):
            yield self._grid.replicate(batch)

    def evaluate(
        self, models: Any, batches: Iterable[Batch]
    ) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
        """Return the mean loss and the score on the batches of a split, one a network."""
        networks, carry = len(self.members), None
        losses, counts, sums = np.zeros(networks), 0.0, 0.0
        for batch in batches:
            found, carry = self._evaluate(models, batch, carry)
            loss, count, part = (np.asarray(each, np.float64) for each in found)
            losses, counts, sums = losses + loss, counts + count, sums + part
        scores = np.array([self.task.metric.value(each) for each in np.asarray(sums)])
        # A network that gives NaN has no score, though the largest of its NaNs may be the right class.
        return losses / counts, np.where(np.isfinite(losses), scores, np.nan)

    def _answer_all(self, models: Any, batch: Batch, carry: Any) -> Any:
        def answer(model: Any, carry: Any) -> Any:
            carry, answers = self.task.predict(model, batch, carry, None)
            loss = self.task.losses(answers, batch).astype(jnp.float32).sum()
            counted = batch.mask.sum().astype(jnp.float32)
            sums = self.task.metric.count(answers, batch.targets, batch.mask)
            return (loss, counted, sums), carry

        return self._each(answer, in_turn=self._factorises)(models, carry)


def _check_memory(state: Any, devices: int) -> None:
    """Refuse a state of training that fills more than its devices' memory: the process would be ended."""
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) / devices
    there = memory_bytes()
    if there is not None and needed > there:
        got = f"networks whose weights and optimiser fill {needed / 2**30:,.0f} GiB on each device"
        checks.refuse("hidden_features, layers and seeds", got, f"at most {there / 2**30:,.0f} GiB")


def _streams(seed: Any) -> _Keys:
    return _Keys(*jax.random.split(jax.random.key(seed), len(_Keys._fields)))


def _noisy(model: Any, scale: Any, key: Key) -> Any:
    """Add normal noise to every weight."""
    leaves, structure = jax.tree.flatten(model)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        leaf + scale * jax.random.normal(k, leaf.shape, leaf.dtype)
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)


def _all_finite(tree: Any) -> Any:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))
