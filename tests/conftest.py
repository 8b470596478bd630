"""Strict numerics for every test, and the two precisions in which a claim is tested."""

from __future__ import annotations

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def x64():
    """Run the test with float64 switched on."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Run the test once in each precision."""
    with jax.enable_x64(request.param == "float64"):
        yield jnp.dtype(request.param)


_TESTS = itertools.count(1)
_MAPS = Path("/proc/self/maps")
_MOST_MAPS = 20_000  # of the 65,530 that Linux allows by default


@pytest.fixture(autouse=True)
def few_programs():
    """Forget what was compiled before it is too much: each program takes a few of the memory maps."""
    yield
    if next(_TESTS) % 20 == 0 and _maps() > _MOST_MAPS:
        jax.clear_caches()


def _maps() -> int:
    """Return how many there are, where a file tells."""
    return _MAPS.read_bytes().count(b"\n") if _MAPS.exists() else 0


_QUICK_IN_FLOAT64 = (
    "test_baselines.py",
    "test_cells_against_others.py",
    "test_cells_protocol.py",
    "test_cells_theory.py",
    "test_derived_weights.py",
    "test_encoder_decoder.py",
    "test_encoders.py",
    "test_hierarchical.py",
    "test_jacobians.py",
    "test_language_model.py",
    "test_multi_dimensional.py",
    "test_transformer.py",
)


_QUICK_NOTEBOOK = "01_where_gradients_go.ipynb"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Count among the slow tests all notebooks but one, and what is run once more in float32."""
    for item in items:
        _, _, parameters = item.name.partition("[")
        again = item.path.name in _QUICK_IN_FLOAT64 and "float32" in parameters
        if again or (item.path.suffix == ".ipynb" and item.path.name != _QUICK_NOTEBOOK):
            item.add_marker(pytest.mark.slow)
