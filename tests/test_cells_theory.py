"""What theory says of each cell: closed forms, bounds, and what training cannot change.

Oracles: NumPy and SciPy on the weights, the cell's own Jacobians by forward differentiation.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from flax import nnx
from scipy.special import expit

import jaxrnn
from jaxrnn.analysis import lyapunov, propagator, trace
from jaxrnn.analysis._jacobians import general_jacobians
from jaxrnn.cells.modrelu import modrelu
from jaxrnn.cells.unitary import permutation
from tests.analysis.examples import (
    F,
    H,
    assert_close,
    blank,
    inputs,
    random_weights,
    zero_weights,
)
from tests.zoo import table_of_cells


def made(name, *, seed=0, dtype=jnp.float64, **options):
    """A cell of the table with random weights and options."""
    return random_weights(functools.partial(jaxrnn.make_cell, name, **options), dtype, seed)


def drawn(*shape, seed=0, scale=1.0, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape, scale=scale), dtype)


def jacobians(cell, xs, carry=None):
    """Return the step Jacobians [T, *B, S, S] along a trajectory, as NumPy's."""
    return np.asarray(general_jacobians(cell, trace(cell, xs, carry=carry)))


def norm(matrix, order: float = 2):
    return np.linalg.norm(np.asarray(matrix, np.float64), order)


def eigenvalues(matrix):
    """Return the eigenvalues of a real matrix, in an order that rounding does not change."""
    return np.sort_complex(np.linalg.eigvals(matrix).round(9))


@functools.cache
def trained(name, dtype):
    """Return a fresh cell, and the cell after 300 steps of Adam at a hundred times the usual rate."""
    cell = jaxrnn.make_cell(name, F, H, param_dtype=dtype, rngs=nnx.Rngs(0))
    xs, targets = drawn(8, 16, F, dtype=dtype), drawn(8, 16, cell.out_features, seed=1, dtype=dtype)
    optimiser = optax.adam(0.1)

    def loss(cell):
        return jnp.mean((jaxrnn.unroll(cell, xs).outputs - targets) ** 2)

    def learn(training, _):
        cell, memory = training
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies floats with integers
            change, memory = optimiser.update(jax.grad(loss)(cell), memory)
        return (optax.apply_updates(cell, change), memory), None

    @jax.jit
    def train(cell):
        return jax.lax.scan(learn, (cell, optimiser.init(cell)), length=300)[0][0]

    after = train(cell)
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), cell, after)
    assert all(0.1 < size < jnp.inf for size in jax.tree.leaves(moved))
    return cell, after


# Orthogonal and unitary cells, modReLU.


def turning_matrix(cell):
    """Return the matrix that turns the state [S, S], columns onto rows."""
    unit = jnp.eye(H, dtype=cell.dtype)
    zero = jnp.zeros_like(unit)
    if isinstance(cell, jaxrnn.OrthogonalCell):
        return np.asarray(cell.mix(unit)[:, :H], np.float64).T
    rows = [cell.mix(carry)[:, : 2 * H] for carry in ((unit, zero), (zero, unit))]
    return np.concatenate(rows).astype(np.float64).T


def not_orthogonal(matrix):
    return norm(matrix.T @ matrix - np.eye(len(matrix)))


@pytest.mark.parametrize("name", ["orthogonal", "unitary"])
def test_training_does_not_leave_the_matrices_that_keep_norms(name, dtype):
    """To the rounding of exp(A), which grows with ‖A‖, and of seven factors, 4 ε each."""
    for cell in trained(name, dtype):
        roundings = 28.0
        if name == "orthogonal":
            roundings = 2 * (1 + norm(cell.recurrent_kernel.log[...]))
        assert not_orthogonal(turning_matrix(cell)) < roundings * np.finfo(dtype).eps


@pytest.mark.parametrize("scale", [10.0, 1000.0])
def test_exponential_is_orthogonal_however_large_its_argument(scale, dtype):
    cell = jax.tree.map(lambda a: scale * a, made("orthogonal", dtype=dtype))
    roundings = 2 * (1 + norm(cell.recurrent_kernel.log[...]))
    matrix = turning_matrix(cell)
    assert not_orthogonal(matrix) < roundings * np.finfo(dtype).eps
    assert np.linalg.det(matrix) > 0


@pytest.mark.parametrize("name", ["orthogonal", "unitary"])
@pytest.mark.parametrize("silent", [0, 100, 200])
def test_every_singular_value_stays_one_without_threshold(name, silent, x64):
    """Two hundred steps, of which some begin without input, where the state is zero.

    A step is orthogonal to 28 ε or better, by the test above; 200 of them have log singular values within
    half of 200 times that.
    """
    cell = jaxrnn.make_cell(name, F, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    xs = drawn(200, F).at[:silent].set(0)
    found = propagator(cell, trace(cell, xs), lags=[1, 100, 200])
    assert np.abs(found.log_singular_values).max() < 200 * 28 * np.finfo(np.float64).eps / 2


@pytest.mark.parametrize("bias", [-0.5, 0.0, 0.5])
def test_modrelu_has_slope_one_along_a_number_and_another_across(bias, x64):
    """Along z: 1. Across: 1 + b / |z|. Nothing at all where |z| ≤ −b."""
    z = drawn(200, 2)
    values = jax.vmap(lambda z: jnp.stack(modrelu((z[:1], z[1:]), jnp.full(1, bias))))(z)
    slopes = jax.vmap(
        jax.jacobian(lambda z: jnp.concatenate(modrelu((z[:1], z[1:]), jnp.full(1, bias))))
    )(z)
    size = np.linalg.norm(z, axis=-1)
    live = size > -bias
    assert live.any()
    assert live.all() == (bias >= 0)
    along = np.asarray(z) / size[:, None]
    across = np.stack([-along[:, 1], along[:, 0]], axis=-1)
    kept = np.where(live, size + bias, 0)
    assert_close(values[..., 0], kept[:, None] * along, 1e-14)
    outer = np.einsum("ni,nj->nij", along, along), np.einsum("ni,nj->nij", across, across)
    expected = outer[0] + (1 + bias / size)[:, None, None] * outer[1]
    assert_close(slopes, np.where(live[:, None, None], expected, 0), 1e-13)


@pytest.mark.parametrize(("bias", "slope"), [(-0.5, 0.0), (0.0, 1.0), (0.5, 1.0)])
@pytest.mark.parametrize("parts", [1, 2])
def test_modrelu_at_zero(bias, slope, parts, x64):
    zero = tuple(jnp.zeros(1) for _ in range(parts))

    def of(z):
        return jnp.concatenate(modrelu(z, jnp.full(1, bias)))

    np.testing.assert_array_equal(of(zero), np.zeros(parts))
    found = jnp.concatenate(jax.jacobian(of)(zero), axis=-1)
    np.testing.assert_array_equal(found, slope * np.eye(parts))


@pytest.mark.parametrize("bias", [-0.5, 0.5])
def test_orthogonal_cell_with_threshold_loses_dead_units_and_nothing_else(bias, x64):
    """For real z the slope is 1 or 0: rows of the orthogonal matrix stay as they are, or are lost."""
    cell = made("orthogonal")
    cell.threshold[...] = jnp.full(H, bias)
    xs, carry = inputs(cell, batch=(), length=50)
    path = trace(cell, xs, carry=carry)
    turned = np.asarray(path.carries)[:-1] @ np.asarray(cell.recurrent_kernel[...])
    live = np.abs(turned + np.asarray(cell.project(xs))) > -bias
    assert live.any()
    assert live.all() == (bias > 0)
    expected = live[:, :, None] * turning_matrix(cell)
    assert_close(jacobians(cell, xs, carry), expected, 1e-14)


def test_unitary_cell_with_positive_threshold_grows(x64):
    """Across the direction of a number its slope is 1 + b / |z|: volumes of the state grow at every step."""
    cell = made("unitary")
    cell.threshold[...] = jnp.full(H, 0.5)
    xs, carry = inputs(cell, batch=(), length=50)
    path = trace(cell, xs, carry=carry)
    parts = [np.asarray(part[1:]) for part in path.carries]
    size = np.hypot(*parts) - 0.5  # |z| before the step added b
    growth = np.log1p(0.5 / size).sum(axis=-1)
    assert np.all(growth > 0)
    assert_close(np.linalg.slogdet(jacobians(cell, xs, carry))[1], growth, 1e-11)


# Linear state spaces.


def poles(cell):
    """Return λ [H] from the parameters, by the papers' formulas in NumPy's complex numbers."""
    w = {name: np.asarray(a, np.float64) for name, a in nnx.to_pure_dict(nnx.state(cell)).items()}
    if isinstance(cell, jaxrnn.LRUCell):
        return np.exp(-np.exp(w["log_decay"]) + 1j * np.exp(w["log_phase"]))
    return np.exp((-np.exp(w["log_decay"]) + 1j * w["frequency"]) * np.exp(w["log_step"]))


@pytest.mark.parametrize("name", ["lru", "s5"])
def test_eigenvalues_of_the_step_are_the_poles_and_their_conjugates(name, x64):
    cell = made(name)
    xs, carry = inputs(cell, batch=())
    expected = np.concatenate([poles(cell), poles(cell).conj()])
    for matrix in jacobians(cell, xs, carry):
        np.testing.assert_array_equal(eigenvalues(matrix), np.sort_complex(expected.round(9)))


@pytest.mark.parametrize("name", ["lru", "s5"])
@pytest.mark.parametrize("scale", [0.1, 3.0, 20.0])
def test_no_parameters_make_the_poles_unstable(name, scale, dtype):
    """|λ| ≤ 1 to the rounding of a cosine, a sine and two products."""
    for seed in range(20):
        cell = jax.tree.map(
            lambda a, seed=seed: drawn(*a.shape, seed=seed, scale=scale, dtype=dtype),
            made(name, dtype=dtype),
        )
        assert np.hypot(*cell.eigenvalues()).max() <= 1 + 2 * np.finfo(dtype).eps


@pytest.mark.parametrize("name", ["lru", "s5"])
def test_training_does_not_make_the_poles_unstable(name, dtype):
    _, after = trained(name, dtype)
    assert np.abs(poles(after)).max() < 1
    assert_close(np.hypot(*after.eigenvalues()), np.abs(poles(after)), 8 * np.finfo(dtype).eps)


def test_lru_starts_with_states_of_unit_variance_for_white_inputs(x64):
    """γ² Σ |λ|²ᵏ = γ² / (1 − |λ|²) = 1, since E|Bx|² = 1; the parameters are drawn in float32."""
    cell = jaxrnn.LRUCell(F, 500, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    gamma, _ = cell.input_scale()
    assert_close(gamma**2 / (1 - np.abs(poles(cell)) ** 2), np.ones(500), 1e-5)
    # |B|² of a unit and an input is χ² of two degrees of freedom, 1 ± 1: the mean of 1,500 is known to 0.026.
    parts = jnp.split(cell.kernel[...], 2, axis=-1)
    assert float(F * jnp.mean(parts[0] ** 2 + parts[1] ** 2)) == pytest.approx(1, abs=0.08)


def test_s5_solves_its_equation_exactly(x64):
    """ds/dt = Λ s + B x, x held for Δ: the exponential of a matrix that holds Λ and the input."""
    cell = made("s5")
    xs, carry = inputs(cell, batch=(), length=10)
    path = trace(cell, xs, carry=carry)
    found = np.asarray(path.carries[0]) + 1j * np.asarray(path.carries[1])
    rate = -np.exp(np.asarray(cell.log_decay[...])) + 1j * np.asarray(cell.frequency[...])
    step = np.exp(np.asarray(cell.log_step[...]))
    re, im = np.split(np.asarray(cell.kernel[...]), 2, axis=-1)
    drive = np.asarray(xs) @ (re + 1j * im)
    for unit in range(H):
        state = found[0, unit]
        for t, push in enumerate(drive[:, unit]):
            generator = step[unit] * np.array([[rate[unit], push], [0, 0]])
            state = (scipy.linalg.expm(generator) @ np.array([state, 1]))[0]
            np.testing.assert_allclose(found[t + 1, unit], state, rtol=1e-12)


def test_s5_starts_from_hippo(x64):
    """HiPPO-N is HiPPO-LegS without its low-rank part, P Pᵀ with P = √(n + ½)."""
    cell = jaxrnn.S5Cell(F, 8, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    n = np.arange(16)
    root = np.sqrt(2 * n + 1)
    legs = -np.tril(root[:, None] * root, -1) - np.diag(n + 1.0)
    values = np.linalg.eigvals(legs + 0.5 * root[:, None] * root)
    upper = np.sort_complex(values[values.imag > 0])
    found = -np.exp(np.asarray(cell.log_decay[...])) + 1j * np.asarray(cell.frequency[...])
    assert_close(np.sort(found.imag), np.sort(upper.imag), 1e-10)
    assert_close(found.real, upper.real, 1e-10)


# Equations in continuous time, stepped by Euler's method.


def slopes(cell, xs, carry):
    """Return tanh' of the recurrent nonlinearity [T, H] of an AntisymmetricCell or a LipschitzCell."""
    before = trace(cell, xs, carry=carry).before
    pull = np.asarray(cell.mix(before))[:, -H:]
    return 1 / np.cosh(np.asarray(cell.project(xs)) + pull) ** 2


@pytest.mark.parametrize("diffusion", [0.0, 0.3])
def test_antisymmetric_equation_neither_grows_nor_decays_but_for_its_diffusion(diffusion, x64):
    """diag(φ')(A − γ I) is similar to √φ' A √φ' − γ φ': real parts from −γ max φ' to −γ min φ'."""
    cell = made("antisymmetric", diffusion=diffusion, step_size=0.05)
    xs, carry = inputs(cell, batch=(), length=30)
    for matrix, slope in zip(jacobians(cell, xs, carry), slopes(cell, xs, carry), strict=True):
        values = np.linalg.eigvals((matrix - np.eye(H)) / 0.05)
        assert np.abs(values.imag).max() > 1e-3
        assert values.real.max() <= -diffusion * slope.min() + 1e-12
        assert values.real.min() >= -diffusion * slope.max() - 1e-12
        # The trace is −γ Σ φ' whatever A is.
        assert_close(values.real.sum(), -diffusion * slope.sum(), 1e-12)
        if not diffusion:  # just outside the unit circle
            assert_close(
                np.sort(np.abs(np.linalg.eigvals(matrix))),
                np.sort(np.hypot(1, 0.05 * values.imag)),
                1e-12,
            )


def test_antisymmetric_matrix_stays_so(dtype):
    for cell in trained("antisymmetric", dtype):
        matrix = np.asarray(cell.recurrent_kernel[...])
        assert matrix.any()
        np.testing.assert_array_equal(matrix, -matrix.T)


@pytest.mark.parametrize("blend", [0.5, 0.75, 1.0])
def test_lipschitz_matrices_have_the_spectrum_of_their_formula(blend, x64):
    """Symmetric part: 2 (1 − β) (M + Mᵀ)/2 − γ I; the rest: 2 β (M − Mᵀ)/2."""
    cell = made("lipschitz", blend=blend, damping=0.2)
    for weight in (cell.linear, cell.recurrent_kernel):
        matrix, free = np.asarray(weight[...]), np.asarray(weight.free[...])
        expected = 2 * (1 - blend) * np.linalg.eigvalsh((free + free.T) / 2) - 0.2
        assert_close(np.linalg.eigvalsh((matrix + matrix.T) / 2), expected, 1e-14)
        assert_close(matrix - matrix.T, 2 * blend * (free - free.T), 1e-14)


def test_lipschitz_step_forgets_where_its_linear_part_outweighs_the_other(x64):
    """With μ = λ_max((A + Aᵀ)/2) + ‖U‖ < 0 two states come nearer at every step, whatever the input.

    The Jacobian is I + ε K, K = A + diag(φ') U with 0 < φ' ≤ 1. So hᵀ K h ≤ μ hᵀ h and ‖K‖ ≤ L = ‖A‖ + ‖U‖,
    and ‖(I + ε K) h‖² ≤ (1 + 2 ε μ + ε² L²) ‖h‖².
    """
    cell = made("lipschitz", step_size=0.02, blend=0.75)
    cell.linear.free[...] = cell.linear.free[...] - 8.0 * jnp.eye(H)
    linear, recurrent = (np.asarray(w[...]) for w in (cell.linear, cell.recurrent_kernel))
    mu = np.linalg.eigvalsh((linear + linear.T) / 2).max() + norm(recurrent)
    bound = 1 + 2 * 0.02 * mu + (0.02 * (norm(linear) + norm(recurrent))) ** 2
    assert mu < 0
    assert bound < 1
    xs, carry = inputs(cell, batch=(), length=50)
    there = np.asarray(trace(cell, xs, carry=carry).states)
    here = np.asarray(trace(cell, xs, carry=-carry).states)
    distance = np.sum((there - here) ** 2, axis=-1)
    assert np.all(distance[1:] <= bound * distance[:-1])
    for matrix, slope in zip(jacobians(cell, xs, carry), slopes(cell, xs, carry), strict=True):
        assert_close(matrix, np.eye(H) + 0.02 * (linear.T + slope[:, None] * recurrent.T), 1e-14)


def oscillator(step_size, frequency, damping):
    """Return one unit's step without weights, (z, y) -> (z', y') [2, 2], and what a force of 1 adds [2]."""
    position = np.array([[1, 0], [step_size, 1]])
    velocity = np.array([[1 - step_size * damping, -step_size * frequency], [0, 1]])
    return position @ velocity, np.array([step_size, step_size**2])


@pytest.mark.parametrize(
    ("step_size", "frequency", "damping"), [(0.1, 1.0, 1.0), (0.05, 4.0, 0.5), (1.0, 1.9, 1.0)]
)
def test_cornn_states_are_bounded_by_the_absolute_sum_of_the_impulse_response(
    step_size, frequency, damping, x64
):
    """A unit is an oscillator under a force within ±1: |y_T| ≤ Σ_k |(Mᵏ b)_y|, and a force attains it."""
    cell = jax.tree.map(
        jnp.zeros_like,
        made("cornn", step_size=step_size, frequency=frequency, damping=damping),
    )
    matrix, push = oscillator(step_size, frequency, damping)
    response = [push]
    for _ in range(399):
        response.append(matrix @ response[-1])
    z, y = np.abs(response).sum(axis=0)
    driven = jax.tree.map(lambda a: drawn(*a.shape, scale=10.0), cell)
    path = trace(driven, drawn(400, 20, F))
    assert np.abs(path.carries[0]).max() <= z
    assert np.abs(path.carries[1]).max() <= y

    cell.kernel[...] = jnp.full_like(cell.kernel[...], 1e3)  # tanh of it is ±1
    worst = np.sign([at[1] for at in reversed(response)])
    xs = jnp.broadcast_to(jnp.asarray(worst)[:, None], (400, F))
    assert_close(trace(cell, xs).carries[1][-1], np.full(H, y), 1e-12)


def test_cornn_bound_in_the_limit_of_small_steps(x64):
    """∫ e^(−εt/2) |sin ωt| / ω dt = coth(π ε / 4ω) / γ with ω² = γ − ε²/4."""
    matrix, push = oscillator(1e-3, 4.0, 0.5)
    response, total = push, 0.0
    for _ in range(60_000):
        total += abs(response[1])
        response = matrix @ response
    omega = math.sqrt(4.0 - 0.5**2 / 4)
    assert total == pytest.approx(1 / math.tanh(math.pi * 0.5 / (4 * omega)) / 4.0, rel=1e-3)


@pytest.mark.parametrize(
    ("step_size", "frequency", "damping"),
    [(0.1, 1.0, 1.0), (1.0, 1.9, 1.0), (1.0, 2.1, 1.0), (0.5, 14.0, 0.1), (0.5, 16.0, 0.1)],
)
def test_cornn_step_is_stable_up_to_a_largest_step(step_size, frequency, damping, x64):
    """Without weights |eigenvalues| < 1 where γ Δt² + 2 ε Δt < 4."""
    cell = jax.tree.map(
        jnp.zeros_like,
        made("cornn", step_size=step_size, frequency=frequency, damping=damping),
    )
    radius = np.abs(np.linalg.eigvals(jacobians(cell, jnp.zeros((1, F)))[0])).max()
    assert (radius < 1) == (frequency * step_size**2 + 2 * damping * step_size < 4)


@pytest.mark.parametrize("damping", [0.3, 1.0])
def test_cornn_without_weights_forgets_at_half_its_damping(damping, x64):
    cell = jax.tree.map(jnp.zeros_like, made("cornn", step_size=0.1, damping=damping))
    moduli = np.abs(np.linalg.eigvals(jacobians(cell, jnp.zeros((1, F)))[0]))
    assert_close(moduli, np.full(2 * H, math.sqrt(1 - 0.1 * damping)), 1e-14)


def test_cornn_contracts_volumes_by_its_damping_alone(x64):
    """det J = det((1 − ε Δt) I + Δt diag(φ') V): with V = 0 all trajectories forget at the same mean rate."""
    cell = made("cornn", step_size=0.1, damping=0.7)
    xs, carry = inputs(cell, batch=(), length=20)
    path = trace(cell, xs, carry=carry)
    force = np.asarray(cell.project(xs) + cell.mix(path.before))
    slope = 1 / np.cosh(force) ** 2
    kernel = np.asarray(cell.velocity_kernel[...]).T
    expected = [np.linalg.det(0.93 * np.eye(H) + 0.1 * row[:, None] * kernel) for row in slope]
    assert_close(np.linalg.det(jacobians(cell, xs, carry)), expected, 1e-12)

    cell.velocity_kernel[...] = jnp.zeros((H, H))
    logs = propagator(cell, trace(cell, xs, carry=carry), lags=[20]).log_singular_values
    assert_close(logs.sum(), 20 * H * math.log(0.93), 1e-12)


def test_cornn_gradient_may_grow_exponentially(x64):
    """At rest, U = u I with u > γ is a force away from it: every step multiplies by the same matrix."""
    cell = jax.tree.map(jnp.zeros_like, made("cornn", step_size=0.1))
    cell.recurrent_kernel[...] = 3.0 * jnp.eye(H)
    found = propagator(cell, trace(cell, jnp.zeros((300, F))), lags=[100, 200, 300])
    matrix, _ = oscillator(0.1, 1.0 - 3.0, 1.0)
    exact = [norm(np.linalg.matrix_power(matrix, lag)) for lag in (100, 200, 300)]
    assert exact[0] > 1e3
    assert_close(found.log_singular_values[:, 0], np.log(exact), 1e-10)


def cornn_distance(cell):
    """Return C with ‖J − I‖₂ ≤ C Δt.

    J = [[I, 0], [Δt I, I]] · [[I + Δt (φ' V − ε I), Δt (φ' U − γ I)], [0, I]], and 0 < φ' ≤ 1. The second
    factor is Δt c from I, c = ‖U‖ + ‖V‖ + γ + ε, the first Δt.
    """
    c = norm(cell.recurrent_kernel[...]) + norm(cell.velocity_kernel[...])
    c += cell.frequency + cell.damping
    return 1 + c + cell.step_size * c


def lem_distance(cell):
    """Return C with ‖J − I‖_∞ ≤ C Δt for states within ±1.

    ∂z'/∂z = 1 − Δ, ∂z'/∂y = Δt σ' (tanh − z) U₁ + Δ tanh' U_z, with Δ ≤ Δt, σ' ≤ ¼ and |tanh − z| ≤ 2: row
    sums of J − I at most Δt c, c = 1 + ½ ‖U₁‖ + ‖U_z‖. In the same way, y' of y directly adds 1 + ½ ‖U₂‖, and
    through z', itself at most 1 + Δt c, ‖U_y‖.
    """
    u1, u2, u_z, u_y = (
        norm(np.transpose(block), np.inf)
        for block in np.split(np.asarray(cell.recurrent_kernel[...]), 4, axis=-1)
    )
    c = 1 + u1 / 2 + u_z
    return max(c, 1 + u2 / 2 + u_y * (1 + cell.step_size * c))


@pytest.mark.parametrize("step_size", [0.1, 0.01, 0.001])
@pytest.mark.parametrize(
    ("name", "distance", "order"), [("cornn", cornn_distance, 2), ("lem", lem_distance, np.inf)]
)
def test_gradients_of_short_spans_are_kept_whatever_the_number_of_steps(
    name, distance, order, step_size, x64
):
    """‖J − I‖ ≤ C Δt, so that over T steps ‖∂s_T/∂s_0‖ ≤ e^(C T Δt) and its inverse ≤ (1 − C Δt)^−T.

    The smaller the steps, the nearer is J to I: a hundred steps of 0.001 are a span of 0.1.
    """
    cell = made(name, step_size=step_size)
    xs, _ = inputs(cell, batch=(), length=100)
    matrices = jacobians(cell, xs)
    reach = step_size * distance(cell)
    for matrix in matrices:
        assert norm(matrix - np.eye(2 * H), order) <= reach
        assert norm(matrix - np.eye(2 * H), order) >= reach / 30  # the bound says something
    product = functools.reduce(lambda done, matrix: matrix @ done, matrices)
    assert norm(product, order) <= math.exp(100 * reach)
    if reach < 1:
        assert norm(np.linalg.inv(product), order) <= (1 - reach) ** -100


@pytest.mark.parametrize("step_size", [0.3, 1.0])
def test_lem_states_stay_within_one(step_size, x64):
    """Each is a weighted mean of what it was and a tanh."""
    cell = jax.tree.map(lambda a: 20.0 * a, made("lem", step_size=step_size))
    path = trace(cell, drawn(100, 50, F))
    largest = np.abs(path.states).max()
    assert 0.99 < largest <= 1


# Gates, and recurrences of one unit alone.


def test_indrnn_gradient_of_an_active_unit_is_a_power(x64):
    cell = made("indrnn")
    cell.recurrent_weight[...] = jnp.asarray([0.5, 0.99, 1.01, 1.3])
    cell.bias[...] = jnp.full(H, 10.0)  # larger than any input: all units are active
    xs, carry = inputs(cell, batch=(), length=60)
    matrices = jacobians(cell, xs, jnp.abs(carry))
    expected = np.broadcast_to(np.diag(cell.recurrent_weight[...]), matrices.shape)
    np.testing.assert_array_equal(matrices, expected)

    def last(carry):
        return jaxrnn.unroll(cell, xs, carry=carry).carry

    gradient = jax.jacrev(last)(jnp.abs(carry))
    assert_close(gradient, np.diag(np.asarray(cell.recurrent_weight[...]) ** 60), 1e-13)
    cell.bias[...] = jnp.full(H, -1e3)
    assert not jacobians(cell, xs, jnp.abs(carry)).any()


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("name", ["mingru", "minlstm", "rg-lru"])
def test_gates_of_the_input_alone_give_diagonal_jacobians_within_one(name, scale, x64):
    cell = made(name)
    xs, carry = inputs(cell, batch=(), length=30)
    matrices = jacobians(cell, scale * xs, carry)
    kept = np.diagonal(matrices, axis1=-2, axis2=-1)
    np.testing.assert_array_equal(matrices, kept[..., None] * np.eye(H))
    assert kept.min() >= 0
    assert kept.max() <= 1
    assert np.ptp(kept) > 0.5


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("name", ["mingru", "minlstm"])
def test_states_stay_within_the_range_of_their_candidates(name, scale, x64):
    cell = made(name)
    xs, carry = inputs(cell, batch=(), length=100)
    path = trace(cell, scale * xs, carry=carry)
    candidates = np.asarray(cell.gate_inputs(scale * xs)[-1])
    seen = np.concatenate([np.asarray(carry)[None], candidates])
    room = 1e-14 * np.abs(seen).max()  # the two weights sum to 1 to rounding
    states = np.asarray(path.states)
    assert np.all(states <= np.maximum.accumulate(seen) + room)
    assert np.all(states >= np.minimum.accumulate(seen) - room)


def test_rg_lru_keeps_the_variance_of_its_inputs(x64):
    """a² + (√(1 − a²))² = 1 whatever the gate says, where what is admitted is white and of unit variance.

    The gate reads one input, the candidate another. Of n = 50,000 independent normal states the variance is
    known to √(2/n) = 0.006.
    """
    cell = blank(jaxrnn.RGLRUCell, 2, 1, param_dtype=jnp.float64)
    cell.kernel[...] = jnp.asarray([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    cell.bias[...] = jnp.asarray([0.0, 40.0, 0.0])
    cell.log_odds[...] = jnp.asarray([2.0])
    path = trace(cell, drawn(60, 50_000, 2))
    for t in (20, 40, 60):
        assert np.var(path.carries[t]) == pytest.approx(1, abs=4 * 0.0063)


# xLSTM.


@pytest.mark.parametrize("name", ["slstm", "mlstm"])
def test_the_stabiliser_cancels(name, x64):
    """The state is c, n times e^m: another m with other c, n is the same state, of the same outputs."""
    cell = made(name)
    xs, carry = inputs(cell, length=10)
    *stored, m = carry[:3]
    stored[-1] = jnp.abs(stored[-1]) + 1.0  # a normaliser is a sum of exponentials
    shift = 3.7
    shifted = (*(leaf * jnp.exp(-shift) for leaf in stored), m + shift, *carry[3:])
    for other in (shifted, (*shifted[:2], shifted[2] + 1.0, *shifted[3:])):
        same = other is shifted
        ours = jaxrnn.unroll(cell, xs, carry=(*stored, m, *carry[3:])).outputs
        theirs = jaxrnn.unroll(cell, xs, carry=other).outputs
        assert np.allclose(ours, theirs, rtol=1e-12, atol=1e-13) == same


def plain_xlstm(name, cell, xs):
    """Run the equations without a stabiliser; float64 holds e^±100 and its powers for some steps."""
    w = {k: np.asarray(a, np.float64) for k, a in nnx.to_pure_dict(nnx.state(cell)).items()}
    outputs, c, n, h = [], 0.0, 0.0, np.zeros(H)
    for x in np.asarray(xs, np.float64):
        if name == "slstm":
            drive = x @ w["kernel"] + w["bias"] + h @ w["recurrent_kernel"][0]
            z, i, f, o = np.split(drive, 4)
            c = expit(f) * c + np.exp(i) * np.tanh(z)
            n = expit(f) * n + np.exp(i)
            h = expit(o) * c / n
        else:
            q, k, v, o = np.split(x @ w["kernel"] + w["bias"], 4)
            i, f = x @ w["gate_kernel"] + w["gate_bias"]
            c = expit(f) * c + np.exp(i) * np.outer(v, k) / math.sqrt(H)
            n = expit(f) * n + np.exp(i) * k / math.sqrt(H)
            h = expit(o) * (c @ q) / max(abs(n @ q), 1.0)
        outputs.append(h)
    return np.stack(outputs)


@jax.jit
def gradients_of_the_sum(cell, xs):
    def total(cell, xs):
        outputs = jaxrnn.unroll(cell, xs).outputs
        return jnp.sum(outputs), outputs

    return jax.grad(total, (0, 1), has_aux=True)(cell, xs)


@pytest.mark.parametrize("first", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("name", ["slstm", "mlstm"])
def test_exponential_gates_of_a_hundred_do_not_overflow(name, first):
    """In float32, which holds e^±87. An exponent near 100 is rounded to 2⁻¹⁸, a few of them to 3e-5."""
    cell = made(name, dtype=jnp.float32)
    if name == "slstm":
        cell.kernel[...] = cell.kernel[...].at[0, H : 2 * H].set(100.0)
    else:
        cell.gate_kernel[...] = cell.gate_kernel[...].at[0, 0].set(100.0)
    xs = (
        drawn(7, F, dtype=jnp.float32)
        .at[:, 0]
        .set(jnp.asarray([first, -1.0, 0.0, 1.0, 0.0, -1.0, 1.0]))
    )
    (gradient, _), outputs = gradients_of_the_sum(cell, xs)
    assert_close(outputs, plain_xlstm(name, cell, xs), 1e-4)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_mlstm_finds_a_value_by_its_key(x64):
    """With f = i = o = 1 and orthonormal keys the memory holds every value: C = Σ v kᵀ, C k = v."""
    cell = blank(jaxrnn.MLSTMCell, 2 * H, H, param_dtype=jnp.float64)
    values, zero = drawn(H, H), jnp.zeros((H, H))
    keys, _ = jnp.linalg.qr(drawn(H, H, seed=1))
    # One input names an item to store, the other an item to ask for; the cell divides its keys by √H.
    store = jnp.concatenate([zero, keys * math.sqrt(H), values, zero], axis=-1)
    ask = jnp.concatenate([keys, zero, zero, zero], axis=-1)
    cell.kernel[...] = jnp.concatenate([store, ask])
    cell.bias[...] = cell.bias[...].at[3 * H :].set(40.0)
    cell.gate_bias[...] = jnp.asarray([0.0, 40.0])
    xs = jnp.concatenate([jnp.eye(2 * H)[:H], jnp.eye(2 * H)[H:][::-1]])
    outputs = jaxrnn.unroll(cell, xs).outputs
    assert_close(outputs[:H], zero, 1e-14)
    assert_close(outputs[H:], values[::-1], 1e-13)


# Clocks.


def test_clockwork_groups_rest_between_ticks(x64):
    """At rest a group's rows of the Jacobian are those of the identity; the clock has no derivative."""
    cell = made("clockwork", periods=(1, 3))
    xs, _ = inputs(cell, batch=(), length=12)
    matrices = jacobians(cell, xs)
    slow = slice(H + H // 2, 2 * H)
    for t, matrix in enumerate(matrices):
        assert not matrix[:H].any()
        assert not matrix[:, :H].any()
        rests = np.array_equal(matrix[slow], np.eye(2 * H)[slow])
        assert rests == (t % 3 != 0)


def test_clockwork_gradient_passes_a_slow_group_at_its_ticks_alone(x64):
    """Over 12 steps a group of period 3 has 4 Jacobians, and it hears of no other group."""
    cell = made("clockwork", periods=(1, 3))
    xs, _ = inputs(cell, batch=(), length=12)
    path = trace(cell, xs)
    slow = slice(H // 2, H)
    states = np.asarray(path.carries[1])[1:, slow]
    kernel = np.asarray(cell.recurrent_kernel[...])[slow, slow].T
    expected = np.eye(H // 2)
    for tick in (0, 3, 6, 9):
        expected = (1 - states[tick, :, None] ** 2) * kernel @ expected

    def last(h):
        clock = jnp.zeros(H)
        return jaxrnn.unroll(cell, xs, carry=(clock, h)).carry[1]

    found = jax.jacrev(last)(jnp.zeros(H))
    assert_close(found[slow, slow], expected, 1e-13)
    assert not found[slow, : H // 2].any()


def test_clockwork_matrix_keeps_its_zeros(dtype):
    for cell in trained("clockwork", dtype):
        matrix = np.asarray(cell.recurrent_kernel[...])
        np.testing.assert_array_equal(matrix != 0, np.tri(H, dtype=bool))  # one unit a group


# Cells that are others in a special case.


def alike(special, plain, **shared):
    """Tell that two cells give the same outputs, the first with the weights of the second."""
    for name, weight in {**nnx.to_pure_dict(nnx.state(plain)), **shared}.items():
        setattr(special, name, nnx.Param(weight))
    xs, _ = inputs(plain, length=20)
    ours, theirs = (jaxrnn.unroll(cell, xs).outputs for cell in (special, plain))
    assert_close(ours, theirs, 1e-15)


def test_ctrnn_of_one_step_is_the_elman_network(x64):
    alike(made("ctrnn", time_constant=1.0), made("elman-tanh"))


def test_peephole_lstm_without_peepholes_is_the_lstm(x64):
    alike(made("lstm-peephole"), made("lstm"), peepholes=jnp.zeros(3 * H))


def test_projected_lstm_that_projects_nothing_is_the_lstm(x64):
    alike(made("lstm-projected", projection_features=H), made("lstm"), projection=jnp.eye(H))


def test_sru_without_peepholes_is_linear_in_its_cell(x64):
    """Then f sees the input alone: what c was is multiplied by the product of the forget gates."""
    cell = made("sru")
    cell.peepholes[...] = jnp.zeros(2 * H)
    xs, (c, h) = inputs(cell, length=20)
    from_c, from_zero = (
        jaxrnn.unroll(cell, xs, carry=(start, h)).carry[0] for start in (c, jnp.zeros_like(c))
    )
    forget = np.split(np.asarray(cell.project(xs)), 4, axis=-1)[0]
    assert_close(from_c - from_zero, expit(forget).prod(axis=0) * c, 1e-14)


# Without weights every gate is a constant, and so are the exponents.

LOST = -math.inf
HALF = math.log(0.5)

EXPONENTS = {
    # name: the biases of the gates, and the exponents of a unit
    "lstm-peephole": ([0.3, 1.0, -0.2, 0.5], [math.log(expit(1.0)), LOST]),
    "gru-reset-before": ([0.4, 1.3, -0.1], [math.log(expit(1.3))]),
    "ogru": ([0.4, 1.3, -0.1], [math.log(expit(1.3))]),
    "mgu": ([0.7, 0.2], [math.log(expit(-0.7))]),
    "ctrnn": ([0.5], [math.log(1 - 1 / 5)]),
    "antisymmetric": ([0.0], [math.log(1 - 0.1 * 0.01)]),
    "lipschitz": ([0.0], [math.log(1 - 0.1 * (0.001 + 0.001))]),
    "lem": ([0.3, -0.4, 0.2, 0.1], [math.log(expit(0.4)), math.log(expit(-0.3))]),
    "slstm": ([0.3, 0.2, 0.6, 0.5], [math.log(expit(0.6))] * 2 + [LOST] * 2),
    "sru": ([0.4, 0.3, 0.2, 0.1], [math.log(expit(0.4)), LOST]),
    "mingru": ([0.7, 0.2], [math.log(expit(-0.7))]),
    "minlstm": ([0.4, -0.3, 0.2], [math.log(expit(0.4) / (expit(0.4) + expit(-0.3)))]),
    "rg-lru": ([0.4, 0.3, 0.2], [8 * expit(0.4) * HALF]),
}


# Seven are always run: the others forget by one gate or one constant as these do.
@table_of_cells(
    *("lstm-peephole", "gru-reset-before", "antisymmetric", "lem", "slstm", "minlstm", "rg-lru"),
    among=EXPONENTS,
)
def test_exponents_without_weights(name, x64):
    biases, exponents = EXPONENTS[name]
    cell = zero_weights(name, biases)
    found = lyapunov(cell, jnp.zeros((400, F)), warmup=300)
    assert_close(found.exponents, np.repeat(exponents, H), 1e-10)


def test_the_unitary_cells_permutation_never_changes():
    """A saved network would become another one."""
    assert permutation(8).tolist() == [6, 2, 1, 7, 3, 0, 5, 4]


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@table_of_cells("lru", among=("lru", "s5"))  # S5 takes long to make
def test_eigenvalues_of_state_spaces_stay_inside_the_circle_in_their_own_precision(name, kind):
    """Rounded one by one, real and imaginary part of |λ| ≈ 1 may lie beyond it, and a state would explode."""
    options = {"radius": (0.99, 0.999)} if name == "lru" else {}
    cell = jaxrnn.make_cell(name, 1, 256, param_dtype=jnp.dtype(kind), rngs=nnx.Rngs(0), **options)
    re, im = (np.asarray(part, np.float64) for part in cell.eigenvalues())
    assert np.hypot(re, im).max() <= 1


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("bias", [-0.5, 0.0, 0.5])
def test_real_modrelu_has_slope_one_or_zero_whatever_the_scale(bias, kind):
    z = jnp.array([-3.0, -1.0, -1e-2, -1e-4, 0.0, 1e-4, 1e-2, 1.0, 3.0], jnp.dtype(kind))
    b = jnp.full_like(z, bias)
    slopes = jax.grad(lambda z: modrelu((z,), b)[0].sum())(z)
    values = modrelu((z,), b)[0]
    alive = np.abs(np.asarray(z, np.float64)) + bias > 0 if bias else np.ones(len(z), bool)
    expected = np.sign(z) * np.maximum(np.abs(np.asarray(z, np.float64)) + bias, 0)
    np.testing.assert_array_equal(np.asarray(slopes, np.float64), alive)
    np.testing.assert_allclose(np.asarray(values, np.float64), expected, rtol=1e-2)


def test_complex_modrelu_has_the_slopes_of_its_docstring_at_any_scale():
    for size in (1e-20, 1e-3, 1.0, 1e18):
        z = (jnp.array([size]), jnp.array([0.0]))
        b = jnp.array([0.5 * size])
        jacobian = jax.jacobian(lambda *z: modrelu(z, b), argnums=(0, 1))(*z)  # noqa: B023
        np.testing.assert_allclose(np.squeeze(jacobian), [[1, 0], [0, 1.5]], rtol=1e-6)


@pytest.mark.parametrize("name", ["rg-lru", "mlstm", "slstm", "minlstm"])
@pytest.mark.parametrize("scale", [200.0, 1e4])
def test_gates_that_are_shut_tight_have_finite_gradients(name, scale):
    cell = jaxrnn.make_cell(name, 3, 5, rngs=nnx.Rngs(0))
    xs = scale * jax.random.normal(jax.random.key(0), (4, 2, 3))
    gradients, _ = gradients_of_the_sum(cell, xs)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_an_mlstm_that_never_opened_answers_nothing_and_has_finite_gradients():
    cell = jaxrnn.MLSTMCell(3, 5, rngs=nnx.Rngs(0))
    cell.gate_bias[...] = jnp.array([-100.0, -100.0])
    loss = lambda cell: (jaxrnn.unroll(cell, jnp.ones((3, 2, 3))).outputs ** 2).sum()  # noqa: E731
    value, gradients = jax.value_and_grad(loss)(cell)
    assert value == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
