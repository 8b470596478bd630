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

import jaxrnn
from jaxrnn import analysis, plot
from jaxrnn.report import Report

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    plt.close("all")


def _heights(line) -> np.ndarray:
    return np.asarray(line.get_ydata(), np.float64)


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
    history = [{"epoch": e, "valid_accuracy": [0.1 * e, 0.3 * e]} for e in range(3)]
    ax = plot.learning_curves(history, label="x")
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
