"""Experiments: from settings to a run folder with a report."""

from jaxrnn.experiments.comparison import compare, digits_comparison
from jaxrnn.experiments.diagnosis import diagnose_cell, diagnose_run, write_diagnosis
from jaxrnn.experiments.probe import Probe, each, probe
from jaxrnn.experiments.runs import RunConfig, load, make_model, train

__all__ = [
    "Probe",
    "RunConfig",
    "compare",
    "diagnose_cell",
    "diagnose_run",
    "digits_comparison",
    "each",
    "load",
    "make_model",
    "probe",
    "train",
    "write_diagnosis",
]
