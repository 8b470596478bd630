"""The command line through its real entry points: what it prints, its exit codes, and no traceback."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest

import jaxrnn
from jaxrnn import interop
from jaxrnn.cli import main
from jaxrnn.cli.index import COMMANDS
from jaxrnn.experiments import load_network

_IMMENSE, _LONG = "9" * 30, "n" * 300


def _jaxrnn(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    script = Path(sys.executable).parent / "jaxrnn"
    return subprocess.run(
        [script, *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run, trained by the installed command."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    options = ["--cell", "elman-tanh", "--hidden-features", "8", "--steps", "40", "--seeds", "2"]
    done = _jaxrnn("train", "digits", *options, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    assert "compiled in" in done.stderr
    return out


def test_help_names_the_commands_and_teaches(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in text
        assert command.summary in text
    with pytest.raises(SystemExit) as end:
        main(["train", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for word in ("jaxrnn train digits --cell lstm", "--hidden-features", "--l2", "--resume"):
        assert word in text


def test_the_index_of_commands_is_that_of_their_docstrings():
    for command in COMMANDS.values():
        kind = getattr(importlib.import_module(command.module), command.name)
        assert (kind.__doc__ or "").split("\n")[0] == command.summary


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxrnn {jaxrnn.__version__}\n"


def test_python_dash_m_is_the_same_program():
    done = subprocess.run(
        [sys.executable, "-m", "jaxrnn", "cells"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    for name in ("elman-tanh", "lstm", "gru"):
        assert name in done.stdout


def test_train_writes_a_run_and_diagnose_reads_it(trained: Path, tmp_path: Path, capsys):
    config = json.loads((trained / "config.json").read_text())
    assert (config["network"]["cell"], config["fit"]["seeds"]) == ("elman-tanh", 2)
    assert (
        main(["diagnose", str(trained), "--out", str(tmp_path / "report"), "--sequences", "2"]) == 0
    )
    text = capsys.readouterr().out
    assert "gradient's rate" in text
    for file in ("report.md", "report.html", "figures/spectrum.png"):
        assert (tmp_path / "report" / file).stat().st_size > 0


@pytest.mark.slow
def test_diagnose_a_fresh_cell(capsys):
    assert main(["diagnose", "elman-sigmoid", "--hidden-features", "8", "--sequences", "3"]) == 0
    assert capsys.readouterr().out.startswith("vanishing")


def test_resume_of_a_finished_run_prints_its_summary(trained: Path, capsys):
    options = ["--cell", "elman-tanh", "--hidden-features", "8", "--steps", "40", "--seeds", "2"]
    assert main(["train", "digits", *options, "--out", str(trained), "--resume"]) == 0
    assert "test accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "--out", "x", "--cell", "lstmm"],
            "cell: got 'lstmm'; expected one of .*did you mean",
        ),
        (["train", "nothing", "--out", "x"], "task: got 'nothing'; expected one of copy-memory, "),
        (
            ["train", "--out", "x", "--steps", "0"],
            "steps: got 0; expected a whole number above 0",
        ),
        (
            ["train", "--out", "x", "--batch-size", "9999"],
            "batch_size: got 9999; expected at most the 1257",
        ),
        (
            ["train", "mnist", "--out", "x", "--data", "nowhere"],
            "neither nowhere.*the train images",
        ),
        (["diagnose", "nowhere"], "target: got 'nowhere'; expected a run's folder, or one of"),
        (["diagnose", "."], "run: got .; expected a run's folder"),
        (["diagnose", "gru", "--sequences", "0"], "sequences: got 0"),
        (["diagnose", "gru", "--task", "agreement"], "task: got agreement; expected a task on num"),
        (["train", "adding", "--out", "x", "--set", "length"], "set: got 'length'; expected name="),
        (["train", "adding", "--out", "x", "--set", "size=3"], "setting: got 'size'; expected one"),
        (["export", "nowhere", "--out", "x"], "run: got nowhere; expected a run's folder"),
        (["generate", "nowhere"], "run: got nowhere; expected a run's folder"),
        (
            ["train", "--out", "x", "--learning-rate", "1e-300"],
            "learning_rate: got 1e-300; .*float32",
        ),
        (["train", "--out", "x", "--clip-norm", "1e39"], r"clip_norm: got 1e\+39; .*float32 holds"),
        (["train", "--out", "x", "--l2", "1e-300"], "l2: got 1e-300; .*float32 holds"),
        (
            ["train", "--out", "x", "--hidden-features", "1000000000"],
            "hidden_features: got 1000000000",
        ),
        (
            ["train", "--out", "x", "--hidden-features", "65536", "--seeds", "1000"],
            "fill 192,0.. GiB on each device",
        ),
        (["train", "--out", "x", "--seeds", "1000000000000"], "seeds: got 1000000000000"),
        (
            ["train", "--out", "x", "--steps", _IMMENSE],
            "steps: got 9+; expected a whole number from 1",
        ),
        (
            ["train", "--out", "x", "--seed", _IMMENSE],
            "seed: got 9+; expected a whole number from 0",
        ),
        (
            ["train", "adding", "--out", "x", "--set", f"length={_IMMENSE}"],
            "length: got 9+; expected",
        ),
        (
            ["train", "adding", "--out", "x", "--set", "length=" + 9 * _IMMENSE * 30],
            "length: got '9+'",
        ),
        (
            ["train", "adding", "--out", "x", "--set", "length=" + "[" * 9_999],
            "length: got '.*'; exp",
        ),
        (
            ["train", "characters", "--out", "x", "--set", "file=/dev/zero"],
            "/dev/zero: .*Not a regular",
        ),
        (["train", "--out", _LONG], "out: got n+ .File name too long"),
        (["train", "mnist", "--out", "x", "--data", _LONG], "mnist: got neither n+/train-images"),
        (["diagnose", _LONG], "target: got 'n+'; expected a run's folder"),
        (["diagnose", "gru", "--hidden-features", _IMMENSE], "hidden_features: got 9+"),
        (["export", _LONG, "--out", "x"], "run: got n+; expected a run's folder"),
        (["cells", "--out", _LONG], "out: got n+ .File name too long"),
        (["cells", "--out", "/dev/full"], "out: got /dev/full .Not a regular file"),
        (["cells", "--hidden-features", "2147483648"], "hidden_features: got 2147483648"),
        (["demo", "--epochs", _IMMENSE], "epochs: got .*9+; expected"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(arguments, message, tmp_path, monkeypatch, capsys):
    import re

    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("jaxrnn: error: ")
    assert re.search(message, captured.err)
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["train", "--out", "x", "--steps", "many"], "--steps"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (["trian"], "trian"),
                (["train", "--out", "x", "--no-such", "1"], "--no-such"),
                ([], "demo"),
            )
        ),
    ],
)
def test_words_that_are_no_command_end_with_two_and_one_line(arguments, word):
    done = _jaxrnn(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("jaxrnn: error: ")
    assert done.stderr.count("\n") == 1
    assert word in done.stderr


def test_an_existing_folder_is_not_overwritten(trained: Path, capsys):
    before = (trained / "config.json").read_bytes()
    assert main(["train", "--out", str(trained)]) == 2
    assert "which is not empty" in capsys.readouterr().err
    assert (trained / "config.json").read_bytes() == before


def test_tasks_are_listed_with_their_settings(capsys):
    assert main(["tasks"]) == 0
    text = capsys.readouterr().out
    for word in ("adding-600", "length=600", "mnist", "needs files"):
        assert word in text


# Exported by the installed command: the batch size stays a symbol, which the types checked in tests refuse.


def test_an_ascii_terminal_gets_what_it_cannot_show_as_escapes(trained: Path):
    words = ["--cell", "elman-tanh", "--hidden-features", "8", "--steps", "40", "--seeds", "2"]
    plain = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    command = [sys.executable, "-m", "jaxrnn", "train", "digits", *words]
    done = subprocess.run(
        [*command, "--out", str(trained), "--resume"], capture_output=True, env=plain, check=False
    )
    assert done.returncode == 0, done.stderr
    assert rb" \xb1 " in done.stdout


def test_a_full_disk_and_a_folder_without_permission_are_one_line(
    trained: Path, tmp_path: Path, capsys
):
    """A small disk is mounted where the user may; a folder of the kernel's takes no file from anyone."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(disk)]
    mounted = not subprocess.run(mount, capture_output=True, check=False).returncode
    try:
        for out in ([disk / "x"] if mounted else []) + [Path("/proc/x")]:
            sizes = ["--hidden-features", "2", "--sequences", "1"]
            assert main(["cells", "--out", str(out)]) == 2
            assert main(["diagnose", "elman-tanh", *sizes, "--out", str(out)]) == 2
            exported = _jaxrnn("export", str(trained), "--out", str(out))
            assert exported.returncode == 2
            for said in (*capsys.readouterr().err.splitlines(), exported.stderr):
                if "jaxrnn: error" in said:
                    assert said.startswith("jaxrnn: error: out: got ")
                    assert "No space left" in said or "No such file" in said
                else:
                    assert said.startswith("diagnosis of ")  # its progress
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)


def test_a_run_goes_out_as_stablehlo_and_safetensors(trained: Path, tmp_path: Path, capsys):
    done = _jaxrnn("export", str(trained), "--out", str(tmp_path), "--network", "1")
    assert "any number of steps" in done.stdout
    task, model = load_network(trained, 1)
    program = jax.export.deserialize(bytearray((tmp_path / "model.stablehlo").read_bytes()))
    assert set(program.platforms) == {"cpu", "cuda", "tpu"}
    again = _jaxrnn("export", str(trained), "--out", str(tmp_path / "again"), "--network", "1")
    assert again.returncode == 0
    for name in ("model.stablehlo", "model.safetensors", "start.stablehlo", "step.stablehlo"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    inputs = task.test.take(5).inputs
    found = program.call(inputs)
    np.testing.assert_allclose(found, model(inputs), rtol=1e-5, atol=1e-5)
    start, step = (
        jax.export.deserialize(bytearray((tmp_path / f"{name}.stablehlo").read_bytes()))
        for name in ("start", "step")
    )
    state, answers = step.call(start.call(inputs[0]), inputs[0])
    for x in inputs[1:3]:
        state, answers = step.call(state, x)
    np.testing.assert_allclose(answers, model(inputs[:3]), rtol=1e-5, atol=1e-5)
    shorter = inputs[:3]
    np.testing.assert_allclose(program.call(shorter), model(shorter), rtol=1e-5, atol=1e-5)
    _, other = load_network(trained, 0)
    restored = interop.load(tmp_path / "model.safetensors", other)
    jax.tree.map(np.testing.assert_array_equal, restored, model)
    assert main(["export", str(trained), "--out", str(tmp_path), "--network", "2"]) == 2
    assert "network: got 2; expected 0 to 1" in capsys.readouterr().err


def test_a_language_model_is_trained_and_writes(tmp_path: Path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog . " * 60)
    options = ["--set", f"file={text}", "window=20", "--steps", "60", "--every", "30"]
    sizes = ["--hidden-features", "32", "--embedding-features", "16", "--batch-size", "8"]
    out = tmp_path / "run"
    rate = ["--seeds", "1", "--learning-rate", "0.03"]
    assert main(["train", "characters", "--out", str(out), *options, *sizes, *rate]) == 0
    assert "test bits" in capsys.readouterr().out
    written = ["--prompt", "the quick ", "--count", "30", "--temperature", "0"]
    assert main(["generate", str(out), *written]) == 0
    said = capsys.readouterr().out.rstrip("\n")
    assert said == "the quick brown fox jumps over the lazy "
    assert main(["generate", str(out), *written, "--end", "x"]) == 0
    # It ends there, and the end is written.
    assert capsys.readouterr().out == "the quick brown fox\n"
    assert main(["generate", str(out), *written[:-1], "1.0", "--top-p", "1e-6"]) == 0
    # The most probable alone, as at temperature 0.
    assert capsys.readouterr().out.rstrip("\n") == said
    for bad in ("xy", "Ä", ""):
        assert main(["generate", str(out), "--end", bad]) == 2
        assert "one character or word that training knew" in capsys.readouterr().err
    assert main(["generate", str(out), "--top-p", "1.5"]) == 2
    assert "top_p: got 1.5" in capsys.readouterr().err
    assert main(["generate", str(out), "--prompt", "Äh, the!"]) == 0
    assert "holds what training did not: 'Ä', ',', '!'" in capsys.readouterr().err
    assert main(["generate", str(out), "--prompt", ""]) == 2
    assert "prompt: got ''" in capsys.readouterr().err
    assert main(["generate", str(out), "--top-k", "999"]) == 2
    assert "top_k: got 999" in capsys.readouterr().err


def test_only_a_language_model_writes(trained: Path, capsys):
    assert main(["generate", str(trained)]) == 2
    assert "run: got a run of digits; expected a run of a language model" in capsys.readouterr().err


@pytest.mark.slow
def test_a_network_of_ragged_sequences_goes_out_with_their_lengths(tmp_path: Path):
    sizes = [
        "--hidden-features",
        "6",
        "--steps",
        "4",
        "--every",
        "4",
        "--seeds",
        "1",
        "--no-probes",
    ]
    settings = ["--set", "longest=5", "tested=9"]
    assert main(["train", "parity", *settings, *sizes, "--out", str(tmp_path / "run")]) == 0
    done = _jaxrnn("export", str(tmp_path / "run"), "--out", str(tmp_path / "out"))
    assert "with their lengths" in done.stdout
    task, model = load_network(tmp_path / "run", 0)
    batch = task.test.take(7)
    program = (tmp_path / "out" / "model.stablehlo").read_bytes()
    found = jax.export.deserialize(bytearray(program)).call(batch.inputs, batch.lengths)
    expected = model(batch.inputs, seq_lengths=batch.lengths)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
