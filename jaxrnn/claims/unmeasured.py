"""Statements of the articles that no number of ours decides, and why."""

from __future__ import annotations

from jaxrnn.claims.claim import Claim, Source, add

add(
    Claim(
        "hard-to-customise",
        topic="What is not measured",
        statement="Recurrent networks are difficult to implement.",
        said_by=(Source("OpenGenus", "implementation and customising are difficult"),),
        why="Whoever has written back-propagation through time by hand may find so.",
        measured="",
        rule=None,
        refuted_by="Difficulty is a matter of the reader's training and tools; no number of ours decides it.",
        lessons={},
    )
)
