"""Step Jacobians J_t = ∂s_t/∂s_{t−1}: the factors whose product is the BPTT gradient.

For a split cell (`jaxrnn.typing.SplitCell`) the chain rule gives

    J = ∂update/∂carry + ∂update/∂pull · M ,        M = ∂mix/∂carry, the same at every step.

Because `update` works unit by unit, both of its derivatives are diagonal: one JVP per carry leaf and per gate
computes them for all units, steps and sequences at once. Together with M they determine the Jacobian
(`factored_jacobians`). Its entries cost at most G·H·S multiplications a carry leaf. The general method
(`general_jacobians`, valid for any step) pushes S basis vectors through the step, at S times the cost of a
step. The tests check that the two agree.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from jaxrnn import checks
from jaxrnn.analysis.trajectory import Trajectory
from jaxrnn.annotations import checked
from jaxrnn.batching import for_batch
from jaxrnn.contract import is_split, mix_is_affine, obstacle
from jaxrnn.steps import carry_of, compiled, flat_state, shapes_of_one, step_of
from jaxrnn.typing import Carry, SplitCell, Step, StepLike, weight_of_mix


@checked
def jacobians(cell: StepLike, trajectory: Trajectory) -> Inexact[Array, "T *B S S"]:
    """Return ∂s_t/∂s_{t−1} for every step of a trajectory, [T, *B, S, S].

    Row i, column j holds ∂(s_t)_i/∂(s_{t−1})_j; entry 0 belongs to the first step. Split cells take the
    structured path, all other steps the general one. Whether a cell is split is read from its traced program
    (`jaxrnn.contract`), so code that a subclass adds to the step is taken into account.

    The function compiles its own programs. Inside a program of the caller's (``jax.jit``) it is equally
    correct but, for split cells of many units on a CPU, far slower: XLA then recomputes the slopes for every
    entry of a row.

    Raises:
      InputError: the trajectory or the derivatives contain values that are not finite.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> cell = jaxrnn.LSTMCell(3, 8, rngs=nnx.Rngs(0))
      >>> path = jaxrnn.analysis.trace(cell, jnp.ones((20, 4, 3)))
      >>> jaxrnn.analysis.jacobians(cell, path).shape
      (20, 4, 16, 16)
    """
    cell = step_of(cell)
    _check_trajectory(trajectory)
    if is_split(cell, *_shapes_at_one(trajectory)):
        return _finite(structured_jacobians(cell, trajectory))
    return _finite(general_jacobians(cell, trajectory))


def _finite(derivatives: Any) -> Any:
    """Return derivatives, or refuse a cell whose derivatives contain NaN or infinity, as NaN weights do."""
    # Check one number a leaf, so that large arrays stay on the device.
    good = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(derivatives)]
    if all(map(checks.concrete, good)) and not all(map(bool, good)):
        checks.finite("cell: its derivative", derivatives)
    return derivatives


@checked
def input_jacobians(cell: StepLike, trajectory: Trajectory) -> Inexact[Array, "T *B S F"]:
    """Return ∂s_t/∂x_t for every step of a trajectory, [T, *B, S, F], with the previous carry held fixed.

    Raises:
      InputError: a trajectory without inputs, or with inputs that are not floating-point or not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrnn.analysis._jacobians import input_jacobians
      >>> from jaxrnn.analysis import trace
      >>> leaky = lambda s, x: (0.5 * s + 3.0 * x, s)
      >>> path = trace(leaky, jnp.ones((4, 1)), carry=jnp.zeros(1))
      >>> input_jacobians(leaky, path)[:, 0, 0].tolist()
      [3.0, 3.0, 3.0, 3.0]
    """
    cell = step_of(cell)
    _check_trajectory(trajectory)
    leaves = jax.tree.leaves(trajectory.xs)
    if not leaves:
        checks.refuse("trajectory.xs", "None", "inputs [T, *B, F]: an autonomous system has none")
    for leaf in leaves:
        checks.floating("trajectory.xs", leaf)
    return _finite(_input_jacobians(cell, trajectory))


def _shapes_at_one(trajectory: Trajectory) -> tuple[Carry, Any]:
    return shapes_of_one(trajectory.carries), shapes_of_one(trajectory.xs)


def _check_trajectory(trajectory: Any) -> None:
    if not isinstance(trajectory, Trajectory):
        checks.refuse(
            "trajectory", checks.describe(trajectory), "a Trajectory, from trace(cell, xs)"
        )
    checks.finite("trajectory", trajectory)


@compiled
def general_jacobians(cell: Step, trajectory: Trajectory) -> Inexact[Array, "T *B S S"]:
    """Return the step Jacobians of any step by forward-mode differentiation, [T, *B, S, S]."""
    step = for_batch(cell, *_shapes_at_one(trajectory), trajectory.batch)

    def at_step(now: tuple[Any, Any]) -> Inexact[Array, "*B S S"]:
        carry, x = now
        return _by_pushes(lambda carry: step(carry, x)[0], carry, trajectory.batch)

    return jax.lax.map(at_step, (trajectory.before, trajectory.xs))


@compiled
def _input_jacobians(cell: Step, trajectory: Trajectory) -> Inexact[Array, "T *B S F"]:
    step = for_batch(cell, *_shapes_at_one(trajectory), trajectory.batch)

    def at_step(now: tuple[Any, Any]) -> Inexact[Array, "*B S F"]:
        carry, x = now
        return _by_pushes(lambda x: step(carry, x)[0], x, trajectory.batch)

    return jax.lax.map(at_step, (trajectory.before, trajectory.xs))


def _by_pushes(
    function: Callable[[Any], Any], at: Any, batch: tuple[int, ...]
) -> Inexact[Array, "*B N M"]:
    """Return the derivative of a map between trees, leaves [*B, …], at a point.

    The sequences of a batch do not affect each other, so one JVP can use the same basis vector for all.
    """
    depth = len(batch)
    flat = flat_state(at, depth)
    _, push = jax.linearize(lambda flat: flat_state(function(carry_of(flat, at)), depth), flat)

    def column(direction: Inexact[Array, "M"]) -> Inexact[Array, "*B N"]:
        return push(jnp.broadcast_to(direction, flat.shape))

    return jax.vmap(column, out_axes=-1)(jnp.eye(flat.shape[-1], dtype=flat.dtype))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FactoredJacobians:
    """Step Jacobians of a split cell, stored as their factors.

    With the state divided into L leaves of H units, and the pull into G gates of H units,

        J v = K v + P (M v),        K, P unit by unit and of each step, M the same at all:

    (L + G)·L·H numbers a step instead of (L·H)². M multiplies the last N of the L leaves. These are h alone
    if the cell's `mix` is declared to read nothing else (`jaxrnn.typing.multiplies_by`), as for an LSTM, and
    all leaves otherwise. Entry t belongs to the step from s_t to s_{t+1}, as in `jacobians`. Use ``jax.vmap``
    for several vectors a step, as in ``jax.vmap(factors.matvec, -1, -1)``.

    Attributes:
      kept: K, by new leaf and old leaf [T, *B, L, L, H].
      pulled: P, by new leaf and gate [T, *B, L, G, H].
      mixing: M = ∂mix/∂carry, by gate and its unit, leaf (of the last N) and its unit [G, H, N, H].
    """

    kept: Inexact[Array, "T *B L L H"]
    pulled: Inexact[Array, "T *B L G H"]
    mixing: Inexact[Array, "G H N H"]

    def dense(self) -> Inexact[Array, "T *B S S"]:
        """Return the matrices, as `jacobians` does."""
        return _assembled(self.kept, self.pulled, self.mixing)

    @checked
    def matvec(self, v: Inexact[Array, "T *B S"]) -> Inexact[Array, "T *B S"]:
        """Return J_t v_t for every step: the next change of the state after a change v_t.

        Raises:
          InputError: `v` does not have the shape of the states, one for each step.
        """
        leaves = self._by_leaf("v", v)
        read = leaves[..., -self.mixing.shape[2] :, :]
        pull = jnp.einsum("ghlk,...lk->...gh", self.mixing, read)
        moved = jnp.einsum("...mlh,...lh->...mh", self.kept, leaves)
        moved += jnp.einsum("...mgh,...gh->...mh", self.pulled, pull)
        return moved.reshape(jnp.shape(v))

    @checked
    def rmatvec(self, w: Inexact[Array, "T *B S"]) -> Inexact[Array, "T *B S"]:
        """Return J_tᵀ w_t for every step: the gradient w_t pulled back by one step.

        Raises:
          InputError: `w` does not have the shape of the states, one for each step.
        """
        leaves = self._by_leaf("w", w)
        pull = jnp.einsum("...mgh,...mh->...gh", self.pulled, leaves)
        back = jnp.einsum("...mlh,...mh->...lh", self.kept, leaves)
        read = jnp.einsum("ghlk,...gh->...lk", self.mixing, pull)
        return (back + to_all_leaves(read, back.shape[-2], axis=-2)).reshape(jnp.shape(w))

    def _by_leaf(self, name: str, states: Any) -> Inexact[Array, "T *B L H"]:
        *batch, leaves, _, units = self.kept.shape
        checks.shape(name, states, (*batch, leaves * units), "[T, *B, S]")
        return jnp.reshape(states, (*batch, leaves, units))


@checked
def factored_jacobians(cell: StepLike, trajectory: Trajectory) -> FactoredJacobians:
    """Return the step Jacobians of a split cell as their factors, for states too large to store S² a step.

    Raises:
      InputError: a step that is not split (`jaxrnn.contract`), or a trajectory with values that are not
        finite.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> cell = jaxrnn.LSTMCell(3, 512, rngs=nnx.Rngs(0))
      >>> path = jaxrnn.analysis.trace(cell, jnp.ones((20, 4, 3)))
      >>> jaxrnn.analysis.factored_jacobians(cell, path).rmatvec(path.states[1:]).shape
      (20, 4, 1024)
    """
    cell = step_of(cell)
    _check_trajectory(trajectory)
    expected = "a split cell (jaxrnn.typing.SplitCell); jacobians(cell, trajectory) takes any step"
    if not isinstance(cell, SplitCell):
        checks.refuse("cell", checks.describe(cell), expected)
    widths = [leaf.shape[-1] for leaf in jax.tree.leaves(trajectory.before)]
    if len(set(widths)) > 1:
        got = f"leaves of {' and '.join(map(str, widths))} units"
        checks.refuse("cell", got, "a carry whose leaves are of one width; jacobians takes any")
    why = obstacle(cell, *_shapes_at_one(trajectory))
    if why:
        checks.refuse("cell", f"a {type(cell).__name__}, which {why}", expected)
    return _finite(factors_of(cell, trajectory))


def structured_jacobians(cell: SplitCell, trajectory: Trajectory) -> Inexact[Array, "T *B S S"]:
    """Return the step Jacobians of a split cell from its unit-wise slopes, [T, *B, S, S]."""
    # Two programs: in one, XLA recomputes the slopes for every entry, and a barrier between does not help.
    return factors_of(cell, trajectory).dense()


@compiled
def factors_of(cell: SplitCell, trajectory: Trajectory) -> FactoredJacobians:
    """Return the factors, without checking the arguments."""
    before, drive = trajectory.before, cell.project(trajectory.xs)
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
    skip = 1 + len(trajectory.batch)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[skip:], leaf.dtype), before)
    kept = _stacked(by_leaf)
    pulled = _stacked(by_gate) if by_gate else kept[..., :0, :]  # a cell without recurrent weights
    return FactoredJacobians(kept, pulled, mixing_blocks(cell, zero))


@jax.jit
def _assembled(
    kept: Inexact[Array, "T *B M L H"],
    pulled: Inexact[Array, "T *B M G H"],
    mixing: Inexact[Array, "G H N H"],
) -> Inexact[Array, "T *B S S"]:
    """Return the Jacobians from their parts, without products for unread leaves: memory is the limit."""
    *batch, leaves, _, units = kept.shape
    steps, unread = math.prod(batch), leaves - mixing.shape[2]
    kept, pulled = (part.reshape(steps, *part.shape[-3:]) for part in (kept, pulled))
    own = jnp.eye(units, dtype=bool)[None, None, :, None]
    stayed = jnp.where(own, jnp.moveaxis(kept, -1, 2)[..., None], 0)
    through = sum(
        pulled[:, :, g, :, None, None] * block[None, None] for g, block in enumerate(mixing)
    )
    blocks = [stayed[..., :unread, :], stayed[..., unread:, :] + through]
    return jnp.concatenate(blocks, axis=-2).reshape(*batch, units * leaves, units * leaves)


def _stacked(pushed: list[Carry]) -> Inexact[Array, "*L M K H"]:
    """Stack the results of K JVPs, each with M new leaves [*L, H]."""
    return jnp.stack([jnp.stack(jax.tree.leaves(moved), axis=-2) for moved in pushed], axis=-2)


def mixing_blocks(cell: SplitCell, zero: Carry) -> Inexact[Array, "G H N H"]:
    """Return M = ∂mix/∂carry by gate, unit of the gate, carry leaf and unit of the leaf.

    The N leaves are only the last one if `mix` is declared to multiply no other, and all leaves otherwise.

    Args:
      cell: a cell with a `mix`.
      zero: its carry without batch axes, leaves [H]; mix is affine, so it may be evaluated at any point.

    Raises:
      InputError: a mix that is not affine and therefore has no constant derivative.
    """
    leaves = jax.tree.leaves(zero)
    units = leaves[0].shape[-1]
    weight = weight_of_mix(cell)
    if weight is None:
        if not mix_is_affine(cell, zero):
            got = f"a {type(cell).__name__}, whose mix is not affine in the carry"
            checks.refuse("cell", got, "a mix that multiplies the carry by weights")
        matrix = flat_state(jax.jacfwd(cell.mix)(zero), 1)
        return matrix.reshape(len(matrix) // units, units, len(leaves), units)
    return weight.T.reshape(weight.shape[1] // units, units, 1, units)


def to_all_leaves(
    read: Inexact[Array, "*shape"], leaves: int, *, axis: int
) -> Inexact[Array, "*padded"]:
    """Pad an array over the last N leaves with zeros for the leaves before them."""
    widths = [(0, 0)] * read.ndim
    widths[axis] = (leaves - read.shape[axis], 0)
    return jnp.pad(read, widths)
