"""Attention, encoder–decoders and their searches, against NumPy loops and brute force over all targets."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxrnn import RNN, Bidirectional, GRUCell, InputError, LSTMCell, make_cell
from jaxrnn.models import (
    AdditiveAttention,
    DotAttention,
    Embedding,
    EncoderDecoder,
    beam_search,
    greedy_search,
)
from tests.oracles import numpy_models
from tests.zoo import table_of_cells

F, H, V, L, T, B = 3, 2, 4, 5, 4, 3
Y = 2 * H
START, END = 0, 1
LENGTHS, WRITTEN = np.array([5, 1, 3]), np.array([4, 2, 0])
KINDS = ("fixed", "additive", "dot")
SLOW = pytest.mark.slow
# Where the kinds differ in what the decoder reads and in nothing that the test asks about.
one_kind = pytest.mark.parametrize(
    "kind", ["additive", *(pytest.param(kind, marks=SLOW) for kind in ("fixed", "dot"))]
)

assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)


def draw_tokens(*shape, seed=0, tokens=V):
    return jnp.asarray(np.random.default_rng(seed).integers(0, tokens, shape))


def make(kind="additive", *, dtype: Any = jnp.float64, seed=0, cell: Any = GRUCell):
    """A model with wide tables and a readout whose logits are far apart."""
    rngs, options = nnx.Rngs(seed), {"param_dtype": dtype}
    wide = jax.nn.initializers.normal(1.0)
    source, target = (
        Embedding(V, F, table_init=wide, rngs=rngs, param_dtype=dtype) for _ in range(2)
    )
    ahead, back = (RNN(GRUCell(F, H, rngs=rngs, **options)) for _ in range(2))
    attention = {
        "fixed": lambda: None,
        "additive": lambda: AdditiveAttention(Y, Y, 6, rngs=rngs, param_dtype=dtype),
        "dot": lambda: DotAttention(Y),
    }[kind]()
    model = EncoderDecoder(
        source,
        Bidirectional(ahead, back),
        target,
        cell(F + Y, Y, rngs=rngs, **options),
        attention=attention,
        start=START,
        end=END,
        rngs=rngs,
    )
    assert model.readout.kernel is not None
    model.readout.kernel[...] = 3 * model.readout.kernel[...]
    return model


# Attention.


@pytest.mark.parametrize("kind", ["additive", "dot"])
@pytest.mark.usefixtures("x64")
def test_a_context_is_the_weighted_mean_of_the_valid_values(kind):
    rng = np.random.default_rng(0)
    values, query = rng.normal(size=(L, B, 3)), rng.normal(size=(B, 3))
    chosen: Any = {
        "additive": AdditiveAttention(3, 3, 6, param_dtype=jnp.float64, rngs=nnx.Rngs(0)),
        "dot": DotAttention(3),
    }[kind]
    valid = rng.random((L, B)) < 0.6
    valid[:, 2] = False
    memory = chosen.memory(jnp.where(valid[..., None], values, jnp.nan), jnp.asarray(valid))
    context, weights = chosen(jnp.asarray(query), memory)
    for b in range(B):
        scores = np.array([score_by_hand(chosen, query[b], value) for value in values[:, b]])
        raw = np.exp(scores) * valid[:, b]
        expected = raw / raw.sum() if valid[:, b].any() else raw
        assert_close(weights[:, b], expected)
        assert_close(context[b], expected @ values[:, b])
    assert not np.any(np.asarray(weights)[~valid])


def score_by_hand(attention, query, value):
    if isinstance(attention, DotAttention):
        return sum(q * v for q, v in zip(query, value, strict=True))
    w, u, v = (
        np.asarray(kernel[...])
        for kernel in (attention.query_kernel, attention.value_kernel, attention.score_kernel)
    )
    return sum(v[a, 0] * np.tanh(w[:, a] @ query + u[:, a] @ value) for a in range(v.shape[0]))


def test_scores_too_large_for_exp_make_no_nan(dtype):
    attention = DotAttention(1)
    values = jnp.asarray([[1e4], [2e4], [-3e4]], dtype)
    for valid in (None, jnp.array([True, False, True])):

        def first(query, valid=valid):
            return attention(query, attention.memory(values, valid))[1][0]

        assert first(jnp.ones(1, dtype)) == (0 if valid is None else 1)
        assert np.isfinite(jax.grad(first)(jnp.ones(1, dtype))).all()


def test_a_source_without_steps_has_no_gradient_of_nan(dtype):
    attention = AdditiveAttention(2, 2, 3, param_dtype=dtype, rngs=nnx.Rngs(0))
    values, nothing = jnp.ones((L, 2), dtype), jnp.zeros(L, bool)

    def total(attention, values):
        context, weights = attention(jnp.ones(2, dtype), attention.memory(values, nothing))
        return context.sum() + weights.sum()

    value, gradient = jax.value_and_grad(total, (0, 1))(attention, values)
    assert value == 0
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(gradient))


# Teacher forcing.


@pytest.mark.parametrize(
    ("kind", "cell"),
    [
        *((kind, GRUCell) for kind in KINDS),
        ("additive", LSTMCell),
        *(pytest.param(kind, LSTMCell, marks=SLOW) for kind in ("fixed", "dot")),
    ],
)
@pytest.mark.usefixtures("x64")
def test_every_step_is_that_of_the_equations(kind, cell):
    model = make(kind, cell=cell)
    sources, targets = draw_tokens(L, B), draw_tokens(T, B, seed=1)
    done = model(sources, targets, seq_lengths=LENGTHS, target_lengths=WRITTEN)
    losses = []
    for b, (read, written) in enumerate(zip(LENGTHS, WRITTEN, strict=True)):
        source, target = np.asarray(sources)[:read, b], np.asarray(targets)[:, b]
        expected = numpy_models.forced(model, source, target)
        assert_close(done.logits[:written, b], expected.logits[:written])
        assert_close(done.contexts[:written, b], expected.contexts[:written])
        if done.weights is not None:
            assert_close(done.weights[:written, :read, b], expected.weights[:written])
            assert not np.any(done.weights[:, read:, b])
        for part in (done.logits, done.contexts):
            assert not np.any(part[written:, b])
        scores = numpy_models.log_softmax(expected.logits)
        losses += [-scores[t, target[t]] for t in range(written)]
    loss = model.loss(sources, targets, seq_lengths=LENGTHS, target_lengths=WRITTEN)
    assert_close(loss, np.mean(losses))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("x64")
def test_padding_changes_neither_values_nor_gradients(kind):
    model = make(kind)
    lengths = np.array([5, 0, 3])
    read, written = np.arange(L)[:, None] < lengths, np.arange(T)[:, None] < WRITTEN

    @jax.jit
    def gradients(model, sources, targets):
        loss = functools.partial(EncoderDecoder.loss, seq_lengths=lengths, target_lengths=WRITTEN)
        return jax.value_and_grad(loss)(model, sources, targets)

    plain = gradients(model, draw_tokens(L, B), draw_tokens(T, B, seed=1))
    other = gradients(
        model,
        jnp.where(read, draw_tokens(L, B), draw_tokens(L, B, seed=2)),
        jnp.where(written, draw_tokens(T, B, seed=1), draw_tokens(T, B, seed=3)),
    )
    jax.tree.map(np.testing.assert_array_equal, plain, other)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(plain))


@pytest.mark.parametrize("compile", [jax.jit, pytest.param(lambda f: f, marks=SLOW)])
def test_padding_may_hold_what_is_no_token(compile):
    model = make("additive", dtype=jnp.float32)
    read, written = np.arange(L)[:, None] < LENGTHS, np.arange(T)[:, None] < WRITTEN

    @compile
    def gradients(model, sources, targets):
        loss = functools.partial(EncoderDecoder.loss, seq_lengths=LENGTHS, target_lengths=WRITTEN)
        return jax.value_and_grad(loss)(model, sources, targets)

    def padded(token):
        sources, targets = draw_tokens(L, B), draw_tokens(T, B, seed=1)
        return jnp.where(read, sources, token), jnp.where(written, targets, token)

    plain = gradients(model, *padded(0))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(plain))
    for token in (999, -400):
        jax.tree.map(np.testing.assert_array_equal, gradients(model, *padded(token)), plain)


@pytest.mark.slow
def test_a_start_token_that_the_targets_own_dtype_cannot_hold_is_held():
    rngs = nnx.Rngs(0)
    model = build(target=Embedding(257, F, rngs=rngs), start=256)
    targets = draw_tokens(T, B)
    narrow, wide = (model(SOURCES, targets.astype(kind)) for kind in (jnp.int8, jnp.int32))
    np.testing.assert_array_equal(narrow.logits, wide.logits)


@one_kind
def test_of_an_empty_target_the_loss_is_zero(kind):
    model = make(kind, dtype=jnp.float32)
    value, gradient = jax.value_and_grad(
        lambda model: model.loss(draw_tokens(L, B), draw_tokens(0, B))
    )(model)
    assert value == 0
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("x64")
def test_no_logit_knows_of_its_own_token_or_later_ones(kind):
    model, sources, targets = make(kind), draw_tokens(L, B), draw_tokens(T, B, seed=1)
    logits = model(sources, targets).logits
    for t in range(T - 1):
        changed = model(sources, targets.at[t:].set((targets[t:] + 1) % V)).logits
        np.testing.assert_array_equal(changed[: t + 1], logits[: t + 1])
        assert np.abs(changed[t + 1] - logits[t + 1]).max() > 1e-6


@one_kind
@pytest.mark.slow
def test_a_model_of_either_precision_stays_in_it(kind, dtype):
    model, sources, targets = make(kind, dtype=dtype), draw_tokens(L, B), draw_tokens(T, B)
    gradient = jax.jit(jax.grad(lambda model: model.loss(sources, targets)))(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {dtype}
    assert all(np.abs(np.asarray(leaf)).max() > 0 for leaf in jax.tree.leaves(gradient))
    assert greedy_search(model, sources, 3).log_probabilities.dtype == dtype


UNBOUNDED = {
    *("elman-relu", "irnn", "lstm-projected", "indrnn", "orthogonal", "unitary", "antisymmetric"),
    *("lipschitz", "cornn", "mlstm", "sru", "mingru", "minlstm", "lru", "s5", "rg-lru"),
}

OWN = {"slstm": ("c", "n", "m"), "mlstm": ("C", "n", "m"), "clockwork": ("clock",)}


@table_of_cells("slstm", "clockwork", "mlstm")
def test_every_cell_starts_from_a_carry_that_it_could_have_written(name):
    """Whatever the encoder says, outputs stay in the cell's range."""
    rngs = nnx.Rngs(0)
    model = build(cell=make_cell(name, F + H, 5, rngs=rngs))
    first: Any = model.first_carry
    if first is not None:  # an encoder's word that is loud, and pushes both ways
        first.bias[...] = 3 * jax.random.normal(jax.random.key(0), first.bias.shape)
    memory, (carry, context) = model.encode(draw_tokens(L, 64))
    own = model.cell.initialize_carry((64, F + H))
    for leaf_name, leaf, start in zip(
        model.cell.carry_names, jax.tree.leaves(carry), jax.tree.leaves(own), strict=True
    ):
        assert bool((leaf == start).all()) == (leaf_name in OWN.get(name, ()))
    for _ in range(4):
        (carry, context), written = model.write(memory, (carry, context), jnp.zeros((64, F)))
        assert np.isfinite(written.output).all()
        assert name in UNBOUNDED or np.abs(written.output).max() <= 1


@pytest.mark.usefixtures("x64")
def test_contexts_differ_between_steps_with_attention_alone():
    sources, targets = draw_tokens(L, B), draw_tokens(T, B, seed=1)
    spread = {
        kind: float(make(kind)(sources, targets).contexts.var(axis=0).max()) for kind in KINDS
    }
    assert spread["fixed"] == 0
    assert min(spread["additive"], spread["dot"]) > 1e-6


# Search.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("x64")
def test_greedy_takes_the_argmax_step_by_step(kind):
    model, sources = make(kind), draw_tokens(L, 8)
    lengths = np.array([5, 4, 3, 2, 1, 5, 4, 3])
    found = greedy_search(model, sources, 6, seq_lengths=lengths)
    for b, length in enumerate(lengths):
        decoder = numpy_models.Decoder(model, np.asarray(sources)[:length, b])
        token, written, total = START, [], 0.0
        while len(written) < 6 and END not in written:
            scores = numpy_models.log_softmax(decoder(token))
            token = int(np.argmax(scores))
            written.append(token)
            total += scores[token]
        assert found.lengths[b] == len(written)
        np.testing.assert_array_equal(found.tokens[: len(written), b], written)
        assert np.all(found.tokens[len(written) :, b] == END)
        assert_close(found.log_probabilities[b], total)
    assert len(np.unique(found.lengths)) > 1  # some end early, some do not


def every_target(steps):
    """All targets: those that end, each with its end token, and those of `steps` tokens that do not."""
    others = [token for token in range(V) if token != END]
    for length in range(steps):
        for start in itertools.product(others, repeat=length):
            yield (*start, END)
    yield from itertools.product(others, repeat=steps)


@pytest.mark.parametrize(
    ("kind", "length_penalty"),
    [
        *((kind, 1.0) for kind in KINDS),
        ("additive", 0.0),
        *(pytest.param(kind, 0.0, marks=SLOW) for kind in ("fixed", "dot")),
    ],
)
@pytest.mark.usefixtures("x64")
def test_a_beam_that_holds_every_target_finds_the_best_of_all(kind, length_penalty):
    model, sources, steps = make(kind), draw_tokens(L, B), 3
    found = beam_search(
        model, sources, steps, width=45, length_penalty=length_penalty, seq_lengths=LENGTHS
    )
    for b, length in enumerate(LENGTHS):
        source = np.asarray(sources)[:length, b]
        probability = {
            target: numpy_models.log_probability(model, source, np.array(target))
            for target in every_target(steps)
        }
        assert abs(sum(np.exp(p) for p in probability.values()) - 1) < 1e-12
        ranked = sorted(probability, key=lambda t: -probability[t] / len(t) ** length_penalty)
        assert len(ranked) == 40
        for k, target in enumerate(ranked):
            assert found.lengths[b, k] == len(target)
            np.testing.assert_array_equal(found.tokens[: len(target), b, k], target)
            assert_close(found.log_probabilities[b, k], probability[target])
        assert np.all(np.isneginf(found.log_probabilities[b, 40:]))


@pytest.mark.parametrize("kind", [pytest.param("fixed", marks=SLOW), "dot"])
@pytest.mark.usefixtures("x64")
@pytest.mark.slow
def test_a_beam_of_one_is_greedy_over_any_batch_axes(kind):
    model, sources = make(kind, cell=LSTMCell), draw_tokens(L, 2, 4)
    lengths = np.array([[5, 4, 3, 2], [1, 5, 0, 3]])
    greedy = greedy_search(model, sources, 6, seq_lengths=lengths)
    beam = beam_search(model, sources, 6, width=1, seq_lengths=lengths)
    np.testing.assert_array_equal(beam.tokens[..., 0], greedy.tokens)
    np.testing.assert_array_equal(beam.lengths[..., 0], greedy.lengths)
    assert_close(beam.log_probabilities[..., 0], greedy.log_probabilities)
    single = beam_search(model, sources[:, 0, 0], 6, width=1)
    np.testing.assert_array_equal(single.tokens, beam.tokens[:, 0, 0])


@pytest.mark.usefixtures("x64")
def test_a_narrow_beam_is_that_of_a_loop():
    """Width 3 of 5 steps, hypothesis by hypothesis; some end on the way and stay."""
    model, sources, steps, width = make("additive"), draw_tokens(L, 6), 5, 3
    found = beam_search(model, sources, steps, width=width)
    ended_early = 0
    for b in range(6):
        source = np.asarray(sources)[:, b]
        probability = functools.partial(numpy_models.log_probability, model, source)
        kept: list[tuple[int, ...]] = [()]
        for _ in range(steps):
            pool = [t for t in kept if END in t]
            pool += [(*t, token) for t in kept if END not in t for token in range(V)]
            kept = sorted(pool, key=lambda t: -probability(np.array(t)) / len(t))[:width]
        for k, target in enumerate(kept):
            np.testing.assert_array_equal(found.tokens[: len(target), b, k], target)
            assert found.lengths[b, k] == len(target)
            ended_early += len(target) < steps
    assert 0 < ended_early < 18


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
def test_what_was_found_can_be_looked_at_again():
    """Teacher forcing over the result gives its log-probability, and the contexts on the way."""
    model, sources = make("dot"), draw_tokens(L, 8)
    found = greedy_search(model, sources, 6)
    seen = model(sources, found.tokens, target_lengths=found.lengths)
    each = jnp.take_along_axis(jax.nn.log_softmax(seen.logits), found.tokens[..., None], axis=-1)[
        ..., 0
    ]
    valid = np.arange(6)[:, None] < np.asarray(found.lengths)
    assert_close(jnp.where(valid, each, 0).sum(axis=0), found.log_probabilities)


@one_kind
@pytest.mark.slow
def test_in_half_precision_every_token_is_still_the_most_probable(kind):
    """A sum of a hundred nats has steps of a half in bfloat16: too coarse to tell tokens apart."""
    model, sources, steps = endless(make(kind, dtype=jnp.bfloat16)), draw_tokens(L, 8), 100
    for found in (
        greedy_search(model, sources, steps),
        jax.tree.map(lambda leaf: leaf[..., 0], beam_search(model, sources, steps, width=1)),
    ):
        logits = model(sources, found.tokens).logits.astype(jnp.float32)
        np.testing.assert_array_equal(found.tokens, np.argmax(logits, axis=-1))
        total = np.max(numpy_models.log_softmax(np.asarray(logits, np.float64)), axis=-1).sum(
            axis=0
        )
        assert found.log_probabilities.dtype == jnp.float32
        assert total.max() < -20
        np.testing.assert_allclose(found.log_probabilities, total, rtol=1e-5)


def endless(model):
    """The same model, which never ends and is never sure."""
    model.readout.kernel[...] = model.readout.kernel[...] / 3
    model.readout.bias[...] = model.readout.bias[...].at[END].set(-30)
    return model


# Learning.


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_short_strings_are_learnt_backwards(kind):
    model, sources, targets, lengths = reversal(kind)
    model = trained(model, sources, targets, lengths)
    found = greedy_search(model, sources, 5, seq_lengths=lengths)
    valid = np.arange(5)[:, None] < np.asarray(lengths) + 1
    right = np.all((np.asarray(found.tokens) == np.asarray(targets)) | ~valid, axis=0)
    assert right.mean() > 0.95


def reversal(kind):
    """All strings of up to 4 of the letters 2, 3, 4, and the same backwards with an end token."""
    rngs, letters, width = nnx.Rngs(0), (2, 3, 4), 24
    strings = [s for n in range(1, 5) for s in itertools.product(letters, repeat=n)]
    sources, targets = np.zeros((4, len(strings)), int), np.zeros((5, len(strings)), int)
    for b, string in enumerate(strings):
        sources[: len(string), b] = string
        targets[: len(string) + 1, b] = (*string[::-1], END)
    attention = {
        "fixed": None,
        "additive": AdditiveAttention(width, width, 16, rngs=rngs),
        "dot": DotAttention(width),
    }[kind]
    model = EncoderDecoder(
        Embedding(5, 8, rngs=rngs),
        Bidirectional(*(RNN(GRUCell(8, width // 2, rngs=rngs)) for _ in range(2))),
        Embedding(5, 8, rngs=rngs),
        GRUCell(8 + width, width, rngs=rngs),
        attention=attention,
        start=START,
        end=END,
        rngs=rngs,
    )
    lengths = jnp.array([len(s) for s in strings])
    return model, jnp.asarray(sources), jnp.asarray(targets), lengths


def trained(model: Any, sources: Any, targets: Any, lengths: Any) -> Any:
    optimizer = optax.adam(1e-2)

    @jax.jit
    def run(model):
        def step(state, _):
            model, moments = state
            gradient = jax.grad(
                lambda model: model.loss(
                    sources, targets, seq_lengths=lengths, target_lengths=lengths + 1
                )
            )(model)
            with jax.numpy_dtype_promotion("standard"):  # optax multiplies floats with integers
                change, moments = optimizer.update(gradient, moments)
            return (optax.apply_updates(model, change), moments), None

        return jax.lax.scan(step, (model, optimizer.init(model)), length=400)[0][0]

    return run(model)


# Refusals.


class ComplexCell(nnx.Module):
    """A cell whose carry is complex."""

    in_features = F + H

    def __init__(self):
        self.weight = nnx.Param(jnp.ones(()))

    def initialize_carry(self, input_shape, rngs=None):
        return jnp.zeros((*input_shape[:-1], 5), jnp.complex64)

    def __call__(self, carry, x):
        return carry, carry.real


def build(**parts):
    rngs = nnx.Rngs(0)
    usual: dict[str, Any] = {
        "source": Embedding(V, F, rngs=rngs),
        "encoder": RNN(GRUCell(F, H, rngs=rngs)),
        "target": Embedding(V, F, rngs=rngs),
        "cell": GRUCell(F + H, 5, rngs=rngs),
        "start": START,
        "end": END,
        "rngs": rngs,
    }
    return EncoderDecoder(**{**usual, **parts})


def embedding(features=F, **options):
    return Embedding(V, features, rngs=nnx.Rngs(0), **options)


def cell(features=F + H, **options):
    return GRUCell(features, 5, rngs=nnx.Rngs(0), **options)


SOURCES, TARGETS = np.zeros((L, B), np.int32), np.zeros((T, B), np.int32)
HALF: Any = {"param_dtype": jnp.bfloat16}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build(encoder=cell()), "encoder: got GRUCell; expected an RNN"),
        (lambda: build()([[0]], TARGETS), "sources: got a list; expected an array"),
        (
            lambda: build()(SOURCES, TARGETS[:, :1], target_lengths=[1] * B),
            r"targets: got int\d+\[\d, 1\]; expected shape",
        ),
        (lambda: build()(SOURCES, np.int32(0)), r"targets: got int32\[\]; expected an array"),
        (lambda: beam_search(build(), [[0]], 3, width=2), "sources: got a list; expected an"),
        (lambda: build(source=cell()), "source: got GRUCell; expected an Embedding"),
        (lambda: build(source=embedding(9)), "source: got vectors of 9 features; expected 3"),
        (lambda: build(target=embedding(**HALF)), "target: got dtype bfloat16; expected float32"),
        (
            lambda: build(start=V),
            "start: got values from 4 to 4; expected token numbers from 0 to 3",
        ),
        (lambda: build(end=-1), "end: got values from -1 to -1"),
        (lambda: build(cell=len), "cell: got builtin_function_or_method; expected a cell"),
        (
            lambda: build(cell=cell(9)),
            "cell: got 9 input features; expected 5: those of the target",
        ),
        (lambda: build(cell=cell(**HALF)), "cell: got weights of bfloat16; expected float32"),
        (
            lambda: build(cell=ComplexCell()),
            "cell: got a carry of complex64; expected a carry of real numbers",
        ),
        (
            lambda: build(attention=len),
            "attention: got builtin_function_or_method; expected an Attention of jaxrnn, or None",
        ),
        (
            lambda: build(attention=DotAttention(5)),
            "attention: got queries of 5 and values of 5; expected queries of 5, .* values of 2",
        ),
        (lambda: AdditiveAttention(0, 2, 3, rngs=nnx.Rngs(0)), "query_features: got 0"),
        (lambda: AdditiveAttention(2, 0, 3, rngs=nnx.Rngs(0)), "value_features: got 0"),
        (lambda: AdditiveAttention(2, 2, 0, rngs=nnx.Rngs(0)), "attention_features: got 0"),
        (lambda: DotAttention(0), "features: got 0"),
        (lambda: DotAttention(2).memory(jnp.ones((L, 3))), r"values: got float32\[5, 3\]"),
        (
            lambda: DotAttention(2)(jnp.ones(3), DotAttention(2).memory(jnp.ones((L, 2)))),
            r"query: got float32\[3\]; expected 2 features",
        ),
        (lambda: small()(SOURCES + V, TARGETS), "sources: got values from 4 to 4"),
        (lambda: small()(SOURCES, TARGETS - 1), "targets: got values from -1 to -1"),
        (
            lambda: small()(SOURCES, TARGETS, seq_lengths=[9, 1, 1]),
            "seq_lengths: got values from 1",
        ),
        (
            lambda: small()(SOURCES, TARGETS, target_lengths=[5, 1, 1]),
            "target_lengths: got values from 1 to 5; expected 0 to 4",
        ),
        (lambda: greedy_search(small(), SOURCES, 0), "steps: got 0"),
        (lambda: greedy_search(small(), SOURCES + V, 2), "sources: got values from 4"),
        (
            lambda: greedy_search(small(), SOURCES, 2, seq_lengths=[1, 2]),
            r"seq_lengths: got int64\[2\]",
        ),
        (lambda: beam_search(small(), SOURCES, 2, width=0), "width: got 0"),
        (lambda: beam_search(small(), SOURCES, 2, width=1, length_penalty=-1.0), "length_penalty:"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, message):
    with pytest.raises(InputError, match=message):
        call()


@functools.cache
def small():
    return build()
