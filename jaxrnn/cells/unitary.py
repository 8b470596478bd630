"""The unitary evolution network: a complex state, multiplied by a product of cheap unitary matrices.

    h' = modReLU(D₃ R₂ F⁻¹ D₂ Π R₁ F D₁ h + V x, b)          h complex
    y  = (Re h', Im h')

Arjovsky, Shah & Bengio, "Unitary Evolution Recurrent Neural Networks", ICML 2016. D are diagonals of
phases, R reflections, F the Fourier transform and Π a fixed permutation. These are seven vectors of H numbers
and O(H log H) operations per step, and the product is unitary for any values. The state is stored as two real
leaves, so analyses use its S = 2H real coordinates. At the start b is 0, where modReLU is the identity (the
paper draws it near 0), so every singular value of the propagator is 1. With b ≠ 0 this holds for the
recurrent matrix alone: modReLU multiplies the gradient across the direction of a number by 1 + b/|z|
(`modrelu`).

Choices that the paper leaves open: the permutation is one fixed draw for each H, and the initial state is
zero and not learned (`jaxrnn.RNN` can learn one).

Weakness: seven vectors parametrise only few of the unitary matrices, and a state that is never forgotten
leaves no room for new inputs.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells import initializers
from jaxrnn.cells.base import SplitStep, everywhere, product
from jaxrnn.cells.modrelu import modrelu
from jaxrnn.cells.weights import Directions, Phases
from jaxrnn.typing import Initializer, at_least_float32

ComplexCarry = tuple[Float[Array, "*B H"], Float[Array, "*B H"]]


class UnitaryCell(SplitStep):
    """Unitary cell; carry (re, im), each [*B, H], output both concatenated [*B, 2·H].

    Args:
      in_features: size F of the input.
      hidden_features: number H of complex units.
      kernel_init: initialiser of the real and of the imaginary block of V, each [F, H].
      param_dtype: dtype of the parameters, the carry and the arithmetic.
      rngs: ``nnx.Rngs`` whose ``params`` stream draws the weights.

    Attributes:
      kernel: V, real and imaginary part side by side [F, 2·H].
      phases: `weights.Phases` of D₁, D₂, D₃ [3, 2, H], cosines and sines; angles [3, H], uniform in (−π, π).
      normals: `weights.Directions` of R₁, R₂ [2, 2·H], real and imaginary parts, drawn uniform in (−1, 1).
      threshold: b [H], starts at 0.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import UnitaryCell
      >>> cell = UnitaryCell(3, 8, rngs=nnx.Rngs(0))
      >>> (re, im), y = cell(cell.initialize_carry((5, 3)), jnp.ones((5, 3)))
      >>> re.shape, im.shape, y.shape
      ((5, 8), (5, 8), (5, 16))
    """

    carry_names: ClassVar[tuple[str, ...]] = ("re", "im")

    @checked
    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        kernel_init: Initializer = initializers.glorot(),
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        checks.floating_dtype("param_dtype", param_dtype)
        super().__init__(in_features, hidden_features, rngs=rngs)
        h = hidden_features
        self.kernel = nnx.Param(
            initializers.per_gate(kernel_init, rngs.params(), (in_features, h), 2, param_dtype)
        )
        self.phases = Phases((3, h), param_dtype=param_dtype, key=rngs.params())
        self.normals = Directions((2, 2 * h), param_dtype=param_dtype, key=rngs.params())
        self.threshold = nnx.Param(jnp.zeros((h,), param_dtype))

    @property
    def out_features(self) -> int:
        """Number Y of features of the output: real and imaginary parts."""
        return 2 * self.hidden_features

    def project(self, x: Float[Array, "*B F"]) -> Float[Array, "*B P"]:
        """Return V x, real and imaginary part."""
        return product(x, self.kernel[...])

    def mix(self, carry: ComplexCarry) -> Float[Array, "*B P"]:
        """Return real and imaginary part of the state times the unitary matrix, and b, concatenated."""
        dtype = at_least_float32(self.dtype)
        h = jax.lax.complex(*(part.astype(dtype) for part in carry))
        d1, d2, d3 = (jax.lax.complex(re, im) for re, im in self.phases[...])
        v1, v2 = (jax.lax.complex(*jnp.split(normal, 2)) for normal in self.normals[...])
        h = _reflected(jnp.fft.fft(_scaled(h, d1), norm="ortho"), v1)
        h = _reflected(jnp.fft.ifft(_scaled(_permuted(h), d2), norm="ortho"), v2)
        h = _scaled(h, d3)
        parts = [part.astype(self.dtype) for part in (h.real, h.imag)]
        return jnp.concatenate([*parts, everywhere(self.threshold[...], carry[0])], axis=-1)

    def update(
        self, carry: ComplexCarry, drive: Float[Array, "*B D"], pull: Float[Array, "*B P"]
    ) -> ComplexCarry:
        """Return modReLU(pull + drive)."""
        del carry  # enters through the pull alone
        drive_re, drive_im = jnp.split(drive, 2, axis=-1)
        pull_re, pull_im, threshold = jnp.split(pull, 3, axis=-1)
        re, im = modrelu((pull_re + drive_re, pull_im + drive_im), threshold)
        return re, im

    def readout(self, carry: ComplexCarry) -> Float[Array, "*B Y"]:
        """Return real and imaginary parts side by side."""
        return jnp.concatenate(carry, axis=-1)


def _scaled(h: Any, factors: Any) -> Any:
    return h * everywhere(factors, h)


def _reflected(h: Any, normal: Any) -> Any:
    """Return h − 2 v ⟨v, h⟩, v of norm 1."""
    along = jnp.sum(_scaled(h, normal.conj()), axis=-1, keepdims=True)
    return h - 2 * along * everywhere(normal, h)


def _permuted(h: Any) -> Any:
    """Return Π h.

    It is written as the solution x of Π⁻¹ x = h, whose transpose is another permutation. JAX's own derivative
    would be a scatter, number by number.
    """
    order = permutation(h.shape[-1])
    there, back = (
        functools.partial(jnp.take, indices=places, axis=-1, mode="clip")
        for places in (order, np.argsort(order))
    )
    return jax.lax.custom_linear_solve(
        back, h, solve=lambda _, h: there(h), transpose_solve=lambda _, h: back(h)
    )


def permutation(size: int) -> Any:
    """Return the fixed permutation Π [H]."""
    # NumPy guarantees the stream of RandomState, so a saved network keeps its permutation.
    return np.random.RandomState(0).permutation(size)
