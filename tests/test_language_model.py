"""Labellers and language models against loops; what they generate against the softmax."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from flax import nnx

from jaxrnn import RNN, Bidirectional, GRUCell, InputError, LSTMCell, Stack
from jaxrnn.models import (
    Embedded,
    Embedding,
    LanguageModel,
    SequenceClassifier,
    SequenceLabeller,
    cross_entropy,
    generate,
    perplexity,
    sample,
)
from tests.oracles import numpy_models
from tests.oracles.numpy_models import log_softmax

V, F, H, T, B = 7, 4, 5, 6, 3
LENGTHS = np.array([0, 2, 6])

assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)


def draw_tokens(*shape, seed=0, tokens=V):
    return jnp.asarray(np.random.default_rng(seed).integers(0, tokens, shape))


def make(*, tied=False, dtype: Any = jnp.float64, seed=0, stack=False):
    rngs = nnx.Rngs(seed)
    out = F if tied else H
    layers = [RNN(LSTMCell(F, H, param_dtype=dtype, rngs=rngs))] if stack else []
    layers.append(RNN(GRUCell(H if stack else F, out, param_dtype=dtype, rngs=rngs)))
    # A wide table gives logits far enough apart that no argmax is a matter of rounding.
    wide = jax.nn.initializers.normal(1.0)
    embedding = Embedding(V, F, table_init=wide, param_dtype=dtype, rngs=rngs)
    body = Stack(layers) if stack else layers[0]
    return LanguageModel(embedding, body, tied=tied, rngs=rngs)


def read_by_hand(model, tokens):
    return numpy_models.language_model(model, np.asarray(tokens))


def decided(model):
    """The same model, with biases and with logits far apart."""
    model.bias[...] = jnp.linspace(-0.5, 0.5, V, dtype=model.bias.dtype)
    if model.kernel is not None:
        model.kernel[...] = 6 * model.kernel[...]
    return model


# Language models.


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.usefixtures("x64")
def test_logits_and_loss_are_those_of_the_cells_step_by_step(tied):
    model, tokens = decided(make(tied=tied, stack=True)), draw_tokens(T, B)
    logits, losses = model(tokens, seq_lengths=LENGTHS), []
    for b, length in enumerate(LENGTHS):
        expected = read_by_hand(model, tokens[:, b])
        assert_close(logits[:length, b], expected[:length])
        losses += [-log_softmax(expected)[t, tokens[t + 1, b]] for t in range(length - 1)]
    assert_close(model.loss(tokens, seq_lengths=LENGTHS), np.mean(losses))
    assert_close(perplexity(model.loss(tokens, seq_lengths=LENGTHS)), np.exp(np.mean(losses)))
    full = [
        -log_softmax(read_by_hand(model, tokens[:, b]))[t, tokens[t + 1, b]]
        for b in range(B)
        for t in range(T - 1)
    ]
    assert_close(model.loss(tokens), np.mean(full))


def test_a_model_of_either_precision_stays_in_it(dtype):
    model, tokens = make(dtype=dtype), draw_tokens(T, B)
    gradient = jax.grad(lambda model: model.loss(tokens, seq_lengths=LENGTHS))(model)
    assert model(tokens).dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {dtype}


def test_tied_weights_are_one_table(x64):
    tied, free = make(tied=True), make(tied=False)
    assert len(jax.tree.leaves(free)) == len(jax.tree.leaves(tied)) + 1
    tokens = draw_tokens(T, B)
    # A token that is only ever predicted, never read, has a gradient in a tied table alone.
    tokens = jnp.where(tokens == 6, 0, tokens)

    def of_unread(model):
        gradient: Any = jax.grad(lambda model: model.loss(tokens))(model)
        return np.abs(gradient.embedding.table[...][6]).max()

    assert of_unread(tied) > 1e-3
    assert of_unread(free) == 0


@pytest.mark.usefixtures("x64")
def test_padding_changes_neither_values_nor_gradients():
    model = make()
    valid = np.arange(T)[:, None] < LENGTHS
    one = jnp.where(valid, draw_tokens(T, B), 0)
    other = jnp.where(valid, one, draw_tokens(T, B, seed=1))
    assert (one != other).any()
    by_padding = [
        jax.value_and_grad(lambda model, t=t: model.loss(t, seq_lengths=LENGTHS))(model)
        for t in (one, other)
    ]
    jax.tree.map(np.testing.assert_array_equal, *by_padding)
    first, second = (np.asarray(model(t, seq_lengths=LENGTHS))[valid] for t in (one, other))
    np.testing.assert_array_equal(first, second)


@pytest.mark.usefixtures("x64")
def test_no_logit_knows_of_later_tokens():
    model, tokens = make(), draw_tokens(T, B)
    for t in range(T - 1):
        changed = tokens.at[t + 1 :].set((tokens[t + 1 :] + 1) % V)
        np.testing.assert_array_equal(model(changed)[: t + 1], model(tokens)[: t + 1])
        assert np.abs(model(changed)[t + 1] - model(tokens)[t + 1]).max() > 1e-3


@pytest.mark.usefixtures("x64")
def test_a_text_can_be_read_piece_by_piece():
    model, tokens = make(stack=True), draw_tokens(T, B)
    carry, first = model.read(tokens[:4])
    _, second = model.read(tokens[4:], carry=carry)
    assert_close(jnp.concatenate([first, second]), model(tokens))


@pytest.mark.slow
def test_of_nothing_the_loss_is_zero():
    model, tokens = make(dtype=jnp.float32), draw_tokens(T, B)
    value, gradient = jax.value_and_grad(
        lambda model: model.loss(tokens, seq_lengths=np.array([0, 1, 1]))
    )(model)
    assert value == 0
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_where_the_shape_leaves_no_target_the_loss_is_zero():
    model, tokens = make(dtype=jnp.float32), draw_tokens(1, B)
    value, gradient = jax.value_and_grad(lambda model: model.loss(tokens))(model)
    assert value == 0
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(gradient))
    assert cross_entropy(jnp.zeros((0, V)), jnp.zeros(0, int)) == 0


@pytest.mark.parametrize("half", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_many_targets_in_half_precision_are_counted(half, masked):
    count = 70_000
    mask = jnp.arange(count + 3) < count if masked else None
    logits = jnp.zeros((count + 3, 2), half)
    loss = cross_entropy(logits, jnp.zeros(count + 3, int), mask)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-5)


@pytest.mark.parametrize("target", [3, -1, -3])
def test_under_jit_a_target_that_is_no_class_makes_the_loss_nan_unless_masked(target):
    logits, targets = jnp.array([[0.0, 1.0, 5.0], [0.0, 0.0, 0.0]]), jnp.array([target, 0])
    loss = jax.jit(cross_entropy)
    assert np.isnan(loss(logits, targets))
    without = np.array([False, True])
    np.testing.assert_allclose(loss(logits, targets, without), np.log(3), rtol=1e-6)
    np.testing.assert_allclose(cross_entropy(logits, targets, without), np.log(3), rtol=1e-6)


def test_padding_may_hold_what_is_no_token():
    model = make(dtype=jnp.float32)
    spoilt = jnp.where(np.arange(T)[:, None] < LENGTHS, draw_tokens(T, B), -400)
    plain = jnp.where(spoilt < 0, 0, spoilt)
    losses = [model.loss(tokens, seq_lengths=LENGTHS) for tokens in (spoilt, plain)]
    assert losses[0] == losses[1]
    write = functools.partial(generate, model, steps=3, key=None, temperature=0)
    found = [write(tokens[:, 1:], seq_lengths=LENGTHS[1:]).tokens for tokens in (spoilt, plain)]
    np.testing.assert_array_equal(found[0], found[1])


def test_masked_logits_may_be_anything(x64):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(T, V)))
    targets, mask = draw_tokens(T), np.arange(T) < 4
    spoilt = logits.at[4:].set(jnp.nan)
    value, gradient = jax.value_and_grad(cross_entropy)(spoilt, targets, mask)
    expected = -np.mean([log_softmax(np.asarray(logits))[t, targets[t]] for t in range(4)])
    assert_close(value, expected)
    assert np.all(np.isfinite(gradient))
    assert np.all(np.asarray(gradient[4:]) == 0)


@pytest.mark.slow
def test_a_language_model_learns_a_periodic_text():
    text = jnp.asarray(np.tile([0, 1, 2, 1, 3], 8))[
        :, None
    ]  # after 1 comes 2 or 3: one must remember
    rngs = nnx.Rngs(0)
    body = RNN(GRUCell(8, 16, rngs=rngs))
    model: Any = LanguageModel(Embedding(4, 8, rngs=rngs), body, rngs=rngs)
    assert 3 < perplexity(model.loss(text)) < 6
    model = trained(model, lambda model: model.loss(text), steps=150)
    assert perplexity(model.loss(text[5:])) < 1.05
    written = generate(model, text[:5], 20, key=None, temperature=0)
    np.testing.assert_array_equal(written.tokens, text[5:25])


def trained(model: Any, loss: Any, steps: int) -> Any:
    optimizer = optax.adam(1e-2)

    @jax.jit
    def run(model):
        def step(state, _):
            model, moments = state
            with jax.numpy_dtype_promotion("standard"):  # optax multiplies floats with integers
                change, moments = optimizer.update(jax.grad(loss)(model), moments)
            return (optax.apply_updates(model, change), moments), None

        return jax.lax.scan(step, (model, optimizer.init(model)), length=steps)[0][0]

    return run(model)


# Generation.


@pytest.mark.usefixtures("x64")
def test_at_temperature_zero_every_token_is_the_argmax_of_the_whole_text():
    model, prompt = decided(make(seed=5)), draw_tokens(4, B)
    lengths = np.array([1, 4, 3])
    written = np.asarray(
        generate(model, prompt, 6, key=None, temperature=0, seq_lengths=lengths).tokens
    )
    for b, length in enumerate(lengths):
        text = list(np.asarray(prompt)[:length, b])
        for t in range(6):
            text.append(int(np.argmax(read_by_hand(model, np.array(text))[-1])))
            assert written[t, b] == text[-1]
    assert len(np.unique(written)) > 1  # a constant would be no test


@pytest.mark.usefixtures("x64")
def test_generation_goes_on_from_the_carry():
    model, prompt = decided(make(stack=True)), draw_tokens(4, 2, B)
    write = functools.partial(generate, model, key=None, temperature=0)
    whole = write(prompt, 9)
    first = write(prompt, 4)
    second = write(first.tokens[-1:], 5, carry=first.carry)
    np.testing.assert_array_equal(jnp.concatenate([first.tokens, second.tokens]), whole.tokens)
    jax.tree.map(assert_close, second.carry, whole.carry)
    one = write(prompt, 1)
    jax.tree.map(assert_close, one.carry, model.read(prompt)[0])


def test_a_prompt_needs_no_batch():
    model, prompt = make(dtype=jnp.float32), draw_tokens(4)
    one = generate(model, prompt, 5, key=None, temperature=0).tokens
    many = generate(model, prompt[:, None], 5, key=None, temperature=0).tokens
    np.testing.assert_array_equal(one, many[:, 0])


def test_the_same_key_writes_the_same_text_and_another_another():
    model, prompt = make(dtype=jnp.float32), draw_tokens(2, 8)
    one, again, other = (
        generate(model, prompt, 12, key=jax.random.key(seed)).tokens for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert np.any(np.asarray(one) != np.asarray(other))


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.6, 3), (2.0, None), (1.0, V)])
def test_tokens_come_as_often_as_the_softmax_says(x64, temperature, top_k):
    """The second token of a text, given the first, against p ∝ exp(logits / temperature), by chi-square."""
    model, count = decided(make()), 50_000
    prompt = jnp.full((1, count), 2)
    written = generate(
        model, prompt, 2, key=jax.random.key(5), temperature=temperature, top_k=top_k
    )
    first, second = np.asarray(written.tokens)
    likeliest = np.bincount(first).argmax()
    for seen, past in ((first, [2]), (second[first == likeliest], [2, likeliest])):
        logits = read_by_hand(model, np.array(past))[-1] / temperature
        if top_k is not None:
            logits = np.where(logits >= np.sort(logits)[-top_k], logits, -np.inf)
        share = np.exp(log_softmax(logits))
        counts = np.bincount(seen, minlength=V)
        assert np.all(counts[share == 0] == 0)
        likely = share > 0
        test = scipy.stats.chisquare(counts[likely], share[likely] * len(seen))
        assert test.pvalue > 1e-3
        wrong = np.exp(log_softmax(logits * 0.5))  # what another temperature would give is seen
        assert scipy.stats.chisquare(counts[likely], wrong[likely] * len(seen)).pvalue < 1e-3


def test_of_equals_top_k_keeps_k():
    drawn = sample(jnp.zeros((1000, 5)), jax.random.key(0), top_k=2)
    assert len(np.unique(drawn)) == 2


TEMPERATURES = [0, 0.0, np.float32(0), jnp.float32(0), 1e-300, 1e-38, 1e-30, 1e-9]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.5}])
def test_a_temperature_near_zero_draws_the_most_probable(temperature, options):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(50, 9)), jnp.float32) * 100
    drawn = sample(logits, jax.random.key(1), temperature, **options)
    np.testing.assert_array_equal(drawn, np.argmax(logits, axis=-1))
    traced = jax.jit(lambda t: sample(logits, jax.random.key(1), t, **options))(float(temperature))
    np.testing.assert_array_equal(traced, drawn)


def test_of_equals_temperature_zero_takes_the_first():
    assert sample(jnp.array([0.0, 2.0, 2.0]), jax.random.key(0), temperature=0) == 1


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_a_temperature_may_be_an_array_without_axes(dtype):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(50, 9)), dtype)
    drawn = [
        sample(logits, jax.random.key(1), temperature)
        for temperature in (0.7, np.float64(0.7), np.array(0.7), jnp.float32(0.7))
    ]
    assert len({tuple(each.tolist()) for each in drawn}) == 1
    prompt, model = draw_tokens(4), make(dtype=jnp.float32)
    written = [
        generate(model, prompt, 5, key=jax.random.key(0), temperature=t).tokens.tolist()
        for t in (0.7, jnp.float32(0.7))
    ]
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.05, 1), (0.39, 1), (0.41, 2), (0.69, 2), (0.71, 3), (0.95, 4), (1.0, 4)]
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p, kept):
    shares = np.array([0.1, 0.4, 0.3, 0.2])  # 0.4, then 0.7, then 0.9
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(shares, jnp.float32)), (4000, 4))
    drawn = np.asarray(sample(logits, jax.random.key(0), top_p=top_p))
    allowed = np.argsort(-shares)[:kept]
    assert set(drawn) == set(allowed)
    expected = shares[allowed] / shares[allowed].sum() * len(drawn)
    counts = np.bincount(drawn, minlength=4)[allowed]
    assert kept == 1 or scipy.stats.chisquare(counts, expected).pvalue > 1e-3


def test_top_p_counts_among_the_top_k_at_the_temperature():
    """Squared, 0.4 : 0.3 : 0.2 becomes 16 : 9 : 4; of the first two, 16 are 64 %."""
    logits = jnp.broadcast_to(jnp.log(jnp.array([0.1, 0.4, 0.3, 0.2])), (500, 4))
    for top_p, kept in ((0.63, {1}), (0.65, {1, 2})):
        drawn = sample(logits, jax.random.key(0), temperature=0.5, top_k=2, top_p=top_p)
        assert set(np.asarray(drawn).tolist()) == kept


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("stack", [False, True])
def test_a_sequence_ends_with_the_end_token(stack):
    """Until then it is what is written without one, and from then on nothing is read."""
    model, prompt = decided(make(stack=stack)), draw_tokens(4, 12)
    write = functools.partial(generate, model, prompt, temperature=0.0, key=None)
    free = np.asarray(write(9).tokens)
    end = int(free[3, 0])
    found = write(9, end=end)
    for b in range(12):
        places = np.flatnonzero(free[:, b] == end)
        length = places[0] + 1 if len(places) else 9
        assert int(found.lengths[b]) == length
        np.testing.assert_array_equal(found.tokens[:length, b], free[:length, b])
        assert np.all(np.asarray(found.tokens)[length:, b] == end)
        alone = generate(model, prompt[:, b], int(length), key=None, temperature=0)
        jax.tree.map(lambda leaf, one, b=b: assert_close(leaf[b], one), found.carry, alone.carry)
    assert len(np.unique(found.lengths)) > 1
    assert np.all(np.asarray(write(9).lengths) == 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature: got -1; expected 0 or more"),
        ({"temperature": float("nan")}, "temperature: got float nan; expected a number"),
        ({"temperature": jnp.float32(jnp.nan)}, "temperature: got nan; expected 0 or more"),
        ({"temperature": float("inf")}, "temperature: got inf; expected 0 or more"),
        ({"temperature": "hot"}, "temperature: got str 'hot'; expected a number"),
        ({"top_k": 0}, "top_k: got 0; expected a whole number from 1 to 5, the tokens"),
        ({"top_k": 6}, "top_k: got 6; expected a whole number from 1 to 5, the tokens"),
        ({"top_k": 2**63}, "top_k: got int 9223372036854775808; expected a whole number"),
        ({"top_k": 1.5}, "top_k: got float 1.5; expected a whole number"),
        ({"top_p": 0.0}, "top_p: got 0.0; expected a probability above 0"),
        ({"top_p": 1.5}, "top_p: got 1.5; expected a probability above 0"),
        ({"key": 0}, "key: got int 0; expected a random key, such as jax.random.key"),
        ({"key": nnx.Rngs(0)}, "key: got flax.Rngs; expected a random key"),
        ({"logits": [1.0, 2.0]}, "logits: got [float 1.0, float 2.0]; expected an array of fl"),
        ({"logits": jnp.array([1.0, jnp.nan])}, "logits: got NaN; expected numbers"),
        ({"logits": jnp.array([1, 2])}, "logits: got int32[2]; expected an array of floats"),
    ],
)
def test_sampling_refuses(options, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        sample(**{"logits": jnp.zeros(5), "key": jax.random.key(0), **options})


def test_new_weights_do_not_compile_again(caplog):
    prompt = draw_tokens(4, B)
    models = [make(dtype=jnp.float32, seed=seed) for seed in (0, 1)]
    with jax.log_compiles():
        for call, model in enumerate(models):
            caplog.clear()
            generate(model, prompt, 7, key=jax.random.key(call), top_k=3, temperature=0.5 + call)
            assert any("Compiling" in line for line in caplog.messages) == (call == 0)


# Labellers, and models of tokens.


@pytest.mark.usefixtures("x64")
def test_a_labeller_reads_every_output():
    rngs = nnx.Rngs(0)
    ahead, back = (RNN(GRUCell(F, H, param_dtype=jnp.float64, rngs=rngs)) for _ in range(2))
    model = SequenceLabeller(Bidirectional(ahead, back), 3, rngs=rngs)
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(T, B, F)))
    logits = model(xs, seq_lengths=LENGTHS)
    kernel, bias = model.readout.kernel, model.readout.bias
    assert kernel is not None
    assert bias is not None
    for b, length in enumerate(LENGTHS):
        valid = np.asarray(xs[:length, b])
        left, _ = numpy_models.read(ahead.cell, valid)
        right, _ = numpy_models.read(back.cell, valid[::-1])
        for t in range(length):
            joined = np.concatenate([left[t], right[::-1][t]])
            assert_close(logits[t, b], joined @ np.asarray(kernel[...]) + np.asarray(bias[...]))


def test_an_embedding_makes_a_model_of_vectors_one_of_tokens(dtype):
    rngs = nnx.Rngs(0)
    embedding = Embedding(V, F, param_dtype=dtype, rngs=rngs)
    cell = GRUCell(F, H, param_dtype=dtype, rngs=rngs)
    classifier = SequenceClassifier(cell, 3, rngs=rngs)
    tokens = draw_tokens(T, B)
    logits = Embedded(embedding, classifier)(tokens, seq_lengths=jnp.asarray(LENGTHS))
    vectors = embedding.table[...][tokens]
    np.testing.assert_array_equal(logits, classifier(vectors, seq_lengths=jnp.asarray(LENGTHS)))


# Refusals.


@functools.cache
def small():
    return make(dtype=jnp.float32)


def body(**options):
    return RNN(GRUCell(F, H, rngs=nnx.Rngs(0)), **options)


def embedding(features=F, **options):
    return Embedding(V, features, rngs=nnx.Rngs(0), **options)


def model_of(embedding, body, **options):
    return LanguageModel(embedding, body, rngs=nnx.Rngs(0), **options)


def both_ways():
    return Bidirectional(body(), body())


PROMPT = np.zeros((2, B), np.int32)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: model_of(embedding(), body().cell), "body: got GRUCell; expected an RNN"),
        (lambda: model_of(embedding(), both_ways()), "body: got a layer that reads backwards"),
        (lambda: model_of(embedding(), body(reverse=True)), "body: got a layer that reads backw"),
        (lambda: model_of(embedding(), Stack([both_ways()])), "body: got a layer that reads backw"),
        (lambda: model_of(body(), body()), "embedding: got RNN; expected an Embedding"),
        (
            lambda: model_of(embedding(9), body()),
            "embedding: got vectors of 9 features; expected 4",
        ),
        (
            lambda: model_of(embedding(param_dtype=jnp.bfloat16), body()),
            "embedding: got dtype bfloat16; expected float32",
        ),
        (
            lambda: model_of(embedding(), body(), tied=True),
            "tied: got True, for a body that gives 5 features; expected a body that gives 4",
        ),
        (lambda: small()(np.full((T, B), V)), "tokens: got values from 7 to 7; expected .* 0 to 6"),
        (lambda: small()(np.full((T, B), -1)), "tokens: got values from -1 to -1"),
        (
            lambda: small().loss(PROMPT[:0]),
            r"inputs: got float32\[0, 3, 4\]; expected at least 1 step",
        ),
        (lambda: small().loss(np.array([[0], [V]])), "tokens: got values from 0 to 7; expected"),
        (
            lambda: cross_entropy(jnp.zeros((2, 3)), jnp.array([0, -1])),
            "targets: got values from -1 to 0; expected .* 0 to 2",
        ),
        (
            lambda: cross_entropy(jnp.zeros((2, 3)), jnp.array([3, 0]), np.array([True, False])),
            "targets: got values from 0 to 3; expected .* 0 to 2",
        ),
        (
            lambda: cross_entropy(jnp.zeros((2, 3)), jnp.zeros(4, int)),
            r"targets: got int32\[4\]; expected shape \[2\], \[\*B\], as the logits \[\*B, C\]",
        ),
        (
            lambda: cross_entropy(jnp.zeros((2, 3)), jnp.zeros(2, int), np.ones(1, bool)),
            r"mask: got bool\[1\]; expected shape \[2\]",
        ),
        (
            lambda: small().loss(PROMPT, seq_lengths=[3, 1, 1]),
            "seq_lengths: got values from 1 to 3",
        ),
        (lambda: generate(small(), PROMPT, 0, key=None, temperature=0), "steps: got 0"),
        (lambda: generate(small(), PROMPT + V, 1, key=None, temperature=0), "prompt: got values"),
        (lambda: small()([[1]]), "tokens: got a list; expected an array"),
        (lambda: small().loss([[1]]), "tokens: got a list; expected an array"),
        (
            lambda: cross_entropy([[0.0]], [0]),
            "logits: got a list; expected a floating-point array",
        ),
        (lambda: cross_entropy(jnp.float32(0), [0]), r"logits: got float32\[\]; expected at least"),
        (lambda: cross_entropy(jnp.zeros((1, 3)), [0]), "targets: got a list; expected an array"),
        (lambda: generate(small(), [[1]], 1, key=None, temperature=0), "prompt: got a list; expec"),
        (lambda: generate(small(), PROMPT[:0], 1, key=None, temperature=0), "prompt: got int32.0,"),
        (lambda: generate(small(), PROMPT, 1, key=None, temperature=-1.0), "temperature: got -1.0"),
        (
            lambda: generate(small(), PROMPT, 1, key=None, temperature=float("nan")),
            "temperature: got float nan",
        ),
        (lambda: generate(small(), PROMPT, 1, key=None), "key: got None; expected a random key"),
        (lambda: generate(small(), PROMPT, 1, key=jax.random.key(0), top_k=0), "top_k: got 0"),
        (
            lambda: generate(small(), PROMPT, 1, key=jax.random.key(0), top_k=V + 1),
            "top_k: got 8; expected a whole number from 1 to 7, the tokens",
        ),
        (
            lambda: generate(small(), PROMPT, 1, key=None, temperature=0, seq_lengths=[0, 1, 2]),
            "seq_lengths: got values from 0; expected at least 1 token each",
        ),
        (
            lambda: generate(small(), PROMPT, 1, key=None, temperature=0, seq_lengths=[1, 2]),
            r"seq_lengths: got int64\[2\]; expected shape \[3\]",
        ),
        (lambda: SequenceLabeller(body(), 0, rngs=nnx.Rngs(0)), "classes: got 0"),
        (
            lambda: SequenceLabeller(embedding(), 2, rngs=nnx.Rngs(0)),
            "body: got Embedding; expected an RNN, a Bidirectional, a Stack or a SequenceEncoder",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_the_shape_of_logits_is_not_their_values():
    shape: Any = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    with pytest.raises(
        InputError, match="logits: got a ShapeDtypeStruct; expected a floating-point"
    ):
        cross_entropy(shape, jnp.zeros(2, int))


def test_a_temperature_beyond_int32_draws_all_tokens_alike():
    logits = jnp.broadcast_to(jnp.array([0.0, 3.0, 9.0]), (600, 3))
    for temperature in (2**31, 10**40):
        drawn = sample(logits, jax.random.key(0), temperature)
        assert jnp.bincount(drawn, length=3).min() > 150
