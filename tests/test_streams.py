"""A network's time step gives, step by step, what the whole network gives for the sequence so far."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrnn import RNN, Bidirectional, GRUCell, LSTMCell, Stack
from jaxrnn.checks import InputError
from jaxrnn.models import (
    TCN,
    Embedded,
    Embedding,
    EncoderClassifier,
    LanguageModel,
    SequenceClassifier,
    SequenceLabeller,
    mean_step,
    streaming,
)

T, B, F, H, C = 7, 3, 4, 5, 2


def gru(rngs, features=F, **options) -> RNN:
    return RNN(GRUCell(features, H, rngs=rngs), **options)


def stack(rngs) -> Stack:
    layers = [
        RNN(LSTMCell(F, F, rngs=rngs), carry_init=jax.nn.initializers.normal(), rngs=rngs),
        RNN(GRUCell(F, F, rngs=rngs), zoneout=0.2),
    ]
    return Stack(layers, residual=True, norms=[nnx.LayerNorm(F, rngs=rngs) for _ in layers])


MODELS = {
    "classifier": lambda rngs: SequenceClassifier(GRUCell(F, H, rngs=rngs), C, rngs=rngs),
    "dropout": lambda rngs: SequenceClassifier(
        gru(rngs, dropout=0.1, recurrent_dropout=0.1), C, rngs=rngs
    ),
    "labeller": lambda rngs: SequenceLabeller(stack(rngs), C, rngs=rngs),
    "stack": lambda rngs: EncoderClassifier(stack(rngs), C, rngs=rngs),
}
TOKENS = {
    "embedded": lambda rngs: Embedded(
        Embedding(9, F, rngs=rngs), SequenceClassifier(LSTMCell(F, H, rngs=rngs), C, rngs=rngs)
    ),
    "language": lambda rngs: LanguageModel(Embedding(9, F, rngs=rngs), gru(rngs), rngs=rngs),
}
BY_STEP = ("labeller", "language")


@pytest.mark.filterwarnings("ignore:.*dropout_key")
@pytest.mark.parametrize("name", [*MODELS, *TOKENS])
@pytest.mark.parametrize("batch", [(), (B,)])
def test_steps_give_what_the_whole_network_gives(name, batch):
    rngs = nnx.Rngs(0)
    if name in TOKENS:
        model, xs = TOKENS[name](rngs), jax.random.randint(jax.random.key(1), (T, *batch), 0, 9)
    else:
        model, xs = MODELS[name](rngs), jax.random.normal(jax.random.key(1), (T, *batch, F))
    stream = streaming(model)
    step, state = jax.jit(stream.step), stream.start(xs[0])
    for t in range(T):
        state, found = step(state, xs[t])
        expected = model(xs[: t + 1])
        expected = expected[-1] if name in BY_STEP else expected
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda r: EncoderClassifier(gru(r), C, pool=mean_step, rngs=r), "pools all its outputs"),
        (lambda r: EncoderClassifier(TCN(F, H, depth=2, rngs=r), C, rngs=r), "reads by a TCN"),
        (
            lambda r: SequenceLabeller(Bidirectional(gru(r), gru(r)), C, rngs=r),
            "one that reads backwards",
        ),
        (lambda r: SequenceLabeller(gru(r, reverse=True), C, rngs=r), "one that reads backwards"),
        (lambda r: gru(r), "a RNN; expected one of SequenceClassifier"),
        (lambda r: jnp.tanh, "expected one of SequenceClassifier"),
    ],
)
def test_a_network_without_a_step_says_why(model, message):
    with pytest.raises(InputError, match=message):
        streaming(model(nnx.Rngs(0)))
