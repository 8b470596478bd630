"""Batching of steps: a batch gives the same results as its sequences one by one.

Cells and split steps accept any batch axes, by their protocols. A plain function makes no such promise.
Written for one state, as ``s[0]`` or ``W @ s``, and called with a batch of states, it computes a different
system, or fails in a matrix product. So every other step is treated as a function of one sequence, and mapped
over the batch by ``jax.vmap``. It is called with the whole batch in only three cases: if it cannot be called
with one sequence; if it captures arrays of the batch's size, which its shapes show; and if it accepts batches
of any size and draws random numbers or has side effects, because these differ between a batch and its
sequences one by one.

Weakness: a state with several axes is treated as a batch of its rows, [*B, H]. One system with such a state
has to be flattened.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr

from jaxrnn.contract import once_a_form
from jaxrnn.jaxprs import flattened, reached_from, variables
from jaxrnn.typing import Carry, Size, SplitCell, Step


def for_batch(cell: Step, carry: Carry, x: Any, batch: tuple[Size, ...]) -> Step:
    """Return a step for a batch that gives the same results as its sequences one by one.

    Args:
      cell: the step, written for one sequence or for a batch.
      carry: a carry of one step, or its shapes. Leaves that do not begin with *B are shared by all sequences.
      x: an input of one step, or its shapes; its leaves likewise.
      batch: the batch axes *B; without any, a step that needs one gets a batch of one.
    """
    if hasattr(cell, "num_feature_axes") or isinstance(cell, SplitCell):
        return cell
    if not batch:
        return _of_one(cell) if _needs_an_axis(cell, carry, x) else cell
    axes = _axes(cell, carry, x, batch=batch)
    return cell if axes is None else axes.mapped(cell)


def _needs_an_axis(cell: Step, carry: Carry, x: Any) -> bool:
    """Tell whether a step accepts one sequence only as a batch of size one."""
    return _traced(cell, carry, x) is None and _traced(_of_one(cell), carry, x) is not None


def _of_one(cell: Step) -> Step:
    """Wrap a step for a batch as a step for one sequence."""

    def step(carry: Carry, x: Any) -> tuple[Carry, Any]:
        batch_of_one = jax.tree.map(lambda leaf: leaf[None], (carry, x))
        return jax.tree.map(lambda leaf: leaf[0], cell(*batch_of_one))

    return step


@dataclasses.dataclass(frozen=True)
class _Axes:
    """How to map a step over batch axes: their number, and ``jax.vmap``'s axes of arguments and results."""

    count: int
    taken: Any
    given: Any

    def mapped(self, cell: Step) -> Step:
        """Return the step, mapped over all of them."""
        step = lambda carry, x: cell(carry, x)  # noqa: E731  a name for vmap to call it by
        for _ in range(self.count):
            step = jax.vmap(step, in_axes=self.taken, out_axes=self.given)
        return step


@once_a_form
def _axes(
    cell_of: Callable[[Any], Step], held: Any, carry: Carry, x: Any, *, batch: tuple[Size, ...]
) -> _Axes | None:
    """Return how to map a step over its batch, or None if it is to be called with the whole batch."""

    def step(carry: Carry, x: Any, held: Any) -> tuple[Carry, Any]:
        return cell_of(held)(carry, x)

    def has_batch(leaf: Any) -> bool:
        return leaf.shape[: len(batch)] == batch

    def of_one(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape[len(batch) * has_batch(leaf) :], leaf.dtype)

    def of_more(leaf: Any) -> Any:
        more = tuple(size + 7 for size in batch)  # an arbitrary size that differs from the batch's
        return (
            jax.ShapeDtypeStruct(more + of_one(leaf).shape, leaf.dtype) if has_batch(leaf) else leaf
        )

    alone = _traced(step, *jax.tree.map(of_one, (carry, x)), held)
    if alone is None:
        return None
    for_all = alone.program.effects or "random_bits" in str(alone.program)
    if for_all and _traced(step, *jax.tree.map(of_more, (carry, x)), held) is not None:
        return None
    taken = [has_batch(leaf) for leaf in jax.tree.leaves((carry, x))]
    states = jax.tree.structure(carry).num_leaves
    fixed = [False] * len(jax.tree.leaves(held))
    given = _depend(alone.program, [*taken, *fixed])
    if any(after and not before for before, after in zip(taken, given[:states], strict=False)):
        return None
    given[:states] = taken[:states]
    together = _traced(step, carry, x, held)
    if together is not None:
        each = (jax.tree.leaves(found.results) for found in (alone, together))
        for one, leaf, mapped in zip(*each, given, strict=True):
            if has_batch(leaf) and leaf.shape != (*batch[: mapped * len(batch)], *one.shape):
                return None
    return _Axes(len(batch), _zeros((carry, x), taken), _zeros(alone.results, given))


class _Traced(NamedTuple):
    """The program of a step, and the shapes of what it returns."""

    program: ClosedJaxpr
    results: Any


def _traced(step: Callable[..., Any], carry: Carry, x: Any, *held: Any) -> _Traced | None:
    """Trace a step; return None if that fails or the returned carry differs from the given one in form."""
    try:
        program, results = jax.make_jaxpr(step, return_shape=True)(carry, x, *held)
        moved, _ = results
    except Exception:  # a step that was written for other axes may raise anything
        return None

    def form(carry: Carry) -> Any:
        leaves, tree = jax.tree.flatten(carry)
        return tree, [(leaf.shape, leaf.dtype) for leaf in leaves]

    return _Traced(program, results) if form(carry) == form(moved) else None


def _zeros(like: Any, which: Sequence[bool]) -> Any:
    """Return a tree for ``jax.vmap``: 0 where a leaf has batch axes, None where it has none."""
    return jax.tree.unflatten(jax.tree.structure(like), [0 if each else None for each in which])


def _depend(closed: ClosedJaxpr, varying: Sequence[bool]) -> list[bool]:
    """Tell which results of a program depend on the arguments that vary."""
    program = flattened(closed)
    begun = [v for v, varies in zip(program.inputs, varying, strict=True) if varies]
    reached = reached_from(program.equations, begun)
    return [not reached.isdisjoint(variables([output])) for output in program.outputs]
