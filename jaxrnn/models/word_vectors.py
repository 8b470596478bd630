"""Word vectors on disk: the two text formats in which the field hands them round.

    GloVe       one line a word: the word and its F numbers, single spaces between (Pennington et al. 2014)
    word2vec    the same below a first line "V F" (Mikolov et al. 2013, the tool's text output)

Both are read as they occur in the wild: words may hold any character but a space and a line's end, among
them the no-break space, at which Python's ``str.split`` would part them; some words of the largest GloVe
files do hold spaces, so the last F fields are the numbers, and a word with a number among several parts is
taken for a line that is too long. A line that cannot be read is refused with its number, not skipped.

Weakness: text is some ten times slower to read than NumPy's own format, and all of it is read into memory.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
from jaxtyping import Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.tasks import Vocabulary


@dataclasses.dataclass(frozen=True)
class WordVectors:
    """Words, each with a vector.

    Attributes:
      words: V words, every one once.
      vectors: [V, F], in the order of the words.

    Raises:
      InputError: as many words as vectors are wanted, every word once, no empty word.

    Example:
      >>> import numpy as np
      >>> from jaxrnn.models import WordVectors
      >>> vectors = WordVectors(("sun", "moon"), np.eye(2))
      >>> vectors["moon"].tolist()
      [0.0, 1.0]
    """

    words: tuple[str, ...]
    vectors: Float[np.ndarray, "V F"]

    def __post_init__(self):
        """Refuse words and vectors that do not belong together."""
        if len(self.words) != len(self.vectors):
            got = f"{len(self.words)} words and {len(self.vectors)} vectors"
            checks.refuse("words", got, "as many of the one as of the other")
        for number, word in enumerate(self.words):
            if not word or self._rows[word] != number:
                checks.refuse("words", f"{word!r} twice" if word else "''", "every word once")

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        return {word: row for row, word in enumerate(self.words)}

    def __contains__(self, word: object) -> bool:
        return word in self._rows

    def __getitem__(self, word: str) -> Float[np.ndarray, "F"]:
        """Return the vector of a word.

        Raises:
          InputError: a word that has none; the message suggests the nearest.
        """
        if word not in self:
            near = difflib.get_close_matches(word, self.words, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            checks.refuse("word", repr(word), f"one of the {len(self.words)} words{hint}")
        return self.vectors[self._rows[word]]

    @checked
    def table(
        self, vocabulary: Vocabulary, *, rng: np.random.Generator | None = None
    ) -> Float[np.ndarray, "V F"]:
        """Return one vector for every word of a vocabulary: zeros for `<pad>`, ours for words that we know.

        Args:
          vocabulary: whose words, in which order.
          rng: draws the vectors of unknown words, `<unk>` among them, from a normal distribution with the
            mean and standard deviation of the known ones, feature by feature.

        Raises:
          InputError: unknown words, and no generator to draw their vectors.
        """
        words = vocabulary.words
        known = [row for row, word in enumerate(words) if row and word in self]
        unknown = [row for row, word in enumerate(words) if row and word not in self]
        table = np.zeros((len(words), self.vectors.shape[1]), self.vectors.dtype)
        table[known] = self.vectors[[self._rows[words[row]] for row in known]]
        if unknown:
            if rng is None:
                named = ", ".join(repr(words[row]) for row in unknown[:5])
                got = f"{len(unknown)} words without a vector ({named}"
                checks.refuse("vocabulary", got + (", …)" if len(unknown) > 5 else ")"), "rng")
            mean, spread = self.vectors.mean(axis=0), self.vectors.std(axis=0)
            table[unknown] = rng.normal(mean, spread, (len(unknown), len(mean)))
        return table


@checked
def read_glove(path: Path | str) -> WordVectors:
    """Read a GloVe text file: one line a word, no header; vectors are float32.

    Raises:
      InputError: a line that cannot be read, or a word that comes twice, with the line's number.
    """
    return _collected(Path(path), _lines(Path(path)), features=None)


@checked
def read_word2vec(path: Path | str) -> WordVectors:
    """Read a word2vec text file: a line "V F", then one line a word.

    Raises:
      InputError: as `read_glove`, and a first line that is not "V F" or not true.
    """
    path = Path(path)
    lines = _lines(path)
    _, header = next(lines, (1, ""))
    fields = header.split(" ")
    if len(fields) != 2 or not all(f.isascii() and f.isdigit() and int(f) > 0 for f in fields):
        _refuse_line(path, 1, repr(header[:60]), 'two whole numbers above 0, "words features"')
    words, features = map(int, fields)
    found = _collected(path, lines, features)
    if len(found.words) != words:
        checks.refuse(str(path), f"{len(found.words)} words", f"{words}, as line 1 says")
    return found


@checked
def write_glove(path: Path | str, vectors: WordVectors) -> None:
    """Write a GloVe text file; every number is written so that it reads back as it was, in float32.

    Raises:
      InputError: a word that the format cannot hold, or values that are not finite.
    """
    _write(Path(path), vectors, header="")


@checked
def write_word2vec(path: Path | str, vectors: WordVectors) -> None:
    """Write a word2vec text file; as `write_glove`."""
    words, features = vectors.vectors.shape
    _write(Path(path), vectors, header=f"{words} {features}\n")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines of a file, without the spaces that the word2vec tool leaves at their ends."""
    if not path.is_file():
        checks.refuse("path", str(path), "a file of word vectors")
    # Only a line feed ends a line: a carriage return within a word is a part of it.
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                _refuse_line(path, number, f"bytes that are not UTF-8 ({error.reason})", "UTF-8")
            yield number, text.rstrip("\r\n ")


def _collected(path: Path, lines: Iterable[tuple[int, str]], features: int | None) -> WordVectors:
    first_seen: dict[str, int] = {}
    rows: list[Float[np.ndarray, "F"]] = []
    for number, line in lines:
        features = features or max(line.count(" "), 1)
        word, row = _parsed(path, number, line, features)
        if word in first_seen:
            got = f"the word {word!r} again, after line {first_seen[word]}"
            _refuse_line(path, number, got, "every word once")
        first_seen[word] = number
        rows.append(row)
    if not rows:
        checks.refuse(str(path), "no words", "one word a line, and its numbers")
    return WordVectors(tuple(first_seen), np.stack(rows))


def _parsed(
    path: Path, number: int, line: str, features: int
) -> tuple[str, Float[np.ndarray, "F"]]:
    expected = f"a word and {features} numbers"
    word, *fields = line.rsplit(" ", features)
    parts = word.split(" ")
    if len(fields) < features or not word or _holds_number(parts):
        _refuse_line(path, number, f"{line.count(' ')} fields after the first", expected)
    row = _numbers(fields)
    if row is None:
        wrong = next(field for field in fields if _numbers([field]) is None)
        _refuse_line(path, number, f"{wrong!r} for a number of {word!r}", expected)
    return word, row


def _holds_number(parts: list[str]) -> bool:
    """Tell whether a word of several parts has taken up a number, so that its line is too long."""
    return len(parts) > 1 and any(_numbers([part]) is not None for part in parts)


def _numbers(fields: list[str]) -> Float[np.ndarray, "F"] | None:
    """Return fields as float32; None where one is no finite number."""
    if any("_" in field for field in fields):  # which Python allows in numbers
        return None
    try:
        with np.errstate(over="ignore"):
            row = np.array(fields, np.float64).astype(np.float32)
    except ValueError:
        return None
    return row if np.isfinite(row).all() else None


def _refuse_line(path: Path, number: int, got: str, expected: str) -> NoReturn:
    checks.refuse(f"{path}, line {number}", got, expected)


def _write(path: Path, vectors: WordVectors, header: str) -> None:
    checks.finite("vectors", vectors.vectors)
    for word in vectors.words:
        if any(mark in word for mark in " \n\r"):
            checks.refuse("words", repr(word), "words without spaces and line ends")
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(header)
        for word, row in zip(vectors.words, vectors.vectors, strict=True):
            file.write(f"{word} {' '.join(map(str, row))}\n")
