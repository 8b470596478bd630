"""Verdicts against hand-made gradients, and certificates against cells that break their promises."""

from __future__ import annotations

import functools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import t as student

import jaxrnn
from jaxrnn.analysis import (
    diagnose,
    gradient_flow,
    input_sensitivity,
    judge,
    lag_contributions,
    trace,
    trajectory_bound,
)
from jaxrnn.analysis._diagnose import default_loss
from jaxrnn.checks import InputError
from tests.zoo import table_of_cells

TEN = math.log(10)


def path(*changes: float, steps: int = 11) -> np.ndarray:
    """Return gradients that change evenly, by so many nats from the last step to the first [T, N]."""
    return np.linspace(1, 0, steps)[:, None] * np.array(changes)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ((-5.0, -5.1, -4.9), "vanishing"),
        ((5.0, 5.1, 4.9), "exploding"),
        ((0.1, -0.1, 0.05), "balanced"),
        ((-2.0, -2.6, -2.3), "undecided"),  # around a factor of ten
        ((-9.0, 9.0), "undecided"),
        ((-5.0,), "vanishing"),  # one sequence is a fact about that sequence
        ((-math.inf, -math.inf), "vanishing"),
        ((-math.inf, -5.0), "vanishing"),
        ((-math.inf, 0.0), "undecided"),
    ],
)
def test_the_word_follows_the_interval(changes: tuple[float, ...], word: str):
    with np.errstate(invalid="ignore"):
        transported = np.nan_to_num(path(*changes), nan=0.0, neginf=-np.inf)
    assert judge(changes, transported).word == word


def test_the_interval_is_students():
    changes = np.array([-5.0, -4.0, -6.5, -5.5])
    verdict = judge(changes, path(*changes))
    low, high = student.interval(0.95, 3, changes.mean(), changes.std(ddof=1) / 2)
    assert verdict.change - verdict.margin == pytest.approx(low)
    assert verdict.change + verdict.margin == pytest.approx(high)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    truth, covered = -5.0, 0
    for _ in range(1000):
        changes = truth + rng.normal(size=6)
        verdict = judge(changes, path(*changes))
        covered += abs(verdict.change - truth) <= verdict.margin
    assert 0.93 < covered / 1000 < 0.97  # 0.95, three standard errors either way


@pytest.mark.parametrize(
    ("changes", "horizon"),
    [
        ((-10 * TEN,), 2),  # a factor of ten each step
        ((-10 * TEN, -5 * TEN, -4 * TEN), 4),  # the median of 2, 4 and 5
        ((-1.0,), math.inf),
        ((3.0,), math.inf),
    ],
)
def test_the_horizon_is_the_median_lag_at_one_percent(changes, horizon):
    assert judge(changes, path(*changes) - 1e-9).horizon == horizon


def test_lags_count_from_the_last_step_with_a_gradient():
    transported = np.concatenate([path(-10 * TEN) - 1e-9, np.full((5, 1), np.nan)])
    verdict = judge(transported[0], transported)
    assert (verdict.lag, verdict.horizon) == (10, 2)


def test_a_sentence_says_when_nothing_is_left():
    transported = np.array([[-np.inf], [-1.0], [0.0]])
    verdict = judge(transported[0], transported)
    assert "to zero" in verdict.sentence
    assert verdict.horizon == 2


def drawn():
    return jax.random.normal(jax.random.key(0), (40, 6, 3))


@pytest.fixture(scope="module")
def inputs():
    return drawn()


def last_output(outputs):
    return outputs[-1].sum()


@functools.cache
def diagnosed(name):
    """Return a fresh cell and its diagnosis, whose programs take most of the time of these tests."""
    cell = jaxrnn.make_cell(name, 3, 8, rngs=nnx.Rngs(0))
    return cell, diagnose(cell, drawn(), last_output)


@pytest.mark.slow
def test_a_loss_on_every_output_does_not_hide_that_the_gradient_vanishes(inputs):
    cell = jax.tree.map(lambda weight: 0.5 * weight, diagnosed("elman-tanh")[0])
    last = diagnose(cell, inputs, last_output)
    every = diagnose(cell, inputs, lambda outputs: outputs.sum())
    assert every.verdict.word == last.verdict.word == "vanishing"
    assert float(every.flow.rate) == pytest.approx(float(last.flow.rate), rel=0.05)


@pytest.mark.slow  # what `judge` says of such a gradient is always tested
def test_a_gradient_that_is_erased_half_way_has_vanished(inputs):
    def erase(state, x):
        moved = jnp.where(x[..., :1] > 90, 0.0, state + 0 * x)
        return moved, moved

    marked = inputs.at[20].set(99.0)
    found = diagnose(erase, marked, lambda y: y[-1].sum(), carry=jnp.ones((6, 3)))
    assert found.verdict.word == "vanishing"
    assert found.verdict.horizon == 20


_SINGULAR = ("elman-relu", "indrnn", "clockwork", "slstm", "sru")
"""Cells whose steps have no inverse: units at rest below zero, clocks that pass no gradient, gates and a
stabiliser that do not see some of the state."""


_VANISHED = ("elman-sigmoid", "indrnn", "mlstm")
"""Cells whose gradient after the whole sequence is beyond what float32 can compare."""


@table_of_cells("elman-tanh")
def test_certificates_are_rounding_for_every_cell(name):
    found = diagnosed(name)[1].certificates
    assert found.jacobian < 1e-5
    if name in _SINGULAR:
        assert math.isnan(found.determinant)
    else:
        assert found.determinant < 1e-4
    if name in _VANISHED:
        assert math.isnan(found.gradient)
    else:
        assert found.gradient < 1e-4
    assert found.lags < 1e-5
    assert not found.exponents > 1e-4  # NaN where not all exponents were asked for


def test_an_update_that_mixes_its_units_takes_the_general_path(inputs):
    cell = jaxrnn.ElmanCell(3, 8, activation_fn=jax.nn.softmax, rngs=nnx.Rngs(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jaxrnn.analysis.SplitWarning)
        found = diagnose(cell, inputs)
    assert found.certificates.jacobian < 1e-5


def test_a_cell_whose_sequences_act_on_each_other_is_refused(inputs):
    class Coupled(jaxrnn.ElmanCell):
        def step(self, carry, x):
            h, _ = super().step(carry, x)
            h = h - jnp.mean(h, axis=0, keepdims=True)
            return h, h

    with pytest.raises(
        InputError, match=r"Jacobians that are off by .*no sequence acts on another"
    ):
        diagnose(Coupled(3, 8, rngs=nnx.Rngs(0)), inputs)


@pytest.mark.slow
def test_a_plain_function_is_never_stale():
    """What a function closes over may change between calls, and the answer with it."""

    class Scaling:
        factor = 0.5

        def __call__(self, state, x):
            del x
            moved = self.factor * state
            return moved, moved

    step = Scaling()
    for factor in (0.5, 0.9):
        step.factor = factor
        found = diagnose(step, None, lambda y: y[-1].sum(), carry=jnp.ones(3), length=20)
        assert float(found.flow.rate) == pytest.approx(math.log(factor), rel=1e-5)
        assert float(found.propagator.rate.value) == pytest.approx(math.log(factor), rel=1e-5)


@pytest.mark.slow
def test_half_precision_is_diagnosed_in_single(inputs):
    single = jaxrnn.make_cell("gru", 3, 8, rngs=nnx.Rngs(0))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), single)
    rates = [
        float(diagnose(cell, inputs.astype(cell.kernel.dtype)).flow.rate) for cell in (single, half)
    ]
    assert rates[1] == pytest.approx(rates[0], rel=0.05)


@pytest.mark.slow
def test_text_of_one_sequence_has_no_interval(inputs):
    text = diagnose(jaxrnn.make_cell("lstm", 3, 8, rngs=nnx.Rngs(0)), inputs[:, 0]).text
    assert "(one sequence)" in text
    assert "nan" not in text.split("certificates")[0]


def test_gradients_beyond_the_range_of_floats_are_diagnosed():
    """Jacobians of norm 16 where tanh is linear: 40 steps overflow float32, and the verdict stands."""
    cell = jax.tree.map(jnp.zeros_like, diagnosed("elman-tanh")[0])
    cell.recurrent_kernel[...] = 16 * jnp.eye(8)
    found = diagnose(cell, jnp.zeros_like(drawn()), last_output)
    assert found.contributions is None
    assert found.verdict.word == "exploding"
    assert float(found.flow.rate) == pytest.approx(math.log(16), rel=1e-5)


def test_parts_are_the_analyses_by_themselves(inputs):
    """Bounds come from the spectra, sensitivities from the Jacobians that all parts share."""
    cell, found = diagnosed("elman-tanh")
    path = trace(cell, inputs)
    alone = {
        "bound": trajectory_bound(cell, path),
        "inputs": input_sensitivity(cell, path),
        "contributions": lag_contributions(cell, inputs, last_output),
    }
    for name, expected in alone.items():
        for one, other in zip(
            jax.tree.leaves(getattr(found, name)), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_parameters_that_have_no_gradient_are_not_passed_over(inputs):
    class Table(nnx.Module):
        def __init__(self):
            self.steps = nnx.Param(jnp.ones((), jnp.int32))

        def __call__(self, carry, x):
            moved = 0.5 * carry + x
            return moved, moved

    with pytest.raises(InputError, match=r"^cell\['steps'\]: got int32"):
        diagnose(Table(), inputs, carry=jnp.zeros((6, 3)))


def test_tokens_and_modules_without_parameters_are_diagnosed():
    class Leaky(nnx.Module):
        def __call__(self, carry, token):
            moved = 0.5 * carry + jax.nn.one_hot(token, 3)
            return moved, moved

    tokens = jnp.zeros((20, 2), jnp.int32)
    found = diagnose(Leaky(), tokens, carry=jnp.zeros((2, 3)))
    assert found.inputs is None
    assert found.contributions is None
    assert found.fixed_points is None
    assert float(found.flow.rate) == pytest.approx(-math.log(2), rel=1e-5)
    assert "at the mean input" not in found.text


def test_the_default_loss_is_one_that_hears_the_past():
    """The last output of an mLSTM asked for nothing, q = 0, is zero whatever was stored."""
    cell = jaxrnn.make_cell("mlstm", 2, 3, rngs=nnx.Rngs(0))
    xs = jax.random.normal(jax.random.key(0), (12, 2, 2)).at[-1].set(0)
    loss = default_loss(cell, trace(cell, xs))
    assert np.isfinite(gradient_flow(cell, xs, loss).log_norms[0]).all()


@pytest.mark.slow
def test_a_single_step_is_undecided_and_no_sequence_is_refused():
    cell = jaxrnn.GRUCell(2, 3, rngs=nnx.Rngs(0))
    assert diagnose(cell, jnp.ones((1, 2, 2))).verdict.sentence.startswith("undecided: a single")
    with pytest.raises(InputError, match="xs: got batch axes"):
        diagnose(cell, jnp.ones((5, 0, 2)))


def test_a_verdict_says_in_how_many_the_gradient_is_lost():
    logs = np.zeros((4, 3))
    logs[0] = [-np.inf, 0.1, -np.inf]
    verdict = judge(logs[0], logs)
    assert (verdict.word, verdict.lost) == ("undecided", 2)
    assert "changes to zero in 2 of 3" in verdict.sentence
