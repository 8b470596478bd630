"""Tasks: data, losses, metrics, and what chance and a solution mean."""

from jaxrnn.tasks.base import Batch, Task
from jaxrnn.tasks.examples import Buckets, Examples, bucketed
from jaxrnn.tasks.files import MissingDataError
from jaxrnn.tasks.idx import read_idx
from jaxrnn.tasks.images import digits, mnist, pixels
from jaxrnn.tasks.language import LanguageModelling
from jaxrnn.tasks.objectives import (
    LOSSES,
    Metric,
    accuracy,
    bits,
    entity_f1,
    exact,
    mse,
    nats,
    nll,
    perplexity,
    rmse,
    whole,
)
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
    "MissingDataError",
    "Sampler",
    "Source",
    "Stretch",
    "Task",
    "TaskEntry",
    "Text",
    "Translation",
    "Vocabulary",
    "accuracy",
    "bits",
    "bucketed",
    "digits",
    "entity_f1",
    "exact",
    "load_task",
    "mnist",
    "mse",
    "nats",
    "nll",
    "perplexity",
    "pixels",
    "read_idx",
    "rmse",
    "whole",
]
