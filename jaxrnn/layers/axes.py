"""Conversion of time axes: layers take time after the batch axes or first, `unroll` takes it first."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxrnn import checks


def time_axis(inputs: Any, time_major: bool, feature_axes: int = 1) -> int:
    """Return the time axis of inputs [*B, T, F], or [T, *B, F] if `time_major`; require at least one step."""
    if not checks.is_array(inputs) or inputs.ndim < feature_axes + 1:
        checks.refuse("inputs", checks.describe(inputs), "sequences [*B, T, F]")
    axis = 0 if time_major else jnp.ndim(inputs) - feature_axes - 1
    if inputs.shape[axis] == 0:
        layout = "[T, *B, F]" if time_major else "[*B, T, F]"
        checks.refuse("inputs", checks.describe(inputs), f"at least 1 step, {layout}")
    return axis


def time_first(name: str, flags: Any, inputs: Any, axis: int, feature_axes: int = 1) -> Any:
    """Move time to the front of flags that have the batch and time axes of `inputs`; return None for None."""
    if flags is None:
        return None
    flags = checks.as_array(name, flags)
    steps = inputs.shape[: jnp.ndim(inputs) - feature_axes]
    checks.shape(name, flags, steps, "[T, *B]" if axis == 0 else "[*B, T]")
    return jnp.moveaxis(flags, axis, 0)
