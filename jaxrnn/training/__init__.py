"""Training: the fit loop, run folders, checkpoints and progress."""

from jaxrnn.training.checkpoints import Checkpoints
from jaxrnn.training.fit import FitConfig, FitResult, fit, load_models
from jaxrnn.training.progress import ProgressBar
from jaxrnn.training.run_folder import RunFolder, environment, holds_run, read_config, read_metrics

__all__ = [
    "Checkpoints",
    "FitConfig",
    "FitResult",
    "ProgressBar",
    "RunFolder",
    "environment",
    "fit",
    "holds_run",
    "load_models",
    "read_config",
    "read_metrics",
]
