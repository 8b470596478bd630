"""Pseudospectra: how far eigenvalues can move under a small perturbation of the matrix.

The ε-pseudospectrum of J is the set of z that are eigenvalues of some J + E, ‖E‖ < ε. The same set is

    σ_min(z I − J) < ε ,

so the smallest singular value on a grid shows the sets for all ε at once, as level lines. For a normal matrix
these are circles around the eigenvalues. If they reach further, the eigenvalues mislead, and J^k grows before
it decays. The Kreiss matrix theorem gives

    sup_k ‖J^k‖  ≥  sup_{|z| > 1} (|z| − 1) / σ_min(z I − J) ,

and, in its other form for a flow ds/dt = J s,

    sup_t ‖exp(t J)‖  ≥  sup_{Re z > 0} Re z / σ_min(z I − J) .

Trefethen & Embree, "Spectra and Pseudospectra", 2005, chapters 14, 16 and 39. As in that book, the matrix is
reduced to Schur form T once. At each z, the largest singular value of (z I − T)⁻¹ comes from Lanczos
iteration, each step of which solves two triangular systems: O(S²) a point instead of O(S³) for an SVD. All
points of a chunk are solved together, in blocks of rows. A Lanczos value is accepted when its residual is
below 10⁻⁶ of it; points that have not converged after 120 steps get an SVD.

Values below ε_machine ‖J‖_F are rounding and are replaced by this number: inside the circle of a shift line
σ_min falls as |z|^S, beyond the range of floats. Numbers derived from the grid are lower bounds, because the
set may reach further between grid points.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Complex, Float

from jaxrnn import checks
from jaxrnn.analysis.lapack import one_blas_thread, square_matrices
from jaxrnn.annotations import checked
from jaxrnn.typing import ArrayLike, at_least_float32

_CHUNK = 512  # points solved together: their vectors stay in the cache
# Rows of a triangular system that are solved one by one; blocks of rows are coupled by matrix products.
_ROWS = 32
_STEPS = 120  # of Lanczos; 4 to 10 are enough at most points, long shift lines take up to a hundred
# Convergence is tested at every step up to this one, then only at its multiples: a test costs more than a
# step by then.
_LOOK_EVERY = 10
_SETTLED = 1e-6


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pseudospectrum:
    """Smallest singular value of z I − J on a grid z = real + i·imaginary.

    Attributes:
      real: real parts, increasing [N].
      imaginary: imaginary parts, increasing [M].
      smallest: σ_min(z I − J), rows by imaginary part [M, N].
      eigenvalues: of J, by decreasing modulus [S].
    """

    real: Float[Array, "N"]
    imaginary: Float[Array, "M"]
    smallest: Float[Array, "M N"]
    eigenvalues: Complex[Array, "S"]

    @checked
    def radius(self, epsilon: float) -> float:
        """Return the largest |z| in the ε-pseudospectrum; a lower bound, because z is on the grid.

        Raises:
          InputError: `epsilon` is not a number above 0, or its set reaches the edge of the grid.
        """
        return float(np.max(np.abs(self._inside(epsilon)), initial=float(abs(self.eigenvalues[0]))))

    @checked
    def abscissa(self, epsilon: float) -> float:
        """Return the largest real part in the ε-pseudospectrum; a lower bound, because z is on the grid.

        Raises:
          InputError: `epsilon` is not a number above 0, or its set reaches the edge of the grid.
        """
        furthest = float(jnp.real(self.eigenvalues).max())
        return float(np.max(np.real(self._inside(epsilon)), initial=furthest))

    @property
    def kreiss(self) -> float:
        """Lower bound on sup_k ‖J^k‖ and on the Kreiss constant; at least 1.

        Infinite if ρ(J) > 1 by more than rounding; rounding alone may exceed 1 for an orthogonal matrix.
        """
        rounding = 16 * len(self.eigenvalues) * float(jnp.finfo(self.eigenvalues.dtype).eps)
        if abs(self.eigenvalues[0]) > 1 + rounding:
            return float(np.inf)
        with np.errstate(divide="ignore", invalid="ignore"):
            bounds = (np.abs(self._points) - 1) / np.asarray(self.smallest)
        return float(np.nanmax(bounds, initial=1.0))

    @property
    def flow_kreiss(self) -> float:
        """Lower bound on sup_t ‖exp(t J)‖ over t ≥ 0, for J the derivative of a flow; at least 1.

        It is the largest Re z / σ_min(z I − J) right of the imaginary axis. It is infinite if an eigenvalue
        is to the right by more than rounding.
        """
        size = float(abs(self.eigenvalues[0]))
        rounding = 16 * len(self.eigenvalues) * float(jnp.finfo(self.eigenvalues.dtype).eps)
        if float(jnp.real(self.eigenvalues).max()) > rounding * size:
            return float(np.inf)
        with np.errstate(divide="ignore", invalid="ignore"):
            bounds = np.real(self._points) / np.asarray(self.smallest)
        return float(np.nanmax(bounds, initial=1.0))

    @property
    def _points(self) -> np.ndarray:
        return np.asarray(self.real)[None, :] + 1j * np.asarray(self.imaginary)[:, None]

    def _inside(self, epsilon: float) -> np.ndarray:
        checks.positive("epsilon", epsilon)
        inside = np.asarray(self.smallest) <= epsilon
        edge = np.ones_like(inside)
        edge[1:-1, 1:-1] = False
        if (inside & edge).any():
            got = f"{epsilon}, whose set reaches the edge of the grid"
            checks.refuse("epsilon", got, "a smaller one, or a pseudospectrum of larger extent")
        return self._points[inside]


@checked
@one_blas_thread
def pseudospectrum(
    matrix: ArrayLike,
    *,
    points: int = 64,
    extent: tuple[float, float, float, float] | None = None,
) -> Pseudospectrum:
    """Return σ_min(z I − J) on a grid in the complex plane, computed on the host and in float64.

    Args:
      matrix: J [S, S].
      points: number of grid points along each axis, 2 or more.
      extent: (left, right, bottom, top) of the grid; by default a square around 0, 1.5 times as large as
        needed for the unit circle and the eigenvalues.

    Raises:
      InputError: a matrix that is not square or not finite, fewer than 2 points, or an empty extent.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrnn.analysis._pseudospectrum import pseudospectrum
      >>> shear = pseudospectrum(jnp.array([[0.5, 10.0], [0.0, 0.5]]))
      >>> shear.radius(1e-2) > 0.75  # a change of 0.01 moves the eigenvalue ½ by √(0.01 · 10)
      True
      >>> shear.kreiss > 4.5  # so some power of it is longer than that
      True
    """
    given = square_matrices("matrix", matrix)
    if given.ndim != 2:
        checks.refuse("matrix", checks.describe(matrix), "one matrix [S, S]")
    checks.count("points", points)
    if points < 2:
        checks.refuse("points", points, "2 or more along each axis")
    form = scipy.linalg.schur(np.asarray(given).astype(complex), output="complex")[0]
    eigenvalues = np.diagonal(form)[np.argsort(-np.abs(np.diagonal(form)))]
    left, right, bottom, top = _extent(extent, np.abs(eigenvalues[0]))
    real, imaginary = np.linspace(left, right, points), np.linspace(bottom, top, points)
    # A real matrix has the same value at z and at its conjugate.
    mirrored = bottom == -top and not jnp.iscomplexobj(given)
    first = points // 2 if mirrored else 0
    grid = real[None, :] + 1j * imaginary[first:, None]
    smallest = smallest_singular_values(form, grid.ravel()).reshape(grid.shape)
    smallest = np.concatenate([smallest[::-1][:first], smallest])
    dtype = jnp.finfo(at_least_float32(given.dtype)).dtype
    return Pseudospectrum(
        *(jnp.asarray(a, dtype) for a in (real, imaginary, smallest)),
        eigenvalues=jnp.asarray(eigenvalues, np.result_type(dtype, np.complex64)),
    )


def _extent(extent: Any, radius: float) -> tuple[float, float, float, float]:
    if extent is None:
        reach = 1.5 * max(1.0, float(radius))
        return -reach, reach, -reach, reach
    expected = "(left, right, bottom, top), finite, left < right and bottom < top"
    edges = np.asarray(extent, float)
    if edges.shape != (4,) or not np.isfinite(edges).all():
        checks.refuse("extent", repr(extent), expected)
    left, right, bottom, top = map(float, edges)
    if not (left < right and bottom < top):
        checks.refuse("extent", repr(extent), expected)
    return left, right, bottom, top


def smallest_singular_values(
    triangular: Complex[np.ndarray, "S S"], points: Complex[np.ndarray, "N"]
) -> Float[np.ndarray, "N"]:
    """Return σ_min(z I − T) of an upper triangular T at each z, or the rounding of T if that is larger."""
    chunks = [points[i : i + _CHUNK] for i in range(0, len(points), _CHUNK)]
    found = np.concatenate([_by_lanczos(triangular, chunk) for chunk in chunks])
    identity = np.eye(len(triangular))
    for i in np.flatnonzero(np.isnan(found)):
        found[i] = scipy.linalg.svdvals(points[i] * identity - triangular)[-1]
    return np.maximum(found, _rounding(triangular))


def _rounding(triangular: np.ndarray) -> float:
    return float(np.finfo(float).eps * (scipy.linalg.norm(triangular) or 1.0))


# Far below rounding the inverse overflows.
@np.errstate(over="ignore", invalid="ignore")
def _by_lanczos(triangular: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return σ_min(z I − T) for each point z [N], or 0 below rounding; NaN where it has not converged.

    Lanczos's tridiagonal matrix of (z I − T)⁻¹ (z I − T)⁻* has diagonal α and off-diagonal β. Its largest
    eigenvalue θ converges to 1/σ_min² from below, and the last entry of its eigenvector times the next β is
    the residual.
    """
    size, found = len(triangular), np.full(len(points), np.nan)
    adjoint = np.ascontiguousarray(triangular.conj().T)
    draw = np.random.default_rng(0)
    start = draw.normal(size=(size, 1)) + 1j * draw.normal(size=(size, 1))
    now = np.repeat(start / np.linalg.norm(start), len(points), axis=1)
    before, beta = np.zeros_like(now), np.zeros(len(points))
    tridiagonal = np.zeros((len(points), _STEPS + 1, _STEPS + 1))
    left = np.arange(len(points))
    for k in range(_STEPS):
        pivots = _pivots(triangular, points[left])
        following = _solve_lower(adjoint, pivots.conj(), now)
        following = _solve_upper(triangular, pivots, following)
        alpha = np.sum(now.conj() * following, axis=0).real
        following -= alpha * now + beta * before
        beta = np.linalg.norm(following, axis=0)
        tridiagonal[left, k, k] = alpha
        tridiagonal[left, k, k + 1] = tridiagonal[left, k + 1, k] = beta
        sunk = ~(np.sqrt(np.maximum(alpha, beta)) * _rounding(triangular) < 1)  # or out of range
        found[left[sunk]] = 0
        stays = ~sunk
        if k < _LOOK_EVERY or k % _LOOK_EVERY == 0:
            values, vectors = np.linalg.eigh(tridiagonal[left[stays], : k + 1, : k + 1])
            largest = values[:, -1]
            settled = beta[stays] * np.abs(vectors[:, -1, -1]) <= _SETTLED * largest
            found[left[stays][settled]] = 1 / np.sqrt(largest[settled])
            stays[stays] = ~settled
        if not stays.any():
            break
        before, beta, left = now[:, stays], beta[stays], left[stays]
        now = following[:, stays] / beta
    return found


def _pivots(triangular: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the diagonals of z I − T [S, N], with rounding in place of 0 at an eigenvalue."""
    pivots = points[None, :] - np.diagonal(triangular)[:, None]
    rounding = _rounding(triangular)
    return np.where(np.abs(pivots) < rounding, rounding, pivots)


def _solve_upper(triangular: np.ndarray, pivots: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve (z I − T) x = b at all points, T upper triangular; the columns of `right` are the b [S, N]."""
    # With rows and columns in reverse order, an upper triangular matrix becomes lower triangular.
    turned = np.ascontiguousarray(triangular[::-1, ::-1])
    return _solve_lower(turned, pivots[::-1], right[::-1])[::-1]


def _solve_lower(lower: np.ndarray, pivots: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve (z I − L) x = b at all points, L lower triangular, given the diagonals of z I − L."""
    x = right.copy()
    for start in range(0, len(lower), _ROWS):
        block = slice(start, start + _ROWS)
        x[block] += lower[block, :start] @ x[:start]
        for i in range(start, min(start + _ROWS, len(lower))):
            x[i] += lower[i, start:i] @ x[start:i]
            x[i] /= pivots[i]
    return x
