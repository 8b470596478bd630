"""Fixed points and slow points.

Oracles: closed forms, published values, the papers' equations in NumPy, SciPy's root finder; and a network
that has learnt the 3-bit flip-flop, whose fixed points are known for what they are.
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy.optimize import root_scalar
from scipy.special import expit

import jaxrnn
from jaxrnn.analysis import trace
from jaxrnn.analysis._fixed_points import candidates_from, fixed_points
from jaxrnn.analysis.least_squares import Descent, LevenbergMarquardt
from jaxrnn.analysis.roots import (
    Outcome,
    _go_on,
    _set_out,
    jacobians_at,
)
from jaxrnn.checks import InputError
from jaxrnn.tasks.flip_flop import flip_flop
from tests.analysis.examples import (
    F,
    H,
    as_state,
    compiles,
    elman,
    every_twin,
    jacobian_by_complex_steps,
    make,
    numpy_step,
    travelled,
    twins,
    zero_weights,
)
from tests.analysis.systems import A, C, henon
from tests.zoo import every_plain_cell


def uncoupled(s, x):
    """Three bits: every unit by itself has the fixed points 0 and ±r."""
    moved = jnp.tanh(2.0 * s)
    return moved, moved


def positive_root(w):
    """The s > 0 with s = tanh(w s)."""
    return root_scalar(lambda s: np.tanh(w * s) - s, bracket=(0.1, 1.0), xtol=1e-15).root


def drawn(*shape, seed=0, dtype=jnp.float64, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), dtype)


def candidates_for(cell, count, dtype=jnp.float64, seed=3):
    zeros = cell.initialize_carry((count, F))
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(draw.normal(size=a.shape), dtype), zeros)


def test_henons_fixed_points(x64):
    found = fixed_points(henon, None, drawn(50, 2))
    u = (C - 1 + np.array([1, -1]) * np.sqrt((1 - C) ** 2 + 4 * A)) / (2 * A)
    roots = np.array(
        [[-A * v - np.sqrt((A * v) ** 2 + C), -A * v + np.sqrt((A * v) ** 2 + C)] for v in u]
    )
    roots = np.take_along_axis(roots, np.argsort(-np.abs(roots)), axis=-1)
    order = np.argsort(-found.states[:, 0])
    assert len(found) == 2
    np.testing.assert_allclose(found.states[order], np.stack([u, C * u], -1), rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.eigenvalues[order], roots, rtol=0, atol=1e-10)
    np.testing.assert_allclose(u, [0.631354, -1.131354], rtol=0, atol=5e-7)
    np.testing.assert_allclose(roots, [[-1.92374, 0.15595], [3.25982, -0.09203]], atol=1e-5)
    assert found.saddle.all()
    assert not found.stable.any()
    np.testing.assert_array_equal(found.unstable_dimension, [1, 1])
    np.testing.assert_array_equal(
        found.jacobians[order][:, 0, 0], -2 * A * found.states[order][:, 0]
    )


@pytest.mark.parametrize(
    ("w", "point", "slope"), [(2.0, 0.957504, 0.166372), (1.5, 0.858560, 0.394313)]
)
def test_scalar_tanh_network(w, point, slope, x64):
    found = fixed_points(elman([[w]], jnp.tanh), jnp.zeros(1), drawn(30, 1))
    exact = positive_root(w)
    assert exact == pytest.approx(point, abs=5e-7)
    np.testing.assert_allclose(np.sort(found.states[:, 0]), [-exact, 0, exact], rtol=0, atol=1e-10)
    np.testing.assert_array_equal(found.stable, [True, True, False])
    slopes = w * (1 - exact**2)
    np.testing.assert_allclose(found.eigenvalues[:, 0], [slopes, slopes, w], rtol=0, atol=1e-10)
    np.testing.assert_allclose(slopes, slope, rtol=0, atol=1e-6)


def test_linear_map_has_one(x64):
    matrix, shift = 0.7 * drawn(6, 6), drawn(6, seed=1)
    found = fixed_points(lambda s, x: (matrix @ s + x, s), shift, drawn(8, 6), outlier=np.inf)
    exact = np.linalg.solve(np.eye(6) - matrix, shift)
    np.testing.assert_allclose(found.states, [exact], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found.jacobians, [matrix])
    expected = np.linalg.eigvals(matrix)
    expected = expected[np.argsort(-np.abs(expected), kind="stable")]
    np.testing.assert_allclose(np.abs(found.eigenvalues[0]), np.abs(expected), rtol=1e-12)
    np.testing.assert_allclose(np.sum(found.eigenvalues), np.trace(matrix), atol=1e-12)
    assert int(found.multiplicity[0]) == 8


def test_lstm_without_weights(x64):
    """c = i g / (1 − f), h = o tanh c; the eigenvalues are f for each c and 0 for each h."""
    i, f, g, o = 0.3, 1.0, 0.8, -0.5
    found = fixed_points(
        zero_weights("lstm", (i, f, g, o)), jnp.ones(F), (drawn(5, H), drawn(5, H))
    )
    c = expit(i) * np.tanh(g) / (1 - expit(f))
    h = expit(o) * np.tanh(c)
    assert len(found) == 1
    np.testing.assert_allclose(found.states, [[c] * H + [h] * H], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.carries[0], [[c] * H], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.eigenvalues, [[expit(f)] * H + [0] * H], rtol=0, atol=1e-12)
    assert bool(found.stable[0])


def test_gru_without_weights(x64):
    found = fixed_points(zero_weights("gru", (0.3, 1.0, -0.2)), jnp.ones(F), drawn(5, H))
    np.testing.assert_allclose(found.states, [[np.tanh(-0.2)] * H], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.eigenvalues, [[expit(1.0)] * H], rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [LevenbergMarquardt(), Descent(3000)])
def test_three_uncoupled_bits_have_27_points(method, x64):
    start = jax.random.uniform(jax.random.key(0), (600, 3), minval=-1.2, maxval=1.2)
    found = fixed_points(uncoupled, None, start, method=method, tolerance=1e-10, distinct=1e-3)
    assert len(found) == 27
    assert found.converged.all()
    counts = np.unique(found.unstable_dimension, return_counts=True)
    np.testing.assert_array_equal(counts, [[0, 1, 2, 3], [8, 12, 6, 1]])
    assert np.all(np.diff(found.unstable_dimension) >= 0)
    assert int(found.stable.sum()) == 8
    assert int(found.saddle.sum()) == 18  # the origin repels on all sides
    root = positive_root(2.0)
    sides = np.round(np.asarray(found.states) / root)
    assert len(np.unique(sides, axis=0)) == 27
    np.testing.assert_allclose(found.states, sides * root, rtol=0, atol=1e-8)
    assert int(found.multiplicity.sum()) == 600
    assert "27 distinct points: 8 stable, 19 unstable in 1 to 3 directions" in found.text
    np.testing.assert_array_equal(np.bincount(found.ends_in), found.multiplicity)


@every_plain_cell
def test_points_of_every_cell_stand_still(name, x64):
    cell = make(name)
    x = drawn(F, seed=5)
    found = fixed_points(cell, x, candidates_for(cell, 40), outlier=np.inf)
    step = numpy_step(name, cell)
    for state, matrix, speed in zip(found.states, found.jacobians, found.speeds, strict=True):
        leaves = tuple(np.split(np.asarray(state), len(cell.carry_names)))
        moved = np.concatenate(step(leaves, np.asarray(x))[0])
        np.testing.assert_allclose(moved, state, rtol=0, atol=1e-12 * max(1, np.abs(state).max()))
        if name != "elman-relu":  # no derivative by complex steps
            exact = jacobian_by_complex_steps(step, leaves, np.asarray(x))
            np.testing.assert_allclose(matrix, exact, rtol=0, atol=1e-12)
        assert float(speed) < 1e-20


@every_twin
def test_foreign_cells_have_the_points_of_ours(kind, x64):
    ours, foreign = twins(kind)
    x, candidates = drawn(F, seed=5), candidates_for(ours, 30)
    mine, theirs = (fixed_points(cell, x, candidates, outlier=np.inf) for cell in (ours, foreign))
    assert len(mine) == len(theirs) > 0
    np.testing.assert_array_equal(mine.outcomes, theirs.outcomes)
    places = [
        np.asarray(m.states)[np.asarray(m.ends_in)[np.asarray(m.converged)]] for m in (mine, theirs)
    ]
    np.testing.assert_allclose(*places, rtol=0, atol=1e-8)


def test_both_precisions_reach_their_rounding(dtype):
    matrix = 1.5 * drawn(20, 20, dtype=dtype) / np.asarray(np.sqrt(20), dtype)
    cell = elman(matrix, jnp.tanh, dtype)
    found = fixed_points(cell, jnp.zeros(1, dtype), drawn(100, 20, dtype=dtype))
    assert found.states.dtype == found.speeds.dtype == found.jacobians.dtype == dtype
    assert found.eigenvalues.real.dtype == dtype
    assert int(found.converged.sum()) > 50
    # Each of 20 residuals is some roundings of a sum of 20 products of size 1.
    assert np.sqrt(2 * np.asarray(found.speeds)).max() < 100 * np.finfo(dtype).eps


@pytest.mark.parametrize("kind", [jaxrnn.GRUCell, jaxrnn.MGUCell])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_saturated_gates_make_no_points_in_float32(kind, scale):
    """A state of these cells is a mean of states below 1 and of the last one: no fixed point is beyond 1."""
    cell = kind(3, 12, rngs=nnx.Rngs(0))
    start = drawn(60, 12, dtype=jnp.float32, scale=scale)
    found = fixed_points(cell, jnp.zeros(3), start, outlier=np.inf)
    np.testing.assert_allclose(found.states, np.zeros((1, 12)), rtol=0, atol=1e-6)
    flat = int(np.sum(found.outcomes == Outcome.NO_POINT_NEAR))
    assert flat > 0
    assert int(found.converged.sum()) + flat == 60
    np.testing.assert_array_equal(np.asarray(found.ends_in) == -1, ~np.asarray(found.converged))
    assert f"{flat} in a flat region with no fixed point near" in found.text


def test_multiple_root_is_followed_until_it_is_reached(dtype):
    """s − s³/3, as tanh begins: F(s) − s is below the tolerance far from the triple root 0."""
    start = jnp.linspace(-1.0, 1.0, 8, dtype=dtype)[:, None]
    found = fixed_points(lambda s, x: (s - s**3 / 3, s), None, start)
    assert found.converged.all()
    # Where s³/3 is no more than eight roundings of s, floats cannot tell.
    assert np.abs(found.states).max() < np.sqrt(24 * np.finfo(dtype).eps)
    assert found.marginal.all()


def test_line_of_fixed_points_stays_in_float32():
    along = np.array([0.6, 0.8])
    projection = jnp.asarray(np.outer(along, along), jnp.float32)
    start = drawn(20, 2, dtype=jnp.float32)
    found = fixed_points(lambda s, x: (projection @ s, s), None, start)
    assert found.converged.all()
    assert len(found) == 20
    ends = np.asarray(found.states)[np.asarray(found.ends_in)]
    np.testing.assert_allclose(ends @ [-0.8, 0.6], 0, atol=1e-5)


def test_loose_tolerance_gives_the_same_points(x64):
    """Where the search may stop early, the points are exact all the same."""
    found = fixed_points(uncoupled, None, drawn(40, 1), tolerance=1e-3)
    root = positive_root(2.0)
    np.testing.assert_allclose(np.sort(found.states[:, 0]), [-root, 0, root], rtol=0, atol=1e-7)


@pytest.mark.slow
def test_ghost_of_a_saddle_node_is_a_slow_point(x64):
    """s' = s + ε + s² has no fixed point, but q has its least value ε²/2 at 0."""
    epsilon = 1e-2

    def step(s, x):
        return s + epsilon + s**2, s

    start = jnp.linspace(-0.5, 0.5, 11)[:, None]
    unasked = fixed_points(step, None, start)
    assert len(unasked) == 0
    assert np.all(unasked.outcomes == Outcome.MINIMUM)
    asked = fixed_points(step, None, start, slow=1e-3)
    assert np.all(asked.outcomes == Outcome.SLOW_POINT)
    assert np.all(asked.slow)
    assert len(asked) == 1
    np.testing.assert_allclose(asked.states, [[0.0]], atol=1e-7)
    np.testing.assert_allclose(asked.speeds, [epsilon**2 / 2], rtol=1e-9)
    assert len(fixed_points(step, None, start, slow=1e-5)) == 0
    assert "1 distinct point: 0 stable, 1 slow" in str(asked)


@pytest.mark.slow
def test_line_of_fixed_points_is_found_wherever_it_is_reached(x64):
    """A projection: A = J − I is singular everywhere, and each candidate ends at its own foot."""
    along = np.array([0.6, 0.8])
    projection = jnp.asarray(np.outer(along, along))
    start = drawn(20, 2)
    found = fixed_points(lambda s, x: (projection @ s, s), None, start)
    assert found.converged.all()
    assert len(found) == 20
    ends = np.asarray(found.states)[np.asarray(found.ends_in)]
    # Along the line nothing but λ holds a candidate: rounding moves it there.
    np.testing.assert_allclose(ends, start @ projection, rtol=0, atol=1e-8)
    assert found.marginal.all()
    assert "20 of them marginal" in found.text


def test_how_every_candidate_ended_is_said(x64):
    def step(s, x):
        """Fixed at 1; beyond 50 off the range of floats."""
        return 1.0 + jnp.where(jnp.abs(s) > 50, jnp.exp(jnp.exp(s)), 0.1 * (s - 1) ** 3), s

    found = fixed_points(step, None, jnp.array([[0.9], [60.0], [1.2]]))
    expected = [Outcome.FIXED_POINT, Outcome.NON_FINITE, Outcome.FIXED_POINT]
    np.testing.assert_array_equal(found.outcomes, expected)
    np.testing.assert_array_equal(found.ends_in, [0, -1, 0])
    assert int(found.iterations[1]) == 0
    assert found.text.startswith(
        "3 candidates: 2 reached a fixed point, 1 left the range of floats;"
    )

    hasty = fixed_points(uncoupled, None, drawn(4, 3), method=LevenbergMarquardt(1))
    np.testing.assert_array_equal(hasty.outcomes, [Outcome.UNFINISHED] * 4)
    np.testing.assert_array_equal(hasty.iterations, [1] * 4)


@pytest.mark.parametrize("method", [LevenbergMarquardt(20), Descent(50)])
def test_where_nothing_converges_the_record_is_empty_and_says_so(method, x64):
    found = fixed_points(lambda s, x: (s + 1, s), None, drawn(7, 3), method=method)
    assert len(found) == 0
    assert found.states.shape == (0, 3)
    assert found.jacobians.shape == (0, 3, 3)
    assert found.eigenvalues.shape == (0, 3)
    assert not found.converged.any()
    np.testing.assert_array_equal(found.ends_in, [-1] * 7)
    assert "0 distinct points" in str(found)


def test_outliers_are_left_out_and_counted(x64):
    start = drawn(60, 1)
    near = fixed_points(uncoupled, None, start, outlier=0.5)
    every = fixed_points(uncoupled, None, start, outlier=np.inf)
    np.testing.assert_allclose(near.states, [[0.0]], atol=1e-12)
    assert len(every) == 3
    assert int(every.outliers) == 0
    assert int(near.outliers) == 60 - int(near.multiplicity[0]) > 0
    assert f"{int(near.outliers)} of them outliers" in near.text
    alone = fixed_points(uncoupled, None, jnp.full((1, 1), 0.5), outlier=0.5)
    assert len(alone) == 1  # a single candidate is no cloud


def test_distinct_says_what_is_one_point(x64):
    start = drawn(60, 1)
    assert len(fixed_points(uncoupled, None, start, distinct=1.5)) < 3
    assert len(fixed_points(uncoupled, None, start, distinct=0.5)) == 3


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 7, 64])
def test_batches_change_nothing(batch, x64):
    cell = make("lstm")
    x, candidates = drawn(F, seed=5), candidates_for(cell, 50)
    whole = fixed_points(cell, x, candidates)
    parts = fixed_points(cell, x, candidates, batch=batch)
    np.testing.assert_array_equal(whole.outcomes, parts.outcomes)
    np.testing.assert_array_equal(whole.multiplicity, parts.multiplicity)
    np.testing.assert_allclose(whole.states, parts.states, rtol=0, atol=1e-11)


def test_new_weights_do_not_compile_again_and_a_changed_function_does(caplog):
    def run(seed):
        cell = make("gru", jnp.float32, seed)
        x = jnp.ones(F)
        fixed_points(cell, x, jnp.ones((1, H)), method=LevenbergMarquardt(3))

    run(0)
    assert not compiles(caplog, lambda: run(1))
    scale = [2.0]
    step = lambda s, x: (scale[0] * s + 1.0, s)  # noqa: E731
    assert float(fixed_points(step, None, jnp.ones((1, 1))).states[0, 0]) == pytest.approx(-1.0)
    scale[0] = 3.0
    assert float(fixed_points(step, None, jnp.ones((1, 1))).states[0, 0]) == pytest.approx(-0.5)


@pytest.mark.slow
def test_candidates_are_states_of_the_trajectory_with_noise(x64):
    cell, path = travelled("lstm")
    total = np.prod(path.states.shape[:-1])
    every = candidates_from(path, int(total), key=jax.random.key(0))
    rows = np.sort(np.asarray(as_state(every)), axis=0)
    np.testing.assert_array_equal(rows, np.sort(np.asarray(path.states).reshape(total, -1), axis=0))
    # c and h of a candidate belong together.
    states = {tuple(row) for row in np.asarray(path.states).reshape(total, -1)}
    assert all(tuple(row) in states for row in np.asarray(as_state(every)))

    many = candidates_from(path, 2000, key=jax.random.key(1))
    noisy = candidates_from(path, 2000, key=jax.random.key(1), noise=0.1)
    differences = np.asarray(as_state(noisy) - as_state(many))
    assert differences.std() == pytest.approx(0.1, rel=0.03)  # of 16 000 draws: 0.6 %
    assert abs(np.corrcoef(differences[:, 0], differences[:, H])[0, 1]) < 0.1
    again = candidates_from(path, 2000, key=jax.random.key(1), noise=0.1)
    np.testing.assert_array_equal(as_state(again), as_state(noisy))
    assert len(fixed_points(cell, path.xs[0, 0], noisy)) > 0


def test_settings_may_be_whole_numbers_of_any_size():
    path = trace(lambda s, x: (0.5 * s, s), None, carry=jnp.ones(1), length=3)
    assert jnp.isfinite(candidates_from(path, 3, key=jax.random.key(0), noise=2**31)).all()
    with pytest.raises(InputError, match=r"tolerance: got 1e\+40; expected at most 1"):
        fixed_points(lambda s, x: (0.5 * s, s), None, jnp.ones((1, 1)), tolerance=10**40)


@pytest.mark.parametrize("method", [LevenbergMarquardt(), Descent()])
def test_search_lowers_for_every_platform(method):
    cell, x, like = make("gru", jnp.float32), jnp.ones(F), jnp.zeros(H)

    def run(starts):
        settings = {"method": method, "period": 1}
        xs = jnp.broadcast_to(x, (len(starts), F))
        places = _set_out(cell, like, (xs, starts), **settings)
        places = _go_on(cell, like, 1e-5, jnp.int32(9), (xs, places), **settings)
        return jacobians_at(cell, like, (xs, places.state))

    platforms = ("cpu", "cuda", "tpu")
    exported = jax.export.export(jax.jit(run), platforms=platforms)(jnp.ones((5, H)))
    assert exported.platforms == platforms


def test_record_is_a_tree(x64):
    found = fixed_points(uncoupled, None, drawn(9, 3))
    assert len(jax.tree.leaves(found)) == 10
    again = jax.jit(lambda record: record)(found)
    np.testing.assert_array_equal(again.states, found.states)


def with_row(value, row):
    return jnp.ones((5, 3)).at[row, 1].set(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"candidates": with_row(np.nan, 3)},
            "candidates: got 1 non-finite values, the first at [3, 1]; expected finite values",
        ),
        ({"candidates": jnp.ones((5, 3), int)}, "candidates: got int"),
        ({"candidates": ()}, "candidates: got ()"),
        ({"candidates": jnp.ones((0, 3))}, "candidates: got float"),
        ({"candidates": (jnp.ones((4, 2)), jnp.ones((5, 2)))}, "candidates: got (float"),
        ({"candidates": jnp.ones((5, 3), jnp.float16)}, "expected float32 or float64 throughout"),
        ({"x": jnp.array([jnp.inf])}, "x: got 1 non-finite values"),
        ({"tolerance": 1e-18}, "tolerance: got 1e-18 for float"),
        ({"tolerance": -1.0}, "tolerance: got -1.0"),
        ({"slow": 0.0}, "slow: got 0.0; expected a number above 0"),
        ({"distinct": np.inf}, "distinct: got inf"),
        ({"outlier": 0.0}, "outlier: got 0.0"),
        ({"batch": 0}, "batch: got 0"),
    ],
)
def test_bad_input_is_refused(change, message):
    given = {"cell": uncoupled, "x": None, "candidates": jnp.ones((5, 3)), **change}
    with pytest.raises(InputError, match=re.escape(message)):
        fixed_points(**given)


@pytest.mark.parametrize(
    ("x", "candidates", "message"),
    [
        (
            jnp.ones((5, F)),
            jnp.ones((5, H)),
            "x: got float32[5, 3]; expected one constant input [F]",
        ),
        (jnp.ones(F + 1), jnp.ones((5, H)), "x: got float32[4]; expected 3 features"),
        (jnp.ones(F), jnp.ones((5, H + 1)), "carry (h): got float32[5]; expected float32[4]"),
        (jnp.ones(F), (jnp.ones((5, H)),) * 2, "carry: got (float32[4], float32[4])"),
        (None, jnp.ones((5, H)), "x: got NoneType None; expected one constant input [F]"),
    ],
)
def test_what_does_not_fit_the_cell_is_refused(x, candidates, message):
    with pytest.raises(InputError, match=re.escape(message)):
        fixed_points(make("gru", jnp.float32), x, candidates)


def test_a_trajectory_is_no_set_of_candidates(x64):
    cell, path = travelled("gru")
    with pytest.raises(InputError, match="candidates: got a Trajectory; expected carries"):
        fixed_points(cell, path.xs[0, 0], path)
    with pytest.raises(InputError, match="noise: got -1"):
        candidates_from(path, 5, key=jax.random.key(0), noise=-1.0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LevenbergMarquardt(0), "max_iterations: got 0"),
        (lambda: LevenbergMarquardt(damping=-1.0), "damping: got -1.0"),
        (lambda: Descent(max_iterations=0), "max_iterations: got 0"),
        (lambda: Descent(learning_rate=0.0), "learning_rate: got 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


# The 3-bit flip-flop from end to end.


class Memory(nnx.Module):
    """A GRU and a linear readout."""

    def __init__(self, rngs):
        self.cell = jaxrnn.GRUCell(3, 16, rngs=rngs)
        self.readout = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, inputs):
        return self.readout(jaxrnn.unroll(self.cell, inputs).outputs)


def trained(updates=1200):
    """A memory that has learnt the flip-flop, and its last loss."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(2e-2, updates))
    )

    def loss(model, key):
        inputs, targets = flip_flop(key, steps=100, batch=32, probability=0.08)
        return jnp.mean((model(inputs) - targets) ** 2)

    @jax.jit
    def update(carry, key):
        model, state = carry
        value, gradient = jax.value_and_grad(loss)(model, key)
        moves, state = optimizer.update(gradient, state)
        return (optax.apply_updates(model, moves), state), value

    model = Memory(nnx.Rngs(0))
    state = optimizer.init(model)  # pyright: ignore[reportArgumentType]
    keys = jax.random.split(jax.random.key(0), updates)
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
        (model, _), values = jax.lax.scan(update, (model, state), keys)
    return model, float(values[-100:].mean())


@pytest.mark.slow
def test_trained_flip_flop_has_eight_memories_and_saddles_between_them():
    model, loss = trained()
    assert loss < 0.02
    inputs, _ = flip_flop(jax.random.key(1), steps=100, batch=32, probability=0.08)
    path = trace(model.cell, inputs)
    candidates = candidates_from(path, 1024, key=jax.random.key(2), noise=0.3)
    still = jnp.zeros(3)
    found = fixed_points(model.cell, still, candidates)
    assert int(found.stable.sum()) == 8
    with jax.enable_x64(True):
        doubled = [
            jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), each)
            for each in (model.cell, still, candidates)
        ]
        exact = fixed_points(*doubled)
        assert len(found) == len(exact) <= 27
        order, exact_order = (np.lexsort(np.round(f.states, 3).T) for f in (found, exact))
        apart = np.asarray(found.states)[order] - np.asarray(exact.states)[exact_order]
        np.testing.assert_allclose(apart, 0, atol=1e-4)
    corners = np.asarray(model.readout(found.states[found.stable]))
    np.testing.assert_allclose(np.abs(corners), 1.0, atol=0.2)
    assert len(np.unique(np.sign(corners), axis=0)) == 8

    # From either side of a saddle with one unstable direction the network falls into another memory.
    between = np.flatnonzero((found.unstable_dimension == 1) & ~found.marginal)
    assert len(between) >= 6
    for i in between:
        values, vectors = np.linalg.eig(np.asarray(found.jacobians[i], np.float64))
        away = np.real(vectors[:, np.argmax(np.abs(values))]).astype(np.float32)
        sides = found.states[i][None] + 0.05 * jnp.stack([away, -away])
        settled = trace(model.cell, jnp.zeros((2000, 2, 3)), carry=sides).states[-1]
        falls = [int(np.argmin(np.abs(found.states[:8] - s[None]).max(axis=-1))) for s in settled]
        np.testing.assert_allclose(settled, found.states[jnp.array(falls)], atol=1e-2)
        assert falls[0] != falls[1]


def test_one_input_for_each_candidate_gives_what_each_input_gives_alone():
    cell = jaxrnn.GRUCell(2, 5, rngs=nnx.Rngs(3))
    inputs = jnp.array([[0.0, 0.0], [1.0, -1.0], [3.0, 2.0]])
    starts = 0.5 * jax.random.normal(jax.random.key(0), (9, 5))
    each = jnp.repeat(inputs, 3, axis=0)
    found = fixed_points(cell, each, starts, x_axis=0)
    assert len(found) == sum(len(fixed_points(cell, x, starts[:3])) for x in inputs)
    for carry, x in zip(found.carries, found.xs, strict=True):
        moved, _ = cell(carry, x)
        np.testing.assert_allclose(moved, carry, atol=1e-5)
    for i, x in enumerate(inputs):
        alone = fixed_points(cell, x, starts[3 * i : 3 * i + 3])
        mine = np.flatnonzero((np.asarray(found.xs) == np.asarray(x)).all(axis=-1))
        np.testing.assert_allclose(found.states[mine], alone.states, atol=1e-5)
        np.testing.assert_allclose(found.eigenvalues[mine], alone.eigenvalues, atol=1e-4)


def test_the_same_state_under_two_inputs_is_two_points():
    step = lambda s, x: (0.5 * s + 0 * x, s)  # noqa: E731
    starts = jnp.ones((4, 1))
    assert len(fixed_points(step, jnp.zeros(1), starts)) == 1
    found = fixed_points(step, jnp.array([[0.0], [0.0], [1.0], [1.0]]), starts, x_axis=0)
    assert len(found) == 2
    assert found.multiplicity.tolist() == [2, 2]


@pytest.mark.parametrize("shape", [(3, 2), (2,)])
def test_inputs_that_do_not_go_with_the_candidates_are_refused(shape):
    cell = jaxrnn.GRUCell(2, 5, rngs=nnx.Rngs(3))
    with pytest.raises(InputError, match=r"x: .*4 inputs \[C, F\]"):
        fixed_points(cell, jnp.zeros(shape), jnp.zeros((4, 5)), x_axis=0)
