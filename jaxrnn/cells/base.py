"""Base classes of the cells: modules that hold only parameters and implement Flax's cell protocol.

A cell holds `nnx.Param`s and no other mutable data: no random state, no Python-side mutation. Such a module
is a plain pytree, so it can be passed to ``jax.grad``, ``jit``, ``vmap`` and optax directly:
``jax.grad(loss)(cell)`` is a cell of gradients, and ``jax.vmap(make)(keys)`` an ensemble of cells.

Two questions decide which classes a new cell inherits from.

*Which weights does it have?* `InputWeights`: a kernel and a bias per gate, from which it computes W x + b.
`DenseWeights`: in addition a full recurrent matrix per gate. `RecurrentCell`: weights that the cell defines
itself.

*Does its step split?* If it does, `SplitStep`: the parts are `project`, `mix`, `update` and `readout`, whose
properties (`jaxrnn.typing`) give a fast gradient and a cheap Jacobian. If one product depends on another, as
in LEM, the step does not split, and the cell defines `step` as a whole.

`DenseCell` is the common case and combines both: a gated cell then defines only its gates' names and
`update`.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib
import sys
from typing import Any, ClassVar, Required, TypedDict, Unpack, final

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Inexact

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells import initializers
from jaxrnn.typing import Carry, Initializer, Size, multiplies_by


class InputOptions(TypedDict, total=False):
    """Keyword arguments of every cell with input weights, documented in `InputWeights`."""

    kernel_init: Initializer
    bias_init: Initializer
    param_dtype: Any
    rngs: Required[nnx.Rngs]


class CellOptions(InputOptions, total=False):
    """Keyword arguments of every cell with dense weights, documented in `DenseWeights`."""

    recurrent_kernel_init: Initializer


def affine(
    x: Float[Array, "*B N"], kernel: Float[Array, "N P"], bias: Float[Array, "P"]
) -> Float[Array, "*B P"]:
    """Return x · kernel + bias."""
    return product(x, kernel) + everywhere(bias, x)


def product(x: Float[Array, "*B N"], kernel: Float[Array, "N P"]) -> Float[Array, "*B P"]:
    """Return x · kernel."""
    if kernel.shape[0] > 1:
        return x @ kernel
    # With one feature, multiply elementwise: XLA's CPU backend computes the gradient of a matrix product with
    # one row many times more slowly.
    shape = (*x.shape[:-1], kernel.shape[1])
    return jnp.broadcast_to(x, shape) * jnp.broadcast_to(kernel[0], shape)


def everywhere(vector: Inexact[Array, "P"], like: Inexact[Array, "*B N"]) -> Inexact[Array, "*B P"]:
    """Broadcast a vector to the batch axes of `like`."""
    return jnp.broadcast_to(vector, (*like.shape[:-1], vector.shape[-1]))


def free_leaves(cell: Any, carry: Carry) -> list[int]:
    """Return the indices of the carry's leaves that callers may set: all but the cell's `own_carry`."""
    own = getattr(cell, "own_carry", ())
    if not own:
        return list(range(len(jax.tree.leaves(carry))))
    return [i for i, name in enumerate(cell.carry_names) if name not in own]


@dataclasses.dataclass(frozen=True)
class _Name:
    """The module and the name under which a function can be imported."""

    module: str
    name: str

    @classmethod
    def of(cls, function: Any) -> _Name | None:
        """Return the name of a function, or None if it cannot be imported by that name."""
        name = cls(getattr(function, "__module__", None) or "", getattr(function, "__name__", ""))
        return name if name.module in sys.modules and name.find() is function else None

    def find(self) -> Any:
        """Import and return the object with this name."""
        return getattr(importlib.import_module(self.module), self.name, None)


class PickledByName(nnx.Module):
    """A module that pickles its functions by name, because ``jnp.tanh`` is not a plain Python function."""

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes, with functions replaced by their names."""
        attributes = super().__getstate__().items()
        return {
            key: (_Name.of(value) or value) if callable(value) else value
            for key, value in attributes
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the attributes, with functions imported by their names."""
        super().__setstate__(
            {
                key: value.find() if isinstance(value, _Name) else value
                for key, value in state.items()
            }
        )


class RecurrentCell(PickledByName, abc.ABC):
    """Base class of all cells, which defines their common protocol.

    Args:
      in_features: size F of the input.
      hidden_features: number H of units.
      rngs: ``nnx.Rngs`` whose ``params`` stream draws the weights.
    """

    carry_names: ClassVar[tuple[str, ...]] = ("h",)
    """Names of the carry's leaves, in pytree order."""

    own_carry: ClassVar[tuple[str, ...]] = ()
    """Names of the leaves whose values have a meaning only to the cell itself: clocks, normalisers and what
    they normalise. A learned or transferred initial carry keeps their values from `initialize_carry`."""

    @checked
    def __init__(self, in_features: int, hidden_features: int, *, rngs: nnx.Rngs):
        if not isinstance(rngs, nnx.Rngs):
            checks.refuse("rngs", checks.describe(rngs), "nnx.Rngs, as in nnx.Rngs(0)")
        checks.count("in_features", in_features)
        checks.count("hidden_features", hidden_features)
        self.in_features = in_features
        self.hidden_features = hidden_features

    @abc.abstractmethod
    def step(self, carry: Carry, x: Float[Array, "*B F"]) -> tuple[Carry, Float[Array, "*B Y"]]:
        """Take one step without checking the arguments."""

    @final
    def __call__(
        self, carry: Carry, x: Float[Array, "*B F"] | Any
    ) -> tuple[Carry, Float[Array, "*B Y"]]:
        """Take one step: ``(carry, x) -> (carry, y)``.

        Raises:
          InputError: `x` or `carry` has another size, structure or dtype than the cell.
        """
        checks.features("x", x, self.in_features, self.dtype, "cell")
        self._check_carry(carry, x.shape[:-1])
        return self.step(*jax.tree.map(jnp.asarray, (carry, x)))

    @checked
    def initialize_carry(
        self, input_shape: tuple[Size, ...], rngs: nnx.Rngs | nnx.RngStream | None = None
    ) -> Carry:
        """Return the zero carry, leaves [*B, H], for inputs of shape [*B, F]; `rngs` is not used."""
        del rngs  # required by Flax's protocol; a zero carry draws nothing
        zeros = jnp.zeros((*input_shape[:-1], self.hidden_features), self.dtype)
        return zeros if len(self.carry_names) == 1 else (zeros,) * len(self.carry_names)

    @property
    def out_features(self) -> int:
        """Number Y of features of the output."""
        return self.hidden_features

    @property
    def dtype(self) -> Any:
        """The dtype of parameters, carry and arithmetic."""
        return jax.tree.leaves(self)[0].dtype

    @property
    def num_feature_axes(self) -> int:
        """Number of trailing axes of an input that are not batch (Flax's protocol)."""
        return 1

    def _check_carry(self, carry: Carry, batch: tuple[Size, ...]) -> None:
        like = jax.eval_shape(lambda: self.initialize_carry((*batch, self.in_features)))
        names = ", ".join(self.carry_names)
        if jax.tree.structure(carry) != jax.tree.structure(like):
            what = f"({names})" if len(self.carry_names) > 1 else f"one array {names}"
            checks.refuse("carry", checks.describe(carry), f"{what}, as from initialize_carry")
        for name, leaf, want in zip(
            self.carry_names, jax.tree.leaves(carry), jax.tree.leaves(like), strict=True
        ):
            if jnp.shape(leaf) != want.shape or leaf.dtype != want.dtype:
                checks.refuse(
                    f"carry ({name})", checks.describe(leaf), f"{checks.describe(want)}, [*B, H]"
                )


class InputWeights(RecurrentCell):
    """A cell with input weights and biases, one block for each gate.

    Args:
      in_features: size F of the input.
      hidden_features: number H of units.
      kernel_init: initialiser of each gate's input block [F, H].
      bias_init: initialiser of the biases, called with the shape (G, H), one row per gate; by default
        the cell's own, `default_bias_init`.
      param_dtype: dtype of the parameters, the carry and the arithmetic.
      rngs: ``nnx.Rngs`` whose ``params`` stream draws the weights.

    Attributes:
      kernel: input weights [F, G·H], gates side by side.
      bias: biases [G·H], added to the drive.
    """

    gates: ClassVar[tuple[str, ...]]
    """Names of the gates in the order in which the kernels hold them."""

    # A class method, because `nnx.tabulate` replaces plain and static functions of a class by methods.
    @classmethod
    def default_bias_init(cls) -> Initializer:
        """Return the default initialiser of the biases: zeros."""
        return jax.nn.initializers.zeros

    @checked
    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        kernel_init: Initializer = initializers.glorot(),
        bias_init: Initializer | None = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(in_features, hidden_features, rngs=rngs)
        checks.floating_dtype("param_dtype", param_dtype)
        g, h = len(self.gates), hidden_features
        self.kernel = nnx.Param(
            initializers.per_gate(kernel_init, rngs.params(), (in_features, h), g, param_dtype)
        )
        bias_init = bias_init or self.default_bias_init()
        biases = bias_init(rngs.params(), (g, h), param_dtype)
        self.bias = nnx.Param(initializers.on_drawn(jnp.ravel, biases))

    def project(self, x: Float[Array, "*B F"]) -> Float[Array, "*B P"]:
        """Map the input to the drive, W x + b."""
        return affine(x, self.kernel[...], self.bias[...])


class DenseWeights(InputWeights):
    """A cell with input weights, biases and full recurrent matrices, one block for each gate.

    Args:
      in_features: size F of the input.
      hidden_features: number H of units.
      recurrent_kernel_init: initialiser of each gate's recurrent block [H, H]; by default orthogonal.
      options: the other options of `InputWeights`.

    Attributes:
      recurrent_kernel: recurrent weights [H, G·H], gates side by side.
    """

    @classmethod
    def default_recurrent_kernel_init(cls) -> Initializer:
        """Return the default initialiser of a recurrent block: `orthogonal`."""
        return initializers.orthogonal()

    @checked
    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        recurrent_kernel_init: Initializer | None = None,
        **options: Unpack[InputOptions],
    ):
        super().__init__(in_features, hidden_features, **options)
        init = recurrent_kernel_init or self.default_recurrent_kernel_init()
        key, shape = options["rngs"].params(), (hidden_features, hidden_features)
        self.recurrent_kernel = nnx.Param(
            initializers.per_gate(init, key, shape, len(self.gates), self.dtype)
        )


class SplitStep(RecurrentCell):
    """A cell whose step consists of four parts, with the properties given in `jaxrnn.typing`."""

    @abc.abstractmethod
    def project(self, x: Float[Array, "*B F"]) -> Float[Array, "*B D"]:
        """Map the input to the drive: everything that needs no carry."""

    @abc.abstractmethod
    def mix(self, carry: Carry) -> Float[Array, "*B P"]:
        """Map the carry to the pull: the recurrent weights, affine in the carry."""

    @abc.abstractmethod
    def update(
        self, carry: Carry, drive: Float[Array, "*B D"], pull: Float[Array, "*B P"]
    ) -> Carry:
        """Combine carry, drive and pull into the next carry, unit by unit."""

    def readout(self, carry: Carry) -> Float[Array, "*B Y"]:
        """Return the output of a carry: h, its last leaf."""
        return jax.tree.leaves(carry)[-1]

    def step(self, carry: Carry, x: Float[Array, "*B F"]) -> tuple[Carry, Float[Array, "*B Y"]]:
        """Take one step, composed of the four parts."""
        carry = self.update(carry, self.project(x), self.mix(carry))
        return carry, self.readout(carry)


class DenseCell(DenseWeights, SplitStep):
    """A split cell with full recurrent matrices that read h, the last leaf of its carry."""

    @multiplies_by("recurrent_kernel")
    def mix(self, carry: Carry) -> Float[Array, "*B P"]:
        """Return U h."""
        return jax.tree.leaves(carry)[-1] @ self.recurrent_kernel[...]
