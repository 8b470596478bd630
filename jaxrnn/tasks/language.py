"""Language modelling: what character or word comes next, read on through one long text.

Any text file serves. Where none is given, the text is one that every installation of Python has: its own
documentation, some 465,000 characters of technical English.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.tasks.base import Batch, Task
from jaxrnn.tasks.files import find_files, read_text
from jaxrnn.tasks.objectives import Metric, bits, perplexity
from jaxrnn.tasks.texts import Text
from jaxrnn.tasks.vocabulary import Vocabulary
from jaxrnn.typing import Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModelling(Task):
    """Name the token after each token of a text.

    Attributes:
      vocabulary: the tokens' words or characters.
      joint: what stands between two tokens when they are written: nothing, or a space.
    """

    vocabulary: Vocabulary
    joint: str

    def predict(self, model: Any, batch: Batch, carry: Any, key: Key | None) -> tuple[Any, Any]:
        """Return the carry from which the next window goes on, without its gradient, and the logits."""
        none = jnp.zeros(batch.inputs.shape[1], jnp.int32)
        start, _ = model.read(
            batch.inputs[:1], seq_lengths=none
        )  # after no step: where a text begins
        if carry is not None:
            start = jax.tree.map(lambda new, old: jnp.where(batch.fresh, new, old), start, carry)
        carry, logits = model.read(batch.inputs, carry=start, dropout_key=key)
        return jax.lax.stop_gradient(carry), logits

    @checked
    def encode(self, text: str) -> Any:
        """Return the tokens of a text [T]."""
        return self.vocabulary.encode(self._each(text))

    def unknown(self, text: str) -> list[str]:
        """Return the words or characters of a text that are not in the vocabulary, each once."""
        return [word for word in dict.fromkeys(self._each(text)) if word not in self.vocabulary]

    def _each(self, text: str) -> list[str]:
        return text.split(self.joint) if self.joint else list(text)

    @checked
    def decode(self, tokens: Any) -> str:
        """Return the text of tokens [T]."""
        return self.joint.join(self.vocabulary.decode(tokens))


@checked
def characters(file: str | os.PathLike[str] | None = None, window: int = 100) -> Task:
    """Name the next character of a text.

    The first 90 % are for training, 5 % for validation, the last 5 % for the test. The score is in bits a
    character; chance knows how frequent each character of the training text is.

    Args:
      file: a text in UTF-8; by default Python's own documentation.
      window: steps between two cuts of the gradient.

    Raises:
      InputError: the file cannot be read, or is too short.
    """
    text = _python_documentation() if file is None else read_text(Path(file), "a text in UTF-8")
    return _modelling("characters", list(text), "", window, bits, None, _source(file))


@checked
def words(
    file: str | os.PathLike[str] | None = None, window: int = 35, largest: int = 10_000
) -> Task:
    """Name the next word of a text.

    Words are what stands between blanks, in lower case; a line's end is the word <eol>. Parts and chance are
    as in `characters`; the score is the perplexity.

    Args:
      file: a text in UTF-8; by default Python's own documentation.
      window: steps between two cuts of the gradient.
      largest: size of the vocabulary; rarer words are read as <unk>.

    Raises:
      InputError: the file cannot be read, or is too short.
    """
    text = _python_documentation() if file is None else read_text(Path(file), "a text in UTF-8")
    each = text.lower().replace("\n", " <eol> ").split()
    return _modelling("words", each, " ", window, perplexity, largest, _source(file))


@checked
def shakespeare(folder: str | os.PathLike[str] | None = None, window: int = 100) -> Task:
    """Name the next character of Tiny Shakespeare, 1,115,394 characters of his plays (Karpathy 2015).

    Args:
      folder: where ``input.txt`` lies; by default ``$JAXRNN_DATA/shakespeare``.
      window: steps between two cuts of the gradient.

    Raises:
      InputError: the file is not there or cannot be read.
    """
    found = find_files("shakespeare", folder, {"the plays as one text": "input.txt"})
    (path,) = found.values()
    text = read_text(path, "a text in UTF-8")
    return _modelling("shakespeare", list(text), "", window, bits, None, "Karpathy 2015")


def _modelling(
    name: str,
    text: list[str],
    joint: str,
    window: int,
    metric: Metric,
    largest: int | None,
    source: str,
) -> Task:
    checks.count("window", window)
    cuts = [int(0.9 * len(text)), int(0.95 * len(text))]
    vocabulary = Vocabulary.of(text[: cuts[0]], largest=largest)
    tokens = vocabulary.encode(text)
    train, valid, test = np.split(tokens, cuts)
    counts = (
        np.bincount(train, minlength=len(vocabulary)) + 1.0
    )  # one more: what is new has a chance, too
    cost = -np.log(counts / counts.sum())[test[1:]]
    return LanguageModelling(
        name=name,
        source=source,
        train=Text(train, window),
        valid=Text(valid, window),
        test=Text(test, window),
        answers="step",
        outputs=len(vocabulary),
        tokens=len(vocabulary),
        loss="cross_entropy",
        metric=metric,
        chance=metric.value(np.array([cost.sum(), cost.size])) if cost.size else float("nan"),
        solved=None,
        forecast=True,
        vocabulary=vocabulary,
        joint=joint,
    )


def _source(file: str | os.PathLike[str] | None) -> str:
    return "the documentation of Python" if file is None else str(file)


def _python_documentation() -> str:
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))
