"""Training: the fit loop, run folders, checkpoints and progress."""

from jaxrnn.training.checkpoints import Checkpoints
from jaxrnn.training.config import Ensemble, FitConfig
from jaxrnn.training.fitting import FitResult, TimeToTarget, fit, load_models
from jaxrnn.training.interruption import ProcessLostError, Stopped
from jaxrnn.training.optimizers import OPTIMIZERS, SCHEDULES
from jaxrnn.training.penalties import Penalties
from jaxrnn.training.placement import Placement
from jaxrnn.training.progress import ProgressBar
from jaxrnn.training.run_folder import (
    RunFolder,
    environment,
    holds_run,
    read_config,
    read_metrics,
    read_result,
)
from jaxrnn.training.search import Found, cuckoo_search, random_search
from jaxrnn.training.views import View, required, view, whole_sequences

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "Checkpoints",
    "Ensemble",
    "FitConfig",
    "FitResult",
    "Found",
    "Penalties",
    "Placement",
    "ProcessLostError",
    "ProgressBar",
    "RunFolder",
    "Stopped",
    "TimeToTarget",
    "View",
    "cuckoo_search",
    "environment",
    "fit",
    "holds_run",
    "load_models",
    "random_search",
    "read_config",
    "read_metrics",
    "read_result",
    "required",
    "view",
    "whole_sequences",
]
