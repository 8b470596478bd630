"""Layers against Flax's, where Flax is right, and against loops where it is not."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import RNN, Bidirectional, InputError, Remat, Scan, Stack, models
from jaxrnn.layers.dropout import steps_mask

F, H, T, B = 3, 4, 6, 3
LENGTHS = np.array([0, 2, 6])

pytestmark = pytest.mark.usefixtures("x64")
assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def make(name="lstm", features=F, seed=0):
    return jaxrnn.make_cell(name, features, H, param_dtype=jnp.float64, rngs=nnx.Rngs(seed))


class norm(nnx.Module):  # noqa: N801
    """Flax's norms compute in float32, which strict promotion does not let near float64."""

    def __init__(self, features):
        self.scale = nnx.Param(jnp.full((features,), 1.3))

    def __call__(self, xs):
        xs = jax.nn.standardize(xs, axis=-1)
        return xs * jnp.broadcast_to(self.scale[...], xs.shape)


def flax_rnn(cell: Any, **options) -> Any:
    """Flax's layer around a cell of ours, which is not of Flax's base class and need not be."""
    return nnx.RNN(cell, **options)


@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["lstm", "gru", "elman-tanh"])
def test_rnn_gives_what_flax_gives(name, reverse, time_major):
    cell = make(name)
    xs = draw(T, B, F) if time_major else draw(B, T, F)
    lengths = jnp.array([1, 2, 6])  # Flax's carry is wrong at length 0
    ours = RNN(cell, time_major=time_major, reverse=reverse, return_carry=True)
    theirs = flax_rnn(
        cell, time_major=time_major, reverse=reverse, keep_order=True, return_carry=True
    )
    carry, outputs = ours(xs, seq_lengths=lengths)
    expected_carry, expected = theirs(xs, seq_lengths=lengths)
    jax.tree.map(assert_close, carry, expected_carry)
    valid = np.arange(T) < np.asarray(lengths)[:, None]
    valid = (valid.T if time_major else valid)[..., None]
    assert_close(outputs, np.where(valid, expected, 0))


@pytest.mark.parametrize("flax_cell", [nnx.LSTMCell, nnx.GRUCell])
def test_rnn_takes_flax_cells(flax_cell):
    cell = flax_cell(F, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    assert_close(RNN(cell)(draw(B, T, F)), nnx.RNN(cell)(draw(B, T, F)))


def test_bidirectional_gives_what_flax_gives():
    ahead, back = make("lstm", seed=1), make("lstm", seed=2)
    lengths = jnp.array([1, 2, 6])
    ours = Bidirectional(RNN(ahead), RNN(back), return_carry=True)
    theirs = nnx.Bidirectional(flax_rnn(ahead), flax_rnn(back), return_carry=True)
    carry, outputs = ours(draw(B, T, F), seq_lengths=lengths)
    expected_carry, expected = theirs(draw(B, T, F), seq_lengths=lengths)
    jax.tree.map(assert_close, carry, expected_carry)
    valid = (np.arange(T) < np.asarray(lengths)[:, None])[..., None]
    assert_close(outputs, np.where(valid, expected, 0))


def test_bidirectional_merges_as_it_is_told():
    layer = Bidirectional(RNN(make(seed=1)), RNN(make(seed=2)), merge_fn=jnp.add)
    ahead = RNN(layer.forward_rnn.cell)(draw(B, T, F))
    back = RNN(layer.backward_rnn.cell, reverse=True)(draw(B, T, F))
    assert_close(layer(draw(B, T, F)), ahead + back)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("normed", [False, True])
def test_a_stack_is_its_layers_one_after_another(residual, normed):
    layers = [RNN(make("gru", features=H, seed=i)) for i in range(3)]
    norms = [norm(H) for _ in layers]
    stack = Stack(layers, residual=residual, norms=norms if normed else None, return_carry=True)
    carries, outputs = stack(draw(B, T, H), seq_lengths=LENGTHS)

    valid = (np.arange(T) < LENGTHS[:, None])[..., None]
    xs = jnp.where(valid, draw(B, T, H), 0)
    for i, layer in enumerate(layers):
        below = norms[i](xs) if normed else xs
        carry, above = layer(below, seq_lengths=LENGTHS, return_carry=True)
        assert_close(carries[i], carry)
        xs = jnp.where(valid, xs + above, 0) if residual else above
    assert_close(outputs, xs)
    assert not np.any(np.asarray(outputs)[~np.broadcast_to(valid, outputs.shape)])


@pytest.mark.parametrize("layer", ["rnn", "bidirectional", "stack"])
def test_padding_changes_neither_values_nor_gradients(layer):
    pair = Bidirectional(RNN(make(seed=1)), RNN(make(seed=2)))
    stack = Stack(
        [RNN(make("gru", features=F, seed=1)), RNN(make("gru", features=H, seed=2))],
        norms=[norm(n) for n in (F, H)],
    )
    chosen: Any = {"rnn": RNN(make()), "bidirectional": pair, "stack": stack}[layer]
    valid = (np.arange(T) < LENGTHS[:, None])[..., None]
    clean, spoilt = draw(B, T, F), jnp.where(valid, draw(B, T, F), np.nan)

    @jax.jit
    def gradients(layer, xs):
        return jax.grad(lambda m, xs: jnp.sum(m(xs, seq_lengths=LENGTHS) ** 2), (0, 1))(layer, xs)

    jax.tree.map(np.testing.assert_array_equal, gradients(chosen, spoilt), gradients(chosen, clean))


def test_options_pass_through_every_layer():
    mask = np.random.default_rng(1).random((B, T)) < 0.7
    resets = np.random.default_rng(2).random((B, T)) < 0.3
    xs = draw(B, T, F)
    for layer in (
        RNN(make()),
        Stack([RNN(make())]),
        Stack([Bidirectional(RNN(make(seed=1)), RNN(make(seed=2)))]),
    ):
        batch_first = layer(xs, mask=mask, resets=resets, seq_lengths=LENGTHS)
        time_first = layer(
            jnp.swapaxes(xs, 0, 1),
            mask=mask.T,
            resets=resets.T,
            seq_lengths=LENGTHS,
            time_major=True,
        )
        assert_close(batch_first, jnp.swapaxes(time_first, 0, 1))
        each: list[dict[str, Any]] = [{"mask": mask}, {"resets": resets}, {"seq_lengths": LENGTHS}]
        for option in each:
            assert np.abs(np.asarray(layer(xs, **option) - layer(xs))).max() > 1e-3
    done = jaxrnn.unroll(
        make(), jnp.swapaxes(xs, 0, 1), mask=mask.T, resets=resets.T, seq_lengths=LENGTHS
    )
    outputs = RNN(make())(xs, mask=mask, resets=resets, seq_lengths=LENGTHS)
    assert_close(outputs, jnp.swapaxes(done.outputs, 0, 1))


def test_several_batch_axes_and_all_carries():
    layer = RNN(make(), return_carry=True)
    carry, outputs = layer(draw(2, 3, T, F), seq_lengths=np.array([[0, 1, 2], [4, 5, 6]]))
    assert outputs.shape == (2, 3, T, H)
    assert carry[0].shape == (2, 3, H)
    done = layer.unrolled(jnp.moveaxis(draw(2, 3, T, F), 2, 0))
    assert done.carries[0].shape == (T, 2, 3, H)


def test_every_layer_may_have_a_method_of_its_own():
    layers = [
        RNN(make("gru", features=H, seed=i), method=m)
        for i, m in enumerate((None, Scan(), Remat()))
    ]
    plain = [RNN(layer.cell) for layer in layers]
    assert_close(Stack(layers)(draw(B, T, H)), Stack(plain)(draw(B, T, H)))
    done = layers[2].unrolled(draw(T, B, H))
    assert isinstance(done.method, Remat)


def test_a_learnt_carry_starts_every_sequence_and_has_a_gradient():
    layer = RNN(make(), carry_init=jax.nn.initializers.normal(1.0), rngs=nnx.Rngs(3))
    c, h = (vector[...] for vector in layer.carry)
    assert c.shape == h.shape == (H,)
    start = tuple(jnp.broadcast_to(v, (B, H)) for v in (c, h))
    xs = draw(B, T, F)
    assert_close(layer(xs), RNN(layer.cell)(xs, initial_carry=start))
    by_layer = jax.grad(lambda layer: jnp.sum(layer(xs) ** 2))(layer)
    by_start = jax.grad(lambda start: jnp.sum(RNN(layer.cell)(xs, initial_carry=start) ** 2))(start)
    for ours, theirs in zip(by_layer.carry, by_start, strict=True):
        assert_close(ours[...], theirs.sum(axis=0))


@pytest.mark.parametrize(("name", "learnt"), [("slstm", 1), ("clockwork", 1), ("cornn", 2)])
def test_a_learnt_carry_leaves_clocks_and_normalisers_alone(name, learnt):
    cell = jaxrnn.make_cell(name, F, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    layer = RNN(cell, carry_init=jax.nn.initializers.normal(1.0), rngs=nnx.Rngs(1))
    assert len(layer.carry) == learnt
    carry, _ = layer(draw(B, 4, F), return_carry=True)
    untouched, _ = RNN(cell)(draw(B, 4, F), return_carry=True)
    if name == "clockwork":
        assert_close(carry[0], untouched[0])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(carry))


def test_a_cell_whose_carry_is_its_own_has_none_to_learn():
    cell = jaxrnn.make_cell("mlstm", F, H, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=r"carry_init: .*a MLSTMCell starts its own carry"):
        RNN(cell, carry_init=jax.nn.initializers.normal(1.0), rngs=nnx.Rngs(1))


def test_layers_train_as_plain_trees():
    """`jax.grad`, `jit`, `vmap` and optax take a stack as it is."""
    layers = [RNN(make("gru", features=n, seed=n), dropout=0.1) for n in (F, H)]
    norms = [norm(n) for n in (F, H)]
    stack = Stack(layers, norms=norms)
    optimizer = optax.sgd(1.0)
    xs, key = draw(B, T, F), jax.random.key(0)

    def loss(stack: Any, key=None):
        return jnp.mean((stack(xs, dropout_key=key) - 0.5) ** 2)

    @jax.jit
    def step(stack, state, key):
        updates, state = optimizer.update(jax.grad(loss)(stack, key), state)
        return optax.apply_updates(stack, updates), state

    params: Any = stack
    state, first = optimizer.init(params), loss(stack)
    for i in range(20):
        stack, state = step(stack, state, jax.random.fold_in(key, i))
    assert loss(stack) < 0.8 * first


# Variational dropout.


def test_without_a_key_nothing_is_dropped():
    cell, xs = make(), draw(B, T, F)
    layer = RNN(cell, dropout=0.5, recurrent_dropout=0.5)
    assert_close(layer(xs), RNN(cell)(xs))


@pytest.mark.parametrize("method", [None, Scan(), Remat()])
def test_recurrent_dropout_is_one_mask_at_every_step(method):
    cell, xs, key = make(), draw(B, T, F), jax.random.key(1)
    layer = RNN(cell, recurrent_dropout=0.5, method=method, return_carry=True)
    carry, outputs = layer(xs, dropout_key=key, seq_lengths=LENGTHS)
    assert jax.tree.structure(carry) == jax.tree.structure(cell.initialize_carry((B, F)))

    _, units = jax.random.split(key)
    drawn = [
        2.0 * jax.random.bernoulli(k, 0.5, (B, H)).astype(float) for k in jax.random.split(units, 2)
    ]
    c, h = cell.initialize_carry((B, F))
    for t in range(T):
        valid = (t < LENGTHS)[:, None]
        pull = cell.mix((c, h * drawn[1]))
        moved = cell.update((c, h), cell.project(xs[:, t]), pull)
        c, h = (jnp.where(valid, new, old) for new, old in zip(moved, (c, h), strict=True))
        assert_close(outputs[:, t], np.where(valid, h, 0))
    assert 0 < drawn[1].mean() < 2


def test_input_dropout_is_one_mask_at_every_step():
    cell, xs, key = make(), draw(B, T, F), jax.random.key(1)
    layer = RNN(cell, dropout=0.4)
    ratio = jax.grad(lambda xs: jnp.sum(layer(xs, dropout_key=key)))(xs)
    dropped = np.all(np.asarray(ratio) == 0, axis=1)
    assert np.any(dropped)
    assert not np.all(dropped)
    np.testing.assert_array_equal(np.any(np.asarray(ratio) == 0, axis=1), dropped)
    kept = RNN(cell)(jnp.where(dropped[:, None], 0, xs) / 0.6)
    assert_close(layer(xs, dropout_key=key), kept)


def test_dropout_keeps_the_mean_and_other_keys_drop_others():
    ones = jnp.ones((1, 1, 10_000))
    cell = jaxrnn.ElmanCell(10_000, 1, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    cell = jax.tree.map(jnp.zeros_like, cell)
    cell.kernel[...] = jnp.full((10_000, 1), 1e-6)
    layer = RNN(cell, dropout=0.5)
    seen = [float(layer(ones, dropout_key=jax.random.key(i))[0, 0, 0]) for i in range(3)]
    assert len(set(seen)) == 3
    np.testing.assert_allclose(np.arctanh(seen), 0.01, rtol=0.05)  # 5 standard errors of 1 %


# Refusals.


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: RNN(lambda c, x: (c, x)), "cell: got function"),
        (lambda: RNN(make(), dropout=1.0), "dropout: got 1.0"),
        (
            lambda: RNN(nnx.GRUCell(F, H, rngs=nnx.Rngs(0)), recurrent_dropout=0.1),
            "recurrent_dropout: got 0.1",
        ),
        (lambda: RNN(make(), carry_init=jax.nn.initializers.zeros), "rngs: got None"),
        (lambda: Stack([]), r"layers: got \[\]; expected a list"),
        (lambda: Stack([RNN(make())] * 2), "layers: got one layer twice"),
        (lambda: Stack([RNN(make())], norms=[]), "norms: got 0 of them; expected 1"),
        (lambda: RNN(make())(jnp.ones(F)), "inputs: got float64"),
        (
            lambda: RNN(make())(draw(B, T, F), mask=jnp.ones(T, bool)),
            r"mask: got bool\[6\]; expected shape \[3, 6\], \[\*B, T\]",
        ),
        (
            lambda: RNN(make(), time_major=True)(draw(T, B, F), resets=jnp.ones((B, T), bool)),
            r"resets: got bool\[3, 6\]; expected shape \[6, 3\], \[T, \*B\]",
        ),
        (
            lambda: Stack([RNN(make())])(draw(B, T, F), mask=jnp.ones(T, bool)),
            r"mask: got bool\[6\]",
        ),
        (
            lambda: Stack([RNN(make())])(draw(B, T, F), initial_carry=[]),
            r"initial_carry: got \[\]; expected one carry",
        ),
        (
            lambda: Stack([RNN(make())], residual=True)(draw(B, T, F)),
            r"residual: got layer 0 from float64\[3, 6, 3\] to float64\[3, 6, 4\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(build, name):
    with pytest.raises(InputError, match=name):
        build()


def test_both_directions_need_weights_of_their_own():
    layer = RNN(make())
    for other in (layer, RNN(layer.cell)):
        with pytest.raises(InputError, match="backward_rnn"):
            Bidirectional(layer, other)


# Zoneout, and masks of every step.


def _double(name: str, features: int, units: int) -> Any:
    return jaxrnn.make_cell(name, features, units, param_dtype=jnp.float64, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_zoneout_in_evaluation_takes_the_expected_state(name: str):
    layer = RNN(_double(name, 3, 5), zoneout=0.3, time_major=True)
    xs = jax.random.normal(jax.random.key(0), (7, 4, 3))
    found = layer.unrolled(xs)
    carry = layer.cell.initialize_carry((4, 3))
    for t in range(7):
        after, _ = layer.cell(carry, xs[t])
        carry = jax.tree.map(lambda old, new: 0.3 * old + 0.7 * new, carry, after)
        states = jax.tree.map(lambda leaf, t=t: leaf[t], found.carries)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), states, carry)
        np.testing.assert_allclose(found.outputs[t], jax.tree.leaves(carry)[-1], atol=1e-6)


def test_zoneout_in_training_keeps_a_share_of_the_units_as_they_are():
    layer = RNN(_double("gru", 3, 50), zoneout=0.3)
    xs = jax.random.normal(jax.random.key(0), (20, 40, 3))
    states = np.asarray(layer.unrolled(xs, dropout_key=jax.random.key(1)).carries)
    stays = states[1:] == states[:-1]
    assert abs(stays.mean() - 0.3) < 0.01
    assert abs(stays.std(axis=0).mean() - np.sqrt(0.3 * 0.7)) < 0.03  # other units at every step
    for t in range(1, 20):
        after, _ = layer.cell(jnp.asarray(states[t - 1]), xs[t])
        moved = np.where(stays[t - 1], states[t - 1], after)
        np.testing.assert_allclose(states[t], moved, atol=1e-6)


def test_without_variational_masks_every_step_drops_others():
    cell = _double("elman-tanh", 4, 4)
    cell.kernel[...] = jnp.eye(4)
    cell.recurrent_kernel[...] = jnp.zeros((4, 4))
    xs = jnp.ones((200, 3, 4)) * 0.1
    for variational in (True, False):
        layer = RNN(cell, dropout=0.25, variational=variational)
        outputs = layer.unrolled(xs, dropout_key=jax.random.key(0)).outputs
        dropped = np.asarray(outputs) == 0
        assert abs(dropped.mean() - 0.25) < (0.3 if variational else 0.02)
        assert (dropped == dropped[:1]).all() == variational
    np.testing.assert_allclose(outputs[~dropped], np.tanh(0.1 / 0.75), rtol=1e-5)


def test_recurrent_masks_of_every_step_are_what_the_recurrent_weights_see():
    cell = _double("gru", 3, 6)
    layer = RNN(cell, recurrent_dropout=0.4, variational=False)
    xs = jax.random.normal(jax.random.key(0), (9, 2, 3))
    key = jax.random.key(5)
    found = layer.unrolled(xs, dropout_key=key)
    masks = steps_mask(jax.random.split(key)[1], 0.4, jnp.zeros((2, 6)), 9)
    assert set(np.unique(masks).round(4)) == {0.0, round(1 / 0.6, 4)}
    carry = jnp.zeros((2, 6))
    for t in range(9):
        carry = cell.update(carry, cell.project(xs[t]), cell.mix(carry * masks[t]))
        np.testing.assert_allclose(found.carries[t], carry, atol=1e-6)


def test_zoneout_goes_with_lengths_and_gradients():
    layer = RNN(_double("lstm", 3, 5), zoneout=0.2)
    xs = jax.random.normal(jax.random.key(0), (7, 3, 3))
    lengths = jnp.array([7, 3, 0])

    def loss(layer, xs):
        done = layer.unrolled(xs, seq_lengths=lengths, dropout_key=jax.random.key(1))
        return (done.outputs**2).sum()

    value, (d_layer, d_xs) = jax.value_and_grad(loss, argnums=(0, 1))(layer, xs)
    assert np.isfinite(value)
    assert (np.asarray(d_xs)[3:, 1] == 0).all()
    assert (np.asarray(d_xs)[:, 2] == 0).all()
    assert np.abs(d_layer.cell.kernel[...]).sum() > 0


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"zoneout": 1.0}, "zoneout: got 1.0; expected a rate"),
        ({"zoneout": 0.1, "recurrent_dropout": 0.1}, "zoneout: got 0.1; expected 0 with rec"),
    ],
)
def test_rates_that_do_not_fit_are_refused(rates, message: str):
    with pytest.raises(InputError, match=message):
        RNN(_double("gru", 3, 4), **rates)
    with pytest.raises(
        InputError, match=r"zoneout: got 0\.1; expected 0 for a cell that is not split"
    ):
        RNN(_double("lem", 3, 4), zoneout=0.1)


def rnns(rngs, *sizes):
    learnt = {"carry_init": nnx.initializers.normal(), "rngs": rngs}
    return [RNN(jaxrnn.GRUCell(size, F, rngs=rngs), **learnt) for size in sizes]


MODULES = {
    "stack": lambda rngs: Stack(
        rnns(rngs, F, F), norms=[nnx.LayerNorm(F, rngs=rngs) for _ in range(2)]
    ),
    "bidirectional": lambda rngs: Bidirectional(*rnns(rngs, F, F)),
    "hierarchical": lambda rngs: models.HierarchicalRNN(rnns(rngs, F, 2 * F), [1, 2]),
    "tcn": lambda rngs: models.TCN(F, 4, depth=2, rngs=rngs),
    "windowed": lambda rngs: models.WindowedMLP(F, 4, window=2, depth=2, rngs=rngs),
    "transformer": lambda rngs: models.TransformerEncoder(F, 4, depth=2, heads=2, rngs=rngs),
}


@pytest.mark.parametrize("name", MODULES)
def test_orbax_saves_and_restores_the_module_itself(name, tmp_path):
    module = MODULES[name](nnx.Rngs(0))
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "module", module)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "module", jax.tree.map(jnp.zeros_like, module))
    assert jax.tree.structure(restored) == jax.tree.structure(module)
    jax.tree.map(np.testing.assert_array_equal, restored, module)
