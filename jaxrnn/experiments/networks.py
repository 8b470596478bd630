"""The network for a task: a body that reads the sequence, between what the task gives and what it asks for.

numbers in, one answer a sequence     cell → last output → linear
numbers in, one answer a step         body → linear
tokens in                             the same behind an embedding
a text to read on                     a language model
a text to translate                   an encoder and a decoder with attention

The body is recurrent, or, to compare with, a windowed MLP, a TCN or a Transformer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from flax import nnx

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells import CELLS, make_cell
from jaxrnn.experiments.starts import STARTS, start_cell
from jaxrnn.layers import RNN, Bidirectional, Stack
from jaxrnn.models import (
    TCN,
    AdditiveAttention,
    Embedded,
    Embedding,
    EncoderClassifier,
    EncoderDecoder,
    LanguageModel,
    SequenceClassifier,
    SequenceLabeller,
    TransformerEncoder,
    WindowedMLP,
    mean_step,
)
from jaxrnn.models.encoder import SequenceEncoder
from jaxrnn.tasks import LanguageModelling, Task, Translation
from jaxrnn.training.config import check_values
from jaxrnn.training.penalties import Values, several

MOST_UNITS = 2**16
"""Most units of a layer, and numbers of an embedding: a matrix of as many rows and columns fills 16 GiB."""

_MOST_LAYERS = 1_000  # each is compiled by itself
_MOST_WINDOW = 2**16

BODIES = ("recurrent", "window", "tcn", "transformer")
"""What reads the sequence: recurrent layers, a windowed MLP, a TCN or a Transformer."""

NORMS: dict[str, Callable[..., Any]] = {"layer": nnx.LayerNorm, "rms": nnx.RMSNorm}
"""Norms between layers (Ba et al. 2016; Zhang & Sennrich 2019)."""

_SWEPT = ("recurrent_gain", "input_gain", "forget_bias")
"""Settings that are factors and terms in the weights at the start, so that one program serves every value."""


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """What to train.

    Attributes:
      cell: a cell's name, as `jaxrnn cells` lists them.
      hidden_features: units of a layer.
      layers: layers above each other; blocks of a TCN or a Transformer.
      bidirectional: read forwards and backwards, in every layer; a Transformer then sees all steps, and
        otherwise those up to the present one.
      embedding_features: numbers by which a token is read, in tasks on tokens.
      dropout: share of a layer's inputs to drop (Gal & Ghahramani 2016).
      recurrent_dropout: share of units that the recurrent weights do not see.
      variational: one dropout mask a sequence; without it a new one at every step.
      zoneout: share of units that stay as they are at each step (Krueger et al. 2017).
      residual: add the inputs of each layer above the lowest to its outputs.
      norm: "layer" or "rms", of the inputs of each layer above the lowest; by default none.
      recurrent_init: how recurrent matrices start: "orthogonal", "glorot", "identity", "spectral-radius" or
        "normal"; by default as the cell has it.
      recurrent_gain: factor on the recurrent matrices at the start; several are tried side by side.
      input_gain: factor on the input matrices at the start; several are tried side by side.
      forget_bias: bias at the start of the gate that keeps the state, the forget gate of an LSTM or the
        update gate of a GRU; several are tried side by side; by default as the cell has it.
      chrono: longest lag, in steps, over which that gate's biases are spread (Tallec & Ollivier 2018), in
        place of `forget_bias`.
      body: what reads the sequence: "recurrent", or, to compare with, "window", "tcn" or "transformer".
      window: inputs that a windowed MLP sees.
      kernel_size: steps that a kernel of a TCN reads.
      heads: heads of a Transformer's attention.
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
    residual: bool = False
    norm: str | None = None
    recurrent_init: str | None = None
    recurrent_gain: Values = 1.0
    input_gain: Values = 1.0
    forget_bias: Values | None = None
    chrono: float | None = None
    body: str = "recurrent"
    window: int = 16
    kernel_size: int = 3
    heads: int = 4

    def check(self) -> None:
        """Require a cell of the table, valid sizes, and no setting without effect."""
        checks.choice("cell", self.cell, CELLS)
        checks.choice("body", self.body, BODIES)
        for field, most in (
            ("hidden_features", MOST_UNITS),
            ("layers", _MOST_LAYERS),
            ("embedding_features", MOST_UNITS),
            ("window", _MOST_WINDOW),
            ("kernel_size", _MOST_WINDOW),
            ("heads", MOST_UNITS),
        ):
            checks.count(field, getattr(self, field))
            checks.within(field, getattr(self, field), 1, most)
        for field in ("dropout", "recurrent_dropout", "zoneout"):
            checks.rate(field, getattr(self, field))
        for field, options in (("norm", NORMS), ("recurrent_init", STARTS)):
            if getattr(self, field) is not None:
                checks.choice(field, getattr(self, field), options)
        for field in _SWEPT:
            check_values(field, getattr(self, field), checks.finite_float32, once=False)
        if self.chrono is not None:
            checks.positive_float32("chrono", self.chrono)
            if self.chrono <= 2:
                checks.refuse("chrono", self.chrono, "a lag of more than 2 steps")
            if self.forget_bias is not None:
                checks.refuse(
                    "chrono", self.chrono, "None where forget_bias is given: it is in its place"
                )
        self._check_effect()

    def _check_effect(self) -> None:
        """Refuse settings that this body has no place for, unless they are as they are by default."""
        default, places = NetworkConfig(), _PLACES[self.body]
        for field in dataclasses.fields(self):
            has_place = field.name in places or field.name in ("body", "cell", *_EVERYWHERE)
            if not has_place and getattr(self, field.name) != getattr(default, field.name):
                bodies = ", ".join(body for body, names in _PLACES.items() if field.name in names)
                got = f"{getattr(self, field.name)} with body={self.body!r}"
                checks.refuse(field.name, got, f"its default, or one of the bodies {bodies}")

    @property
    def variants(self) -> dict[str, tuple[float, ...]]:
        """The settings of which several values are tried, and the values."""
        given = {name: several(getattr(self, name)) for name in _SWEPT}
        return {name: values for name, values in given.items() if len(values) > 1}


_EVERYWHERE = ("hidden_features", "layers", "embedding_features")

_RECURRENT = (
    "bidirectional",
    "dropout",
    "recurrent_dropout",
    "variational",
    "zoneout",
    "residual",
    "norm",
    "recurrent_init",
    "chrono",
    *_SWEPT,
)

_PLACES: dict[str, tuple[str, ...]] = {
    "recurrent": _RECURRENT,
    "window": ("window",),
    "tcn": ("kernel_size", "dropout"),
    "transformer": ("heads", "bidirectional", "dropout"),
}
"""The settings that have an effect, by body."""


@checked
def network(config: NetworkConfig, task: Task) -> Callable[..., Any]:
    """Return the function that makes one network for a task from its random streams.

    Where `config` has several values of a setting, the function takes one of them by the setting's name.

    Raises:
      InputError: a network that reads backwards, for a task of predicting what comes next; a body that hands
        on no state, for a task that needs it; or weights that the cell does not have.
    """
    config.check()
    if config.bidirectional and task.forecast:
        expected = f"False: {task.name} asks for what comes next, which reading backwards shows"
        checks.refuse("bidirectional", True, expected)
    if config.body != "recurrent" and isinstance(task, LanguageModelling | Translation):
        expected = f"'recurrent': {task.name} is read on from a state"
        checks.refuse("body", repr(config.body), expected)

    def make(rngs: nnx.Rngs, **variant: Any) -> Any:
        starts = {name: getattr(config, name) for name in _SWEPT}
        return _Maker(config, {**starts, **variant}, rngs).network(task)

    return make


class _Maker(NamedTuple):
    """Makes the parts of one network.

    Attributes:
      config: what to make.
      starts: this network's own gains and biases, numbers or traced ones.
      rngs: draws the weights.
    """

    config: NetworkConfig
    starts: dict[str, Any]
    rngs: nnx.Rngs

    def network(self, task: Task) -> Any:
        """Return the network for a task."""
        if not task.tokens:
            return self.reader(task, task.in_features)
        features = self.config.embedding_features
        embedding = Embedding(task.tokens, features, rngs=self.rngs)
        if isinstance(task, LanguageModelling):
            return LanguageModel(embedding, self.layers(features), rngs=self.rngs)
        if isinstance(task, Translation):
            return self.translator(task, embedding)
        return Embedded(embedding, self.reader(task, features))

    def reader(self, task: Task, in_features: int) -> Any:
        """Return the network from vectors to answers."""
        body = self.body(in_features)
        if task.answers == "step":
            return SequenceLabeller(body, task.outputs, rngs=self.rngs)
        if isinstance(body, RNN):
            return SequenceClassifier(body, task.outputs, rngs=self.rngs)
        if self.config.bidirectional:  # whose backward half has seen but one step at the last
            return EncoderClassifier(body, task.outputs, pool=mean_step, rngs=self.rngs)
        return EncoderClassifier(body, task.outputs, rngs=self.rngs)

    def translator(self, task: Translation, source: Embedding) -> EncoderDecoder:
        """Return an encoder and a decoder of the same cell, with additive attention between them."""
        features = self.config.embedding_features
        encoder = self.layers(features)
        width = CELLS[self.config.cell].outputs(self.config.hidden_features)
        read = 2 * width if self.config.bidirectional else width
        words = task.target_vocabulary
        return EncoderDecoder(
            source,
            encoder,
            Embedding(len(words), features, rngs=self.rngs),
            self.cell(features + read),
            attention=AdditiveAttention(width, read, width, rngs=self.rngs),
            start=words.pad,
            end=task.end,
            rngs=self.rngs,
        )

    def body(self, in_features: int) -> RNN | Bidirectional | Stack | SequenceEncoder:
        """Return what reads the sequence."""
        config, units = self.config, self.config.hidden_features
        if config.body == "window":
            return WindowedMLP(
                in_features, units, window=config.window, depth=config.layers, rngs=self.rngs
            )
        if config.body == "tcn":
            return TCN(
                in_features,
                units,
                depth=config.layers,
                kernel_size=config.kernel_size,
                dropout=config.dropout,
                rngs=self.rngs,
            )
        if config.body == "transformer":
            return TransformerEncoder(
                in_features,
                units,
                depth=config.layers,
                heads=config.heads,
                causal=not config.bidirectional,
                dropout=config.dropout,
                rngs=self.rngs,
            )
        return self.layers(in_features)

    def layers(self, in_features: int) -> RNN | Bidirectional | Stack:
        """Return recurrent layers above each other, or the one there is."""
        config = self.config
        width = CELLS[config.cell].outputs(config.hidden_features)
        above = 2 * width if config.bidirectional else width
        layers = [self.layer(above if level else in_features) for level in range(config.layers)]
        if len(layers) == 1:
            return layers[0]
        # The lowest layer reads the input itself, whose size is another, and whose norm may say nothing: an
        # input of one feature is 0 behind a layer norm.
        residual = [config.residual and level > 0 for level in range(config.layers)]
        if config.norm is None:
            return Stack(layers, residual=residual)
        norms = [
            NORMS[config.norm](above, rngs=self.rngs) if level else None
            for level in range(config.layers)
        ]
        return Stack(layers, residual=residual, norms=norms)

    def layer(self, in_features: int) -> RNN | Bidirectional:
        """Return one recurrent layer."""
        if self.config.bidirectional:
            return Bidirectional(self.rnn(in_features), self.rnn(in_features))
        return self.rnn(in_features)

    def rnn(self, in_features: int) -> RNN:
        """Return a cell carried forwards through time."""
        config = self.config
        return RNN(
            self.cell(in_features),
            dropout=config.dropout,
            recurrent_dropout=config.recurrent_dropout,
            variational=config.variational,
            zoneout=config.zoneout,
        )

    def cell(self, in_features: int) -> Any:
        """Return a cell with its weights where they start."""
        config = self.config
        return start_cell(
            make_cell(config.cell, in_features, config.hidden_features, rngs=self.rngs),
            recurrent_init=config.recurrent_init,
            chrono=config.chrono,
            rngs=self.rngs,
            **self.starts,
        )
