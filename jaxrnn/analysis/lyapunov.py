"""Lyapunov exponents: the rates at which neighbouring trajectories part, in nats a step.

Directions are carried along with the trajectory and made orthogonal again as they turn into one another
(Benettin, Galgani, Giorgilli & Strelcyn 1980; Shimada & Nagashima 1979):

    J_t Q_{t−1} = Q_t R_t ,        λ_i = ⟨ln (R_t)_ii⟩ ,        J_t = ∂s_t/∂s_{t−1} .

No Jacobian is formed: the K directions are pushed through the step. Between two factorisations the directions
may grow apart by a factor that costs six tenths of the digits of their precision and no more; how many steps
that is, is measured as the run goes on. The sums over blocks of steps are the result: their mean is the
exponent, their scatter its standard error.

The sum of all exponents is the mean of ln|det J_t|. Where all are asked for, that is checked on some steps of
every run, and the difference is in the result.

Weakness: a standard error knows nothing of what the run has not seen, be it a second attractor or a slow
drift. In a singular direction the exponent is −inf, and one step of it is enough; singular is what, beside
the longest direction, is nothing but rounding.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from jaxrnn import checks
from jaxrnn.analysis.flows import time_step_of
from jaxrnn.analysis.lapack import one_blas_thread
from jaxrnn.analysis.tangents import (
    Tangents,
    advance,
    log_determinants,
    nearly_orthonormal,
    spread_and_reach,
)
from jaxrnn.analysis.trajectory import flat_state
from jaxrnn.steps import begin, compiled
from jaxrnn.typing import Carry, Key, Step, at_least_float32

_BLOCKS = 256  # blocks in a long run; in a short one they are of a few steps
_SHORT_BLOCK = 16
_GROUPS = 16  # blocks are joined to this many, up to twice as many, before their scatter is taken
_CHUNK = 16  # blocks that one compiled call takes
_LONGEST_INTERVAL = 256
_DIGITS = 0.6  # share of a float's digits by which directions may grow apart between factorisations


class PrecisionWarning(UserWarning):
    """A result whose rounding error is larger than what it is good for."""


class Position(NamedTuple):
    """Where a run stands: what it needs to go on.

    Attributes:
      carry: the carry, leaves [*B, H].
      directions: orthonormal rows [*B, K, S].
      steps: steps taken.
    """

    carry: Carry
    directions: Any
    steps: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lyapunov:
    """Lyapunov exponents along one trajectory for each sequence of a batch.

    Rates are in nats a step, for a `Flow` in nats a unit of time.

    Attributes:
      rates: of each block of steps, in the order of the directions [N, *B, K]; finite-time exponents.
      block_steps: steps in each block [N].
      position: where the run stands, for more of it.
      determinant: largest |Σ λ − ⟨ln|det J|⟩| found, nats a step; NaN unless all exponents were asked for,
        or where the Jacobians are singular.
      rounding: estimated error of the least exponent from rounding, nats a step.
      renorm_every: steps between two factorisations, at the end of the run.
      time_step: units of time in a step.
    """

    rates: Float[Any, "N *B K"]
    block_steps: Any
    position: Position
    determinant: Any
    rounding: Any
    renorm_every: Any
    time_step: float = dataclasses.field(metadata={"static": True})

    @property
    def exponents(self) -> Float[Any, "*B K"]:
        """Exponents, falling along the last axis."""
        return _in_order(self._means, self._means)

    @property
    def stderr(self) -> Float[Any, "*B K"]:
        """Standard errors of the exponents; NaN with fewer than 8 blocks."""
        return _in_order(self._errors[0], self._means)

    @property
    def interval(self) -> Float[Any, "*B K 2"]:
        """95 % intervals of the exponents, by Student's t."""
        reach = stdtrit(self._errors[1], 0.975) * self.stderr
        return np.stack([self.exponents - reach, self.exponents + reach], axis=-1)

    @property
    def history(self) -> Float[Any, "N *B K"]:
        """Exponents as they stood after each block, in the final order: how they converged."""
        weights = _per_block(self.block_steps, self.rates)
        running = (self.rates * weights).cumsum(axis=0) / weights.cumsum(axis=0)
        return _in_order(running, np.broadcast_to(self._means, running.shape))

    @property
    def pooled(self) -> tuple[Any, Any]:
        """Mean exponents over the sequences, and its standard error from their scatter, each [K]."""
        each = np.asarray(self.exponents, np.float64).reshape(-1, self.rates.shape[-1])
        if len(each) == 1:
            return each[0], np.asarray(self.stderr).reshape(-1)
        scattered = np.where(np.isfinite(each), each, np.nan)  # −inf has no scatter
        return each.mean(axis=0), scattered.std(axis=0, ddof=1) / math.sqrt(len(each))

    @property
    def kaplan_yorke(self) -> Float[Any, "*B"]:
        """Kaplan–Yorke dimension [*B]; NaN where more exponents are needed to tell."""
        return np.apply_along_axis(self._dimension, -1, np.asarray(self.exponents, np.float64))

    @property
    def entropy_rate(self) -> Float[Any, "*B"]:
        """Sum of the positive exponents [*B]: Pesin's bound on it; NaN where all K are positive and K < S."""
        exponents = np.asarray(self.exponents, np.float64)
        unknown = (exponents[..., -1] > 0) & ~self._complete
        return np.where(unknown, np.nan, np.maximum(exponents, 0).sum(axis=-1))

    @property
    def unit(self) -> str:
        """What rates are per: "step", or "unit of time" for a flow."""
        return "step" if self.time_step == 1 else "unit of time"

    @property
    def text(self) -> str:
        """A short account."""
        values, errors = self.pooled
        shown = ", ".join(
            f"{v:+.5f} ± {e:.5f}" for v, e in zip(values[:4], errors[:4], strict=True)
        )
        unit = self.unit
        return "\n".join(
            [
                f"exponents           {shown}{', …' if len(values) > 4 else ''} nats a {unit}",
                f"Kaplan–Yorke        {np.mean(self.kaplan_yorke):.3f}",
                f"entropy rate        {np.mean(self.entropy_rate):.4f} nats a {unit}",
                f"steps               {int(np.sum(self.block_steps))}",
                f"Σλ − ⟨ln|det J|⟩    {float(self.determinant):.0e}",
            ]
        )

    @property
    def _complete(self) -> bool:
        return self.rates.shape[-1] == self.position.directions.shape[-1]

    @property
    def _means(self) -> Any:
        weights = _per_block(self.block_steps, self.rates)
        return (self.rates * weights).sum(axis=0) / weights.sum(axis=0)

    @property
    def _errors(self) -> tuple[Any, int]:
        """Standard errors in the order of the directions, and their degrees of freedom."""
        whole = np.asarray(self.block_steps) == np.max(self.block_steps)
        blocks = np.asarray(self.rates, np.float64)[whole]
        size = max(1, len(blocks) // _GROUPS)
        count = len(blocks) // size
        if count < _GROUPS // 2:
            return np.full(blocks.shape[1:], np.nan), 1
        groups = blocks[: count * size].reshape(count, size, *blocks.shape[1:]).mean(axis=1)
        # −inf has no scatter, and NaN says so.
        groups = np.where(np.isfinite(groups), groups, np.nan)
        return groups.std(axis=0, ddof=1) / math.sqrt(count), count - 1

    def _dimension(self, exponents: Any) -> float:
        sums = np.cumsum(exponents)
        if exponents[0] <= 0:
            return 0.0
        if sums[-1] >= 0:
            return float(len(exponents)) if self._complete else math.nan
        last = int(np.argmax(sums < 0))
        return last + float(sums[last - 1] / -exponents[last])


def lyapunov(
    cell: Step,
    xs: Any = None,
    *,
    carry: Carry | None = None,
    length: int | None = None,
    k: int | None = None,
    warmup: int = 0,
    renorm_every: int | None = None,
    key: Key | None = None,
    resume: Lyapunov | None = None,
    progress: Callable[[Lyapunov], None] | None = None,
) -> Lyapunov:
    """Measure the Lyapunov exponents of a cell driven by inputs, of a map, or of a flow.

    Args:
      cell: a cell, any function ``(carry, x) -> (carry, y)``, or a `Flow`.
      xs: inputs [T, *B, F], or None with `length` and `carry`, for an autonomous system.
      carry: initial carry, leaves [*B, H]; by default the cell's own.
      length: number of steps T, needed only when `xs` is None.
      k: how many exponents, the largest first; by default all S.
      warmup: the first so many of the T steps only settle state and directions, and are not counted.
      renorm_every: steps between two factorisations; by default as many as precision allows.
      key: draws the first directions.
      resume: an earlier result to go on from, with the same cell; `xs` or `length` are what is to follow.
      progress: called with the result so far, again and again. It may save it; if it raises, the run ends.

    Returns:
      A `Lyapunov` record. Under ``jax.grad`` it can be differentiated, with `renorm_every` given or 1, where
      no direction asked for is singular; states that blow up give NaN there.

    Raises:
      InputError: arguments that do not fit, or states that are no longer finite: it says at which step.

    Warns:
      PrecisionWarning: rounding may cost the least exponent more than 1 % and 0.01 nats; or in float32 a
        direction is lost in it, and reported as −inf.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxrnn
      >>> logistic = lambda s, x: (4.0 * s * (1.0 - s), s)
      >>> found = jaxrnn.analysis.lyapunov(logistic, carry=jnp.array([0.3]), length=20_000)
      >>> bool(abs(found.exponents[0] - jnp.log(2.0)) < 0.02)
      True
    """
    if resume is not None:
        if carry is not None:
            checks.refuse("carry", checks.describe(carry), "None beside resume, which has its own")
        carry = resume.position.carry
    carry, steps, batch = begin(cell, xs, carry, length)
    for leaf in jax.tree.leaves(carry):
        checks.floating("carry", leaf)
    checks.finite("xs", xs)
    checks.finite("carry", carry)
    size = flat_state(carry, len(batch)).shape[-1]
    if renorm_every is not None:
        checks.count("renorm_every", renorm_every)
    if resume is None:
        k = size if k is None else k
        if not isinstance(k, numbers.Integral) or not 1 <= k <= size:
            checks.refuse("k", k, f"1 to {size}, the size of the state")
        position = Position(carry, _first_directions(carry, batch, size, k, key), 0)
    else:
        position = resume.position
        if k not in (None, resume.rates.shape[-1]):
            checks.refuse("k", k, f"{resume.rates.shape[-1]}, as in resume")
        if time_step_of(cell) != resume.time_step:
            checks.refuse(
                "cell", f"a time step of {time_step_of(cell)}", f"{resume.time_step}, as in resume"
            )
        if key is not None:
            checks.refuse("key", "a key", "None beside resume, which has its directions")
    if not isinstance(warmup, numbers.Integral) or not 0 <= warmup < steps:
        checks.refuse("warmup", warmup, f"0 to {steps - 1}: some of the {steps} steps must count")
    if _is_traced(cell, carry, xs):
        return _traced(cell, xs, position, warmup, steps, renorm_every or 1, time_step_of(cell))
    run = _Run(cell, xs, position, renorm_every, resume)
    return run.through(warmup, steps, progress)


def _is_traced(cell: Step, carry: Carry, xs: Any) -> bool:
    """Tell whether values are hidden by a transformation, be it in what a plain function closes over."""
    moved, _ = cell(carry, jax.tree.map(lambda leaf: leaf[0], xs))
    return not all(map(checks.concrete, jax.tree.leaves(moved)))


def _first_directions(
    carry: Carry, batch: tuple[int, ...], size: int, k: int, key: Key | None
) -> Any:
    """Return random orthonormal rows: axes of the state could stay out of the leading directions for ever."""
    dtype = at_least_float32(flat_state(carry, len(batch)).dtype)
    key = jax.random.key(0) if key is None else key
    drawn = jax.random.normal(key, (*batch, size, k), dtype)
    return jnp.swapaxes(one_blas_thread(jnp.linalg.qr)(drawn)[0], -1, -2)


# The run: chunk after chunk of blocks, each one call of a compiled program.


class _Outcome(NamedTuple):
    """What blocks of steps gave: sums of logarithms [N, *B, K], and of any interval in them the extremes."""

    sums: Any
    spread: float
    reach: float
    interval: int


class _Run:
    """A run in progress."""

    def __init__(
        self,
        cell: Step,
        xs: Any,
        position: Position,
        renorm_every: int | None,
        resume: Lyapunov | None,
    ):
        self._program = _chunk.bound(cell)
        self._checks = _interval.bound(cell), _determinants.bound(cell)
        self._xs = xs
        self._adapts = renorm_every is None
        self._every = renorm_every or 1
        self._time_step = time_step_of(cell)
        self._first = position.steps
        carry, directions, _ = position
        self._state = Tangents.at(carry, directions)
        # Directions are carried in the carry's own precision, and made orthogonal in float32 at least.
        self._eps = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(carry))
        self._limit = -_DIGITS * math.log(float(jnp.finfo(directions.dtype).eps))
        self._range = 0.8 * math.log(float(jnp.finfo(directions.dtype).max))
        self._block = None if resume is None else int(np.max(resume.block_steps))
        self._rates = [] if resume is None else [np.asarray(resume.rates, np.float64)]
        self._steps = [] if resume is None else [np.asarray(resume.block_steps)]
        self._determinants = [] if resume is None else [float(resume.determinant)]
        self._rounding = 0.0 if resume is None else float(resume.rounding)

    @one_blas_thread
    def through(
        self, warmup: int, steps: int, progress: Callable[[Lyapunov], None] | None
    ) -> Lyapunov:
        if self._adapts:
            self._try_out(steps)
        size = self._block or _block_length(steps - warmup)
        for counted, plan in (
            (False, _blocks(warmup, size)),
            (True, _blocks(steps - warmup, size)),
        ):
            for start in range(0, len(plan), _CHUNK):
                self._take(plan[start : start + _CHUNK], counted)
                if progress is not None and counted:
                    progress(self.record)
        record = self.record
        _warn_of_rounding(record)
        return record

    @property
    def record(self) -> Lyapunov:
        carry, directions, t, _ = self._state
        dtype = directions.dtype
        return Lyapunov(
            rates=np.concatenate(self._rates).astype(dtype),
            block_steps=np.concatenate(self._steps),
            position=Position(carry, directions, self._first + int(t)),
            determinant=_largest(self._determinants),
            rounding=self._rounding,
            renorm_every=self._every,
            time_step=self._time_step,
        )

    def _try_out(self, steps: int) -> None:
        """Take a few steps that are not kept, to see how fast the directions part."""
        plan = np.ones(min(_CHUNK, steps), np.int32)
        start = self._state
        outcome = self._ran(plan)
        self._state = start
        self._adapt(outcome)

    def _take(self, plan: Any, counted: bool) -> None:
        start = self._state
        outcome = self._ran(plan)
        while self._adapts and outcome.interval > 1 and self._failed(outcome):
            self._every = outcome.interval // 2
            self._state = start
            outcome = self._ran(plan)
        if not self._adapts and outcome.interval > 1 and not np.isfinite(outcome.sums).all():
            outcome = self._confirmed(plan, start)
        if np.isnan(outcome.sums).any():
            steps = f"{int(start.t) + 1} to {int(self._state.t)}"
            got = f"non-finite values within steps {steps}"
            checks.refuse("cell: its derivative", got, "finite values")
        if counted:
            self._keep(plan, outcome, start)
        if self._adapts:
            self._adapt(outcome)

    def _ran(self, plan: Any) -> _Outcome:
        """Take blocks of steps, and say how the directions fared."""
        blocks = self._padded(plan)
        self._state, (sums, spreads, reaches) = self._program(self._xs, self._state, *blocks)
        _refuse_if_broken(self._state.broken)
        return _Outcome(
            sums=np.asarray(sums, np.float64)[: len(plan)],
            spread=float(np.max(spreads)),
            reach=float(np.max(reaches)),
            interval=min(self._every, int(plan.max())),
        )

    def _failed(self, outcome: _Outcome) -> bool:
        """Tell whether directions were lost, or came near to it, in an interval that was too long."""
        lost = not np.isfinite(outcome.sums).all()
        return lost or outcome.spread > 1.15 * self._limit or outcome.reach > self._range

    def _confirmed(self, plan: Any, start: Tangents) -> _Outcome:
        """Take blocks again, step by step: what is lost there too is singular in itself."""
        given, self._every, self._state = self._every, 1, start
        outcome = self._ran(plan)
        if np.isfinite(outcome.sums).all():
            expected = "fewer steps: a direction was lost to rounding between two factorisations"
            checks.refuse("renorm_every", given, expected)
        self._every = given
        return outcome

    def _keep(self, plan: Any, outcome: _Outcome, start: Tangents) -> None:
        rates = outcome.sums / _per_block(plan, outcome.sums)
        self._rates.append(rates / self._time_step)
        self._steps.append(plan)
        loss = self._eps * math.exp(min(outcome.spread, 80.0)) / outcome.interval
        self._rounding = max(self._rounding, loss)
        self._determinants.append(self._determinant_difference(start, outcome.interval))

    def _determinant_difference(self, start: Tangents, steps: int) -> float:
        """Compare all logarithms of one interval with its determinants, nats a step.

        Two programs: side by side in one, their factorisations could wait for each other (`lapack`).
        """
        *_, count, size = start.directions.shape
        if count < size:
            return math.nan
        interval = jnp.asarray(steps, jnp.int32)
        logs, dets = (np.asarray(f(self._xs, start, interval)) for f in self._checks)
        regular = np.isfinite(logs).all(axis=-1)
        differences = np.abs(logs.sum(axis=-1)[regular] - dets[regular])
        return float(differences.max()) / steps if differences.size else math.nan

    def _adapt(self, outcome: _Outcome) -> None:
        """Set the interval by how far the directions have parted, and how far they reached, within one."""
        if not np.isfinite(
            outcome.sums
        ).all():  # singular steps: nothing is known of what lies below
            self._every = 1
            return
        spread, reach = max(outcome.spread, 1e-3), max(outcome.reach, 1e-3)
        longer = outcome.interval * min(self._limit / spread, self._range / reach)
        self._every = int(np.clip(int(longer), 1, min(4 * outcome.interval, _LONGEST_INTERVAL)))

    def _padded(self, plan: Any) -> tuple[Any, Any]:
        blocks = np.zeros(_CHUNK, np.int32)
        blocks[: len(plan)] = plan
        return jnp.asarray(blocks), jnp.asarray(self._every, jnp.int32)


def _block_length(steps: int) -> int:
    short = min(_SHORT_BLOCK, max(1, steps // _SHORT_BLOCK))
    return max(short, math.ceil(steps / _BLOCKS))


def _blocks(steps: int, size: int) -> Any:
    """Cut steps into blocks of `size`, the last one shorter where they do not divide."""
    whole, rest = divmod(steps, size)
    return np.array([size] * whole + [rest] * (rest > 0), np.int32)


def _refuse_if_broken(broken: Any) -> None:
    broken = np.asarray(broken)
    if (broken >= 0).any():
        first = int(broken[broken >= 0].min())
        where = [int(i) for i in np.argwhere(broken == first)[0]]
        sequence = f" of sequence {where}" if where else ""
        checks.refuse(
            "cell: its states", f"non-finite values at step {first + 1}{sequence}", "finite values"
        )


def _warn_of_rounding(record: Lyapunov) -> None:
    exponents = np.asarray(record.exponents)
    eps = float(jnp.finfo(exponents.dtype).eps)
    scale = float(np.abs(exponents[np.isfinite(exponents)]).max(initial=0.0))
    if record.rounding > 0.01 * max(scale, 1.0):
        loss = f"rounding may cost the least exponent {record.rounding:.1g} nats a step"
    elif eps > 1e-8 and (exponents == -np.inf).any():
        loss = f"a direction that shrinks to {64 * eps:.0e} of the longest within a step is lost, as −inf"
    else:
        return
    advice = "give float64 weights and carry, or ask for fewer exponents (k)"
    warnings.warn(
        f"lyapunov: in {exponents.dtype} {loss}; {advice}", PrecisionWarning, stacklevel=5
    )


def _largest(differences: list[float]) -> float:
    known = [d for d in differences if not math.isnan(d)]
    return max(known) if known else math.nan


# What is compiled.


@compiled
def _chunk(cell: Step, xs: Any, state: Tangents, blocks: Any, every: Any) -> Any:
    """Take blocks of steps; return the state, sums of logarithms [N, *B, K], spreads and reaches [N]."""

    def take(state, steps):
        def interval(i, running):
            state, sums, widest, furthest = running
            count = jnp.minimum(every, steps - i * every)
            state, logs = advance(cell, xs, state, count, nearly_orthonormal)
            apart, reach = spread_and_reach(logs)
            return state, sums + logs, jnp.maximum(widest, apart), jnp.maximum(furthest, reach)

        nothing = jnp.zeros(state.directions.shape[:-1], state.directions.dtype)
        none = jnp.zeros((), nothing.dtype)
        intervals = (steps + every - 1) // every
        found = jax.lax.fori_loop(0, intervals, interval, (state, nothing, none, none))
        return found[0], found[1:]

    return jax.lax.scan(take, state, blocks)


@compiled
def _interval(cell: Step, xs: Any, state: Tangents, count: Any) -> Any:
    """Return the logarithms of one interval alone."""
    return advance(cell, xs, state, count, nearly_orthonormal)[1]


_determinants = compiled(log_determinants)


def _traced(
    cell: Step, xs: Any, position: Position, warmup: int, steps: int, every: int, time_step: float
) -> Lyapunov:
    """Take all steps in loops of fixed length, which can be differentiated and compiled into others."""
    carry, directions, _ = position
    state = Tangents.at(carry, directions)

    def stretch(state, count):
        def interval(_, running):
            state, sums = running
            state, logs = advance(cell, xs, state, every)
            return state, sums + logs

        whole, rest = divmod(count, every)
        start = (state, jnp.zeros(directions.shape[:-1], directions.dtype))
        state, sums = jax.lax.fori_loop(0, whole, interval, start)
        if rest:
            state, logs = advance(cell, xs, state, rest)
            sums = sums + logs
        return state, sums

    plan = _blocks(steps - warmup, max(1, (steps - warmup) // _GROUPS))
    size, whole = int(plan[0]), int((plan == plan[0]).sum())
    state, _ = stretch(state, warmup)
    state, sums = jax.lax.scan(lambda s, _: stretch(s, size), state, None, length=whole)
    for rest in plan[whole:].tolist():
        state, last = stretch(state, rest)
        sums = jnp.concatenate([sums, last[None]])
    broken = (state.broken >= 0)[..., None]
    return Lyapunov(
        rates=jnp.where(broken, jnp.nan, sums / _per_block(plan, sums) / time_step),
        block_steps=plan,
        position=Position(state.carry, state.directions, position.steps + steps),
        determinant=math.nan,
        rounding=math.nan,
        renorm_every=every,
        time_step=time_step,
    )


def _per_block(block_steps: Any, rates: Any) -> Any:
    """Return the steps of blocks [N] in the shape and precision to weigh rates [N, *B, K] with."""
    steps = np.asarray(block_steps).astype(rates.dtype)
    return steps.reshape(-1, *[1] * (rates.ndim - 1))


def _in_order(values: Any, exponents: Any) -> Any:
    """Sort values along the last axis by falling exponents."""
    module: Any = jnp if isinstance(exponents, jax.Array) else np
    return module.take_along_axis(values, module.argsort(-exponents, axis=-1), axis=-1)
