"""Flows as maps: a differential equation ds/dt = f(s, x), integrated one Runge–Kutta step at a time.

A step of the classical fourth-order method (Kutta 1901) is a map like any other, so every analysis accepts
it. Rates that are otherwise per step are per unit of time here: `lyapunov` divides by `time_step`.

At a fixed point of a flow the derivative A = ∂f/∂s corresponds in units of time to the step Jacobian in
steps, which is exp(A Δt) to the method's order: a mode decays as exp(t Re μ) and rotates with Im μ
(`flow_modes`).

Weakness: the map is not the flow. Its error falls with the fourth power of the time step, and a step that is
too long for a stiff equation has dynamics of its own: halve it and check that nothing changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float

from jaxrnn import checks
from jaxrnn.analysis.lapack import eigenvalues, in_float64, square_matrices
from jaxrnn.annotations import checked
from jaxrnn.steps import carry_of, flat_state
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FlowModes:
    """The linearised flow at N states, in units of time.

    Attributes:
      matrices: A = ∂f/∂s [N, S, S].
      eigenvalues: μ of A, by decreasing real part [N, S].
    """

    matrices: Float[Array, "N S S"]
    eigenvalues: Complex[Array, "N S"]

    @property
    def stable(self) -> Bool[Array, "N"]:
        """Whether all modes decay: all real parts below 0 [N]."""
        return (jnp.real(self.eigenvalues) < 0).all(axis=-1)

    @property
    def time_constants(self) -> Float[Array, "N S"]:
        """Time in which a mode decays by the factor e, −1/Re μ; negative for growth [N, S]."""
        rates = jnp.real(self.eigenvalues)
        return jnp.where(rates == 0, jnp.inf, -1 / jnp.where(rates == 0, 1, rates))

    @property
    def frequencies(self) -> Float[Array, "N S"]:
        """Rotation of a mode, Im μ / 2π in cycles a unit of time [N, S]."""
        return jnp.imag(self.eigenvalues) / (2 * np.pi)


@checked
def flow_modes(flow: Flow, x: Any, carries: Carry) -> FlowModes:
    """Return eigenvalues and time constants of a flow at given states, in units of time.

    Args:
      flow: the differential equation.
      x: its constant input, or None.
      carries: states, leaves [N, H], such as ``fixed_points(flow, x, candidates).carries``.

    Raises:
      InputError: a step that is not a `Flow`, or carries or derivatives that are not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrnn.analysis import Flow, flow_modes
      >>> spiral = Flow(lambda s, x: jnp.array([[-0.5, 2.0], [-2.0, -0.5]]) @ s, time_step=0.01)
      >>> modes = flow_modes(spiral, None, jnp.zeros((1, 2)))
      >>> modes.time_constants.tolist(), abs(modes.frequencies[0] * jnp.pi).round(5).tolist()
      ([[2.0, 2.0]], [1.0, 1.0])
    """
    checks.finite("carries", carries)
    carries = jax.tree.map(jnp.asarray, carries)
    for leaf in jax.tree.leaves(carries):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            checks.refuse("carries", checks.describe(carries), "real floats")
    counts = {leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves(carries)}
    if len(counts) != 1 or counts == {0}:
        expected = "leaves [N, H], the same N above 0 in all"
        checks.refuse("carries", checks.describe(carries), expected)

    def slope(carry: Carry) -> Any:
        state = flat_state(carry, 0)
        return jax.jacfwd(lambda state: flat_state(flow.field(carry_of(state, carry), x), 0))(state)

    matrices = square_matrices("flow: its derivative", jax.vmap(slope)(carries))
    values = in_float64(eigenvalues, matrices)
    order = jnp.argsort(-jnp.real(values), axis=-1)
    return FlowModes(matrices, jnp.take_along_axis(values, order, axis=-1))


def time_step_of(step: Any) -> float:
    """Return the duration of a step, which is 1 for a map."""
    return step.time_step if isinstance(step, Flow) else 1.0


def _moved(carry: Carry, time: float, slope: Carry) -> Carry:
    return jax.tree.map(lambda s, ds: s + time * ds, carry, slope)
