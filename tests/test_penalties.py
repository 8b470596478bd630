"""Penalties and noise in training, each against its own definition in NumPy or a finite difference."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import analysis
from jaxrnn.checks import InputError
from jaxrnn.models import SequenceClassifier, SequenceLabeller
from jaxrnn.tasks import load_task
from jaxrnn.training import FitConfig, Penalties, fit
from jaxrnn.training.penalties import check_penalties, penalty

TASK = load_task("first-token", length=6, alphabet=3)
BATCH = TASK.test.take(5)


def _model(name: str = "lstm", units: int = 4, seed: int = 0) -> Any:
    rngs = nnx.Rngs(seed)
    return SequenceClassifier(jaxrnn.make_cell(name, 3, units, rngs=rngs), 3, rngs=rngs)


def _loss(model: Any) -> Any:
    return TASK.mean_loss(model(BATCH.inputs), BATCH)


def _value(model: Any, **weights: float) -> float:
    return float(penalty(weights, model, TASK, BATCH, _loss))


def _gates(model: Any) -> np.ndarray:
    """Recurrent weights gate by gate [G, H, H]."""
    kernel = np.asarray(model.cell.recurrent_kernel[...], np.float64)
    return np.stack(np.split(kernel, kernel.shape[1] // kernel.shape[0], axis=1))


@pytest.mark.parametrize("name", ["elman-tanh", "lstm", "gru"])
def test_penalties_on_weights_are_those_of_the_recurrent_matrices(name: str):
    model = _model(name)
    model.cell.recurrent_kernel[...] *= 1.7
    gates = _gates(model)
    assert _value(model, l1=0.5) == pytest.approx(0.5 * np.abs(gates).sum(), rel=1e-5)
    assert _value(model, l2=2.0) == pytest.approx(2 * (gates**2).sum(), rel=1e-5)
    stretches = np.array([np.linalg.svd(gate, compute_uv=False) for gate in gates])
    expected = (np.maximum(stretches - 1, 0) ** 2).sum()
    assert _value(model, spectral=1.0) == pytest.approx(expected, rel=1e-4)
    assert _value(model, l1=1.0, l2=1.0) == pytest.approx(
        np.abs(gates).sum() + (gates**2).sum(), rel=1e-5
    )


def test_nothing_is_added_without_penalties():
    assert _value(_model()) == 0
    gradient = jax.grad(lambda m: penalty({}, m, TASK, BATCH, _loss))(_model())
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def test_flossing_and_omega_are_the_analyses_own_numbers():
    model = _model("gru")
    found = analysis.lyapunov(model.cell, BATCH.inputs, k=4, renorm_every=1)
    expected = np.mean(np.sum(np.asarray(found.exponents) ** 2, axis=-1))
    assert _value(model, flossing=1.0) == pytest.approx(expected, rel=1e-4)

    def loss(outputs):
        return TASK.losses(model.readout(outputs[-1]), BATCH)

    flow = analysis.gradient_flow(model.cell, BATCH.inputs, loss)
    assert _value(model, omega=1.0) == pytest.approx(float(np.mean(flow.omega)), rel=1e-4)


def test_the_gradients_penalty_is_its_squared_norm():
    model = _model("gru")
    gradient = jax.grad(_loss)(model)
    expected = sum(float(np.sum(np.asarray(leaf) ** 2)) for leaf in jax.tree.leaves(gradient))
    assert _value(model, gradient=1.0) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "name", ["spectral", "omega", pytest.param("flossing", marks=pytest.mark.slow), "gradient"]
)
def test_penalties_have_the_gradient_of_their_values(name: str, x64):
    """Along a random direction, against a central difference."""
    task = load_task("first-token", length=5, alphabet=3)
    batch = jax.tree.map(
        lambda x: x.astype(float) if x.dtype == np.float32 else x, task.test.take(3)
    )
    rngs = nnx.Rngs(1)
    cell = jaxrnn.ElmanCell(3, 4, rngs=rngs, param_dtype=jnp.float64)
    model = SequenceClassifier(cell, 3, rngs=rngs)
    cell.recurrent_kernel[...] *= 1.3
    direction = jax.tree.map(lambda leaf: np.random.default_rng(0).normal(size=leaf.shape), model)

    def value(model: Any) -> Any:
        def loss(model: Any) -> Any:
            return task.mean_loss(model(batch.inputs), batch)

        return penalty({name: 1.0}, model, task, batch, loss)

    def moved(size: float) -> Any:
        return jax.tree.map(lambda leaf, d: leaf + size * d, model, direction)

    difference = (value(moved(1e-5)) - value(moved(-1e-5))) / 2e-5
    gradient = jax.grad(value)(model)
    slope = sum(
        jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True)
    )
    np.testing.assert_allclose(slope, difference, rtol=1e-5)


def test_penalties_without_a_place_are_refused():
    rngs = nnx.Rngs(0)
    both = jaxrnn.Bidirectional(
        jaxrnn.RNN(jaxrnn.GRUCell(3, 4, rngs=rngs)), jaxrnn.RNN(jaxrnn.GRUCell(3, 4, rngs=rngs))
    )
    wide = SequenceLabeller(both, 3, rngs=rngs)
    with pytest.raises(InputError, match="l2: got a network of several layers or directions"):
        check_penalties(Penalties(l2=1.0), wide, TASK, BATCH)
    ragged = load_task("parity")
    batch = ragged.test.take(3)
    model = SequenceClassifier(jaxrnn.GRUCell(2, 4, rngs=rngs), 2, rngs=rngs)
    with pytest.raises(InputError, match="omega: got sequences of many lengths"):
        check_penalties(Penalties(omega=1.0), model, ragged, batch)
    lem = SequenceClassifier(jaxrnn.make_cell("lem", 3, 4, rngs=rngs), 3, rngs=rngs)
    with pytest.raises(InputError, match="l1: got a LEMCell, whose step is not split"):
        check_penalties(Penalties(l1=1.0), lem, TASK, BATCH)
    with pytest.raises(InputError, match="l2: got -1"):
        FitConfig(penalties=Penalties(l2=-1.0)).check()


_CONFIG = FitConfig(steps=40, every=40, batch_size=16, seeds=1, learning_rate=1e-2)


def _trained(**changes: Any) -> Any:
    config = dataclasses.replace(_CONFIG, **changes)
    return fit(lambda rngs: _fresh(rngs), TASK, config)


def _fresh(rngs: nnx.Rngs) -> Any:
    return SequenceClassifier(jaxrnn.ElmanCell(3, 8, rngs=rngs), 3, rngs=rngs)


@pytest.mark.slow
def test_training_with_a_penalty_makes_it_smaller_and_the_loss_is_still_the_tasks():
    plain, decayed = _trained(), _trained(penalties=Penalties(l2=0.1))

    def size(result: Any) -> float:
        return float(np.sum(np.asarray(result.models.cell.recurrent_kernel[...]) ** 2))

    assert size(decayed) < 0.5 * size(plain)
    assert decayed.history[-1]["train_loss"][0] < 2  # ln 3 is chance: the penalty is not in it


def test_weight_noise_is_drawn_anew_at_every_step_and_leaves_the_weights_themselves_alone():
    still = _trained(weight_noise=0.1, learning_rate=1e-12, steps=1, every=1)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), still.models, still.initial
    )
    losses = [_trained(weight_noise=noise).history[-1]["train_loss"] for noise in (0.0, 0.5)]
    assert losses[0] != losses[1]
