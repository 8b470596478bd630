"""Figures: ``plot.*(result, ax=None) -> Axes``."""

from jaxrnn.plot.dynamics import (
    bifurcation_diagram,
    flow_history,
    lyapunov,
    lyapunov_convergence,
    phase_portrait,
)
from jaxrnn.plot.figures import (
    attention,
    gradient_flow,
    gradient_flows,
    lag_contributions,
    learning_curves,
    propagator,
    pseudospectrum,
    spectrum,
)
from jaxrnn.plot.style import house_style

__all__ = [
    "attention",
    "bifurcation_diagram",
    "flow_history",
    "gradient_flow",
    "gradient_flows",
    "house_style",
    "lag_contributions",
    "learning_curves",
    "lyapunov",
    "lyapunov_convergence",
    "phase_portrait",
    "propagator",
    "pseudospectrum",
    "spectrum",
]
