"""The flip-flop: remember, for each of some channels, the last pulse that came.

    target_t = input_t where it is a pulse, +1 or −1; otherwise target_t−1

Between pulses the input is zero and the memory must hold by itself: a network that has learnt it has a stable
fixed point for each of the 2^bits memories and saddles between them, which makes it the standard
demonstration of fixed-point analysis (Sussillo & Barak 2013, "Opening the black box"). Every channel begins
with a pulse, so that its target is never undefined.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.typing import Key


@checked
def flip_flop(
    key: Key, *, steps: int, batch: int, bits: int = 3, probability: float = 0.1
) -> tuple[Float[Array, "T B F"], Float[Array, "T B F"]]:
    """Draw sequences of pulses and the memories that they ought to leave.

    Args:
      key: random key.
      steps: T.
      batch: B, the number of sequences.
      bits: number of channels F.
      probability: of a pulse, in each channel and step after the first.

    Returns:
      Inputs in {−1, 0, 1} and targets in {−1, 1}, both [T, B, bits].

    Raises:
      InputError: a size that is not a whole number above 0, or a probability outside 0 to 1.

    Example:
      >>> import jax
      >>> from jaxrnn.tasks.flip_flop import flip_flop
      >>> inputs, targets = flip_flop(jax.random.key(0), steps=50, batch=4)
      >>> inputs.shape, bool((targets[0] == inputs[0]).all())
      ((50, 4, 3), True)
    """
    checks.counts(steps=steps, batch=batch, bits=bits)
    if not 0 <= probability <= 1:
        checks.refuse("probability", repr(probability), "a number from 0 to 1")
    when, which = jax.random.split(key)
    shape = (steps, batch, bits)
    arrives = jax.random.bernoulli(when, probability, shape).at[0].set(True)
    signs = jax.random.rademacher(which, shape, jnp.result_type(float))
    # The step of the last pulse so far, and the sign that came then.
    last = jax.lax.cummax(jnp.where(arrives, jnp.arange(steps)[:, None, None], 0), axis=0)
    return jnp.where(arrives, signs, 0), jnp.take_along_axis(signs, last, axis=0)
