"""A sentence's translation by a trained network, and which words it looked at while it wrote."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from matplotlib.backend_bases import FigureCanvasBase

from jaxrnn import checks, plot
from jaxrnn.annotations import checked
from jaxrnn.experiments.figures import save_figure
from jaxrnn.experiments.runs import load_network
from jaxrnn.models import beam_search
from jaxrnn.tasks import END, Translation

_MOST = 2**12  # words, and hypotheses


@dataclasses.dataclass(frozen=True)
class Translated:
    """A sentence and its translation.

    Attributes:
      source: the words that were read; those that training did not know are ``<unk>``.
      target: the words that were written; ``<end>`` is the last, unless there were too many.
      attention: how much of each read word went into each written one; rows sum to 1.
      unknown: the words of the sentence that training did not know.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    attention: Float[np.ndarray, "T L"]
    unknown: tuple[str, ...]

    @property
    def ended(self) -> bool:
        """Whether the network wrote an end."""
        return self.target[-1] == END

    @property
    def text(self) -> str:
        """The translation, without its end."""
        return " ".join(word for word in self.target if word != END)


@checked
def translate(
    run: str | Path, sentence: str, *, network: int = 0, width: int = 4, longest: int = 50
) -> Translated:
    """Translate a sentence with a network of a run, by beam search.

    Args:
      run: the run's folder.
      sentence: words with blanks between them, as in the training data.
      network: which of the run's networks, 0 the first.
      width: hypotheses of the beam; 1 is greedy.
      longest: words to write at most.

    Raises:
      InputError: no run of a translator there, no such network, or an argument out of its range.
    """
    words = sentence.split()
    if not words:
        checks.refuse("sentence", repr(sentence), "at least one word")
    checks.within("width", width, 1, _MOST)
    checks.within("longest", longest, 1, _MOST)
    task, model = load_network(run, network)
    if not isinstance(task, Translation):
        checks.refuse("run", f"a run of {task.name}", "a run of a translation task")
    read = task.source_vocabulary.encode(words)
    sources = jnp.asarray(read)[:, None]
    found = beam_search(model, sources, longest, width=width)
    target = found.tokens[: int(found.lengths[0, 0]), :, 0]
    weights = model(sources, target).weights
    return Translated(
        source=tuple(task.source_vocabulary.decode(read)),
        target=tuple(task.target_vocabulary.decode(target[:, 0])),
        attention=np.asarray(weights[:, :, 0]),
        unknown=tuple(word for word in words if word not in task.source_vocabulary),
    )


@checked
def draw_attention(found: Translated, path: str | Path) -> None:
    """Draw a translation's map of attention into a file.

    Args:
      found: the translation, from `translate`.
      path: the file; its ending says of what kind it is.

    Raises:
      InputError: an ending that no picture has, or a file that cannot be written.
    """
    kinds = FigureCanvasBase.get_supported_filetypes()
    if Path(path).suffix.removeprefix(".").lower() not in kinds:
        checks.refuse("figure", path, f"a file that ends in one of {', '.join(kinds)}")
    with plot.house_style():
        figure = plot.attention(found.attention, found.source, found.target).get_figure(root=True)
        assert figure is not None
        save_figure(figure, Path(path), "figure")
