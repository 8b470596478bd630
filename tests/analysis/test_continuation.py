"""Branches of fixed points.

Oracles: closed forms of folds, flips, pitchforks and Neimark–Sacker points of small maps.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn.analysis._continuation import continuation
from jaxrnn.checks import InputError
from tests.analysis.examples import H, elman, make


def itself(mu):
    return mu


def kinds(branch):
    return [b.kind for b in branch.bifurcations]


def places(branch):
    return [b.parameter for b in branch.bifurcations]


def tanh_unit(w):
    def step(s, mu):
        moved = jnp.tanh(w * s + mu)
        return moved, moved

    return step


def henon(s, a):
    u, v = s
    return jnp.stack([a - u**2 + v, 0.3 * u]), s


def test_branch_that_comes_down_to_a_pitchfork_turns_there(x64):
    """s = tanh(w s): from w = 2 the upper branch goes to s = 0 at w = 1 and back up as the lower one."""
    step = lambda s, w: (jnp.tanh(w * s), s)  # noqa: E731
    branch = continuation(step, itself, jnp.array([0.957]), begin=2.0, end=0.5)
    assert branch.ending == "returned to the beginning"
    assert kinds(branch) == ["branch point"]
    np.testing.assert_allclose(places(branch), [1.0], rtol=0, atol=1e-8)
    np.testing.assert_allclose(branch.bifurcations[0].eigenvalue, 1, rtol=0, atol=1e-6)
    np.testing.assert_allclose(branch.states[-1], -branch.states[0], rtol=0, atol=1e-12)


def test_two_cycle_of_the_logistic_map_is_born_at_3(x64):
    def twice(s, r):
        for _ in range(2):
            s = r * s * (1 - s)
        return s, s

    start = jnp.array([0.5130])  # of the two-cycle at r = 3.2: 0.5130, 0.7995
    branch = continuation(twice, itself, start, begin=3.2, end=2.5)
    assert kinds(branch) == ["branch point"]
    np.testing.assert_allclose(places(branch), [3.0], rtol=0, atol=1e-8)
    np.testing.assert_allclose(branch.bifurcations[0].state, [2 / 3], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("before", "after"), [(0.3, -2.2), (0.3, 1.1), (0.1, -9.0)])
def test_border_collision_is_no_smooth_bifurcation(before, after, x64):
    """F has the slope `before` left of s = 0 and `after` right of it; at μ = 0 the point is at 0."""

    def step(s, mu):
        moved = jnp.where(s < 0, before * s, after * s) + mu
        return moved, moved

    branch = continuation(step, itself, jnp.array([-1 / (1 - before)]), begin=-1.0, end=1.0)
    assert kinds(branch) == ["border collision"]
    np.testing.assert_allclose(places(branch), [0.0], rtol=0, atol=1e-6)
    lowest, highest = np.min(branch.eigenvalues.real), np.max(branch.eigenvalues.real)
    np.testing.assert_allclose([lowest, highest], sorted((before, after)), rtol=1e-12)


def test_border_collision_of_a_relu_network(dtype):
    step = lambda s, mu: (0.3 * s + jax.nn.relu(mu - 2.5 * s), s)  # noqa: E731
    branch = continuation(step, itself, jnp.zeros(1, dtype), begin=-1.0, end=1.0)
    assert kinds(branch) == ["border collision"]
    np.testing.assert_allclose(places(branch), [0.0], rtol=0, atol=1e-4)
    assert branch.ending == "reached the end"
    np.testing.assert_allclose(branch.states[-1], [1 / 3.2], rtol=1e-5)


@pytest.mark.parametrize("w", [1.1, 2.0, 5.0])
def test_folds_of_a_tanh_unit(w, x64):
    """1 − s² = 1/w and μ = artanh s − w s: hysteresis between ±μ."""
    s = np.sqrt(1 - 1 / w)
    mu = np.arctanh(s) - w * s
    branch = continuation(tanh_unit(w), itself, jnp.array([-1.0]), begin=-4.0, end=4.0)
    assert branch.ending == "reached the end"
    assert kinds(branch) == ["fold", "fold"]
    np.testing.assert_allclose(places(branch), [-mu, mu], rtol=0, atol=1e-10)
    np.testing.assert_allclose(
        [b.state[0] for b in branch.bifurcations], [-s, s], rtol=0, atol=1e-7
    )
    states, parameters = np.asarray(branch.states)[:, 0], np.asarray(branch.parameters)
    np.testing.assert_allclose(np.tanh(w * states + parameters), states, rtol=0, atol=1e-13)
    np.testing.assert_array_equal(branch.stable, np.abs(states) > s)
    np.testing.assert_allclose(branch.eigenvalues[:, 0], w * (1 - states**2), rtol=0, atol=1e-12)
    assert parameters[0] == -4.0
    assert parameters[-1] == 4.0


def test_folds_of_a_cell_under_its_input(dtype):
    """The same unit as a cell, driven through its input weight along a path of inputs."""
    cell = elman([[2.0]], jnp.tanh, dtype)
    cell.kernel[...] = jnp.full((1, 1), 0.5, dtype)
    branch = continuation(
        cell, lambda mu: 2 * mu[None], jnp.array([-1.0], dtype), begin=-1.0, end=1.0
    )
    s = np.sqrt(0.5)
    mu = np.arctanh(s) - 2 * s
    assert branch.eigenvalues.real.dtype == branch.parameters.dtype == dtype
    assert kinds(branch) == ["fold", "fold"]
    # μ is stationary at a fold: an error of √ε in the place is one of ε in μ.
    np.testing.assert_allclose(places(branch), [-mu, mu], rtol=0, atol=50 * np.finfo(dtype).eps)


def test_pitchfork_of_a_tanh_unit(x64):
    def step(s, w):
        return jnp.tanh(w * s), s

    branch = continuation(step, itself, jnp.array([0.0]), begin=0.5, end=1.5)
    assert kinds(branch) == ["branch point"]
    np.testing.assert_allclose(places(branch), [1.0], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(branch.states, np.zeros_like(branch.states))
    np.testing.assert_array_equal(branch.stable, branch.parameters < 1)


def test_logistic_map_flips_at_3(x64):
    def step(s, r):
        return r * s * (1 - s), s

    branch = continuation(step, itself, jnp.array([0.5]), begin=2.0, end=3.5)
    assert kinds(branch) == ["flip"]
    np.testing.assert_allclose(places(branch), [3.0], rtol=0, atol=1e-10)
    np.testing.assert_allclose(branch.bifurcations[0].state, [2 / 3], rtol=0, atol=1e-10)
    np.testing.assert_allclose(branch.states[:, 0], 1 - 1 / branch.parameters, rtol=0, atol=1e-13)
    np.testing.assert_allclose(branch.eigenvalues[:, 0], 2 - branch.parameters, rtol=0, atol=1e-12)


def test_transcritical_point_of_the_logistic_map(x64):
    def step(s, r):
        return r * s * (1 - s), s

    down = continuation(step, itself, jnp.array([0.5]), begin=2.0, end=0.5)
    assert kinds(down) == ["branch point"]
    np.testing.assert_allclose(places(down), [1.0], rtol=0, atol=1e-7)
    np.testing.assert_allclose(down.states[-1], [-1.0], rtol=0, atol=1e-12)  # 1 − 1/r: not s = 0


def test_henons_map_is_born_in_a_fold_and_flips(x64):
    """u' = a − u² + v, v' = b u: fold at a = −(1 − b)²/4, flip at a = 3(1 − b)²/4."""
    upper, lower = (-0.7 + np.array([1, -1]) * np.sqrt(0.49 + 4 * 1.4)) / 2
    start = jnp.array([upper, 0.3 * upper])
    branch = continuation(henon, itself, start, begin=1.4, end=-1.0, max_step=0.3)
    assert kinds(branch) == ["flip", "fold"]
    np.testing.assert_allclose(places(branch), [0.3675, -0.1225], rtol=0, atol=1e-10)
    assert branch.ending == "returned to the beginning"
    assert float(branch.parameters[-1]) == 1.4
    np.testing.assert_allclose(branch.states[-1], [lower, 0.3 * lower], rtol=0, atol=1e-11)


def test_delayed_logistic_map_meets_neimark_and_sacker_at_2(x64):
    """s' = a s (1 − r), r' = s: multipliers at 1 − 1/a have product a − 1 and sum 1."""

    def step(s, a):
        u, v = s
        return jnp.stack([a * u * (1 - v), u]), s

    branch = continuation(step, itself, jnp.array([0.33, 0.33]), begin=1.5, end=2.2)
    assert kinds(branch) == ["Neimark–Sacker"]
    np.testing.assert_allclose(places(branch), [2.0], rtol=0, atol=1e-10)
    sixth = np.exp(1j * np.pi / 3)
    np.testing.assert_allclose(branch.bifurcations[0].eigenvalue, sixth, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(branch.unstable_dimension, np.where(branch.parameters > 2, 2, 0))


def test_units_apart_bifurcate_one_by_one(x64):
    """At the origin of tanh(μ A s) with eigenvalues a of A each passes where |μ a| = 1."""
    blocks = np.zeros((4, 4))
    blocks[0, 0], blocks[1, 1] = 1.0, -0.8
    blocks[2:, 2:] = 0.5 * np.array([[np.cos(1), -np.sin(1)], [np.sin(1), np.cos(1)]])
    basis = np.random.default_rng(0).normal(size=(4, 4))
    matrix = jnp.asarray(np.linalg.solve(basis, blocks @ basis))

    def step(s, mu):
        return jnp.tanh(mu * (matrix @ s)), s

    branch = continuation(step, itself, jnp.zeros(4), begin=0.5, end=2.5)
    assert kinds(branch) == ["branch point", "flip", "Neimark–Sacker"]
    np.testing.assert_allclose(places(branch), [1.0, 1.25, 2.0], rtol=0, atol=1e-10)
    np.testing.assert_allclose(
        np.angle(branch.bifurcations[-1].eigenvalue), 1.0, rtol=0, atol=1e-10
    )
    assert [int(n) for n in np.unique(branch.unstable_dimension)] == [0, 1, 2, 4]


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_branch_of_a_gated_cell_is_one_of_fixed_points(name, x64):
    cell = make(name)
    direction = jnp.array([1.0, -2.0, 0.5])
    still = cell.initialize_carry((3,))
    start = jax.lax.fori_loop(0, 2000, lambda _, c: cell(c, -direction)[0], still)  # settles
    branch = continuation(cell, lambda mu: mu * direction, start, begin=-1.0, end=1.0)
    assert branch.ending == "reached the end"
    moved, _ = jax.vmap(cell)(branch.carries, branch.parameters[:, None] * direction[None])
    for leaf, same in zip(jax.tree.leaves(moved), jax.tree.leaves(branch.carries), strict=True):
        np.testing.assert_allclose(leaf, same, rtol=0, atol=1e-12)
    assert branch.eigenvalues.shape == (len(branch), H * len(cell.carry_names))


def test_what_ends_a_branch_is_said(x64):
    step = tanh_unit(2.0)
    few = continuation(step, itself, jnp.array([-1.0]), begin=-1.0, end=1.0, max_points=5)
    assert (few.ending, len(few)) == ("out of points", 5)

    def ends(s, mu):
        return jnp.sqrt(1 - mu) + 0 * s, s  # no fixed point beyond 1, where the slope is infinite

    lost = continuation(ends, itself, jnp.array([1.0]), begin=0.0, end=2.0)
    assert lost.ending in ("lost", "out of points")
    assert float(lost.parameters[-1]) < 1.0001
    assert "fold at" in continuation(step, itself, jnp.array([-1.0]), begin=-1.0, end=1.0).text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": jnp.array([jnp.nan])}, "start: got 1 non-finite"),
        ({"start": jnp.array([1])}, "start: got int.*; expected float32 or float64"),
        ({"begin": np.inf}, "begin: got inf"),
        ({"begin": "a"}, "begin: got 'a'; expected a finite number"),
        ({"end": jnp.ones(2)}, "end: got Array.*; expected a finite number"),
        ({"end": -1.0}, "end: got -1.0; expected another value than begin"),
        ({"max_step": 0.0}, "max_step: got 0.0"),
        ({"max_points": 0}, "max_points: got 0"),
        ({"tolerance": 1e-20}, "tolerance: got 1e-20 for float"),
        ({"cell": lambda s, mu: (s + 1 + s**2, s)}, "start: got no fixed point near it"),
    ],
)
def test_bad_input_is_refused(change, message, x64):
    given = {
        "cell": tanh_unit(2.0),
        "path": itself,
        "start": jnp.array([-1.0]),
        "begin": -1.0,
        "end": 1.0,
    }
    with pytest.raises(InputError, match=message):
        continuation(**{**given, **change})


@pytest.mark.parametrize(("size", "seed"), [(8, 0), (4, 2)])
@pytest.mark.parametrize("max_step", [0.1, 0.5])
def test_an_orthogonal_matrix_leaves_the_circle_at_once(size, seed, max_step, dtype):
    drawn = np.random.default_rng(seed).normal(size=(size, size))
    matrix = jnp.asarray(np.linalg.qr(drawn)[0], dtype)
    branch = continuation(
        lambda s, m: (jnp.tanh(m * (matrix @ s)), s),
        lambda m: m,
        jnp.zeros(size, dtype),
        begin=0.5,
        end=2.0,
        max_step=max_step,
    )
    found = [b.eigenvalue for b in branch.bifurcations]
    expected = [v for v in np.linalg.eigvals(np.asarray(matrix, np.float64)) if v.imag >= 0]
    key = np.angle
    np.testing.assert_allclose(sorted(map(key, found)), sorted(map(key, expected)), atol=1e-3)
    np.testing.assert_allclose([b.parameter for b in branch.bifurcations], 1, atol=1e-4)
