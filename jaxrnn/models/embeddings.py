"""Tokens as vectors: the row of a table that belongs to a token.

    x_t = E[token_t]

The table is a weight matrix behind one-hot inputs, of which one row at a time is read; a token that never
comes is never learnt. It starts at random, or from vectors that were trained on other text
(`jaxrnn.models.WordVectors`). The rows are drawn from N(0, 1/F), so that a vector has a length of about 1
whatever the size of the vocabulary: Glorot's rule would take V, of which one entry is not zero, for the
fan-in and start all words near the origin.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.typing import ArrayLike, Initializer


class Embedding(nnx.Module):
    """A table of one vector a token.

    Args:
      tokens: size V of the vocabulary.
      features: size F of a vector.
      table_init: initialiser of the table [V, F].
      param_dtype: dtype of the table.
      rngs: ``nnx.Rngs`` whose ``params`` stream draws the table.

    Attributes:
      table: the vectors [V, F].

    Raises:
      InputError: a size that is not a whole number above 0.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn.models import Embedding
      >>> Embedding(100, 16, rngs=nnx.Rngs(0))(jnp.array([[3, 99], [0, 3]])).shape
      (2, 2, 16)
    """

    @checked
    def __init__(
        self,
        tokens: int,
        features: int,
        *,
        table_init: Initializer | None = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        checks.floating_dtype("param_dtype", param_dtype)
        checks.count("tokens", tokens)
        checks.count("features", features)
        table_init = table_init or jax.nn.initializers.normal(features**-0.5)
        self.table = nnx.Param(table_init(rngs.params(), (tokens, features), param_dtype))

    @classmethod
    @checked
    def from_vectors(
        cls, vectors: Float[ArrayLike, "V F"], *, param_dtype: Any = jnp.float32
    ) -> Embedding:
        """Return an embedding that starts from given vectors.

        Raises:
          InputError: values that are not finite.
        """
        checks.finite("vectors", vectors)

        def given(key, shape, dtype):
            del key, shape  # nothing is drawn
            return jnp.asarray(vectors).astype(dtype)

        tokens, features = vectors.shape
        return cls(tokens, features, table_init=given, param_dtype=param_dtype, rngs=nnx.Rngs(0))

    @property
    def tokens(self) -> int:
        """Size V of the vocabulary."""
        return self.table.shape[0]

    @property
    def features(self) -> int:
        """Size F of a vector."""
        return self.table.shape[1]

    @checked
    def __call__(self, tokens: Int[ArrayLike, "*N"] | Any) -> Float[Array, "*N F"]:
        """Map token numbers to their vectors.

        Raises:
          InputError: a number outside 0 to V − 1, where values can be looked at; under ``jax.jit`` such a
            token, a negative one too, reads as NaN.
        """
        rows = self.table[...].at[checked_tokens("tokens", tokens, self.tokens)]
        return rows.get(mode="fill", fill_value=np.nan, wrap_negative_indices=False)


class Embedded(nnx.Module):
    """A model of vectors made a model of tokens, by an embedding in front of it.

    Args:
      embedding: maps tokens to vectors.
      model: maps sequences of vectors [T, *B, F], as `SequenceClassifier` and `SequenceLabeller` do.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> from jaxrnn.models import Embedded, Embedding, SequenceClassifier
      >>> rngs = nnx.Rngs(0)
      >>> model = SequenceClassifier(jaxrnn.GRUCell(16, 8, rngs=rngs), 2, rngs=rngs)
      >>> Embedded(Embedding(100, 16, rngs=rngs), model)(jnp.ones((20, 4), int)).shape
      (4, 2)
    """

    @checked
    def __init__(self, embedding: Embedding, model: Any):
        self.embedding = embedding
        self.model = model

    @checked
    def __call__(self, tokens: Int[ArrayLike, "T *B"], **options: Any) -> Any:
        """Map tokens [T, *B] to what the model makes of their vectors; `options` are the model's."""
        return self.model(self.embedding(tokens), **options)


def check_tokens(argument: str, tokens: Any, vocabulary: int) -> None:
    """Refuse what are no token numbers from 0 to `vocabulary` − 1."""
    if not jnp.issubdtype(checks.as_array(argument, tokens).dtype, jnp.integer):
        checks.refuse(argument, checks.describe(tokens), "token numbers, which are integers")
    if checks.concrete(tokens) and jnp.size(tokens):
        values = np.asarray(tokens)  # NumPy's minimum of a JAX array would be traced under jit
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= vocabulary:
            expected = f"token numbers from 0 to {vocabulary - 1}"
            checks.refuse(argument, f"values from {low} to {high}", expected)


def checked_tokens(argument: str, tokens: Any, vocabulary: int) -> Int[Array, "..."]:
    """Return tokens as int32, which holds every token, start and mask; refuse as `check_tokens` does."""
    check_tokens(argument, tokens, vocabulary)
    return jnp.asarray(tokens).astype(jnp.int32)


def check_embedding(argument: str, embedding: Any, features: int | None, dtype: Any) -> None:
    """Refuse what is no embedding, or one whose vectors its reader cannot take; None takes any size."""
    if not isinstance(embedding, Embedding):
        checks.refuse(argument, type(embedding).__name__, "an Embedding of jaxrnn")
    if features is not None and embedding.features != features:
        expected = f"{features}, as its reader takes"
        checks.refuse(argument, f"vectors of {embedding.features} features", expected)
    if embedding.table.dtype != dtype:
        checks.refuse(argument, f"dtype {embedding.table.dtype}", f"{dtype}, as its reader takes")
