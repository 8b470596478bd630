"""Cells of other libraries that change their own variables: random counts, batch statistics, counters.

Our cells hold parameters alone, so a step is a function. A Flax module may change its variables at a step, as
``nnx.Dropout`` and ``nnx.BatchNorm`` do, and as ``nnx.RNN`` allows: what a step leaves in them the next one
finds. Here they become part of the carry,

    (carry_t+1, variables_t+1), y_t = step((carry_t, variables_t), x_t)

and when all steps are done the module has the last ones. They belong to no sequence, so masks and resets
leave them alone: a padded step changes them too.

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
    """Tell whether a module has variables that are no parameters."""
    return any(
        not isinstance(variable, nnx.Param) for _, variable in nnx.to_flat_state(nnx.state(cell))
    )


class WithoutEffects:
    """A module as a step that changes nothing; other attributes are the module's.

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
        """Take one step from the variables that the module has now."""
        return self._step(self._variables, carry, x)[1]

    def _step(self, variables: Any, carry: Carry, x: Any) -> tuple[Any, tuple[Carry, Any]]:
        # Copies: only variables made while JAX traces the step may be changed there.
        copies = jax.tree.map(lambda leaf: leaf, (self._params, variables))
        module = nnx.merge(self._form, *copies)
        result = module(carry, x)
        kept = dict(nnx.to_flat_state(variables))
        after = nnx.to_flat_state(nnx.state(module))
        return nnx.from_flat_state([(p, v) for p, v in after if p in kept]), result

    def settled(self, carry: Carry, xs: Any) -> Step:
        """Return the module itself where a step changes none of its variables, and otherwise this step."""
        changes = []

        def look(carry, x):
            before = jax.tree.map(jnp.asarray, self._variables)
            after, _ = self._step(before, carry, x)
            leaves = jax.tree.leaves(before), jax.tree.leaves(after)
            changes.append(any(a is not b for a, b in zip(*leaves, strict=True)))

        jax.eval_shape(look, carry, shapes_of_one(xs))
        return self if any(changes) else self._cell

    def threaded(self, initial: Carry) -> Step:
        """Return the step over `Frames` whose carry is a pair of the module's variables and its own carry."""

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
        """Give the module its last variables; return what belongs to the carry alone."""
        variables, carry = done.carry
        nnx.update(self._cell, variables)
        return dataclasses.replace(done, carry=carry, carries=done.carries[1])
