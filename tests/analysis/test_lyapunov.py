"""Lyapunov exponents against closed forms, published values and a NumPy loop."""

import inspect
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import expit

import jaxrnn
from jaxrnn import InputError
from jaxrnn.analysis import Flow, PrecisionWarning, lyapunov, trace
from tests.analysis import systems
from tests.analysis.examples import H, assert_close, inputs, make, zero_weights

pytestmark = pytest.mark.usefixtures("x64")


def within(found, expected, *, entry=0):
    """Hold an exponent to three standard errors and to 1 % of a published value."""
    error = float(np.asarray(found.stderr)[..., entry])
    assert abs(float(np.asarray(found.exponents)[..., entry]) - expected) < min(
        3 * error + 1e-5, 0.01 * abs(expected)
    )


# Published values and closed forms.


def test_logistic_map():
    found = lyapunov(systems.logistic, carry=jnp.array([0.3]), length=200_000, warmup=100)
    within(found, math.log(2))
    assert_close(found.entropy_rate, found.exponents[0], 1e-12)


def test_henon_map():
    found = lyapunov(systems.henon, carry=jnp.array([0.1, 0.1]), length=200_000, warmup=1000)
    within(found, 0.419217)
    within(found, -1.623190, entry=1)
    assert_close(found.exponents.sum(), math.log(0.3), 1e-10)
    assert abs(found.kaplan_yorke - 1.258267) < 0.002
    assert found.determinant < 1e-8


def test_standard_map_keeps_areas():
    starts = jnp.array([[0.0, 6.0], [0.0, 0.3]])
    found = lyapunov(systems.standard, carry=starts, length=20_000)
    assert_close(found.exponents.sum(axis=-1), np.zeros(2), 1e-8)


@pytest.mark.slow
def test_standard_map():
    """Chaos at k = 1 sticks to its islands for millions of steps: single orbits differ by a quarter.

    From around (0, 6), where the chaos is strongest, the mean comes down to the published value slowly: a
    plain loop in C finds 0.127 after 10⁵ steps, 0.1140 ± 0.0012 after 10⁶ and 0.1061 ± 0.0007 after 10⁷.
    """
    starts = jnp.stack([jnp.zeros(64), 6.0 + 0.002 * jnp.arange(64.0)], axis=-1)
    found = lyapunov(systems.standard, carry=starts, length=10_000_000)
    values, errors = found.pooled
    assert errors[0] < 0.0025
    assert abs(values[0] - 0.10497) < 3 * errors[0]
    early = found.history[np.searchsorted(np.cumsum(found.block_steps), 1_000_000), :, 0]
    error = math.hypot(early.std(ddof=1) / 8, 0.0012)
    assert abs(early.mean() - 0.1140) < 3 * error


def test_cat_map_is_exact():
    found = lyapunov(systems.cat, carry=jnp.array([0.1, 0.2]), length=1000, warmup=100)
    assert_close(found.exponents, [0.9624236501192069, -0.9624236501192069], 1e-10)


def test_lorenz_flow_in_units_of_time():
    flow = Flow(systems.lorenz, time_step=0.005)
    found = lyapunov(flow, carry=jnp.array([1.0, 1.0, 20.0]), length=300_000, warmup=4000)
    within(found, 0.90563)
    within(found, -14.57219, entry=2)
    assert abs(found.exponents[1]) < 3 * found.stderr[1] + 1e-3
    assert abs(found.exponents.sum() + 13.66667) < 2e-5  # of the map, whose step is finite
    assert abs(found.kaplan_yorke - 2.06215) < 0.01 * 2.06215
    assert found.determinant < 1e-8


def test_scaled_rotation_is_exact():
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))
    step = lambda s, x: (s @ jnp.asarray(0.9 * rotation), s)  # noqa: E731
    found = lyapunov(step, carry=jnp.ones(6), length=500)
    assert_close(found.exponents, np.full(6, math.log(0.9)), 1e-10)


@pytest.mark.parametrize("bias", [-1.0, 0.0, 1.0, 3.0])
def test_zero_weight_lstm_forgets_at_the_rate_of_its_gate(bias):
    """Half of the state is h, which the next step does not see: −inf. While c settles, directions turn."""
    cell = zero_weights("lstm", [0.3, bias, -0.2, 0.5])
    xs, carry = inputs(cell, batch=(), length=1000)
    found = lyapunov(cell, xs, carry=carry, warmup=700)
    assert_close(found.exponents, [math.log(expit(bias))] * H + [-math.inf] * H, 1e-10)
    assert math.isnan(found.determinant)


def test_zero_weight_gru_forgets_at_the_rate_of_its_gate():
    cell = zero_weights("gru", [0.4, 1.3, -0.1])
    gates = dict(zip(cell.gates, [0.4, 1.3, -0.1], strict=True))
    xs, carry = inputs(cell, batch=(), length=300)
    found = lyapunov(cell, xs, carry=carry)
    assert_close(found.exponents, np.full(H, math.log(expit(gates["update"]))), 1e-10)


def test_order_of_time_with_three_fixed_matrices():
    """The transposed product has other exponents; SciPy gives those of one period."""
    draw = np.random.default_rng(3)
    matrices = draw.normal(size=(3, 4, 4))
    step = lambda s, x: (s @ x.T, s)  # noqa: E731
    found = lyapunov(
        step, jnp.asarray(np.tile(matrices, (300, 1, 1))), carry=jnp.zeros(4), warmup=150
    )
    moduli = np.sort(np.abs(np.linalg.eigvals(matrices[2] @ matrices[1] @ matrices[0])))[::-1]
    # Two of a complex pair take turns within a period, so they agree in the mean alone.
    assert_close(np.sort(found.exponents)[::-1], np.log(moduli) / 3, 2e-3)
    wrong = np.abs(np.linalg.eigvals(matrices[2] @ matrices[1].T @ matrices[0]))
    assert abs(np.log(wrong.max()) / 3 - found.exponents[0]) > 0.01


@pytest.mark.slow
def test_random_tanh_map_below_the_edge_has_the_spectrum_of_its_weights():
    step, start = systems.tanh_map(40, 0.8)
    coupling = np.asarray(jax.jacfwd(lambda s: step(s, None)[0])(jnp.zeros(40)))
    found = lyapunov(step, carry=start, length=3000, warmup=500)
    moduli = np.sort(np.abs(np.linalg.eigvals(coupling)))[::-1]
    assert_close(found.exponents[0], math.log(moduli[0]), 5e-3)
    assert_close(found.exponents.sum(), np.log(moduli).sum(), 1e-8)


# Against a plain loop.


def numpy_exponents(matrices, directions):
    total = np.zeros(directions.shape[1])
    for matrix in matrices:
        directions, r = np.linalg.qr(matrix @ directions)
        total += np.log(np.abs(np.diag(r)))
    return np.sort(total / len(matrices))[::-1]


@pytest.mark.parametrize(
    ("name", "renorm_every"),
    [
        ("gru", None),
        ("gru", 7),
        ("lstm", 1),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("gru", 1), ("lstm", None), ("lstm", 7))
        ),
        *(pytest.param("elman-tanh", every, marks=pytest.mark.slow) for every in (None, 1, 7)),
    ],
)
def test_driven_cells_follow_a_plain_loop(name, renorm_every):
    """In batches, and whatever the interval; the directions start alike, so all digits agree."""
    cell = make(name)
    xs, carry = inputs(cell, length=120)
    k = 3
    found = lyapunov(cell, xs, carry=carry, k=k, renorm_every=renorm_every)
    matrices = jaxrnn.analysis.jacobians(cell, trace(cell, xs, carry=carry))
    size = matrices.shape[-1]
    drawn = jax.random.normal(jax.random.key(0), (2, size, k), jnp.float64)
    for b in range(2):
        start = np.linalg.qr(drawn[b])[0]
        assert_close(found.exponents[b], numpy_exponents(np.asarray(matrices[:, b]), start), 1e-7)


def test_a_foreign_cell_is_taken_like_ours():
    cell = nnx.GRUCell(3, H, rngs=nnx.Rngs(0), param_dtype=jnp.float64, dtype=jnp.float64)
    xs = jax.random.normal(jax.random.key(1), (200, 2, 3), jnp.float64)
    found = lyapunov(cell, xs)
    assert found.exponents.shape == (2, H)
    assert found.determinant < 1e-8


def test_long_runs_keep_no_trajectory():
    """The record of many steps is as small as that of few."""
    found = lyapunov(systems.logistic, carry=jnp.array([0.3]), length=50_000)
    assert found.rates.shape[0] <= 257
    assert found.block_steps.sum() == 50_000


# Error bars.


def test_intervals_cover_the_true_value():
    """95 % intervals of 200 independent runs of a correlated chain whose exponent is known.

    ln|slope| of a step is an autoregression of mean −0.1 and correlation 0.5.
    """
    steps, runs = 2000, 200
    draw = np.random.default_rng(0)
    noise = draw.normal(size=(steps + 100, runs)) * 0.3
    logs = np.zeros_like(noise)
    for t in range(1, len(noise)):
        logs[t] = 0.5 * logs[t - 1] + noise[t]
    xs = jnp.asarray(np.exp(logs[100:, :, None] - 0.1))
    found = lyapunov(lambda s, x: (s * x, s), xs, carry=jnp.zeros((runs, 1)))
    low, high = np.moveaxis(found.interval[:, 0], -1, 0)
    covered = np.mean((low < -0.1) & (high > -0.1))
    assert 0.90 <= covered <= 0.98
    assert_close(found.pooled[1], found.exponents[:, 0].std(ddof=1) / math.sqrt(runs), 1e-12)


def test_float32_loses_no_direction_that_a_qr_keeps():
    """Its steps part directions by 10 nats: what the basis of an LU costs on top would pass for singular."""
    draw = np.random.default_rng(0)
    coupling = jnp.asarray(2 / np.sqrt(96) * draw.normal(size=(96, 96)), jnp.float32)
    xs = jnp.asarray(0.3 * draw.normal(size=(450, 96)), jnp.float32)
    start = jnp.asarray(draw.normal(size=96), jnp.float32)
    found = lyapunov(lambda h, x: (jnp.tanh(coupling @ h + x), h), xs, carry=start)
    assert np.isfinite(found.exponents).all()


def test_too_few_steps_give_no_error_bar():
    found = lyapunov(systems.henon, carry=jnp.array([0.1, 0.1]), length=7)
    assert np.isfinite(found.exponents).all()
    assert np.isnan(found.stderr).all()


# Directions that part so far that rounding takes them.


@pytest.mark.slow
def test_directions_that_part_slowly_are_not_lost_in_long_runs():
    """A hundred and fifty directions in float32, of which one shrinks: the interval must not grow past it."""
    slopes = jnp.ones(150, jnp.float32).at[-1].set(math.exp(-0.3))
    found = lyapunov(lambda s, x: (slopes * s, s), carry=jnp.ones(150, jnp.float32), length=8192)
    assert_close(
        found.exponents[-1], -0.3, 1e-3
    )  # the directions start at random: a few nats over T


@pytest.mark.slow
def test_an_interval_that_was_right_is_taken_again_when_the_dynamics_change():
    xs = jnp.where(jnp.arange(24_000) < 20_000, 0.0, -0.2)[:, None]
    slope = lambda x: jnp.concatenate([jnp.ones(1), jnp.exp(x)])  # noqa: E731
    found = lyapunov(lambda s, x: (slope(x) * s, s), xs, carry=jnp.ones(2))
    assert_close(found.exponents, [0, -0.2 * 4000 / 24_000], 5e-4)  # random start


@pytest.mark.parametrize(
    ("slope", "fate"), [(0.3, "shrank to rounding"), (3.0, "grew beyond the range of floats")]
)
def test_an_interval_that_leaves_the_range_of_floats_is_refused(slope, fate):
    step = lambda s, x: (jnp.mod(slope * s, 1.0) + 1e-3, s)  # noqa: E731
    carry = jnp.array([0.2], jnp.float32)
    with pytest.raises(InputError, match=f"renorm_every: got 200; expected fewer .* {fate}"):
        lyapunov(step, carry=carry, length=60_000, renorm_every=200)
    assert_close(lyapunov(step, carry=carry, length=4000).exponents, [math.log(slope)], 1e-5)


def test_a_batch_of_no_sequences_is_refused():
    with pytest.raises(
        InputError, match=r"xs: got float32.5, 0, 3.; expected at least one sequence"
    ):
        lyapunov(jaxrnn.GRUCell(3, 4, rngs=nnx.Rngs(0)), jnp.zeros((5, 0, 3), jnp.float32))


def test_an_infinite_slope_is_refused():
    with pytest.raises(InputError, match="cell: its derivative: got non-finite values"):
        lyapunov(lambda s, x: (jnp.sqrt(jnp.abs(s)), s), carry=jnp.zeros(1), length=50)


def test_a_divergence_inside_another_program_is_nan():
    run = jax.jit(
        lambda a: lyapunov(lambda s, x: (a * s**2 + 1.0, s), carry=jnp.ones(1), length=50)
    )
    assert jnp.isnan(run(2.0).exponents).all()


def test_half_precision_says_what_it_cannot_know():
    matrix = jnp.array([[0.6, 0.3], [-0.2, 0.4]], jnp.bfloat16)
    step = lambda s, x: (jnp.tanh(s @ matrix), s)  # noqa: E731
    with pytest.warns(PrecisionWarning, match="rounding may cost the least exponent"):
        lyapunov(step, carry=jnp.ones(2, jnp.bfloat16), length=200, renorm_every=1)


# Going on, watching, differentiating.


def test_a_run_goes_on_from_its_record():
    carry = jnp.array([0.1, 0.1])
    whole = lyapunov(systems.henon, carry=carry, length=4096, renorm_every=4)
    first = lyapunov(systems.henon, carry=carry, length=1024, renorm_every=4)
    rest = lyapunov(systems.henon, resume=first, length=3072, renorm_every=4)
    assert rest.position.steps == 4096
    assert_close(rest.exponents, whole.exponents, 1e-6)
    assert_close(rest.history[-1], rest.exponents, 1e-12)
    np.testing.assert_allclose(rest.stderr, whole.stderr, rtol=0.5)


def test_all_blocks_count_in_the_error_of_a_run_that_went_on():
    carry = jnp.array([0.1, 0.1])
    first = lyapunov(systems.henon, carry=carry, length=4096)
    rest = lyapunov(systems.henon, resume=first, length=4352)
    assert (rest.block_steps == rest.block_steps[0]).all()
    whole = lyapunov(systems.henon, carry=carry, length=8448)
    np.testing.assert_allclose(rest.stderr, whole.stderr, rtol=0.5)


def test_progress_hands_out_records_that_can_be_resumed():
    seen = []

    def watch(record):
        seen.append(record)
        if len(seen) == 2:
            raise KeyboardInterrupt

    carry = jnp.array([0.1, 0.1])
    with pytest.raises(KeyboardInterrupt):
        lyapunov(systems.henon, carry=carry, length=8000, renorm_every=4, progress=watch)
    left = 8000 - seen[-1].position.steps
    assert 0 < left < 8000
    done = lyapunov(systems.henon, resume=seen[-1], length=left, renorm_every=4)
    whole = lyapunov(systems.henon, carry=carry, length=8000, renorm_every=4)
    assert_close(done.exponents, whole.exponents, 1e-6)


@pytest.mark.slow
def test_the_gradient_of_an_exponent():
    """λ of a scaled rotation is ln α, whose derivative is 1 / α; checked for a driven cell by differences."""
    slope = jax.grad(
        lambda a: lyapunov(lambda s, x: (a * s, s), carry=jnp.ones(3), length=40).exponents.sum()
    )(0.7)
    assert_close(slope, 3 / 0.7, 1e-10)

    cell = make("elman-tanh")
    xs, carry = inputs(cell, length=30)

    def flossed(scale):
        scaled = jax.tree.map(lambda w: scale * w, cell)
        return (lyapunov(scaled, xs, carry=carry, k=2).exponents ** 2).sum()

    step = 1e-5
    difference = (flossed(1.0 + step) - flossed(1.0 - step)) / (2 * step)
    assert_close(jax.grad(flossed)(1.0), difference, 1e-5)


def test_compiled_inside_another_program():
    cell = make("gru")
    xs, carry = inputs(cell, length=50)
    inside = jax.jit(lambda xs: lyapunov(cell, xs, carry=carry, warmup=3).exponents)(xs)
    assert_close(inside, lyapunov(cell, xs, carry=carry, warmup=3).exponents, 1e-9)


# What cannot be, and what is lost.


def test_a_state_that_blows_up_is_refused_with_its_step():
    step = lambda s, x: (s * s, s)  # noqa: E731
    with pytest.raises(InputError, match=r"non-finite values at step 9 of sequence \[1\]"):
        lyapunov(step, carry=jnp.array([[0.5], [4.0]]), length=100)


@pytest.mark.parametrize("rate", [2.0, 1 + np.sqrt(5), 3.554640862768825, 3.831874055283316])
def test_superstable_orbit_has_no_finite_exponent(rate, dtype):
    """r s (1 − s) at the rates at which ½ lies on the orbit, of period 1, 2, 8 (Feigenbaum 1978) and 3."""
    step = lambda s, x: (rate * s * (1 - s), s)  # noqa: E731
    with pytest.warns(PrecisionWarning, match="−inf"):
        found = lyapunov(step, carry=jnp.array([0.3], dtype), length=1500, warmup=500)
    assert found.exponents.tolist() == [-np.inf]


def test_superstable_sequence_leaves_the_others_of_its_batch_alone(x64):
    rates = jnp.array([[2.0], [4.0]])
    step = lambda s, x: (rates * s * (1 - s), s)  # noqa: E731
    with pytest.warns(PrecisionWarning, match="superstable orbit the derivative is nothing but"):
        found = lyapunov(step, carry=jnp.full((2, 1), 0.3), length=4000)
    assert found.exponents[0, 0] == -np.inf
    assert found.exponents[1, 0] == pytest.approx(np.log(2), abs=0.02)


def test_chaotic_orbit_may_pass_where_the_derivative_is_zero():
    found = lyapunov(systems.logistic, carry=jnp.array([0.3], jnp.float32), length=100_000)
    assert found.exponents[0] == pytest.approx(np.log(2), abs=0.01)


@pytest.mark.parametrize("growth", [1e20, 1e-20, 1e-30])
@pytest.mark.parametrize("size", [1, 2])
def test_a_step_may_grow_and_shrink_as_far_as_floats_go(growth, size, dtype):
    step = lambda s, x: (growth * s, s)  # noqa: E731
    found = lyapunov(step, carry=jnp.zeros(size, dtype), length=100)
    np.testing.assert_allclose(found.exponents, [np.log(growth)] * size, rtol=1e-6)


def test_float32_warns_where_it_cannot_carry_the_answer():
    matrix = jnp.array([[1.0, 1.0], [0.0, 1e-6]], jnp.float32)
    step = lambda s, x: (s @ matrix.T, s)  # noqa: E731
    with pytest.warns(
        PrecisionWarning, match="float32 a direction that shrinks to 8e-06 of the longest"
    ):
        lyapunov(step, carry=jnp.ones(2, jnp.float32), length=100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lyapunov(step, carry=jnp.ones(2, jnp.float32), length=100, k=1)


def test_the_warning_points_at_the_line_that_asked():
    step = lambda s, x: (s * jnp.array([1.0, 0.0], jnp.float32), s)  # noqa: E731
    undecorated = inspect.unwrap(lyapunov)  # type checks, in tests alone, put frames between
    with pytest.warns(PrecisionWarning) as seen:
        undecorated(step, carry=jnp.ones(2, jnp.float32), length=20)
    assert [warning.filename for warning in seen] == [__file__]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 3}, "k: got 3; expected a whole number from 1 to 2"),
        ({"k": True}, "k: got bool True; expected a whole number"),
        ({"warmup": 50}, "warmup: got 50; expected a whole number from 0 to 49"),
        ({"renorm_every": 0}, "renorm_every: got 0"),
        ({"carry": jnp.array([1, 2])}, "carry: got int"),
        ({"carry": jnp.array([1.0, jnp.nan])}, "carry: got 1 non-finite"),
        ({"length": None}, "xs: got None"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(options, message):
    arguments = {"carry": jnp.array([0.1, 0.1]), "length": 50, **options}
    with pytest.raises(InputError, match=message):
        lyapunov(lambda s, x: (0.5 * s, s) if s.dtype.kind == "f" else (s, s), **arguments)


def test_a_record_goes_on_only_as_it_was():
    first = lyapunov(systems.henon, carry=jnp.array([0.1, 0.1]), length=50)
    with pytest.raises(InputError, match="carry: got"):
        lyapunov(systems.henon, carry=jnp.array([0.1, 0.1]), length=50, resume=first)
    with pytest.raises(InputError, match="k: got 1; expected 2"):
        lyapunov(systems.henon, length=50, resume=first, k=1)


def test_a_compiled_run_is_neither_resumed_nor_watched():
    halved = lambda s, x: (0.5 * s, s)  # noqa: E731
    first = lyapunov(halved, carry=jnp.ones(1), length=20)
    for name, given in (("resume", first), ("progress", print)):
        start = None if name == "resume" else jnp.ones(1)
        with pytest.raises(InputError, match=f"{name}: got .* under jax.jit"):
            jax.jit(lambda a, g=given, n=name, c=start: lyapunov(
                lambda s, x: (a * s, s), carry=c, length=20, **{n: g}  # type: ignore[arg-type]
            ).exponents)(0.5)  # fmt: skip


def test_the_dimension_of_a_line_that_neither_grows_nor_shrinks(x64):
    flat = lambda s, x: (s * jnp.array([1.0, 0.5]), s)  # noqa: E731
    still = lyapunov(flat, carry=jnp.ones(2), length=400, warmup=200)
    assert still.exponents[0] == 0
    assert still.kaplan_yorke == 1
    alone = lyapunov(lambda s, x: (1.0 * s, s), carry=jnp.ones(1), length=50)
    assert alone.kaplan_yorke == 1


@pytest.mark.slow
def test_rounding_counts_per_unit_of_time():
    """In bfloat16 a short time step loses a nat a unit of time, though little a step."""
    turning = lambda s, x: jnp.stack([s[1], -s[0]]) - 0.05 * s  # noqa: E731
    start = jnp.array([1.0, 0.0], jnp.bfloat16)
    with pytest.warns(PrecisionWarning, match="nats a unit of time"):
        lyapunov(Flow(turning, 2**-7), carry=start, length=2000, renorm_every=1)


def test_a_record_of_a_compiled_run_does_not_silence_the_warning():
    matrix = jnp.asarray([[0.5, 0.3], [0.1, 0.9]], jnp.bfloat16)
    step = lambda s, x: (matrix @ s, s)  # noqa: E731
    first = jax.jit(lambda c: lyapunov(step, carry=c, length=40))(jnp.ones(2, jnp.bfloat16))
    with pytest.warns(PrecisionWarning):
        lyapunov(step, resume=first, length=400, renorm_every=1)


def test_a_resumed_run_counts_its_steps_on():
    doubled = lambda s, x: (jnp.where(s > 100, jnp.inf, 2 * s), s)  # noqa: E731
    first = lyapunov(doubled, carry=jnp.ones(1), length=5)
    with pytest.raises(InputError, match="at step 8"):
        lyapunov(doubled, resume=first, length=20)
