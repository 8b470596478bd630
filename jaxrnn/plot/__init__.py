"""Figures: ``plot.*(result, ax=None) -> Axes``."""

from jaxrnn.plot.figures import gradient_flow, gradient_flows, learning_curves, propagator, spectrum
from jaxrnn.plot.style import house_style

__all__ = [
    "gradient_flow",
    "gradient_flows",
    "house_style",
    "learning_curves",
    "propagator",
    "spectrum",
]
