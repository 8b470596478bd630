"""Tasks: data, losses, metrics, and what chance and a solution mean."""

from jaxrnn.tasks.base import Batch, Task
from jaxrnn.tasks.examples import Buckets, Examples, bucketed
from jaxrnn.tasks.idx import read_idx
from jaxrnn.tasks.language import LanguageModelling
from jaxrnn.tasks.objectives import LOSSES, Metric
from jaxrnn.tasks.pixels import digits, mnist, pixels
from jaxrnn.tasks.sources import Sampler, Source, Stretch
from jaxrnn.tasks.table import TASKS, TaskEntry, load_task
from jaxrnn.tasks.texts import Text
from jaxrnn.tasks.translation import END, Translation
from jaxrnn.tasks.vocabulary import Vocabulary

__all__ = [
    "END",
    "LOSSES",
    "TASKS",
    "Batch",
    "Buckets",
    "Examples",
    "LanguageModelling",
    "Metric",
    "Sampler",
    "Source",
    "Stretch",
    "Task",
    "TaskEntry",
    "Text",
    "Translation",
    "Vocabulary",
    "bucketed",
    "digits",
    "load_task",
    "mnist",
    "pixels",
    "read_idx",
]
