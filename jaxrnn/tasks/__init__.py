"""Tasks: data, losses, metrics, and what chance and a solution mean."""

from jaxrnn.tasks.base import SequenceClassification, Split
from jaxrnn.tasks.idx import read_idx
from jaxrnn.tasks.pixels import TASKS, digits, load_task, mnist, pixels
from jaxrnn.tasks.vocabulary import Vocabulary

__all__ = [
    "TASKS",
    "SequenceClassification",
    "Split",
    "Vocabulary",
    "digits",
    "load_task",
    "mnist",
    "pixels",
    "read_idx",
]
