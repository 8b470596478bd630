"""A step's traced program, taken apart by what each of its variables depends on.

    constant   nothing: numbers that stand in the program
    weight     weights alone: computed once for all steps
    input      the step's input, and weights: computed for many steps at once
    loop       the carry: computed step by step

An operation that makes more numbers out of fewer, such as to repeat a bias for every row of a batch, is done
again wherever its result is used: to keep it would cost more. A product with weights is worth its room.

In the loop, a **signal** is a sum of products of something with weights, of what came from the input, and of
biases: what a gate is a function of. All that a gradient by the weights needs is the cotangent of each signal
and the operands of its products (`jaxrnn.unroll.traced`).

Programs within the program (``jax.jit``) are read as part of it; loops, branches and functions with
derivatives of their own are operations like any other, and weights that enter these are no products.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from jaxrnn import checks
from jaxrnn.typing import Carry, Step
from jaxrnn.unroll.operations import Argument, Operation, Place, Product, Signal, places
from jaxrnn.unroll.parts import is_float

_CALLS = {"jit", "pjit", "closed_call"}  # the name changes with the version of JAX
_ADDING = {"add", "add_any"}
_MOVING = {"reshape", "transpose", "squeeze", "expand_dims"}


class Kind(enum.IntEnum):
    """What a variable depends on; of an operation's arguments the last in this order decides."""

    CONSTANT = 0
    WEIGHT = 1
    INPUT = 2
    LOOP = 3


def trace(step: Step, carry: Carry, x: Any) -> tuple[Program, list[Any], Any]:
    """Return a step's program, the arrays that it closes over, and the form of its results."""
    closed, form = jax.make_jaxpr(step, return_shape=True)(carry, x)
    closed_over = list({id(c): c for c in _constants(closed) if not _is_settled(c)}.values())
    return Program(closed, closed_over, len(jax.tree.leaves(carry))), closed_over, form


class Program:
    """A step ``(carry, x) -> results`` as operations and signals; `trace` makes one.

    Attributes:
      has_effects: whether it does anything beside computing, such as to print.
      weights: places of the arrays that the step closes over.
      carry: places of the carry's leaves.
      x: places of the input's leaves.
      results: of the step, leaf by leaf.
      forms: shape and dtype by place.
      kinds: by place.
      signals: in the order in which they are computed.
    """

    def __init__(self, closed: ClosedJaxpr, closed_over: list[Any], leaves: int):
        self.forms: list[Any] = []
        self.kinds: list[Kind] = []
        self._again: set[Place] = set()  # computed again wherever they are used
        self._operations: list[Operation | Signal] = []
        self.has_effects = bool(closed.effects)
        self.weights = [self._new(jax.typeof(array), Kind.WEIGHT) for array in closed_over]
        shared = dict(zip(map(id, closed_over), self.weights, strict=True))
        variables, inside = closed.jaxpr.invars, {}
        self.carry = self._begin(variables[:leaves], inside, Kind.LOOP)
        self.x = self._begin(variables[leaves:], inside, Kind.INPUT)
        self.results = self._read(closed, inside, shared)
        self.signals = self._join_signals()

    def kind(self, argument: Argument) -> Kind:
        """Return the kind of an argument."""
        return Kind.CONSTANT if isinstance(argument, Literal) else self.kinds[argument]

    def is_shared(self, argument: Argument) -> bool:
        """Tell whether an argument is a weight, of floats, that is computed once for all steps."""
        return self.kind(argument) is Kind.WEIGHT and argument not in self._again

    @property
    def has_complex_numbers(self) -> bool:
        """Whether any variable is complex."""
        kinds = (getattr(form, "dtype", np.dtype(bool)) for form in self.forms)
        return any(jnp.issubdtype(kind, jnp.complexfloating) for kind in kinds)

    @property
    def multiplies(self) -> bool:
        """Whether weights are multiplied by anything."""
        inputs = (op for op in self._operations if isinstance(op, Operation))
        return bool(self.signals) or any(self._multiplies(op.name, op.arguments) for op in inputs)

    def leading_to(
        self, wanted: Iterable[Argument], known: Iterable[Place]
    ) -> list[Operation | Signal]:
        """Return what computes the wanted arguments from the known ones, in order."""
        missing, known, found = set(places(wanted)), set(known), []
        for operation in reversed(self._operations):
            if any(place in missing and place not in known for place in operation.results):
                found.append(operation)
                missing |= set(places(operation.arguments))
        return found[::-1]

    def reached_from(self, begun: Iterable[Place]) -> set[Place]:
        """Return all variables that depend on some, in the same step or a later one, these included."""
        reached, before = set(begun), None
        while reached != before:
            before = set(reached)
            for operation in self._operations:
                if not reached.isdisjoint(places(operation.arguments)):
                    reached.update(operation.results)
            moved = zip(self.carry, self.results, strict=False)
            reached.update(leaf for leaf, result in moved if places([result]) and result in reached)
        return reached

    def _begin(self, variables: Any, inside: dict[Any, Argument], kind: Kind) -> list[Place]:
        begun = [self._new(variable.aval, kind) for variable in variables]
        inside.update(zip(variables, begun, strict=True))
        return begun

    def _new(self, form: Any, kind: Kind) -> Place:
        self.forms.append(form)
        self.kinds.append(kind)
        return len(self.forms) - 1

    def _read(
        self, closed: ClosedJaxpr, inside: dict[Any, Argument], shared: Mapping[int, Place]
    ) -> list[Argument]:
        """Append the operations of a program, and return its results.

        Args:
          closed: the program.
          inside: what each of its variables is: begins with its arguments, and gets the others.
          shared: the places of arrays that are closed over, by identity.
        """
        program = closed.jaxpr
        for variable, array in zip(program.constvars, closed.consts, strict=True):
            inside[variable] = shared.get(id(array), Literal(array, variable.aval))

        def read(variable: Any) -> Argument:
            return variable if isinstance(variable, Literal) else inside[variable]

        for eqn in program.eqns:
            arguments = tuple(map(read, eqn.invars))
            if eqn.primitive.name in _CALLS:
                called = _called(eqn)
                within = dict(zip(called.jaxpr.invars, arguments, strict=True))
                results = self._read(called, within, shared)
                inside.update(zip(eqn.outvars, results, strict=True))
            else:
                self._append(eqn, program, arguments, inside)
        return list(map(read, program.outvars))

    def _append(
        self, eqn: Any, program: Any, arguments: tuple[Argument, ...], inside: dict[Any, Argument]
    ) -> None:
        kind = max(map(self.kind, arguments), default=Kind.CONSTANT)
        is_more = self._numbers(eqn.outvars) > self._numbers(v for v in eqn.invars if _varies(v))
        if kind is Kind.INPUT and is_more and not self._multiplies(eqn.primitive.name, arguments):
            kind = Kind.LOOP
        results = tuple(self._begin(eqn.outvars, inside, kind))
        floats = all(is_float(self.forms[place]) for place in results)
        again = is_more or not floats or self._again.intersection(places(arguments))
        if kind is Kind.WEIGHT and again:
            self._again.update(results)
        own = [variable for variable in eqn.invars if _varies(variable)]
        alone = program.replace(constvars=[], invars=own, outvars=eqn.outvars, eqns=[eqn])
        operation = Operation(
            name=eqn.primitive.name,
            settings=eqn.params,
            arguments=arguments,
            ranks=tuple(len(variable.aval.shape) for variable in eqn.invars),
            results=results,
            call=jaxpr_as_fun(ClosedJaxpr(alone, ())),
            open=tuple(map(_varies, eqn.invars)),
        )
        self._operations.append(operation)

    @staticmethod
    def _numbers(variables: Iterable[Any]) -> int:
        return sum(variable.aval.size for variable in variables)

    def _multiplies(self, name: str, arguments: tuple[Argument, ...]) -> bool:
        """Tell whether an operation multiplies something that is no weight by one that is kept."""
        if name != "dot_general":
            return False
        weight, other = self._weight_first(arguments)
        return self.is_shared(weight) and self.kind(other) > Kind.WEIGHT

    def _weight_first(self, factors: tuple[Argument, ...]) -> list[Argument]:
        return sorted(factors, key=self.kind)

    def _join_signals(self) -> list[Signal]:
        """Put signals in place of the operations that they are made of, and return them."""
        readers = collections.Counter(p for op in self._operations for p in places(op.arguments))
        readers.update(places(self.results))
        signals: dict[Place, Signal] = {}
        inner: dict[Place, list[Operation]] = {}
        for operation in self._operations:
            assert isinstance(operation, Operation)
            read = places(operation.arguments)
            parts = {a: signals[a] for a in read if a in signals and readers[a] == 1}
            signal = self._signal(operation, parts)
            if signal is None:
                continue
            used = [] if operation.name == "dot_general" else list(parts)
            joined = [op for a in used for op in (signals.pop(a), inner.pop(a))[1]]
            signals[signal.place], inner[signal.place] = signal, [*joined, operation]
        last: dict[Operation | Signal, Signal] = {
            operations[-1]: signals[place] for place, operations in inner.items()
        }
        within = {operation for operations in inner.values() for operation in operations}
        self._operations = [
            last.get(op, op) for op in self._operations if op in last or op not in within
        ]
        return list(signals.values())

    def _signal(self, operation: Operation, parts: Mapping[Place, Signal]) -> Signal | None:
        """Return the signal that an operation makes, of signals that nothing else reads among them."""
        if len(operation.results) != 1:
            return None
        (place,), arguments = operation.results, operation.arguments
        if self.kind(place) is Kind.LOOP and self._multiplies(operation.name, arguments):
            weight, operand = places(self._weight_first(arguments))
            return Signal(place, (Product(operand, weight, (operation,)),))
        if operation.name in _MOVING and parts:
            (signal,) = parts.values()
            if len(signal.products) == 1 and not signal.drives and not signal.offsets:
                (product,) = signal.products
                moved = (*product.operations, operation)
                return Signal(place, (dataclasses.replace(product, operations=moved),))
        rest = [a for a in arguments if isinstance(a, Literal) or a not in parts]
        whole = self.forms[place].shape
        alike = all(self.forms[part].shape == whole for part in parts)
        if operation.name not in _ADDING or not parts or not alike:
            return None
        if not all(self._fits(a, whole) for a in rest):
            return None
        drives = [a for a in places(rest) if self.kind(a) is Kind.INPUT]
        return Signal(
            place,
            products=sum((part.products for part in parts.values()), ()),
            drives=sum((part.drives for part in parts.values()), tuple(drives)),
            offsets=sum(
                (part.offsets for part in parts.values()),
                tuple(a for a in rest if isinstance(a, Literal) or a not in drives),
            ),
        )

    def _fits(self, argument: Argument, whole: tuple[int, ...]) -> bool:
        """Tell whether an argument can be part of a signal of a shape without being a signal itself."""
        if isinstance(argument, Literal):
            return True
        shape, kind = self.forms[argument].shape, self.kind(argument)
        if kind is Kind.INPUT:
            return shape == whole
        return kind <= Kind.WEIGHT and np.broadcast_shapes(shape, whole) == whole


def _constants(closed: ClosedJaxpr) -> Iterator[Any]:
    """Yield the arrays that stand in a program and in those within it."""
    yield from closed.consts
    for eqn in closed.jaxpr.eqns:
        if eqn.primitive.name in _CALLS:
            yield from _constants(_called(eqn))


def _called(eqn: Any) -> ClosedJaxpr:
    """Return the program that an operation calls."""
    return eqn.params["jaxpr" if "jaxpr" in eqn.params else "call_jaxpr"]


def _varies(variable: Any) -> bool:
    return not isinstance(variable, Literal)


def _is_settled(array: Any) -> bool:
    """Tell whether nothing could ask for the derivative by an array: indices, say, that are known."""
    return not is_float(array) and checks.concrete(array)
