"""One time step of a network at a time: for inputs that arrive while the answers are already asked for.

    state       = stream.start(x)             before the first step, for inputs like x [*B, F]
    state, y_t  = stream.step(state, x_t)     after each input

The answer after step t is the one that the whole network gives for the sequence up to t. So a network has
such a step if no answer looks at later inputs, and if what it keeps of the earlier ones does not grow: layers
that read forwards, under a readout of each output or of the last one. Dropout is off, zoneout takes its
expectation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.layers import RNN, Bidirectional, Stack
from jaxrnn.models.bodies import Body, Reader, reads_forwards
from jaxrnn.models.classifier import EncoderClassifier, SequenceClassifier
from jaxrnn.models.embeddings import Embedded
from jaxrnn.models.encoder import last_step
from jaxrnn.models.language_model import LanguageModel
from jaxrnn.models.readouts import SequenceLabeller
from jaxrnn.typing import Carry


class Stream(NamedTuple):
    """A network as a step.

    Attributes:
      start: maps inputs of one step, [*B, F] or tokens [*B], to the state before them, of which it reads the
        shape alone.
      step: maps (state, inputs of one step) to (state, answers [*B, C]).
    """

    start: Callable[[Any], Carry]
    step: Callable[[Carry, Any], tuple[Carry, Any]]


@checked
def streaming(model: Any) -> Stream:
    """Return a network's time step.

    Args:
      model: `SequenceClassifier`, `SequenceLabeller`, `LanguageModel`, or `EncoderClassifier` with
        ``pool=last_step``, over layers that read forwards; behind an embedding or not (`Embedded`).

    Raises:
      InputError: a network that looks at later inputs, or of another kind.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> from jaxrnn.models import SequenceClassifier, streaming
      >>> rngs = nnx.Rngs(0)
      >>> model = SequenceClassifier(jaxrnn.GRUCell(1, 16, rngs=rngs), 10, rngs=rngs)
      >>> xs = jnp.ones((64, 32, 1))
      >>> stream = streaming(model)
      >>> state = stream.start(xs[0])
      >>> for x in xs[:3]:
      ...     state, answers = stream.step(state, x)
      >>> bool(jnp.allclose(answers, model(xs[:3]), atol=1e-6))
      True
    """
    if isinstance(model, Embedded):
        inner, embedding = streaming(model.model), model.embedding
        return Stream(
            lambda token: inner.start(embedding(token)),
            lambda state, token: inner.step(state, embedding(token)),
        )
    if isinstance(model, LanguageModel):
        embedding, body = model.embedding, _forwards(model.body)
        read = body.as_step()

        def write(state: Carry, token: Any) -> tuple[Carry, Any]:
            state, y = read(state, embedding(token))
            return state, model.logits(y)

        return Stream(lambda token: body.initialize_carry(embedding(token).shape), write)
    body = _forwards(_body(model))
    step = body.as_step()

    def answer(state: Carry, x: Any) -> tuple[Carry, Any]:
        state, y = step(state, x)
        return state, model.readout(y)

    return Stream(lambda x: body.initialize_carry(x.shape), answer)


_BODIES = {SequenceClassifier: "layer", SequenceLabeller: "body", EncoderClassifier: "encoder"}
"""Under which name a model holds what reads its inputs."""


def _body(model: Any) -> Reader:
    """Return what reads a model's inputs, where one answer a step follows from its outputs."""
    if isinstance(model, EncoderClassifier) and model.pool is not last_step:
        got = "an EncoderClassifier that pools all its outputs"
        checks.refuse("model", got, "pool=last_step: an answer may not look at later inputs")
    name = next((name for kind, name in _BODIES.items() if isinstance(model, kind)), None)
    if name is None:
        expected = ", ".join(kind.__name__ for kind in (*_BODIES, LanguageModel, Embedded))
        checks.refuse("model", f"a {type(model).__name__}", f"one of {expected}")
    return getattr(model, name)


def _forwards(body: Reader) -> RNN | Stack:
    if not isinstance(body, Body):
        expected = "an RNN or a Stack: an encoder without recurrence keeps no state between steps"
        checks.refuse("model", f"one that reads by a {type(body).__name__}", expected)
    if isinstance(body, Bidirectional) or not reads_forwards(body):
        checks.refuse("model", "one that reads backwards", "layers that read forwards")
    return body
