"""Words and their numbers.

Number 0 is `<pad>`, which fills a batch up and is never a word; number 1 is `<unk>`, which stands for every
word that the vocabulary does not know. The other words follow in the order in which they were given.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.typing import ArrayLike

PAD, UNKNOWN = "<pad>", "<unk>"


class Vocabulary:
    """A list of words, each with its number.

    Args:
      words: without `<pad>` and `<unk>`, which every vocabulary begins with.

    Attributes:
      words: all V words, `<pad>` and `<unk>` first.

    Raises:
      InputError: a word that comes twice, is `<pad>` or `<unk>`, or is no text; or one text for all words.

    Example:
      >>> from jaxrnn.tasks import Vocabulary
      >>> vocabulary = Vocabulary.of("the cat and the dog".split())
      >>> vocabulary.words
      ('<pad>', '<unk>', 'the', 'and', 'cat', 'dog')
      >>> vocabulary.encode("the old dog".split()).tolist()
      [2, 1, 5]
      >>> vocabulary.decode([2, 1, 5])
      ['the', '<unk>', 'dog']
    """

    pad = 0
    unknown = 1

    @checked
    def __init__(self, words: Iterable[str] | Any):
        self.words = (PAD, UNKNOWN, *_words("words", words))
        self._numbers = {word: number for number, word in enumerate(self.words)}
        if len(self._numbers) < len(self.words):
            twice = next(w for w, n in collections.Counter(self.words).items() if n > 1)
            checks.refuse("words", f"{twice!r} twice", "every word once, without <pad> and <unk>")

    @classmethod
    @checked
    def of(
        cls, text: Iterable[str] | Any, *, least: int = 1, largest: int | None = None
    ) -> Vocabulary:
        """Return the vocabulary of a text, the commonest word first, equals in alphabetical order.

        Args:
          text: the words as they come; `<pad>` and `<unk>` among them are passed over.
          least: how often a word must come to be taken.
          largest: how many words to take at most, beside `<pad>` and `<unk>`.

        Raises:
          InputError: one string, whose words nobody has told apart, entries that are no text, or a count
            below 1.
        """
        checks.count("least", least)
        if largest is not None:
            checks.count("largest", largest)
        counts = collections.Counter(_words("text", text))
        words = sorted(
            (word for word, n in counts.items() if n >= least and word not in (PAD, UNKNOWN)),
            key=lambda word: (-counts[word], word),
        )
        return cls(words[:largest])

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self._numbers

    @checked
    def encode(self, words: Iterable[str] | Any) -> Int[np.ndarray, "T"]:
        """Return the numbers of words; that of `<unk>` for those that are not known.

        Raises:
          InputError: one string, whose words nobody has told apart.
        """
        known = self._numbers
        return np.array(
            [known.get(word, self.unknown) for word in _words("words", words)], np.int32
        )

    @checked
    def decode(self, numbers: Iterable[int] | Int[ArrayLike, "T"] | Any) -> list[str]:
        """Return the words of numbers.

        Raises:
          InputError: a number that is no word's or not whole, or an array of more than one axis.
        """
        expected = "one sequence of whole numbers, [T] (decode each alone)"
        each = [checks.host_array("numbers", n) for n in _entries("numbers", numbers, expected)]
        if any(number.ndim or number.dtype.kind not in "iu" for number in each):
            checks.refuse("numbers", checks.describe(numbers), expected)
        found = [int(number) for number in each]
        wrong = [number for number in found if not 0 <= number < len(self)]
        if wrong:
            checks.refuse("numbers", wrong[0], f"word numbers from 0 to {len(self) - 1}")
        return [self.words[number] for number in found]


def _words(argument: str, words: Any) -> list[str]:
    """Return words as a list; refuse one text, whose words nobody has told apart, and what is no text."""
    expected = "a list of words, as from .split() or list()"
    if isinstance(words, str | bytes):
        checks.refuse(argument, repr(words), expected)
    entries = _entries(argument, words, expected)
    wrong = [entry for entry in entries if not isinstance(entry, str)]
    if wrong:
        checks.refuse(argument, f"{checks.describe(wrong[0])} among the words", expected)
    return entries


def _entries(argument: str, values: Any, expected: str) -> list[Any]:
    try:
        return list(values)
    except TypeError:  # such as an array without axes, whose class says that it can be iterated
        checks.refuse(argument, checks.describe(values), expected)
