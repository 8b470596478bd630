"""Dependency analysis of a step: the equations of a traced step, sorted by what they depend on.

Each variable of a traced step has a kind:

    constant   It depends on nothing: a literal of the program.
    weight     It depends on weights alone, and is computed once for all steps.
    spread     It depends on weights alone, but is larger than those weights (such as a bias repeated for
               every row of a batch) or holds no floats. It is recomputed wherever it is read, because storing
               it would cost more.
    input      It depends on the step's input, and possibly on weights. It is computed for many steps at once.
    loop       It depends on the carry, and is computed step by step, in the loop.

Two kinds of input-dependent equations are left to the loop as well: those that make an array larger, such as
broadcasts, and splits and slices whose pieces only the loop reads, since the uncut array is one array to
store.

The loop contains **products** with weights. They feed a **linear region**: sums, reshapes, splits and slices
("cuts") of products and of input-dependent variables. The **gates** are functions of the region's outputs:

    carry' = gates(carry, signals)        signals: outputs of the linear region that gates read
    signal = operand · W + tap            operand: what a product multiplies, the carry itself in most cells

A **tap** collects everything that enters the region without depending on the carry's tangent: operand · dW
from the tangents of the weights, and d input from those of the inputs. Taps are placed as far down a chain of
sums as possible, so that there are few, but before a cut into gates, where one array is cheaper than several.
A weight that multiplies the carry elementwise counts as a product too where the result is a term of such a
sum.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
from collections.abc import Callable, Iterable, Mapping, Sequence

from jax.extend.core import Literal

from jaxrnn.jaxprs import (
    Atom,
    Equation,
    Flat,
    Variable,
    is_inexact,
    leading_to,
    reached_from,
    variables,
)

_CUTS = {"split", "slice"}
_SUMS = {"add", "add_any", "sub", "neg"}
_LINEAR = _CUTS | _SUMS | {"concatenate", "reshape", "transpose", "squeeze", "copy"}
NO_TANGENT = {"stop_gradient"}


class Kind(enum.IntEnum):
    """What a variable depends on. An equation's outputs get the largest kind among its inputs."""

    CONSTANT = 0
    WEIGHT = 1
    SPREAD = 2
    INPUT = 3
    LOOP = 4


_KindOf = Callable[[Atom], Kind]


class StepProgram:
    """The equations of a step ``(carry, x) -> (carry, y)``, sorted by what they depend on.

    Attributes:
      flat: the traced step, without the arrays that it closes over.
      avals: shape and dtype by variable.
      carry: variables of the carry's leaves.
      x: variables of the input's leaves.
      next_carry: atoms that the step returns as the next carry, leaf by leaf.
      outputs: atoms that the step returns as y, leaf by leaf.
      reads_carry_alone: whether y is a function of the next carry and weights, so that it needs no loop.
      loop_outputs: `outputs` if the loop computes them, otherwise empty.
      results: what the loop computes: the next carry and `loop_outputs`.
      loop: equations of the loop.
      drives: input-dependent variables that the loop reads.
      to_drives: equations that compute the drives.
      weights: variables of kind WEIGHT that other equations or the results read.
      region: equations of `loop` in the linear region, products included.
      products: equations of `region` that multiply something by a weight.
      spread: equations of `loop` that depend on weights alone.
      gates: equations of `loop` outside the region, except those that only the region needs.
      kept: what gates and products read besides the carry and weights: signals and drives.
      read_weights: weights that gates read elementwise, or that are results.
      tapped: variables with a tap: drives and outputs of the region, except where the only reader is a sum
        of the region, which has the tap instead.

    Args:
      flat: the traced step.
      leaves: how many leaves the carry has.
      is_masked: whether some steps are padding.
    """

    def __init__(self, flat: Flat, leaves: int, *, is_masked: bool = False):
        # A program is a static argument of compiled functions. An array in it would be kept alive, and a
        # tracer would leak.
        self.flat, self.avals = dataclasses.replace(flat, constants=[]), flat.avals
        self.carry, self.x = flat.inputs[:leaves], flat.inputs[leaves:]
        self.next_carry, self.outputs = flat.outputs[:leaves], flat.outputs[leaves:]
        self._kinds = _kinds(flat, self.carry, self.x)
        once, of_input = (
            {v for v, its in self._kinds.items() if its is kind}
            for kind in (Kind.WEIGHT, Kind.INPUT)
        )
        outside = once | of_input

        # Decide what is computed outside the loop. A padded step holds the carry, so a y computed outside
        # would read the held carry and not the one that the step returned. It could be NaN, or differ in
        # other rows where a step mixes the rows of a batch. So with padding y is computed in the loop,
        # unless it is a leaf of the next carry.
        after = {*variables(self.next_carry)}
        to_outputs = leading_to(flat.equations, self.outputs, outside | after)
        sources = _read_by(to_outputs, self.outputs) - _made_by(to_outputs) - after
        self.reads_carry_alone = sources <= once and not (is_masked and to_outputs)
        self.loop_outputs = [] if self.reads_carry_alone else self.outputs
        self.results = [*self.next_carry, *self.loop_outputs]
        self.loop = leading_to(flat.equations, self.results, outside.union(self.carry))
        self.drives = sorted(_read_by(self.loop, self.results) & of_input)
        self.to_drives = leading_to(flat.equations, self.drives, once.union(self.x))
        read = _read_by([*self.to_drives, *self.loop], flat.outputs)
        self.weights = sorted((read | sources) & once)

        # Sort the equations of the loop.
        self.region = _region(self.loop, self.results, self.kind)
        inside, results = _made_by(self.region), {*variables(self.results)}
        self.products = [e for e in self.loop if e in self.region and _is_product(e, self.kind)]
        self.spread = [e for e in self.loop if self.kind(e.outputs[0]) <= Kind.SPREAD]
        others = [e for e in self.loop if e not in self.region]
        of_carry = [v for v in _made_by(others) if self.kind(v) is Kind.LOOP]
        self.gates = leading_to(others, [*of_carry, *self.results], inside)
        read = _read_by(self.gates, [self.factors(product)[0] for product in self.products])
        self.kept = sorted(read & inside.union(self.drives))
        self.read_weights = sorted((read | results) & once)
        sums = [e for e in self.region if e not in self.products and e.name not in _CUTS]
        readers = _readers(self.loop)
        taken_over = {v for v in readers if len(readers[v]) == 1 and readers[v][0] in sums}
        self.tapped = inside.union(self.drives) - (taken_over - results)

    def kind(self, atom: Atom) -> Kind:
        """Return what an atom depends on."""
        return Kind.CONSTANT if isinstance(atom, Literal) else self._kinds[atom]

    def factors(self, product: Equation) -> tuple[Variable, Variable]:
        """Return the operand and the weight of a product."""
        weight, operand = variables(sorted(product.inputs, key=self.kind))
        return operand, weight

    @property
    def multiplies(self) -> bool:
        """Whether anything is multiplied by weights."""
        return any(_multiplies(equation, self.kind) for equation in self.flat.equations)

    @property
    def is_linear(self) -> bool:
        """Whether the loop is linear in the carry and reads no weights."""
        depends = reached_from(self.loop, self.carry)

        def is_linear(equation: Equation) -> bool:
            read = [v for v in variables(equation.inputs) if v in depends]
            scales = equation.name == "mul" and len(read) == 1
            return not read or scales or _is_linear(equation)

        return not self.products and not self.read_weights and all(map(is_linear, self.loop))

    def perturbed_carry(self, perturbed: Iterable[Variable]) -> set[Variable]:
        """Return the leaves of the carry that are perturbed at any step if the variables `perturbed` are."""
        reached, before = set(perturbed), set()
        while reached != before:
            before = reached
            reached = reached_from(self.flat.equations, before, NO_TANGENT)
            pairs = zip(self.carry, self.next_carry, strict=True)
            reached |= {leaf for leaf, after in pairs if not reached.isdisjoint(variables([after]))}
        return reached.intersection(self.carry)


def _kinds(flat: Flat, carry: Iterable[Variable], x: Iterable[Variable]) -> dict[Variable, Kind]:
    """Return what each variable depends on."""
    kinds = {
        **dict.fromkeys(flat.constant_variables, Kind.WEIGHT),
        **dict.fromkeys(x, Kind.INPUT),
        **dict.fromkeys(carry, Kind.LOOP),
    }
    for equation in flat.equations:
        kinds.update(dict.fromkeys(equation.outputs, _kind_of(equation, kinds)))
    readers = _readers(flat.equations)
    for equation in reversed(flat.equations):  # cuts whose pieces only the loop reads
        read_in = {kinds[reader.outputs[0]] for v in equation.outputs for reader in readers[v]}
        is_cut = equation.name in _CUTS and kinds[equation.outputs[0]] is Kind.INPUT
        if is_cut and read_in == {Kind.LOOP}:
            kinds.update(dict.fromkeys(equation.outputs, Kind.LOOP))
    return kinds


def _kind_of(equation: Equation, kinds: Mapping[Variable, Kind]) -> Kind:
    """Return what an equation's outputs depend on."""
    read = variables(equation.inputs)
    kind = max((kinds[v] for v in read), default=Kind.CONSTANT)
    if kind in (Kind.WEIGHT, Kind.SPREAD):
        weights = [v for v in read if kinds[v] is Kind.WEIGHT]
        floats = all(map(is_inexact, equation.output_avals))
        return Kind.SPREAD if not floats or _grows(equation, weights) else Kind.WEIGHT
    is_product = equation.name == "dot_general" and Kind.WEIGHT in (kinds[v] for v in read)
    is_spread = kind is Kind.INPUT and _grows(equation, read) and not is_product
    return Kind.LOOP if is_spread else kind


# The linear region.


def _region(loop: Sequence[Equation], results: Iterable[Atom], kind: _KindOf) -> set[Equation]:
    """Return the equations that are products, or linear in products and drives."""
    region: set[Equation] = set()
    inside: set[Variable] = set()
    after_gates: set[Variable] = set()
    for equation in loop:
        read = set(variables(equation.inputs))
        # A sum with an input-dependent term, or a cut of an input-dependent array.
        brings_in = equation.name in _SUMS | _CUTS and Kind.INPUT in map(kind, read)
        is_sum = brings_in or (read & inside and _is_linear(equation))
        if _multiplies(equation, kind) or (is_sum and not read & after_gates):
            region.add(equation)
            inside.update(equation.outputs)
        elif read & (inside | after_gates):
            after_gates.update(equation.outputs)
    return _settled(region, loop, results, kind)


def _settled(
    region: set[Equation], loop: Sequence[Equation], results: Iterable[Atom], kind: _KindOf
) -> set[Equation]:
    """Return the region with its ends trimmed, and with terms of its sums that scale the carry added.

    Equations that only move, cut or scale an array on its way to the gates are left to the gates, so that the
    array before them is kept. Terms in which a weight multiplies the carry elementwise join the region: the
    gradient of that weight leaves the loop too, and needs no tap of its own.
    """
    settled, readers = set(region), _readers(loop)
    inside, wanted = _made_by(region), {*variables(results)}
    for equation in reversed(loop):
        reading = {reader for v in equation.outputs for reader in readers[v]}
        if equation in region:
            joins = _multiplies(equation, kind) or len(variables(equation.inputs)) > 1
            if reading and not joins and not reading & settled:
                settled.discard(equation)
            continue
        cut_or_multiplied = any(r.name in _CUTS or _multiplies(r, kind) for r in reading)
        is_term = reading <= settled and not cut_or_multiplied
        of_carry = kind(equation.outputs[0]) is Kind.LOOP and _is_linear(equation)
        is_new = inside.isdisjoint(equation.avals_read) and wanted.isdisjoint(equation.outputs)
        if is_term and is_new and (of_carry or _scales(equation, kind)):
            settled.add(equation)
    return settled


def _multiplies(equation: Equation, kind: _KindOf) -> bool:
    """Tell whether an equation is a matrix product of a weight with an input- or carry-dependent operand."""
    if equation.name != "dot_general":
        return False
    weight, operand = sorted(map(kind, equation.inputs))
    return weight is Kind.WEIGHT and operand > Kind.SPREAD


def _scales(equation: Equation, kind: _KindOf) -> bool:
    """Tell whether an equation multiplies a carry-dependent array by a weight elementwise."""
    by_weight = set(map(kind, equation.inputs)) in (
        {Kind.WEIGHT, Kind.LOOP},
        {Kind.SPREAD, Kind.LOOP},
    )
    return equation.name == "mul" and by_weight


def _is_product(equation: Equation, kind: _KindOf) -> bool:
    return _multiplies(equation, kind) or _scales(equation, kind)


def _is_linear(equation: Equation) -> bool:
    """Tell whether an equation is jointly linear in all of its inputs that are variables."""
    if equation.name == "broadcast_in_dim":  # it counts only where it adds axes of size 1
        return not _grows(equation, variables(equation.inputs))
    numbers = [isinstance(atom, Literal) for atom in equation.inputs]
    is_scaled = (equation.name == "mul" and any(numbers)) or (equation.name == "div" and numbers[1])
    return equation.name in _LINEAR or is_scaled


def _grows(equation: Equation, read: Iterable[Variable]) -> bool:
    """Tell whether an equation's outputs have more entries than the inputs `read` together."""
    made = sum(aval.size for aval in equation.output_avals)
    return made > sum(equation.avals_read[v].size for v in read)


def _read_by(equations: Iterable[Equation], atoms: Iterable[Atom] = ()) -> set[Variable]:
    return {*variables(atoms), *(v for e in equations for v in variables(e.inputs))}


def _made_by(equations: Iterable[Equation]) -> set[Variable]:
    return {v for e in equations for v in e.outputs}


def _readers(equations: Iterable[Equation]) -> Mapping[Variable, list[Equation]]:
    readers: Mapping[Variable, list[Equation]] = collections.defaultdict(list)
    for equation in equations:
        for variable in variables(equation.inputs):
            readers[variable].append(equation)
    return readers
