"""Figures show the numbers of their records; reports are complete and stand alone."""

from __future__ import annotations

import base64
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import analysis, plot
from jaxrnn.analysis import FlowHistory, lyapunov
from jaxrnn.checks import InputError
from jaxrnn.report import Report

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    plt.close("all")


def _heights(line) -> np.ndarray:
    return np.asarray(line.get_ydata(), np.float64)


def _widths(line) -> np.ndarray:
    return np.asarray(line.get_xdata(), np.float64)


@pytest.fixture(scope="module")
def path():
    """Ten steps of a linear map that halves one axis and turns the other two."""
    turn = jnp.array([[0.5, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])

    def step(state, x):
        del x
        return turn @ state, turn @ state

    return step, analysis.trace(step, None, carry=jnp.ones(3), length=10)


def test_spectrum_draws_the_eigenvalues_and_the_unit_circle(path):
    ax = plot.spectrum(analysis.spectrum(*path), steps=1)
    points, circle = ax.lines
    drawn = np.sort_complex(np.asarray(points.get_xdata()) + 1j * np.asarray(points.get_ydata()))
    np.testing.assert_allclose(drawn, np.sort_complex(np.array([0.5, 1j, -1j])), atol=1e-6)
    np.testing.assert_allclose(np.hypot(*np.asarray(circle.get_xydata()).T), 1)
    assert "Re λ" in ax.get_xlabel()


def test_lyapunov_draws_exponents_with_their_intervals(path):
    step, _ = path
    found = analysis.lyapunov(step, carry=jnp.ones(3), length=128, warmup=64)
    ax = plot.lyapunov(found, theory=0.1)
    ((points, _, bars),) = (tuple(container) for container in ax.containers)
    np.testing.assert_allclose(_heights(points), found.exponents, atol=1e-6)
    np.testing.assert_allclose(found.exponents, [0, 0, -np.log(2)], atol=1e-5)
    assert len(bars[0].get_segments()) == 3
    assert [_heights(x)[0] for x in ax.lines if "theory" in str(x.get_label())] == [0.1]
    assert ax.get_ylabel() == "λ (nats a step)"


def test_lyapunov_counts_exponents_that_are_lost():
    def erase(s, x):
        del x
        return s * jnp.array([0.5, 0.0]), s

    with pytest.warns(analysis.PrecisionWarning):
        found = analysis.lyapunov(erase, carry=jnp.ones(2), length=64)
    ax = plot.lyapunov(found)
    assert [text.get_text() for text in ax.texts] == ["1 of 2 are −inf"]


def test_convergence_ends_at_the_exponents(path):
    step, _ = path
    found = analysis.lyapunov(step, carry=jnp.ones(3), length=64)
    ax = plot.lyapunov_convergence(found, leading=2)
    lines = [line for line in ax.lines if len(_heights(line)) > 2]
    assert len(lines) == 2
    for line, exponent in zip(lines, found.exponents, strict=False):
        assert _widths(line)[-1] == 64
        assert _heights(line)[-1] == pytest.approx(exponent, abs=1e-6)


def test_flow_history_shows_training_by_time_steps():
    norms = np.log(10) * np.arange(6.0).reshape(2, 1, 3)
    ax = plot.flow_history(analysis.FlowHistory(steps=np.array([0, 5]), log_norms=norms))
    np.testing.assert_allclose(
        np.asarray(ax.collections[0].get_array()), [[0, 1, 2], [3, 4, 5]], atol=1e-12
    )
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time step t", "optimiser step")


def test_phase_portrait_puts_points_by_their_kind_into_the_plane():
    def memory(s, x):
        """Two memories along the first axis, with a saddle between them."""
        del x
        moved = jnp.stack([jnp.tanh(2 * s[..., 0]), 0.5 * s[..., 1]], axis=-1)
        return moved, moved

    starts = jnp.array([[1.5, 1.0], [-1.5, -1.0], [0.01, 0.5]])
    walk = analysis.trace(memory, None, carry=starts, length=10)
    points = analysis.fixed_points(memory, None, jnp.array([[1.0, 0.1], [-1.0, 0.0], [0.02, 0.0]]))
    ax = plot.phase_portrait(walk, points)
    labels = [str(c.get_label()) for c in ax.collections]
    assert labels == ["stable: 2", "saddle: 1"]
    stable, saddle = (np.asarray(c.get_offsets()) for c in ax.collections)
    assert np.linalg.norm(stable[0] - stable[1]) == pytest.approx(2 * 0.957504, abs=1e-4)
    np.testing.assert_allclose(stable.mean(axis=0), saddle[0], atol=1e-4)
    assert "PC 1" in ax.get_xlabel()


def test_bifurcation_diagram_marks_folds_and_stability():
    with jax.enable_x64(True):
        unit = lambda s, mu: (jnp.tanh(2 * s + mu), s)  # noqa: E731
        start = jnp.array([-1.0])
        branch = analysis.continuation(unit, lambda mu: mu, start, begin=-1.5, end=1.5)
        ax = plot.bifurcation_diagram(branch)
    styles = [line.get_linestyle() for line in ax.lines if len(_widths(line)) > 2]
    assert styles == ["-", "--", "-"]
    (folds,) = (line for line in ax.lines if line.get_label() == "fold")
    np.testing.assert_allclose(np.sort(_widths(folds)), [-0.5328399, 0.5328399], atol=1e-6)


def test_pseudospectrum_draws_contours_and_eigenvalues():
    found = analysis.pseudospectrum(np.diag([0.5, -0.5]), points=20)
    ax = plot.pseudospectrum(found, levels=(-1.0, -0.5))
    points = next(line for line in ax.lines if len(_widths(line)) == 2)
    np.testing.assert_allclose(np.sort(_widths(points)), [-0.5, 0.5], atol=1e-12)


def test_lag_contributions_end_at_the_whole():
    cell = jaxrnn.make_cell("gru", 2, 4, rngs=nnx.Rngs(0))
    xs = jax.random.normal(jax.random.key(0), (8, 2, 2))
    found = analysis.lag_contributions(cell, xs, lambda ys: (ys[-1] ** 2).sum())
    ax = plot.lag_contributions(found)
    for line in ax.lines[: 1 + len(found.leaf_fractions)]:
        assert _heights(line)[-1] == pytest.approx(1, abs=1e-4)


def test_propagator_draws_logarithms_to_base_ten_and_names_the_rate(path):
    ax = plot.propagator(analysis.propagator(*path), ranks=(1, 3, 99))
    first, third, fitted = ax.lines
    np.testing.assert_allclose(_heights(first), 0, atol=1e-6)
    np.testing.assert_allclose(_heights(third), -np.arange(1, 11) * np.log10(2), rtol=1e-5)
    assert "nats a step" in str(fitted.get_label())


def test_gradient_flow_is_relative_to_the_last_step():
    def cell(state, x):
        moved = 0.5 * state + x
        return moved, moved

    xs = jax.random.normal(jax.random.key(0), (10, 4, 3))
    flow = analysis.gradient_flow(cell, xs, lambda y: y[-1].sum(), carry=jnp.zeros((4, 3)))
    ax = plot.gradient_flow(flow, label="halving")
    np.testing.assert_allclose(_heights(ax.lines[0]), np.arange(-9, 1) * np.log10(2), atol=1e-5)
    several = plot.gradient_flows(np.stack([flow.log_norms, flow.log_norms]))
    np.testing.assert_allclose(_heights(several.lines[0]), _heights(ax.lines[0]), atol=1e-6)


def test_learning_curves_draw_the_mean_over_seeds():
    history = [{"step": e, "valid_accuracy": [0.1 * e, 0.3 * e]} for e in range(3)]
    ax = plot.learning_curves(history, "accuracy", label="x")
    np.testing.assert_allclose(_heights(ax.lines[0]), [0, 0.2, 0.4])


def test_given_axes_are_drawn_into(path):
    _, ax = plt.subplots()
    assert plot.propagator(analysis.propagator(*path), ax) is ax


def test_the_style_ends_with_its_block():
    before = dict(mpl.rcParams)
    with plot.house_style():
        assert not mpl.rcParams["axes.spines.top"]
    assert dict(mpl.rcParams) == before


def test_a_report_stands_alone_and_keeps_its_table(tmp_path: Path):
    pixel = base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "dot.png").write_bytes(pixel)
    report = Report("Title & more")
    report.heading("Numbers")
    report.table(["a", "‖b‖ | c"], [["1", "2|3"], ["4", "5"]])
    report.figure("figures/dot.png", "A dot.")
    markdown, html = report.write(tmp_path)
    text, page = markdown.read_text("utf-8"), html.read_text("utf-8")
    assert r"| 1 | 2\|3 |" in text
    assert "](figures/dot.png)" in text
    assert "<td>2|3</td>" in page
    assert page.count("<tr>") == 3
    assert f"data:image/png;base64,{base64.b64encode(pixel).decode()}" in page
    assert 'src="figures' not in page
    assert "<title>Title &amp; more</title>" in page


def test_every_figure_function_is_public():
    assert {"spectrum", "propagator", "gradient_flow", "learning_curves"} <= set(
        jaxrnn.plot.__all__
    )


def test_a_gradient_that_some_sequences_lose_is_drawn_for_the_others():
    logs = np.zeros((6, 4))
    logs[:3, 0] = -np.inf
    ax = plot.gradient_flows(logs.T[:, :, None])
    (line,) = ax.get_lines()
    np.testing.assert_array_equal(line.get_ydata(), np.zeros(6))
    assert any("zero at some steps in 1 of 4" in text.get_text() for text in ax.texts)


def test_a_history_is_drawn_within_its_steps():
    for steps in ([0, 20, 40, 60], [7]):
        history = FlowHistory(np.array(steps), np.zeros((len(steps), 2, 5)))
        low, high = plot.flow_history(history).get_ylim()
        assert (low, high) == ((0, 60) if len(steps) > 1 else (6.5, 7.5))


def test_rounding_is_not_drawn_as_a_result():
    ax = plot.gradient_flows(1e-9 * np.random.default_rng(0).normal(size=(3, 10, 2)))
    low, high = ax.get_ylim()
    assert high - low >= 0.2


def test_exponents_that_are_all_minus_infinity_are_said(x64):
    dead = lyapunov(lambda s, x: (0 * s, s), carry=jnp.ones(2), length=20)
    ax = plot.lyapunov(dead)
    assert [text.get_text() for text in ax.texts] == ["2 of 2 are −inf"]
    assert ax.get_xlim() == (0.5, 2.5)


def test_an_index_that_there_is_not_is_refused():
    found = lyapunov(lambda s, x: (0.5 * s, s), carry=jnp.ones(2), length=20)
    for draw in (plot.lyapunov, plot.lyapunov_convergence):
        with pytest.raises(
            InputError, match="sequence: got 9; expected a whole number from 0 to 0"
        ):
            draw(found, sequence=9)
    rows = [{"step": 1, "valid_accuracy": [0.5]}]
    with pytest.raises(InputError, match="metric: got 'loss'; expected one of accuracy"):
        plot.learning_curves(rows, "loss")
    with pytest.raises(InputError, match="history: got no rows"):
        plot.learning_curves([], "accuracy")
