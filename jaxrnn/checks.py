"""Argument checks with one form of error message: the argument, what it got and what was expected.

Every invalid argument of this package raises an `InputError` with the message

    <argument>: got <what it got>; expected <what was expected>

`InputError` is a ``ValueError``, so callers need not import it. The command line catches only `InputError`:
a mistake of the user is reported in one line, and a bug of this package still shows its traceback.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

_NAMED = 8
"""The largest number of list entries that an error names, enough for the carries of all cells here."""

_LENGTH = 200
"""The largest number of characters of a value that an error quotes."""


class InputError(ValueError):
    """Raised for an argument, file or setting that cannot be used."""


def refuse(
    argument: str, got: object, expected: str, error: type[InputError] = InputError
) -> NoReturn:
    """Raise an `InputError`, or a subclass of it, with the message of this module."""
    raise error(f"{argument}: got {got}; expected {expected}")


def describe(x: Any) -> str:
    """Describe a value: dtype and shape of an array, class of a module, otherwise type and value."""
    if isinstance(getattr(x, "shape", None), tuple) and hasattr(x, "dtype"):
        return f"{x.dtype}{list(x.shape)}"
    if isinstance(x, list | tuple) and len(x) > _NAMED:
        return f"a {type(x).__name__} of {len(x)} entries, the first {describe(x[0])}"
    if isinstance(x, list):
        return "[" + ", ".join(map(describe, x)) + "]"
    if isinstance(x, tuple):
        return "(" + ", ".join(map(describe, x)) + (",)" if len(x) == 1 else ")")
    if isinstance(x, nnx.Module | nnx.Rngs):
        return f"{type(x).__module__.split('.')[0]}.{type(x).__name__}"
    if isinstance(x, type):
        return f"the class {x.__name__}"
    text = repr(x)
    return f"{type(x).__name__} {text if len(text) <= _LENGTH else text[:_LENGTH] + '…'}"


def concrete(x: Any) -> bool:
    """Tell whether an array's values are known, as they are unless JAX traces the code."""
    return not isinstance(x, Tracer)


def positive(argument: str, value: Any) -> None:
    """Require a finite number above zero."""
    if not _is_real(value) or not 0 < float(value) < math.inf:
        _refuse_number(argument, value, "a number above 0")


def not_negative(argument: str, value: Any) -> None:
    """Require a finite number of zero or more."""
    if not _is_real(value) or not 0 <= float(value) < math.inf:
        _refuse_number(argument, value, "a number of 0 or more")


def positive_float32(argument: str, value: Any) -> None:
    """Require a number above zero that float32 represents without underflow or overflow."""
    limits = np.finfo(np.float32)
    low, high = float(limits.tiny), float(limits.max)
    if not _is_real(value) or not low <= value <= high:
        expected = f"a number above 0 that float32 holds, from {low:.2g} to {high:.2g}"
        _refuse_number(argument, value, expected)


def not_negative_float32(argument: str, value: Any) -> None:
    """Require zero, or a number above zero that float32 represents."""
    not_negative(argument, value)
    if value:
        positive_float32(argument, value)


def finite_float32(argument: str, value: Any) -> None:
    """Require a finite number that float32 represents without overflow."""
    if not _is_real(value) or not abs(float(value)) <= float(np.finfo(np.float32).max):
        _refuse_number(argument, value, "a finite number that float32 holds")


def rate(argument: str, value: Any) -> None:
    """Require a dropout rate: 0 ≤ value < 1."""
    if not (_is_real(value) and 0 <= value < 1):
        _refuse_number(argument, value, "a rate from 0 up to, not including, 1")


def _refuse_number(argument: str, value: Any, expected: str) -> NoReturn:
    """Refuse a number; refuse arrays of any value, because the number has to be static for compilation."""
    if isinstance(value, jax.Array | np.ndarray):
        refuse(argument, describe(value), f"{expected}, of Python's (float(x) makes one)")
    refuse(argument, repr(value), expected)


def _is_real(value: Any) -> bool:
    """Tell whether a value is a real number of Python or NumPy."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def number(argument: str, value: Any) -> float:
    """Return a finite number as a Python float; it may be given as an array without axes."""
    scalar = isinstance(value, jax.Array | np.ndarray) and value.ndim == 0
    numeric = scalar and isinstance(value.dtype, np.dtype)  # a random key has no number
    plain = value.item() if numeric and concrete(value) else value
    if not _is_real(plain) or not math.isfinite(plain):
        refuse(argument, describe(value) if scalar else repr(value), "a finite number")
    return float(plain)


def interval(argument: str, value: Any, low: float, high: float) -> tuple[float, float]:
    """Return a pair (least, largest) as floats; require low ≤ least < largest ≤ high."""
    pair = tuple(value) if isinstance(value, Sequence) else ()
    # Converted to Python floats, because NumPy's float16 overflows where it is compared with a larger limit.
    ends = [float(end) for end in pair if _is_real(end)]
    if len(pair) != 2 or len(ends) != 2 or not low <= ends[0] < ends[1] <= high:
        expected = f"(least, largest) with {low:g} ≤ least < largest ≤ {high:.6g}"
        refuse(argument, repr(value), expected)
    return ends[0], ends[1]


def count(argument: str, value: Any) -> None:
    """Require a whole number above zero."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < 1:
        refuse(argument, repr(value), "a whole number above 0")


def function(argument: str, value: Any) -> None:
    """Require a callable."""
    if not callable(value):
        refuse(argument, repr(value), "a function, such as jnp.tanh")


def within(argument: str, value: Any, low: int, high: int, why: str = "") -> None:
    """Require a whole number from `low` to `high`; `why` says what determines the bounds."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or not low <= int(value) <= high:
        refuse(argument, repr(value), f"a whole number from {low} to {high}{why}")


def counts(**values: Any) -> None:
    """Require whole numbers above zero; the keyword names the argument."""
    for argument, value in values.items():
        count(argument, value)


def sequences(argument: str, x: Any) -> None:
    """Require an array with at least one axis, which is time; a list is refused."""
    if not is_array(x):
        refuse(argument, f"a {type(x).__name__}", "an array [T, *B] (jnp.asarray makes one)")
    if not x.shape:
        refuse(argument, describe(x), "an array [T, *B]")


def is_array(x: Any) -> bool:
    """Tell whether a value is a JAX or NumPy array, possibly a traced one."""
    return isinstance(x, jax.Array | np.ndarray | np.generic)


def arrays(argument: str, tree: Any) -> None:
    """Require a tree whose leaves are numbers, arrays of numbers or random keys."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        try:
            plain = jnp.asarray(leaf) if isinstance(leaf, numbers.Number) else leaf
            fits = is_array(leaf) or isinstance(leaf, numbers.Number)
            fits = fits and jax.dtypes.result_type(plain) is not None
        except (TypeError, OverflowError):  # NumPy arrays of objects or text, huge integers
            fits = False
        if not fits:
            name = argument + jax.tree_util.keystr(path)
            kind = "a ShapeDtypeStruct of " if isinstance(leaf, jax.ShapeDtypeStruct) else ""
            refuse(name, kind + describe(leaf), "an array of numbers (jnp.asarray makes one)")


def as_array(argument: str, value: Any) -> jax.Array:
    """Convert a value, such as a list of numbers, to a JAX array, or refuse it."""
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError, OverflowError):
        refuse(argument, describe(value), "an array of numbers")
    if not isinstance(array.dtype, np.dtype):
        refuse(argument, describe(value), "an array of numbers")
    # JAX truncates wider integers to its own width: 2³² + 3 would become 3.
    if array.dtype.kind in "iu" and concrete(array) and not isinstance(value, jax.Array):
        wide = host_array(argument, value)
        if (wide != np.asarray(array)).any():
            got = f"values from {wide.min()} to {wide.max()}"
            refuse(argument, got, f"values that {array.dtype} holds")
    return array


def host_array(argument: str, value: Any) -> np.ndarray:
    """Convert a value, such as a list of numbers, to a NumPy array, or refuse it."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError):
        refuse(argument, describe(value), "an array of numbers")


def floating_dtype(argument: str, dtype: Any) -> None:
    """Require a dtype of real floats."""
    try:
        fits = not is_array(dtype) and jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        refuse(argument, describe(dtype), "a dtype of floats, such as jnp.float32")


def floating(argument: str, x: Any) -> None:
    """Require an array of floats, because integers have no gradient to analyse."""
    if not is_array(x):
        refuse(argument, f"a {type(x).__name__}", "a floating-point array (jnp.asarray makes one)")
    floating_entries(argument, x)


def floating_entries(argument: str, x: Any) -> None:
    """Require an array of floats, or a shape with a dtype of floats."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        refuse(argument, describe(x), "a floating-point array (convert it with .astype)")


def features(argument: str, x: Any, in_features: int, dtype: Any, owner: str) -> None:
    """Require floats of the owner's dtype whose last axis has size `in_features`."""
    floating(argument, x)
    if jnp.ndim(x) < 1 or x.shape[-1] != in_features:
        refuse(argument, describe(x), f"{in_features} features (in_features) in the last axis")
    if x.dtype != dtype:
        refuse(argument, f"dtype {x.dtype}", f"the {owner}'s own, {dtype} (cast one of the two)")


def finite(argument: str, tree: Any) -> None:
    """Require a tree of numbers without NaN and infinity; the error locates the first of them."""
    arrays(argument, tree)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not concrete(leaf) or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            continue
        bad = ~np.isfinite(np.asarray(leaf))
        if bad.any():
            where = [int(i) for i in np.argwhere(bad)[0]]
            name = argument + jax.tree_util.keystr(path)
            refuse(
                name, f"{int(bad.sum())} non-finite values, the first at {where}", "finite values"
            )


def shape(argument: str, x: Any, expected: Sequence[Any], legend: str) -> None:
    """Require an array of the shape `expected`; `legend` names its axes, as in "[T, *B]"."""
    if tuple(jnp.shape(x)) != tuple(expected):
        refuse(argument, describe(x), f"shape {list(expected)}, {legend}")


def alike(argument: str, tree: Any, model: Any, expected: str) -> None:
    """Require a tree with the structure, shapes and dtypes of `model`."""

    def form(x: Any) -> Any:
        leaves, structure = jax.tree.flatten(x)
        return structure, [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]

    if form(tree) != form(model):
        refuse(argument, describe(tree), f"{describe(model)}, {expected}")


def choice(argument: str, value: str, options: Iterable[str]) -> None:
    """Require a name from `options`; the error suggests the nearest one."""
    options = list(options)
    if value not in options:
        near = difflib.get_close_matches(value, options, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        refuse(argument, repr(value), f"one of {', '.join(options)}{hint}")
