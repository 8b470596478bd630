"""Experiments: from settings to a run folder with a report."""

from jaxrnn.experiments.comparison import compare, digits_comparison
from jaxrnn.experiments.diagnosis import Subject, run_diagnosis
from jaxrnn.experiments.export import Exported, export
from jaxrnn.experiments.history import flow_history, probes
from jaxrnn.experiments.networks import NetworkConfig, network
from jaxrnn.experiments.probe import Probe, each, probe
from jaxrnn.experiments.runs import RunConfig, load_network, train
from jaxrnn.experiments.summary import Score, scores, training_summary
from jaxrnn.experiments.writing import write

__all__ = [
    "Exported",
    "NetworkConfig",
    "Probe",
    "RunConfig",
    "Score",
    "Subject",
    "compare",
    "digits_comparison",
    "each",
    "export",
    "flow_history",
    "load_network",
    "network",
    "probe",
    "probes",
    "run_diagnosis",
    "scores",
    "train",
    "training_summary",
    "write",
]
