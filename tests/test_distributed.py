"""Several devices and several processes: the numbers of one device, and what is left when a process dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxrnn.checks import InputError
from jaxrnn.devices import join_processes
from jaxrnn.training import Checkpoints

_WORDS = ["train", "first-token", "--set", "length=12", "--cell", "gru", "--hidden-features", "8"]
_SIZES = ["--seeds", "4", "--batch-size", "8", "--every", "10"]


def _start(out: Path, *words: str, devices: int = 1, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jaxrnn", *_WORDS, *_SIZES, *words, "--out", str(out)]
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), **environment},
    )


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def _start_two(out: Path, *words: str) -> list[subprocess.Popen[str]]:
    """Start a job of two processes of two devices each, which meet at a free port."""
    address = f"localhost:{_free_port()}"
    about = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    grid = ["--member-devices", "2", "--data-devices", "2"]
    return [
        _start(out, *words, *grid, devices=2, **about, JAX_PROCESS_ID=str(number))
        for number in range(2)
    ]


def _finish(process: subprocess.Popen[str]) -> str:
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    return said


def _assert_same(ours: Path, theirs: Path) -> None:
    """Compare everything in two runs' newest checkpoints, and their metrics."""
    states = []
    for out in (ours, theirs):
        with Checkpoints(out / "checkpoints") as checkpoints:
            state = checkpoints.read()
            del state["fingerprint"]
            states.append(state)
    assert states[0].keys() == states[1].keys()
    for name in states[0]:
        if "best" not in name:  # a rounding error may make another report the best
            np.testing.assert_allclose(states[0][name], states[1][name], rtol=1e-4, atol=1e-5)
    results = [json.loads((out / "result.json").read_text()) for out in (ours, theirs)]
    np.testing.assert_allclose(results[0]["test_loss"], results[1]["test_loss"], rtol=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one device."""
    out = tmp_path_factory.mktemp("alone") / "run"
    _finish(_start(out, "--steps", "40"))
    return out


@pytest.mark.slow
def test_eight_devices_come_to_the_numbers_of_one(alone: Path, tmp_path: Path):
    grid = ["--member-devices", "4", "--data-devices", "2"]
    _finish(_start(tmp_path / "run", "--steps", "40", *grid, devices=8))
    _assert_same(tmp_path / "run", alone)


@pytest.mark.slow
def test_two_processes_come_to_the_numbers_of_one_which_reads_what_they_wrote(
    alone: Path, tmp_path: Path
):
    first, second = _start_two(tmp_path / "run", "--steps", "40")
    assert "test accuracy" in _finish(first)
    assert "accuracy" not in _finish(second)  # the first process alone speaks
    _assert_same(tmp_path / "run", alone)
    (tmp_path / "run" / "result.json").unlink()
    _finish(_start(tmp_path / "run", "--steps", "40", "--resume"))
    _assert_same(tmp_path / "run", alone)


@pytest.mark.slow  # JAX waits for a minute and more before it takes a process for lost
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_job_and_leaves_a_good_checkpoint(lost: int, tmp_path: Path):
    out = tmp_path / "run"
    processes = _start_two(out, "--steps", "100000")
    while not (out / "checkpoints" / "20").exists():
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)
    processes[lost].send_signal(signal.SIGKILL)
    processes[lost].communicate()
    left = processes[1 - lost]
    _, said = left.communicate(timeout=150)
    assert left.returncode != 0
    if lost == 1:  # where the first is lost, JAX itself ends the others
        assert "jaxrnn: another process of the job is lost" in said
        assert "--resume goes on" in said
    with Checkpoints(out / "checkpoints") as checkpoints:
        assert checkpoints.latest is not None
        assert checkpoints.latest >= 20
        assert checkpoints.read()[".step"] == checkpoints.latest


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_a_process_that_is_asked_to_end_ends_the_job_which_one_process_goes_on_with(
    asked: int, alone: Path, tmp_path: Path
):
    out = tmp_path / "run"
    processes = _start_two(out, "--steps", "40", "--every", "1")
    while not (out / "checkpoints" / "2").exists():
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)
    processes[asked].send_signal(signal.SIGTERM)
    for process in processes:
        _, said = process.communicate(timeout=150)
        assert process.returncode == 128 + signal.SIGTERM, said
        assert "by SIGTERM; --resume goes on from there" in said
    with Checkpoints(out / "checkpoints") as checkpoints:
        assert checkpoints.latest is not None
        assert checkpoints.latest < 40
    _finish(_start(out, "--steps", "40", "--every", "1", "--resume"))
    _assert_same(out, alone)


def test_processes_need_all_of_their_variables(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    with pytest.raises(InputError, match="JAX_NUM_PROCESSES: got nothing; expected a value"):
        join_processes()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "2")
    with pytest.raises(InputError, match="got process 2 of 2; expected 0 to the number less 1"):
        join_processes()


def _of_slurm(number: int) -> dict[str, str]:
    """What srun tells the tasks of a step of two."""
    return {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
    }


def _of_open_mpi(number: int) -> dict[str, str]:
    """What mpirun tells two processes; JAX reads the address behind the number of the job."""
    return {
        "OMPI_MCA_orte_hnp_uri": "1.0;tcp://127.0.0.1:1",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": str(number),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(number),
    }


def _of_a_tpu_pod(number: int) -> dict[str, str]:
    """What the two hosts of a pod are told, on machines that JAX takes for hosts of TPUs."""
    return {
        "JAX_FORCE_TPU_INIT": "1",
        "TPU_WORKER_HOSTNAMES": "localhost,localhost",
        "TPU_WORKER_ID": str(number),
        "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
        "MEGASCALE_NUM_SLICES": "1",
        "MEGASCALE_SLICE_ID": "0",
    }


@pytest.mark.parametrize(
    "told",
    [_of_slurm, *(pytest.param(f, marks=pytest.mark.slow) for f in (_of_open_mpi, _of_a_tpu_pod))],
)
def test_the_processes_of_a_cluster_find_each_other(told: Callable[[int], dict[str, str]]):
    program = (
        "import jax; from jaxrnn.devices import join_processes; join_processes();"
        "print(jax.process_index(), jax.process_count(), jax.device_count())"
    )
    about = {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_PORT": str(_free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "2", **about, **told(number)},
        )
        for number in range(2)
    ]
    try:
        said = [_finish(process).split() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert said == [["0", "2", "4"], ["1", "2", "4"]]


_STEP = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://127.0.0.1:1"}
_ALONE = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
_TPU = {"TPU_ML_PLATFORM": "JAX"}


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The GPUs that JAX was told to take, for each time that a process would have joined a job."""
    joined: list[Any] = []

    def initialize(local_device_ids: list[int] | None = None) -> None:
        joined.append(local_device_ids)

    monkeypatch.setattr("jax.distributed.initialize", initialize)
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "JAX_COORDINATOR", "CUDA_VISIBLE")):
            monkeypatch.delenv(name)
    return joined


@pytest.mark.parametrize(
    ("told", "joins"),
    [
        ({}, []),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2"}, []),  # a batch script, before its srun
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}, []),  # a shell within an allocation
        (_STEP, [None]),
        ({**_STEP, "CUDA_VISIBLE_DEVICES": "0,1"}, [None]),  # each takes that of its number
        ({**_STEP, "CUDA_VISIBLE_DEVICES": "1"}, [[0]]),  # the only one it sees
        ({**_ALONE, "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [[0, 1, 2, 3]]),  # one task a node
        ({**_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1", "CUDA_VISIBLE_DEVICES": "0,1"}, [[0, 1]]),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, []),  # a host of the pod without TPUs
        (_TPU, [None]),  # the metadata server knows the others
        ({**_TPU, "TPU_SKIP_MDS_QUERY": "1"}, []),  # a notebook's one host
        ({**_TPU, "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "a,b"}, [None]),
        ({**_TPU, "TPU_SKIP_MDS_QUERY": "1", "TPU_PROCESS_ADDRESSES": "a:1,b:1"}, [None]),
    ],
)
def test_a_process_joins_a_job_that_has_others(
    told: dict[str, str], joins: list[Any], joined: list[Any], monkeypatch: pytest.MonkeyPatch
):
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    join_processes()
    assert joined == joins


@pytest.mark.usefixtures("joined")
def test_processes_of_open_mpi_5_are_told_what_to_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"Open MPI 5.* expected JAX_COORDINATOR_ADDRESS"):
        join_processes()
