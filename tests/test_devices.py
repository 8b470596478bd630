"""The batch over several devices gives the numbers of one.

JAX counts its devices once a process, so what needs two of them runs in processes of its own.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import InputError, devices
from jaxrnn.cells import CELLS


def run_on_two_cores(program: str) -> str:
    head = """
        import jax, jax.numpy as jnp, numpy as np
        from flax import nnx
        import jaxrnn
        from jaxrnn import devices
        assert devices.use_cores(2) == 2
        jax.config.update("jax_enable_x64", True)
        cell = jaxrnn.make_cell("lstm", 3, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        xs = jax.random.normal(jax.random.key(0), (12, 4, 3), jnp.float64)
        lengths = jnp.array([12, 0, 5, 7])
        resets = jax.random.bernoulli(jax.random.key(1), 0.2, (12, 4))

        def close(a, b):
            jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-11, atol=1e-13), a, b)
    """
    source = textwrap.dedent(head) + textwrap.dedent(program)
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "methods",
    [
        "None, jaxrnn.Scan()",
        pytest.param(
            "jaxrnn.Remat(), jaxrnn.Truncated(5), jaxrnn.Newton()", marks=pytest.mark.slow
        ),
    ],
)
def test_values_and_gradients_are_those_of_one_device(methods):
    run_on_two_cores(f"""
        assert len(jax.devices()) == 2
        for method in ({methods}):
            def loss(cell, xs, lengths, resets):
                done = jaxrnn.unroll(cell, xs, seq_lengths=lengths, resets=resets, method=method)
                return jnp.mean(done.outputs**2) + jnp.mean(done.carry[0])

            whole = jax.value_and_grad(loss, argnums=(0, 1))
            split = devices.split_batch(
                jax.value_and_grad(loss), in_axes=(None, 1, 0, 1)
            )
            value, (by_cell, by_xs) = whole(cell, xs, lengths, resets)
            close(split(cell, xs, lengths, resets), (value, by_cell))
    """)


def test_results_with_a_batch_axis_are_put_together():
    run_on_two_cores("""
        def outputs(cell, xs):
            done = jaxrnn.unroll(cell, xs)
            return done.outputs, done.carry, jnp.sum(done.outputs)

        split = devices.split_batch(outputs, in_axes=(None, 1), out_axes=(1, 0, None))
        ys, carry, total = outputs(cell, xs)
        close(split(cell, xs), (ys, carry, total / 2))  # None is the mean over the devices
    """)


@pytest.mark.parametrize(
    "names",
    [("lstm", "mingru", "unitary"), pytest.param(tuple(CELLS), marks=pytest.mark.slow, id="all")],
)
def test_weights_that_all_devices_share_get_the_sum_of_their_gradients(names):
    """`jax.shard_map` by hand, without `split_batch`: JAX sums over what the devices share."""
    run_on_two_cores(f"""
        from jax.sharding import PartitionSpec as P
        mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

        def loss(cell, xs):
            return jnp.sum(jaxrnn.unroll(cell, xs).outputs ** 2)

        part = jax.shard_map(
            jax.grad(loss), mesh=mesh, in_specs=(P(), P(None, "data")), out_specs=P()
        )
        for name in {names}:
            cell = jaxrnn.make_cell(name, 3, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
            close(jax.jit(part)(cell, xs), jax.jit(jax.grad(loss))(cell, xs))
    """)


def test_arrays_that_lie_on_a_mesh_are_taken_by_jit():
    run_on_two_cores("""
        from jax.sharding import NamedSharding, PartitionSpec as P
        mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        spread = jax.device_put(xs, NamedSharding(mesh, P(None, "data")))

        @jax.jit
        def gradient(cell, xs):
            return jax.grad(lambda c: jnp.sum(jaxrnn.unroll(c, xs).outputs ** 2))(cell)

        close(gradient(cell, spread), gradient(cell, xs))
    """)


def loss(cell, xs):
    return jnp.mean(jaxrnn.unroll(cell, xs).outputs ** 2)


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    out = run_on_two_cores("""
        try:
            devices.split_batch(lambda xs: xs, in_axes=(1,), out_axes=1)(xs[:, :3])
        except jaxrnn.InputError as error:
            print(error)
    """)
    assert "argument 0: got float64[12, 3, 3]; expected a multiple of 2 devices" in out


def test_what_does_not_fit_is_refused_by_name():
    cell, xs = jaxrnn.GRUCell(3, 4, rngs=nnx.Rngs(0)), jnp.ones((5, 2, 3))
    with pytest.raises(InputError, match="in_axes: got 1 of them; expected 2"):
        devices.split_batch(loss, in_axes=(None,))(cell, xs)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("a", "b"))
    with pytest.raises(InputError, match="mesh"):
        devices.split_batch(loss, in_axes=(None, 1), mesh=mesh)
    with pytest.raises(InputError, match=r"in_axes: got .*counted from the front"):
        devices.split_batch(loss, in_axes=(None, -2))
    with pytest.raises(InputError, match="count: got 0"):
        devices.use_cores(0)


def test_cores_cannot_be_counted_again():
    jnp.ones(1).block_until_ready()
    with pytest.raises(InputError, match="use_cores: got a call too late"):
        devices.use_cores(2)
