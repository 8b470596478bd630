"""Run folders that were mixed up, damaged or made by a stranger: each is refused by name."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxrnn.checks import InputError
from jaxrnn.experiments import (
    NetworkConfig,
    RunConfig,
    Subject,
    export,
    load_network,
    run_diagnosis,
    train,
)
from jaxrnn.experiments.stages import Stages
from jaxrnn.files import replace_file
from jaxrnn.report import Report, plain
from jaxrnn.training import Checkpoints, FitConfig, RunFolder, Stopped, read_metrics
from jaxrnn.training.program import Program

_RUN = RunConfig(
    "first-token",
    {"length": 6},
    NetworkConfig("elman-tanh", 4),
    FitConfig(steps=30, every=10, seeds=1, batch_size=8),
    probes=False,
)
_OTHER = dataclasses.replace(_RUN, fit=dataclasses.replace(_RUN.fit, seed=9, learning_rate=0.01))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs whose networks have the same shapes."""
    folder = tmp_path_factory.mktemp("trained")
    train(_RUN, folder / "one")
    train(_OTHER, folder / "other")
    return folder / "one", folder / "other"


@pytest.fixture
def run(trained: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the first run."""
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


def _lines(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text().splitlines(keepends=True)


# Checkpoints.


def test_a_checkpoint_of_another_run_is_refused_with_the_difference(trained, run: Path):
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(trained[1] / "checkpoints", run / "checkpoints")
    message = (
        r"checkpoint of step 30 of another run.*learning_rate was 0.01 and is 0.003.*seed was 9"
    )
    with pytest.raises(InputError, match=message):
        train(_RUN, run, resume=True)
    with pytest.raises(InputError, match=message):
        load_network(run, 0)
    with pytest.raises(InputError, match=message):
        export(run, run.parent / "exported")
    assert not (run.parent / "exported" / "model.stablehlo").exists()


def test_the_metrics_of_another_run_are_refused(trained, run: Path):
    shutil.copy(trained[1] / "metrics.jsonl", run / "metrics.jsonl")
    with pytest.raises(InputError, match="metrics: got other reports up to step 30"):
        train(_RUN, run, resume=True)


def test_a_checkpoint_under_the_number_of_another_is_refused(run: Path):
    shutil.rmtree(run / "checkpoints" / "30")
    (run / "checkpoints" / "20").rename(run / "checkpoints" / "30")
    with pytest.raises(InputError, match="step 30, which was written at step 20"):
        train(_RUN, run, resume=True)


def test_a_checkpoint_of_an_older_version_is_read_and_said(run: Path, capsys):
    """It holds no origin, so nothing can be compared."""
    for step in ("20", "30"):
        file = run / "checkpoints" / step / "_CHECKPOINT_METADATA"
        about = json.loads(file.read_text())
        assert "origin" in about.pop("custom_metadata")
        file.write_text(json.dumps(about))
    _, model = load_network(run, 0)
    assert "checkpoint of step 30 is of an older version" in capsys.readouterr().err
    result = train(_RUN, run, resume=True)
    jax.tree.map(np.testing.assert_array_equal, model, jax.tree.map(lambda x: x[0], result.models))


def _empty(checkpoint: Path) -> None:
    for file in checkpoint.rglob("*"):
        if file.is_file() and "/d/" in str(file):
            file.write_bytes(b"")


def test_whoever_steps_back_to_an_older_checkpoint_says_so(run: Path, capfd):
    _empty(run / "checkpoints" / "30")
    load_network(run, 0)
    said = capfd.readouterr().err
    assert "the checkpoint of step 30 is damaged" in said
    assert "read the checkpoint of step 20" in said
    # Of the reads that nobody waited for, nothing is printed.
    assert len(said.splitlines()) == 2
    with Checkpoints(run / "checkpoints") as checkpoints:
        assert checkpoints.read()[".step"] == 20


def test_a_reader_beside_a_rotating_trainer_lists_again(run: Path, monkeypatch, capsys):
    newest, hidden = run / "checkpoints" / "30", run.parent / "30"
    newest.rename(hidden)
    intact = Checkpoints._intact

    def rotated(self, step, wanted=None):
        if step == 20 and hidden.exists():  # the trainer finishes 30 and deletes 20 now
            hidden.rename(newest)
            shutil.rmtree(run / "checkpoints" / "20")
        return intact(self, step, wanted)

    monkeypatch.setattr(Checkpoints, "_intact", rotated)
    load_network(run, 0)
    said = capsys.readouterr().err
    assert "read the checkpoint of step 30" in said
    assert "damaged" not in said


def test_a_reader_changes_nothing(run: Path):
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(InputError, match="no intact checkpoint"):
        load_network(run, 0)
    assert not (run / "checkpoints").exists()


def test_what_a_kill_left_among_the_checkpoints_is_swept_when_the_run_goes_on(run: Path):
    checkpoints = run / "checkpoints"
    for left in ("10", "40.orbax-checkpoint-tmp-7", "deleted/0"):
        (checkpoints / left / "default").mkdir(parents=True)
        (checkpoints / left / "default" / "part").write_text("half")
    (run / "0123456789abcdef.unfinished").write_text("half")
    train(_RUN, run, resume=True)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["20", "30"]
    assert not list(run.glob("*.unfinished"))


# Metrics.


def _lost(lines: list[str]) -> list[str]:
    return [lines[0], *lines[2:]]


def _doubled(lines: list[str]) -> list[str]:
    return [lines[0], lines[1], lines[1], *lines[2:]]


def _swapped(lines: list[str]) -> list[str]:
    return [lines[0], lines[2], lines[1], lines[3]]


def _edited(lines: list[str]) -> list[str]:
    row = json.loads(lines[1])
    return [lines[0], json.dumps({**row, "valid_accuracy": [1.0]}) + "\n", *lines[2:]]


def _last_lost(lines: list[str]) -> list[str]:
    return lines[:-1]


def _cut_in_the_middle(lines: list[str]) -> list[str]:
    return [lines[0], lines[1][:20] + "\n", *lines[2:]]


@pytest.mark.parametrize(
    "spoil", [_lost, _doubled, _swapped, _edited, _last_lost, _cut_in_the_middle]
)
def test_metrics_that_are_not_as_they_were_written_are_refused(spoil, run: Path):
    (run / "metrics.jsonl").write_text("".join(spoil(_lines(run))))
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"metrics: got .*(other reports|line \d)"):
        train(_RUN, run, resume=True)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_reports_after_the_checkpoint_and_an_unfinished_line_are_dropped(run: Path):
    whole = _lines(run)
    shutil.rmtree(run / "checkpoints" / "30")  # killed before it was whole
    (run / "metrics.jsonl").write_text("".join([*whole, '{"step": 40, "lo']))
    result = train(_RUN, run, resume=True)
    assert [row["step"] for row in result.history] == [0, 10, 20, 30]
    assert _lines(run)[:3] == whole[:3]


@pytest.mark.parametrize(
    "content",
    [
        b"[1, 2]\n",
        b"3\n",
        b'{"loss": 1}\n',
        b'{"step": "3"}\n',
        b'{"step": true}\n',
        b"[" * 100_000 + b"\n",
        b'{"step": ' + b"9" * 5_000 + b"}\n",
        '{"step": 0}\n'.encode("utf-16"),
        None,
    ],
    ids=["list", "number", "no step", "text", "bool", "deep", "digits", "utf-16", "folder"],
)
def test_metrics_that_are_no_reports_are_refused_by_name(content: bytes | None, run: Path):
    (run / "metrics.jsonl").unlink()
    if content is None:
        (run / "metrics.jsonl").mkdir()
    else:
        (run / "metrics.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=r"metrics: got .*metrics\.jsonl"):
        list(read_metrics(run))


@pytest.mark.parametrize("content", ["[]", "[" * 100_000, '{"fit": 3}', "null", "{}"])
def test_settings_that_are_no_settings_are_refused(content: str, run: Path):
    (run / "config.json").write_text(content)
    with pytest.raises(InputError, match="run: got"):
        RunConfig.of(run)


# Links.


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "result.json"])
def test_a_link_in_wait_for_a_file_that_is_being_written_is_not_followed(name, tmp_path: Path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = RunFolder(tmp_path / "run", {})
    folder.open()
    (folder.path / f"{name}.unfinished").symlink_to(victim)
    (folder.path / name).unlink(missing_ok=True)
    replace_file(folder.path / name, b"{}")
    folder.append({"step": 0})
    folder.finish({})
    assert victim.read_text() == "mine"


@pytest.mark.parametrize(
    "name",
    ["config.json.unfinished", "metrics.jsonl", "result.json", "env.json", "lock", "figures"],
)
def test_links_inside_a_run_are_refused(name: str, run: Path):
    victim = run.parent / "victim"
    victim.write_text("mine")
    path = run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(victim)
    with pytest.raises(InputError, match=f"got the symbolic link .*{name}"):
        train(_RUN, run, resume=True)
    with pytest.raises(InputError, match=f"got the symbolic link .*{name}"):
        load_network(run, 0)
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json", "checkpoints/hard"])
def test_hard_links_inside_a_run_are_refused(name: str, run: Path):
    victim = run.parent / "victim"
    path = run / name
    if path.exists():
        path.rename(victim)
    else:
        victim.write_text("mine")
    before = victim.read_bytes()
    os.link(victim, path)
    with pytest.raises(InputError, match=f"run: got the hard link .*{name}|out: got the hard link"):
        train(_RUN, run, resume=True)
    with pytest.raises(
        InputError, match=f"run: got the hard link .*{name}; expected a folder whose"
    ):
        load_network(run, 0)
    assert victim.read_bytes() == before


def test_checkpoints_behind_a_link_are_neither_read_nor_deleted(run: Path):
    elsewhere = run.parent / "elsewhere"
    (run / "checkpoints").rename(elsewhere)
    (elsewhere / "40.orbax-checkpoint-tmp-1").mkdir()
    (run / "checkpoints").symlink_to(elsewhere)
    before = sorted(path.name for path in elsewhere.iterdir())
    with pytest.raises(InputError, match=r"got the symbolic link .*checkpoints"):
        train(_RUN, run, resume=True)
    with pytest.raises(InputError, match=r"got the symbolic link .*checkpoints"):
        Checkpoints(run / "checkpoints")
    assert sorted(path.name for path in elsewhere.iterdir()) == before


def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(FileExistsError, match="Not a regular file"):
            replace_file(tmp_path / name, b"")
    assert not (tmp_path / "nowhere").exists()


# The end of a run.


def _with_sigterm(function: Callable[..., Any], when: Callable[[Any], bool]) -> Callable[..., Any]:
    """Return a function before whose call SIGTERM comes, if `when` is true of its second argument."""

    def asked(first, second, *rest):
        if when(second):
            os.kill(os.getpid(), signal.SIGTERM)
        return function(first, second, *rest)

    return asked


def test_a_request_to_end_in_the_last_steps_is_heeded(tmp_path: Path):
    with pytest.MonkeyPatch.context() as monkeypatch:
        last = _with_sigterm(Program.train, lambda state: int(state.step) >= 20)
        monkeypatch.setattr(Program, "train", last)
        with pytest.raises(Stopped):
            train(_RUN, tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()
    train(_RUN, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "result.json").exists()


def test_a_request_to_end_while_the_result_is_made_leaves_a_whole_result(tmp_path: Path):
    with pytest.MonkeyPatch.context() as monkeypatch:
        fit = importlib.import_module("jaxrnn.training.fitting")
        monkeypatch.setattr(fit, "_result", _with_sigterm(fit._result, lambda initial: True))
        train(_RUN, tmp_path / "run")
    assert (tmp_path / "run" / "result.json").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# Diagnoses and reports.


def test_a_diagnosis_is_not_put_together_from_parts_of_another(
    tmp_path: Path, trained, monkeypatch
):
    """At the same path lies another run by now."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained[0], "run")
    subject = Subject("run", sequences=2)
    run_diagnosis(subject, Path("diagnosis"))
    shutil.rmtree("run")
    shutil.copytree(trained[1], "run")
    with pytest.raises(InputError, match=r"resume: got other settings .fingerprint was"):
        run_diagnosis(subject, Path("diagnosis"), resume=True)
    shutil.copytree("diagnosis/parts", "parts")
    with pytest.raises(InputError, match=r"resume: got .*cannot be read or is of another subject"):
        Stages("diagnosis", 1, Path("parts"), subject="another")("gradient flow", dict)


_HOSTILE = "<img src=x onerror=alert(1)> ![a](/etc/passwd.png) [b](javascript:c) `d` | e\n\n# f ```"


def test_a_report_runs_nothing_that_stands_in_names(tmp_path: Path):
    (tmp_path / "dot.png").write_bytes(b"figure")
    report = Report(_HOSTILE)
    report.heading(plain(_HOSTILE))
    report.paragraph(f"A word: {plain(_HOSTILE)}")
    report.paragraph("Unescaped: <script>alert(1)</script>")
    report.verbatim(_HOSTILE)
    report.table(["name"], [[plain(_HOSTILE)]])
    report.figure("dot.png", _HOSTILE)
    page = report.write(tmp_path)[1].read_text("utf-8")
    body = page[page.index("<body>") :]
    assert "<script" not in body
    assert body.count("<img") == 1  # the figure itself
    assert "<a " not in body
    assert "javascript:c</" not in body.replace("(javascript:c)", "")
    assert body.count("<h1>") == 1
    assert body.count("<h2>") == 1
    assert body.count("<td>") == 1
    shown = (
        "&lt;img src=x onerror=alert(1)&gt; ![a](/etc/passwd.png) [b](javascript:c) `d` | e # f ```"
    )
    for tag in ("h1", "h2", "td", "em"):
        assert f"<{tag}>{shown}</{tag}>" in body
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}' in page


def test_the_diagnosis_of_a_hostile_folder_shows_its_name_as_text(
    trained, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    name = "<img src=x onerror=alert(1)> [bold]"
    shutil.copytree(trained[0], name)
    _, html = run_diagnosis(Subject(name, sequences=2), Path("out"))
    assert html is not None
    page = html.read_text("utf-8")
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt; [bold]" in page
