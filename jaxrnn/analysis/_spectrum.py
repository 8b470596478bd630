"""Eigenvalues, eigenvectors and singular values of the step Jacobians, and of the recurrent weights.

The eigenvalues describe the effect of one step repeated for ever; the singular values describe how that step
changes the length of a vector once. For a normal matrix they agree in modulus. A non-normal one can have a
spectral radius below 1 and still stretch some vectors for many steps. Neither decides alone whether gradients
vanish; the product of the Jacobians does (`jaxrnn.analysis.propagator`).

Three numbers measure how far a matrix is from normal, each more local than the one before:

    departure   ‖N‖_F, where J = Q (Λ + N) Q* is the Schur form (Henrici 1962); 0 for a normal matrix
    κ(X)        condition of the eigenvectors: ‖J^k‖ ≤ κ(X) ρ^k, and eigenvalues move by at most
                κ(X) ‖E‖ when J moves by E (Bauer & Fike 1960)
    1/|y*x|     condition of one eigenvalue, x and y its right and left eigenvectors of length 1

The pseudospectrum (`jaxrnn.analysis.pseudospectrum`) gives the full picture. Trefethen & Embree, "Spectra and
Pseudospectra", 2005.

A defective matrix has no full set of eigenvectors. Rounding produces one, with condition numbers of
1/ε. If κ(X) is some 10¹⁴ or more, the left vectors and conditions only show that the matrix is defective.
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
from jaxrnn.analysis._jacobians import jacobians, mixing_blocks, to_all_leaves
from jaxrnn.analysis.lapack import (
    HOST,
    eigenvalues,
    in_float64,
    one_blas_thread,
    singular_values,
    solver,
    square_matrices,
)
from jaxrnn.analysis.trajectory import Trajectory
from jaxrnn.annotations import checked
from jaxrnn.steps import step_of
from jaxrnn.typing import ArrayLike, SplitCell, StepLike, at_least_float32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Spectra of matrices, such as the step Jacobians along a trajectory, with leading axes [T, *B].

    Attributes:
      eigenvalues: [*L, S], by decreasing modulus.
      singular_values: [*L, S], decreasing.
      solver: name of the solver that computed the eigenvalues.
    """

    eigenvalues: Complex[Array, "*L S"]
    singular_values: Float[Array, "*L S"]
    solver: str = dataclasses.field(default="LAPACK", metadata={"static": True})

    @property
    def spectral_radius(self) -> Float[Array, "*L"]:
        """Largest |eigenvalue| of each matrix, [*L]."""
        return jnp.abs(self.eigenvalues[..., 0])

    @property
    def norm(self) -> Float[Array, "*L"]:
        """Largest singular value of each matrix, ‖J‖₂, [*L]."""
        return self.singular_values[..., 0]

    @property
    def time_constants(self) -> Float[Array, "*L S"]:
        """Steps in which a mode decays by the factor e, τ = −1/ln|λ|, [*L, S].

        0 for λ = 0, infinite on the unit circle, and negative outside, where −τ is the time constant of
        growth.
        """
        rates = jnp.log(jnp.abs(self.eigenvalues))
        return jnp.where(rates == 0, jnp.inf, -1 / jnp.where(rates == 0, 1, rates))

    @property
    def frequencies(self) -> Float[Array, "*L S"]:
        """Rotation of a mode around 0, arg λ / 2π in cycles a step, −½ to ½, [*L, S]."""
        return jnp.angle(self.eigenvalues) / (2 * np.pi)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Modes:
    """Eigenvalues and eigenvectors: J = right · diag(eigenvalues) · left, and left · right = I.

    Attributes:
      spectrum: eigenvalues and singular values; the vectors are in the same order.
      right: right eigenvectors, columns of length 1, [*L, S, S].
      left: left eigenvectors, rows, scaled so that row i times column j is 1 for i = j and 0 otherwise;
        NaN where the right ones are linearly dependent, [*L, S, S].
      conditions: 1/|y*x| of each eigenvalue, 1 or more; infinite where `left` is NaN, [*L, S].
      basis_condition: κ(X) = ‖X‖ ‖X⁻¹‖ of the right eigenvectors, [*L].
      departure: Henrici's departure from normality, [*L].
    """

    spectrum: Spectrum
    right: Complex[Array, "*L S S"]
    left: Complex[Array, "*L S S"]
    conditions: Float[Array, "*L S"]
    basis_condition: Float[Array, "*L"]
    departure: Float[Array, "*L"]

    @property
    def eigenvalues(self) -> Complex[Array, "*L S"]:
        """Eigenvalues by decreasing modulus, [*L, S]."""
        return self.spectrum.eigenvalues

    @property
    def relative_departure(self) -> Float[Array, "*L"]:
        """Departure from normality as a fraction of ‖J‖_F, 0 to 1; 0 for the zero matrix, [*L]."""
        size = jnp.linalg.norm(self.spectrum.singular_values, axis=-1)
        return self.departure / jnp.where(size > 0, size, 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WeightSpectrum:
    """Spectra of the recurrent weights, for comparison with those of the step Jacobians.

    Attributes:
      matrices: block of each gate and carry leaf in ∂mix/∂carry, one row for each unit of the gate,
        [G, L, H, H]. For a cell with a dense `recurrent_kernel` it is the transpose of the gate's part of it.
        It is zero for a leaf that no gate reads, such as the LSTM's c, and for a constant gate, such as
        modReLU's threshold.
      spectrum: their eigenvalues and singular values, [G, L, H].
      gates: names of the gates.
      leaves: names of the carry's leaves.
    """

    matrices: Float[Array, "G L H H"]
    spectrum: Spectrum
    gates: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    leaves: tuple[str, ...] = dataclasses.field(metadata={"static": True})


@checked
def spectrum(cell: StepLike, trajectory: Trajectory) -> Spectrum:
    """Return eigenvalues and singular values of every step Jacobian, leading axes [T, *B].

    On a TPU, which has no solver for general matrices, the eigenvalues are computed on the host.

    Raises:
      InputError: the trajectory holds values that are not finite.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> cell = jaxrnn.ElmanCell(3, 8, rngs=nnx.Rngs(0))
      >>> path = jaxrnn.analysis.trace(cell, jnp.zeros((20, 4, 3)))
      >>> spec = jaxrnn.analysis.spectrum(cell, path)
      >>> bool(jnp.allclose(spec.spectral_radius, 1, atol=1e-5))  # an orthogonal tanh net at 0
      True
    """
    return spectrum_of(jacobians(cell, trajectory))


@checked
def spectrum_of(matrices: ArrayLike) -> Spectrum:
    """Return the spectra of given matrices [*L, S, S], such as step Jacobians [T, *B, S, S].

    Raises:
      InputError: matrices that are not square, or not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrnn.analysis._spectrum import spectrum_of
      >>> turn = spectrum_of(jnp.array([[0.0, -0.5], [0.5, 0.0]]))  # ±i/2
      >>> abs(turn.frequencies).tolist()
      [0.25, 0.25]
      >>> round(float(turn.time_constants[0]), 3)
      1.443
    """
    matrices = square_matrices("matrices", matrices)
    values, singular = (in_float64(find, matrices) for find in (eigenvalues, singular_values))
    return Spectrum(values, singular, solver())


@checked
def modes(cell: StepLike, trajectory: Trajectory) -> Modes:
    """Return eigenvalues, left and right eigenvectors and non-normality of every step Jacobian.

    Raises:
      InputError: the trajectory holds values that are not finite.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> from jaxrnn.analysis._spectrum import modes
      >>> cell = jaxrnn.ElmanCell(3, 8, rngs=nnx.Rngs(0))
      >>> found = modes(cell, jaxrnn.analysis.trace(cell, jnp.zeros((20, 4, 3))))
      >>> bool(found.relative_departure.max() < 1e-6)  # orthogonal weights are normal
      True
    """
    return modes_of(jacobians(cell, trajectory))


@checked
@one_blas_thread
def modes_of(matrices: ArrayLike) -> Modes:
    """Return the modes of given matrices [*L, S, S]; on the host and in float64, whatever the device.

    Raises:
      InputError: matrices that are not square, or not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrnn.analysis._spectrum import modes_of
      >>> found = modes_of(jnp.array([[0.9, 10.0], [0.0, 0.5]]))
      >>> round(float(found.departure), 4)  # triangular: the entry off the diagonal
      10.0
      >>> bool(found.conditions[0] > 25)  # √(1 + (10 / 0.4)²)
      True
    """
    given = square_matrices("matrices", matrices)
    wide = np.asarray(given).astype(np.complex128 if jnp.iscomplexobj(given) else np.float64)
    values, right = np.linalg.eig(wide)
    order = np.argsort(-np.abs(values), axis=-1, kind="stable")
    values = np.take_along_axis(values, order, axis=-1)
    right = np.take_along_axis(right, order[..., None, :], axis=-1)
    left = _inverses(right)
    lengths = np.linalg.norm(left, axis=-1)
    stretch = np.linalg.svd(right, compute_uv=False)
    real = jnp.finfo(at_least_float32(given.dtype)).dtype

    def narrow(array: Any) -> Array:
        kind = np.result_type(real, np.complex64) if np.iscomplexobj(array) else real
        return jnp.asarray(array.astype(kind))

    spectra = (values.astype(complex), np.linalg.svd(wide, compute_uv=False))
    with np.errstate(divide="ignore", over="ignore"):
        return Modes(
            spectrum=Spectrum(*map(narrow, spectra), solver=HOST),
            right=narrow(right.astype(complex)),
            left=narrow(left.astype(complex)),
            conditions=narrow(np.where(np.isnan(lengths), np.inf, np.maximum(lengths, 1))),
            basis_condition=narrow(stretch[..., 0] / stretch[..., -1]),
            departure=narrow(np.vectorize(_departure, signature="(s,s)->()")(wide)),
        )


def _inverses(matrices: np.ndarray) -> np.ndarray:
    """Invert matrices [*L, S, S]; NaN where there is no inverse."""
    try:
        return np.linalg.inv(matrices)
    except np.linalg.LinAlgError:  # it does not say which matrix is singular
        if matrices.ndim == 2:
            return np.full_like(matrices, np.nan)
        return np.stack([_inverses(matrix) for matrix in matrices])


def _departure(matrix: np.ndarray) -> float:
    """Return ‖N‖_F of the Schur form; √(‖J‖_F² − Σ|λ|²) would lose half of the digits to cancellation."""
    form = scipy.linalg.schur(matrix)[0]
    above = np.triu(form, 1)
    # In the real form a conjugate pair is a block [[a, b], [c, a]], bc < 0: triangular, it has b + c above.
    pairs = np.diagonal(form, -1)
    above[np.arange(len(pairs)), np.arange(len(pairs)) + 1] += pairs
    return float(np.linalg.norm(above))


@checked
def weight_spectrum(cell: StepLike) -> WeightSpectrum:
    """Return the spectra of a split cell's recurrent weights, gate by gate and carry leaf by carry leaf.

    Raises:
      InputError: a step that is not split, so that its recurrent weights are unknown, a step without any, or
        weights that are not finite.

    Example:
      >>> from flax import nnx
      >>> import jaxrnn
      >>> from jaxrnn.analysis._spectrum import weight_spectrum
      >>> found = weight_spectrum(jaxrnn.LSTMCell(3, 8, rngs=nnx.Rngs(0)))
      >>> found.gates, found.leaves
      (('input', 'forget', 'cell', 'output'), ('c', 'h'))
      >>> found.spectrum.spectral_radius.round(3).tolist()  # orthogonal at the start
      [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
    """
    cell = step_of(cell)
    if not isinstance(cell, SplitCell) or not hasattr(cell, "initialize_carry"):
        checks.refuse(
            "cell", type(cell).__name__, "a split cell: project, mix, update, readout, and a carry"
        )
    zero = cell.initialize_carry((1,))  # pyright: ignore[reportAttributeAccessIssue]
    read = jnp.moveaxis(mixing_blocks(cell, zero), 1, 2)
    blocks = to_all_leaves(read, len(jax.tree.leaves(zero)), axis=1)
    if not blocks.size:
        got = f"a {type(cell).__name__}, whose gates see the input alone"
        checks.refuse("cell", got, "a cell with recurrent weights")
    checks.finite("cell: its recurrent weights", blocks)
    gates, leaves = blocks.shape[:2]
    return WeightSpectrum(
        matrices=blocks,
        spectrum=spectrum_of(blocks),
        gates=_names(cell, "gates", gates),
        leaves=_names(cell, "carry_names", leaves),
    )


def _names(cell: Any, attribute: str, count: int) -> tuple[str, ...]:
    """Return the names that a cell gives to `count` parts, or numbers if it does not name them all."""
    names = tuple(getattr(cell, attribute, ()))
    return names if len(names) == count else tuple(map(str, range(count)))
