"""What a subclass puts around its parts counts everywhere, and a part that breaks its promise is noticed."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import analysis, contract
from jaxrnn.analysis._gated_mean_field import gated_mean_field
from jaxrnn.analysis._jacobians import factored_jacobians
from jaxrnn.analysis._spectrum import weight_spectrum
from jaxrnn.cells import CELLS
from jaxrnn.checks import InputError
from jaxrnn.typing import SplitCell

T, B, F, H = 12, 3, 4, 5


class Clipped(jaxrnn.GRUCell):
    """Its `step` clips h."""

    def step(self, carry, x):
        h, _ = super().step(carry, x)
        h = jnp.clip(h, -0.1, 0.1)
        return h, h


class FarClipped(jaxrnn.ElmanCell):
    """Its `step` clips where no state near zero is seen to be clipped."""

    def step(self, carry, x):
        h, _ = super().step(50 * carry, x)
        return jnp.clip(h, -0.999, 0.999), h


class Leaky(jaxrnn.LSTMCell):
    """Its ``__call__`` keeps a part of the old carry; the output is not a leaf of the new one."""

    def __call__(self, carry, x):  # pyright: ignore[reportIncompatibleMethodOverride]
        moved, y = super().__call__(carry, x)
        mixed = jax.tree.map(lambda old, new: 0.3 * old + 0.7 * new, carry, moved)
        return mixed, y


class Doubled(jaxrnn.ElmanCell):
    """Its `step` hands another input on."""

    def step(self, carry, x):
        return super().step(carry, 2 * x)


@jax.custom_jvp
def same(h):
    return h


@same.defjvp
def _(primals, tangents):
    return primals[0], 0.5 * tangents[0]


class HalfGradient(jaxrnn.ElmanCell):
    """Its `step` changes no number, only the derivative."""

    def step(self, carry, x):
        h, y = super().step(carry, x)
        return same(h), y


AROUND = [Clipped, FarClipped, Leaky, Doubled, HalfGradient]


def layer_norm(h):
    return (h - h.mean(axis=-1, keepdims=True)) / jnp.sqrt(h.var(axis=-1, keepdims=True) + 1e-3)


class NormInMix(jaxrnn.GRUCell):
    def mix(self, carry):
        return layer_norm(carry) @ self.recurrent_kernel[...]


class ClipInMix(jaxrnn.ElmanCell):
    def mix(self, carry):
        return jnp.clip(carry, -0.5, 0.5) @ self.recurrent_kernel[...]


class StraightThroughMix(jaxrnn.ElmanCell):
    """The derivative of its `mix` is the same everywhere, its value is not affine."""

    def mix(self, carry):
        rounded = carry + jax.lax.stop_gradient(jnp.sign(carry) - carry)
        return rounded @ self.recurrent_kernel[...]


class NormInUpdate(jaxrnn.ElmanCell):
    def update(self, carry, drive, pull):
        return jnp.tanh(layer_norm(drive + pull))


class RollInUpdate(jaxrnn.LSTMCell):
    def update(self, carry, drive, pull):
        c, h = super().update(carry, drive, pull)
        return jnp.roll(c, 1, axis=-1), h


class FlippedUpdate(jaxrnn.ElmanCell):
    def update(self, carry, drive, pull):
        return jnp.tanh(drive + pull)[..., ::-1]


BROKEN = [
    NormInMix,
    ClipInMix,
    StraightThroughMix,
    NormInUpdate,
    RollInUpdate,
    FlippedUpdate,
]


def setting(kind, seed=0):
    """A cell with large weights, inputs and a carry that is not zero."""
    cell = kind(F, H, rngs=nnx.Rngs(seed))
    cell = jax.tree.map(lambda leaf: 1.5 * leaf, cell)
    xs = jax.random.normal(jax.random.key(seed), (T, B, F))
    carry = jax.tree.map(
        lambda leaf: 0.3 * jax.random.normal(jax.random.key(seed + 1), leaf.shape),
        cell.initialize_carry((B, F)),
    )
    return cell, xs, carry


def by_scan(cell, xs, carry):
    """All carries and outputs of a plain loop."""

    def step(carry, x):
        moved, y = cell(carry, x)
        return moved, (moved, y)

    return jax.lax.scan(step, carry, xs)[1]


def true_jacobians(cell, xs, carry):
    """Step Jacobians [T, B, S, S] by autodiff of the whole step, one sequence at a time."""
    carries, _ = by_scan(cell, xs, carry)
    before = jax.tree.map(
        lambda first, rest: jnp.concatenate([first[None], rest[:-1]]), carry, carries
    )

    def flat(carry):
        return jnp.concatenate(jax.tree.leaves(carry), axis=-1)

    def one(carry, x):
        slopes = jax.jacfwd(lambda carry: flat(cell(carry, x)[0]))(carry)
        return jnp.concatenate(jax.tree.leaves(slopes), axis=-1)

    return jax.vmap(jax.vmap(one))(before, xs)


@pytest.fixture(autouse=True)
def _broken_promises_are_told_elsewhere():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", contract.SplitWarning)
        yield


def close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), found, expected
    )


METHODS = [
    (Clipped, jaxrnn.Remat()),
    (Clipped, jaxrnn.Newton()),
    *((kind, None) for kind in AROUND),
]


@pytest.mark.parametrize(("kind", "method"), METHODS, ids=str)
def test_unroll_takes_the_whole_step(kind, method):
    cell, xs, carry = setting(kind)
    carries, outputs = by_scan(cell, xs, carry)
    done = jaxrnn.unroll(cell, xs, carry=carry, method=method)
    close((done.carries, done.outputs), (carries, outputs))

    def loss(run):
        return jax.grad(lambda cell: (run(cell) ** 2).mean())(cell)

    found = loss(lambda cell: jaxrnn.unroll(cell, xs, carry=carry, method=method).outputs)
    close(found, loss(lambda cell: by_scan(cell, xs, carry)[1]))


@pytest.mark.parametrize("kind", [*AROUND, *BROKEN])
def test_jacobians_are_those_of_the_step(kind):
    cell, xs, carry = setting(kind)
    path = analysis.trace(cell, xs, carry=carry)
    expected = true_jacobians(cell, xs, carry)
    close(analysis.jacobians(cell, path), expected)


@pytest.mark.parametrize("kind", [*AROUND, *BROKEN])
def test_exponents_are_those_of_the_step(kind):
    """Held against QR in NumPy of Jacobians by autodiff, from the same first directions."""
    cell, xs, carry = setting(kind)
    matrices = np.asarray(true_jacobians(cell, xs, carry)[:, 0], np.float64)
    size, key = matrices.shape[-1], jax.random.key(7)
    q = np.linalg.qr(np.asarray(jax.random.normal(key, (size, 2)), np.float64))[0]
    logs = np.zeros(2)
    for matrix in matrices:
        q, r = np.linalg.qr(matrix @ q)
        with np.errstate(divide="ignore"):
            logs += np.log(np.abs(np.diag(r)))
    first = jax.tree.map(lambda leaf: leaf[0], carry)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", analysis.PrecisionWarning)  # clipped steps are singular
        found = analysis.lyapunov(cell, xs[:, 0], carry=first, k=2, key=key)
    # Rounding of 12 steps of a few units, in float32; a singular step has no exponent but −inf.
    np.testing.assert_allclose(found.exponents, -np.sort(-logs / T), atol=1e-4)


@pytest.mark.parametrize("kind", AROUND)
def test_gradient_flow_is_that_of_the_step(kind):
    cell, xs, carry = setting(kind)
    carries, _ = by_scan(cell, xs, carry)
    late = jax.tree.map(lambda leaf: leaf[0], carries)

    def loss(carry):
        return by_scan(cell, xs[1:], carry)[1][-1].sum()

    gradient = jax.tree.leaves(jax.grad(loss)(late))
    norms = np.sqrt(sum(np.sum(np.square(g), axis=-1) for g in gradient))
    flow = analysis.gradient_flow(cell, xs, lambda y: y[-1].sum(), carry=carry)
    np.testing.assert_allclose(np.exp(flow.log_norms[0]), norms, rtol=1e-4, atol=1e-7)


def test_recurrent_dropout_and_zoneout_take_the_whole_step():
    cell, xs, _ = setting(Clipped)
    for variational in (True, False):
        layer = jaxrnn.RNN(cell, recurrent_dropout=0.5, variational=variational, time_major=True)
        outputs = layer(xs, dropout_key=jax.random.key(0))
        assert jnp.abs(outputs).max() <= jnp.float32(0.1)
        kept = jaxrnn.RNN(cell, time_major=True)(xs)
        assert not np.allclose(outputs, kept)
        np.testing.assert_allclose(layer(xs), kept, rtol=1e-5)  # evaluation drops nothing
    layer = jaxrnn.RNN(cell, zoneout=0.3, time_major=True)
    state, expected = jnp.zeros((B, H)), []
    for x in xs:
        state = 0.3 * state + 0.7 * cell(state, x)[0]
        expected.append(state)
    np.testing.assert_allclose(layer(xs), jnp.stack(expected), atol=1e-6)


def test_dropout_refuses_what_its_step_has_no_place_for():
    class NoMix(jaxrnn.ElmanCell):
        def step(self, carry, x):
            h = jnp.tanh(self.project(x) + carry)
            return h, h

    xs = jnp.ones((T, B, F))
    layer = jaxrnn.RNN(NoMix(F, H, rngs=nnx.Rngs(0)), recurrent_dropout=0.5, time_major=True)
    with pytest.raises(InputError, match="whose step does not call mix"):
        layer(xs, dropout_key=jax.random.key(0))
    layer = jaxrnn.RNN(Leaky(F, H, rngs=nnx.Rngs(0)), zoneout=0.5, time_major=True)
    with pytest.raises(InputError, match="whose output is no part of its carry"):
        layer(xs)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_promise_is_said_once(kind):
    contract._say_once.cache_clear()
    cell, xs, carry = setting(kind)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = analysis.trace(cell, xs, carry=carry)
        for _ in range(2):
            analysis.jacobians(cell, path)
            analysis.lyapunov(cell, xs, carry=carry, k=1)
    (told,) = [w for w in caught if w.category is contract.SplitWarning]
    assert kind.__name__ in str(told.message)


@pytest.mark.parametrize("kind", [*AROUND, *BROKEN])
def test_what_needs_a_split_cell_refuses_others(kind):
    cell, xs, carry = setting(kind)
    path = analysis.trace(cell, xs, carry=carry)
    with pytest.raises(InputError, match=f"a {kind.__name__}, which"):
        factored_jacobians(cell, path)
    gates = jnp.ones(cell.bias.shape[0] // H)
    with pytest.raises(InputError, match=f"a {kind.__name__}, which"):
        gated_mean_field(
            cell, gates, drive_mean=gates, drive_variance=gates, key=jax.random.key(0), units=10
        )
    if "Mix" in kind.__name__:
        with pytest.raises(InputError, match="mix is not affine"):
            weight_spectrum(cell)


def is_split_class(cell: Any) -> bool:
    return isinstance(cell, SplitCell)


@pytest.mark.parametrize("name", CELLS)
def test_our_own_cells_keep_their_promises(name):
    """In every transformation, and with derived weights as parameters or prepared."""
    cell = CELLS[name].make(
        F, H + 1, rngs=nnx.Rngs(0)
    )  # an even number of units, which some ask for
    if not is_split_class(cell):
        return
    x = jnp.ones((B, F), cell.dtype)
    carry = cell.initialize_carry(x.shape)
    assert contract.obstacle(cell, carry, x) == ""
    answers = []
    jax.jit(lambda cell: answers.append(contract.is_split(cell, carry, x)))(cell)
    jax.vmap(lambda x: answers.append(contract.is_split(cell, cell.initialize_carry((F,)), x)))(x)
    assert answers == [True, True]


def test_a_foreign_split_cell_in_any_order_of_its_parts():
    class Plain:
        """No pytree: its weights are its own affair."""

        weights = jnp.eye(H)[::-1]

        def project(self, x):
            return jnp.concatenate([x, x[..., :1]], axis=-1)

        def mix(self, h):
            return jnp.einsum("...i,ij->...j", h, self.weights)

        def update(self, h, drive, pull):
            gates = jnp.stack([drive, pull], axis=-2)  # [*B, 2, H]
            return jnp.tanh(gates.sum(axis=-2)) * jax.nn.relu(1 - h)

        def readout(self, h):
            return 2 * h

        def __call__(self, h, x):
            pull, drive = self.mix(h), self.project(x)
            h = self.update(h, drive, pull)
            return h, self.readout(h)

    class More(Plain):
        def __call__(self, h, x):
            h, y = super().__call__(h, x)
            return h, y + 1

    x, h = jnp.ones((B, F)), jnp.ones((B, H))
    assert contract.is_split(Plain(), h, x)
    assert not contract.parts_make_step(More(), h, x)
