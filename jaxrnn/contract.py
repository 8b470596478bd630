"""Verification of split cells: whether a traced step has the properties that a `SplitCell` promises.

That a cell has the four methods of a split cell (`jaxrnn.typing`) proves nothing. A subclass may add
operations around these parts, in its own `step` or `__call__`, and a part may break its promise. Therefore
all code that uses the parts first calls this module. It checks three properties on traced programs, which do
not depend on the values of the weights:

- *The parts make up the step.* The program of the step and that of its parts in sequence compute the same
  values, by value numbering: two values are the same if the same operation computes them from the same
  values, in any order (Alpern, Wegman & Zadeck 1988, "Detecting equality of variables in programs").
- *`mix` is affine in the carry.* Every operation between carry and pull is linear in what depends on the
  carry, or adds a constant. ``jax.linear_transpose`` requires exactly this, so JAX itself decides.
- *`update` works unit by unit.* The axis of units is tracked through the program. Each operation must be
  elementwise, move entries without separating units from their gates, or reduce other axes.

The result is cached for each class and each set of array shapes and dtypes. A step that fails a check is not
split: it takes the general path, which is right for any step.

Weakness: an operation that is not in the lists below counts as mixing units. With a custom derivative rule
(``jax.custom_jvp``), two calls of one function count as different. Both cost speed, but never change a
result.
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
    """Warning that a part of a split cell breaks its promise, so that the cell takes the general path."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of verifying a step.

    Attributes:
      parts_make_step: the step consists of `project`, `mix`, `update` and `readout` and nothing else.
      obstacle: why the step is not split, as the end of a sentence about it; "" where it is split.
      breaks_promise: the step consists of its parts, and one of them breaks its promise.
    """

    parts_make_step: bool
    obstacle: str = ""
    breaks_promise: bool = False


def parts_make_step(cell: Any, carry: Carry, x: Any) -> TypeGuard[SplitCell]:
    """Tell whether a step consists of its four parts and nothing else.

    Args:
      cell: any step.
      carry: a carry of one step, or its shapes.
      x: an input of one step, or its shapes.
    """
    return isinstance(cell, SplitCell) and _finding(cell, carry, x).parts_make_step


def is_split(cell: Any, carry: Carry, x: Any) -> TypeGuard[SplitCell]:
    """Tell whether a step consists of its four parts, and these keep the promises of `SplitCell`.

    Args:
      cell: any step.
      carry: a carry of one step, or its shapes.
      x: an input of one step, or its shapes.

    Warns:
      SplitWarning: the step consists of its parts, and one of them breaks its promise; once for each class.
    """
    if not isinstance(cell, SplitCell):
        return False
    found = _finding(cell, carry, x)
    if found.breaks_promise:
        _say_once(type(cell), found.obstacle)
    return not found.obstacle


def obstacle(cell: Any, carry: Carry, x: Any) -> str:
    """Return why a step is not split, as the end of a sentence about it; "" where it is split.

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
    """Decorate a function of a step so that it receives only shapes and is cached by them.

    The function is defined as ``look(cell_of, held, carry, x, **static)`` and called as ``look(cell, carry,
    x, **static)``. `held` are the shapes of the arrays that the cell holds, and `cell_of` makes the cell from
    such arrays. The result is cached for each tree structure with the shapes and dtypes of its arrays. A cell
    that is not a pytree of arrays, such as a plain function, holds no arrays, and its results are not cached.
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
    """Verify the cell ``cell_of(held)``; `held`, carry and input are given by their shapes."""
    try:
        made = _steps_alike(cell_of, held, carry, x)
    except Exception:  # a class may use these names for something else, and raise anything
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
    """A boolean that is computed while JAX traces, returned from the trace as static data."""

    value: bool = dataclasses.field(metadata={"static": True})


# Whether the parts make up the step.


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
        if program.effects:  # side effects, such as printing, are not compared
            return False
        inputs = [_numbered(table, ("input", i)) for i in range(len(program.jaxpr.invars))]
        numbers.append(_numbers(table, program, inputs))
        trees.append(jax.tree.structure(shapes))
    return numbers[0] == numbers[1] and trees[0] == trees[1]


def _numbered(table: dict[Any, int], term: Any) -> int:
    return table.setdefault(term, len(table))


def _numbers(table: dict[Any, int], closed: ClosedJaxpr, inputs: Sequence[int]) -> list[int]:
    """Return the value numbers of a program's results, given those of its inputs."""
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
    """Return the key of a constant: its values if they are known on the host, otherwise its identity."""
    if isinstance(array, np.ndarray | np.generic | bool | int | float | complex):
        plain = np.asarray(array)
        return plain.dtype, plain.shape, plain.tobytes()
    return (id(array),)


def _fixed(value: Any) -> Any:
    """Return a parameter of an operation as text, which is equal for nested programs that are the same."""
    return str(value)


# Whether mix is affine.


def _is_affine(cell: SplitCell, carry: Carry) -> bool:
    """Tell whether JAX can transpose `mix`, which requires that it is affine in the carry."""
    pull = jax.eval_shape(cell.mix, carry)
    try:
        jax.eval_shape(jax.linear_transpose(cell.mix, carry), pull)
    except Exception:  # JAX raises different errors for operations that are not linear
        return False
    return True


# Whether update works unit by unit.

_RULED = {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr", "checkpoint": "jaxpr"}
"""Calls with a custom derivative rule or rematerialization, and their parameter that holds the program."""

_ENTRYWISE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp
    complex conj convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2
    expm1 floor ge gt igamma igammac imag integer_pow is_finite le lgamma log log1p logistic lt max min
    mul ne neg nextafter not or polygamma pow real reduce_precision rem round rsqrt select_n sign sin
    sinh sqrt square stop_gradient sub tan tanh xor
"""
"""Names of elementwise operations."""


class _MixesUnits(Exception):  # noqa: N818  it ends the walk through a program, and is not an error
    """Raised at an operation that combines entries of different units, or may do so."""


def _mixing(update: Callable[..., Any], width: int, signals: Any, held: Any) -> str:
    """Return the name of an operation of `update` that may mix units, or "" if there is none."""
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
"""The axis whose entry i belongs to unit i modulo H; None for a variable that depends on no unit."""


def _followed(program: Flat, axes: Sequence[_Axis], width: int) -> list[_Axis]:
    """Return the axis of units in each result, given those in the inputs."""
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
    """Return the axis of units in the outputs of one operation."""
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
