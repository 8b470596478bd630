"""Progress of long work: a bar where someone watches, plain lines in a log.

On a terminal `rich` draws a bar with the time left; elsewhere each report is one line. With several
processes only the first one speaks.
"""

from __future__ import annotations

import datetime
import sys
import time
from types import TracebackType

import jax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class ProgressBar:
    """Reports on work of a known number of parts.

    Args:
      title: what is being done.
      total: number of parts.
      done: parts done before, by the run that is now resumed.
      console: where to write; by default standard error, so that results on standard output stay clean.
    """

    def __init__(self, title: str, total: int, *, done: int = 0, console: Console | None = None):
        self._title, self._total, self._done, self._first = title, total, done, done
        self._began = time.monotonic()
        self._console = console or Console(file=sys.stderr, quiet=jax.process_index() != 0)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[news]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task(title, total=total, completed=done, news="")

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Write one line beside the bar."""
        self._console.print(f"{self._title}: {text}", highlight=False, soft_wrap=True, markup=False)

    def move(self, done: int) -> None:
        """Set how many parts are done, for the bar alone."""
        self._done = done
        self._bar.update(self._task, completed=done)

    def report(self, news: str) -> None:
        """Report what the parts done so far have brought; in a log, with the time that is left."""
        self._bar.update(self._task, news=news)
        if not self._console.is_terminal:
            self.say(f"{self._done}/{self._total}  {news}{self._left()}")

    def advance(self, news: str) -> None:
        """Report one more part done; `news` is what it brought."""
        self.move(self._done + 1)
        self.report(news)

    def _left(self) -> str:
        """Return the time left, if the other parts take as long as those done since the beginning."""
        done = self._done - self._first
        if not done or self._done >= self._total:
            return ""
        seconds = (time.monotonic() - self._began) / done * (self._total - self._done)
        return f"  {datetime.timedelta(seconds=round(seconds))} left"
