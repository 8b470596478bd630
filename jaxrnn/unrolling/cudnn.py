"""cuDNN's LSTM: one call for all steps, through ``jax.experimental.rnn``.

With the other methods the host launches the kernels of every step, which for small cells takes longer than
the kernels run. cuDNN keeps its loop on the GPU. It supports only the LSTM, in float32, with padding on the
right. It returns all h and the last c; the other c are computed from the h where the caller uses them. Each
call waits for the lengths on the host. cuDNN rejects sequences of length 0, so these run for one step whose
result is discarded. Only reverse mode is supported, and only first derivatives.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.experimental import rnn

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.typing import Carry, Step
from jaxrnn.unrolling.blocks import before_each
from jaxrnn.unrolling.record import Frames, Method, Unrolled, seen, where

_GATES = ("input", "forget", "cell", "output")


@checked
@dataclasses.dataclass(frozen=True)
class CuDNN(Method):
    """The method that runs cuDNN's LSTM, on NVIDIA GPUs.

    Args:
      tf32: let the GPU round products to TensorFloat-32 (10 bits of mantissa), which is faster.
    """

    tf32: bool = False

    any_mask: ClassVar[bool] = False
    nests: ClassVar[bool] = False

    def __call__(
        self, cell: Step, carry: Carry, frames: Frames, *, initial: Carry, length: int
    ) -> Unrolled:
        """Take `length` steps from `carry`."""
        del initial  # only resets need it, and `unroll` refuses resets for this method
        # The class itself must define the gates: a subclass may inherit the names and change the equations.
        if vars(type(cell)).get("gates") != _GATES:
            checks.refuse(
                "method", f"CuDNN() for {type(cell).__name__}", "an LSTMCell, or Blocked()"
            )
        if frames.x.ndim != 3:
            checks.refuse(
                "xs", checks.describe(frames.x), "one batch axis, [T, B, F], with CuDNN()"
            )
        if frames.x.dtype != jnp.float32:
            checks.refuse("xs", checks.describe(frames.x), "float32 with CuDNN()")
        if jax.default_backend() != "gpu":
            checks.refuse(
                "method", f"CuDNN() on {jax.default_backend()}", "Blocked(): CuDNN() needs CUDA"
            )
        precision = jax.lax.Precision.DEFAULT if self.tf32 else jax.lax.Precision.HIGHEST
        call = functools.partial(rnn.lstm, precision=precision)
        last, carries = carry_through(call, cell, carry, frames, length)
        return Unrolled(seen(carries[1], frames.valid), last, carries, method=self)


def carry_through(
    lstm: Any, cell: Any, carry: Carry, frames: Frames, length: int
) -> tuple[Carry, Carry]:
    """Return the last carry and all carries, computed by a function with the signature of ``rnn.lstm``."""
    c, h = carry
    features, units = cell.in_features, cell.hidden_features
    lengths = jnp.full(h.shape[:1], length, jnp.int32)
    if frames.valid is not None:
        lengths = jnp.sum(frames.valid, axis=0, dtype=jnp.int32)
    x = jnp.swapaxes(seen(frames.x, frames.valid), 0, 1)
    lengths_of_one = jnp.maximum(lengths, 1)
    y, h_last, c_last = lstm(
        x, h[None], c[None], packed(cell), lengths_of_one, features, units, 1, 0.0, False
    )
    last = where(lengths > 0, (c_last[0], h_last[0]), carry)
    hs = jnp.swapaxes(y, 0, 1)
    if frames.valid is not None:
        hs = where(frames.valid, hs, jnp.broadcast_to(last[1], hs.shape))
    return last, (_cell_states(cell, carry, frames, hs), hs)


def _cell_states(cell: Any, carry: Carry, frames: Frames, hs: Any) -> Any:
    """Return all c [T, B, H], computed from all h; as these are known, the loop contains no product."""
    c, h = carry
    befores = before_each(h, hs)
    drives = cell.project(seen(frames.x, frames.valid))
    pulls = cell.mix((jnp.zeros_like(befores), befores))

    def step(c, now):
        before, drive, pull, valid = now
        moved, _ = cell.update((c, before), drive, pull)
        moved = moved if valid is None else where(valid, moved, c)
        return moved, moved

    return jax.lax.scan(step, c, (befores, drives, pulls, frames.valid))[1]


def packed(cell: Any) -> jax.Array:
    """Return an LSTM's weights in cuDNN's layout: input, recurrent, then two biases, each gate by gate."""
    bias = cell.bias[...]
    parts = (cell.kernel[...].T, cell.recurrent_kernel[...].T, bias, jnp.zeros_like(bias))
    return jnp.concatenate([part.reshape(-1) for part in parts])
