"""Weights in and out: the other library's numbers, the same weights back, and files that cannot run code.

Oracles: arrays recorded from PyTorch and Keras (`tests/recorded/make_pytorch_layers.py`, `make_keras.py`),
and Flax's own cells, live.
"""

from __future__ import annotations

import os
import pickle
import types
import zipfile
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import jaxrnn
from jaxrnn import (
    RNN,
    Bidirectional,
    ElmanCell,
    GRUCell,
    InputError,
    LSTMCell,
    ProjectedLSTMCell,
    Stack,
    interop,
)

F, H, T, B = 3, 4, 7, 3
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
RECORDED = Path(__file__).parent / "recorded"


def ones(*shape):
    return np.ones(shape, np.float32)


def assert_close(actual, expected, dtype):
    """Of this dtype, and equal to the rounding of the coarser of both."""
    assert actual.dtype == dtype
    largest = max(1.0, np.abs(expected).max())
    tolerance = max(TOLERANCE[dtype.name], TOLERANCE[expected.dtype.name])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * largest)


def assert_same(actual, expected):
    """Equal numbers, dtypes and structures."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def filled(module, seed=0):
    """The module with random numbers in all its arrays."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: jnp.asarray(draw.normal(size=a.shape, scale=0.5), a.dtype), module
    )


def made(make, seed=0):
    """What `make` makes, with random numbers in the place of initial ones, which take time to draw."""
    return filled(jax.eval_shape(make), seed)


def cells(name, shapes, dtype=jnp.float32):
    return [
        made(lambda f=f, h=h: jaxrnn.make_cell(name, f, h, param_dtype=dtype, rngs=nnx.Rngs(0)), i)
        for i, (f, h) in enumerate(shapes)
    ]


def layers(name, dtype=jnp.float32):
    """One layer, one of two directions, and two of two directions: what PyTorch can have."""
    one, *both = cells(name, [(F, H), (F, H), (F, H)], dtype)
    above = cells(name, [(2 * one.out_features, H)] * 2, dtype)
    one, forward, backward, *above = map(RNN, [one, *both, *above])
    both = Bidirectional(forward, backward)
    return {"rnn": one, "bidirectional": both, "stack": Stack([both, Bidirectional(*above)])}


# PyTorch.

PYTORCH_BACK = ["rnn_tanh", "rnn_relu", "lstm", "gru", "lstm_projected_both"]
PYTORCH = {
    "rnn_tanh": {},
    "rnn_relu": {"activation_fn": jax.nn.relu},
    "lstm": {},
    "gru": {},
    "lstm_without_bias": {},
    "gru_without_bias": {},
    "lstm_projected": {},
    "lstm_projected_both": {},
    "lstm_projected_without_bias": {},
}


def recorded(library, case, dtype):
    """The arrays of one case, its weights in a dictionary of their own, and inputs and lengths."""
    arrays = np.load(RECORDED / f"{library}_layers.npz")
    found, weights = {}, {}
    for name in ("inputs", "lengths"):
        found[name] = arrays[name]
    for name in arrays:
        parts = name.split("/")
        if parts[0] == case and parts[1] == "weights":
            weights[parts[2]] = arrays[name].astype(dtype)
        elif parts[0] == case:
            found[parts[1]] = arrays[name]
    found["inputs"] = jnp.asarray(found["inputs"], dtype)
    return weights, found


def pytorch_states(found, when, layer, dtype):
    """PyTorch's states [L·D, B, H] in the structure of our carries."""
    rows: list[Any] = [
        tuple(jnp.asarray(found[f"{when}_{n}"][i], dtype) for n in "ch" if f"{when}_{n}" in found)
        for i in range(len(found[f"{when}_h"]))
    ]
    rows = [row if len(row) > 1 else row[0] for row in rows]

    def take(layer):
        if isinstance(layer, Stack):
            return tuple(take(each) for each in layer.layers)
        if isinstance(layer, Bidirectional):
            return rows.pop(0), rows.pop(0)
        return rows.pop(0)

    return take(layer)


@pytest.mark.parametrize("case", PYTORCH)
def test_a_layer_of_pytorch_gives_pytorchs_numbers(case, dtype):
    """With packed sequences of several lengths, initial states, layers and directions."""
    weights, found = recorded("pytorch", case, dtype)
    layer: Any = interop.from_pytorch(weights, **PYTORCH[case])
    carry, outputs = layer(
        found["inputs"],
        initial_carry=pytorch_states(found, "initial", layer, dtype),
        seq_lengths=found["lengths"],
        time_major=True,
        return_carry=True,
    )
    assert_close(outputs, found["outputs"], dtype)
    jax.tree.map(
        lambda ours, theirs: assert_close(ours, theirs, dtype),
        carry,
        pytorch_states(found, "last", layer, dtype),
    )


@pytest.mark.parametrize("case", ["rnn_tanh", "rnn_relu", "lstm", "gru", "lstm_projected_both"])
def test_pytorchs_states_are_our_carries(case, dtype):
    weights, found = recorded("pytorch", case, dtype)
    layer: Any = interop.from_pytorch(weights, **PYTORCH[case])
    names = [name for name in "hc" if f"last_{name}" in found]
    state = tuple(found[f"last_{name}"].astype(dtype) for name in names)
    state = state if len(names) > 1 else state[0]
    carry = interop.carry_from_pytorch(layer, state)
    assert_same(carry, pytorch_states(found, "last", layer, dtype))
    assert_same(interop.carry_to_pytorch(layer, carry), state)


@pytest.mark.parametrize("case", ["rnn_tanh", "rnn_relu", "lstm", "gru"])
def test_a_cell_of_pytorch_gives_pytorchs_numbers(case, dtype):
    """By the names of an `nn.LSTMCell`, with its state (h, c), step by step."""
    found = np.load(RECORDED / f"pytorch_{case}.npz")
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    weights = {f"decoder.{name}": found[name].astype(dtype) for name in names}
    layer: Any = interop.from_pytorch(weights, prefix="decoder.", **PYTORCH[case])
    cell = layer.cell
    states = [found[f"initial_{name}"].astype(dtype) for name in "hc" if f"initial_{name}" in found]
    state = tuple(states) if len(states) > 1 else states[0]
    carry = interop.carry_from_pytorch(cell, state)
    for x, y in zip(found["inputs"].astype(dtype), found["outputs"], strict=True):
        carry, output = cell(carry, jnp.asarray(x))
        assert_close(output, y, dtype)
    last = interop.carry_to_pytorch(cell, carry)
    for name, leaf in zip("hc", jax.tree.leaves(last), strict=False):
        assert_close(leaf, found[f"last_{name}"], dtype)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (ones(1, B, H), r"state: got float32\[1, 3, 4\]; expected \(h, c\), as of nn.LSTM"),
        ((ones(B, H), ones(B, H)), r"state\[0\]: got float32\[3, 4\]; expected \[1, \*B, 4\]"),
        ((ones(1, B, H), ones(1, B, 5)), r"state\[1\]: got float32\[1, 3, 5\]"),
        (("h", "c"), r"state\[0\]: got "),
    ],
)
def test_what_is_no_state_of_pytorch_is_refused(state, message):
    with pytest.raises(InputError, match=message):
        interop.carry_from_pytorch(RNN(cells("lstm", [(F, H)])[0]), state)


def test_a_carry_of_another_layer_has_no_state_of_pytorch():
    (cell,) = cells("lstm", [(F, H)])
    with pytest.raises(InputError, match=r"carry: got float32\[3, 4\]; expected a carry of the"):
        interop.carry_to_pytorch(cell, jnp.ones((B, H)))
    for carry in (
        (jnp.ones((B, H)), jnp.ones((B + 1, H))),
        (jnp.ones(()),) * 2,
        (jnp.ones((B, 1)),) * 2,
    ):
        with pytest.raises(InputError, match=r"carry: got .*; expected leaves \[\*B, \d\]"):
            interop.carry_to_pytorch(cell, carry)


def by_hand(cell, carry, x):
    """A step of Equinox's cells, for one sequence, as its source has it."""
    kernel, bias = np.asarray(cell.weight_ih), 0 if cell.bias is None else cell.bias
    sigmoid = lambda a: 1 / (1 + np.exp(-a))  # noqa: E731
    if len(kernel) == 4 * H:
        h, c = carry
        i, f, g, o = np.split(kernel @ x + cell.weight_hh @ h + bias, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c
    inside = 0 if cell.bias_n is None else cell.bias_n
    inputs, hidden = np.split(kernel @ x + bias, 3), np.split(cell.weight_hh @ carry, 3)
    reset, update = sigmoid(inputs[0] + hidden[0]), sigmoid(inputs[1] + hidden[1])
    new = np.tanh(inputs[2] + reset * (hidden[2] + inside))
    return new + update * (carry - new)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("gates", [3, 4])
def test_a_cell_of_equinox_gives_its_numbers(gates, biased):
    draw = np.random.default_rng(gates).normal
    theirs: Any = types.SimpleNamespace(
        weight_ih=draw(size=(gates * H, F)),
        weight_hh=draw(size=(gates * H, H)),
        bias=draw(size=gates * H) if biased else None,
    )
    if gates == 3:
        theirs.bias_n = draw(size=H) if biased else None
    x, h, c = draw(size=(T, F)), draw(size=H), draw(size=H)
    with jax.enable_x64(True):
        ours = interop.from_equinox(theirs)
        carry = (jnp.asarray(c), jnp.asarray(h)) if gates == 4 else jnp.asarray(h)
        state = (h, c) if gates == 4 else h
        for each in x:
            state = by_hand(theirs, state, each)
            carry, output = ours(carry, jnp.asarray(each))
            np.testing.assert_allclose(output, state[0] if gates == 4 else state, atol=1e-12)
        if gates == 4:
            np.testing.assert_allclose(carry[0], state[1], atol=1e-12)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "cell: got .*, without weight_ih, weight_hh, bias; expected an eqx.nn.LSTMCell"),
        ({"weight_hh": ones(8, 4)}, r"cell.weight_hh: got float32\[8, 4\]; expected \[G·H, H\]"),
        ({"weight_ih": ones(12, 3)}, r"cell.weight_ih: got float32\[12, 3\]; expected shape \[16"),
        ({"bias": ones(4)}, r"cell.bias: got float32\[4\]; expected shape \[16\]"),
        ({"bias": "none"}, r"cell.bias: got .*; expected a"),
    ],
)
def test_what_is_no_cell_of_equinox_is_refused(arrays, message):
    whole = {"weight_ih": ones(16, 3), "weight_hh": ones(16, 4), "bias": None} | arrays
    with pytest.raises(InputError, match=message):
        interop.from_equinox(types.SimpleNamespace(**(whole if arrays else {})))


def test_from_another_library_to_a_diagnosis_in_three_lines():
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(T, B, F)), jnp.float32)
    keras = interop.to_keras(RNN(cells("gru", [(F, H)])[0]))
    library: Any = interop
    for cell in (
        library.from_pytorch(lstm_dict()).cell,
        library.from_keras(keras).cell,
        interop.from_nnx(nnx.RNN(nnx.GRUCell(F, H, rngs=nnx.Rngs(0)))),
    ):
        diagnosis = jaxrnn.analysis.diagnose(cell, xs, lambda ys: jnp.sum(ys[-1] ** 2))
        assert np.all(np.isfinite(diagnosis.flow.log_norms))


@pytest.mark.parametrize("case", PYTORCH_BACK)
def test_pytorchs_weights_come_back_as_the_same_function(case):
    """The two biases may come back otherwise divided where they are added, and only there."""
    with jax.enable_x64(True):
        weights, _ = recorded("pytorch", case, np.dtype("float64"))
        back = interop.to_pytorch(interop.from_pytorch(weights, **PYTORCH[case]))
    assert list(back) == list(weights)
    for name, array in weights.items():
        if name.startswith("weight"):
            np.testing.assert_array_equal(back[name], array)
            continue
        other = name.replace("_ih_", "_hh_") if "_ih_" in name else name.replace("_hh_", "_ih_")
        added = slice(0, 2 * H if case == "gru" else None)
        np.testing.assert_array_equal(
            (back[name] + back[other])[added], (array + weights[other])[added]
        )
        if case == "gru":  # the candidate's stay apart
            np.testing.assert_array_equal(back[name][2 * H :], array[2 * H :])
        elif "_hh_" in name:
            assert not back[name].any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("arrangement", ["rnn", "bidirectional", "stack"])
@pytest.mark.parametrize("name", ["elman-tanh", "lstm", "gru", "lstm-projected"])
def test_our_weights_come_back_from_pytorch(name, arrangement, dtype, tmp_path):
    layer = layers(name, jnp.dtype(dtype))[arrangement]
    arrays = interop.to_pytorch(layer, prefix="encoder.rnn.")
    assert_same(interop.from_pytorch(arrays, prefix="encoder.rnn."), layer)
    # safetensors writes memory as it lies, and torch.from_numpy warns of what it may not write to.
    assert all(a.flags.c_contiguous and a.flags.writeable for a in arrays.values())
    head = {"encoder.head.weight": np.ones((2, 2), "f")}
    safetensors.numpy.save_file(arrays | head, tmp_path / "torch.safetensors")
    file = tmp_path / "torch.safetensors"
    assert_same(interop.from_pytorch(file, prefix="encoder.rnn."), layer)
    assert_same(interop.from_pytorch(str(file), prefix="encoder.rnn."), layer)


@pytest.mark.parametrize("name", ["elman-tanh", "lstm", "gru"])
@pytest.mark.parametrize(
    "there_and_back",
    [
        lambda layer: interop.from_pytorch(interop.to_pytorch(layer)),
        lambda layer: interop.from_keras(interop.to_keras(layer)),
    ],
)
def test_our_weights_come_back_to_the_bit(there_and_back, name):
    """A −0, too, which the second bias of the others would turn into +0."""
    (cell,) = cells(name, [(F, H)])
    cell.bias[...] = cell.bias[...].at[0].set(-0.0)
    back = there_and_back(RNN(cell))
    for ours, theirs in zip(jax.tree.leaves(back.cell), jax.tree.leaves(cell), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def aligned(shape):
    """An array of ones as JAX on a CPU takes it without a copy, if allowed to: on a boundary of 64 bytes."""
    size = 4 * int(np.prod(shape))
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    array = memory[start : start + size].view(np.float32).reshape(shape)
    array[...] = 1
    return array


def test_an_imported_layer_has_memory_of_its_own():
    theirs = [aligned(shape) for shape in ((16, F), (16, H), (16,), (16,))]
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    pytorch = {n: a.reshape(a.shape[::-1]).T for n, a in zip(names, theirs, strict=True)}
    keras = [aligned(shape) for shape in ((F, 16), (H, 16), (16,))]
    imported = interop.from_pytorch(pytorch), interop.from_keras(keras)
    before = jax.tree.map(np.array, imported)
    for array in (*theirs, *keras):
        array[...] = 0
    assert_same(imported, before)


def test_relu_goes_to_pytorch_and_sigmoid_does_not():
    (cell,) = cells("elman-relu", [(F, H)])
    back = interop.from_pytorch(interop.to_pytorch(RNN(cell)), activation_fn=jax.nn.relu)
    assert_same(back, RNN(cell))
    (cell,) = cells("elman-sigmoid", [(F, H)])
    with pytest.raises(InputError, match=r"layer 0 \(activation_fn\): got .*sigmoid"):
        interop.to_pytorch(RNN(cell))


class Tensor:
    """A tensor that NumPy may not read, as PyTorch's are on a GPU or with a gradient."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


def lstm_dict(**changes):
    shapes = {"weight_ih_l0": (16, 3), "weight_hh_l0": (16, 4), "bias_ih_l0": 16, "bias_hh_l0": 16}
    arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()} | changes
    return {name: array for name, array in arrays.items() if array is not None}


@pytest.mark.parametrize(
    ("state_dict", "options", "message"),
    [
        ({}, {}, r"prefix: got ''; expected one before weight_ih_l0 or weight_ih$"),
        (
            {f"encoder.rnn.{name}": array for name, array in lstm_dict().items()},
            {"prefix": "encoder.rnn"},
            r"prefix: got 'encoder.rnn'; expected .* \(did you mean 'encoder.rnn.'\?\)",
        ),
        (
            lstm_dict(weight_hr_l0=ones(2, 4)),
            {},
            r"weight_hr_l0: got float32\[2, 4\]; expected \[Y, H\], .* float32\[16, 4\]",
        ),
        (lstm_dict(weight_hr_l0=ones(2)), {}, r"weight_hr_l0: got float32\[2\]"),
        (lstm_dict(weight_hr_l1=ones(2, 4)), {}, "weight_hr_l0 missing, 'weight_hr_l1' unexpected"),
        (
            {"epoch": 3, "state_dict": lstm_dict()},
            {},
            r"state_dict: got a mapping that holds another under the name 'state_dict'; expected .*, "
            r"such as state_dict\['state_dict'\]",
        ),
        (
            {"weight_ih": ones(16, 3), "bias_hh": ones(16)},
            {},
            "state_dict: got weight_hh missing, bias_ih missing",
        ),
        (
            {"decoder.cell.weight_ih": ones(16, 3)},
            {},
            r"prefix: got ''; .*did you mean 'decoder.cell.'\?",
        ),
        (lstm_dict(bias_hh_l0=None), {}, "state_dict: got bias_hh_l0 missing"),
        (
            lstm_dict(weight_ih_l2=ones(16, 4)),
            {},
            "weight_ih_l1 missing.*'weight_ih_l2' unexpected",
        ),
        (lstm_dict(weight_ih_l0_reverse=ones(16, 3)), {}, "weight_hh_l0_reverse missing"),
        (
            lstm_dict(**{f"{i}\n": ones(2) for i in range(9)}),
            {},
            r"state_dict: got '0\\n' unexpected, .*'4\\n' unexpected, and 4 more; expected",
        ),
        (lstm_dict(**{"fc.weight": ones(2, 2)}), {}, "state_dict: got 'fc.weight' unexpected"),
        (lstm_dict(weight_hh_l0=ones(8, 4)), {}, r"weight_hh_l0: got float32\[8, 4\]; .*4 \(LSTM"),
        (lstm_dict(weight_hh_l0=ones(16)), {}, r"weight_hh_l0: got float32\[16\]"),
        (lstm_dict(weight_ih_l0=ones(12, 3)), {}, r"weight_ih_l0: .*expected shape \[16, 3\]"),
        (lstm_dict(weight_ih_l0=ones(16)), {}, r"weight_ih_l0: got float32\[16\]"),
        (lstm_dict(bias_ih_l0=ones(4)), {}, r"bias_ih_l0: .*expected shape \[16\]"),
        (
            lstm_dict() | {n[:-1] + "1": a for n, a in lstm_dict().items()},
            {},
            r"weight_ih_l1: got float32\[16, 3\]; expected shape \[16, 4\]",
        ),
        (lstm_dict(weight_hh_l0=ones(16, 4).astype("float16")), {}, "float16 and float32"),
        (lstm_dict(weight_hh_l0=np.ones((16, 4), int)), {}, r"weight_hh_l0'\]: got int64"),
        (lstm_dict(weight_hh_l0=np.array([[object()]])), {}, r"weight_hh_l0'\]: got object"),
        (lstm_dict(weight_hh_l0=Tensor()), {}, r"weight_hh_l0'\]: got Tensor \(can't convert cuda"),
        (
            {name: array.astype("float64") for name, array in lstm_dict().items()},
            {},
            "got float64, of which JAX keeps float32",
        ),
        (lstm_dict(), {"activation_fn": jnp.tanh}, "activation_fn: .*None for a LSTMCell"),
        ([1], {}, r"state_dict: got \[int 1\]; expected names and arrays"),
        ({1: ones(2)}, {}, "state_dict: got the name 1; expected names and arrays"),
    ],
)
def test_what_is_no_layer_of_pytorch_is_refused(state_dict, options, message):
    with pytest.raises(InputError, match=message):
        interop.from_pytorch(state_dict, **options)


class OwnCell(LSTMCell):
    """A cell that may compute anything."""


def own_cell():
    return made(lambda: OwnCell(F, H, rngs=nnx.Rngs(0)))


class BareCell:
    """A cell that says nothing of its size."""

    def initialize_carry(self, input_shape, rngs=None):
        return jnp.zeros((*input_shape[:-1], H))


def refused_layers():
    """What neither PyTorch nor Keras has, with what is said of it."""
    lstm, other, backward = cells("lstm", [(F, H), (F, H), (F, H)])
    learnt = RNN(lstm, carry_init=jax.nn.initializers.zeros, rngs=nnx.Rngs(0))
    return {
        "layer.*: got LSTMCell; expected an RNN": lstm,
        "layer.*: got OwnCell; expected ElmanCell": RNN(own_cell()),
        "layer.*: got BareCell; expected ElmanCell": RNN(BareCell()),
        "got a layer with a learnt initial carry": Bidirectional(RNN(other), learnt),
        "got an RNN that reads in reverse": RNN(backward, reverse=True),
    }


@pytest.mark.parametrize("message", refused_layers())
@pytest.mark.parametrize("to", [interop.to_pytorch, interop.to_keras])
def test_what_others_lack_is_refused(to, message):
    with pytest.raises(InputError, match=message):
        to(refused_layers()[message])


def refused_stacks():
    """What PyTorch alone lacks."""
    one, two, wide, above = (RNN(c) for c in cells("lstm", [(F, F), (F, F), (F, H), (H, F)]))
    (gru,) = (RNN(c) for c in cells("gru", [(F, F)]))
    return {
        "got a Stack with residual or norms": Stack([one, two], residual=True),
        "got layers that differ": Stack([one, gru]),
        "layers that differ; .* directions": Stack([wide, above]),
        "layer 1: got 3 input features; expected 6": Stack(
            [Bidirectional(one, two), Bidirectional(RNN(filled(one.cell)), RNN(filled(two.cell)))]
        ),
        "layer 0: got a merge_fn of your own": Bidirectional(one, two, merge_fn=jnp.add),
        "layer 0: got 4 projected features of 4 units; expected fewer": RNN(
            made(lambda: ProjectedLSTMCell(F, 4, projection_features=4, rngs=nnx.Rngs(0)))
        ),
        "layer 0: got ResetBeforeGRUCell; .* or ProjectedLSTMCell of jaxrnn": RNN(
            cells("gru-reset-before", [(F, H)])[0]
        ),
    }


def test_a_projected_lstm_goes_to_pytorch_alone():
    (cell,) = cells("lstm-projected", [(F, H)])
    with pytest.raises(InputError, match=r"got ProjectedLSTMCell; .* or ResetBeforeGRUCell"):
        interop.to_keras(RNN(cell))
    with pytest.raises(InputError, match=r"got ProjectedLSTMCell; .* or LSTMCell of jaxrnn"):
        interop.to_nnx(cell)


@pytest.mark.parametrize("message", refused_stacks())
def test_what_pytorch_lacks_is_refused(message):
    with pytest.raises(InputError, match=message):
        interop.to_pytorch(refused_stacks()[message])


# Keras.

KERAS = {
    "simple_rnn": {},
    "simple_rnn_relu": {"activation_fn": jax.nn.relu},
    "lstm": {},
    "lstm_without_bias": {},
    "gru": {},
    "bidirectional_lstm": {},
    "bidirectional_gru": {},
    "gru_reset_before": {},
    "bidirectional_gru_reset_before": {},
}


@pytest.mark.parametrize("case", KERAS)
def test_a_layer_of_keras_gives_kerass_numbers(case, dtype):
    weights, found = recorded("keras", case, dtype)
    layer = interop.from_keras(weights.values(), **KERAS[case])
    carry, outputs = layer(found["inputs"], seq_lengths=found["lengths"], return_carry=True)
    assert_close(outputs, found["outputs"], dtype)
    states = jax.tree.leaves(carry)
    if "lstm" in case:  # (c, h) here, (h, c) there
        states = [states[i ^ 1] for i in range(len(states))]
    for i, state in enumerate(states):
        assert_close(state, found[f"state_{i}"], dtype)
    assert f"state_{len(states)}" not in found


@pytest.mark.parametrize(
    "case", ["simple_rnn", "lstm", "gru", "bidirectional_gru", "bidirectional_gru_reset_before"]
)
def test_kerass_weights_come_back_as_the_same_function(case):
    weights, _ = recorded("keras", case, np.float32)
    back = interop.to_keras(interop.from_keras(list(weights.values())))
    for ours, theirs in zip(back, weights.values(), strict=True):
        if theirs.ndim == 2 and len(theirs) == 2:  # a GRU's biases; z, r and the candidate
            np.testing.assert_array_equal(ours[:, 2 * H :], theirs[:, 2 * H :])
            ours, theirs = (biases.sum(axis=0)[: 2 * H] for biases in (ours, theirs))
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("arrangement", ["rnn", "bidirectional"])
@pytest.mark.parametrize("name", ["elman-tanh", "lstm", "gru", "gru-reset-before"])
def test_our_weights_come_back_from_keras(name, arrangement):
    layer = layers(name)[arrangement]
    assert_same(interop.from_keras(interop.to_keras(layer)), layer)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (3, "weights: got int 3; expected a list of arrays"),
        ({"kernel": ones(3, 4)}, "weights: got names and arrays; expected a list of arrays"),
        ([], "weights: got 0 arrays"),
        ([ones(3, 4)] * 5, "weights: got 5 arrays"),
        ([ones(3, 12), ones(4, 12), ones(11)], r"weights\[2\]: .*expected shape \[2, 12\]"),
        ([ones(3, 12), ones(4, 12), ones(2, 4)], r"weights\[2\]: .*expected shape \[2, 12\]"),
        ([ones(3, 16), ones(4, 16), ones(2, 16)], r"weights\[2\]: .*expected shape \[16\]"),
        ([ones(3, 8), ones(4, 8), ones(8)], r"weights\[1\]: got float32\[4, 8\]"),
        ([ones(3, 8), ones(8), ones(8)], r"weights\[1\]: got float32\[8\]"),
        ([ones(3, 12), ones(4, 16), ones(16)], r"weights\[0\]: .*expected shape \[3, 16\]"),
        ([ones(3, 16), ones(4, 16), ones(3, 16), ones(4, 15)], r"weights\[3\]: got"),
        ([ones(3, 4), Tensor()], r"weights\[1\]: got Tensor"),
    ],
)
def test_what_is_no_layer_of_keras_is_refused(weights, message):
    with pytest.raises(InputError, match=message):
        interop.from_keras(weights)


# Flax.

NNX = {
    "SimpleCell": nnx.SimpleCell,
    "GRUCell": nnx.GRUCell,
    "LSTMCell": nnx.LSTMCell,
    "OptimizedLSTMCell": nnx.OptimizedLSTMCell,
}
LINEN = {
    "SimpleCell": nn.SimpleCell,
    "GRUCell": nn.GRUCell,
    "LSTMCell": nn.LSTMCell,
    "OptimizedLSTMCell": nn.OptimizedLSTMCell,
}
OURS = {
    "SimpleCell": "elman-tanh",
    "GRUCell": "gru",
    "LSTMCell": "lstm",
    "OptimizedLSTMCell": "lstm",
}


def assert_same_steps(ours, theirs, dtype):
    draw = np.random.default_rng(1)
    xs = jnp.asarray(draw.normal(size=(T, B, F)), dtype)
    carry = jax.tree.map(
        lambda a: jnp.asarray(draw.normal(size=a.shape), dtype), ours.initialize_carry((B, F))
    )
    for actual, expected in zip(
        jax.tree.leaves(jax.lax.scan(ours, carry, xs)),
        jax.tree.leaves(jax.lax.scan(theirs, carry, xs)),
        strict=True,
    ):
        assert_close(actual, expected, dtype)


@pytest.mark.parametrize("name", NNX)
def test_a_cell_of_nnx_becomes_ours_and_ours_becomes_one(name, dtype):
    theirs = made(lambda: NNX[name](F, H, param_dtype=dtype, dtype=dtype, rngs=nnx.Rngs(0)))
    ours = interop.from_nnx(theirs)
    assert_same_steps(ours, theirs, dtype)
    back = interop.to_nnx(ours, NNX[name])
    assert type(back) is type(theirs)
    assert_same(nnx.to_pure_dict(nnx.state(back)), nnx.to_pure_dict(nnx.state(theirs)))
    assert_same_steps(ours, back, dtype)


def test_to_nnx_takes_the_faster_lstm_and_keeps_the_activation():
    (lstm,) = cells("lstm", [(F, H)])
    assert type(interop.to_nnx(lstm)) is nnx.OptimizedLSTMCell
    assert_same(interop.from_nnx(interop.to_nnx(lstm)), lstm)
    (relu,) = cells("elman-relu", [(F, H)])
    theirs = interop.to_nnx(relu)
    assert_same_steps(relu, theirs, np.dtype("float32"))
    back: Any = interop.from_nnx(theirs)
    assert back.activation_fn is jax.nn.relu


@pytest.mark.parametrize("name", LINEN)
def test_a_cell_of_linen_becomes_ours_and_ours_becomes_one(name, dtype):
    module = LINEN[name](H, param_dtype=dtype)
    (cell,) = cells(OURS[name], [(F, H)], dtype)
    x = jnp.ones((B, F), dtype)
    carry = cell.initialize_carry((B, F))
    variables = made(lambda: module.init(jax.random.key(0), carry, x))
    ours = interop.from_linen(variables)
    assert_same_steps(ours, lambda carry, x: module.apply(variables, carry, x), dtype)
    assert_same(interop.from_linen(variables["params"]), ours)

    assert_same(interop.to_linen(ours), variables)
    assert_same(interop.from_linen(interop.to_linen(cell)), cell)


def test_a_linen_simple_cell_is_told_its_activation():
    module = nn.SimpleCell(H, activation_fn=jax.nn.relu)
    variables = made(lambda: module.init(jax.random.key(0), jnp.ones((B, H)), jnp.ones((B, F))))
    ours = interop.from_linen(variables, activation_fn=jax.nn.relu)
    assert_same_steps(ours, lambda carry, x: module.apply(variables, carry, x), np.dtype("float32"))


class OwnFlaxCell(nnx.GRUCell):
    """A cell that may compute anything."""


def make_nnx(kind, **options):
    return lambda: interop.from_nnx(made(lambda: kind(F, H, rngs=nnx.Rngs(0), **options)))


def linen_gru(**changes):
    """A GRU's parameters with one of them changed, as (layer, name): array."""
    params = interop.to_linen(*cells("gru", [(F, H)]))["params"]
    return params | {name: params[name] | change for name, change in changes.items()}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (make_nnx(OwnFlaxCell), "cell: got OwnFlaxCell; expected nnx.SimpleCell"),
        (make_nnx(nnx.SimpleCell, residual=True), "cell: got a SimpleCell with residual=True"),
        (make_nnx(nnx.LSTMCell, gate_fn=jax.nn.hard_sigmoid), "cell: got other nonlinearities"),
        (make_nnx(nnx.GRUCell, activation_fn=jax.nn.relu), "cell: got other nonlinearities"),
        (lambda: interop.to_nnx(cells("gru", [(F, H)])[0]), "cell: got a recurrent_bias"),
        (
            lambda: interop.to_nnx(cells("lstm", [(F, H)])[0], nnx.GRUCell),
            "kind: got the class GRUCell; expected nnx.OptimizedLSTMCell or nnx.LSTMCell",
        ),
        (lambda: interop.to_nnx(own_cell()), "cell: got OwnCell"),
        (lambda: interop.to_linen(own_cell()), "cell: got OwnCell"),
        (lambda: interop.from_linen([1]), r"params: got \[int 1\]; expected a tree of parameters"),
        (lambda: interop.from_linen({"params": 3}), "params: got int 3; expected a tree of param"),
        (lambda: interop.from_linen({1: 2, "i": 3}), "params: got the names 1, i; expected those"),
        (lambda: interop.from_linen({"if": {}, "in": {}}), "params: got the names if, in"),
        (
            lambda: interop.from_linen(linen_gru(hz={"kernel": jnp.ones((F, H))})),
            r"params\['hz'\]\['kernel'\]: .*expected shape \[4, 4\]",
        ),
        (
            lambda: interop.from_linen(linen_gru(ir={"kernel": jnp.ones(())})),
            r"params\['ir'\]\['kernel'\]: got float32\[\]",
        ),
        (
            lambda: interop.from_linen(linen_gru(hn={"bias": jnp.ones(F)})),
            r"params\['hn'\]\['bias'\]: .*expected shape \[4\]",
        ),
        (
            lambda: interop.from_linen(linen_gru(hn={"scale": jnp.ones(H)})),
            r"params\['hn'\]: got bias, kernel, scale; expected kernel",
        ),
        (lambda: interop.from_linen({"i": ones(2), "h": ones(2)}), r"params\['i'\]: got float32"),
        (
            lambda: interop.from_linen(linen_gru(), activation_fn=jax.nn.relu),
            "activation_fn: .*None for a GRUCell",
        ),
    ],
)
def test_what_flax_and_we_do_not_share_is_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


# Files.


def stack():
    rngs = nnx.Rngs(0)
    both = Bidirectional(RNN(GRUCell(F, H, rngs=rngs)), RNN(GRUCell(F, H, rngs=rngs)))
    half = LSTMCell(2 * H, H, param_dtype=jnp.bfloat16, rngs=rngs)
    learnt = RNN(half, carry_init=jax.nn.initializers.normal(1.0), rngs=rngs)
    norms = [nnx.LayerNorm(F, rngs=rngs), nnx.RMSNorm(2 * H, rngs=rngs)]
    return Stack([both, learnt], norms=norms)


def classifier():
    rngs = nnx.Rngs(0)
    return jaxrnn.models.SequenceClassifier(LSTMCell(F, H, rngs=rngs), 2, rngs=rngs)


def ensemble():
    keys = jax.random.split(jax.random.key(0), 2)
    return jax.vmap(lambda key: GRUCell(F, H, rngs=nnx.Rngs(params=key)))(keys)


def elman(seed=0):
    return made(lambda: ElmanCell(F, H, rngs=nnx.Rngs(0)), seed)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("make", [stack, classifier, ensemble])
def test_a_module_comes_back_from_its_file(make, file):
    model = made(make)
    interop.save(file, model)
    assert_same(interop.load(file, jax.tree.map(jnp.zeros_like, model)), model)
    assert_same(interop.load(str(file), jax.eval_shape(lambda: model)), model)
    assert os.listdir(file.parent) == [file.name]


def test_a_file_names_parameters_by_their_paths_and_says_what_it_is(file):
    interop.save(file, made(stack))
    with safetensors.safe_open(file, "np") as opened:
        assert opened.metadata() == {"format": "jaxrnn", "version": "1"}
        assert set(opened.keys()) == {
            *(
                f"layers.0.{side}_rnn.cell.{weight}"
                for side in ("forward", "backward")
                for weight in ("kernel", "recurrent_kernel", "bias", "recurrent_bias")
            ),
            *(f"layers.1.cell.{weight}" for weight in ("kernel", "recurrent_kernel", "bias")),
            *("layers.1.carry.0", "layers.1.carry.1"),
            *("norms.0.scale", "norms.0.bias", "norms.1.scale"),
        }
        assert opened.get_tensor("layers.1.cell.kernel").dtype == ml_dtypes.bfloat16


def test_float64_needs_a_jax_that_keeps_it(file):
    with jax.enable_x64(True):
        (cell,) = cells("lstm", [(F, H)], jnp.float64)
        interop.save(file, cell)
        assert_same(interop.load(file, cell), cell)
    with pytest.raises(InputError, match="got float64, of which JAX keeps float32"):
        interop.load(file, cell)


def test_every_difference_between_file_and_module_is_named(file):
    (gru,) = cells("gru", [(F, H)])
    (half,) = cells("elman-tanh", [(F, H)], jnp.bfloat16)
    interop.save(file, gru)
    with pytest.raises(InputError) as error:
        interop.load(file, half)
    assert str(error.value) == (
        f"path: got {file}, where 'recurrent_bias' is unexpected; bias is float32[12], not bfloat16[4]; "
        "kernel is float32[3, 12], not bfloat16[3, 4]; recurrent_kernel is float32[4, 12], not "
        "bfloat16[4, 4]; expected the parameters of `like`"
    )
    interop.save(file, elman())
    with pytest.raises(InputError, match="where recurrent_bias is missing; bias is float32"):
        interop.load(file, gru)
    with pytest.raises(InputError, match=r"where bias is float32\[4\], not bfloat16\[4\]"):
        interop.load(file, half)


def test_names_of_a_file_are_quoted_and_few(file):
    names = {f"{i}\n\x1b[2J": ones(1) for i in range(9)} | {" " + "a" * 10_000: ones(1)}
    safetensors.numpy.save_file(names, file, {"format": "jaxrnn", "version": "1"})
    with pytest.raises(InputError, match=r"'0\\n\\x1b\[2J' is unexpected.*; and 8 more") as error:
        interop.load(file, elman())
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1_000
    assert str(error.value).count("; ") == 6


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, r"\(format none, version none\)"),
        ({"format": "pt"}, r"\(format pt, version none\)"),
        ({"format": "jaxrnn", "version": "2"}, r"\(format jaxrnn, version 2\)"),
    ],
)
def test_a_file_of_another_make_is_refused(metadata, message, file):
    safetensors.numpy.save_file({"kernel": ones(2)}, file, metadata)
    with pytest.raises(InputError, match=message):
        interop.load(file, elman())


@pytest.mark.parametrize("to", ["nowhere/model.safetensors", "."])
def test_paths_that_are_no_files_are_refused(to, tmp_path):
    with pytest.raises(InputError, match=r"path: got .*file that can be written"):
        interop.save(tmp_path / to, elman())
    with pytest.raises(InputError, match=r"path: got .*expected a safetensors file"):
        interop.load(tmp_path / to, elman())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_file_is_written_whole_or_not_at_all(error, file, monkeypatch):
    before, after = elman(), elman(seed=1)
    interop.save(file, before)

    def fail(descriptor):
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt):
        interop.save(file, after)
    assert_same(interop.load(file, before), before)
    assert os.listdir(file.parent) == [file.name]


class WithKey(nnx.Module):
    def __init__(self):
        self.key = nnx.Param(jax.random.key(0))


class WithDots(nnx.Module):
    def __init__(self):
        self.parts = nnx.Dict({"a.b": nnx.Param(jnp.ones(2)), "a": nnx.Dict(b=nnx.Param(1.0))})


class WithComplex(nnx.Module):
    def __init__(self):
        self.kernel = nnx.Param(jnp.ones(2, jnp.complex128))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (WithKey, r"module: got key, key<fry>\[\]"),
        (WithDots, "module: got two parameters of one name"),
        (WithComplex, "module: got .*complex128"),
        (lambda: {"kernel": ones(2)}, "module: got dict"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(make, message, file, x64):
    with pytest.raises(InputError, match=message):
        interop.save(file, make())
    assert not file.exists()


class Malice:
    """What touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def zipped(path, content):
    """As torch.save writes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content))


MALICIOUS = {
    "model.pt": (zipped, "a zip archive"),
    "legacy.pth": (lambda path, content: path.write_bytes(pickle.dumps(content, 2)), "a pickle"),
    "model.pkl": (lambda path, content: path.write_bytes(pickle.dumps(content)), "a pickle"),
    "text.pkl": (lambda path, content: path.write_bytes(pickle.dumps(content, 0)), "unreadable"),
    "named_otherwise.safetensors": (zipped, "a zip archive"),
    "model.npy": (lambda path, content: np.save(path, np.array([content])), "an array of NumPy's"),
    "model.npz": (lambda path, content: np.savez(path, np.array([content])), "a zip archive"),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_no_file_runs_code(name, tmp_path):
    touched = tmp_path / "touched"
    write, kind = MALICIOUS[name]
    write(tmp_path / name, Malice(touched))
    for read in (interop.from_pytorch, lambda path: interop.load(path, elman())):
        with pytest.raises(InputError, match=f"{name}, {kind}.*safetensors.torch.save_file"):
            read(tmp_path / name)
    assert not touched.exists()
    pickle.loads(pickle.dumps(Malice(touched)))  # the malice is real
    assert touched.exists()


def test_hdf5_is_named(tmp_path):
    (tmp_path / "model.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(InputError, match="an HDF5 file, as Keras writes"):
        interop.load(tmp_path / "model.h5", elman())


def test_numbers_that_numpy_lacks_are_refused(file):
    header = b'{"kernel":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}'
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(1))
    with pytest.raises(InputError, match="expected a safetensors file"):
        interop.load(file, elman())


def test_a_damaged_file_is_refused_or_read_but_never_more(file):
    """Cut off anywhere, or with any byte of the header changed."""
    model = elman()
    interop.save(file, model)
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"path: got .*; expected a safetensors file"):
            interop.load(file, model)
    for i in range(header):
        for flip in (0x01, 0x10, 0x80):
            file.write_bytes(whole[:i] + bytes([whole[i] ^ flip]) + whole[i + 1 :])
            with pytest.raises(InputError, match="path: got "):
                interop.load(file, model)


def test_a_gru_of_keras_without_biases_may_say_that_it_resets_before(x64):
    weights, _ = recorded("keras", "gru_reset_before", np.dtype("float64"))
    kernels = [weights["0"], weights["1"]]
    zero = np.zeros_like(weights["2"])
    assert_same(
        interop.from_keras(kernels, reset_after=False), interop.from_keras([*kernels, zero])
    )
    after = interop.from_keras(kernels, reset_after=True)
    assert isinstance(after.cell, GRUCell)  # pyright: ignore[reportAttributeAccessIssue]
    assert_same(after, interop.from_keras(kernels))


@pytest.mark.parametrize(
    ("shapes", "reset_after", "message"),
    [
        (
            [(F, 3 * H), (H, 3 * H), (3 * H,)],
            True,
            r"reset_after: got True, and a bias float32\[12",
        ),
        ([(F, 3 * H), (H, 3 * H), (2, 3 * H)], False, "reset_after: got False, and a bias"),
        (
            [(F, 4 * H), (H, 4 * H)],
            False,
            "reset_after: got False; expected None, for a layer that",
        ),
        ([(F, 3 * H), (H, 3 * H)], "no", "reset_after: got str 'no'; expected True or False"),
    ],
)
def test_reset_after_must_fit_the_arrays(shapes, reset_after, message):
    with pytest.raises(InputError, match=message):
        interop.from_keras([ones(*shape) for shape in shapes], reset_after=reset_after)


def test_the_same_parameters_are_the_same_bytes(tmp_path: Path):
    """The library writes the two entries of the metadata in any order: ten files would agree once in 512."""
    cell = jaxrnn.GRUCell(3, 8, rngs=nnx.Rngs(0))
    files = set()
    for i in range(10):
        interop.save(tmp_path / f"{i}.safetensors", cell)
        files.add((tmp_path / f"{i}.safetensors").read_bytes())
    assert len(files) == 1
    same = interop.load(tmp_path / "0.safetensors", cell)
    jax.tree.map(np.testing.assert_array_equal, same, cell)
