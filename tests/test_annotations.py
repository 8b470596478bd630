"""Annotations are enforced: what fits is passed on as it is, what does not is refused by name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxrnn.annotations import checked
from jaxrnn.checks import InputError
from jaxrnn.typing import ArrayLike, Key


class Options(TypedDict, total=False):
    rate: float


X = jnp.zeros((5, 2, 3))
Even = Annotated[int, "an even number"]


@checked
def entrance(
    x: Float[Array, "T *B F"],
    y: Int[ArrayLike, "T *B"] | None = None,
    *,
    count: int = 1,
    share: float | Any = 0.5,
    weight: float = 1.0,
    either: int | float = 1,
    flag: bool = False,
    even: Even = 2,
    lags: Sequence[int] = (1,),
    words: list[str] | None = None,
    pair: tuple[float, float] = (0.0, 1.0),
    table: Mapping[str, int] | None = None,
    mode: Literal["dense", "sparse"] = "dense",
    key: Key | None = None,
    rngs: nnx.Rngs | None = None,
    call: Callable[[Any], Any] = jnp.tanh,
    **options: Unpack[Options],
) -> dict[str, Any]:
    del x, y
    given = {"count": count, "share": share, "weight": weight, "flag": flag, "even": even}
    given |= {"either": either}
    given |= {"lags": lags, "words": words, "pair": pair, "table": table, "mode": mode}
    return given | {"key": key, "rngs": rngs, "call": call} | options


anything: Any = entrance
"""The entrance as a caller without a type checker sees it."""


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", 3, 3),
        ("count", np.int64(3), 3),
        ("count", jnp.int32(3), 3),
        ("weight", 2, 2),
        ("weight", 10**40, 1e40),
        ("weight", np.uint64(2**63), 2.0**63),
        ("either", 2, 2),
        ("either", 2.5, 2.5),
        ("weight", np.float32(0.5), 0.5),
        ("weight", jnp.float32(0.5), 0.5),
        ("weight", float("inf"), float("inf")),
        ("flag", np.bool_(True), True),
        ("share", "anything", "anything"),
        ("lags", [1, 2], [1, 2]),
        ("lags", range(3), range(3)),
        ("lags", np.arange(3), [0, 1, 2]),
        ("words", ["a"], ["a"]),
        ("pair", (1, 2.0), (1, 2.0)),
        ("table", {"a": 1}, {"a": 1}),
        ("mode", "sparse", "sparse"),
        ("rate", np.float32(0.5), 0.5),
    ],
)
def test_what_fits_is_passed_on(name, value, expected):
    taken = entrance(X, **{name: value})[name]
    assert taken == expected
    assert type(taken) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "got", "expected"),
    [
        ("x", [1.0], "[float 1.0]", "an array of floats [T, *B, F]"),
        ("x", None, "NoneType None", "an array of floats [T, *B, F]"),
        ("x", jnp.zeros(3), "float32[3]", "an array of floats [T, *B, F]"),
        ("x", jnp.zeros((3, 4), int), "int32[3, 4]", "an array of floats [T, *B, F]"),
        ("x", jax.ShapeDtypeStruct((3, 4), jnp.float32), "a ShapeDtypeStruct", "an array of floats"),
        ("y", np.zeros((5, 4), int), "int64[5, 4]", "an array of integers [T, *B] or None with T = 5"),
        ("y", np.zeros(4, int), "int64[4]", "an array of integers [T, *B] or None with T = 5, *B = (2,)"),
        ("count", 2.5, "float 2.5", "a whole number within 32 bits"),
        ("count", jnp.float32(2), "float32[]", "a whole number"),
        ("count", True, "bool True", "a whole number"),
        ("count", 2**63, "int 9223372036854775808", "a whole number within 32 bits"),
        ("count", np.arange(3), "int64[3]", "a whole number"),
        ("weight", "1", "str '1'", "a number"),
        ("weight", 10**400, "int 1000", "a number"),
        ("weight", float("nan"), "float nan", "a number"),
        ("weight", 1j, "complex 1j", "a number"),
        ("flag", "yes", "str 'yes'", "True or False"),
        ("flag", 1, "int 1", "True or False"),
        ("even", "2", "str '2'", "an even number"),
        ("lags", "12", "str '12'", "a sequence of a whole number"),
        ("lags", [1, "a"], "[int 1, str 'a']", "a sequence of a whole number"),
        ("lags", [*range(99), None], "a list of 100 entries, the first int 0", "a sequence"),
        ("words", ("a",), "(str 'a',)", "a list of text or None"),
        ("pair", (1.0, 2.0, 3.0), "(float 1.0", "a tuple of a number, a number"),
        ("table", {1: "a"}, "dict {1: 'a'}", "a mapping of text, a whole number"),
        ("mode", "dnse", "str 'dnse'", "one of dense, sparse"),
        ("mode", np.zeros(3), "float64[3]", "one of dense, sparse"),
        ("key", 0, "int 0", "a random key, such as jax.random.key(0)"),
        ("key", nnx.Rngs(0), "flax.Rngs", "a random key"),
        ("rngs", 0, "int 0", "nnx.Rngs, as in nnx.Rngs(0)"),
        ("call", "tanh", "str 'tanh'", "a function"),
        ("rate", "0.1", "str '0.1'", "a number"),
        ("words", "w" * 999, "str 'w", "a list of text"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(name, value, got, expected):
    with pytest.raises(InputError) as refusal:
        anything(**{"x": X, name: value})
    form = f"^{name}: got {re.escape(got)}.*; expected {re.escape(expected)}"
    assert re.match(form, str(refusal.value))
    assert len(str(refusal.value)) < 400


def test_a_traced_value_is_no_number_of_pythons():
    with pytest.raises(InputError, match="known before the code is traced"):
        jax.jit(lambda count: entrance(X, count=count))(3)


def test_a_traced_array_fits():
    jax.jit(lambda x: entrance(x)["weight"])(jnp.zeros((4, 3)))
    jax.vmap(lambda x: jnp.asarray(entrance(x)["weight"]))(jnp.zeros((4, 2, 3)))
    jax.eval_shape(lambda x: entrance(x)["weight"], jax.ShapeDtypeStruct((4, 3), jnp.float32))


def test_a_call_that_python_refuses_is_pythons():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        anything(count=3)


@checked
@dataclasses.dataclass(frozen=True)
class Settings:
    count: int = 1
    share: float = 0.5


def test_settings_are_checked():
    assert Settings(share=jnp.float32(0.25)).share == 0.25  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"^count: got str '1'; expected a whole number"):
        Settings(count="1")  # pyright: ignore[reportArgumentType]
