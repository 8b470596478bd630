"""Whether a step can be split: what its traced program shows of the promises of a `SplitCell`.

The four names of a split cell (`jaxrnn.typing`) prove nothing. A subclass may put something around its parts,
by a `step` or `__call__` of its own, and a part may break its promise. So whatever uses the parts asks here
first. Three things are read from traced programs, whatever the weights are:

- *The parts make the step.* The program of the step and that of the parts, one after the other, compute the
  same values. Values are numbered: two are the same if the same operation makes them of the same values, in
  whatever order (Alpern, Wegman & Zadeck 1988, "Detecting equality of variables in programs").
- *`mix` is affine in the carry.* Every operation between carry and pull is linear in what depends on the
  carry, or adds a constant: this is what ``jax.linear_transpose`` asks for, so JAX itself decides.
- *`update` works unit by unit.* The axis of units is followed through its program. An operation may act on
  each entry alone, move entries without parting units and gates, or reduce other axes.

The answer is kept for each class and form of its arrays. A step that fails is not split: it takes the general
path, which is right for any step.

Weakness: what is not in the lists below counts as mixing units, and a derivative rule of the user's own
(``jax.custom_jvp``) makes two calls of one function differ. Either costs speed, never a number.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from jaxrnn.jaxprs import Atom, Equation, Flat, flat, flattened
from jaxrnn.typing import ArrayLike, Carry, SplitCell, prepared

_R = TypeVar("_R")


class SplitWarning(UserWarning):
    """A cell with the parts of a split cell breaks a promise of theirs, and takes the general path."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What the programs of a step show.

    Attributes:
      parts_make_step: the step is `project`, `mix`, `update` and `readout`, and nothing besides.
      obstacle: why the step is not split, as the end of a sentence about it; "" where it is.
      breaks_promise: it is its parts, and one of them breaks its promise.
    """

    parts_make_step: bool
    obstacle: str = ""
    breaks_promise: bool = False


def parts_make_step(cell: Any, carry: Carry, x: Any) -> TypeGuard[SplitCell]:
    """Tell whether a step is its four parts, and nothing besides.

    Args:
      cell: any step.
      carry: a carry of one step, or its shapes.
      x: an input of one step, or its shapes.
    """
    return isinstance(cell, SplitCell) and _finding(cell, carry, x).parts_make_step


def is_split(cell: Any, carry: Carry, x: Any) -> TypeGuard[SplitCell]:
    """Tell whether a step is its four parts, and these keep what `jaxrnn.typing.SplitCell` promises.

    Args:
      cell: any step.
      carry: a carry of one step, or its shapes.
      x: an input of one step, or its shapes.

    Warns:
      SplitWarning: the step is its parts, and one of them breaks its promise; once for each class.
    """
    if not isinstance(cell, SplitCell):
        return False
    found = _finding(cell, carry, x)
    if found.breaks_promise:
        _say_once(type(cell), found.obstacle)
    return not found.obstacle


def obstacle(cell: Any, carry: Carry, x: Any) -> str:
    """Say why a step is not split, as the end of a sentence about it; "" where it is.

    Args:
      cell: any step.
      carry: a carry of one step, or its shapes.
      x: an input of one step, or its shapes.
    """
    if not isinstance(cell, SplitCell):
        return "has no project, mix, update and readout"
    return _finding(cell, carry, x).obstacle


def mix_is_affine(cell: Any, carry: Carry) -> bool:
    """Tell whether a cell has a `mix` that is affine in the carry.

    Args:
      cell: any step.
      carry: a carry of one step, or its shapes.
    """
    return isinstance(cell, SplitCell) and _is_affine(cell, jax.tree.map(_shape, carry))


@functools.cache
def _say_once(kind: type, why: str) -> None:
    text = f"{kind.__name__} {why}; the analyses take the general path, which is slower"
    warnings.warn(text, SplitWarning, stacklevel=3)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def once_a_form(look: Callable[..., _R]) -> Callable[..., _R]:
    """Let a function see the shapes of a step alone, and keep its result for each form of a cell of arrays.

    The function is ``look(cell_of, held, carry, x, **static)``, and is then called as ``look(cell, carry, x,
    **static)``. It gets the arrays that the cell holds, by their shapes, and a function that makes the cell
    of them. A form is a structure with the shapes and dtypes of its arrays. What is no tree of arrays, such
    as a plain function, holds none, and is looked at every time.
    """

    @functools.lru_cache(maxsize=1024)
    def kept(tree: Any, forms: tuple[tuple[Any, Any], ...], static: tuple[Any, ...]) -> _R:
        cell, carry, x = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*form) for form in forms])
        return look(lambda held: held, jax.eval_shape(prepared, cell), carry, x, **dict(static))

    @functools.wraps(look)
    def seen(cell: Any, carry: Carry, x: Any, **static: Any) -> _R:
        held = jax.tree.leaves(cell)
        if not (held and all(isinstance(leaf, ArrayLike) for leaf in held)):
            return look(lambda _: cell, None, *jax.tree.map(_shape, (carry, x)), **static)
        leaves, tree = jax.tree.flatten((cell, carry, x))
        forms = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        return kept(tree, forms, tuple(static.items()))

    return seen


@once_a_form
def _finding(cell_of: Callable[[Any], SplitCell], held: Any, carry: Carry, x: Any) -> Finding:
    """Look at a cell that is made of the arrays that it holds, given by their shapes, as all others are."""
    try:
        made = _steps_alike(cell_of, held, carry, x)
    except Exception:  # a class may use these names for something else, which fails in any way
        made = False
    if not made:
        return Finding(False, "takes a step that is not project, mix, update and readout alone")
    if not jax.eval_shape(lambda held: _Flag(_is_affine(cell_of(held), carry)), held).value:
        return Finding(True, "has a mix that is not affine in the carry", breaks_promise=True)

    def signals(held, carry, x):
        return cell_of(held).project(x), cell_of(held).mix(carry)

    drive, pull = jax.eval_shape(signals, held, carry, x)
    widths = {(leaf.shape or (0,))[-1] for leaf in jax.tree.leaves(carry)}
    if len(widths) != 1 or 0 in widths:
        return Finding(True, "has a carry whose leaves are not of one width")
    (width,) = widths
    if any((leaf.shape or (1,))[-1] % width for leaf in jax.tree.leaves((drive, pull))):
        return Finding(True, "has a drive or a pull that is no whole number of gates")

    def update(carry, drive, pull, held):
        return cell_of(held).update(carry, drive, pull)

    mixing = _mixing(update, width, (carry, drive, pull), held)
    if mixing:
        why = f"has an update that does not work unit by unit ({mixing})"
        return Finding(True, why, breaks_promise=True)
    return Finding(True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Flag:
    """A decision that is taken while JAX traces, handed out of the trace."""

    value: bool = dataclasses.field(metadata={"static": True})


# The parts make the step.


def _steps_alike(cell_of: Callable[[Any], SplitCell], held: Any, carry: Carry, x: Any) -> bool:
    """Tell whether the step and its parts compute the same values."""

    def whole(held, carry, x):
        return cell_of(held)(carry, x)

    def parts(held, carry, x):
        cell = cell_of(held)
        moved = cell.update(carry, cell.project(x), cell.mix(carry))
        return moved, cell.readout(moved)

    table: dict[Any, int] = {}
    numbers, trees = [], []
    for step in (whole, parts):
        program, shapes = jax.make_jaxpr(step, return_shape=True)(held, carry, x)
        if program.effects:  # to print, for example, is more than to compute values
            return False
        inputs = [_numbered(table, ("input", i)) for i in range(len(program.jaxpr.invars))]
        numbers.append(_numbers(table, program, inputs))
        trees.append(jax.tree.structure(shapes))
    return numbers[0] == numbers[1] and trees[0] == trees[1]


def _numbered(table: dict[Any, int], term: Any) -> int:
    return table.setdefault(term, len(table))


def _numbers(table: dict[Any, int], closed: ClosedJaxpr, inputs: Sequence[int]) -> list[int]:
    """Return the numbers of a program's results, given those of its inputs."""
    program = flattened(closed)
    known = dict(zip(program.inputs, inputs, strict=True))
    for variable, array in zip(program.constant_variables, program.constants, strict=True):
        known[variable] = _numbered(table, ("constant", *_value(array)))

    def of(atom: Atom) -> int:
        if isinstance(atom, Literal):
            return _numbered(table, ("constant", *_value(atom.val)))
        return known[atom]

    for equation in program.equations:
        settings = tuple(sorted((key, _fixed(value)) for key, value in equation.params.items()))
        term = (equation.name, settings, *map(of, equation.inputs))
        for i, variable in enumerate(equation.outputs):
            known[variable] = _numbered(table, (term, i))
    return list(map(of, program.outputs))


def _value(array: Any) -> tuple[Any, ...]:
    """Return what tells a constant from others: its numbers, or itself where they cannot be looked at."""
    if isinstance(array, np.ndarray | np.generic | bool | int | float | complex):
        plain = np.asarray(array)
        return plain.dtype, plain.shape, plain.tobytes()
    return (id(array),)


def _fixed(value: Any) -> Any:
    """Return a setting of an operation as text, in which programs of the same operations are the same."""
    return str(value)


# mix is affine.


def _is_affine(cell: SplitCell, carry: Carry) -> bool:
    """Tell whether JAX can transpose `mix`, and so all it does to the carry is linear, but for constants."""
    pull = jax.eval_shape(cell.mix, carry)
    try:
        jax.eval_shape(jax.linear_transpose(cell.mix, carry), pull)
    except Exception:  # JAX has no one error for an operation that is not linear
        return False
    return True


# update works unit by unit.

_RULED = {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr", "checkpoint": "jaxpr"}
"""Calls of programs with a derivative rule or memory of their own: the parameter that holds the program."""

_ENTRYWISE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp
    complex conj convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2
    expm1 floor ge gt igamma igammac imag integer_pow is_finite le lgamma log log1p logistic lt max min
    mul ne neg nextafter not or polygamma pow real reduce_precision rem round rsqrt select_n sign sin
    sinh sqrt square stop_gradient sub tan tanh xor
"""
"""Names of operations that act on each entry alone."""


class _MixesUnits(Exception):  # noqa: N818  it ends a walk, and is no error
    """An operation was met that joins entries of different units, or may."""


def _mixing(update: Callable[..., Any], width: int, signals: Any, held: Any) -> str:
    """Name what in `update` may let one unit act on another; "" where nothing does."""
    program, _ = flat(update, *signals, held)
    followed = len(jax.tree.leaves(signals))
    axes = [
        len(program.aval(v).shape) - 1 if i < followed else None
        for i, v in enumerate(program.inputs)
    ]
    try:
        ends = _followed(program, axes, width)
    except _MixesUnits as found:
        return str(found)
    results = zip(ends, map(program.aval, program.outputs), strict=True)
    stay = all(axis in (None, len(aval.shape) - 1) for axis, aval in results)
    return "" if stay else "units end in another axis"


_Axis = int | None
"""The axis whose entries i belong to the units i modulo H; None of what does not depend on them."""


def _followed(program: Flat, axes: Sequence[_Axis], width: int) -> list[_Axis]:
    """Return the axis of units of each result, given those of the inputs."""
    known: dict[Atom, _Axis] = dict(zip(program.inputs, axes, strict=True))

    def of(atom: Atom) -> _Axis:
        return None if isinstance(atom, Literal) else known.get(atom)

    for equation in program.equations:
        sources = list(map(of, equation.inputs))
        if all(axis is None for axis in sources):
            results: list[_Axis] = [None] * len(equation.outputs)
        elif equation.name in _RULED:
            inner = equation.params[_RULED[equation.name]]
            closed = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
            results = _followed(flattened(closed), sources, width)
        else:
            results = [_moved(equation, sources, width)] * len(equation.outputs)
        known.update(zip(equation.outputs, results, strict=True))
    return list(map(of, program.outputs))


def _moved(equation: Equation, sources: Sequence[_Axis], width: int) -> int:
    """Return where one operation puts the axis of units."""
    name, settings = equation.name, equation.params
    whole, kept = equation.input_avals, equation.output_avals
    there = [axis for axis in sources if axis is not None]
    (axis,) = set(there) if len(set(there)) == 1 else (-1,)
    before = whole[sources.index(axis)].shape if axis >= 0 else ()
    after = kept[0].shape
    if axis < 0:
        pass
    elif name in _ENTRYWISE.split() and after == before:
        return axis
    elif name in ("split", "concatenate"):
        along = settings["axis" if name == "split" else "dimension"]
        parts = kept if name == "split" else whole
        if along != axis or all(part.shape[axis] % width == 0 for part in parts):
            return axis
    elif name == "stack":
        return axis + (settings["axis"] <= axis)
    elif name == "slice":
        dense = settings["strides"] is None or settings["strides"][axis] == 1
        if dense and settings["start_indices"][axis] % width == 0 and after[axis] % width == 0:
            return axis
    elif name == "broadcast_in_dim":
        return settings["broadcast_dimensions"][axis]
    elif name == "transpose":
        return settings["permutation"].index(axis)
    elif name == "squeeze" or name.startswith(("reduce_", "arg")):
        gone = settings["dimensions" if name == "squeeze" else "axes"]
        if axis not in gone:
            return axis - sum(other < axis for other in gone)
    elif name == "reshape":
        ends = [i for i, size in enumerate(after) if size % width == 0]
        inner = math.prod(before[axis + 1 :])
        for i in ends:
            if math.prod(after[i + 1 :]) == inner:
                return i
    raise _MixesUnits(name)
