"""``make results``: what networks learn, on published tasks, with seeds and intervals; docs/results.md.

Each experiment of the package's table is a run folder in runs/results, made by the same call as `jaxrnn
train`; one that is there already is gone on with or read. The page is written from the folders alone. Seconds
are those of this machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.tables import table
from jaxrnn.checks import InputError
from jaxrnn.experiments import (
    PUBLISHED,
    RunConfig,
    draw_attention,
    scores,
    train,
    translate,
    write,
)
from jaxrnn.training import holds_run, read_result

_ROOT = Path(__file__).parents[1]
_RUNS = _ROOT / "runs" / "results"
_PAGE = _ROOT / "docs" / "results.md"
_FIGURE = "figures/attention.png"
_TRANSLATOR, _WRITER = "captions-gru", "plays-gru"
# The second sentence of the test data.
_SENTENCE = "ein boston terrier läuft über saftig-grünes gras vor einem weißen zaun ."
_PROMPT = "ROMEO:\n"


def main() -> None:
    """Train what is missing, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("names", nargs="*", help="experiments, by the beginning of their name")
    parser.add_argument("--page", action="store_true", help="write the page, train nothing")
    chosen = parser.parse_args()
    for name, row in PUBLISHED.items():
        if not chosen.page and (not chosen.names or name.startswith(tuple(chosen.names))):
            folder = _RUNS / name
            try:
                train(row.config, folder, resume=holds_run(folder))
            except InputError as error:
                print(f"{name}: {error}")
    _PAGE.write_text(page(), "utf-8")
    print(f"wrote {_PAGE}")


def page() -> str:
    """Return the page, from the run folders; the figure on it is drawn beside it."""
    done = {name: result for name in PUBLISHED if (result := _result(name)) is not None}
    rows = [row for name, result in done.items() for row in _rows(name, result)]
    places: dict[str, list[str]] = {}
    for name in done:
        places.setdefault(_place(_about(name)), []).append(name)
    where = [
        place if len(places) == 1 else f"{place} {', '.join(n)}." for place, n in places.items()
    ]
    parts = [_HEAD, table(rows), *where]
    if _TRANSLATOR in done:
        parts += _translation()
    if _WRITER in done:
        parts += _text()
    return "\n\n".join(parts) + "\n"


_HEAD = """# What networks learn

Written by `make results` from the run folders. Test scores are means over seeds with the 95 % interval of the
mean by Student's t, and the best seed's by its test score. Minutes are those of training and compilation,
without evaluation, of all networks of a run together, on a machine that did other work too; waiting is the
share of the training's time in which the device waited for the host, and memory what a call of training took
at most. The test data are looked at once. Rates and steps were chosen coarsely on validation data, never to
match a reported score, which is for the length or the network that it names: adding has 200 steps here,
copying a delay of 100, mnist-14 images of 14 × 14. `-dirty` marks code that was not yet committed as it ran.
`jaxrnn train NAME` trains all rows of that name."""


def _result(name: str) -> dict[str, Any] | None:
    """Return what an experiment came to; None where it has not, or its folder holds another run."""
    folder = _RUNS / name
    result = read_result(folder) if folder.is_dir() else None
    other = result is None or RunConfig.of(folder) != PUBLISHED[name].config
    return None if other else result


def _rows(name: str, result: dict[str, Any]) -> Iterator[dict[str, str]]:
    config, best = PUBLISHED[name].config, max if result["higher_is_better"] else min
    for score in scores(result["members"], result["test_score"]):
        yield {
            "experiment": name,
            "task": config.task,
            "cell": config.network.cell,
            "units": str(config.network.hidden_features),
            "parameters": f"{result['parameters']:,}",
            "rate": f"{score.settings.get('learning_rate', config.fit.learning_rate)}",
            "seeds": str(config.fit.seeds),
            "steps": f"{result['step']:,}",
            "score": result["metric"],
            "test": score.text,
            "best seed": f"{best(score.values):.4g}",
            "chance": f"{result['chance']:.4g}",
            "reported": PUBLISHED[name].reported,
            "minutes": f"{(result['seconds'] + result['compile_seconds']) / 60:.1f}",
            "waiting": f"{result['waiting']:.1%}",
            "MiB": f"{result['memory'] / 2**20:,.0f}",
            "revision": _revision(_about(name)),
        }


def _about(name: str) -> dict[str, Any]:
    return json.loads((_RUNS / name / "env.json").read_text("utf-8"))


def _revision(about: dict[str, Any]) -> str:
    commit, dirty, _ = (about["revision"] or "unknown").partition("-dirty")
    return commit[:7] + dirty


def _place(about: dict[str, Any]) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
    return f"On {about['machine']} ({', '.join(about['devices'])}), {versions}."


def _translation() -> list[str]:
    """Return a section with a sentence's translation and its map of attention."""
    found = translate(_RUNS / _TRANSLATOR, _SENTENCE)
    draw_attention(found, _PAGE.parent / _FIGURE)
    caption = "How much of each German word went into each English one"
    return [
        "## Where a translator looks",
        f"`{_TRANSLATOR}` reads a sentence of the test data, “{' '.join(found.source)}”, and writes: "
        f"“{found.text}”",
        f"![{caption}]({_FIGURE})",
    ]


def _text() -> list[str]:
    """Return a section with a text that a network wrote."""
    text = write(_RUNS / _WRITER, _PROMPT, 500, temperature=0.6)
    quoted = "\n".join(f"    {line}".rstrip() for line in text.splitlines())
    return ["## What a reader of plays writes", f"`{_WRITER}`, at temperature 0.6:", quoted]


if __name__ == "__main__":
    main()
