"""Data parallelism over all cores or devices: the batch is split, and results equal those of one device.

A recurrent step is a small product, which runs on one core however many the machine has. The sequences of a
batch, however, are independent until the loss is averaged. So each core, GPU or TPU runs its part of the
batch through all steps, and the parts are combined once, at the end (`jax.shard_map` and one mean).

    jaxrnn.devices.use_cores()                       # before JAX computes anything
    gradient = jaxrnn.devices.split_batch(jax.value_and_grad(loss), in_axes=(None, 1, 0))
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxrnn import checks

_AXIS = "batch"

_LAUNCHED = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
"""Environment variables by which srun and mpirun tell each process how many processes they started."""

_POD = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "TPU_PROCESS_ADDRESSES_PATH")
"""Environment variables that name the hosts of a TPU pod where its metadata server does not."""


def use_cores(count: int | None = None) -> int:
    """Make JAX expose the CPU as several devices, one per core; call this before JAX computes anything.

    Args:
      count: the number of devices; by default one for each core that this process may use.

    Returns:
      The number of devices.

    Raises:
      InputError: JAX has already initialized its devices.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = (cores or 1) if count is None else count
    checks.count("count", count)
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        checks.refuse(
            "use_cores", f"a call too late ({error})", "a call before JAX computes anything"
        )
    return count


def join_processes() -> None:
    """Connect this process with the other processes of a job; call this before JAX computes anything.

    Processes started by srun, mpirun (Open MPI 4) or a TPU pod find each other through JAX itself. Otherwise
    three environment variables of each process say where they meet: ``JAX_COORDINATOR_ADDRESS`` (host:port of
    the first process), ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``. A single process is left unchanged.

    A task of Slurm or MPI uses all GPUs that it sees if it is the only task on its host, or if it sees a
    single GPU (``--gpus-per-task``). Otherwise it uses the GPU with its own number on the host.

    Raises:
      InputError: only some of these variables are set, or they are not numbers; or mpirun is of a version
        that does not say where its processes meet.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = [os.environ.get(name) for name in names]
    if any(given) and not all(given):
        missing = [name for name, value in zip(names, given, strict=True) if not value]
        checks.refuse(missing[0], "nothing", f"a value, as {', '.join(names)} go together")
    address, count, number = given
    if address and count and number:
        if not (count.isdecimal() and number.isdecimal() and int(number) < int(count)):
            got = f"process {number} of {count}"
            checks.refuse("JAX_PROCESS_ID, JAX_NUM_PROCESSES", got, "0 to the number less 1")
        jax.distributed.initialize(address, int(count), int(number))
    elif any(os.environ.get(name, "1") != "1" for name in _LAUNCHED):
        _check_launcher()
        jax.distributed.initialize(local_device_ids=_own_gpus())
    elif _on_a_pod():
        jax.distributed.initialize()


def _check_launcher() -> None:
    """Refuse processes of Open MPI 5, which does not give them an address to meet at."""
    slurm = "SLURM_STEP_NUM_TASKS" in os.environ
    if not slurm and "OMPI_MCA_orte_hnp_uri" not in os.environ:
        expected = "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or srun"
        checks.refuse("mpirun", "processes without an address to meet at (Open MPI 5)", expected)


def _own_gpus() -> list[int] | None:
    """Return the GPUs that this task uses; None lets JAX choose the GPU with the task's number."""
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")  # as in 8(x4), or 8,7
    alone = (
        re.fullmatch(r"1(\(x\d+\))?", tasks) or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    )
    return list(range(len(seen))) if len(seen) == 1 or (seen and alone) else None


def _on_a_pod() -> bool:
    """Tell whether this is a TPU host that can find the other hosts of its pod (there may be none)."""
    if "TPU_ML_PLATFORM" not in os.environ:  # JAX sets it on TPU hosts when it is imported
        return False
    return "TPU_SKIP_MDS_QUERY" not in os.environ or any(name in os.environ for name in _POD)


def split_batch(
    function: Callable[..., Any],
    *,
    in_axes: Sequence[int | None],
    out_axes: Any = None,
    mesh: Mesh | None = None,
) -> Callable[..., Any]:
    """Run a function on each device with a part of the batch.

    Args:
      function: takes arrays or trees of arrays, and receives one part of the batch.
      in_axes: for each argument its batch axis, 0 or above, or None for arguments that all devices share,
        such as weights. A shared random key draws the same numbers on each device: fold
        ``jax.lax.axis_index("batch")`` into it.
      out_axes: for each result its batch axis, or None to return the mean over the devices; a tree prefix, as
        in ``jax.vmap``. The mean is right for means over the sequences of a batch and their gradients. A sum
        is returned divided by the number of devices, and in a mean over valid steps each part has the same
        weight.
      mesh: devices, along one axis; by default all devices.

    Returns:
      The function over the whole batch, compiled.

    Raises:
      InputError: an axis below 0, or devices that do not divide the batch.

    Example:
      >>> from flax import nnx
      >>> import jax, jax.numpy as jnp, jaxrnn
      >>> def loss(cell, xs):
      ...     return jnp.mean(jaxrnn.unroll(cell, xs).outputs ** 2)
      >>> cell, xs = jaxrnn.GRUCell(3, 8, rngs=nnx.Rngs(0)), jnp.ones((20, 4, 3))
      >>> gradient = jaxrnn.devices.split_batch(jax.grad(loss), in_axes=(None, 1))
      >>> bool(jnp.allclose(gradient(cell, xs).kernel[...], jax.grad(loss)(cell, xs).kernel[...]))
      True
    """
    for name, axes in (("in_axes", in_axes), ("out_axes", out_axes)):
        if any(at < 0 for at in jax.tree.leaves(axes)):
            checks.refuse(name, axes, "batch axes counted from the front, 0 or above")
    devices = mesh or Mesh(np.array(jax.devices()), (_AXIS,))
    if len(devices.axis_names) != 1:
        checks.refuse("mesh", devices.axis_names, "one axis, to split the batch along")
    (axis,) = devices.axis_names

    def on_a_part(*arguments: Any) -> Any:
        # Mark shared arguments as varying over devices, so that their gradients are those of each part.
        own = [
            jax.lax.pcast(argument, (axis,), to="varying") if at is None else argument
            for argument, at in zip(arguments, in_axes, strict=True)
        ]
        results = function(*own)
        return _map_prefix(
            lambda at, x: jax.lax.pmean(x, axis) if at is None else x, out_axes, results
        )

    def on_all(*arguments: Any) -> Any:
        if len(arguments) != len(in_axes):
            checks.refuse(
                "in_axes", f"{len(in_axes)} of them", f"{len(arguments)}, one an argument"
            )
        for i, (argument, at) in enumerate(zip(arguments, in_axes, strict=True)):
            _check_batch(i, argument, at, devices.size)
        return jax.shard_map(
            on_a_part,
            mesh=devices,
            in_specs=tuple(_spec(at, axis) for at in in_axes),
            out_specs=jax.tree.map(lambda at: _spec(at, axis), out_axes, is_leaf=_is_none),
        )(*arguments)

    return jax.jit(on_all)


def _is_none(x: Any) -> bool:
    return x is None


def _map_prefix(function: Callable[[Any, Any], Any], prefix: Any, tree: Any) -> Any:
    """Apply ``function(axis, leaf)`` to the leaves of `tree` under each leaf of a tree prefix."""
    return jax.tree.map(
        lambda axis, part: jax.tree.map(lambda leaf: function(axis, leaf), part),
        prefix,
        tree,
        is_leaf=_is_none,
    )


def _spec(batch_axis: int | None, name: str) -> PartitionSpec:
    if batch_axis is None:
        return PartitionSpec()
    return PartitionSpec(*[None] * batch_axis, name)


def _check_batch(position: int, argument: Any, axis: int | None, devices: int) -> None:
    if axis is None:
        return
    for leaf in jax.tree.leaves(argument):
        if leaf.ndim <= axis or leaf.shape[axis] % devices:
            checks.refuse(
                f"argument {position}",
                checks.describe(leaf),
                f"a multiple of {devices} devices along its batch axis {axis}",
            )
