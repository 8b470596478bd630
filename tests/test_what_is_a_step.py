"""What stands for a step where an analysis asks for one, and what is said of other things."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import RNN, Bidirectional, Stack, analysis
from jaxrnn.checks import InputError
from jaxrnn.models import SequenceClassifier

T, B, F, H = 6, 2, 3, 4
XS = jax.random.normal(jax.random.key(0), (T, B, F))


def gru(features=F):
    return jaxrnn.GRUCell(features, H, rngs=nnx.Rngs(1))


def test_an_rnn_is_its_cell():
    cell = gru()
    layer = RNN(cell, carry_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
    path = analysis.trace(layer, XS)
    alone = analysis.trace(cell, XS, carry=jnp.ones((B, H)))  # a learnt start is the layer's
    np.testing.assert_array_equal(path.states, alone.states)
    np.testing.assert_array_equal(analysis.jacobians(layer, path), analysis.jacobians(cell, alone))
    loss = lambda y: y[-1].sum()  # noqa: E731
    np.testing.assert_array_equal(
        analysis.gradient_flow(layer, XS, loss).log_norms,
        analysis.gradient_flow(cell, XS, loss, carry=jnp.ones((B, H))).log_norms,
    )
    starts = jnp.zeros((2, H))
    found = analysis.fixed_points(RNN(cell), jnp.zeros(F), starts)
    np.testing.assert_array_equal(
        found.states, analysis.fixed_points(cell, jnp.zeros(F), starts).states
    )


def test_zoneout_is_the_expected_step():
    layer = RNN(gru(), zoneout=0.25, time_major=True)
    path = analysis.trace(layer, XS)
    np.testing.assert_allclose(path.outputs, layer(XS), atol=1e-6)
    moved = np.asarray(analysis.jacobians(gru(), path))
    kept = analysis.jacobians(layer, path)
    np.testing.assert_allclose(kept, 0.25 * np.eye(H) + 0.75 * moved, atol=1e-6)


def test_a_stack_has_a_joint_step():
    rngs = nnx.Rngs(3)
    layers = [RNN(gru()), RNN(jaxrnn.LSTMCell(H, H, rngs=rngs))]
    norms = [nnx.LayerNorm(F, rngs=rngs), nnx.LayerNorm(H, rngs=rngs)]
    stack = Stack(layers, norms=norms, time_major=True)
    path = analysis.trace(stack, XS)
    assert path.states.shape == (T + 1, B, 3 * H)
    np.testing.assert_allclose(path.outputs, stack(XS), atol=1e-6)

    def move(state):
        h, c, above = jnp.split(state, 3)
        low, y = layers[0].cell(h, norms[0](XS[2, 1]))
        (c, above), _ = layers[1].cell((c, above), norms[1](y))
        return jnp.concatenate([low, c, above])

    expected = jax.jacfwd(move)(path.states[2, 1])
    np.testing.assert_allclose(analysis.jacobians(stack, path)[2, 1], expected, atol=1e-5)
    residual = Stack([RNN(gru(H)), RNN(jaxrnn.LSTMCell(H, H, rngs=rngs))], residual=True)
    wide = jax.random.normal(jax.random.key(1), (T, B, H))
    found = analysis.trace(residual, wide).outputs
    np.testing.assert_allclose(found, residual(wide, time_major=True), atol=1e-6)


def test_a_function_of_the_carry_alone_is_a_map():
    doubling = lambda s: 2.0 * s  # noqa: E731
    path = analysis.trace(doubling, None, carry=jnp.ones(2), length=3)
    assert path.states[:, 0].tolist() == [1, 2, 4, 8]
    found = analysis.lyapunov(doubling, carry=jnp.ones(2), length=20)
    np.testing.assert_allclose(found.exponents, np.log(2), rtol=1e-5)
    point = analysis.fixed_points(jnp.cos, None, jnp.array([[0.5]]))
    np.testing.assert_allclose(point.states, 0.7390851, atol=1e-6)  # Dottie's number
    with pytest.raises(InputError, match=r"^xs: got .*expected None and a length"):
        analysis.trace(doubling, XS, carry=jnp.ones((B, F)))


MODEL = SequenceClassifier(gru(), 2, rngs=nnx.Rngs(0))
FLAX = nnx.RNN(nnx.GRUCell(F, H, rngs=nnx.Rngs(0)))
REFUSED = {
    "a class": (jaxrnn.GRUCell, r"^cell: got the class GRUCell; expected a cell of it"),
    "a model": (MODEL, r"^cell: got jaxrnn.SequenceClassifier; expected a step .* its \.layer"),
    "Flax's RNN": (
        FLAX,
        r"^cell: got .*RNN.*; expected a step .* its \.cell",
    ),
    "two directions": (Bidirectional(RNN(gru()), RNN(gru())), r"its \.forward_rnn or"),
    "a stack of two": (Stack([RNN(gru(), reverse=True)]), "an RNN that reads backwards"),
    "backwards": (RNN(gru(), reverse=True), r"an RNN that reads backwards; expected its \.cell"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_with_what_to_pass(name):
    given, message = REFUSED[name]
    path, starts = analysis.trace(gru(), XS), jnp.zeros((2, H))
    calls = [
        lambda: analysis.trace(given, XS),
        lambda: analysis.trace(given, XS, carry=jnp.zeros((B, H))),
        lambda: analysis.jacobians(given, path),
        lambda: analysis.spectrum(given, path),
        lambda: analysis.lyapunov(given, XS),
        lambda: analysis.gradient_flow(given, XS, lambda y: y.sum()),
        lambda: analysis.diagnose(given, XS),
        lambda: analysis.fixed_points(given, jnp.zeros(F), starts),
        lambda: analysis.continuation(
            given, lambda mu: mu * jnp.ones(F), jnp.zeros(H), begin=0.0, end=1.0
        ),
    ]
    for call in calls:
        with pytest.raises(InputError, match=message):
            call()


def test_a_plain_function_is_traced_four_times_a_call():
    """For one sequence, for the batch, to check its carry, and to tell its program from others."""
    calls = []

    def step(s, x):
        calls.append(1)
        return jnp.tanh(s + x), s

    for _ in range(2):
        calls.clear()
        jaxrnn.unroll(step, jnp.ones((5, 2, 3)), carry=jnp.zeros((2, 3)))
    assert len(calls) == 4
