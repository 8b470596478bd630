"""``make results``: what networks learn, on published tasks, with seeds and intervals; docs/results.md.

Each line is a run folder in runs/results, made by the same call as `jaxrnn train`; one that is there already
is gone on with or read. The page is written from the folders alone. Seconds are those of this machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxrnn.checks import InputError
from jaxrnn.experiments import NetworkConfig, RunConfig, scores, train
from jaxrnn.training import FitConfig, holds_run, read_result

_ROOT = Path(__file__).parents[1]
_RUNS = _ROOT / "runs" / "results"
_PAGE = _ROOT / "docs" / "results.md"


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the page.

    Attributes:
      name: of the run's folder.
      config: what is trained.
      published: what others report, and who.
    """

    name: str
    config: RunConfig
    published: str


def lines() -> Iterator[Line]:
    """Return what is trained."""
    for cell, units, published in (
        ("elman-tanh", 100, "9.10"),
        ("lstm", 36, "8.67"),
        ("gru", 46, "8.54"),
    ):
        fit = FitConfig(
            steps=3_000,
            every=50,
            batch_size=8,
            learning_rate=(1e-3, 3e-3, 1e-2),
            schedule="constant",
            seeds=3,
            select="best",
        )
        source = f"{published} (Chung et al. 2014)"
        yield _line(f"jsb-{cell}", "jsb-chorales", fit, source, cell, units)
    for cell, units in (("elman-tanh", 100), ("lstm", 48), ("gru", 56)):
        fit = FitConfig(steps=4_700, every=470, batch_size=32, learning_rate=3e-3, seeds=3)
        yield _line(f"digits-{cell}", "digits", fit, "", cell, units)
    slow = FitConfig(steps=3_000, every=300, batch_size=32, learning_rate=3e-3, seeds=3)
    for cell in ("lstm", "gru", "lem"):
        yield _line(
            f"adding-{cell}",
            "adding",
            slow,
            "GRU 5e-5, LSTM 0.164 at 600 steps (Bai et al. 2018)",
            cell,
            64,
        )
    for cell, units in (("lstm", 40), ("orthogonal", 128)):
        yield _line(
            f"copy-{cell}",
            "copy-memory",
            slow,
            "LSTM-40 stuck, uRNN-128 solves (Arjovsky et al. 2016)",
            cell,
            units,
        )
    parity = FitConfig(steps=6_000, every=600, batch_size=64, learning_rate=3e-3, seeds=10)
    for cell in ("elman-tanh", "lstm", "gru"):
        yield _line(
            f"parity-{cell}",
            "parity",
            parity,
            "RNN and LSTM 1.00, best of 10 (Delétang et al. 2023)",
            cell,
            32,
        )
    oscillator = FitConfig(steps=3_000, every=300, batch_size=32, learning_rate=9e-3, seeds=3)
    for cell in ("lem", "lstm", "gru"):
        yield _line(
            f"fitzhugh-{cell}",
            "fitzhugh-nagumo",
            oscillator,
            "LEM 0.0024 (Rusch et al. 2022)",
            cell,
            16,
        )
    pixels = FitConfig(steps=4_000, every=400, batch_size=64, learning_rate=3e-3, seeds=1)
    for cell in ("gru", "lem"):
        yield _line(f"mnist-14-{cell}", "mnist-14", pixels, "a proxy of 784 steps", cell, 96)


def _line(
    name: str, task: str, fit: FitConfig, published: str, cell: str, units: int, **network: Any
) -> Line:
    config = RunConfig(task, network=NetworkConfig(cell, units, **network), fit=fit)
    return Line(name, config, published)


def main() -> None:
    """Train what is missing, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("names", nargs="*", help="lines to train, by the beginning of their name")
    parser.add_argument("--page", action="store_true", help="write the page, train nothing")
    chosen = parser.parse_args()
    for line in lines():
        wanted = not chosen.names or any(line.name.startswith(name) for name in chosen.names)
        if wanted and not chosen.page:
            folder = _RUNS / line.name
            try:
                train(line.config, folder, resume=holds_run(folder))
            except InputError as error:
                print(f"{line.name}: {error}")
    _PAGE.write_text(page(), "utf-8")
    print(f"wrote {_PAGE}")


def page() -> str:
    """Return the page, from the run folders."""
    done = [(line, result) for line in lines() if (result := _result(line)) is not None]
    rows = [row for line, result in done for row in _rows(line, result)]
    where = dict.fromkeys(_where(line) for line, _ in done)
    head = ["task", "cell", "units", "parameters", "rate", "seeds", "steps", "score", "test"]
    table = [[*head, "best seed", "chance", "published", "minutes"], ["---"] * 13, *rows]
    body = "\n".join(f"| {' | '.join(row)} |" for row in table)
    return _PAGE_TEXT.format(table=body, where="\n\n".join(where))


_PAGE_TEXT = """# What networks learn

Written by `make results` from the run folders; nothing here is typed. Test scores are means over seeds with
the 95 % interval of the mean by Student's t; rates were trained side by side, and minutes are those of all
networks of a run together, on a machine that did other work too. The test data are looked at once. Settings
were chosen coarsely, by validation, not tuned to the published number.

{table}

{where}
"""


def _result(line: Line) -> dict[str, Any] | None:
    """Return what a line's run came to; None where it has not, or was another run."""
    folder = _RUNS / line.name
    result = read_result(folder) if folder.is_dir() else None
    return None if result is None or RunConfig.of(folder) != line.config else result


def _where(line: Line) -> str:
    about = json.loads((_RUNS / line.name / "env.json").read_text("utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return f"On {about['machine']}, {versions}."


def _rows(line: Line, result: dict[str, Any]) -> Iterator[list[str]]:
    config, best = line.config, max if result["higher_is_better"] else min
    for score in scores(result["members"], result["test_score"]):
        yield [
            config.task,
            config.network.cell,
            str(config.network.hidden_features),
            f"{result['parameters']:,}",
            f"{score.settings.get('learning_rate', config.fit.learning_rate)}",
            str(config.fit.seeds),
            f"{result['step']:,}",
            result["metric"],
            score.text,
            f"{best(score.values):.4g}",
            f"{result['chance']:.4g}",
            line.published,
            f"{(result['seconds'] + result['compile_seconds']) / 60:.1f}",
        ]


if __name__ == "__main__":
    main()
