"""Real processes, killed at random moments: what they leave goes on as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxrnn.experiments import RunConfig
from jaxrnn.training import Checkpoints, read_metrics

_WORDS = ["train", "digits", "--cell", "elman-tanh", "--hidden-features", "8", "--seeds", "2"]


def _start(out: Path, *words: str, programs: Path | None = None) -> subprocess.Popen[str]:
    """Start `jaxrnn train`; what it compiles is kept for the next one, which then starts sooner."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(programs or out.parent / "programs")}
    always = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "jaxrnn", *_WORDS, *words, "--out", str(out)]
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **cache, **always},
    )


def _finish(out: Path, *words: str, programs: Path | None = None) -> str:
    process = _start(out, *words, programs=programs)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return said


def _state(out: Path) -> dict[str, Any]:
    """Everything in the newest checkpoint, by name."""
    with Checkpoints(out / "checkpoints") as checkpoints:
        return checkpoints.read()


def _rows(out: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in read_metrics(out)]


def _kill_at_random(tmp_path: Path, kills: int, steps: int) -> None:
    """Kill a run again and again, once while it starts, and compare what it comes to."""
    sizes = ["--steps", str(steps), "--every", "50"]
    _finish(tmp_path / "undisturbed", *sizes)
    out, moments = tmp_path / "killed", random.Random(0)
    reports = sorted(moments.sample(range(1, steps // 50), kills - 1))
    for report in [0, *reports]:
        resumed = ["--resume"] if (out / "config.json").exists() else []
        process = _start(out, *sizes, *resumed)
        while process.poll() is None and len(_rows(out)) < report:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.2) if report else moments.uniform(1, 4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    _finish(out, *sizes, "--resume")
    assert RunConfig.of(out) == RunConfig.of(tmp_path / "undisturbed")
    assert _rows(out) == _rows(tmp_path / "undisturbed")
    ours, theirs = _state(out), _state(tmp_path / "undisturbed")
    assert ours.keys() == theirs.keys()
    for name, leaf in theirs.items():
        np.testing.assert_array_equal(ours[name], leaf, err_msg=name)


def test_a_run_killed_twice_is_the_undisturbed_one(tmp_path: Path):
    _kill_at_random(tmp_path, kills=2, steps=1_000)


@pytest.mark.slow
def test_a_run_killed_twenty_times_is_the_undisturbed_one(tmp_path: Path):
    _kill_at_random(tmp_path, kills=20, steps=8_000)


def test_a_process_that_is_asked_to_end_saves_and_says_so(tmp_path: Path):
    out = tmp_path / "run"
    process = _start(out, "--steps", "1000000", "--every", "500000")
    assert process.stderr is not None
    for line in process.stderr:
        if "compiled" in line:
            break
    while not (out / "checkpoints" / "0").exists():
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped after step" in said
    assert "--resume goes on from there" in said
    with Checkpoints(out / "checkpoints") as checkpoints:
        assert checkpoints.latest is not None
        assert 0 < checkpoints.latest < 500_000


def test_a_second_process_is_refused(tmp_path: Path):
    out = tmp_path / "run"
    first = _start(out, "--steps", "1000000")
    while not (out / "lock").exists():
        time.sleep(0.1)
    second = _start(out, "--steps", "1000000", "--resume")
    _, said = second.communicate(timeout=120)
    first.kill()
    first.communicate()
    assert second.returncode == 2
    assert "into which another process writes" in said


@pytest.mark.slow
def test_a_run_on_a_full_disk_says_so_and_goes_on_when_there_is_room(tmp_path: Path):
    disk, programs = tmp_path / "disk", tmp_path / "programs"
    sizes = ["--hidden-features", "64", "--steps", "400", "--every", "20"]
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        process = _start(disk / "run", *sizes, programs=programs)
        _, said = process.communicate(timeout=600)
        assert process.returncode == 2
        assert "No space left on device" in said.splitlines()[-1]
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        assert "resumed after step" in _finish(disk / "run", *sizes, "--resume", programs=programs)
        _finish(tmp_path / "roomy", *sizes)
        ours, theirs = _state(disk / "run"), _state(tmp_path / "roomy")
        for name, leaf in theirs.items():
            np.testing.assert_array_equal(ours[name], leaf, err_msg=name)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
