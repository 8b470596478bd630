"""A run of Benettin's method: push directions along a trajectory and re-orthogonalise them when necessary.

    J_t Q_{t−1} = Q_t R_t ,        λ_i = ⟨ln (R_t)_ii⟩ ,        J_t = ∂s_t/∂s_{t−1}

(Benettin, Galgani, Giorgilli & Strelcyn 1980). The factorisation is not needed after every step: between two
factorisations the directions may grow apart by a factor that costs at most half the digits of their
precision. The number of steps this allows, the interval, is measured during the run. A block of steps that
turns out to have lost a direction is repeated with half the interval.

The factorisation need not be QR either. It is enough that the first k directions keep their span, for every
k, and that none is lost. Any factorisation into a well-conditioned basis and a triangular matrix does this,
as in Rutishauser's LR iteration (1958), the counterpart of Francis's QR. P J Q = L U takes less time, a third
for large square matrices. The logarithms |U_ii| lack the volumes that the basis PᵀL spans, one at the
beginning of a block and one at its end. Both are 1 if the block begins and ends with orthonormal directions,
so the last factorisation of every block is QR, and the sums over blocks are the same as with QR throughout.
The condition number of PᵀL, about N, magnifies rounding. Where that would matter, as in float32, every
factorisation is QR.

Steps are grouped in blocks, and blocks in chunks. A chunk is one call of one compiled program, whatever its
length, so a run of any number of steps compiles once, stores no trajectory, and can be monitored and resumed.
If all exponents are requested, two intervals of every chunk are repeated with their determinants to check
Σ λ = ⟨ln|det J|⟩.

On a superstable orbit the derivative is zero, and its floating-point value is only the rounding error of the
state. Steps at which this happens are counted (`jaxrnn.analysis.tangents`). A chaotic orbit has a few of them
by chance; if they recur, all exponents of that sequence are −∞.

`traced` does the same in loops of fixed length, for ``jax.grad`` and ``jax.jit``. Nothing can be measured
there, so its interval is an argument and no block is repeated.

Weakness: the interval is based on past steps, so a step that separates the directions more than any before
costs one chunk, which is discarded and repeated. That the condition number of an LU's basis is about N is
empirical, not a theorem.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import checks
from jaxrnn.analysis.exponents import GROUPS, Lyapunov, Position, per_block
from jaxrnn.analysis.flows import time_step_of
from jaxrnn.analysis.lapack import one_blas_thread
from jaxrnn.analysis.tangents import (
    Tangents,
    advance,
    blind_steps,
    log_determinants,
    nearly_orthonormal,
    same_flag,
    spread_and_reach,
)
from jaxrnn.jaxprs import is_inexact
from jaxrnn.steps import compiled
from jaxrnn.typing import Step

_BLOCKS = 256  # blocks in a long run; a short run has blocks of a few steps
_SHORT_BLOCK = 16
_CHUNK = 16  # blocks in one compiled call
_LONGEST_INTERVAL = 256
_LU_ROUNDING = 1e-6  # relative error allowed in what an interval that ends with an LU measures
_RECURRENT = 1e-3  # share of blind steps: some 64 ε by chance, 1/p on a superstable orbit
_CHANCE = 2  # blind steps that may occur by chance in a run of any length
_DIGITS = 0.5  # share of a float's digits by which directions may grow apart between factorisations


class _Outcome(NamedTuple):
    """Results of blocks of steps: sums of logarithms [N, *B, K], and extremes over their intervals."""

    sums: Any
    spread: float
    reach: float
    interval: int
    by_lu: bool


class Run:
    """A run in progress, which can be resumed."""

    def __init__(
        self,
        cell: Step,
        xs: Any,
        position: Position,
        renorm_every: int | None,
        resume: Lyapunov | None,
    ):
        self._program = _chunk.bound(cell)
        self._checks = _logarithms.bound(cell), _determinants.bound(cell)
        self._blind_steps = _blind_steps.bound(cell)
        self._xs = xs
        self._adapts = renorm_every is None
        self._every = renorm_every or 1
        self._by_lu = False  # whether to use LU in all but the last interval of a block
        self._time_step = time_step_of(cell)
        self._first = int(position.steps)
        carry, directions, _ = position
        self._blind = np.zeros(directions.shape[:-2], int)
        self._counted = 0
        self._state = Tangents.at(carry, directions)
        # Directions are pushed in the carry's own precision, and factorised in float32 at least.
        floats = [leaf.dtype for leaf in jax.tree.leaves(carry) if is_inexact(leaf)]
        self._eps = max(float(jnp.finfo(dtype).eps) for dtype in floats)
        self._limit = -_DIGITS * math.log(float(jnp.finfo(directions.dtype).eps))
        self._range = 0.8 * math.log(float(jnp.finfo(directions.dtype).max))
        self._block = None if resume is None else int(np.max(resume.block_steps))
        self._rates = [] if resume is None else [np.asarray(resume.rates, np.float64)]
        self._steps = [] if resume is None else [np.asarray(resume.block_steps)]
        self._determinants = [] if resume is None else [float(resume.determinant)]
        rounding = 0.0 if resume is None else float(resume.rounding)
        self._rounding = 0.0 if math.isnan(rounding) else rounding  # NaN comes from a compiled run

    @one_blas_thread
    def through(
        self, warmup: int, steps: int, progress: Callable[[Lyapunov], None] | None
    ) -> Lyapunov:
        """Take the steps and return the record; the first `warmup` steps are not counted."""
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
        return self.record

    @property
    def record(self) -> Lyapunov:
        """The result so far."""
        carry, directions, t, *_ = self._state
        dtype = directions.dtype
        rates = np.concatenate(self._rates).astype(dtype)
        return Lyapunov(
            rates=np.where(self.superstable[..., None], -np.inf, rates).astype(dtype),
            block_steps=np.concatenate(self._steps),
            position=Position(carry, directions, self._first + int(t)),
            determinant=_largest(self._determinants),
            rounding=self._rounding,
            renorm_every=self._every,
            time_step=self._time_step,
        )

    @property
    def superstable(self) -> Any:
        """Which sequences are on an orbit whose derivative is zero to rounding [*B]."""
        return (self._blind > _CHANCE) & (self._blind >= _RECURRENT * self._counted)

    def _try_out(self, steps: int) -> None:
        """Take a few steps and discard them, to measure how fast the directions separate."""
        plan = np.ones(min(_CHUNK, steps), np.int32)
        start = self._state
        outcome = self._ran(plan)
        self._state = start
        self._adapt(outcome)

    def _take(self, plan: Any, counted: bool) -> None:
        start = self._state
        outcome = self._ran(plan)
        while self._adapts and (outcome.interval > 1 or outcome.by_lu) and self._failed(outcome):
            if outcome.by_lu:
                self._by_lu = False
            else:
                self._every = outcome.interval // 2
            self._state = start
            outcome = self._ran(plan)
        if not self._adapts and outcome.interval > 1 and not np.isfinite(outcome.sums).all():
            outcome = self._confirmed(plan, start, outcome)
        if np.isnan(outcome.sums).any():
            steps = f"{int(start.t) + 1} to {int(self._state.t)}"
            got = f"non-finite values within steps {steps}"
            checks.refuse("cell: its derivative", got, "finite values")
        if counted:
            self._keep(plan, outcome, start)
        if self._adapts:
            self._adapt(outcome)

    def _ran(self, plan: Any) -> _Outcome:
        """Take blocks of steps, and return their sums with the extremes of the directions' growth."""
        blocks = self._padded(plan)
        at_rest = jnp.full_like(self._state.least_growth, jnp.inf)
        self._state = self._state._replace(least_growth=at_rest)
        self._state, (sums, spreads, reaches) = self._program(self._xs, self._state, *blocks)
        _refuse_if_broken(self._state.broken, self._first)
        return _Outcome(
            sums=np.asarray(sums, np.float64)[: len(plan)],
            spread=float(np.max(spreads)),
            reach=float(np.max(reaches)),
            interval=min(self._every, int(plan.max())),
            by_lu=self._by_lu,
        )

    def _failed(self, outcome: _Outcome) -> bool:
        """Tell whether directions were lost, or nearly lost, because an interval was too long."""
        lost = not np.isfinite(outcome.sums).all()
        return lost or outcome.spread > 1.15 * self._limit or outcome.reach > self._range

    def _confirmed(self, plan: Any, start: Tangents, lost: _Outcome) -> _Outcome:
        """Repeat blocks step by step: a direction that is lost again belongs to a singular Jacobian."""
        given, self._every, self._state = self._every, 1, start
        outcome = self._ran(plan)
        if np.isfinite(outcome.sums).all():
            grown = np.isnan(lost.sums).any()
            fate = "grew beyond the range of floats" if grown else "shrank to rounding"
            expected = f"fewer steps: between two factorisations a direction {fate}"
            checks.refuse("renorm_every", given, expected)
        self._every = given
        return outcome

    def _keep(self, plan: Any, outcome: _Outcome, start: Tangents) -> None:
        rates = outcome.sums / per_block(plan, outcome.sums)
        self._rates.append(rates / self._time_step)
        self._steps.append(plan)
        self._counted += int(plan.sum())
        if np.min(self._state.least_growth) < self._eps**0.5:
            count = jnp.asarray(plan.sum(), jnp.int32)
            self._blind += np.asarray(self._blind_steps(self._xs, start, count))
        lost = self._lost(self._eps, outcome.spread, outcome.by_lu) / outcome.interval
        self._rounding = max(self._rounding, lost)
        some = min(2 * outcome.interval, int(plan[0]))
        self._determinants.append(self._determinant_difference(start, some, outcome))

    def _determinant_difference(self, start: Tangents, steps: int, outcome: _Outcome) -> float:
        """Return the largest difference between the sum of logarithms and the log determinant, nats a step.

        This takes two programs: in a single one their factorisations could wait for each other (`lapack`).
        """
        *_, count, size = start.directions.shape
        if count < size:
            return math.nan
        measured, exact = self._checks
        some, interval = jnp.asarray(steps, jnp.int32), jnp.asarray(outcome.interval, jnp.int32)
        logs = np.asarray(measured(self._xs, start, some, interval, jnp.asarray(outcome.by_lu)))
        dets = np.asarray(exact(self._xs, start, some))
        regular = np.isfinite(logs).all(axis=-1)
        differences = np.abs(logs.sum(axis=-1)[regular] - dets[regular])
        return float(differences.max()) / steps if differences.size else math.nan

    def _adapt(self, outcome: _Outcome) -> None:
        """Set the interval from how far directions separated, and how much they grew, within one interval."""
        if not np.isfinite(outcome.sums).all():
            # Steps are singular, so nothing is known of the directions after the lost one.
            self._every, self._by_lu = 1, False
            return
        spread, reach = max(outcome.spread, 1e-3), max(outcome.reach, 1e-3)
        longer = outcome.interval * min(self._limit / spread, self._range / reach)
        self._every = int(np.clip(int(longer), 1, min(4 * outcome.interval, _LONGEST_INTERVAL)))
        ahead = spread * max(1, self._every / outcome.interval)
        eps = float(jnp.finfo(self._state.directions.dtype).eps)
        self._by_lu = self._lost(eps, ahead, by_lu=True) < _LU_ROUNDING

    def _lost(self, eps: float, spread: float, by_lu: bool) -> float:
        """Return the relative rounding error of measurements on directions that separate by `spread` nats."""
        condition = self._state.directions.shape[-1] if by_lu else 1
        return condition * eps * math.exp(min(spread, 80.0))

    def _padded(self, plan: Any) -> tuple[Any, Any, Any]:
        blocks = np.zeros(_CHUNK, np.int32)
        blocks[: len(plan)] = plan
        every = jnp.asarray(self._every, jnp.int32)
        return jnp.asarray(blocks), every, jnp.asarray(self._by_lu)


def _block_length(steps: int) -> int:
    short = min(_SHORT_BLOCK, max(1, steps // _SHORT_BLOCK))
    return max(short, math.ceil(steps / _BLOCKS))


def _blocks(steps: int, size: int) -> Any:
    """Cut steps into blocks of `size`; the last block is shorter if `size` does not divide them."""
    whole, rest = divmod(steps, size)
    return np.array([size] * whole + [rest] * (rest > 0), np.int32)


def _refuse_if_broken(broken: Any, before: int) -> None:
    """Refuse states that are not finite; in a resumed run step numbers include the `before` earlier steps."""
    broken = np.asarray(broken)
    if (broken >= 0).any():
        first = int(broken[broken >= 0].min())
        where = [int(i) for i in np.argwhere(broken == first)[0]]
        sequence = f" of sequence {where}" if where else ""
        checks.refuse(
            "cell: its states",
            f"non-finite values at step {before + first + 1}{sequence}",
            "finite values",
        )


def _largest(differences: list[float]) -> float:
    known = [d for d in differences if not math.isnan(d)]
    return max(known) if known else math.nan


# Compiled programs.


@compiled
def _chunk(cell: Step, xs: Any, state: Tangents, blocks: Any, every: Any, by_lu: Any) -> Any:
    """Take blocks of steps; return the state, sums of logarithms [N, *B, K], spreads and reaches [N]."""

    def take(state, steps):
        return _block(cell, xs, state, steps, every, by_lu)

    return jax.lax.scan(take, state, blocks)


@compiled
def _logarithms(cell: Step, xs: Any, state: Tangents, steps: Any, every: Any, by_lu: Any) -> Any:
    """Return the sums of logarithms of a single block."""
    return _block(cell, xs, state, steps, every, by_lu)[1][0]


def _block(cell: Step, xs: Any, state: Tangents, steps: Any, every: Any, by_lu: Any) -> Any:
    """Take a block of steps, after which the directions are orthonormal."""
    intervals = (steps + every - 1) // every

    def interval(i, running):
        state, sums, widest, furthest = running
        count = jnp.minimum(every, steps - i * every)
        by_qr = (i == intervals - 1) | ~by_lu
        factorise = functools.partial(jax.lax.cond, by_qr, nearly_orthonormal, same_flag)
        state, logs = advance(cell, xs, state, count, factorise)
        apart, reach = spread_and_reach(logs)
        return state, sums + logs, jnp.maximum(widest, apart), jnp.maximum(furthest, reach)

    nothing = jnp.zeros(state.directions.shape[:-1], state.directions.dtype)
    none = jnp.zeros((), nothing.dtype)
    found = jax.lax.fori_loop(0, intervals, interval, (state, nothing, none, none))
    return found[0], found[1:]


_determinants = compiled(log_determinants)
_blind_steps = compiled(blind_steps)


def traced(
    cell: Step, xs: Any, position: Position, warmup: int, steps: int, every: int, time_step: float
) -> Lyapunov:
    """Take all steps in loops of fixed length, which can be differentiated and traced by the caller."""
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

    plan = _blocks(steps - warmup, max(1, (steps - warmup) // GROUPS))
    size, whole = int(plan[0]), int((plan == plan[0]).sum())
    state, _ = stretch(state, warmup)
    state, sums = jax.lax.scan(lambda s, _: stretch(s, size), state, None, length=whole)
    for rest in plan[whole:].tolist():
        state, last = stretch(state, rest)
        sums = jnp.concatenate([sums, last[None]])
    broken = (state.broken >= 0)[..., None]
    return Lyapunov(
        rates=jnp.where(broken, jnp.nan, sums / per_block(plan, sums) / time_step),
        block_steps=plan,
        position=Position(state.carry, state.directions, position.steps + steps),
        determinant=math.nan,
        rounding=math.nan,
        renorm_every=every,
        time_step=time_step,
    )
