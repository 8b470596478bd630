"""Time series: oscillation, chaos, memory in the system itself, and noise that nobody can predict.

Every series is given as its own past: at step t the values up to t are known, and a later one is to be
predicted.
The systems are integrated once, by the Runge–Kutta rule of fourth order in float64 NumPy steps small enough
that the data do not depend on them, and cut into examples. Series are scaled to mean 0 and variance 1, so
that always answering the mean has an error of 1, but for FitzHugh–Nagumo, whose published errors are in its
own units.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.tasks.base import Batch, Task
from jaxrnn.tasks.examples import Examples
from jaxrnn.tasks.objectives import rmse
from jaxrnn.tasks.synthetic import synthetic
from jaxrnn.typing import Key

_LONGEST = 10**5  # the series, all of which are integrated at once, then fill 2 GB

Field = Callable[[np.ndarray], np.ndarray]


@checked
def fitzhugh_nagumo(length: int = 1_000) -> Task:
    """Foretell the next value of a neuron that fires: the two-scale system of FitzHugh and Nagumo.

        v' = v − v³/3 − w + ½        w' = (v + 0.7 − 0.8 w) / 50

    from v(0) uniform in −1 … 1 and w(0) = 0, over 400 units of time: 128 series to train and to validate,
    1,024 to test (Rusch et al. 2022, who report errors of 0.00238 to 0.07 with 16 units).

    Args:
      length: values of a series.
    """
    _check(length=length)
    random = np.random.default_rng(0)
    start = np.stack([random.uniform(-1, 1, 128 + 128 + 1_024), np.zeros(1_280)])
    substeps = max(1, round(8 * 1_000 / length))
    path = _integrate(_fitzhugh_nagumo, start, 400 / length, length, substeps)[:, 0]
    values = path.T[..., None].astype(np.float32)  # [N, T + 1, 1]
    return _forecast("fitzhugh-nagumo", values, (128, 128), 1, 0.01, "Rusch et al. 2022")


def _fitzhugh_nagumo(state: np.ndarray) -> np.ndarray:
    v, w = state
    return np.stack([v - v**3 / 3 - w + 0.5, 0.02 * (v + 0.7 - 0.8 * w)])


@checked
def lorenz(ahead: int = 10, length: int = 200) -> Task:
    """Foretell the first coordinate of Lorenz's system, which is chaotic.

        x' = 10 (y − x)      y' = x (28 − z) − y      z' = x y − 8/3 z

    sampled every 0.02 units of time. Its largest exponent, 0.906 a unit, makes an error grow e-fold in 55
    steps.

    Args:
      ahead: steps between the last known value and the one to predict.
      length: values of a series.
    """
    _check(length=length, ahead=ahead)
    series = 640
    start = np.random.default_rng(0).normal(size=(3, series)) + np.array([[0.0], [0.0], [25.0]])
    settled = _integrate(_lorenz, start, 0.02, 1_000, 2)[-1]
    path = _integrate(_lorenz, settled, 0.02, length + ahead - 1, 2)[:, 0]
    return _forecast("lorenz", _scaled(path), (384, 128), ahead, 0.1, "Lorenz 1963")


def _lorenz(state: np.ndarray) -> np.ndarray:
    x, y, z = state
    return np.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])


@checked
def mackey_glass(ahead: int = 84, length: int = 200, delay: float = 17.0) -> Task:
    """Foretell the Mackey–Glass equation, whose state is a whole stretch of its past.

        x'(t) = 0.2 x(t − τ) / (1 + x(t − τ)¹⁰) − 0.1 x(t)

    sampled every unit of time (Mackey & Glass 1977; predicted 84 steps ahead since Lapedes & Farber 1987).

    Args:
      ahead: steps between the last known value and the one to predict.
      length: values of a series.
      delay: τ; chaotic from about 17 on.
    """
    _check(length=length, ahead=ahead)
    checks.positive("delay", delay)
    if delay > _LONGEST:
        checks.refuse("delay", delay, f"at most {_LONGEST:,} units of time")
    path = _mackey_glass(delay, series=640, steps=1_000 + length + ahead)[1_000:]
    return _forecast("mackey-glass", _scaled(path), (384, 128), ahead, 0.1, "Mackey & Glass 1977")


def _mackey_glass(delay: float, series: int, steps: int) -> Float[np.ndarray, "T N"]:
    """Integrate by Runge–Kutta steps of 0.1, with the past between the grid's points taken linearly."""
    size = 0.1
    lag = delay / size
    back, share = int(np.ceil(lag)), np.ceil(lag) - lag
    count = steps * round(1 / size)
    x = np.empty((back + count + 1, series))
    x[: back + 1] = np.random.default_rng(0).uniform(0.9, 1.4, (1, series))

    def slope(now: np.ndarray, past: np.ndarray) -> np.ndarray:
        return 0.2 * past / (1 + past**10) - 0.1 * now

    for i in range(back, back + count):
        first = x[i - back] + share * (x[i - back + 1] - x[i - back])
        last = x[i - back + 1] + share * (x[i - back + 2] - x[i - back + 1]) if back > 1 else first
        middle, now = (first + last) / 2, x[i]
        k1 = slope(now, first)
        k2 = slope(now + size / 2 * k1, middle)
        k3 = slope(now + size / 2 * k2, middle)
        k4 = slope(now + size * k3, last)
        x[i + 1] = now + size / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x[back :: round(1 / size)][:steps]


@checked
def random_walk(length: int = 100) -> Task:
    """Foretell the next change of a random walk, which nobody can.

    Changes are normal with variance 1 and know nothing of each other; the best answer is 0, with an error of
    1. A network that does better has seen the answer.

    Args:
      length: values of a series.
    """
    checks.count("length", length)

    def draw(key: Key, batch: int) -> Batch:
        changes = jax.random.normal(key, (length + 1, batch, 1))
        return Batch(jnp.cumsum(changes[:-1], axis=0), changes[1:], jnp.ones((length, batch), bool))

    return synthetic(
        "random-walk",
        draw,
        source="the random walk of Bachelier 1900",
        answers="step",
        outputs=1,
        in_features=1,
        loss="mse",
        metric=rmse,
        chance=1.0,
        solved=None,
        forecast=True,
    )


def _check(**lengths: int) -> None:
    for name, value in lengths.items():
        checks.count(name, value)
        checks.within(name, value, 1, _LONGEST)


def _integrate(
    field: Field, start: np.ndarray, step: float, count: int, substeps: int
) -> np.ndarray:
    """Return the states at 0, step, …, count · step, by Runge–Kutta steps of step / substeps."""
    size, states = step / substeps, [start]
    for _ in range(count):
        state = states[-1]
        for _ in range(substeps):
            k1 = field(state)
            k2 = field(state + size / 2 * k1)
            k3 = field(state + size / 2 * k2)
            k4 = field(state + size * k3)
            state = state + size / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        states.append(state)
    return np.stack(states)


def _scaled(path: Float[np.ndarray, "T N"]) -> Float[np.ndarray, "N T 1"]:
    return ((path - path.mean()) / path.std()).T[..., None].astype(np.float32)


def _forecast(
    name: str,
    values: Float[np.ndarray, "N T 1"],
    sizes: tuple[int, int],
    ahead: int,
    solved: float,
    source: str,
) -> Task:
    """Return the task of predicting series some steps ahead; `sizes`: of training and validation."""
    checks.count("ahead", ahead)
    cuts = np.cumsum(sizes)
    known, asked = values[:, :-ahead], values[:, ahead:]
    train, valid, test = (
        Examples(inputs, targets, by_step=True)
        for inputs, targets in zip(np.split(known, cuts), np.split(asked, cuts), strict=True)
    )
    mean = train.targets.mean()
    return Task(
        name=name,
        source=source,
        train=train,
        valid=valid,
        test=test,
        answers="step",
        outputs=1,
        in_features=1,
        loss="mse",
        metric=rmse,
        chance=float(np.sqrt(np.mean((test.targets - mean) ** 2))),
        solved=solved,
        forecast=True,
    )
