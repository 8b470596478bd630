"""The classifier: its logits by hand, and sizes that match."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.cells import CELLS, count_parameters
from jaxrnn.models import SequenceClassifier, classifier_parameters, matched_width


def _classifier(name: str, hidden_features: int = 6) -> SequenceClassifier:
    rngs = nnx.Rngs(0)
    return SequenceClassifier(jaxrnn.make_cell(name, 2, hidden_features, rngs=rngs), 3, rngs=rngs)


@pytest.mark.parametrize("name", CELLS)
def test_logits_read_the_output_after_the_last_valid_step(name: str):
    model = _classifier(name)
    xs = jax.random.normal(jax.random.key(0), (7, 4, 2))
    lengths = [7, 3, 1, 0]
    logits = model(xs, seq_lengths=jnp.array(lengths))
    kernel, bias = model.readout.kernel, model.readout.bias
    assert kernel is not None
    assert bias is not None
    for b, length in enumerate(lengths):
        carry = model.cell.initialize_carry((2,))
        y = jnp.zeros(model.cell.out_features)
        for t in range(length):
            carry, y = model.cell(carry, xs[t, b])
        expected = np.asarray(y) @ np.asarray(kernel[...]) + np.asarray(bias[...])
        np.testing.assert_allclose(logits[b], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CELLS)
def test_parameter_counts_are_those_of_the_network(name: str):
    assert count_parameters(_classifier(name)) == classifier_parameters(CELLS[name], 2, 3, 6)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("parameters", [20, 1_000, 10_000])
def test_no_other_width_comes_nearer(name: str, parameters: int):
    found = matched_width(CELLS[name], 2, 3, parameters)
    distance = [
        abs(classifier_parameters(CELLS[name], 2, 3, h) - parameters) for h in range(1, 4000)
    ]
    assert distance[found - 1] == min(distance)
