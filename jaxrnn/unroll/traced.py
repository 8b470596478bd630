"""The parts of any step, as its traced program shows them (`jaxrnn.unroll.program`).

Given its signals, a step needs no weights: on the way back each signal takes the value that it had, and hands
its cotangent on to the operands of its products alone. The products by which the weights get theirs wait for
the end of the block, where all steps are multiplied at once.

Weakness: a weight that enters by anything but a matrix product, such as a convolution, or one in a loop
within the step, gets its cotangent step by step, as in a plain scan.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.contract import parts_make_step
from jaxrnn.steps import readout_of, varying_alike
from jaxrnn.typing import Carry, Step
from jaxrnn.unroll.operations import Operation, Place, Signal, Values, places, value
from jaxrnn.unroll.parts import Block, Cotangents, Parts, Results, is_float, vjp_by
from jaxrnn.unroll.program import Kind, Program, trace


def traced_parts(cell: Step, carry: Carry, x: Any) -> tuple[TracedParts, list[Any]] | None:
    """Return the parts of a step, and the arrays that it closes over; None where it has no such parts.

    Args:
      cell: the step.
      carry: a carry of one step.
      x: an input of one step.
    """
    if not all(map(is_float, jax.tree.leaves((carry, x)))):
        return None
    # A split cell's readout may hold weights; another's output is a leaf of its carry, or comes beside it.
    readout = None if parts_make_step(cell, carry, x) else readout_of(cell, carry, x)

    def step(carry: Carry, x: Any) -> Results:
        moved, y = cell(carry, x)
        return Results(moved, y if readout is None else None)

    program, closed_over, form = trace(step, carry, x)
    arrays = (*jax.tree.leaves(form), *closed_over)
    if program.has_effects or not program.multiplies or not all(map(is_float, arrays)):
        return None
    if program.has_complex_numbers:
        return None
    return TracedParts(program, form, readout), closed_over


class FromInput(NamedTuple):
    """What comes from the input.

    Attributes:
      direct: what gates read of it beside sums, floats.
      fixed: the same, of what is no float, and has no cotangent.
      sums: what is part of a sum, for each; None where there is no such part.
    """

    direct: tuple[Any, ...]
    fixed: tuple[Any, ...]
    sums: tuple[Any, ...]


class StepSignals(NamedTuple):
    """The signals of a step: all that its gates see beside the carry and weights.

    Attributes:
      direct: what they read of the input beside sums.
      sums: what they read of products.
    """

    direct: tuple[Any, ...]
    sums: tuple[Any, ...]


class TracedParts(Parts):
    """A step taken apart by its program; its weights are a list of those that all steps share."""

    def __init__(self, program: Program, form: Results, readout: Any):
        self._program, self._readout = program, readout
        self._structure = jax.tree.structure(form)
        every = range(len(program.forms))
        shared = {p for p in every if program.is_shared(p)}
        self._of_input = inputs = {p for p in every if program.kind(p) is Kind.INPUT}
        known = {*program.carry, *shared, *inputs}
        steps = program.leading_to(program.results, known)
        self._signals = [s for s in steps if isinstance(s, Signal)]
        self._products = [p for s in self._signals for p in s.products]
        # What is left of a step when its signals are given.
        wanted = [*program.results, *(p.operand for p in self._products)]
        gates = program.leading_to(wanted, known | {s.place for s in self._signals})
        self._steps = [s for s in steps if isinstance(s, Signal) or s in gates]
        reads = {p for op in gates for p in places(op.arguments)} | {*places(wanted)}
        direct = sorted(reads & inputs)
        self._direct = [p for p in direct if is_float(program.forms[p])]
        self._fixed = [p for p in direct if p not in self._direct]
        offsets = [o for s in self._signals for o in s.offsets]
        self._to_offsets = program.leading_to(offsets, known)
        drives = [d for s in self._signals for d in s.drives]
        self._to_drives = program.leading_to([*direct, *drives], {*program.x, *shared})
        used = {
            place
            for op in (*steps, *self._to_drives)
            for place in (*places(op.arguments), *op.results)
        }
        self._shared = sorted((used | {*places(program.results)}) & shared)
        self._read = [p for p in self._shared if p in reads and is_float(program.forms[p])]
        self._to_shared = program.leading_to(self._shared, program.weights)
        self._asked: set[Place] = set()  # what has a cotangent on the way back, as `by` says
        self._measure()

    def _measure(self) -> None:
        forms = self._program.forms
        signals = [forms[s.place] for s in self._signals]
        loose = [forms[p] for p in self._direct]
        leaves = [forms[p] for p in self._program.carry]
        self.rows = max((math.prod(s.shape[:-1]) for s in (*signals, *loose)), default=1)
        self.numbers = sum(s.size for s in (*signals, *loose))
        self.bytes = sum(s.size * s.dtype.itemsize for s in (*signals, *loose))
        self.widest = max(map(_width, signals), default=0)
        self.width = max(map(_width, leaves), default=1)
        self.features = max((_width(forms[p]) for p in self._program.x), default=1)
        self.slices = self.numbers // max(self.rows * self.width, 1) + len(leaves)
        self.drives_alone = False  # what is left of such a step is better computed again than kept

    def weights(self, held: Iterable[Any]) -> list[Any]:
        """Return the weights that all steps share, from the arrays that the step closes over."""
        values = dict(zip(self._program.weights, held, strict=True))
        self._run(self._to_shared, values)
        return [values[p] for p in self._shared]

    def by(self, weights: list[bool], carry: Carry, x: Any) -> TracedParts:
        """Return parts that differentiate by what depends on these alone: not by a threshold, say."""
        program = self._program
        sources = (*self._shared, *program.carry, *program.x)
        flags = (*weights, *jax.tree.leaves(carry), *jax.tree.leaves(x))
        begun = {place for place, is_asked in zip(sources, flags, strict=True) if is_asked}
        parts = copy.copy(self)
        parts._asked = program.reached_from(begun)
        parts._read = [place for place in self._read if place in parts._asked]
        return parts

    def _are_asked(self, tree: Any, known: Iterable[Place]) -> Any:
        """Tell it of each leaf of a tree, whose places are known."""
        return jax.tree.unflatten(jax.tree.structure(tree), [p in self._asked for p in known])

    def drive(self, weights: Any, x: Any) -> FromInput:
        """Return what comes from one input [*B, F]."""
        return self._drive(self._run(self._to_drives, self._values(weights) | self._inputs(x)))

    def drives(self, weights: Any, xs: Any) -> FromInput:
        """Return what comes from inputs [n, *B, F]."""
        values = self._values(weights) | self._inputs(xs)
        for operation in self._to_drives:
            assert isinstance(operation, Operation)  # signals are of the loop
            operation.run_all(values, self._of_input)
        return self._drive(values)

    def _inputs(self, x: Any) -> Values:
        return dict(zip(self._program.x, jax.tree.leaves(x), strict=True))

    def _drive(self, values: Values) -> FromInput:
        return FromInput(
            direct=tuple(values[p] for p in self._direct),
            fixed=tuple(values[p] for p in self._fixed),
            sums=tuple(_sum(values[d] for d in s.drives) for s in self._signals),
        )

    def step(self, weights: Any, carry: Carry, drive: FromInput) -> tuple[Results, Any]:
        """Take one step; return its signals too."""
        values = self._begin(weights, carry, drive.direct, drive.fixed)
        offsets = self._run(self._to_offsets, dict(values))
        sums = []
        for part in self._steps:
            if isinstance(part, Signal):
                own = [drive.sums[len(sums)], *(value(o, offsets) for o in part.offsets)]
                products = [p(values[p.operand], values[p.weight]) for p in part.products]
                values[part.place] = _sum(term for term in (*own, *products) if term is not None)
                sums.append(values[part.place])
            else:
                part.run(values)
        return self._results(values), StepSignals(drive.direct, tuple(sums))

    def outputs(self, weights: Any, carries: Carry, ys: Any) -> Any:
        """Return the outputs [T, *B, Y]."""
        del weights
        return ys if self._readout is None else self._readout(carries)

    def read(self, weights: Any) -> list[Any]:
        """Return the weights that the step reads beside its products."""
        values = self._values(weights)
        return [values[p] for p in self._read]

    def with_read(self, weights: Any, d_weights: Any, d_read: Any) -> list[Any]:
        """Add cotangents of what `read` returned to those of the weights."""
        del weights
        found = dict(zip(self._read, d_read, strict=True))
        pairs = zip(self._shared, d_weights, strict=True)
        return [d + found[p] if p in found else d for p, d in pairs]

    def turned(self, weights: Any) -> list[Any]:
        """Return the weight of each product, transposed where that helps."""
        values = self._values(weights)
        return [p.turn(values[p.weight]) for p in self._products]

    def block(self, weights: Any, xs: Any, starts: Carry, signals: Any) -> Block:
        """Return a block of steps [n, *B, …] on the way back."""

        def drives(weights, xs):
            found = self.drives(weights, xs)
            return (found.direct, found.sums), found.fixed

        by_weights = self._are_asked(weights, self._shared)
        by_xs = self._are_asked(xs, self._program.x)
        (direct, sums), drives_back, fixed = vjp_by(
            (by_weights, by_xs), drives, weights, xs, has_aux=True
        )
        if signals is None:
            drive = FromInput(direct, fixed, sums)
            _, signals = jax.vmap(functools.partial(self.step, weights))(starts, drive)
        operands = jax.vmap(functools.partial(self._operands, weights))(starts, signals, fixed)
        _, products_back = vjp_by(
            (by_weights,), lambda weights: self._summed(weights, operands), weights
        )

        def back(d_signals):
            pairs = zip(sums, d_signals.sums, strict=True)
            d_sums = tuple(None if total is None else d for total, d in pairs)
            d_by_drives, d_xs = drives_back((d_signals.direct, d_sums))
            (d_by_products,) = products_back(d_signals.sums)
            return jax.tree.map(jnp.add, d_by_drives, d_by_products), d_xs

        return Block(signals, fixed, back)

    def back(
        self, weights: Any, turned: Any, start: Carry, signal: Any, fixed: Any, cotangents: Results
    ) -> Cotangents:
        """Go back through one step."""
        if turned is None:
            values = self._values(weights)
            products = [(p.__call__, values[p.weight]) for p in self._products]
        else:
            products = [(p.by_turned, w) for p, w in zip(self._products, turned, strict=True)]

        def step(read, start, signal):
            values = self._begin(weights, start, signal.direct, fixed)
            values.update(zip(self._read, read, strict=True))
            return self._results(self._given(values, signal.sums, products))

        read = self.read(weights)
        asked = (
            self._are_asked(read, self._read),
            self._are_asked(start, self._program.carry),
            self._are_asked(signal, (*self._direct, *(s.place for s in self._signals))),
        )
        _, pull = vjp_by(asked, step, read, start, signal)
        d_read, d_start, d_signal = pull(cotangents)
        return Cotangents(d_start, d_signal, d_read)

    def _values(self, weights: Any) -> Values:
        return dict(zip(self._shared, weights, strict=True))

    def _begin(self, weights: Any, carry: Carry, direct: Any, fixed: Any) -> Values:
        """Return what is known at the beginning of a step."""
        values = self._values(weights)
        values.update(zip(self._program.carry, jax.tree.leaves(carry), strict=True))
        values.update(zip(self._direct, direct, strict=True))
        values.update(zip(self._fixed, fixed, strict=True))
        return values

    @staticmethod
    def _run(operations: Iterable[Any], values: Values) -> Values:
        for operation in operations:
            operation.run(values)
        return values

    def _given(self, values: Values, sums: Any, products: Iterable[Any] = ()) -> Values:
        """Take a step whose sums are given.

        Args:
          values: what is known at its beginning.
          sums: what these are.
          products: the function of each product and its weight, if cotangents are to reach its operand.
        """
        given, products = iter(sums), iter(products)
        for part in self._steps:
            if isinstance(part, Signal):
                behind = itertools.islice(products, len(part.products))
                operands = (values[product.operand] for product in part.products)
                terms = [_nothing(p, a, w) for (p, w), a in zip(behind, operands, strict=False)]
                values[part.place] = _sum([next(given), *terms])
            else:
                part.run(values)
        return values

    def _operands(self, weights: Any, start: Carry, signal: StepSignals, fixed: Any) -> list[Any]:
        """Return the operands of all products of a step."""
        values = self._given(self._begin(weights, start, signal.direct, fixed), signal.sums)
        return [values[p.operand] for p in self._products]

    def _summed(self, weights: Any, operands: list[Any]) -> tuple[Any, ...]:
        """Return the sums of a block as functions of weights: products and offsets."""
        values = self._values(weights)
        offsets = self._run(self._to_offsets, dict(values))
        remaining, sums = iter(operands), []
        for signal in self._signals:
            products = [p.of_all(next(remaining), values[p.weight]) for p in signal.products]
            total = _sum(products)
            own = (jnp.broadcast_to(value(o, offsets), total.shape) for o in signal.offsets)
            sums.append(_sum([total, *own]))
        return tuple(sums)

    def _results(self, values: Mapping[Place, Any]) -> Results:
        leaves = [jnp.asarray(value(r, values)) for r in self._program.results]
        return jax.tree.unflatten(self._structure, leaves)


def _width(form: Any) -> int:
    return form.shape[-1] if form.shape else 1


def _sum(terms: Iterable[Any]) -> Any:
    terms = list(terms)
    return functools.reduce(jnp.add, terms) if terms else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _nothing(product: Callable[[Any, Any], Any], operand: Any, weight: Any) -> Any:
    """Return zeros in the form of a product, whose cotangent reaches the operand as the product's would."""
    return _nothing_forward(product, operand, weight)[0]


def _nothing_forward(product: Any, operand: Any, weight: Any) -> tuple[Any, Any]:
    form = jax.eval_shape(product, operand, weight)
    zeros, _ = varying_alike(jnp.zeros(form.shape, form.dtype), operand)
    return zeros, (operand, weight)


def _nothing_backward(product: Any, kept: Any, cotangent: Any) -> tuple[Any, None]:
    operand, weight = kept
    (d_operand,) = jax.linear_transpose(lambda a: product(a, weight), operand)(cotangent)
    return d_operand, None


_nothing.defvjp(_nothing_forward, _nothing_backward)
