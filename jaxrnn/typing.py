"""Shared types of the package: names of axes, array aliases, and the protocols of steps and cells.

Names of axes, used in every shape of this package:

    T  time steps             B  batch (``*B``: any number of leading axes, possibly none)
    F  input features         H  hidden features (units)
    S  state size: the whole carry, its leaves flattened and concatenated in pytree order
    G  gates of a cell        P  pull size, G·H
    Y  output features        K  kept entries: lags, exponents, hypotheses of a beam
    V  tokens of a vocabulary L  steps of a source that a decoder attends to
    C  classes

The package is built on two protocols, and a third, smaller one.

**Step.** Anything that maps ``(carry, x) -> (carry, y)``: a cell of this package, a Flax NNX cell, a Linen
cell bound to its weights, a plain function. Every tool of this package takes a `Step`.

**SplitCell.** The structure of most cells of this package. One step consists of four parts,

    drive = project(x)                    everything that needs no carry: input weights and biases
    pull  = mix(carry)                    all recurrent weights, affine in the carry
    carry = update(carry, drive, pull)    arithmetic without weights, separately for each unit
    y     = readout(carry)

and each part has a property that other code relies on. `project` may be applied to all steps in one product.
`mix` is affine, so its derivative is one constant matrix M; where M is a weight, `multiplies_by` names it.
`update` works *unit by unit*: entry j of the new carry depends only on entry j of each carry leaf and of each
of the G gates, so its derivatives are diagonal. These properties allow the fast gradient and the O(S²) step
Jacobian,

    ∂carry'/∂carry = ∂update/∂carry + ∂update/∂pull · M .

The method names alone guarantee nothing: `jaxrnn.contract` verifies on traced programs that a step consists
of its parts and that these have the properties. A step that fails is treated as a plain `Step`, whatever its
class, and takes the general path in every analysis. `unroll` does not depend on the split: it finds from the
traced program what can be computed outside the loop.

A weight that is computed from parameters, such as an orthogonal matrix from a skew-symmetric one, is a
**DerivedWeight** of its cell. `unroll` and the analyses compute it once for all steps (`prepared`). A loop
around the cell itself, such as that of ``nnx.RNN``, computes it at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, PRNGKeyArray, Shaped

ArrayLike = jax.Array | np.ndarray
"""A JAX or NumPy array."""

Carry = Any
"""A pytree of arrays [*B, H]: what a cell passes to its next step."""

Size = Any
"""A size of an array: an integer, or a symbolic expression under ``jax.export``."""

Step = Annotated[
    Callable[[Any, Any], tuple[Any, Any]], "a cell, or a function (carry, x) -> (carry, y)"
]
"""``(carry, x) -> (carry, y)``."""

StepLike = Annotated[Callable[..., Any], "a cell, or a function (carry, x) -> (carry, y)"]
"""A step, or an object that analyses convert to one: a layer, or a function of the carry alone."""

Key = Annotated[PRNGKeyArray, "a random key, such as jax.random.key(0)"]
"""A typed random key, as made by ``jax.random.key``."""

Lengths = Int[Array, "*B"]
"""Valid steps of each sequence, 0 to T."""

Loss = Annotated[Callable[[Any], Any], "a function of the outputs"]
"""Outputs [T, *B, Y] -> a scalar, or one value per sequence [*B]."""

Initializer = Annotated[
    Callable[..., Shaped[Array, "..."]], "an initialiser, such as jax.nn.initializers.normal()"
]
"""``(key, shape, dtype) -> Array``, as in ``jax.nn.initializers``."""


@runtime_checkable
class SplitCell(Protocol):
    """A cell whose step is split into project, mix, update and readout (see the module's docstring)."""

    def project(self, x: Any) -> Any:
        """Map inputs [*B, F] to the drive [*B, P]."""
        ...

    def mix(self, carry: Any) -> Any:
        """Map the carry, leaves [*B, H], to the pull [*B, P]; affine in the carry."""
        ...

    def update(self, carry: Any, drive: Any, pull: Any) -> Any:
        """Return the next carry, computed unit by unit and without weights."""
        ...

    def readout(self, carry: Any) -> Any:
        """Return the output [*B, Y] of a carry."""
        ...

    def __call__(self, carry: Any, x: Any) -> tuple[Any, Any]:
        """Take one step."""
        ...


def multiplies_by(weight: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a `mix` that only multiplies h, the last leaf of the carry, by a weight and adds a constant.

    The decorator declares which weight is M. To find M by differentiation would multiply the weight by the
    identity. The declaration contains the decorated function, so another function that wraps this `mix` and
    copies its attributes does not inherit it.

    Args:
      weight: name of the attribute that holds the weight [H, P].
    """

    def noted(mix: Callable[..., Any]) -> Callable[..., Any]:
        mix.note = (mix, weight)  # pyright: ignore[reportFunctionMemberAccess]
        return mix

    return noted


def weight_of_mix(cell: SplitCell) -> jax.Array | None:
    """Return the weight [H, P] that a cell's `mix` declares by `multiplies_by`, or None."""
    function = getattr(cell.mix, "__func__", None)
    noted, weight = getattr(function, "note", (None, ""))
    return None if function is None or noted is not function else getattr(cell, weight)[...]


@runtime_checkable
class DerivedWeight(Protocol):
    """A module used as a weight, which is computed from the module's parameters."""

    def derive(self) -> Any:
        """Return the weight."""
        ...

    def __getitem__(self, key: Any) -> Any:
        """Return a part of the weight, as a parameter does."""
        ...


def prepared(cell: Any) -> Any:
    """Return a step, or a list of steps, with every derived weight computed.

    Functions decorated with `jaxrnn.steps.compiled` receive their cell in this form, so that no loop computes
    a weight at every step.
    """
    if isinstance(cell, list):
        return [prepared(each) for each in cell]
    if not isinstance(cell, nnx.Module):
        return cell
    modules = {name: part for name, part in vars(cell).items() if isinstance(part, nnx.Module)}
    if not modules:
        return cell
    ready = jax.tree.map(lambda leaf: leaf, cell)  # a copy
    for name, part in modules.items():
        derived = isinstance(part, DerivedWeight)
        setattr(ready, name, nnx.Param(part.derive()) if derived else prepared(part))
    return ready


def at_least_float32(dtype: Any) -> Any:
    """Return the dtype for factorisations and logarithms, for which half precision does not suffice."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)
