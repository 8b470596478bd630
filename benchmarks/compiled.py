"""A function compiled ahead of its runs: what that took, and what memory the program asks for."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.timing import turn


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled function.

    Attributes:
      program: to call with arrays of the shapes it was compiled for.
      seconds: to trace and compile it.
      temporaries: bytes that it asks for beside arguments and results; None where JAX does not know.
    """

    program: Callable[..., Any]
    seconds: float
    temporaries: int | None

    def taking_turns(self, *arguments: Any) -> Callable[[], float]:
        """Return a call that takes a turn (`benchmarks.timing`) on these arguments."""
        return functools.partial(turn, lambda: jax.block_until_ready(self.program(*arguments)))


def compiled(function: Callable[..., Any], *arguments: Any) -> Compiled:
    """Compile a function for arguments, of which the shapes are enough."""
    began = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - began
    analysed = program.memory_analysis()
    return Compiled(program, seconds, None if analysed is None else analysed.temp_size_in_bytes)
