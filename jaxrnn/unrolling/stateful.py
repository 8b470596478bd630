"""Stateful unrolling of a sequence that arrives piece by piece: each call continues the preceding one."""

from __future__ import annotations

from typing import Any

import jax

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.steps import begin
from jaxrnn.typing import Carry, Step
from jaxrnn.unrolling.core import unroll
from jaxrnn.unrolling.record import Unrolled


class Stateful:
    """`unroll` with a stored carry: each call starts from the last carry of the preceding call.

    The gradient stops between calls (truncated BPTT, one window per call). Use it outside ``jax.jit``, as in
    evaluation or online prediction. Inside ``jax.jit`` pass the carry on explicitly:
    ``unroll(cell, xs, carry=jax.lax.stop_gradient(done.carry), reset_carry=start)``. A reset inside a piece
    goes back to the carry from which the stream began.

    Args:
      cell: the cell.
      carry: the carry of the first call; by default the cell's own initial carry.

    Attributes:
      carry: the carry after the last call, leaves [*B, H]; None before the first.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> cell = jaxrnn.GRUCell(3, 8, rngs=nnx.Rngs(0))
      >>> xs = jnp.ones((20, 4, 3))
      >>> stream = jaxrnn.Stateful(cell)
      >>> pieces = [stream(xs[:12]), stream(xs[12:])]
      >>> bool(jnp.allclose(pieces[1].carry, jaxrnn.unroll(cell, xs).carry))
      True
    """

    @checked
    def __init__(self, cell: Step, carry: Carry | None = None):
        self.cell = cell
        self.carry = carry
        self._first = carry

    def __call__(self, xs: Any, **options: Any) -> Unrolled:
        """Unroll the cell over the next piece [T, *B, F]; `options` are those of `unroll`.

        Raises:
          InputError: the call is traced by ``jax.jit`` or a derivative, where the carry cannot be stored, or
            `unroll` refuses an argument.
        """
        for name in ("carry", "reverse"):
            if name in options:
                checks.refuse(name, checks.describe(options[name]), "nothing: pieces come in order")
        carry = jax.lax.stop_gradient(self.carry)
        done = unroll(self.cell, xs, carry=carry, reset_carry=self._start(xs), **options)
        if not all(checks.concrete(leaf) for leaf in jax.tree.leaves(done.carry)):
            checks.refuse(
                "Stateful", "a call under jax.jit or jax.grad", "unroll(..., carry=...) there"
            )
        self.carry = done.carry
        return done

    def _start(self, xs: Any) -> Carry:
        """Return the carry from which the stream began, which is also the reset carry."""
        return begin(self.cell, xs, self._first)[0]

    @checked
    def reset(self, carry: Carry | None = None) -> None:
        """Restart the stream from `carry`, or from the cell's own initial carry."""
        self.carry = self._first = carry
