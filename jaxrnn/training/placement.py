"""Where an ensemble trains: its networks spread over some devices, its batches over others.

    members: networks spread over m devices     they know nothing of each other: no traffic at all
    data: each batch spread over d devices      the gradients meet once a step: one sum of all parameters

The m · d devices are those of one machine or of many processes (`jaxrnn.devices.join_processes`). Where a
run trains is no part of what it is: a run may go on elsewhere, on more or fewer devices, with the same
numbers up to the order in which sums are taken.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrnn import checks
from jaxrnn.tasks import Batch


@dataclasses.dataclass(frozen=True)
class Placement:
    """How many devices to use, and for what.

    Attributes:
      member_devices: devices to spread the networks over; a divisor of their number.
      data_devices: devices to spread each batch over; a divisor of its size.
    """

    member_devices: int = 1
    data_devices: int = 1

    def check(self, networks: int, batch: int) -> None:
        """Require devices that exist and that divide the networks and the batch."""
        for field in ("member_devices", "data_devices"):
            checks.count(field, getattr(self, field))
        if networks % self.member_devices:
            expected = f"a divisor of the {networks} networks"
            checks.refuse("member_devices", self.member_devices, expected)
        if batch % self.data_devices:
            expected = f"a divisor of the batch of {batch}"
            checks.refuse("data_devices", self.data_devices, expected)
        wanted, there = self.member_devices * self.data_devices, len(jax.devices())
        if wanted > there:
            expected = f"at most the {there} devices that JAX sees"
            checks.refuse("member_devices × data_devices", wanted, expected)
        if jax.process_count() > 1 and wanted != there:
            expected = f"{there}, all devices of the {jax.process_count()} processes"
            checks.refuse("member_devices × data_devices", wanted, expected)

    def grid(self) -> Grid:
        """Return the devices."""
        wanted = self.member_devices * self.data_devices
        if wanted == 1:
            return Grid(None)
        chosen = np.array(jax.devices()[:wanted]).reshape(self.member_devices, self.data_devices)
        return Grid(Mesh(chosen, ("members", "data")))


class Grid:
    """Devices in rows and columns, or one device.

    Attributes:
      shared: sharding of what every device has whole; None on one device.
      spread: sharding of arrays with an axis of networks in front; None on one device.
      axis: name of the axis of networks, for ``jax.vmap``; None on one device.
      devices: over how many devices the networks are spread.
    """

    def __init__(self, mesh: Mesh | None):
        self._mesh = mesh
        self.devices = 1 if mesh is None else mesh.shape["members"]
        self.shared: Any = mesh and NamedSharding(mesh, PartitionSpec())
        self.spread: Any = mesh and NamedSharding(mesh, PartitionSpec("members"))
        self.axis = None if mesh is None else "members"

    def place(self, tree: Any) -> Any:
        """Spread the networks of a tree of the host's arrays."""
        return jax.device_put(tree, self.spread)

    def replicate(self, tree: Any) -> Any:
        """Give every device a tree whole; every process has the same one."""
        # From the host: other processes' devices take nothing from an array that lies on one of ours.
        return jax.device_put(jax.tree.map(np.asarray, tree), self.shared)

    def split(self, batch: Batch, *, by_step: bool) -> Batch:
        """Spread the sequences of a batch, whose answers are one a step or one a sequence."""
        if self._mesh is None:
            return batch
        mesh, steps = self._mesh, PartitionSpec(None, "data")
        answers = steps if by_step else PartitionSpec("data")

        def spread(x: Any, spec: PartitionSpec) -> Any:
            return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

        return batch._replace(
            inputs=spread(batch.inputs, steps),
            targets=spread(batch.targets, answers),
            mask=spread(batch.mask, answers),
        )


def memory_bytes() -> int | None:
    """Return the memory of a device, that of the machine for a CPU; None where it is not known."""
    (device, *_) = jax.local_devices()
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None and device.platform == "cpu" and hasattr(os, "sysconf"):
        limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return limit
