"""The Transformer against NumPy loops over heads and steps; what it sees; masks and losses by hand."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxrnn import InputError
from jaxrnn.cells import count_parameters
from jaxrnn.models import (
    TokenTransformer,
    TransformerEncoder,
    mask_tokens,
    masked_token_loss,
    next_token_loss,
)
from jaxrnn.models.transformer import Block, attention, sinusoidal_positions
from tests.oracles import numpy_cells
from tests.oracles.parts import relu

F, D, N, M, T = 2, 4, 2, 6, 5
V = 7


def draw(*shape, dtype: Any = jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def disturbed(model: Any, scale=0.3) -> Any:
    """Move every parameter, biases included, so that one that is forgotten shows."""
    leaves, structure = jax.tree.flatten(model)
    moved = [
        leaf + scale * draw(*leaf.shape, dtype=leaf.dtype, seed=i) for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, moved)


def encoder(dtype: Any = jnp.float32, **options) -> TransformerEncoder:
    settings = {"depth": 2, "heads": N, "mlp_features": M, "param_dtype": dtype, **options}
    return disturbed(TransformerEncoder(F, D, rngs=nnx.Rngs(0), **settings))


def tokeniser(dtype: Any = jnp.float32, **options) -> TokenTransformer:
    settings = {"depth": 1, "heads": N, "mlp_features": M, "param_dtype": dtype, **options}
    return disturbed(TokenTransformer(V, D, rngs=nnx.Rngs(0), **settings))


@jax.jit
def run(model, xs, lengths=None):
    return model(xs, seq_lengths=lengths)


# The oracle.


def numpy_attention(query, key, value, visible):
    """One head, one query at a time; query [Q, D], key and value [T, D], visible [Q, T]."""
    rows = []
    for q in range(len(query)):
        scores = np.array([query[q] @ k for k in key]) / np.sqrt(query.shape[1])
        odds = np.exp(scores) * visible[q]
        rows.append(sum(o * v for o, v in zip(odds / odds.sum(), value, strict=True)))
    return np.stack(rows)


def numpy_norm(w, name, x):
    centred = x - x.mean(axis=-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    return w[f"{name}.scale"] * centred / spread + w[f"{name}.bias"]


def numpy_stack(w, x, visible, depth=2):
    """Positions, pre-norm blocks and the last norm, from the paper; x [T, D]."""
    size = D // N
    for t in range(len(x)):
        for k in range(D // 2):
            angle = t / 10000 ** (2 * k / D)
            x = x + np.outer(np.arange(len(x)) == t, np.arange(D) == 2 * k) * np.sin(angle)
            x = x + np.outer(np.arange(len(x)) == t, np.arange(D) == 2 * k + 1) * np.cos(angle)
    for layer in range(depth):
        normed = numpy_norm(w, f"{layer}.attention_norm", x)
        W = np.split(w[f"{layer}.kernel"], 3, axis=1)
        heads = []
        for n in range(N):
            cut = slice(n * size, (n + 1) * size)
            query, key, value = (normed @ part[:, cut] for part in W)
            heads.append(numpy_attention(query, key, value, visible))
        x = x + np.concatenate(heads, axis=1) @ w[f"{layer}.out_kernel"]
        normed = numpy_norm(w, f"{layer}.mlp_norm", x)
        units = relu(normed @ w[f"{layer}.kernel_in"] + w[f"{layer}.bias_in"])
        x = x + units @ w[f"{layer}.kernel_out"] + w[f"{layer}.bias_out"]
    return numpy_norm(w, "norm", x)


def weights_of(stack: Any) -> dict[str, np.ndarray]:
    found = {"norm.scale": stack.norm.scale, "norm.bias": stack.norm.bias}
    for i, block in enumerate(stack.blocks):
        for name in ("kernel_in", "bias_in", "kernel_out", "bias_out"):
            found[f"{i}.{name}"] = getattr(block, name)
        for name in ("kernel", "out_kernel"):
            found[f"{i}.{name}"] = getattr(block.attention, name)
        for norm in ("attention_norm", "mlp_norm"):
            for name in ("scale", "bias"):
                found[f"{i}.{norm}.{name}"] = getattr(getattr(block, norm), name)
    return {name: np.asarray(param[...], np.float64) for name, param in found.items()}


def encoder_arrays(model: Any) -> dict[str, np.ndarray]:
    ends = {"kernel": model.kernel, "bias": model.bias}
    return weights_of(model.stack) | {k: np.asarray(p[...], np.float64) for k, p in ends.items()}


@pytest.mark.parametrize("causal", [False, True])
def test_the_encoder_is_that_of_the_paper_forwards_and_backwards(causal, dtype):
    model, xs = encoder(dtype, causal=causal), draw(T, F, dtype=dtype)
    visible = np.tri(T) if causal else np.ones((T, T))

    def oracle(arrays):
        return numpy_stack(arrays, arrays["xs"] @ arrays["kernel"] + arrays["bias"], visible)

    @jax.jit
    def run(model, xs):
        def loss(model, xs):
            outputs = model(xs)
            return jnp.sum(outputs**3), outputs

        slopes, outputs = jax.grad(loss, (0, 1), has_aux=True)(model, xs)
        return outputs, *slopes

    outputs, by_model, by_xs = run(model, xs)
    arrays = {**encoder_arrays(model), "xs": np.asarray(xs, np.float64)}
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-13
    assert outputs.dtype == dtype
    np.testing.assert_allclose(outputs, oracle(arrays), rtol=0, atol=tolerance)
    expected = numpy_cells.gradients(lambda arrays: np.sum(oracle(arrays) ** 3), arrays)
    ours = {**encoder_arrays(by_model), "xs": by_xs}
    assert ours.keys() == expected.keys()
    scale = max(np.abs(gradient).max() for gradient in expected.values())
    for name, gradient in ours.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=scale * tolerance)


def test_attention_is_a_loop_over_queries(dtype):
    query, key, value = (draw(2, T, N, 3, dtype=dtype, seed=s) for s in range(3))
    visible = np.random.default_rng(3).random((2, 1, T, T)) < 0.6
    visible[..., 0] = True
    tolerance = 1e-6 if dtype == jnp.float32 else 1e-14
    for mask in (None, jnp.asarray(visible)):
        found = attention(query, key, value, mask)
        assert found.dtype == dtype
        for b, n in np.ndindex(2, N):
            seen = np.ones((T, T)) if mask is None else visible[b, 0]
            q, k, v = (np.asarray(part[b, :, n], np.float64) for part in (query, key, value))
            expected = numpy_attention(q, k, v, seen)
            np.testing.assert_allclose(found[b, :, n], expected, rtol=0, atol=tolerance)


def test_attention_is_that_of_jax_in_float32():
    query, key, value = (draw(2, T, N, 3, seed=s) for s in range(3))
    visible = jnp.array([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)[:, None, None, :]
    ours = attention(query, key, value, visible)
    theirs = jax.nn.dot_product_attention(query, key, value, mask=visible)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(
        ours[1], jnp.broadcast_to(value[1].mean(axis=0), (T, N, 3)), atol=1e-6
    )


@pytest.mark.slow
def test_half_precision_stays_half_precision():
    model = encoder(jnp.bfloat16, causal=True)
    xs = draw(T, 3, F)
    ours = run(model, xs.astype(jnp.bfloat16), jnp.array([5, 2, 0]))
    assert ours.dtype == jnp.bfloat16
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model)
    expected = run(wide, xs, jnp.array([5, 2, 0]))
    np.testing.assert_allclose(ours.astype(jnp.float32), expected, atol=0.15)


@pytest.mark.parametrize("features", [2, 6])
def test_positions_are_sines_and_cosines(features, dtype):
    waves = sinusoidal_positions(2000, features, dtype)
    assert waves.dtype == dtype
    for t in (0, 1, 1999):
        for k in range(features // 2):
            angle = t / 10000 ** (2 * k / features)
            expected = [np.sin(angle), np.cos(angle)]
            atol = 1e-7 if dtype == jnp.float32 else 1e-12
            np.testing.assert_allclose(waves[t, 2 * k : 2 * k + 2], expected, atol=atol)


# What it sees. Padding and causality: tests/test_encoders.py.


@pytest.mark.usefixtures("x64")
def test_permuted_inputs_give_permuted_outputs_where_nothing_tells_the_order():
    order = np.array([3, 0, 4, 1, 2])
    xs = draw(T, 2, F, dtype=jnp.float64)
    without = encoder(jnp.float64, positions=False)
    np.testing.assert_allclose(run(without, xs[order]), run(without, xs)[order], atol=1e-13)
    ordered = encoder(jnp.float64)
    assert np.abs(run(ordered, xs[order]) - run(ordered, xs)[order]).max() > 0.1


def test_every_step_sees_all_steps_or_those_before_it():
    for causal, expected in ((False, np.ones((T, T))), (True, np.tri(T))):
        by_step = jax.jit(jax.jacrev(encoder(causal=causal)))(draw(T, F))
        np.testing.assert_array_equal(np.abs(by_step).sum(axis=(1, 3)) > 0, expected)


# Tokens.


def test_token_logits_are_those_of_a_tied_embedding(dtype):
    model = tokeniser(dtype, causal=True)
    tokens = np.array([3, 0, 6, 6, 1])
    E, b = (np.asarray(p[...], np.float64) for p in (model.embedding.table, model.bias))
    hidden = numpy_stack(weights_of(model.stack), E[tokens] * np.sqrt(D), np.tri(T), depth=1)
    logits = run(model, tokens)
    assert logits.dtype == dtype
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-13
    np.testing.assert_allclose(logits, hidden @ E.T + b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("causal", [False, True])
def test_padding_of_tokens_changes_nothing(causal):
    model = tokeniser(causal=causal)
    tokens = jnp.array([[3, 1], [0, 2], [5, -9], [6, 99]])
    logits = run(model, tokens, np.array([4, 2]))
    assert not np.any(logits[2:, 1])
    np.testing.assert_allclose(logits[:2, 1], run(model, tokens[:2, 1]), atol=1e-6)
    np.testing.assert_allclose(logits[:, 0], run(model, tokens[:, 0]), atol=1e-6)


def cross_entropy(logits, target):
    logits = np.asarray(logits, np.float64)
    return np.log(np.exp(logits).sum()) - logits[target]


def test_the_loss_of_next_tokens_is_their_mean_surprise():
    model = tokeniser(causal=True)
    tokens, lengths = jnp.array([[3, 1, 4], [0, 2, -1], [5, 77, 8], [6, 4, 9]]), [4, 2, 1]
    logits = np.asarray(run(model, tokens, np.array(lengths)))
    terms = [
        cross_entropy(logits[t, b], tokens[t + 1, b])
        for b, length in enumerate(lengths)
        for t in range(length - 1)
    ]
    assert len(terms) == 4
    loss = jax.jit(next_token_loss)(model, tokens, seq_lengths=np.array(lengths))
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-5)
    assert float(jax.jit(next_token_loss)(model, tokens[:1, :1])) == 0


def test_the_loss_of_masked_tokens_is_the_mean_surprise_of_the_chosen():
    model, key = tokeniser(), jax.random.key(2)
    tokens = jax.random.randint(jax.random.key(1), (12, 6), 0, V - 1)
    lengths = np.array([12, 12, 9, 5, 1, 0])
    valid = np.arange(12)[:, None] < lengths
    inputs, chosen = mask_tokens(
        jnp.where(valid, tokens, 0), key=key, mask_id=V - 1, vocabulary=V, eligible=valid
    )
    logits = np.asarray(run(model, inputs, lengths))
    terms = [cross_entropy(logits[t, b], tokens[t, b]) for t, b in np.argwhere(chosen)]
    assert len(terms) > 2
    hidden = functools.partial(masked_token_loss, mask_id=V - 1)
    loss = jax.jit(hidden)(model, jnp.where(valid, tokens, -5), key=key, seq_lengths=lengths)
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-5)


@pytest.mark.parametrize(("causal", "steps", "reached"), [(True, 100, 0.05), (False, 300, 1.0)])
@pytest.mark.slow
def test_a_cycle_of_tokens_is_learnt(causal, steps, reached):
    """0 1 2 3 4 5 0 …: next tokens, and masked ones from their neighbours; log 6 = 1.8 is to know nothing."""
    model: Any = TokenTransformer(V, 16, depth=1, heads=2, causal=causal, rngs=nnx.Rngs(0))
    tokens = (jnp.arange(10)[:, None] + jnp.arange(6)[None, :]) % (V - 1)
    optimizer = optax.adam(1e-2)

    def loss(model, key):
        if causal:
            return next_token_loss(model, tokens)
        return masked_token_loss(model, tokens, key=key, mask_id=V - 1)

    @jax.jit
    def train(model, keys):
        def step(held, key):
            model, state = held
            value, slopes = jax.value_and_grad(loss)(model, key)
            with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in integers
                updates, state = optimizer.update(slopes, state)
            return (optax.apply_updates(model, updates), state), value

        return jax.lax.scan(step, (model, optimizer.init(model)), keys)[1]

    losses = train(model, jax.random.split(jax.random.key(0), steps))
    assert np.mean(losses[-20:]) < reached


# Masks.


def test_masks_have_the_frequencies_of_bert():
    """15 % of which 80, 10 and 10 %, each within five standard errors; draws even, the mask never drawn."""
    count, mask_id = 400_000, 2
    tokens = jnp.full((count,), 4)  # a draw that is not 4 shows; 1 in V − 1 of them is
    inputs, chosen = mask_tokens(tokens, key=jax.random.key(0), mask_id=mask_id, vocabulary=V)
    inputs, chosen = np.asarray(inputs), np.asarray(chosen)
    assert np.all(inputs[~chosen] == 4)

    def near(share, expected, out_of):
        assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / out_of)

    near(chosen.mean(), 0.15, count)
    total = chosen.sum()
    near(np.mean(inputs[chosen] == mask_id), 0.8, total)
    near(np.mean(inputs[chosen] == 4), 0.1 + 0.1 / (V - 1), total)
    for other in (0, 1, 3, 5, 6):
        near(np.mean(inputs[chosen] == other), 0.1 / (V - 1), total)
    # Chance has no memory from token to token: of pairs of neighbours 0.15² are both chosen.
    near(np.mean(chosen[::2] & chosen[1::2]), 0.15**2, count // 2)


def test_masks_are_pure_functions_of_their_key_and_spare_what_is_not_eligible():
    tokens = jnp.arange(600).reshape(20, 30) % (V - 1)
    settings = {"mask_id": V - 1, "vocabulary": V, "rate": 1.0}
    eligible = np.arange(20)[:, None] < np.arange(30)[None, :]
    first, again = (
        jax.jit(lambda k: mask_tokens(tokens, key=k, eligible=eligible, **settings))(k)
        for k in (jax.random.key(0), jax.random.key(0))
    )
    np.testing.assert_array_equal(first.inputs, again.inputs)
    np.testing.assert_array_equal(first.chosen, eligible)
    assert np.all(np.asarray(first.inputs == tokens)[~eligible])
    other = mask_tokens(tokens, key=jax.random.key(1), eligible=eligible, **settings)
    assert np.any(other.inputs != first.inputs)


def test_a_mask_that_the_tokens_own_dtype_cannot_hold_is_held():
    tokens = jnp.arange(200, dtype=jnp.uint8)
    inputs, chosen = mask_tokens(
        tokens, key=jax.random.key(0), mask_id=256, vocabulary=257, rate=1.0
    )
    assert inputs.dtype == jnp.int32
    assert np.mean(np.asarray(inputs)[chosen] == 256) > 0.7


@pytest.mark.parametrize("token", [V, -1])
def test_under_jit_a_token_outside_the_vocabulary_makes_the_logits_nan(token):
    model = tokeniser(causal=True)
    logits = run(model, jnp.array([[0, 0], [0, token], [0, 0]]))
    assert np.all(np.isfinite(logits[:, 0]))
    assert np.all(np.isnan(logits[1:, 1]))


# Sizes and refusals.


@pytest.mark.parametrize("depth", [1, 3])
def test_parameters_are_those_of_the_paper(depth):
    """4 D² of attention without biases, an MLP with them, two norms; one norm at the top."""
    block = 4 * D * D + (2 * D * M + M + D) + 2 * 2 * D
    stack = depth * block + 2 * D
    assert count_parameters(encoder(depth=depth)) == stack + (F + 1) * D
    assert count_parameters(tokeniser(depth=depth)) == stack + V * D + V
    base = TransformerEncoder(F, D, depth=1, heads=1, rngs=nnx.Rngs(0))  # M = 4 D: 12 D² weights
    assert count_parameters(base) == 12 * D * D + 5 * D + 6 * D + (F + 1) * D


def _mask(tokens: Any, **options):
    settings: dict[str, Any] = {"mask_id": 6, "vocabulary": V, **options}
    return mask_tokens(tokens, key=jax.random.key(0), **settings)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: encoder(heads=3), "heads: got 3; expected a divisor of features, 4"),
        (lambda: encoder(heads=0), "heads: got 0"),
        (lambda: encoder(depth=0), "depth: got 0"),
        (lambda: encoder(mlp_features=0), "mlp_features: got 0"),
        (
            lambda: TransformerEncoder(0, D, depth=1, heads=1, rngs=nnx.Rngs(0)),
            "in_features: got 0",
        ),
        (
            lambda: TransformerEncoder(F, 3, depth=1, heads=3, rngs=nnx.Rngs(0)),
            "features: got 3; expected an even number",
        ),
        (lambda: TransformerEncoder(F, 0, depth=1, heads=1, rngs=nnx.Rngs(0)), "features: got 0"),
        (lambda: TokenTransformer(0, D, depth=1, heads=1, rngs=nnx.Rngs(0)), "vocabulary: got 0"),
        (lambda: tokeniser()(jnp.ones((T, 2))), r"tokens: got float32\[5, 2\]; expected token"),
        (
            lambda: tokeniser()(jnp.array([0, 7])),
            "tokens: got values from 0 to 7; expected .* 0 to 6",
        ),
        (
            lambda: tokeniser()(jnp.array([-1, 2])),
            "tokens: got values from -1 to 2; expected .* 0 to",
        ),
        (lambda: tokeniser()(jnp.array(3)), r"tokens: got int32\[\]; expected at least 1 step"),
        (
            lambda: tokeniser()(jnp.zeros((4, 2), int), seq_lengths=np.array([1, 5])),
            "seq_lengths: got values from 1 to 5; expected 0 to 4",
        ),
        (
            lambda: next_token_loss(tokeniser(), jnp.zeros((4, 2), int)),
            "model: got a bidirectional Transformer; expected one with causal=True",
        ),
        (lambda: _mask(jnp.array([0, 9])), "tokens: got values from 0 to 9"),
        (lambda: _mask(jnp.array([0, 1]), mask_id=7), "mask_id: got 7; expected one of 7 tokens"),
        (lambda: _mask(jnp.array([0, 0]), mask_id=0, vocabulary=1), "mask_id: got 0"),
        (lambda: _mask(jnp.array([0, 1]), vocabulary=0), "vocabulary: got 0"),
        (lambda: _mask(jnp.array([0, 1]), rate=0.0), "rate: got 0.0; expected a share above 0"),
        (lambda: _mask(jnp.array([0, 1]), rate=1.5), "rate: got 1.5"),
        (
            lambda: _mask(jnp.array([0, 1]), eligible=np.ones(3, bool)),
            r"eligible: got bool\[3\]; expected shape \[2\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(build, message):
    with pytest.raises(InputError, match=message):
        build()


# Dropout.


def test_what_a_sublayer_adds_is_dropped_entry_by_entry():
    """An MLP that adds 1 everywhere, and attention that adds nothing."""
    block = Block(D, N, M, 0.5, jnp.float32, nnx.Rngs(0))
    for kernel in (block.attention.out_kernel, block.kernel_out):
        kernel[...] = jnp.zeros_like(kernel[...])
    block.bias_out[...] = jnp.ones(D)
    xs = jnp.zeros((T, 100, D))
    np.testing.assert_array_equal(block(xs, None, None), np.ones(xs.shape))
    added = np.asarray(block(xs, None, jax.random.key(0)))
    assert {*np.unique(added)} == {0.0, 2.0}
    assert (added == 0).mean() == pytest.approx(0.5, abs=0.05)  # 4 standard errors of 2,000 draws
    assert not (added == added[0]).all()


@pytest.mark.slow
def test_losses_drop_what_their_key_says():
    tokens = jnp.arange(T * 3).reshape(T, 3) % V
    model, dropping = (tokeniser(causal=True, dropout=rate) for rate in (0.0, 0.5))
    key = jax.random.key(0)
    for loss in (next_token_loss, functools.partial(masked_token_loss, key=key, mask_id=V - 1)):
        assert loss(dropping, tokens) == loss(model, tokens)
        assert loss(dropping, tokens, dropout_key=key) != loss(model, tokens)


def test_a_rate_of_one_chooses_every_token():
    found = mask_tokens(
        jnp.ones((5, 2), int), key=jax.random.key(0), mask_id=0, vocabulary=3, rate=1
    )
    assert found.chosen.all()
