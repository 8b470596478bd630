"""The microscope: step Jacobians, their spectra, the BPTT product, the flow of gradients."""

from jaxrnn.analysis.certificates import Certificates
from jaxrnn.analysis.covariant import CovariantVectors, covariant_vectors
from jaxrnn.analysis.diagnose import Diagnosis, Verdict, diagnose, judge
from jaxrnn.analysis.flows import Flow
from jaxrnn.analysis.gradient_flow import FlowHistory, GradientFlow, gradient_flow, stack_gradient_flow
from jaxrnn.analysis.jacobians import jacobians
from jaxrnn.analysis.lyapunov import Lyapunov, PrecisionWarning, lyapunov
from jaxrnn.analysis.propagator import Propagator, propagator
from jaxrnn.analysis.rates import Rate
from jaxrnn.analysis.spectrum import Spectrum, spectrum
from jaxrnn.analysis.trajectory import Trajectory, trace

__all__ = [
    "Certificates",
    "CovariantVectors",
    "Diagnosis",
    "Flow",
    "FlowHistory",
    "GradientFlow",
    "Lyapunov",
    "PrecisionWarning",
    "Propagator",
    "Rate",
    "Spectrum",
    "Trajectory",
    "Verdict",
    "covariant_vectors",
    "diagnose",
    "gradient_flow",
    "jacobians",
    "judge",
    "lyapunov",
    "propagator",
    "spectrum",
    "stack_gradient_flow",
    "trace",
]
