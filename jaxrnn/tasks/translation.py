"""Translation: a sentence in one language, word by word in another."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.tasks.base import Batch, Task
from jaxrnn.tasks.examples import bucketed
from jaxrnn.tasks.files import find_files, read_lines
from jaxrnn.tasks.objectives import perplexity
from jaxrnn.tasks.vocabulary import Vocabulary
from jaxrnn.typing import Key

END = "<end>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Translation(Task):
    """Write a sentence's translation.

    Attributes:
      source_vocabulary: the words that are read.
      target_vocabulary: the words that are written, `<end>` among them.
    """

    source_vocabulary: Vocabulary
    target_vocabulary: Vocabulary

    @property
    def end(self) -> int:
        """Number of the word that ends a translation."""
        return int(self.target_vocabulary.encode([END])[0])

    def predict(self, model: Any, batch: Batch, carry: Any, key: Key | None) -> tuple[Any, Any]:
        """Return no carry, and the logits of each target word given those before it (teacher forcing)."""
        del carry
        written = batch.mask.sum(axis=0, dtype=np.int32)
        decoded = model(
            batch.inputs,
            batch.targets,
            seq_lengths=batch.lengths,
            target_lengths=written,
            dropout_key=key,
        )
        return None, decoded.logits


@checked
def multi30k(
    folder: str | os.PathLike[str] | None = None, least: int = 2, longest: int = 40
) -> Task:
    """Translate captions of pictures from German into English: Multi30k, 29,000 pairs to train.

    The score is the perplexity of the English words, given the true ones before (Elliott et al. 2016). Chance
    knows how frequent each word is.

    Args:
      folder: where ``train``, ``val`` and ``test2016`` lie, each as ``.de`` and ``.en``; by default
        ``$JAXRNN_DATA/multi30k``.
      least: how often a word must come in training to be known.
      longest: words of a sentence to train on; longer pairs are left out of training, never of the test.

    Raises:
      InputError: a file is not there, or has other lines than its counterpart.
    """
    names = {
        f"the {part} sentences in {language}, one a line": f"{file}.{code}"
        for part, file in (("training", "train"), ("validation", "val"), ("test", "test2016"))
        for language, code in (("German", "de"), ("English", "en"))
    }
    paths = list(find_files("multi30k", folder, names).values())
    train, valid, test = map(parallel, paths[::2], paths[1::2])
    train = [pair for pair in train if max(map(len, pair)) <= longest]
    if not train:
        checks.refuse("longest", longest, "a number that leaves pairs to train on")
    return translation("multi30k", train, valid, test, least, "Elliott et al. 2016")


Pairs = list[tuple[list[str], list[str]]]
"""Sentences and their translations, as words."""


def parallel(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Pairs:
    """Read two files of sentences, line by line the same; pairs with an empty side are left out.

    Raises:
      InputError: one cannot be read, or has more lines than the other.
    """
    sides = [read_lines(Path(path), "a text in UTF-8") for path in (source, target)]
    if len(sides[0]) != len(sides[1]):
        got = f"{len(sides[0])} lines, and {len(sides[1])} in {target}"
        checks.refuse(str(source), got, "as many in the one as in the other")
    pairs = [(a.split(), b.split()) for a, b in zip(*sides, strict=True)]
    return [pair for pair in pairs if all(pair)]


def translation(
    name: str, train: Pairs, valid: Pairs, test: Pairs, least: int, source: str
) -> Translation:
    """Return the task of translating sentences."""
    read = Vocabulary.of((word for words, _ in train for word in words), least=least)
    often = Vocabulary.of((word for _, words in train for word in words), least=least)
    written = Vocabulary([END, *often.words[2:]])

    def part(pairs: Pairs) -> Any:
        targets = [written.encode([*words, END]) for _, words in pairs]
        return bucketed([read.encode(words) for words, _ in pairs], targets)

    counts = np.bincount(
        np.concatenate([written.encode([*words, END]) for _, words in train]),
        minlength=len(written),
    )
    asked = np.concatenate([written.encode([*words, END]) for _, words in test])
    cost = -np.log((counts + 1) / (counts + 1).sum())[asked]
    return Translation(
        name=name,
        source=source,
        train=part(train),
        valid=part(valid),
        test=part(test),
        answers="step",
        outputs=len(written),
        tokens=len(read),
        loss="cross_entropy",
        metric=perplexity,
        chance=perplexity.value(np.array([cost.sum(), cost.size])),
        solved=None,
        source_vocabulary=read,
        target_vocabulary=written,
    )
