"""Linear recurrences in logarithmic depth.

Where the next carry is a diagonal affine map of the carry,

    carry_t = a_t ⊙ carry_t−1 + b_t ,

two steps are again one such map, (a₂ a₁, a₂ b₁ + b₂), so all prefixes come out of ⌈log₂ T⌉ rounds of an
associative scan (Blelloch 1990; Martin & Cundy 2018, "Parallelizing Linear Recurrent Neural Nets Over
Sequence Length"). a_t and b_t are read off the step itself: b_t is its value at the zero carry, a_t its
derivative there. Whether the step is such a map its traced program shows, operation by operation.

Weakness: about twice the arithmetic of the loop and log T passes over memory. It wins where the rounds run
in parallel, and loses on a CPU. Products of decays above 1 may overflow where the loop does not, and an
overflow is not forgotten at a reset.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn import checks
from jaxrnn.typing import Carry, Step
from jaxrnn.unroll.blocks import at, before_each
from jaxrnn.unroll.record import Frames, Method, Unrolled, seen, where


@dataclasses.dataclass(frozen=True)
class Associative(Method):
    """An associative scan over a step that is affine and diagonal in its carry."""

    def __call__(
        self, cell: Step, carry: Carry, frames: Frames, *, initial: Carry, length: int
    ) -> Unrolled:
        """Take `length` steps from `carry`; a reset goes back to `initial`."""
        obstacle = _obstacle(cell, carry, at(frames.x, 0))
        if obstacle is not None:
            checks.refuse("method", f"Associative() for a cell that {obstacle}", _EXPECTED)
        xs = seen(frames.x, frames.valid)
        decay, gain = _coefficients(cell, carry, xs, length)
        spread = jax.tree.map(lambda i, a: jnp.broadcast_to(i, a.shape), initial, decay)
        zero, one = _filled(decay, 0), _filled(decay, 1)
        if frames.reset is not None:
            again = jax.tree.map(lambda a, b, i: a * i + b, decay, gain, spread)
            decay, gain = where(frames.reset, (zero, again), (decay, gain))
        if frames.valid is not None:
            decay, gain = where(frames.valid, (decay, gain), (one, zero))
        carries = diagonal_recurrence(decay, gain, carry)
        starts = before_each(carry, carries)
        if frames.reset is not None:
            starts = where(frames.reset, spread, starts)
        _, outputs = jax.vmap(cell, axis_size=length)(starts, xs)
        last = at(carries, length - 1)
        return Unrolled(seen(outputs, frames.valid), last, carries, method=self)


def diagonal_recurrence(decay: Any, gain: Any, carry: Carry) -> Carry:
    """Return all carries [T, *B, H] of carry_t = decay_t ⊙ carry_t−1 + gain_t."""

    def then(first, second):
        (a1, b1), (a2, b2) = first, second
        return a2 * a1, a2 * b1 + b2

    def leaf(a, b, c):
        b = b.at[0].add(a[0] * c)
        return jax.lax.associative_scan(then, (a, b))[1]

    return jax.tree.map(leaf, decay, gain, carry)


def _coefficients(cell: Step, carry: Carry, xs: Any, length: int) -> tuple[Carry, Carry]:
    """Return decay and gain of all steps, leaves [T, *B, H]."""
    zero, one = _filled(carry, 0), _filled(carry, 1)

    def at_zero(x):
        return jax.jvp(lambda c: cell(c, x)[0], (zero,), (one,))

    gain, decay = jax.vmap(at_zero, axis_size=length)(xs)
    return decay, gain


def _filled(tree: Any, value: float) -> Any:
    return jax.tree.map(lambda a: jnp.full_like(a, value), tree)


# Is a step affine and diagonal? What its traced program does with the carry shows it.

_EXPECTED = "Scan(), or a cell whose carry is only scaled, unit by unit, and added to"
_ADDING = {"add", "sub", "neg", "copy", "add_any"}
_CALLS = {"jit", "pjit"}  # the name changes with the version of JAX


def _obstacle(cell: Step, carry: Carry, x: Any) -> str | None:
    """Say what in a step is not affine or not diagonal in the carry; None if nothing is."""
    program = jax.make_jaxpr(lambda carry: cell(carry, x)[0])(carry).jaxpr
    own: list[set[int | str]] = [{leaf} for leaf in range(len(program.invars))]
    for leaf, enters in zip(own, _follow(program, own), strict=True):
        for foreign in sorted(enters - leaf, key=str):
            return foreign if isinstance(foreign, str) else "mixes the leaves of its carry"
    return None


def _follow(program: Any, arguments: list[set[int | str]]) -> list[set[int | str]]:
    """Return what enters each result: leaves of the carry by number, obstacles in words.

    Args:
      program: a traced program.
      arguments: what enters each of its arguments.
    """
    enters = dict(zip(program.invars, arguments, strict=True))

    def of(var: Any) -> set[int | str]:
        return set() if hasattr(var, "val") else enters.get(var, set())  # literals have a value

    for eqn in program.eqns:
        sources = [of(var) for var in eqn.invars]
        if not any(sources):
            continue
        if eqn.primitive.name in _CALLS:
            results = _follow(eqn.params["jaxpr"].jaxpr, sources)
        else:
            together = set().union(*sources)
            if not _is_diagonal_and_affine(eqn, sources):
                together = together | {f"applies {eqn.primitive.name} to its carry"}
            results = [together] * len(eqn.outvars)
        enters.update(zip(eqn.outvars, results, strict=True))
    return [of(var) for var in program.outvars]


def _is_diagonal_and_affine(eqn: Any, sources: list[set[int | str]]) -> bool:
    name = eqn.primitive.name
    scales = name == "mul" and sum(map(bool, sources)) == 1
    divides = name == "div" and not sources[1]
    chooses = name == "select_n" and not sources[0]
    kinds = {jnp.issubdtype(v.aval.dtype, jnp.floating) for v in (eqn.invars[0], eqn.outvars[0])}
    # Between floats: to integers it would round, and from complex numbers drop a part.
    converts = name == "convert_element_type" and kinds == {True}
    shapes = {var.aval.shape for var, source in zip(eqn.invars, sources, strict=True) if source}
    stays = shapes == {eqn.outvars[0].aval.shape}
    return stays and (name in _ADDING or scales or divides or chooses or converts)
