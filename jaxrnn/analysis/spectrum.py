"""Eigenvalues and singular values of the step Jacobians.

The eigenvalues say what one and the same step would do if it were repeated for ever; the singular
values what it does to the length of a vector now. For a normal matrix they agree in modulus; a
non-normal one can have spectral radius below 1 and still stretch some vectors for many steps. Neither
decides alone whether gradients vanish: that is the product's matter (`jaxrnn.analysis.propagator`).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from jaxrnn.analysis.jacobians import jacobians
from jaxrnn.analysis.lapack import one_blas_thread
from jaxrnn.analysis.trajectory import Trajectory
from jaxrnn.typing import Step, at_least_float32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Spectra of the step Jacobians along a trajectory.

    Attributes:
      eigenvalues: [T, *B, S], by falling modulus.
      singular_values: [T, *B, S], falling.
    """

    eigenvalues: Complex[Array, "T *B S"]
    singular_values: Float[Array, "T *B S"]

    @property
    def spectral_radius(self) -> Float[Array, "T *B"]:
        """Largest |eigenvalue| of each step, [T, *B]."""
        return jnp.abs(self.eigenvalues[..., 0])

    @property
    def norm(self) -> Float[Array, "T *B"]:
        """Largest singular value of each step, ‖J‖₂, [T, *B]."""
        return self.singular_values[..., 0]


def spectrum(cell: Step, trajectory: Trajectory) -> Spectrum:
    """Return eigenvalues and singular values of every step Jacobian.

    Eigenvalues of a general matrix exist on CPU and GPU; on a TPU run this part on the host.

    Raises:
      InputError: the trajectory holds values that are not finite.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> cell = jaxrnn.ElmanCell(3, 8, rngs=nnx.Rngs(0))
      >>> path = jaxrnn.analysis.trace(cell, jnp.zeros((20, 4, 3)))
      >>> spec = jaxrnn.analysis.spectrum(
      ...     cell, path
      ... )  # at 0 an orthogonal tanh net is on the circle
      >>> bool(jnp.allclose(spec.spectral_radius, 1, atol=1e-5))
      True
    """
    return spectrum_of(jacobians(cell, trajectory))


@one_blas_thread
@jax.jit
def spectrum_of(matrices: Float[Array, "T *B S S"]) -> Spectrum:
    """Return the spectra of given step Jacobians [T, *B, S, S]."""
    matrices = matrices.astype(at_least_float32(matrices.dtype))
    values = jnp.linalg.eigvals(matrices)
    order = jnp.argsort(-jnp.abs(values), axis=-1)
    return Spectrum(
        eigenvalues=jnp.take_along_axis(values, order, axis=-1),
        singular_values=jnp.linalg.svd(matrices, compute_uv=False),
    )
