"""Analyses: Jacobians and spectra, the BPTT product, gradient flow, exponents, fixed points, theory."""

from jaxrnn.analysis._continuation import Bifurcation, Branch, continuation
from jaxrnn.analysis._cycles import Cycles, cycles
from jaxrnn.analysis._diagnose import PARTS, Diagnosis, Verdict, diagnose, judge
from jaxrnn.analysis._fixed_points import candidates_from, fixed_points
from jaxrnn.analysis._gated_mean_field import GatedMeanField, gated_mean_field
from jaxrnn.analysis._gradient_flow import (
    FlowHistory,
    GradientFlow,
    gradient_flow,
    stack_gradient_flow,
)
from jaxrnn.analysis._input_sensitivity import InputSensitivity, input_sensitivity
from jaxrnn.analysis._jacobians import (
    FactoredJacobians,
    factored_jacobians,
    input_jacobians,
    jacobians,
)
from jaxrnn.analysis._lag_contributions import LagContributions, lag_contributions
from jaxrnn.analysis._linear_memory import linear_memory
from jaxrnn.analysis._lyapunov import lyapunov
from jaxrnn.analysis._mean_field import MeanField, correlation_map, edge_of_chaos, mean_field
from jaxrnn.analysis._product_spectrum import ProductSpectrum, product_spectrum
from jaxrnn.analysis._propagator import (
    Propagator,
    PropagatorDirections,
    propagator,
    propagator_directions,
    state_derivative,
)
from jaxrnn.analysis._pseudospectrum import Pseudospectrum, pseudospectrum
from jaxrnn.analysis._spectrum import (
    Modes,
    Spectrum,
    WeightSpectrum,
    modes,
    modes_of,
    spectrum,
    spectrum_of,
    weight_spectrum,
)
from jaxrnn.analysis.bounds import (
    TrajectoryBound,
    WeightBound,
    slope_bound,
    trajectory_bound,
    weight_bound,
)
from jaxrnn.analysis.certificates import Certificates
from jaxrnn.analysis.covariant import CovariantVectors, covariant_vectors
from jaxrnn.analysis.curvature import HessianExtremes, hessian_extremes
from jaxrnn.analysis.exponents import Lyapunov, PrecisionWarning
from jaxrnn.analysis.flows import Flow, FlowModes, flow_modes
from jaxrnn.analysis.least_squares import Descent, LevenbergMarquardt
from jaxrnn.analysis.memory import (
    Horizon,
    MemoryCapacity,
    ProcessingCapacity,
    memory_capacity,
    processing_capacity,
)
from jaxrnn.analysis.rates import Rate
from jaxrnn.analysis.roots import Outcome
from jaxrnn.analysis.series_exponents import SeriesExponent, series_exponent
from jaxrnn.analysis.stationary_points import FixedPoints
from jaxrnn.analysis.trajectory import Trajectory, trace
from jaxrnn.contract import SplitWarning

__all__ = [
    "PARTS",
    "Bifurcation",
    "Branch",
    "Certificates",
    "CovariantVectors",
    "Cycles",
    "Descent",
    "Diagnosis",
    "FactoredJacobians",
    "FixedPoints",
    "Flow",
    "FlowHistory",
    "FlowModes",
    "GatedMeanField",
    "GradientFlow",
    "HessianExtremes",
    "Horizon",
    "InputSensitivity",
    "LagContributions",
    "LevenbergMarquardt",
    "Lyapunov",
    "MeanField",
    "MemoryCapacity",
    "Modes",
    "Outcome",
    "PrecisionWarning",
    "ProcessingCapacity",
    "ProductSpectrum",
    "Propagator",
    "PropagatorDirections",
    "Pseudospectrum",
    "Rate",
    "SeriesExponent",
    "Spectrum",
    "SplitWarning",
    "Trajectory",
    "TrajectoryBound",
    "Verdict",
    "WeightBound",
    "WeightSpectrum",
    "candidates_from",
    "continuation",
    "correlation_map",
    "covariant_vectors",
    "cycles",
    "diagnose",
    "edge_of_chaos",
    "factored_jacobians",
    "fixed_points",
    "flow_modes",
    "gated_mean_field",
    "gradient_flow",
    "hessian_extremes",
    "input_jacobians",
    "input_sensitivity",
    "jacobians",
    "judge",
    "lag_contributions",
    "linear_memory",
    "lyapunov",
    "mean_field",
    "memory_capacity",
    "modes",
    "modes_of",
    "processing_capacity",
    "product_spectrum",
    "propagator",
    "propagator_directions",
    "pseudospectrum",
    "series_exponent",
    "slope_bound",
    "spectrum",
    "spectrum_of",
    "stack_gradient_flow",
    "state_derivative",
    "trace",
    "trajectory_bound",
    "weight_bound",
    "weight_spectrum",
]
