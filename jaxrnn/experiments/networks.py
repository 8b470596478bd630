"""The network for a task: a body of recurrent layers, between what the task gives and what it asks for.

numbers in, one answer a sequence     cell → last output → linear
numbers in, one answer a step         body → linear
tokens in                             the same behind an embedding
a text to read on                     a language model
a text to translate                   an encoder and a decoder with attention
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from flax import nnx

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells import CELLS, make_cell
from jaxrnn.layers import RNN, Bidirectional, Stack
from jaxrnn.models import (
    AdditiveAttention,
    Embedded,
    Embedding,
    EncoderClassifier,
    EncoderDecoder,
    LanguageModel,
    SequenceClassifier,
    SequenceLabeller,
    mean_step,
)
from jaxrnn.tasks import LanguageModelling, Task, Translation

MOST_UNITS = 2**16
"""Most units of a layer, and numbers of an embedding: a matrix of as many rows and columns fills 16 GiB."""

_MOST_LAYERS = 1_000  # each is compiled by itself


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """What to train.

    Attributes:
      cell: a cell's name, as `jaxrnn cells` lists them.
      hidden_features: units of a layer.
      layers: layers above each other.
      bidirectional: read forwards and backwards, in every layer.
      embedding_features: numbers by which a token is read, in tasks on tokens.
      dropout: share of a layer's inputs to drop (Gal & Ghahramani 2016).
      recurrent_dropout: share of units that the recurrent weights do not see.
      variational: one dropout mask a sequence; without it a new one at every step.
      zoneout: share of units that stay as they are at each step (Krueger et al. 2017).
    """

    cell: str = "gru"
    hidden_features: int = 64
    layers: int = 1
    bidirectional: bool = False
    embedding_features: int = 64
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    variational: bool = True
    zoneout: float = 0.0

    def check(self) -> None:
        """Refuse a cell that is not in the table, and sizes that are none."""
        checks.choice("cell", self.cell, CELLS)
        for field in ("hidden_features", "layers", "embedding_features"):
            checks.count(field, getattr(self, field))
            most = _MOST_LAYERS if field == "layers" else MOST_UNITS
            checks.within(field, getattr(self, field), 1, most)
        for field in ("dropout", "recurrent_dropout", "zoneout"):
            checks.rate(field, getattr(self, field))


@checked
def network(config: NetworkConfig, task: Task) -> Callable[[nnx.Rngs], Any]:
    """Return the function that makes one network for a task from its random streams.

    Raises:
      InputError: a network that reads backwards, for a task of foretelling.
    """
    if config.bidirectional and task.forecast:
        expected = f"False: {task.name} asks for what comes next, which reading backwards shows"
        checks.refuse("bidirectional", True, expected)

    def make(rngs: nnx.Rngs) -> Any:
        if not task.tokens:
            return _reader(config, task, task.in_features, rngs)
        embedding = Embedding(task.tokens, config.embedding_features, rngs=rngs)
        if isinstance(task, LanguageModelling):
            body = _body(config, config.embedding_features, rngs)
            return LanguageModel(embedding, body, rngs=rngs)
        if isinstance(task, Translation):
            return _translator(config, task, embedding, rngs)
        return Embedded(embedding, _reader(config, task, config.embedding_features, rngs))

    return make


def _reader(config: NetworkConfig, task: Task, in_features: int, rngs: nnx.Rngs) -> Any:
    """Return the network from vectors to answers."""
    body = _body(config, in_features, rngs)
    if task.answers == "step":
        return SequenceLabeller(body, task.outputs, rngs=rngs)
    if isinstance(body, RNN):
        return SequenceClassifier(body, task.outputs, rngs=rngs)
    if config.bidirectional:  # whose backward half has seen but one step at the last
        return EncoderClassifier(body, task.outputs, pool=mean_step, rngs=rngs)
    return EncoderClassifier(body, task.outputs, rngs=rngs)


def _translator(
    config: NetworkConfig, task: Translation, source: Embedding, rngs: nnx.Rngs
) -> EncoderDecoder:
    """Return an encoder and a decoder of the same cell, with additive attention between them."""
    encoder = _body(config, config.embedding_features, rngs)
    width = CELLS[config.cell].outputs(config.hidden_features)
    read = 2 * width if config.bidirectional else width
    words = task.target_vocabulary
    in_features = config.embedding_features + read
    return EncoderDecoder(
        source,
        encoder,
        Embedding(len(words), config.embedding_features, rngs=rngs),
        make_cell(config.cell, in_features, config.hidden_features, rngs=rngs),
        attention=AdditiveAttention(width, read, width, rngs=rngs),
        start=words.pad,
        end=task.end,
        rngs=rngs,
    )


def _body(config: NetworkConfig, in_features: int, rngs: nnx.Rngs) -> RNN | Bidirectional | Stack:
    layers, features = [], in_features
    for _ in range(config.layers):
        layers.append(_layer(config, features, rngs))
        width = CELLS[config.cell].outputs(config.hidden_features)
        features = 2 * width if config.bidirectional else width
    return layers[0] if config.layers == 1 else Stack(layers)


def _layer(config: NetworkConfig, in_features: int, rngs: nnx.Rngs) -> RNN | Bidirectional:
    def rnn() -> RNN:
        cell = make_cell(config.cell, in_features, config.hidden_features, rngs=rngs)
        return RNN(
            cell,
            dropout=config.dropout,
            recurrent_dropout=config.recurrent_dropout,
            variational=config.variational,
            zoneout=config.zoneout,
        )

    return Bidirectional(rnn(), rnn()) if config.bidirectional else rnn()
