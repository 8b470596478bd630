"""The commands, one dataclass each; their docstrings are the help texts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from jaxrnn import checks
from jaxrnn.experiments import (
    RunConfig,
    Subject,
    compare,
    digits_comparison,
    run_diagnosis,
    train,
)
from jaxrnn.report import CELLS_HEADER, cell_rows, cells_page
from jaxrnn.training import FitConfig


@dataclasses.dataclass(frozen=True)
class Train:
    """Train one cell on a task, several seeds at once, into a run folder.

    Example: jaxrnn train digits --cell lstm --epochs 60 --learning-rate 0.01 --out runs/lstm

    Attributes:
      out: the run's folder; it must be new, or with --resume hold the same run.
      task: what to learn: digits (64 steps, bundled), or mnist (784 steps, needs its four IDX files).
      cell: which cell; `jaxrnn cells` lists them.
      hidden_features: number of units.
      data: folder with the task's files; by default where $JAXRNN_DATA points.
      resume: go on with a run that was broken off.
      fit: how to train.
    """

    out: Path
    task: tyro.conf.Positional[str] = "digits"
    cell: str = "gru"
    hidden_features: int = 64
    data: str | None = None
    resume: bool = False
    fit: FitConfig = dataclasses.field(default_factory=FitConfig)

    def run(self) -> None:
        """Train and print the summary."""
        config = RunConfig(self.task, self.cell, self.hidden_features, self.fit, self.data)
        result = train(config, self.out, resume=self.resume)
        accuracy = result.test_accuracy
        spread = (
            f" ± {np.std(accuracy, ddof=1) / len(accuracy) ** 0.5:.3f}" if len(accuracy) > 1 else ""
        )
        print(f"test accuracy   {accuracy.mean():.3f}{spread}, mean and standard error over seeds")
        print(f"parameters      {result.parameters:,} a network")
        print(f"time            {1e3 * result.seconds_per_step:.1f} ms a step of all seeds, median")
        print(f"compilation     {result.compile_seconds:.1f} s")
        print(f"run             {self.out}; take it apart with: jaxrnn diagnose {self.out}")


@dataclasses.dataclass(frozen=True)
class Diagnose:
    """Take the gradients of a trained run, or of a fresh cell, apart.

    Examples: jaxrnn diagnose runs/lstm --out runs/lstm-diagnosis
              jaxrnn diagnose gru --hidden-features 128

    Attributes:
      target: a run's folder, or a cell's name for a fresh cell.
      out: a new folder for report.md, report.html and figures; without it the text alone is printed.
      resume: go on with a diagnosis that was broken off, from the parts that are in its folder.
      seed: which network of a run, 0 the first; for a fresh cell, its random seed.
      sequences: how many test sequences to run.
      hidden_features: number of units of a fresh cell; a run knows its own.
      task: whose test sequences a fresh cell reads; a run knows its own.
      data: folder with the task's files; by default where $JAXRNN_DATA points.
    """

    target: tyro.conf.Positional[str]
    out: Path | None = None
    resume: bool = False
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
        checks.count("in_features", self.in_features)
        checks.count("hidden_features", self.hidden_features)
        if self.out is not None:
            if self.out.is_dir() or not self.out.parent.is_dir():
                checks.refuse("out", self.out, "a file in a folder that exists")
            self.out.write_text(cells_page(self.in_features, self.hidden_features), "utf-8")
            print(f"wrote {self.out}")
            return
        size = f"F = {self.in_features}, H = {self.hidden_features}"
        table = Table(title=f"Cells ({size})")
        for head in CELLS_HEADER:
            table.add_column(head, no_wrap=head == "cell")
        for row in cell_rows(self.in_features, self.hidden_features):
            table.add_row(*row)
        Console().print(table)
