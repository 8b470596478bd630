"""Values and tangents of a program's variables, for one step or for n steps at once.

The derivative of each equation is JAX's own: ``jax.jvp`` of that equation with respect to its perturbed
inputs. A variable without a tangent has a symbolic zero as its tangent, and nothing is computed for it.
Arrays over n steps have an additional first axis [n, …].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.jaxprs import Atom, Equation, Value, Values, Variable, is_inexact, leading_to, variables
from jaxrnn.unrolling.dataflow import NO_TANGENT

Function = Callable[..., Sequence[Value]]


@dataclasses.dataclass
class Dual:
    """Values of variables, and tangents of the perturbed ones.

    Attributes:
      values: values by variable.
      tangents: tangents by variable; absent where they are symbolic zeros.
    """

    values: Values
    tangents: Values = dataclasses.field(default_factory=dict)

    def run(self, equations: Sequence[Equation], wanted: Iterable[Atom]) -> None:
        """Compute the values of `wanted` from the known values."""
        for equation in leading_to(equations, wanted, self.values):
            given = [self.values[v] for v in variables(equation.inputs)]
            found = _over_steps(equation, given)(*given)
            self.values.update(zip(equation.outputs, found, strict=True))

    def push(self, equations: Iterable[Equation]) -> None:
        """Compute the values and the tangents of the equations' outputs."""
        for equation in equations:
            values, tangents = self.jvp(equation)
            self.values.update(values)
            self.tangents.update(tangents)
            self.run([equation], equation.outputs)

    def jvp(self, equation: Equation, fixed: Container[Variable] = ()) -> tuple[Values, Values]:
        """Return the values and the tangents of an equation's outputs; two empty dicts if it is unperturbed.

        Where the equation is linear, the tangents are right even if the values of its inputs are unknown.

        Args:
          equation: the equation.
          fixed: variables whose tangents are ignored.
        """
        read = variables(equation.inputs)
        tangents = {v: self.tangents[v] for v in read if v in self.tangents and v not in fixed}
        if not tangents or equation.name in NO_TANGENT:
            return {}, {}
        given = {v: self._value(v, aval) for v, aval in equation.avals_read.items()}
        function = _over_steps(equation, [given[v] for v in read])

        def of_perturbed(perturbed: Values) -> Sequence[Value]:
            return function(*(perturbed.get(v, given[v]) for v in read))

        results = jax.jvp(of_perturbed, [{v: given[v] for v in tangents}], [tangents])
        values, pushed = (dict(zip(equation.outputs, found, strict=True)) for found in results)
        return values, {v: tangent for v, tangent in pushed.items() if is_inexact(tangent)}

    def _value(self, variable: Variable, aval: Any) -> Value:
        """Return the value of a variable, or zeros where it is unknown."""
        if variable in self.values:
            return self.values[variable]
        if variable in self.tangents:
            return jnp.zeros_like(self.tangents[variable])
        return jnp.zeros(aval.shape, aval.dtype)


def _over_steps(equation: Equation, given: Sequence[Value]) -> Function:
    """Return an equation as a function of its inputs, mapped over n steps where any input has that axis."""
    pairs = zip(given, variables(equation.inputs), strict=True)
    axes = [0 if jnp.ndim(a) > len(equation.avals_read[v].shape) else None for a, v in pairs]
    if 0 not in axes:
        return equation.apply
    if axes == [0, None] and multiplies_rows(equation):
        return lambda rows, matrix: [rows_by_matrix(equation, rows, matrix)]
    return jax.vmap(equation.apply, in_axes=axes)


def multiplies_rows(equation: Equation) -> bool:
    """Tell whether an equation is the product of rows [*B, K] with a matrix [K, N] from the right."""
    if equation.name != "dot_general":
        return False
    (rows, matrix), (batch, _) = equation.params["dimension_numbers"]
    left, right = (len(aval.shape) for aval in equation.input_avals)
    return right == 2 and (tuple(rows), tuple(matrix), tuple(batch)) == ((left - 1,), (0,), ())


def rows_by_matrix(equation: Equation, rows: Value, matrix: Value, axis: int = 0) -> Value:
    """Return the product of rows [*B, K] with a matrix, [*B, N], computed as a product of two matrices.

    XLA's CPU backend is slow at products with more axes.

    Args:
      equation: the product.
      rows: the rows [*B, K].
      matrix: [K, N], or [N, K] where `axis` is 1.
      axis: the axis of the matrix that is summed over.
    """
    *leading, width = rows.shape
    how = {name: equation.params[name] for name in ("precision", "preferred_element_type")}
    rows = rows.reshape(math.prod(leading), width)
    product = jax.lax.dot_general(rows, matrix, (((1,), (axis,)), ((), ())), **how)
    return product.reshape(*leading, product.shape[-1])
