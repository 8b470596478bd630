"""Experiments: from settings to a run folder with a report."""

from jaxrnn.experiments.comparison import compare, digits_comparison
from jaxrnn.experiments.diagnosis import Subject, run_diagnosis
from jaxrnn.experiments.exporting import Exported, export
from jaxrnn.experiments.history import flow_history, probes
from jaxrnn.experiments.networks import NetworkConfig, network
from jaxrnn.experiments.probing import Probe, each, probe
from jaxrnn.experiments.published import (
    EXPERIMENTS_HEADER,
    PUBLISHED,
    Published,
    experiment_rows,
)
from jaxrnn.experiments.runs import RunConfig, load_network, train
from jaxrnn.experiments.summary import Score, scores, training_summary
from jaxrnn.experiments.sweeps import Sweep, Trial, random_settings, sweep, sweep_runs
from jaxrnn.experiments.translating import Translated, draw_attention, translate
from jaxrnn.experiments.writing import write

__all__ = [
    "EXPERIMENTS_HEADER",
    "PUBLISHED",
    "Exported",
    "NetworkConfig",
    "Probe",
    "Published",
    "RunConfig",
    "Score",
    "Subject",
    "Sweep",
    "Translated",
    "Trial",
    "compare",
    "digits_comparison",
    "draw_attention",
    "each",
    "experiment_rows",
    "export",
    "flow_history",
    "load_network",
    "network",
    "probe",
    "probes",
    "random_settings",
    "run_diagnosis",
    "scores",
    "sweep",
    "sweep_runs",
    "train",
    "training_summary",
    "translate",
    "write",
]
