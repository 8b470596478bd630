"""Recurrent weights computed from parameters, so that training preserves their properties.

    SkewSymmetric      A = T − Tᵀ, T strictly upper triangular     every eigenvalue imaginary
    Orthogonal         exp(A), A skew-symmetric                    every singular value 1
    Blended            (1 − β)(M + Mᵀ) + β(M − Mᵀ) − γ I           a spectrum moved to the left
    BlockTriangular    no entries from fast units to slow ones     a hierarchy of time scales
    Phases             cos θ + i sin θ                             every number of size 1
    Directions         v / ‖v‖                                     every vector of norm 1

Each replaces a parameter of a cell (`jaxrnn.typing.DerivedWeight`) and is computed once for all steps. Cells
compute h W where the papers compute W h, so W here is the papers' Wᵀ. All these properties hold for both,
except that the triangle is transposed here.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxrnn.annotations import checked
from jaxrnn.cells.initializers import on_drawn
from jaxrnn.typing import Initializer, Key, at_least_float32


class _Derived(nnx.Module, abc.ABC):
    """Base class of weights that are computed from parameters."""

    @abc.abstractmethod
    def derive(self) -> Float[Array, "..."]:
        """Return the weight."""

    def __getitem__(self, key: Any) -> Float[Array, "..."]:
        """Return a part of the weight; ``[...]`` is all of it."""
        return self.derive()[key]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return jax.eval_shape(self.derive).shape

    @property
    def dtype(self) -> Any:
        """The dtype of the weight."""
        return jax.eval_shape(self.derive).dtype


class SkewSymmetric(_Derived):
    """A skew-symmetric matrix, A = T − Tᵀ.

    Args:
      size: H.
      init: initialiser of a matrix [H, H], of which only the entries above the diagonal are used.
      param_dtype: dtype of the parameters.
      key: draws the parameters.

    Attributes:
      upper: the entries of T above the diagonal, row by row [H (H − 1) / 2].
    """

    @checked
    def __init__(self, size: int, *, init: Initializer, param_dtype: Any, key: Key):
        self.size = size
        matrix = init(key, (size, size), param_dtype)
        self.upper = nnx.Param(on_drawn(lambda m: m[np.triu_indices(size, 1)], matrix))

    def derive(self) -> Float[Array, "H H"]:
        """Return A."""
        rows, columns = np.triu_indices(self.size, 1)
        upper = jnp.zeros((self.size, self.size), self.upper.dtype)
        upper = upper.at[rows, columns].set(self.upper[...])
        return upper - upper.T


class Orthogonal(_Derived):
    """An orthogonal matrix exp(A), A skew-symmetric, up to 1 + ‖A‖ rounding errors; its determinant is 1.

    Lezcano-Casado & Martínez-Rubio 2019. In an ensemble, networks with several such weights are trained one
    after another (`jaxrnn.training.program`).

    Args:
      size: H.
      param_dtype: dtype of the parameters.
      key: draws the angles of H/2 planes of rotation, uniform in (−π, π) (Henaff et al. 2016).

    Attributes:
      log: A.
    """

    @checked
    def __init__(self, size: int, *, param_dtype: Any, key: Key):
        self.log = SkewSymmetric(size, init=_rotations, param_dtype=param_dtype, key=key)

    def derive(self) -> Float[Array, "H H"]:
        """Return exp(A)."""
        generator = self.log.derive()
        wide = generator.astype(at_least_float32(generator.dtype))
        return jax.scipy.linalg.expm(wide).astype(generator.dtype)


def _rotations(key: Key, shape: Sequence[int], dtype: Any) -> Float[Array, "H H"]:
    """Return the generator of rotations in the planes (0, 1), (2, 3), …, as its upper triangle."""
    size = shape[0]
    angles = jax.random.uniform(key, (size // 2,), dtype, minval=-np.pi, maxval=np.pi)
    first = 2 * np.arange(size // 2)
    return jnp.zeros(shape, dtype).at[first, first + 1].set(angles)


class Blended(_Derived):
    """A matrix (1 − β)(M + Mᵀ) + β(M − Mᵀ) − γ I (Erichson et al. 2021).

    Args:
      size: H.
      blend: β; with 1 and γ = 0 the matrix is skew-symmetric.
      damping: γ.
      init: initialiser of M [H, H].
      param_dtype: dtype of the parameters.
      key: draws the parameters.

    Attributes:
      free: M [H, H].
    """

    @checked
    def __init__(
        self,
        size: int,
        *,
        blend: float,
        damping: float,
        init: Initializer,
        param_dtype: Any,
        key: Key,
    ):
        self.blend = blend
        self.damping = damping
        self.free = nnx.Param(init(key, (size, size), param_dtype))

    def derive(self) -> Float[Array, "H H"]:
        """Return the matrix."""
        free = self.free[...]
        symmetric, skew = free + free.T, free - free.T
        identity = jnp.eye(len(free), dtype=free.dtype)
        return (1 - self.blend) * symmetric + self.blend * skew - self.damping * identity


class BlockTriangular(_Derived):
    """A block-triangular matrix [H, H]: unit j reads unit i only if `group[i]` ≥ `group[j]`.

    Args:
      group: the group of each unit, ascending.
      init: initialiser of the full matrix.
      param_dtype: dtype of the parameters.
      key: draws the parameters.

    Attributes:
      entries: the entries that are not zero by construction, row by row.
    """

    @checked
    def __init__(self, group: Sequence[int], *, init: Initializer, param_dtype: Any, key: Key):
        self.group = tuple(group)
        size = len(self.group)
        matrix = init(key, (size, size), param_dtype)
        self.entries = nnx.Param(on_drawn(lambda m: m[self._places], matrix))

    @property
    def _places(self) -> tuple[Any, ...]:
        group = np.asarray(self.group)
        return np.nonzero(group[:, None] >= group[None, :])

    def derive(self) -> Float[Array, "H H"]:
        """Return the matrix."""
        size = len(self.group)
        return jnp.zeros((size, size), self.entries.dtype).at[self._places].set(self.entries[...])


class Phases(_Derived):
    """Complex numbers of size 1, cos θ + i sin θ.

    Args:
      shape: shape of the angles [*N, H].
      param_dtype: dtype of the parameters. The numbers are at least float32: rounded to half precision, their
        size would not stay 1.
      key: draws the angles, uniform in (−π, π).

    Attributes:
      angles: θ [*N, H].
    """

    @checked
    def __init__(self, shape: tuple[int, ...], *, param_dtype: Any, key: Key):
        self.angles = nnx.Param(jax.random.uniform(key, shape, param_dtype, -np.pi, np.pi))

    def derive(self) -> Float[Array, "*N 2 H"]:
        """Return the real and imaginary parts of the numbers."""
        angles = self.angles[...].astype(at_least_float32(self.angles.dtype))
        return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-2)


class Directions(_Derived):
    """Vectors of norm 1, v / ‖v‖.

    Args:
      shape: shape of the vectors [*N, H].
      param_dtype: dtype of the parameters. The vectors are at least float32: rounded to half precision, their
        norm would not stay 1.
      key: draws the vectors, uniform in (−1, 1).

    Attributes:
      free: v [*N, H].
    """

    @checked
    def __init__(self, shape: tuple[int, ...], *, param_dtype: Any, key: Key):
        self.free = nnx.Param(jax.random.uniform(key, shape, param_dtype, -1, 1))

    def derive(self) -> Float[Array, "*N H"]:
        """Return the vectors."""
        free = self.free[...].astype(at_least_float32(self.free.dtype))
        return free / jnp.sqrt(jnp.sum(free * free, axis=-1, keepdims=True))
