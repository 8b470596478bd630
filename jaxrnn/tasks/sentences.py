"""Sentences: what a review says of a film, and which words of a message name something.

Words are what stands between blanks. The vocabulary is that of the training sentences; a word that is not in
it is read as <unk>. Where names are looked for, which are new by their nature, a rare word is read by its
shape first: Gurez as <Xx>, ANI as <XX>, @rajesh4 as <@x9> (the case of letters as a feature: Collobert et al.
2011).
"""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.tasks.base import Task
from jaxrnn.tasks.examples import bucketed
from jaxrnn.tasks.files import find_files, read_lines
from jaxrnn.tasks.objectives import accuracy, entity_f1
from jaxrnn.tasks.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentenceTask(Task):
    """A task on words.

    Attributes:
      vocabulary: the words.
      labels: the names of the classes.
    """

    vocabulary: Vocabulary
    labels: tuple[str, ...]

    def encode(self, words: Sequence[str]) -> Int[np.ndarray, "T"]:
        """Return the numbers of a sentence's words."""
        return _encode(self.vocabulary, words)


def _encode(vocabulary: Vocabulary, words: Sequence[str]) -> Int[np.ndarray, "T"]:
    """Return the numbers of words; one that is not known has that of its shape, if that is known."""
    return vocabulary.encode([word if word in vocabulary else shape(word) for word in words])


@checked
def sentiment(folder: str | os.PathLike[str] | None = None, least: int = 2) -> Task:
    """Tell whether a sentence of a film review is for or against the film.

    Movie Review sentence polarity: 10,662 sentences, half of them for; the shuffle is always the same, 80 %
    are for training, 10 % for validation, 10 % for the test (Pang & Lee 2005; a convolution with pretrained
    vectors reaches 0.815, with random ones 0.761, Kim 2014).

    Args:
      folder: where ``rt-polarity.all`` lies: a sentence a line in Latin-1, behind a 0 or a 1; by default
        ``$JAXRNN_DATA/sentiment``.
      least: how often a word must come in training to be known.

    Raises:
      InputError: the file is not there, or a line of it is not what it should be.
    """
    what = "a file in Latin-1 of a sentence a line, behind a 0 or a 1"
    (path,) = find_files("sentiment", folder, {what: "rt-polarity.all"}).values()
    sentences, labels = [], []
    for number, line in enumerate(read_lines(path, what, "latin-1"), start=1):
        label, _, sentence = line.partition(" ")
        if label not in ("0", "1") or not sentence.split():
            checks.refuse(
                f"{path}, line {number}", repr(line[:60]), "0 or 1, a blank, and a sentence"
            )
        labels.append(int(label))
        sentences.append(sentence.split())
    order = np.random.default_rng(0).permutation(len(labels))
    parts = np.split(order, [int(0.8 * len(order)), int(0.9 * len(order))])
    vocabulary = Vocabulary.of((w for i in parts[0] for w in sentences[i]), least=least)
    sources = [
        bucketed(
            [vocabulary.encode(sentences[i]) for i in part], [np.int32(labels[i]) for i in part]
        )
        for part in parts
    ]
    share = float(np.mean([labels[i] for i in parts[2]]))
    return SentenceTask(
        name="sentiment",
        source="Pang & Lee 2005",
        **dict(zip(("train", "valid", "test"), sources, strict=True)),
        answers="sequence",
        outputs=2,
        tokens=len(vocabulary),
        loss="cross_entropy",
        metric=accuracy,
        chance=max(share, 1 - share),
        solved=0.75,
        vocabulary=vocabulary,
        labels=("against", "for"),
    )


@checked
def wnut17(folder: str | os.PathLike[str] | None = None, least: int = 2) -> Task:
    """Mark the words of messages that name a person, place, group, product or work: WNUT 2017.

    Entities are rare and new: few of the test's come in training. The score is the F1 of whole entities;
    always answering "none" has 0 (Derczynski et al. 2017, whose best system has 0.42).

    Args:
      folder: where ``wnut17train.conll``, ``emerging.dev.conll`` and ``emerging.test.annotated`` lie; by
        default ``$JAXRNN_DATA/wnut17``.
      least: how often a word must come in training to be known; a rarer one is read by its shape, so
        with 1 no shape is learnt.

    Raises:
      InputError: a file is not there, or a line of it is not what it should be.
    """
    names = {
        "the training messages in CoNLL columns": "wnut17train.conll",
        "the validation messages in CoNLL columns": "emerging.dev.conll",
        "the test messages in CoNLL columns": "emerging.test.annotated",
    }
    train, valid, test = map(read_conll, find_files("wnut17", folder, names).values())
    return entity_tagging("wnut17", train, valid, test, least, "Derczynski et al. 2017")


Tagged = list[tuple[list[str], list[str]]]
"""Sentences, each as its words and their tags."""


def read_conll(path: str | os.PathLike[str]) -> Tagged:
    """Read sentences in CoNLL columns: a word a line, its tag in the last column, blank lines between.

    Raises:
      InputError: the file cannot be read, a line has but one column, or a tag is not O, B-… or I-….
    """
    path = Path(path)
    sentences: Tagged = []
    words: list[str] = []
    tags: list[str] = []
    lines = read_lines(path, "sentences in CoNLL columns")
    for number, line in enumerate([*lines, ""], start=1):
        columns = line.split("\t") if "\t" in line else line.split()
        if not line.strip():
            if words:
                sentences.append((words, tags))
            words, tags = [], []
            continue
        if len(columns) < 2 or not (columns[-1] == "O" or columns[-1][:2] in ("B-", "I-")):
            expected = "a word and its tag, O, B-… or I-…, in columns"
            checks.refuse(f"{path}, line {number}", repr(line[:60]), expected)
        words.append(columns[0].strip() or "<blank>")
        tags.append(columns[-1])
    return sentences


def shape(word: str) -> str:
    """Return what a word looks like: runs of capitals as X, of other letters as x, of digits as 9.

    One capital and what follows it are Xx; two or more are XX. Other characters stay, each run of the same
    once.

    Example:
      >>> from jaxrnn.tasks.sentences import shape
      >>> [shape(word) for word in ("Gurez", "ANI", "@rajesh4", "iPhone", "...", "9:30")]
      ['<Xx>', '<XX>', '<@x9>', '<xXx>', '<.>', '<9:9>']
    """
    kinds = "".join(
        "X" if c.isupper() else "x" if c.isalpha() else "9" if c.isdigit() else c for c in word
    )
    short = re.sub(r"([^X])\1+", r"\1", re.sub("XX+", "XX", kinds))
    return f"<{short}>"


def entity_tagging(
    name: str, train: Tagged, valid: Tagged, test: Tagged, least: int, source: str
) -> Task:
    """Return the task of tagging entities in sentences; words that come less than `least` are read by shape.

    Raises:
      InputError: a part without sentences, or a tag in it that the training does not have.
    """
    labels = ("O", *sorted({tag for _, tags in train for tag in tags} - {"O"}))
    numbers = {label: np.int32(i) for i, label in enumerate(labels)}
    counts = collections.Counter(word for words, _ in train for word in words)
    read = (word if n >= least else shape(word) for word, n in counts.items() for _ in range(n))
    vocabulary = Vocabulary.of(read, least=least)

    def source_of(part: str, sentences: Tagged) -> Any:
        unknown = sorted({tag for _, tags in sentences for tag in tags} - set(labels))
        if unknown:
            checks.refuse(f"{name}: {part}", f"the tag {unknown[0]}", f"one of {', '.join(labels)}")
        encoded = [_encode(vocabulary, words) for words, _ in sentences]
        return bucketed(encoded, [np.array([numbers[t] for t in tags]) for _, tags in sentences])

    return SentenceTask(
        name=name,
        source=source,
        train=source_of("train", train),
        valid=source_of("valid", valid),
        test=source_of("test", test),
        answers="step",
        outputs=len(labels),
        tokens=len(vocabulary),
        loss="cross_entropy",
        metric=entity_f1(labels),
        chance=0.0,
        solved=None,
        vocabulary=vocabulary,
        labels=labels,
    )
