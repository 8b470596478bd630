"""The sequential depth of a program: the longest chain of operations each of which waits for the one before.

It is what bounds the time of a program on a machine with as many processors as one likes (the *span* of a
parallel computation, Brent 1974). Operations on whole arrays count once; a loop counts its body once for each
round.

Weakness: all operations count the same, and what a compiler fuses is not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Jaxpr, Literal


def sequential_depth(function: Callable[..., Any], *arguments: Any, rounds: int = 1) -> int:
    """Return the longest chain of dependent operations of a function.

    Args:
      function: what is traced.
      arguments: what it is traced with.
      rounds: how often the bodies of loops without a fixed length (``lax.while_loop``) run.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrnn.claims.depth import sequential_depth
      >>> sequential_depth(lambda x: jnp.sin(x) + jnp.cos(x), 1.0)
      2
      >>> sequential_depth(
      ...     lambda x: jax.lax.scan(lambda s, _: (jnp.sin(s), None), x, length=9)[0], 1.0
      ... )
      9
    """
    return _depth(jax.make_jaxpr(function)(*arguments).jaxpr, rounds)


def _depth(jaxpr: Jaxpr, rounds: int) -> int:
    depths: dict[Any, int] = {}
    longest = 0
    for equation in jaxpr.eqns:
        before = max(
            (depths.get(v, 0) for v in equation.invars if not isinstance(v, Literal)), default=0
        )
        after = before + _depth_of(equation, rounds)
        depths.update(dict.fromkeys(equation.outvars, after))
        longest = max(longest, after)
    return longest


def _depth_of(equation: Any, rounds: int) -> int:
    """Return the depth of one equation: of the programs within it, as often as they run."""
    inner = [
        _depth(getattr(program, "jaxpr", program), rounds)
        for value in equation.params.values()
        for program in (value if isinstance(value, tuple | list) else [value])
        if isinstance(getattr(program, "jaxpr", program), Jaxpr)
    ]
    if not inner:
        return 1
    name = equation.primitive.name
    if name == "while":
        return rounds * sum(inner)
    return max(inner) * (equation.params["length"] if name == "scan" else 1)
