"""Several devices and several processes: the numbers of one device, and what is left when a process dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

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


def _start_two(out: Path, *words: str) -> list[subprocess.Popen[str]]:
    """Start a job of two processes of two devices each, which meet at a free port."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
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


def test_eight_devices_come_to_the_numbers_of_one(alone: Path, tmp_path: Path):
    grid = ["--member-devices", "4", "--data-devices", "2"]
    _finish(_start(tmp_path / "run", "--steps", "40", *grid, devices=8))
    _assert_same(tmp_path / "run", alone)


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


@pytest.mark.parametrize("lost", [pytest.param(0, marks=pytest.mark.slow), 1])
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


@pytest.mark.parametrize("asked", [0, pytest.param(1, marks=pytest.mark.slow)])
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
