"""Run-time checks of arguments against the annotations of the function that takes them.

    @checked
    def linear_memory(kernel: ArrayLike, input_kernel: ArrayLike, *, lags: int) -> ...

Every public function, constructor and method of this package has this decorator. It enforces the annotations,
and rejects arguments that do not fit with the error of `checks.refuse`:

    int, float, bool, str       a number or text; a zero-dimensional array becomes a Python number; NaN is
                                rejected
    Float[Array, "T *B F"]      a JAX or NumPy array with that dtype and those axes. Axes with the same name
                                must have the same size in all arguments
    Sequence[int], list[str]    every entry is checked; for numbers an array [N] is accepted
    Literal["a", "b"]           one of the values
    a class, Callable           an instance of the class, anything callable
    Annotated[X, "a text"]      as X; errors give the text as what was expected
    Any, and a union with it    not checked here; the function has its own check

The function itself checks ranges and conditions on several arguments (`jaxrnn.checks`).

A check costs some ten microseconds per argument, in Python. Under ``jax.jit`` this cost is paid once, while
JAX traces the function. Shapes and dtypes are then checked; values cannot be.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    NotRequired,
    Required,
    TypeVar,
    Union,
    Unpack,
)

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import AbstractArray, Bool, Complex, Float, Inexact, Int, Num

from jaxrnn import checks

_Entrance = TypeVar("_Entrance", bound=Callable[..., Any])

_INTEGERS = range(-(2**31), 2**31)
"""The range of an `int` argument: the integers of JAX's default dtype, enough for all counts here."""

_LARGEST_FLOAT = int(sys.float_info.max)
"""The largest magnitude of a finite `float` argument; integers may be passed too."""

_ENTRIES = {
    Float: (jnp.floating, "floats"),
    Int: (jnp.integer, "integers"),
    Bool: (jnp.bool_, "booleans"),
    Complex: (jnp.complexfloating, "complex numbers"),
    Inexact: (jnp.inexact, "floats or complex numbers"),
    Num: (jnp.number, "numbers"),
}


_Sizes = dict[str, Any]
"""Sizes of the named axes in the arguments checked so far; a ``*B`` stands for a tuple of sizes."""


class _Kind(NamedTuple):
    """A kind of values: the test whether a value belongs to it, its name in errors, and a conversion."""

    admits: Callable[[Any, _Sizes], bool]
    expected: str
    convert: Callable[[Any], Any] = lambda value: value


def checked(function: _Entrance) -> _Entrance:
    """Decorate a function so that each call checks its arguments against the annotations.

    The decorated function raises `InputError` where an argument does not fit; the module's docstring says
    what fits. For a class, such as a dataclass of settings, the constructor is decorated.
    """
    if isinstance(function, type):
        function.__init__ = _guarded(function.__init__, function)
        return function  # pyright: ignore[reportReturnType]
    return _guarded(function, function)  # pyright: ignore[reportReturnType]


def _guarded(function: Callable[..., Any], annotated: Any) -> Callable[..., Any]:
    """Return a function that first checks its arguments against the annotations of an object."""
    signature = inspect.signature(function)
    # Evaluated at the first call: an annotation may be defined further down in its module.
    kinds = functools.cache(lambda: _kinds(annotated))

    @functools.wraps(function)
    def entrance(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # raises Python's own error, which names the function
        sizes: _Sizes = {}
        for name, value in bound.arguments.items():
            bound.arguments[name] = _taken(name, value, kinds(), sizes)
        return function(*bound.args, **bound.kwargs)

    return entrance


def _kinds(annotated: Any) -> dict[str, _Kind]:
    """Return the kind of each argument, including keyword options, by name; for a class, of each field."""
    kinds = {}
    for name, hint in typing.get_type_hints(annotated, include_extras=True).items():
        if typing.get_origin(hint) is Unpack:
            (options,) = typing.get_args(hint)
            hints = typing.get_type_hints(options, include_extras=True)
            kinds |= {option: _kind(each) for option, each in hints.items()}
        else:
            kinds[name] = _kind(hint)
    return kinds


def _taken(name: str, value: Any, kinds: Mapping[str, _Kind], sizes: _Sizes) -> Any:
    """Return an argument in the form that the function receives, or refuse it."""
    if isinstance(value, dict) and name not in kinds:  # the keyword options
        return {option: _taken(option, each, kinds, sizes) for option, each in value.items()}
    kind = kinds.get(name, _ANYTHING)
    if kind.admits(value, sizes):
        return kind.convert(value)
    plain = _plain(value)
    if plain is not value and kind.admits(plain, sizes):
        return kind.convert(plain)
    expected = kind.expected
    if isinstance(value, Tracer):
        expected += ", known before the code is traced"
    if kind.admits(value, {}):  # it fits by itself, but not with the sizes of the other arguments
        expected += f" with {', '.join(f'{axis} = {size}' for axis, size in sizes.items())}"
    described = checks.describe(value)
    if isinstance(value, jax.ShapeDtypeStruct):
        described = f"a ShapeDtypeStruct of {described}"
    return checks.refuse(name, described, expected)


def _plain(value: Any) -> Any:
    """Convert an array [] or [N] to Python numbers; return any other value unchanged."""
    if isinstance(value, jax.Array | np.ndarray | np.generic) and checks.concrete(value):
        plain = value.ndim < 2 and isinstance(value.dtype, np.dtype)  # random keys have no numbers
        return value.tolist() if plain else value
    return value


def _kind(hint: Any) -> _Kind:
    """Return the kind of values that an annotation stands for."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, TypeVar):
        return _kind(hint.__bound__ or Any)
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    if origin is ClassVar:
        return _ANYTHING
    if origin in (Required, NotRequired):
        return _kind(inside[0])
    if origin is Annotated:
        texts = [each for each in inside[1:] if isinstance(each, str)]
        kind = _kind(inside[0])
        return kind._replace(expected=texts[0]) if texts else kind
    if origin in (Union, UnionType):
        return _either([_kind(each) for each in inside])
    if origin is Literal:
        return _literal(inside)
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return _array(hint)
    if Callable in (hint, origin):
        return _Kind(lambda value, sizes: callable(value), "a function")
    if isinstance(origin, type) and issubclass(origin, Collection):
        return _collection(origin, inside)
    return _instance(origin or hint)


def _either(kinds: Sequence[_Kind]) -> _Kind:
    """Return the kind of a union."""
    if _ANYTHING in kinds:
        return _ANYTHING
    texts = dict.fromkeys(kind.expected for kind in kinds)  # JAX and NumPy arrays share a text

    def convert(value: Any) -> Any:
        first = next((kind for kind in kinds if kind.admits(value, {})), _ANYTHING)
        return first.convert(value)

    return _Kind(
        lambda value, sizes: any(kind.admits(value, sizes) for kind in kinds),
        " or ".join(texts),
        convert,
    )


def _literal(options: tuple[Any, ...]) -> _Kind:
    """Return the kind of a fixed set of words or numbers."""
    return _Kind(
        lambda value, sizes: isinstance(value, str | int) and value in options,
        f"one of {', '.join(map(str, options))}",
    )


def _array(hint: Any) -> _Kind:
    """Return the kind of JAX and NumPy arrays with the dtype and axes of a jaxtyping annotation."""
    axes = hint.dim_str.split()
    like, entries = _ENTRIES.get(hint.dtype, (None, "numbers"))

    def admits(value: Any, sizes: _Sizes) -> bool:
        if not isinstance(value, jax.Array | np.ndarray):
            return False
        fits = jnp.issubdtype(value.dtype, like) if like else isinstance(value, hint)
        found = _sizes(value.shape, axes) if fits else None
        if found is None or any(sizes.get(axis, size) != size for axis, size in found.items()):
            return False
        sizes.update(found)
        return True

    legend = ", ".join(axis.replace("#", "") for axis in axes)
    return _Kind(admits, f"an array of {entries} [{legend}]")


def _sizes(shape: tuple[Any, ...], axes: Sequence[str]) -> _Sizes | None:
    """Return the sizes of an array's named axes, or None if the axes do not match."""
    for i, axis in enumerate(axes):
        if axis.startswith("*") or axis == "...":  # any number of axes: all that the others leave
            end = len(shape) - (len(axes) - i - 1)
            if end < i:
                return None
            shape = (*shape[:i], shape[i:end], *shape[end:])  # pyright: ignore[reportAssignmentType]
    if len(shape) != len(axes):
        return None
    named = dict(zip(axes, shape, strict=True))
    if any(axis.isdecimal() and int(axis) != size for axis, size in named.items()):
        return None
    # Axes that broadcast ("#B") or are computed ("T+1") are checked by the function itself.
    return {axis: size for axis, size in named.items() if axis.lstrip("*").isidentifier()}


def _collection(origin: type, inside: tuple[Any, ...]) -> _Kind:
    """Return the kind of sequences, mappings and other collections, whose entries are checked too."""
    name = "mapping" if issubclass(origin, Mapping) else origin.__name__.lower()
    fixed = issubclass(origin, tuple) and Ellipsis not in inside
    kinds = [_kind(each) for each in inside if each is not Ellipsis]

    def rows(value: Any) -> Iterable[Any]:
        if fixed:
            return [value]
        return value.items() if isinstance(value, Mapping) else ((entry,) for entry in value)

    def admits(value: Any, sizes: _Sizes) -> bool:
        if not isinstance(value, origin) or isinstance(value, str | bytes):
            return False
        return not kinds or all(
            len(row) == len(kinds)
            and all(kind.admits(entry, sizes) for kind, entry in zip(kinds, row, strict=True))
            for row in rows(value)
        )

    entries = ", ".join(kind.expected for kind in kinds)
    return _Kind(admits, f"a {name} of {entries}" if entries else f"a {name}")


def _instance(cls: Any) -> _Kind:
    """Return the kind of instances of a class; a protocol without run-time checks means any callable."""
    if getattr(cls, "_is_protocol", False) and not getattr(cls, "_is_runtime_protocol", False):
        return _Kind(lambda value, sizes: callable(value), "a function")
    return _Kind(lambda value, sizes: isinstance(value, cls), f"an instance of {cls.__name__}")


def _whole(value: Any, sizes: _Sizes) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in _INTEGERS


def _real(value: Any, sizes: _Sizes) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    size = abs(value)  # no math.isfinite here: it fails on integers that no float can hold
    # The comparison of a NumPy float returns a NumPy boolean.
    return bool(size <= _LARGEST_FLOAT or size == math.inf)


def _narrowed(value: int | float) -> int | float:
    """Convert an integer outside JAX's default integer range to a float; return others unchanged."""
    return float(value) if isinstance(value, int) and value not in _INTEGERS else value


_ANYTHING = _Kind(lambda value, sizes: True, "anything")

_SIMPLE: dict[Any, _Kind] = {
    Any: _ANYTHING,
    object: _ANYTHING,
    NoneType: _Kind(lambda value, sizes: value is None, "None"),
    bool: _Kind(lambda value, sizes: isinstance(value, bool), "True or False"),
    int: _Kind(_whole, "a whole number within 32 bits"),
    float: _Kind(_real, "a number", _narrowed),
    str: _Kind(lambda value, sizes: isinstance(value, str), "text"),
    nnx.Rngs: _Kind(
        lambda value, sizes: isinstance(value, nnx.Rngs), "nnx.Rngs, as in nnx.Rngs(0)"
    ),
}
