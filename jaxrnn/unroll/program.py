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
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from jaxrnn import checks
from jaxrnn.typing import Carry, Step
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


Place = int
"""A variable of the program, by number."""

Argument = Place | Literal

Values = dict[Place, Any]


def places(arguments: Iterable[Argument]) -> list[Place]:
    """Return the arguments that are variables."""
    return [a for a in arguments if not isinstance(a, Literal)]


def value(argument: Argument, values: Mapping[Place, Any]) -> Any:
    """Return the value of an argument."""
    return argument.val if isinstance(argument, Literal) else values[argument]


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """One operation of the program.

    Attributes:
      name: of the primitive.
      settings: of the primitive.
      arguments: variables and literals.
      ranks: number of axes of each argument.
      results: where its results go.
      call: it, as a function of its open arguments.
      open: which arguments it does not hold itself.
    """

    name: str
    settings: dict[str, Any]
    arguments: tuple[Argument, ...]
    ranks: tuple[int, ...]
    results: tuple[Place, ...]
    call: Callable[..., Sequence[Any]]
    open: tuple[bool, ...]

    def run(self, values: Values) -> None:
        """Compute the results."""
        found = self.call(*(value(argument, values) for argument in self._given))
        values.update(zip(self.results, found, strict=True))

    def run_all(self, values: Values, many: Container[Place]) -> None:
        """Compute the results of n steps; the arguments in `many` have these as their first axis."""
        axes = [None if isinstance(a, Literal) or a not in many else 0 for a in self._given]
        if 0 not in axes:
            self.run(values)
            return
        given = [value(argument, values) for argument in self._given]
        if axes == [0, None] and self.multiplies_rows:
            values[self.results[0]] = self._rows_multiplied(*given)
        else:
            found = jax.vmap(self.call, in_axes=axes)(*given)
            values.update(zip(self.results, found, strict=True))

    @property
    def _given(self) -> list[Argument]:
        return [a for a, is_open in zip(self.arguments, self.open, strict=True) if is_open]

    @property
    def multiplies_rows(self) -> bool:
        """Whether it is the product of rows with a matrix from the right."""
        if self.name != "dot_general" or self.ranks[1:] != (2,):
            return False
        (met, rows), (batch, _) = self.settings["dimension_numbers"]
        return (tuple(met), tuple(rows), tuple(batch)) == ((self.ranks[0] - 1,), (0,), ())

    def times_turned(self, rows: Any, turned: Any) -> Any:
        """Return the product of rows with the transpose of a matrix."""
        return self._multiplied(rows, turned, 1)

    def _rows_multiplied(self, rows: Any, matrix: Any) -> Any:
        """Return a product of rows as one of two matrices: XLA's CPU backend is slow at others."""
        *many, each = rows.shape
        product = self._multiplied(rows.reshape(math.prod(many), each), matrix, 0)
        return product.reshape(*many, product.shape[-1])

    def _multiplied(self, rows: Any, matrix: Any, axis: int) -> Any:
        how = {name: self.settings[name] for name in ("precision", "preferred_element_type")}
        return jax.lax.dot_general(rows, matrix, (((rows.ndim - 1,), (axis,)), ((), ())), **how)


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """A product of something in the loop with a weight, and how its entries are moved into place after it.

    Attributes:
      operand: what is multiplied.
      weight: by what.
      operations: the product first.
    """

    operand: Place
    weight: Place
    operations: tuple[Operation, ...]

    def __call__(self, operand: Any, weight: Any) -> Any:
        """Return the product."""
        values = {self.operand: operand, self.weight: weight}
        for operation in self.operations:
            operation.run(values)
        return values[self.operations[-1].results[0]]

    def of_all(self, operands: Any, weight: Any) -> Any:
        """Return the products of n operands [n, …] with one weight."""
        values, many = {self.operand: operands, self.weight: weight}, {self.operand}
        for operation in self.operations:
            operation.run_all(values, many)
            many.update(operation.results)
        return values[self.operations[-1].results[0]]

    def turn(self, weight: Any) -> Any:
        """Return a weight as `by_turned` wants it."""
        return weight.T if self._is_from_the_right else weight

    @property
    def _is_from_the_right(self) -> bool:
        """Whether rows of the operand are multiplied by the weight, not rows of the weight by the operand."""
        first = self.operations[0]
        return first.multiplies_rows and first.arguments == (self.operand, self.weight)

    def by_turned(self, operand: Any, turned: Any) -> Any:
        """Return the product with a weight that `turn` has turned."""
        first, *others = self.operations
        if not self._is_from_the_right:
            return self(operand, turned)
        values = {first.results[0]: first.times_turned(operand, turned)}
        for operation in others:
            operation.run(values)
        return values[self.operations[-1].results[0]]


@dataclasses.dataclass(frozen=True, eq=False)
class Signal:
    """A sum in the loop.

    Attributes:
      place: where it stands.
      products: what of it depends on the carry.
      drives: what of it comes from the input.
      offsets: what of it is weights or numbers.
    """

    place: Place
    products: tuple[Product, ...]
    drives: tuple[Place, ...] = ()
    offsets: tuple[Argument, ...] = ()

    @property
    def arguments(self) -> tuple[Argument, ...]:
        """All that it reads."""
        read = [place for p in self.products for place in (p.operand, p.weight)]
        return (*read, *self.drives, *self.offsets)

    @property
    def results(self) -> tuple[Place, ...]:
        """Its own place."""
        return (self.place,)


class Program:
    """A step ``(carry, x) -> results`` as operations and signals.

    Attributes:
      has_effects: whether it does anything beside computing, such as to print.
      closed_over: arrays that the step closes over.
      weights: their places.
      carry: places of the carry's leaves.
      x: places of the input's leaves.
      results: of the step, leaf by leaf.
      forms: shape and dtype by place.
      kinds: by place.
      signals: in the order in which they are computed.
    """

    def __init__(self, step: Step, carry: Carry, x: Any):
        closed = jax.make_jaxpr(step)(carry, x)
        self.forms: list[Any] = []
        self.kinds: list[Kind] = []
        self._again: set[Place] = set()  # computed again wherever they are used
        self._operations: list[Operation | Signal] = []
        inside: dict[Any, Argument] = {}
        self.has_effects = bool(closed.effects)
        known = list(zip(closed.jaxpr.constvars, closed.consts, strict=True))
        self.closed_over = [c for _, c in known if not _is_settled(c)]
        inside |= {v: Literal(c, v.aval) for v, c in known if _is_settled(c)}
        variables = [v for v, c in known if not _is_settled(c)]
        self.weights = self._begin(variables, inside, Kind.WEIGHT)
        leaves = len(jax.tree.leaves(carry))
        self.carry = self._begin(closed.jaxpr.invars[:leaves], inside, Kind.LOOP)
        self.x = self._begin(closed.jaxpr.invars[leaves:], inside, Kind.INPUT)
        self.results = self._read(closed.jaxpr, inside)
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

    def _begin(self, variables: Any, inside: dict[Any, Argument], kind: Kind) -> list[Place]:
        begun = [self._new(variable, kind) for variable in variables]
        inside.update(zip(variables, begun, strict=True))
        return begun

    def _new(self, variable: Any, kind: Kind) -> Place:
        self.forms.append(variable.aval)
        self.kinds.append(kind)
        return len(self.forms) - 1

    def _read(self, program: Any, inside: dict[Any, Argument]) -> list[Argument]:
        """Append a program's operations; `inside` has its arguments, and gets its other variables."""

        def read(variable: Any) -> Argument:
            return variable if isinstance(variable, Literal) else inside[variable]

        for eqn in program.eqns:
            arguments = tuple(map(read, eqn.invars))
            if eqn.primitive.name in _CALLS:
                called = eqn.params["jaxpr" if "jaxpr" in eqn.params else "call_jaxpr"]
                within = dict(zip(called.jaxpr.invars, arguments, strict=True))
                for variable, constant in zip(called.jaxpr.constvars, called.consts, strict=True):
                    within[variable] = Literal(constant, variable.aval)
                inside.update(zip(eqn.outvars, self._read(called.jaxpr, within), strict=True))
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
        weight, other = sorted(arguments, key=self.kind)
        return self.is_shared(weight) and self.kind(other) > Kind.WEIGHT

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
            weight, operand = sorted(places(arguments), key=self.kind)
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


def _varies(variable: Any) -> bool:
    return not isinstance(variable, Literal)


def _is_settled(array: Any) -> bool:
    """Tell whether nothing could ask for the derivative by an array: indices, say, that are known."""
    return not is_float(array) and checks.concrete(array)
