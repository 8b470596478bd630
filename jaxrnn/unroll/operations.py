"""What a traced program is made of: operations, products with weights, and signals, their sums."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import Literal

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
