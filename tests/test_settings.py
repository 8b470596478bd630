"""Settings of a network: where weights start, what stands between layers, what reads the sequence."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrnn.cells import GRUCell, LSTMCell
from jaxrnn.checks import InputError
from jaxrnn.experiments import NetworkConfig, RunConfig, load_network, network, train
from jaxrnn.layers import Stack
from jaxrnn.models import TCN, SequenceLabeller, TransformerEncoder, WindowedMLP
from jaxrnn.tasks import load_task
from jaxrnn.training import FitConfig, Penalties, fit

ADDING = load_task("adding", length=12)
PARITY = load_task("parity")
STEPS = FitConfig(steps=4, every=2, batch_size=8, seeds=2)


def made(task=ADDING, seed=0, **settings) -> Any:
    config = NetworkConfig("lstm", 8)
    return network(dataclasses.replace(config, **settings), task)(nnx.Rngs(seed))


def kernels(**settings) -> np.ndarray:
    """The recurrent blocks [G, H, H] of a network's cell."""
    cell = made(**settings).layer.cell
    return np.stack(np.split(np.asarray(cell.recurrent_kernel[...]), len(cell.gates), axis=-1))


def test_recurrent_matrices_start_as_asked():
    identity = np.broadcast_to(np.eye(8), (4, 8, 8))
    np.testing.assert_array_equal(kernels(recurrent_init="identity"), identity)
    for block in kernels(recurrent_init="orthogonal", recurrent_gain=2.0):
        np.testing.assert_allclose(block @ block.T, 4 * np.eye(8), atol=1e-5)
    for block in kernels(recurrent_init="spectral-radius", recurrent_gain=0.9):
        assert np.abs(np.linalg.eigvals(block)).max() == pytest.approx(0.9, rel=1e-4)
    normal = kernels(recurrent_init="normal", hidden_features=200)
    assert normal.std() * 200**0.5 == pytest.approx(1, abs=0.02)
    bound = (6 / 400) ** 0.5
    glorot = kernels(recurrent_init="glorot", hidden_features=200)
    assert 0.99 * bound < np.abs(glorot).max() <= bound


def test_gains_multiply_what_was_drawn_and_nothing_else():
    plain, scaled = made(), made(recurrent_gain=3.0, input_gain=0.5)
    for name, factor in (("kernel", 0.5), ("recurrent_kernel", 3.0), ("bias", 1.0)):
        before, after = (getattr(model.layer.cell, name)[...] for model in (plain, scaled))
        np.testing.assert_allclose(after, factor * before, rtol=1e-6)


@pytest.mark.parametrize(("cell", "gate"), [("lstm", 1), ("lstm-peephole", 1), ("gru", 1)])
def test_the_forget_bias_is_that_of_the_gate_that_keeps(cell, gate):
    model = made(cell=cell, forget_bias=2.5)
    biases = np.asarray(model.layer.cell.bias[...]).reshape(-1, 8)
    np.testing.assert_array_equal(biases[gate], 2.5)
    others = np.delete(biases, gate, axis=0)
    np.testing.assert_array_equal(others, 0)


@pytest.mark.parametrize(("cell", "signs"), [("lstm", (-1, 1, 0, 0)), ("gru", (0, 1, 0))])
def test_chrono_spreads_biases_over_lags(cell, signs):
    biases = np.asarray(made(cell=cell, chrono=100.0).layer.cell.bias[...]).reshape(-1, 8)
    memory = biases[1]
    assert (memory >= 0).all()
    assert memory.max() < np.log(99)
    assert len(set(memory.tolist())) == 8
    np.testing.assert_array_equal(biases, np.outer(signs, memory))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cell": "mingru", "recurrent_gain": 2.0}, "recurrent_gain: got 2.0 for a MinGRUCell"),
        ({"cell": "lru", "input_gain": 2.0}, "input_gain: got 2.0 for a LRUCell"),
        ({"cell": "mgu", "forget_bias": 1.0}, "forget_bias: got 1.0 for a MGUCell"),
        ({"cell": "elman-tanh", "chrono": 10.0}, "chrono: got 10.0 for a ElmanCell"),
        ({"chrono": 2.0}, "chrono: got 2.0; expected a lag of more than 2"),
        ({"chrono": 9.0, "forget_bias": 1.0}, "chrono: got 9.0; expected None where forget_bias"),
        ({"recurrent_init": "orthogonl"}, "recurrent_init: got 'orthogonl'"),
        ({"recurrent_gain": ()}, "recurrent_gain: got no value"),
        ({"recurrent_gain": float("nan")}, "recurrent_gain: got nan"),
        ({"norm": "batch"}, "norm: got 'batch'"),
        ({"body": "cnn"}, "body: got 'cnn'"),
        ({"body": "tcn", "zoneout": 0.1}, "zoneout: got 0.1 with body='tcn'; expected its default"),
        ({"window": 3}, "window: got 3 with body='recurrent'"),
        ({"body": "window", "bidirectional": True}, "bidirectional: got True with body='window'"),
        ({"body": "transformer", "hidden_features": 6}, "heads: got 4; expected a divisor"),
    ],
)
def test_settings_that_have_no_place_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        made(**settings)


def test_a_text_is_read_on_by_recurrent_layers_alone(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("abcd " * 2_000)
    task = load_task("characters", file=str(text))
    with pytest.raises(InputError, match="body: got 'tcn'; expected 'recurrent'"):
        made(task, body="tcn")


def test_residuals_and_norms_stand_above_the_lowest_layer():
    stack = made(layers=3, residual=True, norm="rms").encoder
    assert isinstance(stack, Stack)
    assert stack.residual == (False, True, True)
    assert [type(norm).__name__ for norm in stack.norms] == ["NoneType", "RMSNorm", "RMSNorm"]
    xs = jax.random.normal(jax.random.key(0), (5, 7, 2))
    below = stack.layers[0](xs)
    for layer, norm in zip(stack.layers[1:], stack.norms[1:], strict=True):
        assert norm is not None
        below = below + layer(norm(below))
    np.testing.assert_allclose(stack(xs), below, rtol=1e-5, atol=1e-6)


def test_one_layer_has_nothing_between_layers():
    plain, other = made(), made(residual=True, norm="layer")
    assert jax.tree.structure(plain) == jax.tree.structure(other)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(
    ("body", "kind"), [("window", WindowedMLP), ("tcn", TCN), ("transformer", TransformerEncoder)]
)
def test_bodies_to_compare_with_train_and_come_back(body, kind, layers, tmp_path):
    body = NetworkConfig(body=body, hidden_features=8, layers=layers)
    run = RunConfig("adding", {"length": 12}, body, STEPS)
    train(run, tmp_path / "run")
    _, model = load_network(tmp_path / "run", 1)
    assert isinstance(model.encoder, kind)
    assert RunConfig.of(tmp_path / "run") == run


def test_a_transformer_sees_what_is_to_come_only_if_it_reads_both_ways():
    task = load_task("flip-flop", length=10)
    xs = jnp.asarray(task.test.take(2).inputs)
    for both_ways in (False, True):
        model = made(task, body="transformer", bidirectional=both_ways)
        assert isinstance(model, SequenceLabeller)
        changed = model(xs.at[-1].add(1.0))[0] - model(xs)[0]
        assert bool(jnp.any(changed != 0)) == both_ways


def test_tokens_are_embedded_for_every_body():
    batch = PARITY.test.take(3)
    for body in ("window", "tcn", "transformer"):
        model = made(PARITY, body=body)
        logits = model(batch.inputs, seq_lengths=batch.lengths)
        assert logits.shape == (3, PARITY.outputs)


# Several values of a setting.


def test_gains_of_which_several_are_tried_are_one_ensemble():
    config = NetworkConfig("lstm", 8, recurrent_gain=(0.5, 2.0), forget_bias=(0.0, 1.0, 3.0))
    members = RunConfig("adding", network=config, fit=STEPS).members
    assert len(members) == 12
    assert members[-1] == {"recurrent_gain": 2.0, "forget_bias": 3.0, "seed": 1}
    result = fit(network(config, ADDING), ADDING, STEPS, variants=config.variants)
    assert result.members == members
    for number, member in enumerate(members):
        alone = {name: member[name] for name in ("recurrent_gain", "forget_bias")}
        expected = made(seed=0, **alone)
        found = jax.tree.map(lambda leaf, i=number: leaf[i], result.initial)
        gate = np.asarray(found.layer.cell.bias[...]).reshape(4, 8)[1]
        np.testing.assert_array_equal(gate, member["forget_bias"])
        sizes = [
            float(jnp.linalg.norm(model.layer.cell.recurrent_kernel[...]))
            for model in (found, expected)
        ]
        assert sizes[0] == pytest.approx(sizes[1], rel=1e-5)  # orthogonal, whatever the seed


def test_a_run_with_several_gains_is_resumed_and_read(tmp_path):
    config = NetworkConfig("gru", 4, input_gain=(0.5, 2.0))
    run = RunConfig("adding", {"length": 12}, config, STEPS, probes=False)
    first = train(run, tmp_path / "run")
    again = train(run, tmp_path / "run", resume=True)
    np.testing.assert_array_equal(first.test_score, again.test_score)
    _, model = load_network(tmp_path / "run", 3)
    chosen = jax.tree.map(lambda leaf: leaf[3], first.models)
    jax.tree.map(np.testing.assert_array_equal, model, chosen)
    assert RunConfig.of(tmp_path / "run") == run


@pytest.mark.parametrize(
    "several",
    [
        {"optimizer": "sgd", "momentum": (0.0, 0.9)},
        {"optimizer": "rmsprop", "momentum": (0.5, 0.9)},
        {"optimizer": "adamw", "weight_decay": (0.0, 0.1)},
        {"weight_noise": (0.0, 0.1)},
        {"penalties": Penalties(l2=(0.0, 0.1))},
    ],
)
def test_a_setting_tried_with_others_trains_as_it_does_alone(several):
    def trained(**settings) -> Any:
        config = dataclasses.replace(STEPS, learning_rate=0.05, **settings)
        return fit(network(NetworkConfig("gru", 4), ADDING), ADDING, config)

    both = trained(**several)
    for place in (0, 1):
        alone = trained(**{name: _pick(value, place) for name, value in several.items()})
        jax.tree.map(
            lambda many, one, place=place: np.testing.assert_allclose(
                many[2 * place : 2 * place + 2], one, rtol=2e-4, atol=1e-6
            ),
            both.models,
            alone.models,
        )
    kernels = both.models.layer.cell.kernel[...]
    assert not np.allclose(kernels[0], kernels[2])


def _pick(value: Any, place: int) -> Any:
    if isinstance(value, Penalties):
        return Penalties(l2=_pick(value.l2, place))
    return value[place] if isinstance(value, tuple) else value


def test_paired_settings_go_together():
    paired = dataclasses.replace(
        STEPS, learning_rate=(1e-3, 1e-2, 1e-2), clip_norm=(0.1, 1.0, 10.0), combine="paired"
    )
    members = paired.ensemble().members
    assert len(members) == 6
    assert members[2] == {"learning_rate": 1e-2, "clip_norm": 1.0, "seed": 0}
    assert paired.ensemble().values["clip_norm"] == [0.1, 0.1, 1.0, 1.0, 10.0, 10.0]
    with pytest.raises(InputError, match=r"combine: got 'paired', with 3 of learning_rate, 2 of"):
        dataclasses.replace(paired, clip_norm=(0.1, 1.0)).check()


# Steps to a target.


def test_time_to_a_target_is_that_of_the_first_report_that_has_it():
    result = fit(network(NetworkConfig("gru", 4), ADDING), ADDING, STEPS)
    rows = [
        {**row, "valid_mse": scores, "seconds": 2.0 * i}
        for i, (row, scores) in enumerate(
            zip(result.history, ([0.3, 0.2], [0.1, 0.3], [0.02, 0.15]), strict=True)
        )
    ]
    found = dataclasses.replace(result, history=rows).time_to(0.1)
    assert found.steps.tolist() == [2, 4]
    assert found.seconds.tolist() == [2.0, 6.0]
    assert found.reached.tolist() == [True, False]  # the second is censored
    assert found.text == "1 of 2 networks reached 0.1, after 2 steps (median)"
    above = dataclasses.replace(result, history=rows, higher_is_better=True).time_to(0.25)
    assert above.steps.tolist() == [0, 2]
    assert result.time_to().target == ADDING.solved
    assert result.summary["steps_to_solved"] == result.time_to().steps.tolist()
    with pytest.raises(InputError, match="target: got None; expected a mse"):
        dataclasses.replace(result, solved=None).time_to()


def test_the_forget_gate_of_a_gru_is_its_update_gate():
    assert LSTMCell.gates[1] == "forget"
    assert GRUCell.gates[1] == "update"
