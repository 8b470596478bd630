"""Gradient flow.

Oracle: ``jax.grad`` by zero perturbations that are added to every carry on its way; a linear map in closed
form where that gradient leaves the range of a float.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.analysis import gradient_flow, jacobians, stack_gradient_flow, trace
from jaxrnn.analysis._gradient_flow import flow_along
from jaxrnn.cells import ElmanCell
from jaxrnn.checks import InputError
from tests.analysis.examples import (
    B,
    H,
    T,
    assert_close,
    compiles,
    elman,
    every_twin,
    identity,
    inputs,
    make,
    random_weights,
    travelled,
    twins,
)
from tests.zoo import every_plain_cell

LONG = 10_000

WEIGHTS = np.random.default_rng(7).normal(size=(T, B, 2 * H))  # complex states have 2 H outputs


def weighted(outputs):
    return jnp.asarray(WEIGHTS[..., : outputs.shape[-1]]) * outputs


LOSSES = {
    "on the last output": lambda outputs: jnp.sum(weighted(outputs**2)[-1]),
    "on all outputs": lambda outputs: jnp.sum(weighted(outputs)),
    "on two of them": lambda outputs: jnp.sum(outputs[1] * outputs[3]),
}


def last(outputs):
    return jnp.sum(outputs[-1])


def read(state, y):
    """The output as a function of the state: its last leaf, or all of it where the output is as wide."""
    leaves = jax.tree.leaves(state)
    return leaves[-1] if leaves[-1].shape == y.shape else jnp.concatenate(leaves, axis=-1)


def gradients(step, xs, carry, losses, output=read):
    """∂L/∂s_t for t = 1 … T and each loss, [L, T, *B, S].

    The output is a function of the nudged state and of what the step returns.
    """

    def perturbed(nudges):
        def advance(state, now):
            x, nudge = now
            state, y = step(state, x)
            state = jax.tree.map(jnp.add, state, nudge)
            return state, output(state, y)

        _, outputs = jax.lax.scan(advance, carry, (xs, nudges))
        return jnp.stack([jnp.sum(loss(outputs)) for loss in losses])

    zeros = jax.tree.map(lambda leaf: jnp.zeros((len(xs), *leaf.shape), leaf.dtype), carry)
    found = jax.jit(jax.jacrev(perturbed))(zeros)
    return np.concatenate(jax.tree.leaves(found), axis=-1)


@functools.cache
def gradients_of(name):
    cell, path = travelled(name)
    found = gradients(cell, path.xs, start_of(path), LOSSES.values())
    return dict(zip(LOSSES, found, strict=True))


def log_norms(vectors):
    with np.errstate(divide="ignore"):
        return np.log(np.linalg.norm(vectors, axis=-1))


def start_of(path):
    return jax.tree.map(lambda leaf: leaf[0], path.carries)


@every_plain_cell
@pytest.mark.parametrize("kind", LOSSES)
def test_norms_equal_those_of_jax_grad(name, kind, x64):
    cell, path = travelled(name)
    found = flow_along(cell, path, LOSSES[kind])
    exact = gradients_of(name)[kind]
    assert found.log_norms.shape == (T, B)
    assert_close(found.log_norms, log_norms(exact), 1e-10)


def test_both_leaves_of_the_lstm_count(x64):
    cell, path = travelled("lstm")
    exact = gradients_of("lstm")["on the last output"]
    found = flow_along(cell, path, LOSSES["on the last output"]).log_norms
    for part in (exact[..., :H], exact[..., H:]):
        assert np.all(np.abs(found[:-1] - log_norms(part)[:-1]) > 1e-3)


@every_plain_cell
def test_omega_is_pascanus_sum(name, x64):
    """Ω = Σ (‖J_{t+1}ᵀ g_{t+1}‖ / ‖g_{t+1}‖ − 1)² over t = 1 … T − 1."""
    cell, path = travelled(name)
    loss, g = LOSSES["on all outputs"], gradients_of(name)["on all outputs"]
    steps = np.asarray(jacobians(cell, path))
    pulled = np.einsum("tbij,tbi->tbj", steps[1:], g[1:])
    stretch = np.linalg.norm(pulled, axis=-1) / np.linalg.norm(g[1:], axis=-1)
    assert_close(flow_along(cell, path, loss).omega, ((stretch - 1) ** 2).sum(axis=0), 1e-10)


@pytest.mark.slow
def test_omega_leaves_out_steps_after_the_loss(x64):
    """With g = 0 there is nothing to stretch: two steps of a doubling count, (2 − 1)² each."""
    cell = elman(2 * np.eye(4), identity)
    found = gradient_flow(cell, jnp.zeros((T, 1)), lambda outputs: jnp.sum(outputs[2]))
    assert float(found.omega) == pytest.approx(2.0)
    np.testing.assert_array_equal(found.log_norms[3:], -np.inf)


@every_twin
def test_foreign_cells_give_what_ours_give(kind, x64):
    ours, foreign = twins(kind)
    xs, carry = inputs(ours)
    loss = LOSSES["on all outputs"]
    mine = gradient_flow(ours, xs, loss, carry=carry)
    theirs = gradient_flow(foreign, xs, loss, carry=carry)
    assert_close(theirs.log_norms, mine.log_norms, 1e-10)
    assert_close(theirs.omega, mine.omega, 1e-10)


def test_output_apart_from_the_carry_counts_through_later_steps_alone(x64):
    mixing, reading = np.random.default_rng(0).normal(size=(2, H, H))

    def step(h, x):
        return jnp.tanh(h @ jnp.asarray(mixing) + x), jnp.sin(h @ jnp.asarray(reading))

    draw = np.random.default_rng(1)
    xs, h = (jnp.asarray(draw.normal(size=shape)) for shape in ((T, B, H), (B, H)))
    loss = LOSSES["on all outputs"]
    found = gradient_flow(step, xs, loss, carry=h)
    (exact,) = gradients(step, xs, h, [loss], output=lambda state, y: y)
    assert_close(found.log_norms, log_norms(exact), 1e-10)
    np.testing.assert_array_equal(
        found.log_norms[-1], -np.inf
    )  # no output comes after the last state


class SineElmanCell(ElmanCell):
    """An Elman cell whose readout has a slope that depends on the state."""

    def readout(self, carry):
        return jnp.sin(carry)


def test_slope_of_the_readout_is_taken_at_the_state_it_reads(x64):
    cell = random_weights(SineElmanCell)
    xs, carry = inputs(cell)
    loss = LOSSES["on all outputs"]
    (exact,) = gradients(cell, xs, carry, [loss], output=lambda state, y: jnp.sin(state))
    assert_close(gradient_flow(cell, xs, loss, carry=carry).log_norms, log_norms(exact), 1e-10)


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_number_of_batch_axes(batch, x64):
    cell, path = travelled("lstm", batch)
    found = flow_along(cell, path, last)
    (exact,) = gradients(cell, path.xs, start_of(path), [last])
    assert found.omega.shape == batch
    assert_close(found.log_norms, log_norms(exact), 1e-10)


def test_losses_by_sequence_equal_their_sum(x64):
    cell, path = travelled("gru")
    together = flow_along(cell, path, lambda outputs: jnp.sum(outputs[-1] ** 2))
    apart = flow_along(cell, path, lambda outputs: jnp.sum(outputs[-1] ** 2, axis=-1))
    np.testing.assert_array_equal(together.log_norms, apart.log_norms)


@pytest.mark.parametrize("alpha", [0.1, 2.0])
def test_ten_thousand_steps_neither_vanish_nor_explode(alpha, dtype):
    """h' = αh, loss Σ h_T: log ‖∂L/∂h_t‖ = (T − t) ln α + ½ ln H, up to 10^±10000."""
    cell = elman(alpha * np.eye(4), identity, dtype)
    found = gradient_flow(cell, jnp.zeros((LONG, 2, 1), dtype), last)
    lag = np.arange(LONG)[::-1]
    exact = np.stack([lag * np.log(alpha) + np.log(2.0)] * 2, axis=-1)
    # The logarithm is summed step by step, each addition rounded to ε/2 of the sum: kε/4 of it in k steps.
    rounding = float(LONG * np.finfo(dtype).eps / 4)
    assert found.log_norms.dtype == dtype
    np.testing.assert_allclose(found.log_norms, exact, rtol=rounding, atol=1e-6)
    assert float(found.rate) == pytest.approx(np.log(alpha), rel=rounding)
    assert float(found.rate_stderr) < rounding
    np.testing.assert_allclose(found.omega, (LONG - 1) * (alpha - 1) ** 2, rtol=2e-3)


def test_one_sequence_has_an_error_too(x64):
    cell = elman(0.5 * np.eye(4), identity)
    found = gradient_flow(cell, jnp.zeros((T, 1)), last)
    assert float(found.rate) == pytest.approx(np.log(0.5))
    assert 0 <= float(found.rate_stderr) < 1e-12


def test_rate_is_the_mean_slope_over_sequences(x64):
    cell, path = travelled("lstm")
    found = flow_along(cell, path, last)
    slopes = np.polyfit(np.arange(T)[::-1], found.log_norms, 1)[0]
    assert float(found.rate) == pytest.approx(slopes.mean())
    assert float(found.rate_stderr) == pytest.approx(slopes.std(ddof=1) / np.sqrt(B))
    assert float(found.fit.dof) == B - 1
    assert float(found.fit.lag) == T - 1


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda outputs: jnp.zeros(()), "a gradient of zero at every step"),
        (lambda outputs: jnp.sum(0.0 * outputs), "a gradient of zero at every step"),
        (lambda outputs: outputs[-1, :, 0, None], r"float32\[2, 1\]"),
        (lambda outputs: outputs, r"float32\[6, 2, 4\]"),
        (lambda outputs: (outputs[-1].sum(), outputs), r"\(float32\[\], "),
    ],
)
def test_losses_of_no_use_are_refused(loss, said):
    cell, path = travelled("gru", dtype=jnp.float32)
    with pytest.raises(InputError, match=rf"^loss: got {said}"):
        flow_along(cell, path, loss)


def test_gradient_that_is_not_finite_is_refused_and_not_taken_for_zero():
    """The norm of a vector has no derivative at 0, which is where one of the two sequences is."""
    cell = elman(np.eye(4), jnp.tanh, jnp.float32)
    start = jnp.zeros((2, 4)).at[0].set(1.0)
    with pytest.raises(InputError, match=r"^loss: its gradient: .* the first at \[5, 1, 0\]"):
        gradient_flow(
            cell, jnp.zeros((T, 2, 1)), lambda y: jnp.linalg.norm(y[-1], axis=-1), carry=start
        )


def test_inputs_carry_and_weights_that_are_not_finite_are_refused():
    cell = make("gru", jnp.float32)
    xs, h = inputs(cell, dtype=jnp.float32)
    with pytest.raises(InputError, match=r"^xs: got 1 non-finite values, the first at \[4, 0, 2\]"):
        gradient_flow(cell, xs.at[4, 0, 2].set(jnp.nan), last)
    with pytest.raises(InputError, match=r"^carry: got 1 non-finite values, the first at \[1, 3\]"):
        gradient_flow(cell, xs, last, carry=h.at[1, 3].set(jnp.inf))
    cell.bias[...] = jnp.full_like(cell.bias[...], jnp.nan)
    with pytest.raises(InputError, match=r"^cell: its states"):
        gradient_flow(cell, xs, last)


def test_new_weights_do_not_compile_again(caplog):
    def run(seed, length=T):
        cell = make("lstm", jnp.float32, seed)
        gradient_flow(cell, inputs(cell, dtype=jnp.float32, length=length)[0], last)

    run(0)
    assert not compiles(caplog, lambda: run(1))
    assert compiles(caplog, lambda: run(1, 14))  # a new length, so the log can tell


def test_vmap_over_cells_gives_an_ensemble(x64):
    cells = [make("elman-tanh", seed=k) for k in range(3)]
    xs, carry = inputs(cells[0])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *cells)
    together = jax.vmap(lambda cell: gradient_flow(cell, xs, last, carry=carry).log_norms)(stacked)
    for k, cell in enumerate(cells):
        assert_close(together[k], gradient_flow(cell, xs, last, carry=carry).log_norms, 1e-12)


def test_autonomous_system_by_its_trajectory(x64):
    """The logistic map: ∂L/∂s_t is the product of the slopes 4 (1 − 2s) that follow."""

    def step(s, x):
        s = 4.0 * s * (1.0 - s)
        return s, s

    path = trace(step, None, carry=jnp.array([0.2]), length=T)
    slopes = np.abs(4 * (1 - 2 * np.asarray(path.states[:, 0])))
    expected = [np.log(slopes[t:T]).sum() for t in range(1, T + 1)]
    assert_close(flow_along(step, path, last).log_norms, expected, 1e-12)


# A stack.


def stack_gradients(cells, xs, loss):
    """Gradients by nudges on every layer's state, which the layer above and the next step both see."""

    def outputs(nudges):
        signals = xs
        for cell, nudge in zip(cells, nudges, strict=True):
            carry = cell.initialize_carry(signals.shape[1:], nnx.Rngs(0))

            def advance(state, now, cell=cell):
                x, change = now
                state = jax.tree.map(jnp.add, cell(state, x)[0], change)
                return state, cell.readout(state)

            _, signals = jax.lax.scan(advance, carry, (signals, nudge))
        return jnp.sum(loss(signals))

    shapes = [cell.initialize_carry(xs.shape[1:]) for cell in cells]
    zeros = [jax.tree.map(lambda a: jnp.zeros((len(xs), *a.shape)), shape) for shape in shapes]
    found = jax.grad(outputs)(zeros)
    return [np.concatenate(jax.tree.leaves(each), axis=-1) for each in found]


@pytest.mark.parametrize("kind", LOSSES)
def test_a_stack_has_the_gradients_of_jax_grad(kind, x64):
    rngs = nnx.Rngs(0)
    cells = [
        jaxrnn.LSTMCell(3, H, param_dtype=jnp.float64, rngs=rngs),
        jaxrnn.GRUCell(H, H, param_dtype=jnp.float64, rngs=rngs),
        jaxrnn.ElmanCell(H, H, param_dtype=jnp.float64, rngs=rngs),
    ]
    xs = jax.random.normal(jax.random.key(3), (T, B, 3))
    flows = stack_gradient_flow(cells, xs, LOSSES[kind])
    for flow, exact in zip(flows, stack_gradients(cells, xs, LOSSES[kind]), strict=True):
        assert_close(flow.log_norms, log_norms(exact), 1e-10)


@pytest.mark.slow
def test_a_stack_of_plain_functions_far_below_the_range_of_a_float(x64):
    """Each layer halves a thousandfold; what reaches the lowest through the highest keeps its logarithm."""

    def fade(s, x):
        moved = 1e-3 * s + 1e-3 * x
        return moved, moved

    start = jnp.zeros(1)
    low, high = stack_gradient_flow(
        [fade, fade], jnp.ones((400, 1)), lambda ys: ys[-1].sum(), carries=[start, start]
    )
    lag = 399
    # From the top's last state down: the step down is taken at any of the lag + 1 times.
    assert_close(high.log_norms[0], lag * np.log(1e-3), 1e-10)
    assert_close(low.log_norms[0], (lag + 1) * np.log(1e-3) + np.log(lag + 1), 1e-10)


def test_a_stack_is_refused_without_layers_or_with_other_carries(x64):
    with pytest.raises(InputError, match="cells: got none"):
        stack_gradient_flow([], jnp.ones((4, 1)), jnp.sum)
    with pytest.raises(InputError, match="carries: got 2 of them; expected 1"):
        stack_gradient_flow([make("gru")], jnp.ones((4, 3)), jnp.sum, carries=[None, None])


@pytest.mark.slow
def test_omega_is_a_regulariser(x64):
    """Its gradient by the weights is that of finite differences, where most outputs have weight 0 too."""
    cell, path = travelled("gru")

    def penalty(scale):
        scaled = jax.tree.map(lambda w: scale * w, cell)
        return gradient_flow(scaled, path.xs, LOSSES["on the last output"]).omega.sum()

    step = 1e-5
    difference = (penalty(1.0 + step) - penalty(1.0 - step)) / (2 * step)
    assert_close(jax.grad(penalty)(1.0), difference, 1e-6)


def test_a_derivative_that_is_not_finite_is_refused_with_its_place():
    step = lambda s, x: (0.0 * jnp.sqrt(jnp.abs(s - 1)) + 0.5 * s, s)  # noqa: E731  # NaN at s = 1
    with pytest.raises(InputError, match="cell: its derivative: got non-finite values on the way"):
        gradient_flow(step, None, lambda ys: ys[-1].sum(), carry=jnp.array([4.0]), length=6)


def test_leaves_with_other_batch_axes_are_refused():
    apart = lambda c, x: ((0.5 * c[0], 0.5 * c[1]), c[1])  # noqa: E731
    path = trace(apart, None, carry=(jnp.ones((2, 3)), jnp.ones(3)), length=4)
    with pytest.raises(InputError, match=r"carry: got .*expected leaves \[\*B, H\]"):
        _ = path.states
