"""Experiments: from settings to a run folder with a report."""

from jaxrnn.experiments.comparison import compare, digits_comparison
from jaxrnn.experiments.diagnosis import Subject, run_diagnosis
from jaxrnn.experiments.history import flow_history, flow_observer
from jaxrnn.experiments.probe import Probe, each, probe
from jaxrnn.experiments.runs import RunConfig, load, make_model, train

__all__ = [
    "Probe",
    "RunConfig",
    "Subject",
    "compare",
    "digits_comparison",
    "each",
    "flow_history",
    "flow_observer",
    "load",
    "make_model",
    "probe",
    "run_diagnosis",
    "train",
]
