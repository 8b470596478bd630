"""Take an ensemble's gradients apart: seed by seed, and what they say together.

The gradient is that of the task's own loss, through the trained readout, on test sequences that no training
has seen. Rates are means over the seeds, and their errors come from the spread between the seeds: what is
claimed is claimed of the architecture, not of one network.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jaxrnn.analysis import (
    GradientFlow,
    Propagator,
    Spectrum,
    Verdict,
    gradient_flow,
    judge,
    propagator,
    spectrum,
    trace,
)
from jaxrnn.annotations import checked
from jaxrnn.tasks import Task
from jaxrnn.training import required, view, whole_sequences

_FLOW_SEQUENCES = 64
_SPECTRUM_SEQUENCES = 2  # an eigenvalue problem for every step and sequence


@dataclasses.dataclass(frozen=True)
class Probe:
    """What was measured on an ensemble's networks.

    Attributes:
      spectra: of the step Jacobians on a few sequences, one a seed.
      propagators: BPTT products on the same sequences, one a seed.
      flows: gradient flows on many sequences, one a seed.
    """

    spectra: list[Spectrum]
    propagators: list[Propagator]
    flows: list[GradientFlow]

    @property
    def log_norms(self) -> Float[np.ndarray, "N T B"]:
        """Log ‖∂L/∂s_t‖ of every seed and sequence, nats."""
        return np.stack([np.asarray(flow.log_norms) for flow in self.flows])

    @property
    def spectral_radius(self) -> float:
        """Median over seeds, steps and sequences."""
        return float(np.median([np.asarray(s.spectral_radius) for s in self.spectra]))

    @property
    def rate(self) -> tuple[float, float]:
        """Mean rate over the seeds and its standard error; of its sequences, where there is one seed."""
        rates = [float(flow.rate) for flow in self.flows]
        if len(rates) == 1:
            return rates[0], float(self.flows[0].rate_stderr)
        return float(np.mean(rates)), float(np.std(rates, ddof=1) / math.sqrt(len(rates)))

    @property
    def verdict(self) -> Verdict:
        """What has become of the gradient at the first step, over seeds, or the one seed's sequences."""
        transported = np.stack([np.asarray(flow.log_transported) for flow in self.flows], axis=1)
        changes = transported[0]  # [seeds, sequences]
        return judge(changes.mean(axis=1) if len(changes) > 1 else changes, transported)


@checked
def probe(models: Any, task: Task) -> Probe:
    """Take every network of an ensemble apart on test sequences of its task.

    Raises:
      InputError: networks of several layers, or that read backwards.
    """
    batch = whole_sequences(task.test, _FLOW_SEQUENCES)
    found = Probe([], [], [])
    for model in each(models):
        seen = required(view(model, task, batch))
        found.flows.append(gradient_flow(seen.cell, seen.xs, seen.loss))
        path = trace(seen.cell, seen.xs[:, :_SPECTRUM_SEQUENCES])
        found.spectra.append(spectrum(seen.cell, path))
        found.propagators.append(propagator(seen.cell, path))
    return found


def each(models: Any) -> Iterator[Any]:
    """Go through the networks of an ensemble, whose leaves have a leading axis of networks."""
    for i in range(len(jax.tree.leaves(models)[0])):
        yield jax.tree.map(lambda leaf, i=i: leaf[i], models)
