"""Traced functions as flat lists of equations, on which dependencies can be analysed.

``jax.make_jaxpr`` nests: a function under ``jax.jit`` stays one equation with its own jaxpr inside. `flat`
inlines these calls and numbers the variables, so that dependency analyses work on one list. Loops, branches
and functions with custom derivatives (``jax.custom_jvp``, ``jax.custom_vjp``) stay single equations. A split
that undoes a concatenation is removed together with it; otherwise every piece would seem to depend on
everything that was concatenated.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from jaxrnn import checks

Variable = int
"""The number of a variable in a flat jaxpr."""

Atom = Variable | Literal
"""What an equation reads: a variable, or a literal of the program."""

Value = Any
"""A JAX or NumPy array, or a tracer."""

Values = dict[Variable, Value]
"""Values by variable."""

_CALLS = {
    "jit",
    "pjit",
    "closed_call",
}  # the name of jax.jit's primitive depends on the version of JAX


def variables(atoms: Iterable[Atom]) -> list[Variable]:
    """Return the atoms that are variables."""
    return [a for a in atoms if not isinstance(a, Literal)]


def value_of(atom: Atom, values: Mapping[Variable, Any]) -> Any:
    """Return the value of an atom."""
    return atom.val if isinstance(atom, Literal) else values[atom]


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """One application of a primitive.

    Attributes:
      name: name of the primitive.
      params: parameters of the primitive.
      inputs: the atoms that it reads.
      outputs: the variables that it defines.
      input_avals: shape and dtype of each input.
      output_avals: shape and dtype of each output.
      apply: the equation as a function of those inputs that are variables.
    """

    name: str
    params: dict[str, Any]
    inputs: tuple[Atom, ...]
    outputs: tuple[Variable, ...]
    input_avals: tuple[Any, ...]
    output_avals: tuple[Any, ...]
    apply: Callable[..., Sequence[Any]]

    @functools.cached_property
    def avals_read(self) -> dict[Variable, Any]:
        """Shape and dtype of each variable that the equation reads."""
        pairs = zip(self.inputs, self.input_avals, strict=True)
        return {atom: aval for atom, aval in pairs if not isinstance(atom, Literal)}


@dataclasses.dataclass(frozen=True)
class Flat:
    """A traced function whose calls are inlined.

    Attributes:
      constants: the arrays that the function closes over, except known arrays that are not floats.
      constant_variables: the variables of these arrays.
      inputs: variables of the arguments, leaf by leaf.
      outputs: atoms that the function returns, leaf by leaf.
      equations: equations in the order of computation.
      avals: shape and dtype of every variable.
      has_effects: whether the function has side effects, such as printing.
    """

    constants: list[Any]
    constant_variables: list[Variable]
    inputs: list[Variable]
    outputs: list[Atom]
    equations: list[Equation]
    avals: list[Any]
    has_effects: bool

    def aval(self, atom: Atom) -> Any:
        """Return the shape and dtype of an atom."""
        return atom.aval if isinstance(atom, Literal) else self.avals[atom]


def flat(function: Callable[..., Any], *arguments: Any) -> tuple[Flat, Any]:
    """Trace a function with the given arguments.

    Returns:
      The flat jaxpr, and the tree of the shapes of the function's results.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    return flattened(closed), shapes


def flattened(closed: ClosedJaxpr) -> Flat:
    """Return a jaxpr with its calls inlined."""
    found = {id(array): array for array in _constants(closed) if not _is_settled(array)}
    reader = _Reader(found)
    inputs = [reader.new(variable.aval) for variable in closed.jaxpr.invars]
    outputs = reader.read(closed, inputs)
    return Flat(
        constants=list(found.values()),
        constant_variables=list(reader.constants.values()),
        inputs=inputs,
        outputs=outputs,
        equations=reader.equations,
        avals=reader.avals,
        has_effects=bool(closed.effects),
    )


class _Reader:
    """Collects the equations of a jaxpr and of the jaxprs that it calls."""

    def __init__(self, constants: Mapping[int, Any]):
        self.avals: list[Any] = []
        self.equations: list[Equation] = []
        self.constants = {name: self.new(jax.typeof(array)) for name, array in constants.items()}

    def new(self, aval: Any) -> Variable:
        """Return a new variable."""
        self.avals.append(aval)
        return len(self.avals) - 1

    def read(self, closed: ClosedJaxpr, inputs: Sequence[Atom]) -> list[Atom]:
        """Append the equations of a jaxpr whose inputs are known, and return its outputs."""
        jaxpr = closed.jaxpr
        inside: dict[Any, Atom] = dict(zip(jaxpr.invars, inputs, strict=True))
        for variable, array in zip(jaxpr.constvars, closed.consts, strict=True):
            inside[variable] = self.constants.get(id(array), Literal(array, variable.aval))

        def atom(variable: Any) -> Atom:
            return variable if isinstance(variable, Literal) else inside[variable]

        for eqn in jaxpr.eqns:
            read = tuple(map(atom, eqn.invars))
            called = _called(eqn)
            outputs: Sequence[Atom] | None
            if called is not None:
                outputs = self.read(called, read)
            elif (outputs := self._taken_apart(eqn, read)) is None:
                outputs = [self.new(variable.aval) for variable in eqn.outvars]
                apply = _as_function(jaxpr, eqn, read)
                name, defined = eqn.primitive.name, tuple(outputs)
                given = tuple(variable.aval for variable in eqn.invars)
                made = tuple(variable.aval for variable in eqn.outvars)
                self.equations.append(Equation(name, eqn.params, read, defined, given, made, apply))
            inside.update(zip(eqn.outvars, outputs, strict=True))
        return list(map(atom, jaxpr.outvars))

    def _taken_apart(self, eqn: Any, read: Sequence[Atom]) -> list[Atom] | None:
        """Return the pieces of a split of a concatenation, taken from its parts; None for other equations.

        Every boundary between parts of the concatenation has to be a boundary between pieces of the split.
        """
        if eqn.primitive.name != "split":
            return None
        made = [e for e in self.equations if e.outputs == (read[0],)]
        if not made or made[0].name != "concatenate":
            return None
        (whole,), axis = made, eqn.params["axis"]
        if whole.params["dimension"] != axis:
            return None
        pieces, sizes_of = list(map(int, eqn.params["sizes"])), []
        for width in (self._aval(part).shape[axis] for part in whole.inputs):
            ends = list(itertools.accumulate(pieces))
            if width not in ends:
                return None
            count = ends.index(width) + 1
            sizes_of.append(pieces[:count])
            pieces = pieces[count:]
            if count > 1 and isinstance(whole.inputs[len(sizes_of) - 1], Literal):
                return None
        if pieces:  # pieces of size 0 behind the last part
            return None
        pairs = zip(whole.inputs, sizes_of, strict=True)
        cut = (
            [part] if len(sizes) == 1 else self._split(part, sizes, axis) for part, sizes in pairs
        )
        return list(itertools.chain.from_iterable(cut))

    def _split(self, part: Atom, sizes: list[int], axis: int) -> list[Variable]:
        """Append a split to the equations, and return its pieces."""
        aval = self._aval(part)
        shapes = [(*aval.shape[:axis], size, *aval.shape[axis + 1 :]) for size in sizes]
        pieces = tuple(aval.update(shape=shape) for shape in shapes)
        outputs = list(map(self.new, pieces))
        split = functools.partial(jax.lax.split, sizes=sizes, axis=axis)
        params = {"sizes": tuple(sizes), "axis": axis}
        self.equations.append(
            Equation("split", params, (part,), tuple(outputs), (aval,), pieces, split)
        )
        return outputs

    def _aval(self, atom: Atom) -> Any:
        return atom.aval if isinstance(atom, Literal) else self.avals[atom]


def _as_function(jaxpr: Any, eqn: Any, read: Sequence[Atom]) -> Callable[..., Sequence[Any]]:
    """Return one equation as a function of the variables that it reads; literals are filled in.

    How JAX binds a primitive to its parameters is internal to JAX, so a jaxpr with only this equation runs
    it.
    """
    alone = jaxpr.replace(
        constvars=[],
        invars=[v for v in eqn.invars if not isinstance(v, Literal)],
        outvars=eqn.outvars,
        eqns=[eqn],
    )
    function = jaxpr_as_fun(ClosedJaxpr(alone, ()))
    # A variable of a called jaxpr may stand for a literal of the calling jaxpr.
    own = [a for v, a in zip(eqn.invars, read, strict=True) if not isinstance(v, Literal)]
    if not any(isinstance(a, Literal) for a in own):
        return function

    def filled(*given: Any) -> Sequence[Any]:
        rest = iter(given)
        return function(*(a.val if isinstance(a, Literal) else next(rest) for a in own))

    return filled


def _constants(closed: ClosedJaxpr) -> Iterator[Any]:
    """Yield the arrays that a jaxpr and the jaxprs it calls close over."""
    yield from closed.consts
    for eqn in closed.jaxpr.eqns:
        called = _called(eqn)
        if called is not None:
            yield from _constants(called)


def _called(eqn: Any) -> ClosedJaxpr | None:
    """Return the jaxpr that an equation calls, or None if it is not a call."""
    if eqn.primitive.name not in _CALLS:
        return None
    return eqn.params["jaxpr" if "jaxpr" in eqn.params else "call_jaxpr"]


def _is_settled(array: Any) -> bool:
    """Tell whether an array cannot be differentiated with respect to, such as known indices."""
    return not is_inexact(array) and checks.concrete(array)


def is_inexact(x: Any) -> bool:
    """Tell whether a value has a real or complex float dtype, so that it can be differentiated."""
    return jnp.issubdtype(getattr(x, "dtype", bool), jnp.inexact)


def leading_to(
    equations: Sequence[Equation], wanted: Iterable[Atom], known: Iterable[Variable]
) -> list[Equation]:
    """Return the equations that are needed to compute `wanted` from `known`, in order."""
    known, missing, found = set(known), set(variables(wanted)), []
    for equation in reversed(equations):
        if any(v in missing and v not in known for v in equation.outputs):
            found.append(equation)
            missing.update(variables(equation.inputs))
    return found[::-1]


def reached_from(
    equations: Iterable[Equation], begun: Iterable[Variable], barriers: Container[str] = ()
) -> set[Variable]:
    """Return `begun` and all variables that depend on it, except through primitives in `barriers`."""
    reached = set(begun)
    for equation in equations:
        if equation.name not in barriers and not reached.isdisjoint(variables(equation.inputs)):
            reached.update(equation.outputs)
    return reached
