"""Flows as maps: a differential equation ds/dt = f(s, x), taken one Runge–Kutta step at a time.

A step of the classical fourth-order method (Kutta 1901) is a map like any other, so every analysis takes it.
What is counted in steps elsewhere is counted in units of time here: `lyapunov` divides by `time_step`.

The map is not the flow. Its error falls with the fourth power of the time step, and a step that is too long
for a stiff equation shows dynamics of its own: halve it and see that nothing changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.typing import Carry


@checked
@dataclasses.dataclass(frozen=True)
class Flow:
    """A differential equation as a step ``(carry, x) -> (carry, carry)``; x is held during the step.

    Args:
      field: ``(carry, x) -> d carry / dt``, a carry of the same form.
      time_step: length of a step, in units of time.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> decay = jaxrnn.analysis.Flow(lambda s, x: -s, time_step=0.1)
      >>> path = jaxrnn.analysis.trace(decay, None, carry=jnp.ones(1), length=10)
      >>> bool(jnp.allclose(path.outputs[-1], jnp.exp(-1.0), atol=1e-6))
      True
    """

    field: Callable[[Any, Any], Any]
    time_step: float

    def __post_init__(self):
        """Refuse a time step that is not positive."""
        checks.positive("time_step", self.time_step)

    def __call__(self, carry: Carry, x: Any) -> tuple[Carry, Carry]:
        """Take one step."""
        half = self.time_step / 2
        first = self.field(carry, x)
        second = self.field(_moved(carry, half, first), x)
        third = self.field(_moved(carry, half, second), x)
        fourth = self.field(_moved(carry, self.time_step, third), x)
        slope = jax.tree.map(
            lambda a, b, c, d: (a + 2 * (b + c) + d) / 6, first, second, third, fourth
        )
        moved = _moved(carry, self.time_step, slope)
        return moved, moved


def time_step_of(step: Any) -> float:
    """Return how much time a step takes: 1 for a map."""
    return step.time_step if isinstance(step, Flow) else 1.0


def _moved(carry: Carry, time: float, slope: Carry) -> Carry:
    return jax.tree.map(lambda s, ds: s + time * ds, carry, slope)
