"""Spectra and modes of step Jacobians, spectra of recurrent weights.

Oracles: NumPy's and SciPy's factorisations of the same matrices; mpmath; random matrix theory; matrices made
for their spectrum.
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.linalg
from scipy.stats import ortho_group

from jaxrnn.analysis import jacobians, spectrum, trace
from jaxrnn.analysis._spectrum import modes, modes_of, spectrum_of, weight_spectrum
from jaxrnn.analysis.lapack import _on_the_host, eigenvalues
from jaxrnn.checks import InputError
from tests.analysis.examples import (
    B,
    H,
    T,
    assert_close,
    elman,
    identity,
    make,
    travelled,
)
from tests.zoo import every_plain_cell


def at_origin(matrix, activation=jnp.tanh, dtype=jnp.float64, start=None):
    """Spectrum of one step of h' = φ(A h), at the origin or where said."""
    cell = elman(matrix, activation, dtype)
    carry = jnp.zeros(len(matrix), dtype) if start is None else jnp.asarray(start, dtype)
    return spectrum(cell, trace(cell, jnp.zeros((1, 1), dtype), carry=carry))


def assert_same_set(actual, expected, tolerance):
    """Compare sets of complex numbers: each has a partner in the other."""
    distances = np.abs(np.asarray(actual)[..., :, None] - np.asarray(expected)[..., None, :])
    assert distances.min(axis=-1).max() < tolerance
    assert distances.min(axis=-2).max() < tolerance


@every_plain_cell
def test_equal_numpys_on_the_same_matrices(name, x64):
    cell, path = travelled(name)
    matrices = np.asarray(jacobians(cell, path))
    found = spectrum(cell, path)
    assert found.eigenvalues.shape == found.singular_values.shape == path.states[1:].shape
    # An eigenvalue of a defective matrix (here: zeros, where ReLU units are dead) moves by √ε.
    assert_same_set(found.eigenvalues, np.linalg.eigvals(matrices), 1e-7)
    assert_close(found.singular_values, np.linalg.svd(matrices, compute_uv=False), 1e-13)


@every_plain_cell
def test_fall_and_begin_with_radius_and_norm(name, x64):
    cell, path = travelled(name)
    matrices = np.asarray(jacobians(cell, path))
    found = spectrum(cell, path)
    assert np.all(np.diff(np.abs(found.eigenvalues), axis=-1) <= 1e-15)
    assert np.all(np.diff(found.singular_values, axis=-1) <= 0)
    assert found.spectral_radius.shape == found.norm.shape == (T, B)
    assert_close(found.spectral_radius, np.abs(np.linalg.eigvals(matrices)).max(axis=-1), 1e-12)
    assert_close(found.norm, np.linalg.norm(matrices, 2, axis=(-2, -1)), 1e-13)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_orthogonal_tanh_network_at_the_origin_lies_on_the_circle(alpha, dtype):
    rotation = ortho_group.rvs(16, random_state=0)
    found = at_origin(alpha * rotation, dtype=dtype)
    tolerance = 100 * np.finfo(dtype).eps  # of a backward stable method on a normal matrix
    np.testing.assert_allclose(np.abs(found.eigenvalues), alpha, rtol=tolerance)
    np.testing.assert_allclose(found.singular_values, alpha, rtol=tolerance)


@pytest.mark.parametrize("gain", [0.5, 1.5])
def test_random_tanh_network_at_the_origin_follows_the_circular_law(gain, x64):
    """Entries N(0, g²/N): eigenvalues fill the disc of radius g evenly, ‖J‖ → 2g (N → ∞)."""
    n = 400
    found = at_origin(gain * np.random.default_rng(0).normal(size=(n, n)) / np.sqrt(n))
    moduli = np.abs(found.eigenvalues[0]) / gain
    # Finite size. The radius exceeds 1 by √(γ/4N) and fluctuates by 1/√(4Nγ), γ = ln N/2π − 2 ln ln N
    # (Rider & Sinclair 2014): 0.02 ± 0.03 here. The norm is 2 + (2N)^(−2/3) times a Tracy–Widom variable:
    # 1.99 ± 0.015. Counts in a disc fluctuate by about N^(1/4) of N.
    assert moduli[0] == pytest.approx(1.02, abs=0.1)
    assert float(found.norm[0]) / gain == pytest.approx(1.99, abs=0.05)
    assert np.mean(moduli < 0.5) == pytest.approx(0.25, abs=0.03)


def test_saturation_contracts_though_the_weights_expand(x64):
    """ρ(W) = 2, but far from the origin every tanh is flat: ρ(J) < 1."""
    matrix = 2.0 * ortho_group.rvs(8, random_state=1)
    far = at_origin(matrix, start=matrix.T @ np.full(8, 0.5))  # every preactivation is 2
    assert float(at_origin(matrix).spectral_radius[0]) == pytest.approx(2.0)
    assert float(far.spectral_radius[0]) < 1
    assert float(far.norm[0]) == pytest.approx(2.0 / np.cosh(2.0) ** 2)


@pytest.mark.parametrize(("sign", "radius"), [(1.0, 2.0), (-1.0, 0.0)])
def test_relu_units_pass_all_or_nothing(sign, radius, x64):
    matrix = 2.0 * ortho_group.rvs(8, random_state=1)
    found = at_origin(matrix, jax.nn.relu, start=matrix.T @ np.full(8, sign))
    assert float(found.spectral_radius[0]) == pytest.approx(radius, abs=1e-12)
    assert float(found.norm[0]) == pytest.approx(radius, abs=1e-12)


def test_non_normal_matrix_has_small_radius_and_large_norm(x64):
    # σ₁σ₂ = |det| = 0.45 and σ₁² + σ₂² = Σ a², so this shear makes σ₁ = 10.
    shear = np.sqrt(10.0**2 + 0.045**2 - 0.9**2 - 0.5**2)
    found = at_origin([[0.9, shear], [0.0, -0.5]], identity)
    assert_close(found.eigenvalues, [[0.9, -0.5]], 1e-13)
    assert_close(found.singular_values, [[10.0, 0.045]], 1e-13)
    assert float(found.spectral_radius[0]) == pytest.approx(0.9)
    assert float(found.norm[0]) == pytest.approx(10.0)


# What an eigenvalue means.


def test_time_constants_and_frequencies_of_a_damped_turn(x64):
    radius, angle = 0.9, 2 * np.pi / 12
    turn = radius * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    found = spectrum_of(jnp.asarray(turn))
    np.testing.assert_allclose(found.time_constants, -1 / np.log(radius), rtol=1e-13)
    np.testing.assert_allclose(np.sort(found.frequencies), [-1 / 12, 1 / 12], rtol=1e-13)


def test_time_constants_on_outside_and_at_zero(x64):
    found = spectrum_of(jnp.diag(jnp.array([np.e, 1.0, np.exp(-0.5), 0.0])))
    np.testing.assert_allclose(found.time_constants, [-1.0, np.inf, 2.0, 0.0], rtol=1e-15)
    np.testing.assert_array_equal(found.frequencies, 0)
    assert float(spectrum_of(jnp.array([[-0.5]])).frequencies[0]) == pytest.approx(0.5)


def test_float32_matrices_have_their_eigenvalues_to_float32():
    """Eigenvalues of condition 3000 and more: float32 arithmetic would be off by some 0.05."""
    turn = ortho_group.rvs(4, random_state=0)
    shear = np.diag([0.5, 0.4, -0.3, 0.2]) + np.diag([300.0, 1.0, 300.0], k=1)
    matrix = (turn @ shear @ turn.T).astype(np.float32)
    with mp.workdps(50):
        exact = np.array([complex(v) for v in mp.eig(mp.matrix(matrix.tolist()))[0]])
    found = spectrum_of(jnp.asarray(matrix))
    assert found.eigenvalues.dtype == jnp.complex64
    assert_same_set(found.eigenvalues, exact, 1e-5)


@pytest.mark.parametrize("half", [jnp.float16, jnp.bfloat16])
def test_half_precision_goes_up(half):
    matrix = np.random.default_rng(0).normal(size=(6, 6))
    rounded = jnp.asarray(matrix, half)
    found = spectrum_of(rounded)
    assert found.eigenvalues.dtype == jnp.complex64
    assert_same_set(found.eigenvalues, np.linalg.eigvals(np.asarray(rounded, np.float64)), 1e-5)


def test_who_solved_is_said():
    matrix = jnp.eye(2)
    assert spectrum_of(matrix).solver == "LAPACK"
    assert modes_of(matrix).spectrum.solver == "LAPACK on the host"


def test_the_hosts_eigenvalues_are_the_same(dtype):
    matrices = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 5, 5)), dtype)
    found = jax.jit(_on_the_host)(matrices)
    assert found.dtype == eigenvalues(matrices).dtype
    tolerance = 1e3 * np.finfo(dtype).eps
    assert_same_set(found, np.linalg.eigvals(np.asarray(matrices, np.float64)), tolerance)
    assert_same_set(jax.vmap(_on_the_host)(matrices), found, tolerance)


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_no_other_platform_asks_the_host(platform):
    """A TPU's callback can be lowered on a machine with a TPU only."""
    traced = jax.jit(eigenvalues).trace(jax.ShapeDtypeStruct((3, 4, 4), jnp.float32))
    assert "callback" not in traced.lower(lowering_platforms=(platform,)).as_text()
    assert "callback" in str(traced.jaxpr)


# Modes.


@every_plain_cell
def test_modes_are_a_decomposition_of_every_jacobian(name, x64):
    cell, path = travelled(name)
    matrices = np.asarray(jacobians(cell, path))
    found = modes(cell, path)
    size = matrices.shape[-1]
    # Dead ReLU units: eigenvalue 0 is repeated, and its vectors may nearly coincide.
    tolerance = 1e-14 * np.asarray(found.basis_condition)[..., None, None] * size
    left, right, values = (np.asarray(a) for a in (found.left, found.right, found.eigenvalues))
    assert np.all(np.abs((right * values[..., None, :]) @ left - matrices) < tolerance)
    assert np.all(np.abs(left @ right - np.eye(size)) < tolerance)
    np.testing.assert_allclose(np.linalg.norm(found.right, axis=-2), 1, rtol=1e-14)
    assert_same_set(found.eigenvalues, np.linalg.eigvals(matrices), 1e-7)
    assert_close(found.spectrum.singular_values, np.linalg.svd(matrices, compute_uv=False), 1e-13)
    assert np.all(found.conditions >= 1)


def test_conditions_and_departure_equal_scipys(x64):
    matrices = np.random.default_rng(0).normal(size=(2, 3, 7, 7))
    found = modes_of(matrices)
    for place in np.ndindex(2, 3):
        values, left, right = scipy.linalg.eig(matrices[place], left=True)  # pyright: ignore
        order = np.argsort(-np.abs(values), kind="stable")
        expected = 1 / np.abs(np.sum(left.conj() * right, axis=0))[order]
        # A conjugate pair has one condition, so it does not matter which of the two comes first.
        np.testing.assert_allclose(found.conditions[place], expected, rtol=1e-11)
        form = scipy.linalg.schur(matrices[place], output="complex")[0]
        expected = np.linalg.norm(np.triu(form, 1))
        np.testing.assert_allclose(found.departure[place], expected, rtol=1e-12)
        by_norms = np.sqrt(np.sum(matrices[place] ** 2) - np.sum(np.abs(values) ** 2))
        np.testing.assert_allclose(found.departure[place], by_norms, rtol=1e-12)


def test_conditions_of_a_triangular_matrix_in_closed_form(x64):
    """[[a, s], [0, b]]: 1/|y*x| = √(1 + (s / (a − b))²) for both, and the departure is |s|."""
    found = modes_of(jnp.array([[0.9, 3.0], [0.0, 0.5]]))
    np.testing.assert_allclose(found.conditions, np.hypot(1, 3.0 / 0.4), rtol=1e-13)
    assert float(found.departure) == pytest.approx(3.0, rel=1e-14)
    assert float(found.relative_departure) == pytest.approx(3 / np.sqrt(9 + 0.81 + 0.25))


def test_a_change_moves_an_eigenvalue_by_its_condition(x64):
    draw = np.random.default_rng(3)
    matrix, change = draw.normal(size=(2, 6, 6))
    found = modes_of(matrix)
    left, right = np.asarray(found.left), np.asarray(found.right)
    moved = np.linalg.eigvals(matrix + 1e-6 * change)
    for i, value in enumerate(np.asarray(found.eigenvalues)):
        predicted = 1e-6 * (left[i] @ change @ right[:, i])
        nearest = moved[np.abs(moved - value).argmin()] - value
        assert (
            abs(nearest - predicted) < 1e-9
        )  # the second order, 1e-12 by a condition squared over a gap
        assert abs(nearest) <= 1e-6 * found.conditions[i] * np.linalg.norm(change, 2) * 1.01


@pytest.mark.parametrize("size", [1, 6])
def test_normal_matrices_do_not_depart(size, dtype):
    turns = 0.7 * ortho_group.rvs(size, random_state=0) if size > 1 else np.array([[0.7]])
    found = modes_of(jnp.asarray(turns, dtype))
    eps = np.finfo(dtype).eps  # with which the entries were rounded
    assert float(found.relative_departure) < 10 * eps
    np.testing.assert_allclose(found.conditions, 1, atol=100 * eps)
    np.testing.assert_allclose(found.basis_condition, 1, atol=100 * eps)
    assert found.right.dtype == np.result_type(dtype, np.complex64)


def test_zero_matrix_has_zero_departure(x64):
    found = modes_of(jnp.zeros((3, 3)))
    assert float(found.departure) == float(found.relative_departure) == 0
    np.testing.assert_array_equal(found.conditions, 1)


def test_defective_matrix_shows_in_its_conditions(x64):
    found = modes_of(
        jnp.stack([jnp.array([[0.5, 1.0], [0.0, 0.5]]), jnp.diag(jnp.array([2.0, 1]))])
    )
    assert np.all(np.asarray(found.conditions[0]) > 1e14)
    assert float(found.basis_condition[0]) > 1e14
    np.testing.assert_allclose(found.conditions[1], 1)


# Weights.


@pytest.mark.parametrize("name", ["elman-tanh", "lstm", "gru", "ctrnn"])
def test_weight_spectrum_is_that_of_the_kernels_blocks(name, x64):
    cell = make(name)
    found = weight_spectrum(cell)
    blocks = np.split(np.asarray(cell.recurrent_kernel), len(cell.gates), axis=1)
    assert found.gates == cell.gates
    assert found.leaves == cell.carry_names
    assert found.spectrum.eigenvalues.shape == (len(cell.gates), len(cell.carry_names), H)
    for g, block in enumerate(blocks):
        np.testing.assert_array_equal(found.matrices[g, -1], block.T)  # h is the last leaf
        assert_same_set(found.spectrum.eigenvalues[g, -1], np.linalg.eigvals(block), 1e-12)
        expected = np.linalg.svd(block, compute_uv=False)
        assert_close(found.spectrum.singular_values[g, -1], expected, 1e-13)
    assert np.all(np.asarray(found.matrices[:, :-1]) == 0)  # no gate sees c but through h


def test_linear_elman_has_its_weights_for_a_jacobian(x64):
    matrix = np.random.default_rng(0).normal(size=(5, 5))
    cell = elman(matrix, identity)
    found = weight_spectrum(cell)
    np.testing.assert_array_equal(found.matrices[0, 0], matrix)
    step = spectrum(cell, trace(cell, jnp.zeros((1, 1))))
    assert_same_set(found.spectrum.eigenvalues[0, 0], step.eigenvalues[0], 1e-13)


def test_weights_of_a_plain_step_are_refused():
    with pytest.raises(InputError, match=r"^cell: got function; expected a split cell"):
        weight_spectrum(lambda carry, x: (carry, x))


def test_weights_that_are_not_finite_are_refused():
    cell = make("gru", jnp.float32)
    cell.recurrent_kernel[...] = cell.recurrent_kernel[...].at[1, 2].set(jnp.nan)
    with pytest.raises(InputError, match=r"^cell: its recurrent weights: got [0-9]+ non-finite"):
        weight_spectrum(cell)


# Refusals.


@pytest.mark.parametrize("function", [spectrum_of, modes_of])
@pytest.mark.parametrize(
    ("matrices", "message"),
    [
        (jnp.ones((2, 3)), "matrices: got float32[2, 3]; expected square matrices"),
        (jnp.ones(3), "matrices: got float32[3]; expected square matrices"),
        (jnp.ones((2, 0, 0)), "matrices: got float32[2, 0, 0]; expected square matrices"),
        (jnp.ones((2, 2), int), "matrices: got int32[2, 2]; expected a floating-point array"),
        (
            jnp.ones((3, 2, 2)).at[1, 0, 1].set(jnp.inf),
            "matrices: got 1 non-finite values, the first at [1, 0, 1]",
        ),
    ],
)
def test_other_matrices_are_refused(function, matrices, message):
    with pytest.raises(InputError, match="^" + re.escape(message)):
        function(matrices)


def test_gates_that_see_the_input_alone_have_no_weight_spectrum(x64):
    with pytest.raises(InputError, match="MinGRUCell, whose gates see the input alone"):
        weight_spectrum(make("mingru"))


def test_pulls_that_are_no_gates_are_numbered(x64):
    found = weight_spectrum(make("lipschitz"))
    assert found.gates == ("0", "1")
    np.testing.assert_allclose(found.matrices[0, 0], make("lipschitz").linear[...].T, atol=1e-14)
