"""What `update` sees of input and past, and how the traced program of a cell shows it.

`update(carry, drive, pull)` may use drive and pull each for itself, or their sum alone, as every gate of an
LSTM does; a GRU's reset and update gate see a sum, its candidate both apart; a minGRU has no pull. Where a
sum is all that counts, one array is stored and differentiated in place of two; and nothing is stored of what
`mix` puts beside its products that is the same at every step, as the threshold of a modReLU. Nobody has to
declare it: the traced program shows into which columns the two are split, and what is added before anything
else reads it. It shows as well whether `update` keeps its promise to use no weights.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Var, jaxpr_as_fun

from jaxrnn.contract import parts_make_step
from jaxrnn.typing import Carry, SplitCell, Step
from jaxrnn.unroll.parts import is_float

Columns = tuple[int, int]
"""From the first to before the last."""

_Of = Literal["drive", "pull"]


class Piece(NamedTuple):
    """Columns of the drive, of the pull, or of both: their sum."""

    drive: Columns | None
    pull: Columns | None


@dataclasses.dataclass(frozen=True)
class Signals:
    """How drive [*B, D] and pull [*B, P] are joined into the signals that `update` sees.

    Attributes:
      pieces: what each of the signals is.
      constant: the columns of the pull that weights alone make, the same at all steps; no signals.
      made: from the cell's leaves to these.
    """

    pieces: tuple[Piece, ...]
    constant: tuple[Columns, ...] = ()
    made: Callable[..., list[Any]] | None = dataclasses.field(default=None, compare=False)

    @property
    def is_sum(self) -> bool:
        """Whether all that counts is drive + pull, column by column."""
        every = all(piece.drive and piece.pull for piece in self.pieces)
        return every and _in_order(self.pieces, "drive") == _in_order(self.pieces, "pull")

    @property
    def is_drive(self) -> bool:
        """Whether there is no pull."""
        return not any(piece.pull for piece in self.pieces)

    def join(self, drive: Any, pull: Any) -> tuple[Any, ...]:
        """Return the signals."""

        def joined(piece: Piece) -> Any:
            parts = [_cut(a, at) for a, at in ((drive, piece.drive), (pull, piece.pull)) if at]
            return functools.reduce(jnp.add, parts)

        return tuple(map(joined, self.pieces))

    def constants(self, cell: SplitCell) -> tuple[Any, ...]:
        """Return what is the same at all steps."""
        return () if self.made is None else tuple(self.made(*jax.tree.leaves(cell)))

    def update(
        self, cell: SplitCell, carry: Carry, signals: Sequence[Any], constants: Sequence[Any]
    ) -> Carry:
        """Return the next carry: of a sum nothing else counts, so that one part may be all of it."""
        drive = self._side_by_side("drive", signals)
        pairs = zip(self.pieces, signals, strict=True)
        rest = [jnp.zeros_like(signal) if piece.drive else signal for piece, signal in pairs]
        return cell.update(carry, drive, self._whole(self._side_by_side("pull", rest), constants))

    def cotangents(self, d_signals: Sequence[Any]) -> tuple[Any, ...]:
        """Return those of the drive and of the pull but for what is constant; one where they are equal."""
        drive = self._side_by_side("drive", d_signals)
        return (drive,) if self.is_sum else (drive, self._side_by_side("pull", d_signals))

    def cotangent_of_pull(self, cotangents: Sequence[Any]) -> Any:
        """Return that of the whole pull, zero where it is constant."""
        d_pull = cotangents[-1]
        widths = [end - begin for begin, end in self.constant]
        nothing = [jnp.zeros((*d_pull.shape[:-1], width), d_pull.dtype) for width in widths]
        return self._whole(d_pull, nothing)

    def _side_by_side(self, of: _Of, signals: Sequence[Any]) -> Any:
        arrays = [signals[i] for i in _in_order(self.pieces, of)]
        return jnp.concatenate(arrays, axis=-1) if arrays else signals[0][..., :0]

    def _whole(self, pull: Any, constants: Sequence[Any]) -> Any:
        """Put constant columns between those of a pull."""
        arrays, first, before = [], 0, 0
        for (begin, end), constant in zip(self.constant, constants, strict=True):
            until = first + begin - before
            arrays += [_cut(pull, (first, until)), constant]
            first, before = until, end
        return jnp.concatenate([*arrays, pull[..., first:]], axis=-1) if arrays else pull


def _in_order(pieces: Sequence[Piece], of: _Of) -> list[int]:
    """Return which pieces the drive or the pull consists of, from its first column to its last."""
    columns = {i: getattr(piece, of) for i, piece in enumerate(pieces) if getattr(piece, of)}
    return sorted(columns, key=lambda i: columns[i])


def _cut(array: Any, columns: Columns) -> Any:
    return array[..., slice(*columns)]


def signals_of(cell: Step, carry: Carry, x: Any) -> Signals | None:
    """Return how a cell's `update` takes its signals.

    None where a step is not split as `jaxrnn.typing.SplitCell` has it: one array of floats each for input,
    drive and pull, a tree of floats for weights and carry, and no weights in `update`.

    Args:
      cell: the cell.
      carry: a carry of one step, leaves [*B, H].
      x: an input of one step [*B, F].
    """
    if getattr(cell, "num_feature_axes", 1) != 1 or not parts_make_step(cell, carry, x):
        return None
    if not all(map(is_float, jax.tree.leaves((cell, carry)))) or not is_float(x):
        return None
    drive, pull = jax.eval_shape(cell.project, x), jax.eval_shape(cell.mix, carry)
    if not (is_float(drive) and is_float(pull)):
        return None
    program = jax.make_jaxpr(lambda cell, *step: cell.update(*step))(cell, carry, drive, pull)
    *others, drive_var, pull_var = program.jaxpr.invars
    weights = others[: len(jax.tree.leaves(cell))]
    if any(_readers(program.jaxpr, weight) for weight in weights):
        return None
    pieces = tuple(_pieces(program.jaxpr, drive_var, pull_var))
    sides = [any(piece.drive for piece in pieces), any(piece.pull for piece in pieces)]
    if not any(sides) or (drive.dtype != pull.dtype and not all(sides)):
        return None
    return _without_constants(
        pieces, jax.make_jaxpr(lambda cell, carry: cell.mix(carry))(cell, carry), len(weights)
    )


def _without_constants(pieces: tuple[Piece, ...], mix: ClosedJaxpr, weights: int) -> Signals:
    """Take out the pieces of the pull that `mix` puts beside others and that do not depend on the carry.

    Args:
      pieces: all of them.
      mix: the program of `mix`, of the cell's leaves and the carry's.
      weights: how many leaves the cell has.
    """
    program, (pull,) = mix.jaxpr, mix.jaxpr.outvars
    varying, settled = {*program.invars[weights:], *program.constvars}, []
    for eqn in program.eqns:
        if varying.isdisjoint(v for v in eqn.invars if isinstance(v, Var)):
            settled.append(eqn)
        else:
            varying.update(eqn.outvars)
    maker = next((eqn for eqn in program.eqns if pull in eqn.outvars), None)
    axis = len(pull.aval.shape) - 1
    if maker is None or maker.primitive.name != "concatenate" or maker.params["dimension"] != axis:
        return Signals(pieces)
    fixed = {columns: v for columns, v in _beside(maker.invars).items() if v not in varying}
    live = tuple(piece for piece in pieces if piece.drive or piece.pull not in fixed)
    if len(live) == len(pieces) or not any(piece.pull for piece in live):
        return Signals(pieces)
    constant = tuple(sorted(piece.pull for piece in pieces if piece.pull and piece not in live))
    alone = program.replace(
        constvars=[],
        invars=program.invars[:weights],
        outvars=[fixed[columns] for columns in constant],
        eqns=settled,
    )
    return Signals(live, constant, jaxpr_as_fun(ClosedJaxpr(alone, ())))


def _pieces(program: Any, drive: Any, pull: Any) -> Iterator[Piece]:
    of_pull = _split(program, pull)
    for columns, var in _split(program, drive).items():
        added = [other for other, its in of_pull.items() if _are_added(program, var, its)]
        yield Piece(columns, *added or [None])
        for other in added:
            del of_pull[other]
    yield from (Piece(None, other) for other in of_pull)


def _split(program: Any, var: Any) -> dict[Columns, Any]:
    """Return what a variable is split into before anything else reads it, by columns."""
    (reader, *others) = _readers(program, var) or [program]
    axis = len(var.aval.shape) - 1
    is_split = reader is not program and reader.primitive.name == "split"
    if others or not is_split or reader.params["axis"] != axis:
        return _beside([var])
    return _beside(reader.outvars)


def _beside(variables: Sequence[Any]) -> dict[Columns, Any]:
    """Return variables that stand side by side, by their columns; none that is empty."""
    ends = [0, *itertools.accumulate(var.aval.shape[-1] for var in variables)]
    found = zip(itertools.pairwise(ends), variables, strict=True)
    return {columns: var for columns, var in found if columns[1] > columns[0]}


def _are_added(program: Any, drive: Any, pull: Any) -> bool:
    """Tell whether one addition is the only reader of both variables."""
    readers = {id(reader): reader for var in (drive, pull) for reader in _readers(program, var)}
    (first, *others) = readers.values() or (program,)
    added = not others and first is not program and first.primitive.name == "add"
    return added and {*map(id, first.invars)} == {id(drive), id(pull)}


def _readers(program: Any, var: Any) -> list[Any]:
    """Return what reads a variable: equations, and the program itself where the variable is a result."""
    readers = [eqn for eqn in program.eqns if any(v is var for v in eqn.invars)]
    return readers + [program] * any(v is var for v in program.outvars)
