"""A traced function as a flat list of equations, from which one reads what depends on what.

``jax.make_jaxpr`` nests: a function under ``jax.jit`` stays one equation with a jaxpr of its own inside.
`flat` inlines these calls and numbers the variables, so that whoever asks what depends on what sees one list.
Loops, branches and functions with derivatives of their own (``jax.custom_jvp``, ``jax.custom_vjp``) stay
single equations. A split that takes a concatenation apart again is read as if neither were there: otherwise
every piece would seem to depend on all that was concatenated.
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
"""A variable of a flat jaxpr, by number."""

Atom = Variable | Literal
"""What an equation reads: a variable, or a number that stands in the program."""

Value = Any
"""An array of JAX's or of NumPy's, or what stands for one while JAX traces."""

Values = dict[Variable, Value]
"""The arrays that variables stand for."""

_CALLS = {
    "jit",
    "pjit",
    "closed_call",
}  # the name of jax.jit's primitive changes with JAX's version


def variables(atoms: Iterable[Atom]) -> list[Variable]:
    """Return the atoms that are variables."""
    return [a for a in atoms if not isinstance(a, Literal)]


def value_of(atom: Atom, values: Mapping[Variable, Any]) -> Any:
    """Return the array that an atom stands for."""
    return atom.val if isinstance(atom, Literal) else values[atom]


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """One primitive, applied.

    Attributes:
      name: of the primitive.
      params: of the primitive.
      inputs: what it reads.
      outputs: the variables that it defines.
      input_avals: shape and dtype of each input.
      output_avals: the same of each output.
      apply: the primitive as a function of the inputs that are variables.
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
        """Shape and dtype of the variables that it reads."""
        pairs = zip(self.inputs, self.input_avals, strict=True)
        return {atom: aval for atom, aval in pairs if not isinstance(atom, Literal)}


@dataclasses.dataclass(frozen=True)
class Flat:
    """A traced function without calls in it.

    Attributes:
      constants: the arrays that the function closes over and that may be differentiated.
      constant_variables: their variables.
      inputs: variables of the arguments, leaf by leaf.
      outputs: what it returns, leaf by leaf.
      equations: in the order of computation.
      avals: shape and dtype of every variable.
      has_effects: whether it does anything beside computing, such as to print.
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
    """Trace a function at its arguments.

    Returns:
      The flat jaxpr, and the tree of shapes that the function returns.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    return flattened(closed), shapes


def flattened(closed: ClosedJaxpr) -> Flat:
    """Return a jaxpr without calls in it."""
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
    """Collects the equations of a jaxpr and of those that it calls."""

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
        """Return what a split gives that cuts a concatenation where its parts meet; None of another."""
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
        if pieces:  # empty ones, behind the last part
            return None
        pairs = zip(whole.inputs, sizes_of, strict=True)
        cut = (
            [part] if len(sizes) == 1 else self._split(part, sizes, axis) for part, sizes in pairs
        )
        return list(itertools.chain.from_iterable(cut))

    def _split(self, part: Atom, sizes: list[int], axis: int) -> list[Variable]:
        """Append a split, and return its pieces."""
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
    """Return one equation as a function of what it reads of variables; literals are filled in.

    How a primitive is bound to its parameters is internal to JAX, so a jaxpr of the one equation runs it.
    """
    alone = jaxpr.replace(
        constvars=[],
        invars=[v for v in eqn.invars if not isinstance(v, Literal)],
        outvars=eqn.outvars,
        eqns=[eqn],
    )
    function = jaxpr_as_fun(ClosedJaxpr(alone, ()))
    # A variable of a called jaxpr may be a number of the jaxpr that calls it.
    own = [a for v, a in zip(eqn.invars, read, strict=True) if not isinstance(v, Literal)]
    if not any(isinstance(a, Literal) for a in own):
        return function

    def filled(*given: Any) -> Sequence[Any]:
        rest = iter(given)
        return function(*(a.val if isinstance(a, Literal) else next(rest) for a in own))

    return filled


def _constants(closed: ClosedJaxpr) -> Iterator[Any]:
    """Yield the arrays that a jaxpr, or one that it calls, closes over."""
    yield from closed.consts
    for eqn in closed.jaxpr.eqns:
        called = _called(eqn)
        if called is not None:
            yield from _constants(called)


def _called(eqn: Any) -> ClosedJaxpr | None:
    """Return the jaxpr that an equation calls; None of an equation that is no call."""
    if eqn.primitive.name not in _CALLS:
        return None
    return eqn.params["jaxpr" if "jaxpr" in eqn.params else "call_jaxpr"]


def _is_settled(array: Any) -> bool:
    """Tell whether nothing can ask for the derivative by an array: known indices, say."""
    return not is_inexact(array) and checks.concrete(array)


def is_inexact(x: Any) -> bool:
    """Tell whether something has a dtype of floats, real or complex, so that it can be differentiated."""
    return jnp.issubdtype(getattr(x, "dtype", bool), jnp.inexact)


def leading_to(
    equations: Sequence[Equation], wanted: Iterable[Atom], known: Iterable[Variable]
) -> list[Equation]:
    """Return the equations that compute what is wanted from what is known, in order."""
    known, missing, found = set(known), set(variables(wanted)), []
    for equation in reversed(equations):
        if any(v in missing and v not in known for v in equation.outputs):
            found.append(equation)
            missing.update(variables(equation.inputs))
    return found[::-1]


def reached_from(
    equations: Iterable[Equation], begun: Iterable[Variable], barriers: Container[str] = ()
) -> set[Variable]:
    """Return the variables that depend on some, these included; not through primitives in `barriers`."""
    reached = set(begun)
    for equation in equations:
        if equation.name not in barriers and not reached.isdisjoint(variables(equation.inputs)):
            reached.update(equation.outputs)
    return reached
