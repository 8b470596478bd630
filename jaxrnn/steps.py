"""What can be asked of any step, ours or foreign: where it starts, what its state is, what it reads out.

Here stands the knowledge that both `unroll` and `analysis` need of a `Step`, so that neither room has
to import the other.
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
    """Where steps begin, all of it checked.

    Attributes:
      carry: the initial carry.
      steps: how many steps T.
      batch: the batch axes *B.
      step: the step, for such a batch.
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
    """Return the initial carry, the number of steps, the batch axes and the step for such a batch, checked.

    Args:
      cell: the step.
      xs: inputs [T, *B, F], or None together with `carry` and `length`.
      carry: initial carry, or None for the cell's own.
      length: number of steps, needed where `xs` is None.

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
    """Return the step that an analysis is to take for what it was handed.

    That is the step itself; a layer's, which its `as_step` returns; and of a function of the carry alone, an
    autonomous map, the step that takes no input and returns the new carry as its output.

    Raises:
      InputError: a class, what cannot be called, or a model, which holds a step and is none.
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
    """A map of the carry as a step, which has no input and returns its carry."""

    function: Callable[[Any], Any]

    def __call__(self, carry: Carry, x: Any) -> tuple[Carry, Carry]:
        """Take one step."""
        if jax.tree.leaves(x):
            expected = "None and a length: cell is a function of the carry alone"
            checks.refuse("xs", checks.describe(x), expected)
        moved = self.function(carry)
        return moved, moved


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Tell whether a function can be called with so many arguments; yes, if it does not say."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except ValueError:  # some functions of C have no signature
        return True
    except TypeError:
        return False
    return True


def _is_model(cell: Any) -> bool:
    """Tell a module that holds layers or cells and can be called with one argument, its inputs."""
    holds = isinstance(cell, nnx.Module) and any(map(_has_start, vars(cell).values()))
    return holds and not _has_start(cell) and _takes(cell, 1)


def _has_start(part: Any) -> bool:
    return hasattr(part, "initialize_carry")


def shapes_of_one(steps: Any) -> Any:
    """Return the shapes and dtypes of one step, given arrays of all steps, leaves [T, …]."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), steps)


def flat_state(carry: Carry, leading: int) -> Inexact[Array, "*L S"]:
    """Flatten each leaf behind its first `leading` axes and concatenate them: the state [*L, S].

    Leaves that are no floats, such as counters and random keys, are no part of the state.

    Raises:
      InputError: leaves of floats whose leading axes are not the same, or none of them.
    """
    leaves = list(filter(is_inexact, jax.tree.leaves(carry)))
    if not leaves:
        checks.refuse("carry", checks.describe(carry), "at least one leaf of floats")
    if len({leaf.shape[:leading] for leaf in leaves}) > 1:
        checks.refuse("carry", checks.describe(carry), "leaves [*B, H] with the same *B")
    flat = [leaf.reshape(*leaf.shape[:leading], math.prod(leaf.shape[leading:])) for leaf in leaves]
    return jnp.concatenate(flat, axis=-1)


def carry_of(state: Inexact[Array, "*L S"], like: Carry) -> Carry:
    """Cut a state [*L, S] into a carry with the leaves of `like`, which has the same leading axes.

    Leaves of `like` that are no floats are taken over as they are.
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
    """Return the map from a state [*L, S] to the next, which returns the next carry beside it.

    It is what an analysis differentiates: leaves of the carry that are no floats are held as they are.

    Args:
      cell: the step.
      carry: the carry whose floats the state replaces.
      x: the input.
      leading: how many leading axes *L there are.
    """

    def move(state: Any) -> tuple[Any, Carry]:
        moved, _ = cell(carry_of(state, carry), x)
        return flat_state(moved, leading), moved

    return move


def readout_of(cell: Step, carry: Carry, x: Any) -> Callable[[Carry], Any] | None:
    """Return the map from a carry to the output that belongs to it, or None if there is none.

    A step that is its four parts says it. Any other step returns its output beside its carry; where the
    output *is* one of the carry's leaves, as in every Flax cell, the traced program shows it, and the map is
    to pick that leaf.
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
    """``function(cell, *arrays, **settings)``, compiled for any kind of step; settings are static.

    A pytree of arrays, such as a module or a list of modules, travels as an argument, so new weights do not
    compile again; what it holds beside its arrays counts as fixed. Anything else, such as a plain function,
    may hold arrays that change between calls, so what is compiled for it lives as long as `bound` is held.
    """

    def __init__(self, function: Callable[..., Any]):
        parameters = inspect.signature(function).parameters.values()
        self._settings = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        self.function = function
        self._for_pytrees = jax.jit(function, static_argnames=self._settings)
        functools.update_wrapper(self, function)

    def bound(self, cell: Any) -> Callable[..., Any]:
        """Return the function of the arrays alone, for many calls with one step."""
        if not is_plain_function(cell):
            return functools.partial(self._for_pytrees, cell)
        return jax.jit(functools.partial(self.function, cell), static_argnames=self._settings)

    def __call__(self, cell: Any, *arrays: Any, **chosen: Any) -> Any:
        """Call it once."""
        return self.bound(cell)(*arrays, **chosen)


def is_plain_function(cell: Any) -> bool:
    """Tell whether a step is no pytree of arrays, such as a module is."""
    leaves = jax.tree.leaves(cell)
    return not leaves or not all(isinstance(leaf, ArrayLike) for leaf in leaves)


def compiled(function: Callable[..., Any]) -> Compiled:
    """Compile ``function(cell, *arrays, **settings)``, as a decorator; it gets its cell `prepared`."""

    @functools.wraps(function)
    def with_prepared(cell: Any, *arrays: Any, **settings: Any) -> Any:
        return function(prepared(cell), *arrays, **settings)

    return Compiled(with_prepared)


def compiled_unprepared(function: Callable[..., Any]) -> Compiled:
    """Compile a function that looks at a cell's own parameters, and prepares it itself where it steps."""
    return Compiled(function)


def is_differentiated(tree: Any) -> bool:
    """Tell whether ``jax.grad``, ``jax.jvp`` or what rests on them differentiates an array of a tree."""
    # The tracers of ``jax.linearize``, on which ``jax.grad`` rests, are of a class that JAX does not export.
    return any(hasattr(_unmapped(leaf), "tangent") for leaf in jax.tree.leaves(tree))


def _unmapped(leaf: Any) -> Any:
    while hasattr(leaf, "batch_dim"):  # the tracers of vmap, whose class JAX does not export
        leaf = leaf.val
    return leaf


def varying_alike(*trees: Any) -> tuple[Any, ...]:
    """Give all arrays the mesh axes along which one of them differs from device to device.

    Inside ``jax.shard_map`` a zero carry, or weights that all devices share, are of another type than a part
    of the batch, and a loop wants its state to keep its type. Elsewhere nothing changes.
    """
    axes = frozenset().union(*(_varying(leaf) for leaf in jax.tree.leaves(trees)))

    def spread(leaf: Any) -> Any:
        missing = axes - _varying(leaf)
        return jax.lax.pcast(leaf, tuple(missing), to="varying") if missing else leaf

    return jax.tree.map(spread, trees)


def is_varying(tree: Any) -> bool:
    """Tell whether an array of a tree differs from device to device inside ``jax.shard_map``."""
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
      InputError: it cannot be asked for; `argument` names what must be given then.
    """
    if not hasattr(cell, "initialize_carry"):
        checks.refuse(
            argument, "None", "an initial carry: a plain function has no initialize_carry"
        )
    if not hasattr(xs, "shape"):
        checks.refuse(argument, "None", "an initial carry, where xs is not one array [T, *B, F]")
    # Flax's own cells insist on a random stream even where the carry is zeros.
    return cell.initialize_carry(xs.shape[1:], rngs=nnx.Rngs(0))  # pyright: ignore[reportFunctionMemberAccess]


def batch_axes(cell: Step, xs: Any, carry: Carry) -> tuple[Size, ...]:
    """Return *B: a cell says how many axes of its input are features, otherwise the carry shows it.

    Of several leaves the first that has batch axes counts: others may be shared by all sequences.
    """
    leaves = jax.tree.leaves(xs)
    if not leaves or not hasattr(cell, "num_feature_axes"):
        axes = [jnp.shape(leaf)[:-1] for leaf in jax.tree.leaves(carry)]
    else:
        features = cell.num_feature_axes  # pyright: ignore[reportFunctionMemberAccess]
        axes = [leaf.shape[1 : max(leaf.ndim - features, 1)] for leaf in leaves]
    return next(filter(None, axes), ())


def _check_step(cell: Step, carry: Carry, x: Any) -> None:
    """Refuse a step that does not return the kind of carry it was given."""
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
