"""A claim: a statement of the articles, how it is measured, and the rule that decides it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import jax

from jaxrnn import checks
from jaxrnn.claims.evidence import Evidence
from jaxrnn.claims.rules import Rule

Scale = Literal["quick", "full"]
"""quick: minutes for all claims, 6 seeds, and no more than a leaning; full: 10 seeds."""

SEEDS: dict[str, int] = {"quick": 6, "full": 10}
"""Replicates by scale: exact tests of 6 against 6 reach p = .002, of 10 against 10 p = 1e-5."""

_Option = TypeVar("_Option")


class Source(NamedTuple):
    """Who says it.

    Attributes:
      article: key of `ARTICLES`.
      passage: what the article says, in our words.
    """

    article: str
    passage: str


ARTICLES = {
    "Charu": "Charu, Limitations of RNN, LSTM and GRU",
    "OpenGenus": "OpenGenus, Disadvantages of RNN",
    "Analytics Vidhya": "Analytics Vidhya, Problems with RNNs",
    "Vanishing": "an article on vanishing gradients, LSTM and GRU",
    "Issues": "RNN Implementation Issues",
}
"""The five articles whose statements are measured, by the names under which the page cites them."""


@dataclasses.dataclass(frozen=True)
class Lab:
    """What an experiment is given.

    Attributes:
      scale: quick or full.
      seeds: seeds of the replicates.
      folder: where runs of training go, which are resumed from there; None keeps nothing.
    """

    scale: Scale = "quick"
    seeds: tuple[int, ...] = tuple(range(SEEDS["quick"]))
    folder: Path | None = None

    def choose(self, quick: _Option, full: _Option) -> _Option:
        """Return what the scale asks for."""
        return quick if self.scale == "quick" else full

    @property
    def keys(self) -> list[Any]:
        """A random key for each seed."""
        return [jax.random.fold_in(jax.random.key(seed), 0) for seed in self.seeds]


Measure = Callable[[Lab], Evidence]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement and how it is decided.

    Attributes:
      name: as it is called on the command line.
      topic: heading of the section in which it stands, together with those that contradict it.
      statement: what is said, in our words.
      said_by: who says it.
      why: why one might believe it.
      measured: what is measured, and under which conditions.
      rule: decides; None where a statement cannot be measured.
      refuted_by: what would refute the statement, or change the verdict.
      lessons: the sentence to remember, for each verdict that may come out; it may quote the evidence's facts
        as in "{rate:.2f} nats a step".
      measure: the experiment; None where there is none.
      published: numbers of others to stand beside ours.
    """

    name: str
    topic: str
    statement: str
    said_by: tuple[Source, ...]
    why: str
    measured: str
    rule: Rule | None
    refuted_by: str
    lessons: dict[str, str]
    measure: Measure | None = None
    published: tuple[str, ...] = ()

    def measured_by(self, measure: Measure) -> Measure:
        """Put the claim into the table, with the experiment that this decorates."""
        add(dataclasses.replace(self, measure=measure))
        return measure


CLAIMS: dict[str, Claim] = {}
"""All claims by name, in the order of the page."""


def add(new: Claim) -> None:
    """Put a claim into the table.

    Raises:
      InputError: its name is taken, or it cites an article that is not known.
    """
    if new.name in CLAIMS:
        checks.refuse("name", repr(new.name), "a name that no other claim has")
    for source in new.said_by:
        checks.choice("article", source.article, ARTICLES)
    CLAIMS[new.name] = new


def known(name: str) -> Claim:
    """Return a claim by its name.

    Raises:
      InputError: there is none of this name; the nearest names are suggested.
    """
    checks.choice("claim", name, CLAIMS)
    return CLAIMS[name]
