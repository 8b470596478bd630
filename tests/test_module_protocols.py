"""What Flax and Python ask of modules: to be shown, tabulated, pickled, sharded, and given keys."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import RNN, Bidirectional, ElmanCell, GRUCell, InputError, LSTMCell, Stack, models
from jaxrnn.cells import CELLS

F, H, T, B = 3, 4, 5, 2


def rngs():
    return nnx.Rngs(0)


def gru(features=F):
    return RNN(GRUCell(features, H, rngs=rngs()))


def sequences(*shape):
    return jnp.ones(shape or (T, B, F))


def tokens(steps=T):
    return jnp.ones((steps, B), jnp.int32)


def embedding(features=F):
    return models.Embedding(7, features, rngs=rngs())


def translator(attention):
    encoder, decoder = gru(), GRUCell(F + H, H, rngs=rngs())
    embeddings = embedding(), embedding()
    return models.EncoderDecoder(
        embeddings[0],
        encoder,
        embeddings[1],
        decoder,
        attention=attention,
        start=0,
        end=1,
        rngs=rngs(),
    )


def of_cell(name):
    cell = jaxrnn.make_cell(name, F, H, rngs=rngs())
    return cell, (cell.initialize_carry((B, F)), sequences(B, F))


MODULES: dict[str, Any] = {
    **{name: (lambda name=name: of_cell(name)) for name in CELLS},
    "rnn": lambda: (gru(), (sequences(),)),
    "rnn-of-flax": lambda: (RNN(nnx.LSTMCell(F, H, rngs=rngs())), (sequences(),)),
    "zoneout": lambda: (RNN(LSTMCell(F, H, rngs=rngs()), zoneout=0.2), (sequences(),)),
    "bidirectional": lambda: (Bidirectional(gru(), gru()), (sequences(),)),
    "stack": lambda: (Stack([gru(), gru(H)]), (sequences(),)),
    "classifier": lambda: (
        models.SequenceClassifier(GRUCell(F, H, rngs=rngs()), 3, rngs=rngs()),
        (sequences(),),
    ),
    "encoder-classifier": lambda: (models.EncoderClassifier(gru(), 3, rngs=rngs()), (sequences(),)),
    "labeller": lambda: (models.SequenceLabeller(gru(), 3, rngs=rngs()), (sequences(),)),
    "embedded": lambda: (
        models.Embedded(embedding(), models.SequenceLabeller(gru(), 3, rngs=rngs())),
        (tokens(),),
    ),
    "language-model": lambda: (
        models.LanguageModel(embedding(), gru(), rngs=rngs()),
        (tokens(),),
    ),
    "encoder-decoder": lambda: (translator(None), (tokens(), tokens())),
    "attention": lambda: (
        translator(models.AdditiveAttention(H, H, H, rngs=rngs())),
        (tokens(), tokens(T + 1)),
    ),
    "windowed": lambda: (models.WindowedMLP(F, H, window=2, rngs=rngs()), (sequences(),)),
    "tcn": lambda: (models.TCN(F, H, depth=2, rngs=rngs()), (sequences(),)),
    "transformer": lambda: (
        models.TransformerEncoder(F, H, depth=1, heads=2, rngs=rngs()),
        (sequences(),),
    ),
    "token-transformer": lambda: (
        models.TokenTransformer(7, H, depth=1, heads=2, rngs=rngs()),
        (tokens(),),
    ),
    "hierarchical": lambda: (
        models.HierarchicalRNN([gru(2 * F), gru(2 * H)], windows=(2, 2)),
        (sequences(),),
    ),
    "image-classifier": lambda: (
        models.ImageClassifier(models.MultiDimensionalLSTM(F, H, rngs=rngs()), 3, rngs=rngs()),
        (sequences(B, 3, 4, F),),
    ),
}
QUICK = (
    "gru",
    "lstm",
    "elman-tanh",
    "slstm",
    "orthogonal",
    "rnn",
    "bidirectional",
    "stack",
    "attention",
)


def values(out):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(out)]


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MODULES]
)
def test_a_module_is_shown_and_tabulated_and_works_as_before(name, capsys, monkeypatch):
    # A table puts descriptions in the place of the arrays in records.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    module, inputs = MODULES[name]()
    before = values(module(*inputs))
    table = nnx.tabulate(module, *inputs, console_kwargs={"force_terminal": False})
    assert type(module).__name__ in table
    nnx.display(module)
    assert type(module).__name__ in capsys.readouterr().out
    assert str(module).startswith(type(module).__name__)
    again, _ = MODULES[name]()  # the class can be used as before
    for made in (module, again):
        for after, expected in zip(values(made(*inputs)), before, strict=True):
            np.testing.assert_allclose(after, expected, rtol=1e-6)


def test_the_initialisers_of_a_cell_survive_a_table():
    cell = LSTMCell(F, H, rngs=rngs())
    nnx.tabulate(cell, cell.initialize_carry((B, F)), sequences(B, F))
    for owner in (LSTMCell, cell):
        made = LSTMCell(F, H, bias_init=owner.forget_bias(2.0), rngs=rngs())
        np.testing.assert_array_equal(made.bias[...], np.repeat([0.0, 2.0, 0.0, 0.0], H))
    np.testing.assert_array_equal(
        LSTMCell(F, H, rngs=rngs()).bias[...], np.repeat([0.0, 1.0, 0.0, 0.0], H)
    )


# Pickles.


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_is_pickled(name):
    cell, _ = of_cell(name)
    again = pickle.loads(pickle.dumps(cell))
    assert jax.tree.structure(again) == jax.tree.structure(cell)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(again), jax.tree.leaves(cell))


@pytest.mark.parametrize("function", [jnp.tanh, jax.nn.relu, jax.nn.hard_tanh, jax.nn.gelu])
def test_a_pickled_cell_has_its_function_again(function):
    layer = RNN(ElmanCell(F, H, activation_fn=function, rngs=rngs()))
    assert pickle.loads(pickle.dumps(layer)).cell.activation_fn is function


def test_a_pickled_layer_merges_as_before():
    layer = Bidirectional(gru(), gru(), merge_fn=jnp.maximum)
    assert pickle.loads(pickle.dumps(layer)).merge_fn is jnp.maximum


# Sharding noted by initialisers.


def partitioned(*names):
    init = jax.nn.initializers.normal(1.0)
    return nnx.with_partitioning(init, names)


def sharding_of(param):
    return tuple(param.get_metadata()["out_sharding"])


@pytest.fixture
def mesh():
    devices = np.asarray(jax.devices()[:1])
    with jax.set_mesh(jax.sharding.Mesh(devices, ("model",))):
        yield


@pytest.mark.parametrize("name", ["gru", "lstm-projected", "slstm", "orthogonal", "unitary"])
def test_what_partitioning_notes_is_kept(name, mesh):
    cell = jaxrnn.make_cell(name, F, H, kernel_init=partitioned(None, "model"), rngs=rngs())
    plain = jaxrnn.make_cell(name, F, H, kernel_init=jax.nn.initializers.normal(1.0), rngs=rngs())
    assert sharding_of(cell.kernel) == (None, "model")
    np.testing.assert_array_equal(cell.kernel[...], plain.kernel[...])


def test_every_initialiser_may_note_a_partitioning(mesh):
    cell = GRUCell(
        F,
        H,
        recurrent_kernel_init=partitioned(None, "model"),
        bias_init=partitioned("model"),
        rngs=rngs(),
    )
    assert sharding_of(cell.recurrent_kernel) == (None, "model")
    assert sharding_of(cell.bias) == ("model",)
    assert cell.bias.shape == (3 * H,)
    heads: Any = jaxrnn.make_cell(
        "slstm", F, H, recurrent_kernel_init=partitioned(None, "model"), rngs=rngs()
    )
    assert sharding_of(heads.recurrent_kernel) == (None, None, "model")
    layer = RNN(cell, carry_init=partitioned("model"), rngs=rngs())
    assert sharding_of(layer.carry[0]) == ("model",)


# Keys.


@pytest.mark.parametrize("key", [nnx.Rngs(0), 0, jax.random.split(jax.random.key(0), 3)])
def test_what_is_no_key_is_refused(key):
    layer = RNN(GRUCell(F, H, rngs=rngs()), dropout=0.5)
    tcn = models.TCN(F, H, depth=1, dropout=0.5, rngs=rngs())
    for module in (layer, Stack([layer]), Bidirectional(layer, gru()), tcn):
        with pytest.raises(InputError, match=r"dropout_key: got .*; expected one random key"):
            module(sequences(), dropout_key=key)


def test_old_keys_are_keys():
    layer = RNN(GRUCell(F, H, rngs=rngs()), dropout=0.5)
    outputs = layer(sequences(), dropout_key=jax.random.PRNGKey(0))
    assert np.abs(outputs - layer(sequences())).max() > 0


DROPPING = {
    "input": lambda: RNN(GRUCell(F, H, rngs=rngs()), dropout=0.5),
    "recurrent": lambda: RNN(GRUCell(F, H, rngs=rngs()), recurrent_dropout=0.5),
    "zoneout": lambda: RNN(GRUCell(F, H, rngs=rngs()), zoneout=0.5),
    "stack": lambda: Stack([gru(), RNN(GRUCell(H, H, rngs=rngs()), dropout=0.5)]),
    "tcn": lambda: models.TCN(F, H, depth=1, dropout=0.5, rngs=rngs()),
    "transformer": lambda: models.TransformerEncoder(
        F, H, depth=1, heads=2, dropout=0.5, rngs=rngs()
    ),
}


@pytest.mark.parametrize("name", DROPPING)
def test_training_without_a_key_is_warned_of(name):
    module = DROPPING[name]()

    def loss(module, xs, key=None):
        return jnp.sum(module(xs, dropout_key=key) ** 2)

    for gradient in (jax.grad(loss), jax.jit(jax.grad(loss))):
        with pytest.warns(UserWarning, match="differentiated without dropout_key"):
            gradient(module, sequences())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(module, sequences())  # evaluation
        jax.grad(loss, argnums=1)(module, sequences())  # of an evaluated network, by its inputs
        jax.grad(loss)(module, sequences(), jax.random.key(0))


# Lengths.


@pytest.mark.parametrize("length", [2**32 + 3, 2**40, -(2**40)])
def test_lengths_beyond_int32_are_refused(length):
    cell = GRUCell(F, H, rngs=rngs())
    for lengths in ([length, 1], np.array([length, 1], np.int64)):
        with pytest.raises(InputError, match=r"seq_lengths: got values from .*; expected 0 to 5"):
            jaxrnn.unroll(cell, sequences(), seq_lengths=lengths)


def test_traced_lengths_beyond_int32_do_not_wrap(x64):
    cell = ElmanCell(F, H, param_dtype=jnp.float64, rngs=rngs())
    run = jax.jit(lambda n: jaxrnn.unroll(cell, sequences(), seq_lengths=n).outputs)
    np.testing.assert_array_equal(run(jnp.array([2**32 + 3, T])), run(jnp.array([T, T])))


# No steps.


@pytest.mark.parametrize("time_major", [False, True])
def test_layers_refuse_sequences_without_steps(time_major):
    xs = jnp.ones((0, B, F) if time_major else (B, 0, F))
    for layer in (gru(), Stack([gru()]), Bidirectional(gru(), gru())):
        with pytest.raises(InputError, match=r"inputs: got .*; expected at least 1 step"):
            layer(xs, time_major=time_major)
