"""Properties of any step, of this package or not: where it starts, what its state is, what it outputs.

Both `unroll` and `analysis` need these functions of a `Step`. They are defined here so that neither package
has to import the other.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Inexact

from jaxrnn import checks
from jaxrnn.batching import for_batch
from jaxrnn.contract import parts_make_step
from jaxrnn.jaxprs import flat, is_inexact
from jaxrnn.typing import ArrayLike, Carry, Size, Step, prepared


class Beginning(NamedTuple):
    """The checked starting point of an unrolling.

    Attributes:
      carry: the initial carry.
      steps: the number of steps T.
      batch: the batch axes *B.
      step: the step for such a batch.
    """

    carry: Carry
    steps: Size
    batch: tuple[Size, ...]
    step: Step


def begin(
    cell: Step, xs: Any, carry: Carry | None = None, length: int | None = None
) -> tuple[Carry, Size, tuple[Size, ...]]:
    """Return the first three entries of `beginning`."""
    return beginning(cell, xs, carry, length)[:3]


def beginning(
    cell: Step, xs: Any, carry: Carry | None = None, length: int | None = None
) -> Beginning:
    """Check the arguments; return initial carry, number of steps, batch axes and the step for the batch.

    Args:
      cell: the step.
      xs: inputs [T, *B, F], or None together with `carry` and `length`.
      carry: initial carry, or None for the cell's own.
      length: number of steps, needed if `xs` is None.

    Raises:
      InputError: the arguments do not fit each other or the cell.
    """
    layer, cell = cell, step_of(cell)
    checks.arrays("xs", xs)
    checks.arrays("carry", carry)
    steps = _length(xs, length)
    if carry is None:
        carry = own_carry(layer, xs, "carry")
    weights = cell if isinstance(cell, nnx.Module) else None
    _, carry, _ = varying_alike(weights, carry, xs)
    if not jax.tree.leaves(carry):
        checks.refuse("carry", checks.describe(carry), "at least one array, leaves [*B, H]")
    batch = batch_axes(cell, xs, carry)
    x = shapes_of_one(xs)
    step = for_batch(cell, carry, x, batch)
    _check_step(step, carry, x)
    return Beginning(carry, steps, batch, step)


def step_of(cell: Any) -> Step:
    """Return the step that an analysis uses for its argument `cell`.

    A step is returned unchanged. For a layer it is the result of `as_step`. For a function of the carry
    alone, an autonomous map, it is the step that takes no input and returns the new carry as its output.

    Raises:
      InputError: `cell` is a class, is not callable, or is a model, which contains a step but is not one.
    """
    if isinstance(cell, type):
        checks.refuse("cell", f"the class {cell.__name__}", "a cell of it, or any other step")
    if hasattr(cell, "as_step"):
        return cell.as_step()
    if not callable(cell):
        checks.refuse("cell", checks.describe(cell), "a step (carry, x) -> (carry, y)")
    if _is_model(cell):
        parts = " or ".join(f".{name}" for name, part in vars(cell).items() if _has_start(part))
        expected = f"a step (carry, x) -> (carry, y), such as its {parts}"
        checks.refuse("cell", checks.describe(cell), expected)
    of_carry_alone = _takes(cell, 1) and not _takes(cell, 2)
    step: Any = Autonomous(cell) if of_carry_alone else cell
    return step


@dataclasses.dataclass(frozen=True)
class Autonomous:
    """A map of the carry as a step, which has no input and whose output is the new carry."""

    function: Callable[[Any], Any]

    def __call__(self, carry: Carry, x: Any) -> tuple[Carry, Carry]:
        """Take one step."""
        if jax.tree.leaves(x):
            expected = "None and a length: cell is a function of the carry alone"
            checks.refuse("xs", checks.describe(x), expected)
        moved = self.function(carry)
        return moved, moved


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Tell whether a function can be called with `count` arguments; True if it has no signature."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except ValueError:  # some functions written in C have no signature
        return True
    except TypeError:
        return False
    return True


def _is_model(cell: Any) -> bool:
    """Tell whether `cell` is a module that contains layers or cells and is called with its inputs alone."""
    holds = isinstance(cell, nnx.Module) and any(map(_has_start, vars(cell).values()))
    return holds and not _has_start(cell) and _takes(cell, 1)


def _has_start(part: Any) -> bool:
    return hasattr(part, "initialize_carry")


def shapes_of_one(steps: Any) -> Any:
    """Return the shapes and dtypes of one step, given arrays over all steps, leaves [T, …]."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), steps)


def flat_state(carry: Carry, leading: int) -> Inexact[Array, "*L S"]:
    """Return the state [*L, S]: all leaves flattened behind their first `leading` axes and concatenated.

    Leaves that are not floats, such as counters and random keys, are not part of the state.

    Raises:
      InputError: the carry has no leaf of floats, or these leaves differ in their leading axes.
    """
    leaves = list(filter(is_inexact, jax.tree.leaves(carry)))
    if not leaves:
        checks.refuse("carry", checks.describe(carry), "at least one leaf of floats")
    if len({leaf.shape[:leading] for leaf in leaves}) > 1:
        checks.refuse("carry", checks.describe(carry), "leaves [*B, H] with the same *B")
    flat = [leaf.reshape(*leaf.shape[:leading], math.prod(leaf.shape[leading:])) for leaf in leaves]
    return jnp.concatenate(flat, axis=-1)


def carry_of(state: Inexact[Array, "*L S"], like: Carry) -> Carry:
    """Split a state [*L, S] into a carry with the leaves of `like`, which has the same leading axes.

    Leaves of `like` that are not floats are copied unchanged.
    """
    leaves, treedef = jax.tree.flatten(like)
    cuts, start = [], 0
    for leaf in leaves:
        if not is_inexact(leaf):
            cuts.append(leaf)
            continue
        size = math.prod(leaf.shape[state.ndim - 1 :])
        cuts.append(state[..., start : start + size].reshape(leaf.shape).astype(leaf.dtype))
        start += size
    return jax.tree.unflatten(treedef, cuts)


def moves_state(
    cell: Step, carry: Carry, x: Any, leading: int
) -> Callable[[Any], tuple[Any, Carry]]:
    """Return the function that maps a state [*L, S] to the next state and the next carry.

    Analyses differentiate this function. Leaves of the carry that are not floats are held constant.

    Args:
      cell: the step.
      carry: the carry whose floats the state replaces.
      x: the input.
      leading: the number of leading axes *L.
    """

    def move(state: Any) -> tuple[Any, Carry]:
        moved, _ = cell(carry_of(state, carry), x)
        return flat_state(moved, leading), moved

    return move


def readout_of(cell: Step, carry: Carry, x: Any) -> Callable[[Carry], Any] | None:
    """Return the function that maps a new carry to the output of its step, or None if there is none.

    A step that consists of its four parts has a `readout`. For any other step, the traced program shows
    whether the output *is* one of the leaves of the new carry, as in every Flax cell; the function then
    selects that leaf.
    """
    if parts_make_step(cell, carry, x):
        return cell.readout
    program, (_, y) = flat(cell, carry, x)
    count = len(jax.tree.leaves(carry))
    states, outputs = program.outputs[:count], program.outputs[count:]
    if not all(output in states for output in outputs):
        return None
    picks = [states.index(output) for output in outputs]
    output_tree = jax.tree.structure(y)

    def readout(carry: Carry) -> Any:
        leaves = jax.tree.leaves(carry)
        return jax.tree.unflatten(output_tree, [leaves[i] for i in picks])

    return readout


class Compiled:
    """A function ``function(cell, *arrays, **settings)`` compiled for any kind of step; settings are static.

    A pytree of arrays, such as a module or a list of modules, is passed as an argument, so new weights cause
    no recompilation; everything else in it is static. Any other step, such as a plain function, may close
    over arrays that change between calls. Code compiled for it lives only as long as the result of `bound`.
    """

    def __init__(self, function: Callable[..., Any]):
        parameters = inspect.signature(function).parameters.values()
        self._settings = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        self.function = function
        self._for_pytrees = jax.jit(function, static_argnames=self._settings)
        functools.update_wrapper(self, function)

    def bound(self, cell: Any) -> Callable[..., Any]:
        """Return the compiled function of the arrays alone, for many calls with one step."""
        if not is_plain_function(cell):
            return functools.partial(self._for_pytrees, cell)
        return jax.jit(functools.partial(self.function, cell), static_argnames=self._settings)

    def __call__(self, cell: Any, *arrays: Any, **chosen: Any) -> Any:
        """Call the function once."""
        return self.bound(cell)(*arrays, **chosen)


def is_plain_function(cell: Any) -> bool:
    """Tell whether a step is not a pytree of arrays; a module is one, a plain function is not."""
    leaves = jax.tree.leaves(cell)
    return not leaves or not all(isinstance(leaf, ArrayLike) for leaf in leaves)


def compiled(function: Callable[..., Any]) -> Compiled:
    """Decorate ``function(cell, *arrays, **settings)`` to be compiled, and to receive its cell `prepared`."""

    @functools.wraps(function)
    def with_prepared(cell: Any, *arrays: Any, **settings: Any) -> Any:
        return function(prepared(cell), *arrays, **settings)

    return Compiled(with_prepared)


def compiled_unprepared(function: Callable[..., Any]) -> Compiled:
    """Decorate a function to be compiled that reads the cell's own parameters and calls `prepared` itself."""
    return Compiled(function)


def is_differentiated(tree: Any) -> bool:
    """Tell whether an array of a tree is being differentiated, by ``jax.grad``, ``jax.jvp`` or the like."""
    # ``jax.grad`` is built on ``jax.linearize``, and JAX does not export the class of the latter's tracers.
    return any(hasattr(_unmapped(leaf), "tangent") for leaf in jax.tree.leaves(tree))


def _unmapped(leaf: Any) -> Any:
    while hasattr(leaf, "batch_dim"):  # a tracer of vmap, whose class JAX does not export
        leaf = leaf.val
    return leaf


def varying_alike(*trees: Any) -> tuple[Any, ...]:
    """Mark all arrays as varying over every mesh axis over which at least one of them varies.

    Inside ``jax.shard_map`` a zero carry, or weights that all devices share, differ in type from a part of
    the batch, but the carry of a loop must keep its type. Outside ``jax.shard_map`` nothing changes.
    """
    axes = frozenset().union(*(_varying(leaf) for leaf in jax.tree.leaves(trees)))

    def spread(leaf: Any) -> Any:
        missing = axes - _varying(leaf)
        return jax.lax.pcast(leaf, tuple(missing), to="varying") if missing else leaf

    return jax.tree.map(spread, trees)


def is_varying(tree: Any) -> bool:
    """Tell whether an array of a tree varies over the devices inside ``jax.shard_map``."""
    return any(_varying(leaf) for leaf in jax.tree.leaves(tree))


def _varying(leaf: Any) -> frozenset[str]:
    kind = getattr(jax.typeof(leaf), "manual_axis_type", None)
    return frozenset() if kind is None else kind.varying


def _length(xs: Any, length: int | None) -> Size:
    leaves = jax.tree.leaves(xs)
    if not leaves:
        if length is None:
            checks.refuse("xs", "None", "inputs [T, *B, F], or None together with length and carry")
        checks.count("length", length)
        return int(length)
    if any(jnp.ndim(leaf) < 1 for leaf in leaves):
        checks.refuse("xs", checks.describe(xs), "a time axis first, [T, *B, F]")
    steps = leaves[0].shape[0]
    if steps < 1:
        checks.refuse("xs", checks.describe(xs), "at least 1 step in the first axis, [T, *B, F]")
    if any(leaf.shape[0] != steps for leaf in leaves):
        checks.refuse(
            "xs", checks.describe(xs), "the same number of steps in every leaf, [T, *B, F]"
        )
    if length is not None and length != steps:
        checks.refuse("length", length, f"{steps}, the steps in xs (or leave it out)")
    return steps


def own_carry(cell: Step, xs: Any, argument: str) -> Carry:
    """Return the carry of the cell's ``initialize_carry``, for inputs [T, *B, F].

    Raises:
      InputError: the cell or `xs` does not allow it; `argument` names the argument to be given instead.
    """
    if not hasattr(cell, "initialize_carry"):
        checks.refuse(
            argument, "None", "an initial carry: a plain function has no initialize_carry"
        )
    if not hasattr(xs, "shape"):
        checks.refuse(argument, "None", "an initial carry, where xs is not one array [T, *B, F]")
    # Flax's own cells require a random stream even if the carry is zeros.
    return cell.initialize_carry(xs.shape[1:], rngs=nnx.Rngs(0))  # pyright: ignore[reportFunctionMemberAccess]


def batch_axes(cell: Step, xs: Any, carry: Carry) -> tuple[Size, ...]:
    """Return *B, from the input if the cell declares its number of feature axes, otherwise from the carry.

    Of several leaves the first one with batch axes counts, because others may be shared by all sequences.
    """
    leaves = jax.tree.leaves(xs)
    if not leaves or not hasattr(cell, "num_feature_axes"):
        axes = [jnp.shape(leaf)[:-1] for leaf in jax.tree.leaves(carry)]
    else:
        features = cell.num_feature_axes  # pyright: ignore[reportFunctionMemberAccess]
        axes = [leaf.shape[1 : max(leaf.ndim - features, 1)] for leaf in leaves]
    return next(filter(None, axes), ())


def _check_step(cell: Step, carry: Carry, x: Any) -> None:
    """Require a step that returns a carry of the same structure, shapes and dtypes as it was given."""
    result = jax.eval_shape(cell, carry, x)
    if not isinstance(result, tuple) or len(result) != 2:
        checks.refuse("cell", f"a step that returns {checks.describe(result)}", "(carry, y)")
    moved, _ = result
    same_tree = jax.tree.structure(moved) == jax.tree.structure(carry)
    if not same_tree or any(
        jnp.shape(a) != b.shape or jnp.result_type(a) != b.dtype
        for a, b in zip(jax.tree.leaves(carry), jax.tree.leaves(moved), strict=True)
    ):
        checks.refuse(
            "carry",
            checks.describe(carry),
            f"{checks.describe(moved)}, the carry that cell returns",
        )
