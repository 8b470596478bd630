"""Claims about what networks come to on real data, at their best learning rates and equal parameters.

Rates are chosen by validation on other seeds than those that are tested, and the weights tested are those
with the best validation score, so that neither over-fitting nor a rate that suits one cell decides.
"""

from __future__ import annotations

import numpy as np

from jaxrnn.claims.claim import Claim, Lab, Source
from jaxrnn.claims.evidence import Check, Evidence, Sample
from jaxrnn.claims.panels import strip
from jaxrnn.claims.rules import Comparable, Part, Rule
from jaxrnn.claims.runs import at_best_rate, trained
from jaxrnn.experiments import PUBLISHED, NetworkConfig, RunConfig
from jaxrnn.training import FitConfig, FitResult

NATS = "nats a step on JSB chorales, test"
_MARGIN = 0.05  # a tenth of what lies between networks and the best published ones
# Shorter training asks for larger rates: at 800 steps the best one stood at the upper edge of the full grid.
_RATES = {"quick": (1e-2, 3e-2, 1e-1), "full": (1e-3, 3e-3, 1e-2, 3e-2)}
_CELLS = {"LSTM": "jsb-lstm", "GRU": "jsb-gru"}


@Claim(
    "gru-as-good",
    topic="Cost",
    statement="A GRU performs like an LSTM.",
    said_by=(Source("Vanishing", "a GRU performs like an LSTM at a lower cost"),),
    why="Its gates can keep a state as an LSTM's do.",
    measured="Negative log-likelihood a step on the JSB chorales at about equal parameters (Chung et al. "
    "2014), each cell at the rate that is best by validation on other seeds, with the weights that are best "
    "by validation.",
    rule=Rule((Part(NATS, Comparable(_MARGIN), ("cell", "LSTM")),)),
    refuted_by="Means that differ by more than 0.05 nats a step.",
    lessons={
        "confirmed": "On the chorales a GRU comes within {margin:.2f} nats of an LSTM: {gru:.2f} against "
        "{lstm:.2f}.",
        "refuted": "On the chorales a GRU does not perform like an LSTM of its size: {gru:.2f} nats a step "
        "against {lstm:.2f}.",
        "depends": "On the chorales a GRU comes to {gru:.2f} nats a step and an LSTM to {lstm:.2f}, but both "
        "still improve when training ends: the budget decides.",
        "undecided": "On the chorales a GRU comes to {gru:.2f} nats a step, an LSTM to {lstm:.2f}.",
    },
    published=("LSTM 8.67, GRU 8.54 (Chung et al. 2014); 8.45, 8.43 with 300K (Bai et al. 2018)",),
).measured_by
def gru_as_good(lab: Lab) -> Evidence:
    """Train both cells on the chorales."""
    samples, checks = [], []
    for name, experiment in _CELLS.items():
        run, inside = at_best_rate(lab, experiment, _run(lab, experiment), _RATES[lab.scale])
        result = trained(lab, experiment, run)
        checks += [inside, _budget(name, result)]
        samples.append(Sample(NATS, {"cell": name}, result.test_score, lab.seeds))
    means = {s.condition["cell"]: float(np.mean(s.values)) for s in samples}
    return Evidence(
        samples,
        checks,
        [strip(samples, "cell", "JSB chorales", {})],
        facts={"lstm": means["LSTM"], "gru": means["GRU"], "margin": _MARGIN},
        settings={
            "networks": f"LSTM of 36 and GRU of 46 units, Adam, {_steps(lab):,} steps of 8 chorales"
        },
    )


def _steps(lab: Lab) -> int:
    return lab.choose(300, 3_000)


def _run(lab: Lab, experiment: str) -> RunConfig:
    network: NetworkConfig = PUBLISHED[experiment].config.network
    fit = FitConfig(
        steps=_steps(lab),
        every=50,
        batch_size=8,
        schedule="constant",
        select="best",
        seeds=len(lab.seeds),
        seed=lab.seeds[0],
    )
    return RunConfig("jsb-chorales", network=network, fit=fit, probes=False)


def _budget(name: str, result: FitResult) -> Check:
    """Twice the steps change nothing where the best weights stand in the first half of training."""
    scores = np.array([row[f"valid_{result.metric}"] for row in result.history])
    best = np.nanargmin(scores, axis=0) / (len(scores) - 1)
    return Check(
        "budget",
        f"most {name}s are at their best in the first half of training",
        np.median(best) <= 0.5,
        f"the median {name} is at its best after {np.median(best):.0%} of training",
    )
