"""Search without gradients: budgets, what is published of cuckoo search, and its Lévy flights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn.checks import InputError
from jaxrnn.training import cuckoo_search, random_search
from jaxrnn.training.search import _LEVY, _levy

KEY = jax.random.key(0)


def sphere(x):
    return jnp.sum(x**2)


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


@pytest.mark.parametrize(("evaluations", "taken"), [(45, 45), (74, 45), (75, 75), (1_000, 975)])
def test_the_budget_is_kept_and_counted(evaluations, taken):
    calls = []

    def loss(x):
        jax.debug.callback(lambda _: calls.append(1), x[0])
        return sphere(x)

    found = cuckoo_search(loss, jnp.ones(2), key=KEY, evaluations=evaluations)
    jax.effects_barrier()
    assert found.evaluations == taken == len(calls)
    assert len(found.history) == 1 + (taken - 15) // 30


@pytest.mark.parametrize(("loss", "goal"), [(sphere, jnp.zeros(5)), (rosenbrock, jnp.ones(2))])
def test_it_finds_known_minima(loss, goal):
    """The minima are known: 0 at the goal."""
    found = cuckoo_search(loss, 3 + goal, key=KEY, evaluations=30_000, spread=2.0)
    assert found.value < 1e-5
    np.testing.assert_allclose(found.parameters, goal, atol=2e-2)
    assert found.value == loss(found.parameters)
    assert (np.diff(found.history) <= 0).all()


def test_cuckoo_search_beats_random_search_at_the_same_budget():
    budget = {"key": KEY, "evaluations": 3_015, "spread": 1.0}
    better, plain = (
        search(sphere, jnp.ones(8), **budget) for search in (cuckoo_search, random_search)
    )
    assert better.value < plain.value / 10


def test_random_search_is_the_best_of_its_draws():
    found = random_search(sphere, jnp.ones(3), key=KEY, evaluations=200, spread=0.5)
    keys = jax.random.split(KEY, 200)
    points = np.array([1 + 0.5 * jax.random.normal(key, (3,)) for key in keys])
    values = (points**2).sum(axis=1)
    assert float(found.value) == pytest.approx(values.min(), rel=1e-5)
    np.testing.assert_allclose(found.history, np.minimum.accumulate(values), rtol=1e-5)


def test_flights_have_the_tail_of_a_levy_law():
    steps = np.abs(np.asarray(_levy(KEY, jnp.zeros(1_000_000))))
    large = np.sort(steps)[-1_000:]
    hill = 1 / np.mean(np.log(large / large[0]))  # Hill's estimate of the tail's exponent
    assert hill == pytest.approx(_LEVY, abs=3 * _LEVY / 1_000**0.5)


def test_what_is_not_finite_is_avoided():
    walled = lambda x: jnp.where(x[0] > 0, sphere(x - 1), jnp.nan)  # noqa: E731
    found = cuckoo_search(walled, jnp.zeros(2), key=KEY, evaluations=3_000)
    assert found.value < 1e-3
    nowhere = random_search(lambda x: sphere(x) * jnp.nan, jnp.zeros(2), key=KEY, evaluations=9)
    assert np.isinf(nowhere.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evaluations": 44}, "evaluations: got 44; expected at least 45"),
        ({"nests": 0}, "nests: got 0"),
        ({"spread": 0.0}, "spread"),
        ({"abandoned": 1.0}, "abandoned"),
    ],
)
def test_bad_input_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        cuckoo_search(sphere, jnp.ones(2), **{"key": KEY, "evaluations": 100, **change})
