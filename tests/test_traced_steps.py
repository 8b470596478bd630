"""`Blocked` on steps of every kind: what it reads in their traced programs must be all there is.

`Scan` is the reference, held to outside oracles in `test_unroll.py`.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import Blocked, Remat, Scan, unroll
from jaxrnn.jaxprs import flat
from jaxrnn.unrolling.dataflow import Kind, StepProgram

F, H, T, B = 3, 4, 7, 2


def program_of(step, carry, x):
    """Return the sorted equations of a step, and the arrays that it closes over."""
    read, _ = flat(step, carry, x)
    return StepProgram(read, len(jax.tree.leaves(carry))), read.constants


def shapes(program, variables):
    return [program.avals[v].shape for v in variables]


METHODS = [Blocked(3, keep_signals=False), Blocked(4, keep_signals=True)]
LENGTHS = np.array([0, 5])


def draw(*shape, seed=0):
    return jnp.asarray(0.7 * np.random.default_rng(seed).normal(size=shape))


W = {
    "input": draw(F, H, seed=1),
    "past": draw(H, H, seed=2),
    "other": draw(H, H, seed=3),
    "bias": draw(H, seed=4),
}


def in_two_products(w, h, x):
    """The second product waits for the first, as in a GRU that resets before it."""
    gate = jax.nn.sigmoid(x @ w["input"] + h @ w["past"])
    h = jnp.tanh(x @ w["input"] + (gate * h) @ w["other"] + everywhere(w["bias"], h))
    return h, h


def everywhere(vector, like):
    return jnp.broadcast_to(vector, like.shape)


def with_programs_inside(w, h, x):
    """Compiled functions, one called twice and with numbers as arguments."""

    @jax.jit
    def gate(z, low):
        return jnp.clip(jax.nn.sigmoid(z @ w["past"]), low, 0.9)

    h = gate(h, 0.1) * h + gate(jnp.tanh(h), 0.2) * (x @ w["input"])
    return h, h


def with_an_output_of_its_own(w, h, x):
    h = jnp.tanh(h @ w["past"] + x @ w["input"])
    return h, {"doubled": 2 * h, "read": h @ w["other"] + w["bias"][None]}


def that_reads_weights_by_entries(w, h, x):
    """A weight that is multiplied by, and one that scales; the bias twice."""
    scale = everywhere(jnp.exp(w["bias"]), h)
    h = jnp.tanh(scale * h + h @ w["past"] + x @ w["input"] + everywhere(w["bias"], h))
    return h, h


def from_the_left(w, h, x):
    """As one writes it for a single sequence: W h."""
    h = jax.vmap(lambda h, x: jnp.tanh(w["past"] @ h + w["input"].T @ x))(h, x)
    return h, h


def that_mixes_rows(w, h, x):
    """A weight from the left of a matrix, and one from its right: the rows hear each other."""
    mixing = w["bias"][:B, None] * w["bias"][None, 1 : B + 1]
    h = jnp.tanh(mixing @ (h @ w["past"]) + mixing @ h + x @ w["input"])
    return h, h


def with_complex_numbers(w, h, x):
    turned = jax.lax.complex(x @ w["input"], x @ w["input"]) * jax.lax.complex(h, jnp.ones_like(h))
    h = jnp.tanh(h @ w["past"] + jnp.real(turned))
    return h, h


def with_a_loop_and_a_branch(w, h, x):
    h, _ = jax.lax.scan(lambda h, _: (jnp.tanh(h @ w["other"]), None), h, None, length=2)
    h = jax.lax.cond(h.sum() > 0, lambda h: h @ w["past"], lambda h: -h, h)
    h = h + x @ w["input"]
    return h, h


def with_indices(w, h, x):
    h = jnp.tanh((h @ w["past"])[:, np.array([2, 0, 1, 3])] + (x @ w["input"])[:, ::-1])
    return h, jnp.where(x[:, :1] > 0, h, 0)


def with_products_moved(w, h, x):
    """By heads: what the products give is moved about before it is added."""
    blocks = w["past"].reshape(2, 2, 4)[..., :2]
    by_head = jnp.moveaxis(jnp.moveaxis(h.reshape(-1, 2, 2), 1, 0) @ blocks, 0, 1)
    h = jnp.tanh(by_head.reshape(h.shape) + x @ w["input"] + everywhere(w["bias"], h))
    return h, h


def with_a_product_of_weights(w, h, x):
    """What is computed from weights alone is computed once; its derivative too."""
    past = jax.scipy.linalg.expm(w["past"] - w["past"].T)
    h = jnp.tanh(h @ past + x @ (w["input"] @ w["other"]))
    return h, h


def with_an_input_that_is_spread(w, h, x):
    """One feature times a row: more numbers than were there, left to the loop."""
    h = jnp.tanh(x[:, :1] * everywhere(w["bias"], h) + h @ w["past"])
    return h, h + x[:, :1]


def with_an_empty_piece(w, h, x):
    z = jnp.concatenate([jnp.tanh(h @ w["past"]), x @ w["input"]], axis=-1)
    a, b, _ = jnp.split(z, [H, 2 * H], axis=-1)
    return a + b, a


def with_constants_to_split(w, h, x):
    flags = jnp.concatenate([np.arange(4 * B).reshape(B, 4), (h > 0).astype(int)], axis=-1)
    a, _, b = jnp.split(flags, [2, 4], axis=-1)
    h = jnp.tanh(h @ w["past"] + x @ w["input"]) * (1 + a.sum() + b).astype(h.dtype) / 10
    return h, h


def whose_output_mixes_rows(w, h, x):
    """Called with the whole batch, as it reads a second axis: what is padding must not reach other rows."""
    h = jnp.tanh(h @ w["past"] + x @ w["input"] + everywhere(w["bias"], h))
    _ = h.shape[1]
    return h, h - h.mean(0, keepdims=True)


def whose_output_is_singular_at_zero(w, h, x):
    h = jnp.tanh(h @ w["past"] + x @ w["input"] + everywhere(w["bias"], h))
    return h, h / jnp.linalg.norm(h, axis=-1, keepdims=True)


def whose_sum_is_read_twice(w, h, x):
    z = h @ w["past"] + x @ w["input"]
    h = jnp.tanh(z) + 0.1 * jnp.sin(z @ w["other"])
    return h, z


STEPS = [
    in_two_products,
    with_programs_inside,
    with_an_output_of_its_own,
    that_reads_weights_by_entries,
    that_mixes_rows,
    with_products_moved,
    with_complex_numbers,
    with_an_empty_piece,
    with_constants_to_split,
    whose_output_mixes_rows,
    whose_sum_is_read_twice,
    *(
        pytest.param(step, marks=pytest.mark.slow)
        for step in (
            from_the_left,
            with_a_loop_and_a_branch,
            with_indices,
            with_a_product_of_weights,
            with_an_input_that_is_spread,
        )
    ),
]


@functools.partial(jax.jit, static_argnames=("step", "method"))
def loss_and_gradients(step, w, xs, h, method, **options):
    def loss(w, xs, h):
        done = unroll(functools.partial(step, w), xs, carry=h, method=method, **options)
        outputs = jax.tree.leaves(done.outputs)
        return sum(jnp.sum(jnp.sin(y)) for y in outputs) + jnp.sum(done.carries**2), done.outputs

    return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(w, xs, h)


def assert_close(actual, expected, tolerance=1e-10):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        actual,
        expected,
    )


@pytest.mark.parametrize("step", STEPS)
def test_any_step_gives_what_scan_gives(step, x64):
    w = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), W)
    xs, h = draw(T, B, F, seed=5).astype(jnp.float64), draw(B, H, seed=6).astype(jnp.float64)
    options = {"seq_lengths": LENGTHS, "resets": np.arange(T)[:, None] == np.array([2, 3])}
    expected = loss_and_gradients(step, w, xs, h, Scan(), **options)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected[1])) > 1e-3
    for method in (*METHODS, Remat()):
        assert_close(loss_and_gradients(step, w, xs, h, method, **options), expected)


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_number_of_batch_axes(batch, x64):
    cell = nnx.GRUCell(F, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    xs = draw(T, *batch, F, seed=1).astype(jnp.float64)

    def gradients(method):
        state = nnx.state(cell, nnx.Param)
        graph, _, rest = nnx.split(cell, nnx.Param, ...)

        def loss(state, xs):
            whole = nnx.merge(graph, state, rest)
            return jnp.sum(unroll(whole, xs, method=method).outputs ** 2)

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(state, xs)

    assert_close(gradients(Blocked(3)), gradients(Scan()))


FLAX = [nnx.SimpleCell, nnx.GRUCell, nnx.LSTMCell, nnx.OptimizedLSTMCell]


@pytest.mark.parametrize("make", FLAX)
def test_what_gates_read_of_flax_cells_is_what_is_kept(make):
    cell = make(F, H, rngs=nnx.Rngs(0))
    carry = cell.initialize_carry((B, F), nnx.Rngs(0))
    program, _ = program_of(cell, carry, jnp.ones((B, F)))
    products = {nnx.SimpleCell: 1, nnx.GRUCell: 1, nnx.LSTMCell: 4, nnx.OptimizedLSTMCell: 1}[make]
    assert len(program.products) == products
    # A GRU multiplies one of its gates by part of the past's product alone: four arrays, not three.
    gates = {nnx.SimpleCell: 1}.get(make, 4)
    assert sum(shape[-1] for shape in shapes(program, program.kept)) == gates * H
    assert program.reads_carry_alone


def test_an_output_is_not_computed_from_a_carry_that_padding_holds(x64):
    w = jax.tree.map(lambda a: a.astype(jnp.float64), W)
    xs, h = draw(T, B, F, seed=5).astype(jnp.float64), jnp.zeros((B, H), jnp.float64)
    run = functools.partial(loss_and_gradients, whose_output_is_singular_at_zero, w, xs, h)
    for method in METHODS:
        assert_close(run(method, seq_lengths=LENGTHS), run(Scan(), seq_lengths=LENGTHS))


def test_a_linen_cell_too(x64):
    cell = nn.GRUCell(H, param_dtype=jnp.float64)
    xs = draw(T, B, F, seed=1).astype(jnp.float64)
    h = jnp.zeros((B, H))
    weights = cell.init(jax.random.key(0), h, xs[0])

    def gradient(method):
        def loss(weights):
            step = functools.partial(cell.apply, weights)
            return jnp.sum(unroll(step, xs, carry=h, method=method).outputs ** 2)

        return jax.grad(loss)(weights)

    assert_close(gradient(None), gradient(Scan()))
    step = functools.partial(cell.apply, weights)
    assert isinstance(unroll(step, xs, carry=h).method, Blocked)


def test_it_has_second_derivatives_by_forward_and_by_reverse_over_reverse(x64):
    w = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), W)
    xs, h = draw(T, B, F, seed=5).astype(jnp.float64), draw(B, H, seed=6).astype(jnp.float64)

    def loss(bias, method):
        step = functools.partial(in_two_products, {**w, "bias": bias})
        return jnp.sum(unroll(step, xs, carry=h, method=method).outputs ** 2)

    expected = jax.hessian(loss)(w["bias"], Scan())
    assert_close(jax.hessian(loss)(w["bias"], Blocked(3)), expected)
    assert_close(jax.jacrev(jax.grad(loss))(w["bias"], Blocked(3)), expected)


@pytest.mark.parametrize(
    "by", ["xs", "past", *(pytest.param(n, marks=pytest.mark.slow) for n in ("input", "bias", "h"))]
)
def test_a_gradient_by_one_array_has_derivatives_by_all(by, x64):
    """As in a penalty on a gradient: what the gradient holds constant, its derivative does not."""
    arrays = {**W, "xs": draw(T, B, F, seed=5), "h": draw(B, H, seed=6)}
    arrays = jax.tree.map(lambda a: a.astype(jnp.float64), arrays)

    def loss(arrays, method):
        step = functools.partial(that_reads_weights_by_entries, arrays)
        return jnp.sum(unroll(step, arrays["xs"], carry=arrays["h"], method=method).outputs ** 2)

    @functools.partial(jax.jit, static_argnames="method")
    @jax.grad
    def derivatives(arrays, method):
        found = jax.grad(lambda one: loss({**arrays, by: one}, method))(arrays[by])
        return jnp.sum(found**2)

    for method in METHODS:
        assert_close(derivatives(arrays, method=method), derivatives(arrays, method=Scan()), 1e-9)


@pytest.mark.parametrize("make", [nnx.GRUCell, jaxrnn.LSTMCell])
def test_a_penalty_on_the_gradient_by_the_inputs(make, x64):
    cell = make(F, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    graph, weights, rest = nnx.split(cell, nnx.Param, ...)
    xs = draw(T, B, F, seed=5).astype(jnp.float64)

    @functools.partial(jax.jit, static_argnames="method")
    @jax.grad
    def slopes(weights, method):
        whole = nnx.merge(graph, weights, rest)
        loss = lambda xs: jnp.sum(unroll(whole, xs, method=method).outputs ** 2)  # noqa: E731
        return jnp.sum(jax.grad(loss)(xs) ** 2)

    assert_close(slopes(weights, method=None), slopes(weights, method=Scan()))


def test_an_ensemble_differentiates_under_vmap(x64):
    pair = jax.tree.map(lambda a: jnp.stack([a, 0.5 * a]).astype(jnp.float64), W)
    xs, h = draw(T, B, F, seed=5).astype(jnp.float64), draw(B, H, seed=6).astype(jnp.float64)

    def gradients(method):
        one = lambda w: loss_and_gradients(in_two_products, w, xs, h, method)  # noqa: E731
        return jax.vmap(one)(pair)

    assert_close(gradients(Blocked(3)), gradients(Scan()))


def test_it_works_in_bfloat16():
    w = jax.tree.map(lambda a: a.astype(jnp.bfloat16), W)
    xs, h = draw(T, B, F, seed=5).astype(jnp.bfloat16), draw(B, H, seed=6).astype(jnp.bfloat16)
    actual = loss_and_gradients(in_two_products, w, xs, h, Blocked(3))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(actual))
    as_floats = functools.partial(jax.tree.map, lambda a: np.asarray(a, np.float32))
    expected = loss_and_gradients(in_two_products, w, xs, h, Scan())
    assert_close(as_floats(actual), as_floats(expected), 0.1)


def test_padding_changes_neither_values_nor_gradients():
    xs, h = draw(T, B, F, seed=5), draw(B, H, seed=6)
    valid = np.arange(T)[:, None] < LENGTHS
    spoilt = jnp.where(valid[..., None], xs, jnp.nan)
    run = functools.partial(loss_and_gradients, in_two_products, W, seq_lengths=LENGTHS)
    for method in METHODS:
        clean, dirty = run(xs, h, method), run(spoilt, h, method)
        jax.tree.map(np.testing.assert_array_equal, dirty, clean)


def test_weights_in_a_compiled_step_are_weights(x64):
    """`jax.jit` hides what a function closes over: the arrays stand in the program within the program."""
    w = jax.tree.map(lambda a: a.astype(jnp.float64), W)
    step = jax.jit(functools.partial(in_two_products, w))
    xs, h = draw(T, B, F, seed=5).astype(jnp.float64), draw(B, H, seed=6).astype(jnp.float64)
    _, closed_over = program_of(step, h, xs[0])
    assert {id(a) for a in closed_over} <= {id(a) for a in w.values()}

    def gradient(method):
        loss = lambda xs: jnp.sum(unroll(step, xs, carry=h, method=method).outputs ** 2)  # noqa: E731
        return jax.grad(loss)(xs)

    assert isinstance(unroll(step, xs, carry=h).method, Blocked)
    assert_close(gradient(None), gradient(Scan()))


def test_a_step_that_prints_is_scanned(capfd):
    def talkative(h, x):
        jax.debug.print("at work")
        return in_two_products(W, h, x)

    done = unroll(talkative, jnp.ones((2, B, F)), carry=jnp.zeros((B, H)))
    jax.effects_barrier()
    assert done.method == Scan()
    assert capfd.readouterr().out.count("at work") == 2


@pytest.mark.parametrize(
    ("step", "xs", "carry"),
    [
        (lambda h, x: (h @ W["past"], x), jnp.ones((T, B), jnp.int32), jnp.zeros((B, H))),
        (lambda h, x: ((h[0] @ W["past"], h[1] + 1), x), jnp.ones((T, B)), "counting"),
        (lambda h, x: (jnp.tanh(h) + x, h), jnp.ones((T, B, H)), jnp.zeros((B, H))),
        (lambda h, x: (h @ W["past"], (h > 0)), jnp.ones((T, B)), jnp.zeros((B, H))),
        (lambda h, x: (h @ W["past"], h), (), jnp.zeros((B, H))),
    ],
    ids=["whole numbers read", "whole numbers carried", "no weights", "booleans given", "no input"],
)
def test_what_cannot_be_taken_apart_is_scanned(step, xs, carry):
    if isinstance(carry, str):
        carry = (jnp.zeros((B, H)), jnp.zeros((), jnp.int32))
    assert unroll(step, xs, carry=carry, length=T).method == Scan()


def test_the_kinds_of_a_program():
    step = functools.partial(in_two_products, W)
    program, _ = program_of(step, jnp.ones((B, H)), jnp.ones((B, F)))
    assert [program.kind(v) for v in (*program.carry, *program.x)] == [Kind.LOOP, Kind.INPUT]
    assert {program.kind(v) for v in program.weights} == {Kind.WEIGHT}
    assert len(program.products) == 2  # the input's two products stand outside of the loop
    assert shapes(program, program.drives) == [(B, H)] * 2
    assert shapes(program, program.kept) == [(B, H)] * 2


def test_a_split_of_a_concatenation_is_undone():
    """A constant beside a product is then no part of what depends on the carry."""

    def step(h, x):
        beside = jnp.concatenate([h @ W["past"], everywhere(W["bias"], h)], axis=-1)
        a, b, scale = jnp.split(beside, [1, H], axis=-1)
        h = jnp.tanh(scale * (jnp.concatenate([b, a], axis=-1) + x @ W["input"]))
        return h, h

    program, _ = program_of(step, jnp.ones((B, H)), jnp.ones((B, F)))
    assert shapes(program, program.kept) == [(B, H)]
    xs, h = draw(T, B, F, seed=5), draw(B, H, seed=6)
    done, expected = (unroll(step, xs, carry=h, method=m) for m in (Blocked(3), Scan()))
    assert_close(done.outputs, expected.outputs, 1e-6)


def test_in_the_loop_back_no_weight_gets_a_gradient():
    """The gradients by weights are products behind the loop."""
    cell = nnx.OptimizedLSTMCell(16, 32, rngs=nnx.Rngs(0))
    graph, weights, rest = nnx.split(cell, nnx.Param, ...)
    xs = jnp.ones((64, 8, 16))

    def loss(weights, method):
        whole = nnx.merge(graph, weights, rest)
        return jnp.sum(unroll(whole, xs, method=method).outputs ** 2)

    def weights_made(method):
        program = jax.make_jaxpr(jax.grad(functools.partial(loss, method=method)))(weights)
        shapes = set(_shapes_of_products(program.jaxpr, in_loop=False))
        return {shape for shape in shapes if sorted(shape) in ([32, 128], [16, 128])}

    assert weights_made(Scan())
    assert not weights_made(Blocked())


def _shapes_of_products(program, *, in_loop):
    """Yield the shapes of all matrix products within loops."""
    for eqn in program.eqns:
        if in_loop and eqn.primitive.name == "dot_general":
            yield eqn.outvars[0].aval.shape
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _shapes_of_products(
                    inner, in_loop=in_loop or eqn.primitive.name == "scan"
                )


def test_a_flax_cell_needs_less_memory_than_in_nnx_rnn():
    cell = nnx.OptimizedLSTMCell(32, 32, rngs=nnx.Rngs(0))
    graph, weights, rest = nnx.split(cell, nnx.Param, ...)
    xs = jax.ShapeDtypeStruct((16_384, 8, 32), jnp.float32)

    def temporaries(outputs):
        def loss(weights, xs):
            return jnp.sum(outputs(nnx.merge(graph, weights, rest), xs))

        compiled = jax.jit(jax.grad(loss)).lower(weights, xs).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    ours = temporaries(lambda cell, xs: unroll(cell, xs).carry[1])
    theirs = temporaries(
        lambda cell, xs: nnx.RNN(cell, time_major=True, return_carry=True)(xs)[0][1]
    )
    assert ours < theirs / 2


@pytest.mark.parametrize("weight", ["past", "other", "bias"])
def test_forward_mode_by_what_a_function_closes_over(weight, x64):
    """Whether a weight reaches the loop as it is, transposed, or as a bias for every row."""
    w = jax.tree.map(lambda a: a.astype(jnp.float64), W)
    xs, h = draw(T, B, F, seed=5).astype(jnp.float64), draw(B, H, seed=6).astype(jnp.float64)

    def outputs(changed, method):
        step = functools.partial(with_a_weight_transposed, {**w, weight: changed})
        return unroll(step, xs, carry=h, method=method).outputs

    def derivatives(method):
        run = functools.partial(outputs, method=method)
        value, push = jax.linearize(run, w[weight])
        return jax.jacfwd(run)(w[weight]), value, push(w[weight])

    for method in METHODS:
        assert_close(derivatives(method), derivatives(Scan()))


def with_a_weight_transposed(w, h, x):
    h = jnp.tanh(h @ w["past"] + h @ w["other"].T + x @ w["input"] + everywhere(w["bias"], h))
    return h, h


def that_spikes(w, constant, h, x):
    """Spikes at a threshold, and a derivative by hand in their stead, which knows none by the threshold."""

    @jax.custom_vjp
    def spike(voltage):
        return (voltage > constant).astype(voltage.dtype)

    def slope(voltage, cotangent):
        return (cotangent / (1 + jnp.abs(voltage - constant)) ** 2,)

    spike.defvjp(lambda voltage: (spike(voltage), voltage), slope)
    voltage = 0.9 * h + h @ w["past"] + x @ w["input"]
    return voltage - spike(voltage), spike(voltage)


def that_loops_over_a_constant(w, constant, h, x):
    """A loop of open length has no reverse mode."""
    _, scale = jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] / 2), (0, constant))
    h = jnp.tanh(scale * (h @ w["past"]) + x @ w["input"])
    return h, h


def that_loops_over_its_input(w, constant, h, x):
    begin = (0, constant + x.sum(-1, keepdims=True))
    _, scale = jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] / 2), begin)
    h = jnp.tanh(scale * (h @ w["past"]) + x @ w["input"])
    return h, h


def that_loops_over_what_it_carries(w, constant, carry, x):
    """A clock, which no weight reaches."""
    h, clock = carry
    h, _ = that_loops_over_a_constant(w, clock + constant, h, x)
    return (h, clock + 1), h


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("step", "by"),
    [
        (that_spikes, "weights"),
        (that_spikes, "inputs"),
        (that_loops_over_a_constant, "weights"),
        (that_loops_over_its_input, "weights"),
        (that_loops_over_what_it_carries, "weights"),
    ],
)
def test_nothing_is_differentiated_that_the_plain_step_would_leave_alone(step, by, compiled, x64):
    w = jax.tree.map(lambda a: a.astype(jnp.float64), W)
    xs, h = draw(T, B, F, seed=5).astype(jnp.float64), draw(B, H, seed=6).astype(jnp.float64)
    constant = jnp.asarray(0.3)
    carry = (h, jnp.zeros((B, 1))) if step is that_loops_over_what_it_carries else h

    def loss(asked, method):
        mine, inputs = (asked, xs) if by == "weights" else (w, asked)
        one = functools.partial(step, mine, constant)
        one = jax.jit(one) if compiled else one
        done = unroll(one, inputs, carry=carry, method=method)
        return jnp.sum(done.outputs**2) + jnp.sum(jax.tree.leaves(done.carry)[0] ** 2)

    gradient = jax.grad(loss)
    asked = w if by == "weights" else xs
    for method in METHODS:
        assert_close(gradient(asked, method), gradient(asked, Scan()))


def test_a_sorted_program_holds_no_arrays():
    """It is a key of what is compiled: an array in it would be kept, or leak."""
    step = functools.partial(in_two_products, W)
    program, _ = program_of(step, jnp.ones((B, H)), jnp.ones((B, F)))
    assert not [a for a in _held(program) if isinstance(a, jax.Array)]


def _held(thing, known=()):
    """Yield what an object of the package holds, at any depth."""
    if isinstance(thing, dict | list | tuple | set):
        inner = list(thing.values()) if isinstance(thing, dict) else list(thing)
    elif type(thing).__module__.startswith("jaxrnn"):
        inner = list(getattr(thing, "__dict__", {}).values())
    else:
        inner = []
    yield thing
    for part in inner:
        if not any(part is other for other in known):
            yield from _held(part, (*known, part))


@pytest.mark.parametrize(
    ("name", "shape", "in_blocks"),
    [
        ("mingru", (200, 16, 64, 128), False),
        ("mingru", (100, 64, 256, 256), True),
        ("rg-lru", (100, 64, 256, 256), True),
        # Its gates read nothing, but its drives fill memory.
        ("lru", (16_384, 16, 64, 128), True),
        ("lru", (1_000, 1, 64, 64), False),
        ("gru", (100, 32, 128, 128), False),
    ],
)
def test_a_block_is_measured_by_what_it_holds(name, shape, in_blocks):
    steps, batch, features, units = shape
    cell = jaxrnn.make_cell(name, features, units, rngs=nnx.Rngs(0))
    xs = jax.ShapeDtypeStruct((steps, batch, features), jnp.float32)
    method = jax.eval_shape(lambda cell, xs: jaxrnn.unroll(cell, xs), cell, xs).method
    assert (method.block < steps) is in_blocks
