"""A batch is what its sequences are, one by one, whatever a step was written for.

A cell takes any batch axes, and so does a split step: their protocols promise it. A plain function promises
nothing. Written for one state, as ``s[0]`` or ``W @ s``, and called with several, it computes another system,
or fails in a matrix product. So any other step counts as a function of one sequence, and ``jax.vmap`` maps it
over the batch. It is called with the whole batch in three cases only: if it cannot be called with one
sequence; if it captures arrays of the batch's size, which its shapes show; and if it takes batches of any
size and draws random numbers or has effects, since those of a batch are not those of its sequences.

Weakness: a state with several axes is taken for a batch of its rows, [*B, H]. One system with such a state
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
    """Return the step that takes a batch as what its sequences are, one by one.

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
    """Tell whether a step takes one sequence as a batch of one alone."""
    return _traced(cell, carry, x) is None and _traced(_of_one(cell), carry, x) is not None


def _of_one(cell: Step) -> Step:
    """Return a step for one sequence by means of a step for a batch."""

    def step(carry: Carry, x: Any) -> tuple[Carry, Any]:
        batch_of_one = jax.tree.map(lambda leaf: leaf[None], (carry, x))
        return jax.tree.map(lambda leaf: leaf[0], cell(*batch_of_one))

    return step


@dataclasses.dataclass(frozen=True)
class _Axes:
    """How to map a step over batch axes: how many there are, and trees with 0 for leaves that have them."""

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
    """Return how to map a step over its batch; None where it is to be called with all of it."""

    def step(carry: Carry, x: Any, held: Any) -> tuple[Carry, Any]:
        return cell_of(held)(carry, x)

    def has_batch(leaf: Any) -> bool:
        return leaf.shape[: len(batch)] == batch

    def of_one(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape[len(batch) * has_batch(leaf) :], leaf.dtype)

    def of_more(leaf: Any) -> Any:
        more = tuple(size + 7 for size in batch)  # any other size will do
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
    """Trace a step; None where it fails, or does not return a carry of the form that it was given."""
    try:
        program, results = jax.make_jaxpr(step, return_shape=True)(carry, x, *held)
        moved, _ = results
    except Exception:  # a step that was written for other axes may fail in any way
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
