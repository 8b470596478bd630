"""Step Jacobians J_t = ∂s_t/∂s_{t−1}: the factors of which every BPTT gradient is a product.

For a split cell (`jaxrnn.typing.SplitCell`) the chain rule gives

    J = ∂update/∂carry + ∂update/∂pull · M ,        M = ∂mix/∂carry, the same at every step.

Because `update` works unit by unit, both of its derivatives are diagonals: one forward-mode sweep per
carry leaf and per gate finds them for all units, steps and sequences at once. A Jacobian then costs
G·H·S multiplications, where pushing S basis vectors through the step (`general_jacobians`, right for any
step) costs S times a step. The two are held equal by the tests.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from jaxrnn import checks
from jaxrnn.analysis.trajectory import Trajectory, carry_of, flat_state
from jaxrnn.steps import compiled
from jaxrnn.typing import SplitCell, Step


def jacobians(cell: Step, trajectory: Trajectory) -> Inexact[Array, "T *B S S"]:
    """Return ∂s_t/∂s_{t−1} for every step of a trajectory, [T, *B, S, S].

    Row i, column j holds ∂(s_t)_i/∂(s_{t−1})_j; entry 0 belongs to the first step. Split cells take the
    structured path, every other step the general one.

    Raises:
      InputError: the trajectory holds values that are not finite.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> cell = jaxrnn.LSTMCell(3, 8, rngs=nnx.Rngs(0))
      >>> path = jaxrnn.analysis.trace(cell, jnp.ones((20, 4, 3)))
      >>> jaxrnn.analysis.jacobians(cell, path).shape
      (20, 4, 16, 16)
    """
    if not isinstance(trajectory, Trajectory):
        checks.refuse(
            "trajectory", checks.describe(trajectory), "a Trajectory, from trace(cell, xs)"
        )
    checks.finite("trajectory", trajectory)
    if isinstance(cell, SplitCell):
        return structured_jacobians(cell, trajectory)
    return general_jacobians(cell, trajectory)


@compiled
def general_jacobians(cell: Step, trajectory: Trajectory) -> Inexact[Array, "T *B S S"]:
    """Step Jacobians of any step by forward-mode differentiation, [T, *B, S, S].

    The sequences of a batch do not act on each other, so one push moves the same basis vector in all.
    """
    depth = len(trajectory.batch)
    size = trajectory.states.shape[-1]

    def at_step(now: tuple[Any, Any]) -> Inexact[Array, "*B S S"]:
        carry, x = now
        _, push = jax.linearize(lambda carry: cell(carry, x)[0], carry)

        def column(direction: Inexact[Array, "S"]) -> Inexact[Array, "*B S"]:
            everywhere = jnp.broadcast_to(direction, (*trajectory.batch, size))
            return flat_state(push(carry_of(everywhere, carry)), depth)

        basis = jnp.eye(size, dtype=trajectory.states.dtype)
        return jax.vmap(column, out_axes=-1)(basis)

    return jax.lax.map(at_step, (trajectory.before, trajectory.xs))


@compiled
def structured_jacobians(cell: SplitCell, trajectory: Trajectory) -> Inexact[Array, "T *B S S"]:
    """Step Jacobians of a split cell from its unit-wise slopes, [T, *B, S, S]."""
    before = trajectory.before
    leaf_slopes, gate_slopes = _unit_slopes(cell, before, cell.project(trajectory.xs))
    mixing = _mixing_matrix(cell, trajectory)
    gates = mixing.reshape(len(gate_slopes[0]), -1, mixing.shape[-1])
    rows = [
        _diagonals(kept) + jnp.einsum("g...h,ghs->...hs", jnp.stack(pulled), gates)
        for kept, pulled in zip(leaf_slopes, gate_slopes, strict=True)
    ]
    return jnp.concatenate(rows, axis=-2)


def _unit_slopes(
    cell: SplitCell, before: Any, drive: Any
) -> tuple[list[list[Any]], list[list[Any]]]:
    """Return ∂update/∂carry and ∂update/∂pull as diagonals [T, *B, H].

    The first list is indexed [new leaf][old leaf], the second [new leaf][gate].
    """
    pull = cell.mix(before)
    _, push = jax.linearize(lambda carry, pull: cell.update(carry, drive, pull), before, pull)
    leaves, treedef = jax.tree.flatten(before)
    units = leaves[0].shape[-1]
    still = [jnp.zeros_like(leaf) for leaf in leaves]

    by_leaf = []
    for i, leaf in enumerate(leaves):
        tangent = [*still[:i], jnp.ones_like(leaf), *still[i + 1 :]]
        by_leaf.append(push(jax.tree.unflatten(treedef, tangent), jnp.zeros_like(pull)))
    by_gate = []
    for start in range(0, pull.shape[-1], units):
        gate = (jnp.arange(pull.shape[-1]) // units == start // units).astype(pull.dtype)
        tangent = jnp.broadcast_to(gate, pull.shape)
        by_gate.append(push(jax.tree.unflatten(treedef, still), tangent))
    return _per_new_leaf(by_leaf), _per_new_leaf(by_gate)


def _per_new_leaf(pushed: list[Any]) -> list[list[Any]]:
    return [list(column) for column in zip(*map(jax.tree.leaves, pushed), strict=True)]


def _mixing_matrix(cell: SplitCell, trajectory: Trajectory) -> Inexact[Array, "P S"]:
    """Return M = ∂mix/∂state; mix is affine, so it may be taken anywhere: at zero."""
    skip = 1 + len(trajectory.batch)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[skip:], leaf.dtype), trajectory.carries)
    by_leaf = jax.jacfwd(cell.mix)(zero)
    return flat_state(by_leaf, 1)


def _diagonals(kept: list[Any]) -> Inexact[Array, "T *B H S"]:
    """Put diagonals [T, *B, H], one an old leaf, side by side as matrices [T, *B, H, S]."""
    as_matrix = jnp.vectorize(jnp.diag, signature="(h)->(h,h)")
    return jnp.concatenate([as_matrix(slope) for slope in kept], axis=-1)
