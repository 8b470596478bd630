"""Values and tangents of a program's variables, of one step or of n steps at once.

The derivative of each equation is JAX's own (``jax.jvp`` of the one equation), taken by those of its inputs
that are perturbed. A variable without a tangent has the tangent zero, and nothing is computed for it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.jaxprs import Equation, Values, Variable, is_inexact, variables
from jaxrnn.unroll.dataflow import NO_TANGENT

Function = Callable[..., Sequence[Any]]


@dataclasses.dataclass
class Dual:
    """Values of variables, and the tangents of those that are perturbed.

    Attributes:
      values: by variable.
      tangents: by variable; absent where they are zero.
      many: the variables whose arrays have steps as their first axis [n, …].
    """

    values: Values
    tangents: Values = dataclasses.field(default_factory=dict)
    many: set[Variable] = dataclasses.field(default_factory=set)

    def run(self, equations: Iterable[Equation]) -> None:
        """Compute the values of equations' outputs."""
        for equation in equations:
            given = [self.values[v] for v in variables(equation.inputs)]
            self._define(equation, self.function(equation)(*given))

    def push(self, equations: Iterable[Equation]) -> None:
        """Compute the values and the tangents of equations' outputs."""
        for equation in equations:
            read = variables(equation.inputs)
            perturbed = [v in self.tangents and equation.name not in NO_TANGENT for v in read]
            if not any(perturbed):
                self.run([equation])
                continue
            tangents = [self.tangents[v] for v, its in zip(read, perturbed, strict=True) if its]
            given = [self.values[v] for v in read]
            found, moved = _jvp(self.function(equation), given, perturbed, tangents)
            self._define(equation, found)
            pairs = zip(equation.outputs, moved, strict=True)
            self.tangents.update((v, tangent) for v, tangent in pairs if is_inexact(tangent))

    def function(self, equation: Equation) -> Function:
        """Return an equation as a function of its inputs, for n steps at once where any of these has many."""
        axes = [0 if v in self.many else None for v in variables(equation.inputs)]
        return over_steps(equation, axes)

    def _define(self, equation: Equation, found: Sequence[Any]) -> None:
        self.values.update(zip(equation.outputs, found, strict=True))
        if not self.many.isdisjoint(variables(equation.inputs)):
            self.many.update(equation.outputs)


def linear(equation: Equation, tangents: Values, avals: Sequence[Any], many: set[Variable]) -> Any:
    """Return the tangents of the outputs of an equation that is linear in all that it reads.

    Args:
      equation: a sum, say.
      tangents: of some of its inputs.
      avals: shape and dtype by variable.
      many: those of `tangents` that have steps as their first axis.
    """
    read = variables(equation.inputs)
    # The values do not matter, and nothing is computed from these zeros: the tangents alone are used.
    given = [
        jnp.zeros_like(tangents[v]) if v in tangents else jnp.zeros(avals[v].shape, avals[v].dtype)
        for v in read
    ]
    perturbed = [v in tangents for v in read]
    function = over_steps(equation, [0 if v in many and v in tangents else None for v in read])
    return _jvp(function, given, perturbed, [tangents[v] for v in read if v in tangents])[1]


def _jvp(
    function: Function, given: Sequence[Any], perturbed: Sequence[bool], tangents: Sequence[Any]
) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return values and tangents of a function some of whose arguments are perturbed."""

    def of_perturbed(*moving: Any) -> Sequence[Any]:
        rest = iter(moving)
        return function(*(next(rest) if p else a for a, p in zip(given, perturbed, strict=True)))

    moving = [a for a, p in zip(given, perturbed, strict=True) if p]
    return jax.jvp(of_perturbed, moving, list(tangents))


def over_steps(equation: Equation, axes: Sequence[int | None]) -> Function:
    """Return an equation as a function of arrays [n, …] where `axes` has 0, and of single ones elsewhere."""
    if 0 not in axes:
        return equation.apply
    if list(axes) == [0, None] and multiplies_rows(equation):
        return lambda rows, matrix: [_rows_by_matrix(equation, rows, matrix)]
    return jax.vmap(equation.apply, in_axes=list(axes))


def multiplies_rows(equation: Equation) -> bool:
    """Tell whether an equation is the product of rows [*B, K] with a matrix [K, N] from the right."""
    if equation.name != "dot_general":
        return False
    (rows, matrix), (batch, _) = equation.params["dimension_numbers"]
    left, right = (len(aval.shape) for aval in equation.input_avals)
    return right == 2 and (tuple(rows), tuple(matrix), tuple(batch)) == ((left - 1,), (0,), ())


def times_transposed(equation: Equation, rows: Any, transposed: Any) -> Any:
    """Return the product [*B, N] of rows [*B, K] with a matrix that is given transposed [N, K]."""
    return _multiply(equation, rows, transposed, axis=1)


def _rows_by_matrix(equation: Equation, rows: Any, matrix: Any) -> Any:
    """Return a product of rows as one of two matrices: XLA's CPU backend is slow at others."""
    *many, each = rows.shape
    product = _multiply(equation, rows.reshape(math.prod(many), each), matrix, axis=0)
    return product.reshape(*many, product.shape[-1])


def _multiply(equation: Equation, rows: Any, matrix: Any, axis: int) -> Any:
    how = {name: equation.params[name] for name in ("precision", "preferred_element_type")}
    return jax.lax.dot_general(rows, matrix, (((rows.ndim - 1,), (axis,)), ((), ())), **how)
