"""Sequence to sequence: one network reads the source, another writes the target.

    h_1 … h_L = encoder(E x_1 … E x_L)        z: the encoder's last carry, all of it
    s_0       = the cell's own + tanh(V z + b)     in the leaves that the cell lets others set
    s_i, y_i  = cell(s_i−1, [E' t_i−1 ; c_i−1])     t_0 a start token
    c_i       = attention(y_i, h)              or, without attention, c_i = c_0 = tanh(W z + d)
    log p(t_i | t_1 … t_i−1, x) = log softmax(U [y_i ; c_i] + e)

Without attention this is the encoder–decoder of Cho et al. (2014): a fixed vector c starts the decoder, is
read at every step and enters every answer. Sutskever et al. (2014) hand the encoder's state itself to a
decoder of the same kind and size, and nothing after that. Cho's way is taken because it leaves encoder and
cell free, and because attention then changes one thing alone: c_i.

With attention the query is y_i, after the step, and c_i is fed to the next one: the order of Luong et al.
(2015), with their input feeding, for the additive score too. Bahdanau et al. (2015) ask before the step,
with s_i−1; asking after it needs nothing of a cell but its output. c_0 is zero. The readout is linear,
where these papers put a maxout or tanh layer below the softmax.

Weakness: target steps are taken one after another, and training always shows the true past (teacher
forcing), which decoding does not have (Bengio et al. 2015).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells.base import free_leaves
from jaxrnn.models.attention import Attention, Memory, listed
from jaxrnn.models.bodies import Body, sizes
from jaxrnn.models.embeddings import Embedding, check_embedding, check_tokens, checked_tokens
from jaxrnn.models.readouts import cross_entropy, linear
from jaxrnn.steps import compiled
from jaxrnn.typing import ArrayLike, Carry, Key, Lengths
from jaxrnn.unrolling import padding_mask
from jaxrnn.unrolling.record import seen


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoded:
    """What a decoder made of a source and a target; all of it zero at padded target steps.

    Attributes:
      logits: of target token i, given those before it [T, *B, V].
      contexts: the contexts c_i [T, *B, Y].
      weights: the attention weights α_i over the source [T, L, *B]; None without attention.
    """

    logits: Float[Array, "T *B V"]
    contexts: Float[Array, "T *B Y"]
    weights: Float[Array, "T L *B"] | None


State = tuple[Carry, Float[Array, "*B Y"]]
"""What a decoder hands to its next step: the cell's carry, and the context."""


@listed
class Written(NamedTuple):
    """What one step of a decoder gives.

    Attributes:
      output: of the cell [*B, Y].
      context: c_i [*B, Y of the encoder].
      weights: of the attention [L, *B], or None.
    """

    output: Any
    context: Any
    weights: Any


class EncoderDecoder(nnx.Module):
    """An encoder, a decoder's cell, and a fixed context or attention between them.

    Args:
      source: embedding of the source's tokens; its size is the encoder's number of input features.
      encoder: `RNN`, `Bidirectional` or `Stack`, with Y output features.
      target: embedding of the target's tokens, with F features.
      cell: the decoder's cell, of F + Y input features.
      attention: from the cell's outputs to the encoder's; None for a fixed context.
      start: token that stands before every target; it needs no other meaning.
      end: token that ends a target, for decoding.
      rngs: ``nnx.Rngs`` whose ``params`` stream draws the weights of the maps between the parts.

    Raises:
      InputError: parts whose sizes do not fit each other; the message names them.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import GRUCell, RNN
      >>> from jaxrnn.models import AdditiveAttention, Embedding, EncoderDecoder
      >>> rngs = nnx.Rngs(0)
      >>> model = EncoderDecoder(
      ...     Embedding(50, 8, rngs=rngs),
      ...     RNN(GRUCell(8, 16, rngs=rngs)),
      ...     Embedding(40, 8, rngs=rngs),
      ...     GRUCell(8 + 16, 12, rngs=rngs),
      ...     attention=AdditiveAttention(12, 16, 10, rngs=rngs),
      ...     start=0,
      ...     end=1,
      ...     rngs=rngs,
      ... )
      >>> decoded = model(jnp.ones((9, 4), int), jnp.ones((7, 4), int))
      >>> decoded.logits.shape, decoded.contexts.shape, decoded.weights.shape
      ((7, 4, 40), (7, 4, 16), (7, 9, 4))
    """

    @checked
    def __init__(
        self,
        source: Embedding | Any,
        encoder: Body | Any,
        target: Embedding | Any,
        cell: Any,
        *,
        attention: Attention | Any = None,
        start: int,
        end: int,
        rngs: nnx.Rngs,
    ):
        read = sizes("encoder", encoder)
        check_embedding("source", source, read.in_features, read.dtype)
        check_embedding("target", target, None, read.dtype)
        for name, token in (("start", start), ("end", end)):
            check_tokens(name, token, target.tokens)
        start_size, out_features = _cell(cell, target.features + read.out_features, read.dtype)
        _check_attention(attention, out_features, read.out_features)
        self.source = source
        self.encoder = encoder
        self.target = target
        self.cell = cell
        self.attention = attention
        self.start = start
        self.end = end
        state, y = _state_size("encoder", jax.tree.leaves(read.carry)), read.out_features
        self.first_carry = linear(state, start_size, read.dtype, rngs) if start_size else None
        self.fixed_context = None if attention else linear(state, y, read.dtype, rngs)
        self.readout = linear(out_features + y, target.tokens, read.dtype, rngs)

    @checked
    def __call__(
        self,
        sources: Int[ArrayLike, "L *B"] | Any,
        targets: Int[ArrayLike, "T *B"] | Any,
        *,
        seq_lengths: Lengths | Any = None,
        target_lengths: Lengths | Any = None,
        dropout_key: Key | Any = None,
    ) -> Decoded:
        """Read sources and predict each token of the targets from those before it (teacher forcing).

        Args:
          sources: tokens [L, *B]; at padded steps any.
          targets: tokens [T, *B], without a start token; with their end token, if decoding is to end.
          seq_lengths: valid steps of each source [*B].
          target_lengths: valid steps of each target [*B].
          dropout_key: draws the dropout masks of the encoder.

        Raises:
          InputError: tokens outside their vocabulary, or lengths that do not fit.
        """
        for name, tokens in (("sources", sources), ("targets", targets)):
            checks.sequences(name, tokens)
        checks.shape("targets", targets, (targets.shape[0], *sources.shape[1:]), "[T, *B]")
        sources, lengths = checked_sequences(
            "sources", sources, self.source.tokens, "seq_lengths", seq_lengths
        )
        targets, written = checked_sequences(
            "targets", targets, self.target.tokens, "target_lengths", target_lengths
        )
        return _forced(self, sources, targets, lengths, written, dropout_key)

    @checked
    def loss(
        self,
        sources: Int[ArrayLike, "L *B"] | Any,
        targets: Int[ArrayLike, "T *B"] | Any,
        *,
        seq_lengths: Lengths | Any = None,
        target_lengths: Lengths | Any = None,
        dropout_key: Key | Any = None,
    ) -> Float[Array, ""]:
        """Return the mean of −log p(t_i | t_1 … t_i−1, x), in nats a valid token; 0 if there is none."""
        decoded = self(
            sources,
            targets,
            seq_lengths=seq_lengths,
            target_lengths=target_lengths,
            dropout_key=dropout_key,
        )
        steps, *batch = targets.shape
        valid = padding_mask(target_lengths, None, steps, tuple(batch))
        return cross_entropy(decoded.logits, targets, valid)

    @checked
    def encode(
        self,
        sources: Int[ArrayLike, "L *B"] | Any,
        *,
        seq_lengths: Lengths | Any = None,
        dropout_key: Key | Any = None,
    ) -> tuple[Memory | None, State]:
        """Read sources; return what attention asks, and the state from which to write."""
        steps, *batch = sources.shape
        last, outputs = self.encoder(
            self.source(sources),
            seq_lengths=seq_lengths,
            dropout_key=dropout_key,
            time_major=True,
            return_carry=True,
        )
        z = jnp.concatenate([leaf.reshape(*batch, -1) for leaf in jax.tree.leaves(last)], axis=-1)
        carry = self._first_carry(z)
        if self.attention is None:
            return None, (carry, jnp.tanh(_present(self.fixed_context)(z)))
        valid = padding_mask(seq_lengths, None, steps, tuple(batch))
        return self.attention.memory(outputs, valid), (carry, jnp.zeros_like(outputs[0]))

    def write(
        self, memory: Memory | None, state: State, inputs: Float[Array, "*B F"]
    ) -> tuple[State, Written]:
        """Take one step, from the embedded token before."""
        carry, context = state
        carry, y = self.cell(carry, jnp.concatenate([inputs, context], axis=-1))
        weights = None
        if self.attention is not None:
            context, weights = self.attention(y, _present(memory))
        return (carry, context), Written(y, context, weights)

    def logits(self, written: Written) -> Float[Array, "*B V"]:
        """Read the logits of the token that a step is to write."""
        return self.readout(jnp.concatenate([written.output, written.context], axis=-1))

    def _first_carry(self, z: Float[Array, "*B S"]) -> Carry:
        """Return the cell's own initial carry, plus tanh(V z + b) where others may set it."""
        own = self.cell.initialize_carry((*z.shape[:-1], self.cell.in_features), rngs=nnx.Rngs(0))
        if self.first_carry is None:
            return own
        leaves, structure = jax.tree.flatten(own)
        free = free_leaves(self.cell, own)
        ends = np.cumsum([math.prod(leaves[i].shape[z.ndim - 1 :]) for i in free])
        parts = jnp.split(jnp.tanh(self.first_carry(z)), ends[:-1], axis=-1)
        for i, part in zip(free, parts, strict=True):
            leaves[i] = leaves[i] + part.reshape(leaves[i].shape)
        return jax.tree.unflatten(structure, leaves)


@compiled
def _forced(
    model: EncoderDecoder,
    sources: Any,
    targets: Any,
    source_lengths: Any,
    target_lengths: Any,
    dropout_key: Any,
) -> Decoded:
    memory, start = model.encode(sources, seq_lengths=source_lengths, dropout_key=dropout_key)
    before = jnp.concatenate([jnp.full_like(targets[:1], model.start), targets[:-1]])
    _, written = jax.lax.scan(functools.partial(model.write, memory), start, model.target(before))
    valid = padding_mask(target_lengths, None, targets.shape[0], targets.shape[1:])
    logits, contexts = seen((model.logits(written), written.context), valid)
    weights = written.weights
    if weights is not None and valid is not None:
        weights = jnp.where(valid[:, None], weights, 0)
    return Decoded(logits, contexts, weights)


def checked_sequences(
    argument: str, tokens: Any, vocabulary: int, lengths_argument: str, lengths: Any
) -> tuple[Int[Array, "T *B"], Any]:
    """Return tokens, 0 at padded steps, and their lengths, or None; refuse what does not fit."""
    steps, *batch = tokens.shape
    valid = padding_mask(lengths, None, steps, tuple(batch), lengths_argument)
    # Before it is embedded: a token of the padding that no table has would read as NaN.
    tokens = checked_tokens(argument, seen(tokens, valid), vocabulary)
    return tokens, None if lengths is None else jnp.asarray(lengths)


def _present(part: Any) -> Any:
    """Return a part that this kind of model has."""
    assert part is not None
    return part


def _cell(cell: Any, in_features: int, dtype: Any) -> tuple[int, int]:
    """Return how many entries of a cell's carry others may set, and the size of its output."""
    if not hasattr(cell, "initialize_carry"):
        checks.refuse("cell", type(cell).__name__, "a cell, with initialize_carry")
    if cell.in_features != in_features:
        expected = f"{in_features}: those of the target's embedding and the encoder's outputs"
        checks.refuse("cell", f"{cell.in_features} input features", expected)
    if jax.tree.leaves(nnx.state(cell))[0].dtype != dtype:
        checks.refuse("cell", f"weights of {jax.tree.leaves(cell)[0].dtype}", f"{dtype}")
    carry = jax.eval_shape(lambda: cell.initialize_carry((in_features,), rngs=nnx.Rngs(0)))
    _, y = jax.eval_shape(cell, carry, jax.ShapeDtypeStruct((in_features,), dtype))
    leaves = jax.tree.leaves(carry)
    return _state_size("cell", [leaves[i] for i in free_leaves(cell, carry)]), y.shape[-1]


def _state_size(argument: str, leaves: Sequence[Any]) -> int:
    """Return the number of entries of a carry's leaves, all of which must be real numbers."""
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            checks.refuse(argument, f"a carry of {leaf.dtype}", "a carry of real numbers")
    return sum(leaf.size for leaf in leaves)


def _check_attention(attention: Any, query: int, value: int) -> None:
    """Refuse attention between other sizes than those of decoder and encoder."""
    if attention is None:
        return
    if not isinstance(attention, Attention):
        checks.refuse("attention", type(attention).__name__, "an Attention of jaxrnn, or None")
    if (attention.query_features, attention.value_features) != (query, value):
        got = f"queries of {attention.query_features} and values of {attention.value_features}"
        expected = f"queries of {query}, the cell's outputs, and values of {value}, the encoder's"
        checks.refuse("attention", got, expected)
