"""From the outputs of a body to answers: one a sequence, a step or a token, and their loss.

    a sequence   logits   = V y_T + d      `SequenceClassifier`
    a step       logits_t = V y_t + d      `SequenceLabeller`, also called a tagger
    a token      logits_t = V y_t + d      `LanguageModel`, over the next token

All answers are judged by the same number, the mean cross-entropy −log p(target) over what counts, in nats;
its exponential is the perplexity, the number of equally likely choices that would leave one as unsure.
A mean over nothing is 0, in this loss and in those of all models.

Readouts start as Glorot & Bengio (2010) have it, but for that of `SequenceClassifier`, which starts as
Flax's `nnx.Linear` does, since the published numbers were measured so. Weakness: labels of neighbouring
steps are taken as independent given the inputs; a grammar of labels (a CRF above the readout) is not
modelled.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells import initializers
from jaxrnn.models.bodies import Reader, ends, outputs
from jaxrnn.models.embeddings import checked_tokens
from jaxrnn.typing import ArrayLike, Key, Lengths, at_least_float32
from jaxrnn.unrolling.record import seen


def linear(in_features: int, out_features: int, dtype: Any, rngs: nnx.Rngs) -> nnx.Linear:
    """Return a linear map whose weights start as Glorot & Bengio have it, and whose biases start at 0."""
    return nnx.Linear(
        in_features,
        out_features,
        kernel_init=initializers.glorot(),
        dtype=dtype,
        param_dtype=dtype,
        rngs=rngs,
    )


class SequenceLabeller(nnx.Module):
    """A body and a linear readout of each of its outputs: one label a step.

    Args:
      body: `RNN`, `Bidirectional`, `Stack` or a `SequenceEncoder`; a `HierarchicalRNN` has an output, and so
        a label, a window.
      classes: number of labels C.
      rngs: ``nnx.Rngs`` whose ``params`` stream draws the readout's weights.

    Raises:
      InputError: a body that is no layer and no encoder, or a number of classes below 1.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn import Bidirectional, GRUCell, RNN
      >>> from jaxrnn.models import SequenceLabeller
      >>> rngs = nnx.Rngs(0)
      >>> body = Bidirectional(RNN(GRUCell(3, 8, rngs=rngs)), RNN(GRUCell(3, 8, rngs=rngs)))
      >>> SequenceLabeller(body, 5, rngs=rngs)(jnp.ones((20, 4, 3))).shape
      (20, 4, 5)
    """

    @checked
    def __init__(self, body: Reader | Any, classes: int, *, rngs: nnx.Rngs):
        features, dtype = ends("body", body)
        checks.count("classes", classes)
        self.body = body
        self.readout = linear(features, classes, dtype, rngs)

    @checked
    def __call__(
        self,
        xs: Float[ArrayLike, "T *B F"],
        *,
        seq_lengths: Lengths | Any = None,
        dropout_key: Key | Any = None,
    ) -> Float[Array, "U *B C"]:
        """Map sequences [T, *B, F] to the logits of every output; those of padded steps mean nothing."""
        return self.readout(outputs(self.body, xs, seq_lengths, dropout_key)[0])


@checked
def cross_entropy(
    logits: Float[Array, "*B C"] | Any,
    targets: Int[ArrayLike, "*B"] | Any,
    mask: Bool[ArrayLike, "*B"] | Any = None,
) -> Float[Array, ""]:
    """Return the mean of −log p(target), in nats.

    Args:
      logits: unnormalised log-probabilities; the axes before the last are any: steps, batch.
      targets: class or token numbers.
      mask: False where a target does not count; what stands there changes neither value nor gradient.

    Returns:
      The mean over what counts, in float32 at least: half precision cannot count; 0 where nothing does.

    Raises:
      InputError: targets or a mask of another shape; a target that counts and is no number from 0 to
        C − 1, where values can be looked at: under ``jax.jit`` such a target makes the loss NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrnn.models import cross_entropy, perplexity
      >>> loss = cross_entropy(jnp.zeros((20, 4, 10)), jnp.ones((20, 4), int))
      >>> round(float(perplexity(loss)), 4)
      10.0
    """
    checks.floating("logits", logits)
    if not logits.shape:
        checks.refuse("logits", checks.describe(logits), "at least one axis [*B, C]")
    classes, wide = logits.shape[-1], at_least_float32(logits.dtype)
    if not checks.is_array(targets):
        checks.refuse("targets", f"a {type(targets).__name__}", "an array of classes or tokens")
    mask = mask if mask is None else checks.as_array("mask", mask)
    for name, given in (("targets", targets), ("mask", mask)):
        if given is not None:
            checks.shape(name, given, logits.shape[:-1], "[*B], as the logits [*B, C]")
    mask = jnp.ones(logits.shape[:-1], bool) if mask is None else mask
    # Padding is replaced before the logarithm: zero times the gradient of NaN is NaN.
    logits, targets = seen((logits.astype(wide), targets), mask)
    targets = checked_tokens("targets", targets, classes)
    targets = jnp.where(targets < 0, classes, targets)  # or they would count from the last class
    each = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return seen(each, mask).sum() / jnp.maximum(mask.sum(), 1).astype(wide)


@checked
def perplexity(nats: Float[ArrayLike, "..."] | float) -> Float[Array, "..."]:
    """Return exp(nats): the number of equally likely tokens that would cost as much each."""
    return jnp.exp(checks.as_array("nats", nats))
