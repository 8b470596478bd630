"""Support for Flax modules that change their own variables: random counts, batch statistics, counters.

The cells of this package hold only parameters, so their step is a pure function. A Flax module may change its
variables at a step, as ``nnx.Dropout`` and ``nnx.BatchNorm`` do; ``nnx.RNN`` supports this too. The next step
then reads the changed variables. Here the variables become part of the carry,

    (carry_t+1, variables_t+1), y_t = step((carry_t, variables_t), x_t)

and after the last step they are written back to the module. They belong to no single sequence, so masks and
resets do not apply to them: a padded step changes them too.

Weakness: variables that a step adds, as ``module.sow`` does, are dropped.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrnn.steps import shapes_of_one
from jaxrnn.typing import Carry, Step
from jaxrnn.unrolling.record import Frames, Unrolled, framed_step


def has_variables(cell: nnx.Module) -> bool:
    """Tell whether a module has variables other than parameters."""
    return any(
        not isinstance(variable, nnx.Param) for _, variable in nnx.to_flat_state(nnx.state(cell))
    )


class WithoutEffects:
    """A module wrapped as a pure step; all other attributes are those of the module.

    Args:
      cell: the module.
    """

    def __init__(self, cell: nnx.Module):
        self._cell = cell
        self._form, self._params, self._variables = nnx.split(cell, nnx.Param, ...)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the module."""
        return getattr(self._cell, name)

    def __call__(self, carry: Carry, x: Any) -> tuple[Carry, Any]:
        """Take one step from the current variables of the module."""
        return self._step(self._variables, carry, x)[1]

    def _step(self, variables: Any, carry: Carry, x: Any) -> tuple[Any, tuple[Carry, Any]]:
        # Copy them: Flax lets a traced step change only variables that were created in the same trace.
        copies = jax.tree.map(lambda leaf: leaf, (self._params, variables))
        module = nnx.merge(self._form, *copies)
        result = module(carry, x)
        kept = dict(nnx.to_flat_state(variables))
        after = nnx.to_flat_state(nnx.state(module))
        return nnx.from_flat_state([(p, v) for p, v in after if p in kept]), result

    def settled(self, carry: Carry, xs: Any) -> Step:
        """Return the module itself if a step changes none of its variables, otherwise this wrapper."""
        changes = []

        def look(carry, x):
            before = jax.tree.map(jnp.asarray, self._variables)
            after, _ = self._step(before, carry, x)
            leaves = jax.tree.leaves(before), jax.tree.leaves(after)
            changes.append(any(a is not b for a, b in zip(*leaves, strict=True)))

        jax.eval_shape(look, carry, shapes_of_one(xs))
        return self if any(changes) else self._cell

    def threaded(self, initial: Carry) -> Step:
        """Return the step over `Frames` whose carry is the pair of the module's variables and its carry."""

        def step(carry: Any, frame: Frames) -> Any:
            variables, own = carry
            found = []

            def call(own, x):
                variables_after, result = self._step(variables, own, x)
                found.append(variables_after)
                return result

            moved, y = framed_step(call, initial)(own, frame)
            return (found[0], moved), y

        return step

    def start(self, carry: Carry) -> Any:
        """Return the carry of the threaded step."""
        return self._variables, carry

    def finish(self, done: Unrolled) -> Unrolled:
        """Write the last variables back to the module, and return the results without them."""
        variables, carry = done.carry
        nnx.update(self._cell, variables)
        return dataclasses.replace(done, carry=carry, carries=done.carries[1])
