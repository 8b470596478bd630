"""The command line through its real entry points: what it prints, its exit codes, and no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jaxrnn.cli import main


def _jaxrnn(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    script = Path(sys.executable).parent / "jaxrnn"
    return subprocess.run(
        [script, *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run, trained by the installed command."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    options = ["--cell", "elman-tanh", "--hidden-features", "8", "--epochs", "1", "--seeds", "2"]
    done = _jaxrnn("train", "digits", *options, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    assert "compiled in" in done.stderr
    return out


def test_help_names_the_commands_and_teaches(capsys):
    for arguments, words in (
        (["--help"], ("train", "diagnose", "demo", "cells")),
        (
            ["train", "--help"],
            ("Example: jaxrnn train digits", "--hidden-features", "--resume", "default"),
        ),
    ):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
        text = capsys.readouterr().out
        for word in words:
            assert word in text


def test_python_dash_m_is_the_same_program():
    done = subprocess.run(
        [sys.executable, "-m", "jaxrnn", "cells"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    for name in ("elman-tanh", "lstm", "gru"):
        assert name in done.stdout


def test_train_writes_a_run_and_diagnose_reads_it(trained: Path, tmp_path: Path, capsys):
    config = json.loads((trained / "config.json").read_text())
    assert (config["cell"], config["fit"]["seeds"]) == ("elman-tanh", 2)
    assert (
        main(["diagnose", str(trained), "--out", str(tmp_path / "report"), "--sequences", "2"]) == 0
    )
    text = capsys.readouterr().out
    assert "gradient's rate" in text
    for file in ("report.md", "report.html", "figures/spectrum.png"):
        assert (tmp_path / "report" / file).stat().st_size > 0


def test_diagnose_a_fresh_cell(capsys):
    assert main(["diagnose", "elman-sigmoid", "--hidden-features", "8", "--sequences", "3"]) == 0
    assert capsys.readouterr().out.startswith("vanishing")


def test_resume_of_a_finished_run_prints_its_summary(trained: Path, capsys):
    options = ["--cell", "elman-tanh", "--hidden-features", "8", "--epochs", "1", "--seeds", "2"]
    assert main(["train", "digits", *options, "--out", str(trained), "--resume"]) == 0
    assert "test accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "--out", "x", "--cell", "lstmm"],
            "cell: got 'lstmm'; expected one of .*did you mean",
        ),
        (["train", "nothing", "--out", "x"], "task: got 'nothing'; expected one of digits, mnist"),
        (
            ["train", "--out", "x", "--epochs", "0"],
            "epochs: got 0; expected a whole number above 0",
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
        (["train", "--out", "x", "--epochs", "many"], "--epochs"),
        (["trian"], "trian"),
        (["train", "--out", "x", "--no-such", "1"], "--no-such"),
        ([], "demo"),
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
