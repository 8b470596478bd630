"""The parts of a cell that says them itself: `project`, `mix`, `update` and `readout` (`jaxrnn.typing`)."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.typing import Carry, SplitCell
from jaxrnn.unroll.parts import Block, Cotangents, Parts, Results, vjp_by
from jaxrnn.unroll.signals import Signals


class SplitParts(Parts):
    """The parts of a split cell; its weights are the cell."""

    def __init__(self, cell: SplitCell, carry: Carry, x: Any, signals: Signals):
        drive, pull = jax.eval_shape(cell.project, x), jax.eval_shape(cell.mix, carry)
        joined = jax.eval_shape(signals.join, drive, pull)
        leaves = jax.tree.leaves(carry)
        self._signals = signals
        self.rows = math.prod(drive.shape[:-1])
        self.numbers = sum(signal.size for signal in joined)
        self.bytes = self.numbers * drive.dtype.itemsize
        self.widest = drive.shape[-1]
        self.width = max([1, *(leaf.shape[-1] for leaf in leaves)])
        self.features = x.shape[-1]
        self.slices = sum(signal.shape[-1] for signal in joined) // self.width + len(leaves)
        self.drives_alone = signals.is_drive
        self._asked: tuple[Any, ...] = ()  # as `by` says

    def weights(self, held: SplitCell) -> SplitCell:
        """Return the cell."""
        return held

    def by(self, weights: Any, carry: Carry, x: Any) -> SplitParts:
        """Return parts that project and mix by these weights and inputs alone; every carry has cotangents."""
        del carry
        parts = copy.copy(self)
        parts._asked = weights, x
        return parts

    def drives(self, weights: Any, xs: Any) -> Any:
        """Return the drives [n, *B, D] of inputs [n, *B, F]."""
        drives = weights.project(_rows(xs))
        return drives.reshape(*xs.shape[:-1], drives.shape[-1])

    def drive(self, weights: Any, x: Any) -> Any:
        """Return the drive [*B, D] of one input [*B, F]."""
        return weights.project(x)

    def step(self, weights: Any, carry: Carry, drive: Any) -> tuple[Results, Any]:
        """Take one step; return its signal too."""
        signal = self._signals.join(drive, weights.mix(carry))
        moved = self._signals.update(weights, carry, signal, self.read(weights))
        return Results(moved, None), signal

    def outputs(self, weights: Any, carries: Carry, ys: Any) -> Any:
        """Return the outputs [T, *B, Y]."""
        del ys
        return weights.readout(carries)

    def read(self, weights: Any) -> tuple[Any, ...]:
        """Return the columns of the pull that weights alone make."""
        return self._signals.constants(weights)

    def with_read(self, weights: Any, d_weights: Any, d_read: Any) -> Any:
        """Add cotangents of what `read` returned to those of the weights."""
        if not d_read:
            return d_weights
        _, back = vjp_by(self._asked[:1], self.read, weights)
        (found,) = back(d_read)
        return jax.tree.map(jnp.add, d_weights, found)

    def turned(self, weights: Any) -> Any:
        """Return the cell with its matrices transposed; twice, and it is itself again."""
        return jax.tree.map(lambda w: jnp.swapaxes(w, -1, -2) if w.ndim > 1 else w, weights)

    def block(self, weights: Any, xs: Any, starts: Carry, signals: Any) -> Block:
        """Return a block of steps [n, *B, …] on the way back."""
        drives, project_back = vjp_by(
            self._asked, lambda cell, x: cell.project(_rows(x)), weights, xs
        )
        pulls, mix_back = vjp_by(self._asked[:1], lambda cell: cell.mix(_rows(starts)), weights)
        if signals is None:
            joined = self._signals.join(drives, pulls)
            signals = jax.tree.map(lambda a: a.reshape(*xs.shape[:-1], a.shape[-1]), joined)

        def back(d_signals):
            found = _rows(d_signals)
            d_by_project, d_xs = project_back(found[0])
            (d_by_mix,) = mix_back(self._signals.cotangent_of_pull(found))
            return jax.tree.map(jnp.add, d_by_project, d_by_mix), d_xs

        return Block(signals, (), back)

    def back(
        self, weights: Any, turned: Any, start: Carry, signal: Any, fixed: Any, cotangents: Results
    ) -> Cotangents:
        """Go back through one step."""
        del fixed
        update = functools.partial(self._signals.update, weights)
        _, update_back = jax.vjp(update, start, signal, self.read(weights))
        d_start, d_signal, d_read = update_back(cotangents.carry)
        mixing = weights if turned is None else self.turned(turned)
        _, pull_back = jax.vjp(mixing.mix, start)
        found = self._signals.cotangents(d_signal)
        (d_mixed,) = pull_back(self._signals.cotangent_of_pull(found))
        return Cotangents(jax.tree.map(jnp.add, d_start, d_mixed), found, d_read)


def _rows(tree: Any) -> Any:
    """Make time and batch one axis: products of two matrices are fast, others may not be."""
    return jax.tree.map(lambda a: a.reshape(math.prod(a.shape[:-1]), a.shape[-1]), tree)
