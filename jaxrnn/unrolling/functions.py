"""Compilation of plain functions as steps, once for all calls with the same program.

For a module, JAX compiles once per set of array shapes, and the module's arrays are arguments. A plain
function may close over anything, and may be a new object at every call. It is therefore traced at every call,
which takes milliseconds. The compiled code is cached by the traced program, and the arrays that the function
closes over are arguments. Two programs are the same if they consist of the same operations in the same order.

Weakness: functions inside a program count as the same only if they are the same object. These are host
callbacks, and derivative rules (``jax.custom_jvp``) where a derivative is requested. A step that creates them
at every call is compiled at every call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from jaxrnn import checks
from jaxrnn.steps import shapes_of_one
from jaxrnn.typing import Carry, Step

_KEPT = 64
"""Number of programs whose compiled loops are cached."""

_WITH_RULES = ("custom_jvp_call", "custom_vjp_call")
"""Operations that have derivative rules among their parameters."""


class _NoKeyError(Exception):
    """Raised for a program that cannot be compared with others."""


class Program:
    """The traced program of a step, hashable; two programs are equal if they compute the same.

    Args:
      closed: the program as a function of the carry and the input.
      form: the tree structure of its results.
      key: a hashable value that is equal for equal programs only.
    """

    def __init__(self, closed: ClosedJaxpr, form: Any, key: Hashable):
        self._closed, self._form, self._key = closed, form, key
        self._hash = hash(key)

    def __hash__(self) -> int:
        """Return the hash of the key."""
        return self._hash

    def __eq__(self, other: object) -> bool:
        """Tell whether both programs compute the same."""
        return isinstance(other, Program) and self._key == other._key

    def step(self, held: list[Any]) -> Step:
        """Return the step that closes over the arrays `held`."""

        def step(carry: Carry, x: Any) -> Any:
            run = jaxpr_as_fun(ClosedJaxpr(self._closed.jaxpr, held))
            return jax.tree.unflatten(self._form, run(*jax.tree.leaves((carry, x))))

        return step


def program_of(step: Step, carry: Carry, xs: Any) -> tuple[Program, list[Any]] | None:
    """Return the program of a step and the arrays that it closes over, or None if it has no key.

    Args:
      step: a plain function.
      carry: a carry of one step.
      xs: inputs of all steps [T, *B, F].
    """
    # The lambda is new at every call: JAX caches traces by function, and the step may now hold other arrays.
    trace = jax.make_jaxpr(lambda carry, x: step(carry, x), return_shape=True)
    closed, result = trace(carry, shapes_of_one(xs))
    # Any tracer may be differentiated by an outer transformation, which its class does not show.
    leaves = jax.tree.leaves((carry, xs, closed.consts))
    differentiated = not all(map(checks.concrete, leaves))
    structure = jax.tree.structure((carry, xs)), jax.tree.structure(result)
    try:
        key = structure, _key_of(closed.jaxpr, differentiated)
        return Program(closed, structure[1], key), list(closed.consts)
    except _NoKeyError:
        return None


@functools.lru_cache(maxsize=_KEPT)
def compiled_for(program: Program, run: Callable[..., Any], settings: tuple[str, ...]) -> Any:
    """Return ``run(step, *arrays, **settings)`` compiled for a program, as a function of held and arrays."""

    def of_arrays(held: list[Any], *arrays: Any, **chosen: Any) -> Any:
        return run(program.step(held), *arrays, **chosen)

    return jax.jit(of_arrays, static_argnames=settings)


def _key_of(jaxpr: Jaxpr, differentiated: bool) -> Hashable:
    """Return the key of a program: its operations, with numbered variables."""
    numbers: dict[Any, int] = {}

    def number(var: Any) -> Hashable:
        if isinstance(var, Literal):
            return str(var.aval), np.asarray(var.val).tobytes()
        return numbers.setdefault(var, len(numbers))

    def form(variables: Any) -> Hashable:
        return tuple((number(var), str(var.aval)) for var in variables)

    inputs = form([*jaxpr.constvars, *jaxpr.invars])
    equations = []
    for eqn in jaxpr.eqns:
        rules = eqn.primitive.name in _WITH_RULES and not differentiated
        params = tuple(
            (name, _param_key(value, differentiated, rules))
            for name, value in sorted(eqn.params.items())
        )
        read = tuple(map(number, eqn.invars))
        equations.append((eqn.primitive, params, read, form(eqn.outvars)))
    return inputs, tuple(equations), tuple(map(number, jaxpr.outvars))


def _param_key(value: Any, differentiated: bool, rules: bool) -> Hashable:
    """Return the key of an operation's parameter; where `rules` is set, derivative rules have no key."""
    if isinstance(value, ClosedJaxpr):
        if value.consts:
            raise _NoKeyError
        return _key_of(value.jaxpr, differentiated)
    if isinstance(value, Jaxpr):
        return _key_of(value, differentiated)
    if isinstance(value, list | tuple):
        return tuple(_param_key(each, differentiated, rules) for each in value)
    if rules and not isinstance(value, int | str):
        return None
    try:
        hash(value)
    except TypeError:
        raise _NoKeyError from None
    return type(value), value
