"""Lyapunov exponents: the rates at which neighbouring trajectories diverge, in nats a step.

Tangent directions are pushed along the trajectory and re-orthogonalised as they align with one another
(Benettin, Galgani, Giorgilli & Strelcyn 1980; Shimada & Nagashima 1979):

    J_t Q_{t−1} = Q_t R_t ,        λ_i = ⟨ln (R_t)_ii⟩ ,        J_t = ∂s_t/∂s_{t−1} .

No Jacobian is formed: the K directions are pushed through the step, and factorised only as often as their
precision requires (`jaxrnn.analysis.benettin`). The result consists of sums over blocks of steps: their mean
is the exponent, their scatter its standard error (`jaxrnn.analysis.exponents`).

The sum of all exponents is the mean of ln|det J_t|. If all are requested, this is checked on some steps of
every run, and the result contains the difference.

Weakness: a standard error cannot account for what the run has not visited, such as a second attractor or a
slow drift. In a singular direction the exponent is −inf, and one singular step is enough. A direction counts
as singular if it is only rounding relative to the longest one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import checks
from jaxrnn.analysis.benettin import Run, traced
from jaxrnn.analysis.exponents import Lyapunov, Position, PrecisionWarning
from jaxrnn.analysis.flows import time_step_of
from jaxrnn.analysis.lapack import one_blas_thread
from jaxrnn.annotations import checked
from jaxrnn.batching import for_batch
from jaxrnn.steps import batch_axes, begin, flat_state, step_of
from jaxrnn.typing import Carry, Key, Step, StepLike, at_least_float32


@checked
def lyapunov(
    cell: StepLike,
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
      k: number of exponents, the largest first; by default all S.
      warmup: number of first steps, of the T, that are not counted, so that state and directions settle.
      renorm_every: steps between two factorisations; by default as many as precision allows.
      key: draws the first directions.
      resume: an earlier result to continue from; `xs` or `length` then describe the additional steps. The
        cell must be the same: a record does not store its cell, and a different cell with a state of the same
        size is not detected.
      progress: called repeatedly with the result so far. It may save it; if it raises, the run ends.

    Returns:
      A `Lyapunov` record. Under ``jax.grad`` it can be differentiated, with `renorm_every` given or 1, unless
      a requested direction is singular; diverging states give NaN there.

    Raises:
      InputError: arguments that do not fit, or states that become non-finite; the message gives the step.

    Warns:
      PrecisionWarning: rounding may cost the least exponent more than 1 % and 0.01 nats; in float32 a
        direction is lost to rounding, and reported as −inf; or the orbit is superstable, so that in any
        precision the derivative is only the rounding of the state, and all exponents are reported as −inf.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxrnn
      >>> logistic = lambda s, x: (4.0 * s * (1.0 - s), s)
      >>> found = jaxrnn.analysis.lyapunov(logistic, carry=jnp.array([0.3]), length=20_000)
      >>> bool(abs(found.exponents[0] - jnp.log(2.0)) < 0.02)
      True
    """
    if resume is not None:
        _check_resumed(resume, cell, carry, k, key)
        carry = resume.position.carry
    carry, steps, batch = begin(cell, xs, carry, length)
    if 0 in batch:
        name, empty = ("carry", carry) if xs is None else ("xs", xs)
        checks.refuse(name, checks.describe(empty), "at least one sequence, [T, *B, F]")
    cell = step_of(cell)
    checks.finite("xs", xs)
    checks.finite("carry", carry)
    if renorm_every is not None:
        checks.count("renorm_every", renorm_every)
    checks.within("warmup", warmup, 0, steps - 1, f": some of the {steps} steps must count")
    position = _first_position(carry, batch, k, key) if resume is None else resume.position
    if _is_traced(cell, carry, xs):
        for name, given in (("resume", resume), ("progress", progress)):
            if given is not None:
                got = f"a {type(given).__name__} under jax.jit, jax.grad or the like"
                checks.refuse(name, got, "None there: it is for a run that is watched")
        return traced(cell, xs, position, warmup, steps, renorm_every or 1, time_step_of(cell))
    run = Run(cell, xs, position, renorm_every, resume)
    record = run.through(warmup, steps, progress)
    if run.superstable.any():
        said = "on a superstable orbit the derivative is nothing but the rounding of the state"
        message = f"lyapunov: {said}; the exponents there are given as −inf"
        warnings.warn(message, PrecisionWarning, stacklevel=2)
        return record
    lost = _lost_to_rounding(record)
    if lost:
        advice = "give float64 weights and carry, or ask for fewer exponents (k)"
        warnings.warn(f"lyapunov: {lost}; {advice}", PrecisionWarning, stacklevel=2)
    return record


def _check_resumed(resume: Lyapunov, cell: Step, carry: Any, k: Any, key: Any) -> None:
    """Refuse arguments that `resume` already determines or that contradict it."""
    if not isinstance(resume, Lyapunov):
        checks.refuse("resume", checks.describe(resume), "a Lyapunov record")
    if carry is not None:
        checks.refuse("carry", checks.describe(carry), "None beside resume, which has its own")
    if k not in (None, resume.rates.shape[-1]):
        checks.refuse("k", k, f"{resume.rates.shape[-1]}, as in resume")
    if time_step_of(cell) != resume.time_step:
        checks.refuse(
            "cell", f"a time step of {time_step_of(cell)}", f"{resume.time_step}, as in resume"
        )
    if key is not None:
        checks.refuse("key", "a key", "None beside resume, which has its directions")


def _first_position(
    carry: Carry, batch: tuple[int, ...], k: int | None, key: Key | None
) -> Position:
    """Return the carry with random directions; coordinate axes might never reach the leading directions."""
    state = flat_state(carry, len(batch))
    size = state.shape[-1]
    k = size if k is None else k
    checks.within("k", k, 1, size, ", the size of the state")
    key = jax.random.key(0) if key is None else key
    drawn = jax.random.normal(key, (*batch, size, k), at_least_float32(state.dtype))
    columns, _ = one_blas_thread(jnp.linalg.qr)(drawn)
    return Position(carry, jnp.swapaxes(columns, -1, -2), 0)


def _is_traced(cell: Step, carry: Carry, xs: Any) -> bool:
    """Tell whether values are traced by a JAX transformation, including those a function closes over."""
    x = jax.tree.map(lambda leaf: leaf[0], xs)
    moved, _ = for_batch(cell, carry, x, batch_axes(cell, xs, carry))(carry, x)
    return not all(map(checks.concrete, jax.tree.leaves(moved)))


def _lost_to_rounding(record: Lyapunov) -> str:
    """Describe what rounding may have cost the exponents, if it is more than their accuracy allows."""
    exponents = np.asarray(record.exponents)
    eps = float(jnp.finfo(exponents.dtype).eps)
    scale = float(np.abs(exponents[np.isfinite(exponents)]).max(initial=0.0))
    rounding = record.rounding / record.time_step
    if rounding > 0.01 * max(scale, 1.0):
        loss = f"rounding may cost the least exponent {rounding:.1g} nats a {record.unit}"
    elif eps > 1e-8 and (exponents == -np.inf).any():
        shrunk = f"{64 * eps:.0e} of the longest within an interval"
        loss = f"a direction that shrinks to {shrunk} is lost, as −inf"
    else:
        return ""
    return f"in {exponents.dtype} {loss}"
