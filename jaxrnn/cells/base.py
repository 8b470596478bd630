"""What every cell of ours is: a Param-only module with Flax's protocol outside.

A cell holds `nnx.Param`s and nothing else that changes: no random state, no Python-side mutation. Such
a module is a plain pytree, so ``jax.grad``, ``jit``, ``vmap`` and optax take it as it is:
``jax.grad(loss)(cell)`` is a cell of gradients, ``jax.vmap(make)(keys)`` an ensemble of cells.

Two questions decide what a new cell subclasses.

*Which weights has it?* `InputWeights`: a kernel and a bias a gate, and W x + b out of them. `DenseWeights`:
a full recurrent matrix a gate beside them. `RecurrentCell`: its own.

*Does its step split?* `SplitStep`: into `project`, `mix`, `update` and `readout` (what each promises:
`jaxrnn.typing`), with the fast gradient and the cheap Jacobian that follow. Where two products depend on each
other, as in LEM, it does not, and the cell writes `step` as a whole.

`DenseCell` is the common case, both at once: a gated cell then is its gates' names and `update`.
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
    """Keyword arguments of every cell with input weights; `InputWeights` says what they mean."""

    kernel_init: Initializer
    bias_init: Initializer
    param_dtype: Any
    rngs: Required[nnx.Rngs]


class CellOptions(InputOptions, total=False):
    """Keyword arguments of every cell with dense weights; `DenseWeights` says what they mean."""

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
    # One feature is no matrix product: XLA's CPU backend takes its gradient many times slower as one.
    shape = (*x.shape[:-1], kernel.shape[1])
    return jnp.broadcast_to(x, shape) * jnp.broadcast_to(kernel[0], shape)


def everywhere(vector: Inexact[Array, "P"], like: Inexact[Array, "*B N"]) -> Inexact[Array, "*B P"]:
    """Return a vector at every place of a batch."""
    return jnp.broadcast_to(vector, (*like.shape[:-1], vector.shape[-1]))


def free_leaves(cell: Any, carry: Carry) -> list[int]:
    """Return the places of the carry's leaves that others may set; all, if the cell says nothing."""
    own = getattr(cell, "own_carry", ())
    if not own:
        return list(range(len(jax.tree.leaves(carry))))
    return [i for i, name in enumerate(cell.carry_names) if name not in own]


@dataclasses.dataclass(frozen=True)
class _Name:
    """Where a function is found."""

    module: str
    name: str

    @classmethod
    def of(cls, function: Any) -> _Name | None:
        """Return the name of a function, or None where it is not found by it."""
        name = cls(getattr(function, "__module__", None) or "", getattr(function, "__name__", ""))
        return name if name.module in sys.modules and name.find() is function else None

    def find(self) -> Any:
        """Return what has this name."""
        return getattr(importlib.import_module(self.module), self.name, None)


class PickledByName(nnx.Module):
    """A module that is pickled with its functions by name: ``jnp.tanh`` is no plain function."""

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes, with names for functions."""
        attributes = super().__getstate__().items()
        return {
            key: (_Name.of(value) or value) if callable(value) else value
            for key, value in attributes
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the attributes back."""
        super().__setstate__(
            {
                key: value.find() if isinstance(value, _Name) else value
                for key, value in state.items()
            }
        )


class RecurrentCell(PickledByName, abc.ABC):
    """The protocol common to all cells.

    Args:
      in_features: size F of the input.
      hidden_features: number H of units.
      rngs: ``nnx.Rngs`` whose ``params`` stream draws the weights.
    """

    carry_names: ClassVar[tuple[str, ...]] = ("h",)
    """Names of the carry's leaves, in pytree order."""

    own_carry: ClassVar[tuple[str, ...]] = ()
    """Names of the leaves that mean nothing but what the cell itself wrote: clocks, normalisers and what they
    normalise. A start that is learnt or handed over leaves them as `initialize_carry` has them."""

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
        """Take one step, arguments unchecked."""

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
        del rngs  # Flax's protocol has it; a zero carry draws nothing
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
    """Input weights and biases, a block for each gate.

    Args:
      in_features: size F of the input.
      hidden_features: number H of units.
      kernel_init: initialiser of each gate's input block [F, H].
      bias_init: initialiser of the biases, called with the shape (G, H), one row a gate; by default
        the cell's own, `default_bias_init`.
      param_dtype: dtype of the parameters, the carry and the arithmetic.
      rngs: ``nnx.Rngs`` whose ``params`` stream draws the weights.

    Attributes:
      kernel: input weights [F, G·H], gates side by side.
      bias: biases [G·H], added to the drive.
    """

    gates: ClassVar[tuple[str, ...]]
    """Names of the gates in the order in which the kernels hold them."""

    # A class method: `nnx.tabulate` replaces plain functions of a class, static ones too, by methods.
    @classmethod
    def default_bias_init(cls) -> Initializer:
        """Return the initialiser of the biases where none is given: zeros."""
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
    """Input weights, biases and full recurrent matrices, a block for each gate.

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
        """Return the initialiser of a recurrent block where none is given: `orthogonal`."""
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
    """A step made of four parts; `jaxrnn.typing` says what each promises."""

    @abc.abstractmethod
    def project(self, x: Float[Array, "*B F"]) -> Float[Array, "*B D"]:
        """Map the input to the drive: all that needs no carry."""

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
        """Take one step, part by part."""
        carry = self.update(carry, self.project(x), self.mix(carry))
        return carry, self.readout(carry)


class DenseCell(DenseWeights, SplitStep):
    """A split cell with full recurrent matrices that read h, the last leaf of its carry."""

    @multiplies_by("recurrent_kernel")
    def mix(self, carry: Carry) -> Float[Array, "*B P"]:
        """Return U h."""
        return jax.tree.leaves(carry)[-1] @ self.recurrent_kernel[...]
