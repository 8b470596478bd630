"""What each initialiser promises, checked on the matrices it draws with NumPy's linear algebra."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrnn import ElmanCell, GRUCell, LSTMCell, checks
from jaxrnn.cells import initializers

H = 4
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def key(seed=0):
    return jax.random.key(seed)


def gate_blocks(array, gates):
    return [np.asarray(block) for block in np.split(np.asarray(array), gates, axis=-1)]


def radius(matrix):
    return np.abs(np.linalg.eigvals(np.asarray(matrix, np.float64))).max()


@pytest.mark.parametrize("make", [ElmanCell, GRUCell, LSTMCell])
def test_each_gate_starts_with_an_orthogonal_matrix_of_its_own(make, dtype):
    cell = make(3, H, param_dtype=dtype, rngs=nnx.Rngs(0))
    blocks = gate_blocks(cell.recurrent_kernel, len(cell.gates))
    for block in blocks:
        assert block.dtype == dtype
        np.testing.assert_allclose(block.T @ block, np.eye(H), atol=TOLERANCE[dtype.name])
    for other in blocks[1:]:
        assert np.abs(blocks[0] - other).max() > 0.1


def test_orthogonal_scale_is_every_singular_value(dtype):
    matrix = initializers.orthogonal(0.5)(key(), (H, H), dtype)
    values = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(values, 0.5, rtol=TOLERANCE[dtype.name])


def test_identity_is_the_irnn_start(dtype):
    cell = ElmanCell(
        3,
        H,
        recurrent_kernel_init=initializers.identity(0.9),
        param_dtype=dtype,
        rngs=nnx.Rngs(0),
    )
    np.testing.assert_array_equal(
        cell.recurrent_kernel[...], np.eye(H, dtype=dtype) * dtype.type(0.9)
    )


def test_glorot_has_its_variance():
    matrix = initializers.glorot()(key(), (100, 300), jnp.float32)
    # 30,000 draws: the sample variance of a uniform law is known to 0.5 % (one standard error).
    assert np.var(matrix) == pytest.approx(2 / (100 + 300), rel=0.02)


def test_input_kernel_has_the_variance_of_one_gate():
    """Drawn as one matrix [F, G·H], the fan out would be G times too large."""
    cell = LSTMCell(100, 100, recurrent_kernel_init=initializers.identity(), rngs=nnx.Rngs(0))
    for block in gate_blocks(cell.kernel, 4):
        assert np.var(block) == pytest.approx(2 / (100 + 100), rel=0.04)


@pytest.mark.parametrize("rho", [0.5, 0.99, 1.3])
def test_spectral_radius_is_exact(rho, dtype):
    matrix = initializers.spectral_radius(rho)(key(), (H, H), dtype)
    assert matrix.dtype == dtype
    assert radius(matrix) == pytest.approx(rho, rel=TOLERANCE[dtype.name])


def test_spectral_radius_is_exact_under_jit_and_vmap(dtype):
    def draw(key):
        return initializers.spectral_radius(0.9)(key, (H, H), dtype)

    keys = jax.random.split(key(), 4)
    matrices = jax.jit(jax.vmap(draw))(keys)
    for matrix in matrices:
        assert radius(matrix) == pytest.approx(0.9, rel=TOLERANCE[dtype.name])
    np.testing.assert_allclose(matrices[2], draw(keys[2]), rtol=TOLERANCE[dtype.name])


def test_spectral_radius_of_each_gate():
    cell = GRUCell(3, H, recurrent_kernel_init=initializers.spectral_radius(0.9), rngs=nnx.Rngs(0))
    for block in gate_blocks(cell.recurrent_kernel, 3):
        assert radius(block) == pytest.approx(0.9, rel=TOLERANCE["float32"])


@pytest.mark.parametrize("init", [initializers.orthogonal(), initializers.spectral_radius(0.9)])
def test_half_precision_rounds_a_matrix_factorised_in_float32(init):
    half, full = (init(key(), (H, H), dtype) for dtype in (jnp.bfloat16, jnp.float32))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, full.astype(jnp.bfloat16))


def gate_biases(cell):
    return dict(zip(cell.gates, gate_blocks(cell.bias, len(cell.gates)), strict=True))


def test_lstm_forgets_little_at_the_start():
    biases = gate_biases(LSTMCell(3, H, rngs=nnx.Rngs(0)))
    expected = {"input": 0, "forget": 1, "cell": 0, "output": 0}
    assert {gate: set(bias) for gate, bias in biases.items()} == {
        gate: {value} for gate, value in expected.items()
    }


def test_forget_bias_sets_the_forget_gate_alone():
    cell = LSTMCell(3, H, bias_init=LSTMCell.forget_bias(2.5), rngs=nnx.Rngs(0))
    biases = gate_biases(cell)
    assert set(biases.pop("forget")) == {2.5}
    assert not np.any(list(biases.values()))


@pytest.mark.parametrize("make", [ElmanCell, GRUCell])
def test_other_biases_start_at_zero(make):
    cell = make(3, H, rngs=nnx.Rngs(0))
    assert not np.any(cell.bias[...])


def test_recurrent_bias_of_the_gru_starts_at_zero():
    assert not np.any(GRUCell(3, H, rngs=nnx.Rngs(0)).recurrent_bias[...])


CHRONO = {
    "lstm": (LSTMCell, {"input": -1, "forget": 1, "cell": 0, "output": 0}),
    "gru": (GRUCell, {"reset": 0, "update": 1, "new": 0}),
}


@pytest.mark.parametrize("name", CHRONO)
def test_chrono_spreads_the_memory_of_the_units_evenly_over_the_lags(name):
    make, signs = CHRONO[name]
    units, max_lag = 400, 50.0
    cell = make(
        1,
        units,
        bias_init=make.chrono(max_lag),
        recurrent_kernel_init=initializers.identity(),  # the cheapest at this size
        rngs=nnx.Rngs(0),
    )
    biases = gate_biases(cell)
    keep = next(bias for gate, bias in biases.items() if signs[gate] == 1)

    memory = np.sort(np.exp(keep))
    assert memory[0] >= 1
    assert memory[-1] <= max_lag - 1
    # Kolmogorov and Smirnov: a uniform sample strays further once in a thousand draws.
    evenly = (np.arange(units) + 0.5) / units
    assert np.abs((memory - 1) / (max_lag - 2) - evenly).max() < 1.95 / np.sqrt(units)
    for gate, bias in biases.items():
        np.testing.assert_array_equal(bias, signs[gate] * keep)


def test_constant_per_gate_gives_each_gate_its_own():
    bias = initializers.constant_per_gate((1.0, -2.0))(key(), (2, 3), jnp.float32)
    np.testing.assert_array_equal(bias, [[1, 1, 1], [-2, -2, -2]])


@pytest.mark.parametrize("init", [initializers.identity(), initializers.spectral_radius(0.9)])
def test_square_initialisers_refuse_an_input_kernel(init):
    with pytest.raises(checks.InputError, match=r"^shape: got \[3, 4\]; expected a square matrix"):
        ElmanCell(3, H, kernel_init=init, rngs=nnx.Rngs(0))


def test_the_same_key_draws_the_same_cell():
    first, again, other = (LSTMCell(3, H, rngs=nnx.Rngs(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.any(first.kernel[...] != other.kernel[...])
