"""The commands, one dataclass each; their docstrings are the help texts."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import tyro

from jaxrnn import checks
from jaxrnn.cli.tables import print_table
from jaxrnn.devices import join_processes
from jaxrnn.experiments import (
    EXPERIMENTS_HEADER,
    PUBLISHED,
    NetworkConfig,
    RunConfig,
    Subject,
    compare,
    digits_comparison,
    draw_attention,
    experiment_rows,
    export,
    random_settings,
    run_diagnosis,
    sweep,
    train,
    training_summary,
    translate,
    write,
)
from jaxrnn.files import replace_file, writing
from jaxrnn.report import CELLS_HEADER, TASKS_HEADER, cell_rows, cells_page, task_rows
from jaxrnn.training import FitConfig, Placement

_LARGEST = 2**20  # features, at which sizes can still be counted


@dataclasses.dataclass(frozen=True)
class Train:
    """Train one network on a task, from several seeds and settings at once, into a run folder.

    Examples: jaxrnn train digits --cell lstm --steps 2400 --learning-rate 0.01 --out runs/lstm
              jaxrnn train adding --set length=400 --learning-rate 0.001 0.003 0.01 --out runs/adding
              jaxrnn train jsb-lstm

    The last is a published experiment (`jaxrnn experiments` lists them): its name stands straight behind
    train, and brings the task, every setting and the folder runs/NAME; options behind it take their place.

    A run that was broken off, by a signal or a crash, goes on with the same words and --resume.

    Attributes:
      out: the run's folder; it must be new, or with --resume hold the same run.
      task: what to learn: a task (`jaxrnn tasks`), or an experiment (`jaxrnn experiments`).
      set: settings of the task in place of its own, as in length=400.
      data: folder with the task's files; by default below $JAXRNN_DATA.
      resume: go on with a run that was broken off.
      network: what to train.
      fit: how to train.
      placement: how many devices to use, and for what.
      probes: measure gradient flow and spectral radius at every report.
    """

    out: Path
    task: tyro.conf.Positional[str] = "digits"
    set: tuple[str, ...] = ()
    data: str | None = None
    resume: bool = False
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    fit: FitConfig = dataclasses.field(default_factory=FitConfig)
    placement: Placement = dataclasses.field(default_factory=Placement)
    probes: bool = True

    @property
    def config(self) -> RunConfig:
        """The settings of the run."""
        settings = _settings(self.set)
        return RunConfig(self.task, settings, self.network, self.fit, self.data, self.probes)

    def run(self) -> None:
        """Train and print the summary."""
        join_processes()
        result = train(self.config, self.out, resume=self.resume, placement=self.placement)
        if jax.process_index() == 0:
            print(training_summary(result))
            print(f"run             {self.out}; take it apart with: jaxrnn diagnose {self.out}")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Train with several values of any settings, and write a table and a figure of the scores.

    Examples: jaxrnn sweep digits --over cell=lstm,gru learning_rate=0.001,0.01 --out runs/sweep
              jaxrnn sweep parity --over layers=1,2,4 residual=false,true task.longest=20,40 --out runs/depth
              jaxrnn sweep digits --over cell=lstm,gru --random learning_rate=1e-4:1e-1 clip_norm=0.1:10
              --draws 20 --out runs/search

    What one program can train side by side is one run, such as rates and gains; other settings have a run for
    each value, in a folder of its own below --out.

    Attributes:
      out: the folder; it must be new, or with --resume hold the same sweep.
      over: settings and their values, as in cell=lstm,gru; task.NAME=… is a setting of the task.
      random: settings and ranges from which values are drawn log-uniformly, as in learning_rate=1e-4:1e-1.
      draws: how many values to draw of each.
      draw_seed: seed of the draws.
      task: what to learn (`jaxrnn tasks`).
      set: settings of the task in place of its own, as in length=400.
      data: folder with the task's files; by default below $JAXRNN_DATA.
      resume: go on with a sweep that was broken off.
      network: what is the same in all networks.
      fit: what is the same in all training.
      placement: how many devices to use for each run, and for what.
    """

    out: Path
    over: tuple[str, ...] = ()
    random: tuple[str, ...] = ()
    draws: int = 0
    draw_seed: int = 0
    task: tyro.conf.Positional[str] = "digits"
    set: tuple[str, ...] = ()
    data: str | None = None
    resume: bool = False
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    fit: FitConfig = dataclasses.field(default_factory=FitConfig)
    placement: Placement = dataclasses.field(default_factory=Placement)

    def run(self) -> None:
        """Train, and print the table."""
        over: dict[str, Any] = {}
        for word in self.over:
            name, value = _named("over", word, "name=value,value as in cell=lstm,gru")
            over[name] = [_json(each) for each in value.split(",")]
        fit = self.fit
        if self.random or self.draws:
            fit = dataclasses.replace(fit, combine="paired")
            over |= random_settings(self._ranges, self.draws, seed=self.draw_seed)
        if not over:
            checks.refuse("over", "nothing", "settings to try, as in --over cell=lstm,gru")
        settings = _settings(self.set)
        config = RunConfig(self.task, settings, self.network, fit, self.data, probes=False)
        join_processes()
        found = sweep(config, over, self.out, resume=self.resume, placement=self.placement)
        if jax.process_index() == 0:
            print_table("Sweep", found.header, found.rows)
            print(f"best by validation: {found.best.name}")
            print(f"report: {self.out / 'report.html'}")

    @property
    def _ranges(self) -> dict[str, tuple[float, float]]:
        """The ranges of a random search."""
        expected = "name=low:high, as in learning_rate=1e-4:1e-1"
        ranges = {}
        for word in self.random:
            name, value = _named("random", word, expected)
            try:
                low, high = map(float, value.split(":"))
            except ValueError:
                checks.refuse("random", repr(word), expected)
            ranges[name] = (low, high)
        if not ranges:
            checks.refuse("random", "nothing", f"ranges to draw from, {expected}")
        return ranges


def published(name: str) -> Train:
    """Return the command that trains a published experiment into a folder of its name."""
    config = PUBLISHED[name].config
    out = Path("runs") / name
    return Train(out, task=config.task, network=config.network, fit=config.fit)


def _settings(words: tuple[str, ...]) -> dict[str, Any]:
    """Return settings from words such as length=400; what is no JSON is a string."""
    settings = {}
    for word in words:
        name, value = _named("set", word, "name=value, as in length=400")
        settings[name] = _json(value)
    return settings


def _named(argument: str, word: str, expected: str) -> tuple[str, str]:
    """Cut a word such as length=400 into its two parts."""
    name, equals, value = word.partition("=")
    if not (name and equals):
        checks.refuse(argument, repr(word), expected)
    return name, value


def _json(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):  # digits, or lists within lists, without end
        return value


@dataclasses.dataclass(frozen=True)
class Export:
    """Export a trained network: its programs as StableHLO, its weights as safetensors, all checked.

    Beside the program of whole sequences there is one of a single time step, whose state goes in and out.

    Example: jaxrnn export runs/lstm --out lstm

    Attributes:
      run_folder: the run's folder.
      out: a folder for model.stablehlo, model.safetensors, and start.stablehlo and step.stablehlo.
      network: which of the run's networks, 0 the first.
    """

    run_folder: tyro.conf.Positional[Path]
    out: Path
    network: int = 0

    def run(self) -> None:
        """Export and say what was written."""
        done = export(self.run_folder, self.out, network=self.network)
        lengths = ", with their lengths" if done.lengths else ""
        print(f"program     {done.program}, for any number of steps and of sequences{lengths}")
        if done.step is not None:
            print(f"step        {done.step}, from the state that start.stablehlo beside it gives")
        else:
            print(f"step        none ({done.no_step})")
        print(f"weights     {done.weights}")
        print(f"check       answers differ by {done.difference:.1e}, relative to the largest")


@dataclasses.dataclass(frozen=True)
class Generate:
    """Let a trained language model write on from a prompt.

    Example: jaxrnn generate runs/characters --prompt "The " --count 400 --temperature 0.7

    Attributes:
      run_folder: the folder of a run on characters or words.
      prompt: what stands before.
      count: characters or words to write.
      network: which of the run's networks, 0 the first.
      temperature: below 1 the probable becomes more so; 0 takes the most probable.
      top_k: draw from the k most probable alone.
      top_p: draw from the fewest alone that together have this probability (Holtzman et al. 2020).
      end: a character or word after which the text ends; by default it has `count` of them.
      seed: of what is drawn.
    """

    run_folder: tyro.conf.Positional[Path]
    prompt: str = "The "
    count: int = 400
    network: int = 0
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    end: str | None = None
    seed: int = 0

    def run(self) -> None:
        """Print the text."""
        settings = dataclasses.asdict(self)
        run, prompt, count = (settings.pop(name) for name in ("run_folder", "prompt", "count"))
        print(write(run, prompt, count, **settings))


@dataclasses.dataclass(frozen=True)
class Translate:
    """Translate a sentence with a trained network, and draw which words it looked at.

    Example: jaxrnn translate runs/captions-gru "ein hund rennt im schnee ." --figure attention.png

    Attributes:
      run_folder: the folder of a run on a translation task.
      sentence: words and signs with blanks between them, as in the training data: Multi30k's are in lower
        case.
      figure: a file for the map of attention, a row a written word.
      network: which of the run's networks, 0 the first.
      width: hypotheses of the beam search; 1 is greedy.
      longest: words to write at most.
    """

    run_folder: tyro.conf.Positional[Path]
    sentence: tyro.conf.Positional[str]
    figure: Path | None = None
    network: int = 0
    width: int = 4
    longest: int = 50

    def run(self) -> None:
        """Print the translation; on standard error, what it lacks."""
        settings = {"network": self.network, "width": self.width, "longest": self.longest}
        found = translate(self.run_folder, self.sentence, **settings)
        if self.figure is not None:
            draw_attention(found, self.figure)
        print(found.text)
        if found.unknown:
            print(
                f"jaxrnn: words that it does not know: {' '.join(found.unknown)}", file=sys.stderr
            )
        if not found.ended:
            print(f"jaxrnn: cut off after {self.longest} words", file=sys.stderr)
        if self.figure is not None:
            print(f"figure: {self.figure}")


@dataclasses.dataclass(frozen=True)
class Experiments:
    """List the published experiments: what is trained, how, and what others report."""

    def run(self) -> None:
        """Print the table."""
        print_table("Experiments", EXPERIMENTS_HEADER, experiment_rows())


@dataclasses.dataclass(frozen=True)
class Tasks:
    """List the tasks: what they are, their settings, and where they come from."""

    def run(self) -> None:
        """Print the table."""
        print_table("Tasks", TASKS_HEADER, task_rows())


@dataclasses.dataclass(frozen=True)
class Diagnose:
    """Take the gradients of a trained run, or of a fresh cell, apart.

    Examples: jaxrnn diagnose runs/lstm --out runs/lstm-diagnosis
              jaxrnn diagnose gru --hidden-features 128

    Attributes:
      target: a run's folder, or a cell's name for a fresh cell.
      out: a new folder for report.md, report.html and figures; without it the text alone is printed.
      resume: go on with a diagnosis that was broken off, from the parts that are in its folder.
      network: which network of a run, 0 the first.
      seed: random seed of a fresh cell.
      sequences: how many test sequences to run.
      hidden_features: number of units of a fresh cell; a run knows its own.
      task: whose test sequences a fresh cell reads; a run knows its own.
      data: folder with the task's files; by default where $JAXRNN_DATA points.
    """

    target: tyro.conf.Positional[str]
    out: Path | None = None
    resume: bool = False
    network: int = 0
    seed: int = 0
    sequences: int = 4
    hidden_features: int = 64
    task: str = "digits"
    data: str | None = None

    def run(self) -> None:
        """Diagnose and print the verdict."""
        settings = dataclasses.asdict(self)
        out, resume = settings.pop("out"), settings.pop("resume")
        diagnosis, html = run_diagnosis(Subject(**settings), out, resume=resume)
        print(diagnosis.text)
        if html is not None:
            print(f"report: {html}")


@dataclasses.dataclass(frozen=True)
class Demo:
    """Train an Elman network, an LSTM and a GRU of one size on real digits and report on their gradients.

    Attributes:
      out: the folder to write; it must be new, or with --resume hold the same demonstration.
      resume: go on with a demonstration that was broken off.
      epochs: passes over the training data.
      seeds: how many networks of each cell to train at once.
    """

    out: Path = Path("runs/demo")
    resume: bool = False
    epochs: int = 60
    seeds: int = 5

    def run(self) -> None:
        """Compare the cells and say where the report is."""
        runs = digits_comparison(epochs=self.epochs, seeds=self.seeds)
        html = compare(runs, self.out, resume=self.resume)
        print(f"report: {html} (and {html.with_suffix('.md').name} beside it)")


@dataclasses.dataclass(frozen=True)
class Cells:
    """List the cells: equations, state size, parameters, cost, Jacobian, and whether parallel in time.

    Attributes:
      in_features: input features at which sizes are counted.
      hidden_features: units at which sizes are counted.
      out: a Markdown file to write, with each family's equations, paper and weakness below the table.
    """

    in_features: int = 1
    hidden_features: int = 64
    out: Path | None = None

    def run(self) -> None:
        """Print the table, or write the page."""
        for name in ("in_features", "hidden_features"):
            checks.within(name, getattr(self, name), 1, _LARGEST)
        if self.out is not None:
            page = cells_page(self.in_features, self.hidden_features)
            with writing("out", self.out, "a file in a folder that exists"):
                replace_file(self.out, page.encode())
            print(f"wrote {self.out}")
            return
        title = f"Cells (F = {self.in_features}, H = {self.hidden_features})"
        print_table(title, CELLS_HEADER, cell_rows(self.in_features, self.hidden_features))
