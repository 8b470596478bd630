"""A sequence that arrives piece by piece: each call goes on where the one before stopped."""

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
    """`unroll` with a memory: the carry of one call is where the next one starts.

    The gradient stops between calls (truncated BPTT, one window a call). For use outside ``jax.jit``, as in
    evaluation or online prediction; inside, hand the carry on yourself:
    ``unroll(cell, xs, carry=jax.lax.stop_gradient(done.carry), reset_carry=start)``. A reset inside a piece
    goes back to where the stream began.

    Args:
      cell: the cell.
      carry: where the first call starts; by default the cell's own initial carry.

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
        """Carry the cell through the next piece [T, *B, F]; `options` are those of `unroll`.

        Raises:
          InputError: the call is traced by ``jax.jit`` or a derivative, where no memory may be written; or
            what `unroll` refuses.
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
        """Return where the stream began, and where episodes begin."""
        return begin(self.cell, xs, self._first)[0]

    @checked
    def reset(self, carry: Carry | None = None) -> None:
        """Start anew, from `carry` or the cell's own initial carry."""
        self.carry = self._first = carry
