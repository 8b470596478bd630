"""What in a step depends on what: its equations sorted by what has to wait for the carry.

Each variable of a traced step depends on

    constant   nothing: numbers that stand in the program
    weight     weights alone: computed once for all steps
    input      the step's input, and weights: computed for many steps at once
    carry      the carry: computed step by step, in the loop

An equation that makes more numbers out of fewer, such as one that repeats a bias for every row of a batch, is
evaluated again wherever its result is read: to store it would cost more. One that only cuts an input's
product into gates stays in the loop for the same reason: the uncut array is one array to store.

In the loop stand **products** with weights, and behind them a **linear region**: sums, reshapes and cuts of
products and of what comes from the input. Gates are functions of what leaves the region:

    carry' = gates(carry, signals)        signals: what gates read of the linear region
    signal = operand · W + tap            operand: what a product multiplies, the carry itself in most cells

A **tap** is where everything that needs no loop enters the region: operand · dW from the weights' tangents,
d input from the inputs'. Taps stand as far down a chain of sums as they can, so that there are few, but
before a cut into gates, where one array is cheaper than several. A weight that multiplies the carry entry by
entry is a product too, where it is a term of such a sum.
"""

from __future__ import annotations

import collections
import enum
from collections.abc import Iterable, Mapping, Sequence

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
    """What a variable depends on; of an equation's inputs, the last in this order decides."""

    CONSTANT = 0
    WEIGHT = 1
    INPUT = 2
    CARRY = 3


class StepProgram:
    """The equations of a step ``(carry, x) -> (carry, y)``, sorted.

    Attributes:
      avals: shape and dtype by variable.
      constants: variables of the arrays that the step closes over.
      carry: variables of the carry's leaves.
      x: variables of the input's leaves.
      moved: what the step returns as the next carry, leaf by leaf.
      outputs: what it returns as y, leaf by leaf.
      weights: variables that depend on weights alone and are computed once for all steps.
      drives: variables that depend on the input and are read by the loop.
      loop: equations of the loop.
      results: what the loop computes: the next carry, and y where `reads_carry_alone` is false.
      region: those of `loop` that make up the linear region, products included.
      gates: the others, but for those that repeat a weight for the region alone.
      products: those of `region` that multiply something by a weight.
      kept: what gates read beside the carry and weights: signals, and drives outside of the region.
      reads_carry_alone: whether y is a function of the next carry and weights, so that it needs no loop.

    Args:
      program: of the step.
      leaves: how many leaves the carry has.
      is_masked: whether some steps are padding.
    """

    def __init__(self, program: Flat, leaves: int, *, is_masked: bool = False):
        self.avals, self._equations = program.avals, program.equations
        self.constants = program.constant_variables
        self.carry, self.x = program.inputs[:leaves], program.inputs[leaves:]
        self.moved, self.outputs = program.outputs[:leaves], program.outputs[leaves:]
        self._kinds = [Kind.CONSTANT] * len(self.avals)
        # Depend on weights, but are evaluated wherever they are read.
        self._recomputed: set[Variable] = set()
        self._sort()
        self._leave_cuts_in_the_loop()
        self._settled = {v for v in self._of_kind(Kind.WEIGHT) if v not in self._recomputed}
        self._find_loop(is_masked)
        self._find_region()
        self._find_kept()
        self._find_the_rest()

    def kind(self, atom: Atom) -> Kind:
        """Return what an atom depends on."""
        return Kind.CONSTANT if isinstance(atom, Literal) else self._kinds[atom]

    def factors(self, product: Equation) -> tuple[Atom, Variable]:
        """Return what a product multiplies, and the weight by which it does."""
        weight, operand = sorted(product.inputs, key=self.kind)
        assert not isinstance(weight, Literal)
        return operand, weight

    def is_cut_of_drive(self, equation: Equation) -> bool:
        """Tell whether an equation cuts what comes from the input."""
        return equation.name in _CUTS and self.kind(equation.inputs[0]) is Kind.INPUT

    @property
    def multiplies(self) -> bool:
        """Whether anything is multiplied by weights."""
        return any(map(self._multiplies, self._equations))

    @property
    def is_linear(self) -> bool:
        """Whether the loop is linear in the carry, and no weights have a part in it."""
        depends = set(self.carry)
        for equation in self.loop:
            read = [v for v in variables(equation.inputs) if v in depends]
            depends.update(equation.outputs if read else ())
            scales = equation.name == "mul" and len(read) == 1
            if read and not scales and not _is_linear(equation, repeats=False):
                return False
        return not self.products and not self.read_weights

    def perturbed(self, begun: Iterable[Variable]) -> set[Variable]:
        """Return the variables that have a tangent, in this step or a later one, where `begun` have one."""
        reached, before = set(begun), set()
        while reached != before:
            before = reached
            reached = reached_from(self._equations, before, NO_TANGENT)
            pairs = zip(self.carry, self.moved, strict=True)
            reached |= {leaf for leaf, moved in pairs if not reached.isdisjoint(variables([moved]))}
        return {v for v in reached if is_inexact(self.avals[v])}

    # How the equations are sorted.

    def _of_kind(self, kind: Kind) -> list[Variable]:
        return [v for v, its in enumerate(self._kinds) if its is kind]

    def _sort(self) -> None:
        """Give every variable its kind."""
        begun = (self.constants, Kind.WEIGHT), (self.x, Kind.INPUT), (self.carry, Kind.CARRY)
        for known, kind in begun:
            for variable in known:
                self._kinds[variable] = kind
        for equation in self._equations:
            read = variables(equation.inputs)
            kind = max(map(self.kind, read), default=Kind.CONSTANT)
            grows = self._numbers(equation.outputs) > self._numbers(read)
            if kind is Kind.INPUT and grows and not self._multiplies(equation):
                kind = Kind.CARRY
            if kind is Kind.WEIGHT and self._is_recomputed(equation):
                self._recomputed.update(equation.outputs)
            for variable in equation.outputs:
                self._kinds[variable] = kind

    def _is_recomputed(self, equation: Equation) -> bool:
        """Tell whether what weights make is not stored: it is larger than they are, or no float."""
        read = [v for v in variables(equation.inputs) if self.kind(v) is Kind.WEIGHT]
        settled = [v for v in read if v not in self._recomputed]
        floats = all(is_inexact(self.avals[v]) for v in equation.outputs)
        return not floats or self._numbers(equation.outputs) > self._numbers(settled)

    def _leave_cuts_in_the_loop(self) -> None:
        """Let the loop cut what comes from the input, where it alone reads the pieces."""
        readers = _readers(self._equations)
        for equation in reversed(self._equations):
            reading = [reader for v in equation.outputs for reader in readers[v]]
            in_loop = all(self.kind(reader.outputs[0]) is Kind.CARRY for reader in reading)
            if self.is_cut_of_drive(equation) and reading and in_loop:
                for variable in equation.outputs:
                    self._kinds[variable] = Kind.CARRY

    def _find_loop(self, is_masked: bool) -> None:
        """Find what has to be computed step by step."""
        moved = {*variables(self.moved)}
        outside = self._settled.union(self._of_kind(Kind.INPUT))
        self.to_outputs = leading_to(self._equations, self.outputs, moved | outside)
        made = moved.union(*(e.outputs for e in self.to_outputs))
        sources = {*_read_by(self.to_outputs), *variables(self.outputs)} - made
        self.reads_carry_alone = all(self.kind(v) is Kind.WEIGHT for v in sources)
        if is_masked and self.to_outputs:
            # At padding the carry is held. A y that is computed from it there, and not from what the step
            # returns, could be NaN, or differ in other rows of a step that mixes them.
            self.reads_carry_alone = False
        self.loop_outputs = [] if self.reads_carry_alone else self.outputs
        self.results = [*self.moved, *self.loop_outputs]
        self.loop = leading_to(self._equations, self.results, outside.union(self.carry))
        read = {*_read_by(self.loop), *variables(self.results)}
        self.drives = sorted(v for v in read if self.kind(v) is Kind.INPUT)

    def _find_region(self) -> None:
        self.products = [e for e in self.loop if self._multiplies(e)]
        self.region: set[Equation] = set()
        inside: set[Variable] = set()
        behind: set[Variable] = set()  # what gates make of the region
        for equation in self.loop:
            read = variables(equation.inputs)
            begins = equation in self.products or self._brings_in_a_drive(equation)
            repeats = self._numbers(equation.outputs) > self._numbers(read)
            continues = not inside.isdisjoint(read) and _is_linear(equation, repeats)
            if equation in self.products or ((begins or continues) and behind.isdisjoint(read)):
                self.region.add(equation)
                inside.update(equation.outputs)
            elif not inside.isdisjoint(read) or not behind.isdisjoint(read):
                behind.update(equation.outputs)
        self._leave_the_ends_to_gates()
        self._take_in_scaled_terms()

    def _brings_in_a_drive(self, equation: Equation) -> bool:
        """Tell whether an equation cuts what comes from the input, or adds that to something."""
        is_added = equation.name in _SUMS and Kind.INPUT in map(self.kind, equation.inputs)
        return is_added or self.is_cut_of_drive(equation)

    def _leave_the_ends_to_gates(self) -> None:
        """Leave to gates what only moves, cuts or scales on the way to them: the array before it is kept."""
        readers = _readers(self.loop)
        for equation in reversed(self.loop):
            reading = {reader for v in equation.outputs for reader in readers[v]}
            joins = equation in self.products or len(variables(equation.inputs)) > 1
            if reading and not joins and reading.isdisjoint(self.region):
                self.region.discard(equation)

    def _take_in_scaled_terms(self) -> None:
        """Take into the region the terms of its sums that are a weight times the carry, entry by entry.

        The gradient of such a weight leaves the loop too, and costs no tap of its own.
        """
        readers, results = _readers(self.loop), {*variables(self.results)}
        inside = {v for e in self.region for v in e.outputs}
        for equation in reversed(self.loop):
            reading = [reader for v in equation.outputs for reader in readers[v]]
            hands_on = all(r in self.region and not self._multiplies(r) for r in reading)
            if equation in self.region or not hands_on or not results.isdisjoint(equation.outputs):
                continue
            is_cut = any(reader.name in _CUTS for reader in reading)
            if inside.isdisjoint(variables(equation.inputs)) and not is_cut:
                if self._scales(equation):
                    self.products.append(equation)
                    self.region.add(equation)
                elif _is_linear(equation, repeats=False) and self._is_of_carry(equation):
                    self.region.add(equation)

    def _find_kept(self) -> None:
        """Find what a step's derivative needs to know of the step, and where taps stand."""
        inside = {v for e in self.region for v in e.outputs}
        others = [e for e in self.loop if e not in self.region]
        operands = [self.factors(product)[0] for product in self.products]
        own = [v for v in (*_read_by(others), *_read_by(self.region)) if v not in inside]
        of_carry = [v for v in own if self.kind(v) is Kind.CARRY]
        self.gates = leading_to(others, [*of_carry, *operands, *self.results], inside)
        self.repeated = [e for e in self.loop if self.kind(e.outputs[0]) <= Kind.WEIGHT]
        scales = [self.factors(product)[1] for product in self.products]
        self.to_scales = leading_to(self.repeated, scales, self._settled)
        self.loop_of_tangents = [e for e in self.loop if e in self.region or e in self.gates]
        read = {*_read_by(self.gates), *variables(operands)}
        results = {*variables(self.results)}
        self.kept = sorted(v for v in read if v in inside or v in self.drives)
        cut = {*_read_by(e for e in self.region if self.is_cut_of_drive(e))}
        self.tapped_drives = [v for v in self.drives if v in read | results | cut]
        self.read_weights = sorted((read | results) & self._settled)
        # A sum takes over the taps of its terms, if nothing else reads these.
        readers = _readers(self.loop)
        self.handed_on = {
            v
            for v in inside - results - read
            if len(readers[v]) == 1
            for reader in readers[v]
            if reader in self.region and reader not in self.products and reader.name not in _CUTS
        }

    def _find_the_rest(self) -> None:
        """Find what is computed outside of the loop, and from what."""
        known = {*self.carry, *self.drives, *self._settled}
        operands = [self.factors(product)[0] for product in self.products]
        self.to_drives = leading_to(self._equations, self.drives, self._settled.union(self.x))
        self.to_kept = leading_to(self.loop, self.kept, known)
        self.to_operands = leading_to(self.gates, operands, known.union(self.kept))
        if not self.reads_carry_alone:
            self.to_outputs = []
        read = {*_read_by([*self.to_drives, *self.loop, *self.to_outputs])}
        read.update(variables([*self.moved, *self.outputs]))
        self.weights = sorted(read & self._settled)
        self.to_weights = leading_to(self._equations, self.weights, self.constants)

    def _numbers(self, of: Iterable[Variable]) -> int:
        return sum(self.avals[v].size for v in of)

    def _is_of_carry(self, equation: Equation) -> bool:
        return self.kind(equation.outputs[0]) is Kind.CARRY

    def _scales(self, equation: Equation) -> bool:
        """Tell whether an equation multiplies what depends on the carry by a weight, entry by entry."""
        kinds = sorted(map(self.kind, equation.inputs))
        return equation.name == "mul" and kinds == [Kind.WEIGHT, Kind.CARRY]

    def _multiplies(self, equation: Equation) -> bool:
        """Tell whether an equation multiplies something by one of the weights."""
        if equation.name != "dot_general":
            return False
        weight, operand = sorted(equation.inputs, key=self.kind)
        is_weight = self.kind(weight) is Kind.WEIGHT and weight not in self._recomputed
        return is_weight and self.kind(operand) > Kind.WEIGHT


def _read_by(equations: Iterable[Equation]) -> list[Variable]:
    return [v for equation in equations for v in variables(equation.inputs)]


def _readers(equations: Sequence[Equation]) -> Mapping[Variable, list[Equation]]:
    readers: Mapping[Variable, list[Equation]] = collections.defaultdict(list)
    for equation in equations:
        for variable in variables(equation.inputs):
            readers[variable].append(equation)
    return readers


def _is_linear(equation: Equation, repeats: bool) -> bool:
    """Tell whether an equation is linear in all of its inputs that are variables, taken together."""
    if equation.name == "broadcast_in_dim":  # new axes of one entry, or repetition
        return not repeats
    numbers = [isinstance(atom, Literal) for atom in equation.inputs]
    is_scaled = (equation.name == "mul" and any(numbers)) or (equation.name == "div" and numbers[1])
    return equation.name in _LINEAR or is_scaled
