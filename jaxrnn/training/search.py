"""Search without gradients, under a budget of evaluations: cuckoo search, and random search beside it.

Cuckoo search (Yang & Deb 2009, "Cuckoo search via Lévy flights") keeps n nests x_i. In each generation every
nest sends out one egg by a Lévy flight, whose steps have the tail s^−(1+λ), λ = 3/2, and one that mixes other
nests; an egg that is better takes its nest:

    egg   = x_i + α · Lévy ⊙ (x_i − x_best) ⊙ ε          α = 0.01, ε ~ N(0, I)
    mixed = x_i + r · (x_j − x_k) ⊙ m                     r uniform, m: True with probability 1 − p_a

as in the authors' own program; Lévy steps are drawn by Mantegna's algorithm (1994). With a loss of a
network's weights this is what "training by cuckoo search" means; a gradient costs about three evaluations.

Weakness: nests cover a space of few dimensions only. In hundreds of them, all that is left is a random walk.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.typing import ArrayLike, Key

_LEVY = 1.5
_LEVY_SCALE = (
    math.gamma(1 + _LEVY)
    * math.sin(math.pi * _LEVY / 2)
    / (math.gamma((1 + _LEVY) / 2) * _LEVY * 2 ** ((_LEVY - 1) / 2))
) ** (1 / _LEVY)
"""Mantegna's: u / |v|^(1/λ) with u of this deviation and v of 1 has a Lévy-stable tail."""

_STEP = 0.01  # α, of the authors' program

_MOST_EVALUATIONS = 2**26  # a random key and a value of history each: 1 GiB

Loss = Callable[[Any], Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
      parameters: the best point [P].
      value: the loss there.
      history: the best loss after each generation [G], that of the first points included.
      evaluations: how often the loss was evaluated.
    """

    parameters: Float[Array, "P"]
    value: Float[Array, ""]
    history: Float[Array, "G"]
    evaluations: int = dataclasses.field(metadata={"static": True})


@checked
def cuckoo_search(
    loss: Loss,
    start: Float[ArrayLike, "P"] | Any,
    *,
    key: Key,
    evaluations: int,
    spread: float = 1.0,
    nests: int = 15,
    abandoned: float = 0.25,
) -> Found:
    """Minimise a loss by cuckoo search.

    Args:
      loss: maps parameters [P] to a scalar; what is not finite counts as infinitely bad.
      start: centre of the first nests (``jax.flatten_util.ravel_pytree`` makes a vector of a model).
      key: draws everything.
      evaluations: the budget; as many whole generations are run as fit, each of 2 n.
      spread: standard deviation of the first nests.
      nests: n.
      abandoned: p_a, the share of entries that are left as they are when nests are mixed.

    Raises:
      InputError: a budget that is too small for the first generation, or a setting out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrnn.training import cuckoo_search
      >>> found = cuckoo_search(
      ...     lambda x: jnp.sum(x**2), jnp.ones(3), key=jax.random.key(0), evaluations=3_015
      ... )
      >>> bool(found.value < 1e-3), found.evaluations
      (True, 3015)
    """
    checks.counts(nests=nests)
    start = _checked(loss, start, evaluations, spread)
    checks.rate("abandoned", abandoned)
    if evaluations < 3 * nests:
        checks.refuse(
            "evaluations", evaluations, f"at least {3 * nests}: 3 for each of {nests} nests"
        )
    generations = (evaluations - nests) // (2 * nests)
    first, rest = jax.random.split(key)
    points = start[None] + spread * jax.random.normal(first, (nests, *start.shape), start.dtype)
    keys = jax.random.split(rest, generations)
    return Found(*_cuckoo(points, keys, loss, abandoned), evaluations=nests * (1 + 2 * generations))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _cuckoo(points: Any, keys: Any, loss: Loss, abandoned: float) -> tuple[Any, Any, Any]:
    values_of = jax.vmap(functools.partial(_value, loss))

    def settle(points: Any, values: Any, eggs: Any) -> tuple[Any, Any]:
        """Let the eggs that are better take their nests."""
        found = values_of(eggs)
        better = found < values
        return jnp.where(better[:, None], eggs, points), jnp.where(better, found, values)

    def generation(state: Any, key: Any) -> tuple[Any, Any]:
        points, values = state
        for_flight, for_sizes, for_mix = jax.random.split(key, 3)
        towards = points - points[jnp.argmin(values)][None]
        noise = jax.random.normal(for_sizes, points.shape, points.dtype)
        flights = _levy(for_flight, points)
        points, values = settle(points, values, points + _STEP * flights * towards * noise)
        points, values = settle(points, values, points + _mixed(for_mix, points, abandoned))
        return (points, values), values.min()

    values = values_of(points)
    first = values.min()[None]
    (points, values), history = jax.lax.scan(generation, (points, values), keys)
    best, history = jnp.argmin(values), jnp.concatenate([first, history])
    return points[best], values[best], history


def _value(loss: Loss, point: Any) -> Any:
    value = loss(point)
    return jnp.where(jnp.isfinite(value), value, jnp.inf)


def _levy(key: Any, like: Any) -> Any:
    """Draw steps with the tail s^−(1+λ), by Mantegna's algorithm."""
    for_u, for_v = jax.random.split(key)
    u = _LEVY_SCALE * jax.random.normal(for_u, like.shape, like.dtype)
    v = jax.random.normal(for_v, like.shape, like.dtype)
    return u / jnp.abs(v) ** (1 / _LEVY)


def _mixed(key: Any, points: Any, abandoned: float) -> Any:
    """Return differences of two random nests, for most entries of most nests."""
    for_j, for_k, for_size, for_mask = jax.random.split(key, 4)
    j, k = (jax.random.permutation(key, points, axis=0) for key in (for_j, for_k))
    kept = jax.random.bernoulli(for_mask, 1 - abandoned, points.shape)
    return jnp.where(kept, jax.random.uniform(for_size, (), points.dtype) * (j - k), 0)


@checked
def random_search(
    loss: Loss,
    start: Float[ArrayLike, "P"] | Any,
    *,
    key: Key,
    evaluations: int,
    spread: float = 1.0,
) -> Found:
    """Minimise a loss by drawing points around a centre, each by itself: the control of every other search.

    Args:
      loss: maps parameters [P] to a scalar; what is not finite counts as infinitely bad.
      start: the centre.
      key: draws the points.
      evaluations: how many points.
      spread: standard deviation of the points.

    Raises:
      InputError: a setting out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxrnn.training import random_search
      >>> found = random_search(
      ...     lambda x: jnp.sum(x**2), jnp.zeros(2), key=jax.random.key(0), evaluations=500
      ... )
      >>> bool(found.value < 0.1), found.history.shape
      (True, (500,))
    """
    start = _checked(loss, start, evaluations, spread)
    return Found(
        *_random(start, jax.random.split(key, evaluations), loss, spread), evaluations=evaluations
    )


def _checked(loss: Loss, start: Any, evaluations: int, spread: float) -> Float[Array, "P"]:
    """Return the start as an array; refuse what cannot be searched from or for."""
    checks.within("evaluations", evaluations, 1, _MOST_EVALUATIONS)
    checks.positive_float32("spread", spread)
    start = checks.as_array("start", start)
    checks.floating("start", start)
    if start.ndim != 1 or not start.size:
        checks.refuse("start", checks.describe(start), "a vector of at least one number [P]")
    checks.finite("start", start)
    value = jax.eval_shape(loss, start)
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        checks.refuse(
            "loss", checks.describe(value), "a function whose value is one floating number"
        )
    return start


@functools.partial(jax.jit, static_argnums=(2, 3))
def _random(start: Any, keys: Any, loss: Loss, spread: float) -> tuple[Any, Any, Any]:
    def draw(best: Any, key: Any) -> tuple[Any, Any]:
        point = start + spread * jax.random.normal(key, start.shape, start.dtype)
        value = _value(loss, point)
        better = value < best[1]
        best = jnp.where(better, point, best[0]), jnp.where(better, value, best[1])
        return best, best[1]

    shape = jax.eval_shape(lambda point: _value(loss, point), start)
    worst = jnp.full(shape.shape, jnp.inf, shape.dtype)
    (point, value), history = jax.lax.scan(draw, (start, worst), keys)
    return point, value, history
