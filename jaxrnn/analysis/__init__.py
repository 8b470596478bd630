"""The microscope: step Jacobians, their spectra, the BPTT product, the flow of gradients."""

from jaxrnn.analysis.certificates import Certificates
from jaxrnn.analysis.diagnose import Diagnosis, Verdict, diagnose, judge
from jaxrnn.analysis.gradient_flow import GradientFlow, gradient_flow
from jaxrnn.analysis.jacobians import jacobians
from jaxrnn.analysis.propagator import Propagator, propagator
from jaxrnn.analysis.rates import Rate
from jaxrnn.analysis.spectrum import Spectrum, spectrum
from jaxrnn.analysis.trajectory import Trajectory, trace

__all__ = [
    "Certificates",
    "Diagnosis",
    "GradientFlow",
    "Propagator",
    "Rate",
    "Spectrum",
    "Trajectory",
    "Verdict",
    "diagnose",
    "gradient_flow",
    "jacobians",
    "judge",
    "propagator",
    "spectrum",
    "trace",
]
