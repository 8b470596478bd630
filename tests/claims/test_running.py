"""Records, batteries that go on after a kill, and the page made from records alone."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxrnn import claims
from jaxrnn.checks import InputError
from jaxrnn.claims import (
    CLAIMS,
    Check,
    Claim,
    Evidence,
    Exactly,
    Lab,
    Line,
    Mean,
    Panel,
    Part,
    Rule,
    Sample,
    Source,
    judge,
    read_evidence,
    read_folder,
    run_all,
    running,
    write_evidence,
)
from jaxrnn.claims.claim import add
from jaxrnn.claims.page import CLAIMS_HEADER, claim_rows, claim_text, write_page, write_report
from jaxrnn.cli import main
from jaxrnn.tasks import MissingDataError

EVIDENCE = Evidence(
    samples=[
        Sample("slope, nats", {"cell": "gru"}, [-0.1, float("-inf"), 1 / 3], (0, 1, 2)),
        Sample("steps", {}, [10, 20], (0, 1), (False, True)),
    ],
    checks=[Check("positive control", "it works", True, "1 of 1")],
    panels=[
        Panel(
            "A | title", "x", "y", [Line("a", [1, 2], [3, 4], [2, 3], [4, 5], "both")], "log",
            marks={"chance": 0.5},
        ),
        Panel("Names", "", "y", [Line("", [0, 1], [3, 4], style="points")], ticks=("one", "two")),
    ],
    facts={"rate": -1 / 3},
    settings={"T": "200"},
)  # fmt: skip


def rule(test) -> Rule:
    return Rule((Part("x", test),))


@pytest.fixture
def table():
    """Claims of the tests' own, which are taken out of the table again."""
    before = dict(CLAIMS)
    calls: list[str] = []

    def claim(name: str, measure, test=None, **changes) -> Claim:
        def counted(lab: Lab) -> Evidence:
            calls.append(name)
            return measure(lab)

        new = Claim(
            name,
            changes.pop("topic", "A topic"),
            f"{name} holds",
            (Source("Charu", "as <b>he</b> says"),),
            "why",
            "x is measured",
            rule(test or Mean(above=0.0)),
            "nothing",
            {"confirmed": "x is {x:.2f}."},
            counted,
        )
        add(dataclasses.replace(new, **changes))
        return CLAIMS[name]

    def good(lab: Lab) -> Evidence:
        values = [1 + 0.01 * seed for seed in lab.seeds]
        return dataclasses.replace(
            EVIDENCE, samples=[Sample("x", {"cell": "gru"}, values, lab.seeds)], facts={"x": 1.0}
        )

    def broken(lab: Lab) -> Evidence:
        raise ZeroDivisionError("by design")

    def missing(lab: Lab) -> Evidence:
        raise MissingDataError("jsb-chorales: got neither here nor there; expected the chorales")

    def without_samples(lab: Lab) -> Evidence:
        return Evidence([Sample("y", {}, [1.0])])

    for name, measure in (
        ("good", good),
        ("broken", broken),
        ("missing", missing),
        ("wordless", without_samples),
    ):
        claim(name, measure)
    yield calls
    CLAIMS.clear()
    CLAIMS.update(before)


def test_evidence_survives_its_file(tmp_path):
    write_evidence(tmp_path / "e.json", EVIDENCE)
    back = read_evidence(tmp_path / "e.json")
    assert dataclasses.asdict(back) == dataclasses.asdict(EVIDENCE)
    write_evidence(tmp_path / "again.json", back)
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "e.json").read_bytes()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"samples": 1}', "[" * 5_000, '{"samples": [{"quantity": 1}]}', "\xff"],
)
def test_a_file_that_holds_no_evidence_is_named(tmp_path, text):
    path = tmp_path / "e.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"e\.json"):
        read_evidence(path)


def test_samples_and_lines_must_fit():
    with pytest.raises(InputError, match="values: got none"):
        Sample("x", {}, [])
    with pytest.raises(InputError, match="seeds: got 1"):
        Sample("x", {}, [1.0, 2.0], (0,))
    with pytest.raises(InputError, match="line 'a'"):
        Line("a", [1, 2], [1])


def test_run_says_how_evidence_came_about(table):
    evidence = claims.run("good", seeds=8)
    about = evidence.about
    assert about is not None
    assert (about.claim, about.scale, about.seeds) == ("good", "quick", tuple(range(8)))
    assert about.rule == CLAIMS["good"].rule.words  # pyright: ignore[reportOptionalMemberAccess]
    assert about.revision
    assert "jax" in about.versions
    assert judge(evidence).word == "confirmed"
    assert "Evidence of 'good'" in repr(evidence)


def test_an_unknown_claim_or_scale_is_refused(table):
    with pytest.raises(InputError, match="did you mean 'good'"):
        claims.run("goood")
    with pytest.raises(InputError, match="scale"):
        claims.run("good", scale="huge")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="seeds"):
        claims.run("good", seeds=0)
    with pytest.raises(InputError, match="names no claim"):
        judge(EVIDENCE)


def test_a_battery_goes_on_where_a_claim_fails(table, tmp_path, capsys):
    done = run_all(["broken", "missing", "wordless", "good"], tmp_path)
    assert [one.status for one in done.values()] == ["failed", "not run", "failed", "measured"]
    assert "by design" in done["broken"].reason
    assert "neither here nor there" in done["missing"].reason
    assert [path.name for path in tmp_path.glob("*.json")] == ["good.json"]
    assert "Traceback" in capsys.readouterr().err  # of the claim that is broken


def test_resumption_keeps_what_matches_and_says_what_does_not(table, tmp_path, capsys):
    run_all(["good"], tmp_path)
    with pytest.raises(InputError, match="holds evidence of good"):
        run_all(["good"], tmp_path)
    assert run_all(["good"], tmp_path, resume=True)["good"].status == "kept"
    assert table == ["good"]
    done = run_all(["good"], tmp_path, seeds=8, resume=True)
    assert (done["good"].status, len(table)) == ("measured", 2)
    assert "measured anew, for its record has 6 seeds" in capsys.readouterr().err
    path = tmp_path / "good.json"
    path.write_text(path.read_text().replace("is above 0 on average", "is above 1 on average"))
    run_all(["good"], tmp_path, seeds=8, resume=True)
    assert "another rule" in capsys.readouterr().err
    path.write_text(path.read_text().replace('"revision": "', '"revision": "0123456789abcdef'))
    assert run_all(["good"], tmp_path, seeds=8, resume=True)["good"].status == "kept"
    assert re.search("at revision 0123456789ab(-dirty)?, not today's", capsys.readouterr().err)
    path.write_text("{}")
    assert run_all(["good"], tmp_path, seeds=8, resume=True)["good"].status == "measured"


def test_one_claim_replaces_its_own_record_alone(table, tmp_path):
    run_all(["good"], tmp_path)
    before = (tmp_path / "good.json").read_bytes()
    run_all(["sigmoid-slope"], tmp_path)
    assert (tmp_path / "good.json").read_bytes() == before
    assert list(read_folder(tmp_path)) == ["sigmoid-slope", "good"]


def test_training_runs_of_another_scale_seeds_or_revision_are_not_reused(
    table, tmp_path, monkeypatch
):
    folders = []
    measure = CLAIMS["good"].measure

    def measured(lab: Lab) -> Evidence:
        folders.append(lab.folder)
        return measure(lab)  # pyright: ignore[reportOptionalCall]

    CLAIMS["good"] = dataclasses.replace(CLAIMS["good"], measure=measured)
    claims.run("good", folder=tmp_path)
    claims.run("good", folder=tmp_path)
    claims.run("good", folder=tmp_path, seeds=8)
    claims.run("good", folder=tmp_path, scale="full")
    there = {**running.environment(), "revision": "0123456789abcdef-dirty"}
    monkeypatch.setattr(running, "environment", lambda: there)
    run_all(["good"], tmp_path)
    assert folders[0] == folders[1]
    assert len(set(folders)) == 4
    assert folders[-1] == tmp_path / "runs" / "0123456789ab-dirty-quick-6"
    claims.run("good")
    assert folders[-1] is None


def test_folders_without_records_are_refused(tmp_path):
    with pytest.raises(InputError, match="without any record"):
        read_folder(tmp_path)
    with pytest.raises(InputError, match="a folder with records"):
        read_folder(tmp_path / "nowhere")


def test_the_table_has_every_claim(table, tmp_path):
    run_all(["good"], tmp_path, seeds=10)
    rows = {row[0]: row for row in claim_rows(read_folder(tmp_path))}
    assert set(rows) == set(CLAIMS)
    assert {len(row) for row in rows.values()} == {len(CLAIMS_HEADER)}
    assert rows["good"][3:] == ("confirmed", "1.04 [1.02, 1.07] (gru)", "x is 1.00.")
    assert rows["broken"][3:] == ("not run", "", "")


def test_evidence_under_another_rule_decides_nothing(table, tmp_path):
    run_all(["good"], tmp_path, seeds=10)
    found = read_folder(tmp_path)
    CLAIMS["good"] = dataclasses.replace(CLAIMS["good"], rule=rule(Exactly(at_least=0.0)))
    assert {row[0]: row[3] for row in claim_rows(found)}["good"] == "stale"
    assert "Verdict: stale" in claim_text("good", found)


def test_the_report_is_made_from_records_alone(table, tmp_path):
    run_all(["good"], tmp_path / "results", seeds=10)
    found = read_folder(tmp_path / "results")
    (tmp_path / "out").mkdir()
    markdown, html = write_report(found, tmp_path / "out")
    text = markdown.read_text()
    assert "| good | good holds | Charu | confirmed |" in text
    assert "> x is 1.00." in text
    assert text.index("## The sigmoid") < text.index("## A topic")
    assert "<b>" not in html.read_text()  # what a source says is shown, not run
    figure = tmp_path / "out/figures/good.png"
    first = figure.read_bytes()
    assert first.startswith(b"\x89PNG")
    write_report(found, tmp_path / "out")
    assert figure.read_bytes() == first
    page = write_page(found, tmp_path / "claims.md")
    assert "](figures/claims/good.png)" in page.read_text()
    assert (tmp_path / "figures/claims/good.png").read_bytes() == first


def test_a_claim_that_cannot_be_measured_says_so(table, tmp_path):
    unmeasured = dataclasses.replace(CLAIMS["good"], name="taste", rule=None, measure=None)
    add(unmeasured)
    with pytest.raises(InputError, match="one that can be measured"):
        claims.run("taste")
    assert run_all(["taste", "good"], tmp_path).keys() == {"good"}
    assert {row[0]: row[3] for row in claim_rows({})}["taste"] == "not measurable"
    assert "Not measurable" in claim_text("taste", {})


def test_names_and_articles_are_checked(table):
    with pytest.raises(InputError, match="a name that no other claim has"):
        add(CLAIMS["good"])
    with pytest.raises(InputError, match="article"):
        add(dataclasses.replace(CLAIMS["good"], name="new", said_by=(Source("Charo", "it"),)))


def test_command_line(table, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["claims"]) == 0
    assert "not run" in capsys.readouterr().out
    assert main(["claims", "run", "sigmoid-slope", "--out", "here"]) == 0
    assert "confirmed" in capsys.readouterr().out
    assert main(["claims", "run", "broken", "sigmoid-slope", "--out", "here", "--resume"]) == 1
    assert "by design" in capsys.readouterr().err
    assert main(["claims", "show", "sigmoid-slope", "--results", "here"]) == 0
    assert "Verdict: confirmed" in capsys.readouterr().out
    assert main(["claims", "report", "here", "--page", "claims.md"]) == 0
    assert Path("claims.md").exists()
    assert main(["claims", "list", "--results", "here"]) == 0
    capsys.readouterr()
    for words, message in (
        (["run"], "names: got both or neither"),
        (["run", "good", "--all"], "names: got both or neither"),
        (["run", "sigmoid-slop"], "did you mean 'sigmoid-slope'"),
        (["run", "good", "--scale", "huge"], "--scale"),
        (["show", "nothing"], "claim: got 'nothing'"),
        (["report", "nowhere"], "results: got nowhere"),
    ):
        assert main(["claims", *words]) == 2
        assert message in capsys.readouterr().err


def test_a_battery_that_is_killed_goes_on_bit_for_bit(tmp_path):
    """A kill between two claims: the first one's record stays as it is, and only the second one is run."""
    program = """
import sys
from pathlib import Path
import jax
from jaxrnn.claims import *
from jaxrnn.claims.claim import add
import os, signal

def measure(lab, name):
    if name == "two" and sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    values = [len(name) + float(jax.random.normal(key)) for key in lab.keys]
    return Evidence([Sample("x", {}, values, lab.seeds)])

for name in ("one", "two", "three"):
    add(Claim(name, "t", "s", (Source("Charu", "p"),), "w", "m", Rule((Part("x", Mean(above=0.0)),)),
              "r", {}, lambda lab, name=name: measure(lab, name)))
run_all(["one", "two", "three"], Path(sys.argv[1]), resume=True)
"""

    def battery(folder: Path, how: str) -> int:
        done = subprocess.run([sys.executable, "-c", program, str(folder), how], check=False)
        return done.returncode

    def values(folder: Path) -> dict[str, list[float]]:
        return {
            path.stem: json.loads(path.read_text())["samples"][0]["values"]
            for path in sorted(folder.glob("*.json"))
        }

    assert battery(tmp_path / "killed", "kill") == -signal.SIGKILL
    first = (tmp_path / "killed/one.json").read_bytes()
    assert battery(tmp_path / "killed", "go on") == 0
    assert battery(tmp_path / "whole", "go on") == 0
    assert (tmp_path / "killed/one.json").read_bytes() == first
    assert values(tmp_path / "killed") == values(tmp_path / "whole")
    assert len(values(tmp_path / "whole")) == 3
