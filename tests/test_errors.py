"""Every unusable argument of cells and `unroll` is refused by name, with what came and what was expected."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import ElmanCell, GRUCell, LSTMCell, Scan, analysis, checks, models, tasks
from jaxrnn.cells import CELLS, initializers

F, H, T, B = 3, 4, 5, 2


@functools.cache
def lstm():
    return LSTMCell(F, H, rngs=nnx.Rngs(0))


@functools.cache
def gru():
    return GRUCell(F, H, rngs=nnx.Rngs(0))


def zeros(*shape, dtype=jnp.float32):
    return jnp.zeros(shape, dtype)


XS = np.zeros((T, B, F), np.float32)


def unroll(xs: Any = XS, cell: Any = None, **options):
    return jaxrnn.unroll(gru() if cell is None else cell, xs, **options)


def plain(carry, x):
    """A step that, unlike a cell, cannot say where it starts."""
    return carry + x, carry


def elman(**options):
    return ElmanCell(F, H, rngs=nnx.Rngs(0), **options)


def made(name, **options):
    return jaxrnn.make_cell(name, F, H, rngs=nnx.Rngs(0), **options)


# Each row: the claim, the call, the argument named, what came, what was expected.
REFUSED = [
    # Making a cell.
    ("no units", lambda: GRUCell(F, 0, rngs=nnx.Rngs(0)),
     "hidden_features", "0", "a whole number above 0"),
    ("negative units", lambda: GRUCell(F, -4, rngs=nnx.Rngs(0)),
     "hidden_features", "-4", "a whole number above 0"),
    ("no features", lambda: LSTMCell(0, H, rngs=nnx.Rngs(0)),
     "in_features", "0", "a whole number above 0"),
    ("misspelt cell", lambda: jaxrnn.make_cell("ltsm", F, H, rngs=nnx.Rngs(0)),
     "cell", "'ltsm'", "one of elman-tanh, .*lstm.* (did you mean 'lstm'?)"),
    ("unknown cell", lambda: jaxrnn.make_cell("transformer", F, H, rngs=nnx.Rngs(0)),
     "cell", "'transformer'", "one of elman-tanh, .*gru"),
    ("too short a lag for the lstm", lambda: LSTMCell.chrono(2),
     "max_lag", "2", "more than 2 steps"),
    ("too short a lag for the gru", lambda: GRUCell.chrono(0.5),
     "max_lag", "0.5", "more than 2 steps"),
    ("a lag without end", lambda: LSTMCell.chrono(float("inf")),
     "max_lag", "inf", "a number above 0"),
    ("weights that are whole numbers", lambda: GRUCell(F, H, param_dtype=int, rngs=nnx.Rngs(0)),
     "param_dtype", "int", "a dtype of floats"),
    ("a class for a cell", lambda: jaxrnn.unroll(GRUCell, zeros(T, B, F)),  # pyright: ignore[reportArgumentType]
     "cell", "the class GRUCell", "a cell of it"),
    ("a class for a layer's cell", lambda: jaxrnn.RNN(GRUCell),
     "cell", "GRUCell", "a cell, with initialize_carry"),
    ("lists for sequences", lambda: jaxrnn.RNN(elman())([[1.0, 2.0, 3.0]]),
     "inputs", "[[float 1.0", "sequences [*B, T, F]"),
    ("zoneout of a clock", lambda: jaxrnn.RNN(made("clockwork"), zoneout=0.5),
     "zoneout", "0.5", "0 for a ClockworkCell, whose carry (clock)"),
    ("zoneout of normalisers", lambda: jaxrnn.RNN(made("slstm"), zoneout=0.5),
     "zoneout", "0.5", "0 for a SLSTMCell, whose carry (c, n, m)"),
    ("nothing to drop", lambda: jaxrnn.RNN(made("mingru"), recurrent_dropout=0.5),
     "recurrent_dropout", "0.5", "0 for a MinGRUCell, which has no recurrent weights"),
    ("zoneout where there is none", lambda: jaxrnn.interop.to_pytorch(jaxrnn.RNN(elman(), zoneout=0.3)),
     "layer 0", "a layer with zoneout 0.3", "one without"),
    ("spectral radius of zero", lambda: initializers.spectral_radius(0.0),
     "rho", "0.0", "a number above 0"),
    ("identity for the inputs", lambda: elman(kernel_init=initializers.identity()),
     "shape", "[3, 4]", "a square matrix"),
    # Options of one cell.
    ("leak faster than a step", lambda: made("ctrnn", time_constant=0.5),
     "time_constant", "0.5", "at least 1 step, or Euler overshoots"),
    ("time constant of zero", lambda: made("ctrnn", time_constant=0.0),
     "time_constant", "0.0", "a number above 0"),
    ("projection on nothing", lambda: made("lstm-projected", projection_features=0),
     "projection_features", "0", "a whole number above 0"),
    ("period of zero", lambda: made("clockwork", periods=(0, 2)),
     "periods", "0", "a whole number above 0"),
    ("no periods", lambda: made("clockwork", periods=()),
     "periods", "()", "rising periods, at least one"),
    ("falling periods", lambda: made("clockwork", periods=(4, 1)),
     "periods", "(4, 1)", "rising periods, at least one"),
    ("a period twice", lambda: made("clockwork", periods=(1, 2, 2)),
     "periods", "(1, 2, 2)", "rising periods, at least one"),
    ("standing antisymmetric", lambda: made("antisymmetric", step_size=0.0),
     "step_size", "0.0", "a number above 0"),
    ("an array for a step", lambda: checks.positive("step_size", np.full((), 0.1)),
     "step_size", "float64[]", "a number above 0, of Python's (float(x) makes one)"),
    ("negative diffusion", lambda: made("antisymmetric", diffusion=-0.1),
     "diffusion", "-0.1", "a number of 0 or more"),
    ("backward lipschitz", lambda: made("lipschitz", step_size=-0.1),
     "step_size", "-0.1", "a number above 0"),
    ("more symmetric than skew", lambda: made("lipschitz", blend=0.4),
     "blend", "0.4", "0.5 to 1"),
    ("more than skew", lambda: made("lipschitz", blend=1.1),
     "blend", "1.1", "0.5 to 1"),
    ("negative damping of lipschitz", lambda: made("lipschitz", damping=-1.0),
     "damping", "-1.0", "a number of 0 or more"),
    ("standing oscillators", lambda: made("cornn", step_size=0.0),
     "step_size", "0.0", "a number above 0"),
    ("no restoring force", lambda: made("cornn", frequency=0.0),
     "frequency", "0.0", "a number above 0"),
    ("negative damping of oscillators", lambda: made("cornn", damping=-1.0),
     "damping", "-1.0", "a number above 0"),
    ("standing lem", lambda: made("lem", step_size=0.0),
     "step_size", "0.0", "a number above 0"),
    ("too long a step of lem", lambda: made("lem", step_size=1.5),
     "step_size", "1.5", "at most 1, or states leave ±1"),
    ("no heads", lambda: made("slstm", heads=0),
     "heads", "0", "a whole number above 0"),
    ("heads that do not divide the units", lambda: made("slstm", heads=3),
     "heads", "3", "a divisor of hidden_features, 4"),
    ("lru outside the unit circle", lambda: made("lru", radius=(0.5, 1.0)),
     "radius", "(0.5, 1.0)", "(least, largest) with 0 ≤ least < largest ≤ 0.999999"),
    ("empty ring of the lru", lambda: made("lru", radius=(0.5, 0.5)),
     "radius", "(0.5, 0.5)", "(least, largest) with 0 ≤ least < largest ≤ 0.999999"),
    ("lru that does not turn", lambda: made("lru", largest_phase=0.0),
     "largest_phase", "0.0", "a number above 0"),
    ("s5 without a least step", lambda: made("s5", steps=(0.0, 0.1)),
     "steps", "(0.0, 0.1)", "(least, largest) with 1e-06 ≤ least < largest ≤ 10"),
    ("s5 with steps the wrong way round", lambda: made("s5", steps=(0.1, 0.01)),
     "steps", "(0.1, 0.01)", "(least, largest) with 1e-06 ≤ least < largest ≤ 10"),
    ("rg-lru that keeps all", lambda: made("rg-lru", radius=(0.9, 1.0)),
     "radius", "(0.9, 1.0)", "(least, largest) with 1e-06 ≤ least < largest ≤ 0.999999"),
    ("rg-lru that keeps nothing", lambda: made("rg-lru", radius=(0.0, 0.9)),
     "radius", "(0.0, 0.9)", "(least, largest) with 1e-06 ≤ least < largest ≤ 0.999999"),
    ("a radius that is one number", lambda: made("rg-lru", radius=0.9),
     "radius", "0.9", "(least, largest) with"),
    ("a clock that bfloat16 cannot count",
     lambda: made("clockwork", periods=(1, 300), param_dtype=jnp.bfloat16),
     "periods", "(1, 300)", "at most 256: bfloat16 counts no further"),
    # One step.
    ("wrong features", lambda: gru()(zeros(B, H), zeros(B, 7)),
     "x", "float32[2, 7]", "3 features"),
    ("no feature axis", lambda: gru()(zeros(H), zeros()),
     "x", "float32[]", "3 features"),
    ("integer input", lambda: gru()(zeros(B, H), zeros(B, F, dtype=jnp.int32)),
     "x", "int32[2, 3]", "a floating-point array (convert it with .astype)"),
    ("list input", lambda: gru()(zeros(H), [0.0, 0.0, 0.0]),
     "x", "a list", "a floating-point array (jnp.asarray makes one)"),
    ("half-precision input", lambda: gru()(zeros(B, H), zeros(B, F, dtype=jnp.bfloat16)),
     "x", "dtype bfloat16", "the cell's own, float32"),
    ("half-precision carry", lambda: gru()(zeros(B, H, dtype=jnp.bfloat16), zeros(B, F)),
     "carry (h)", "bfloat16[2, 4]", "float32[2, 4]"),
    ("carry of another width", lambda: gru()(zeros(B, 5), zeros(B, F)),
     "carry (h)", "float32[2, 5]", "float32[2, 4], [*B, H]"),
    ("carry of another batch", lambda: lstm()((zeros(B, H), zeros(3, H)), zeros(B, F)),
     "carry (h)", "float32[3, 4]", "float32[2, 4], [*B, H]"),
    ("cell state of another width", lambda: lstm()((zeros(B, 5), zeros(B, H)), zeros(B, F)),
     "carry (c)", "float32[2, 5]", "float32[2, 4], [*B, H]"),
    ("one array for an lstm", lambda: lstm()(zeros(B, H), zeros(B, F)),
     "carry", "float32[2, 4]", "(c, h), as from initialize_carry"),
    ("list for an lstm", lambda: lstm()([zeros(B, H), zeros(B, H)], zeros(B, F)),
     "carry", "[float32[2, 4], float32[2, 4]]", "(c, h)"),
    ("pair for a gru", lambda: gru()((zeros(B, H), zeros(B, H)), zeros(B, F)),
     "carry", "(float32[2, 4], float32[2, 4])", "one array h"),
    # The same through time, and what only `unroll` takes.
    ("wrong features over time", lambda: unroll(zeros(T, B, 7)),
     "x", "float32[2, 7]", "3 features"),
    ("integers over time", lambda: unroll(XS.astype(np.int32)),
     "x", "int32[2, 3]", "a floating-point array"),
    ("half precision over time", lambda: unroll(XS.astype(np.float16)),
     "x", "dtype float16", "the cell's own, float32"),
    ("misshaped carry over time", lambda: unroll(carry=zeros(3, H)),
     "carry (h)", "float32[3, 4]", "float32[2, 4]"),
    ("one array for an lstm over time", lambda: unroll(cell=lstm(), carry=zeros(B, H)),
     "carry", "float32[2, 4]", "(c, h)"),
    ("empty carry", lambda: unroll(cell=plain, carry=()),
     "carry", "()", "at least one array"),
    ("no carry for a function", lambda: unroll(cell=plain),
     "carry", "None", "an initial carry: a plain function has no initialize_carry"),
    ("no carry for inputs in a tree", lambda: unroll({"a": XS}),
     "carry", "None", "an initial carry, where xs is not one array"),
    ("another carry structure", lambda: unroll(cell=lambda c, x: ((c,), x), carry=zeros(B, F)),
     "carry", "float32[2, 3]", "(float32[2, 3],), the carry that cell returns"),
    ("another carry shape", lambda: unroll(cell=lambda c, x: (c[0], x), carry=zeros(B, F)),
     "carry", "float32[2, 3]", "float32[3], the carry that cell returns"),
    ("another carry dtype", lambda: unroll(cell=lambda c, x: (c > 0, x), carry=zeros(B, F)),
     "carry", "float32[2, 3]", "bool[2, 3], the carry that cell returns"),
    ("no output", lambda: unroll(cell=lambda c, x: c, carry=zeros(B, F)),
     "cell", "a step that returns float32[2, 3]", "(carry, y)"),
    ("three results", lambda: unroll(cell=lambda c, x: (c, x, x), carry=zeros(B, F)),
     "cell", "a step that returns (float32", "(carry, y)"),
    # Time.
    ("no steps", lambda: unroll(zeros(0, B, F)),
     "xs", "float32[0, 2, 3]", "at least 1 step in the first axis"),
    ("no time axis", lambda: unroll(zeros()),
     "xs", "float32[]", "a time axis first, [T, *B, F]"),
    ("inputs of unequal length", lambda: unroll((zeros(3, F), zeros(4, F)), carry=zeros(F)),
     "xs", "(float32[3, 3], float32[4, 3])", "the same number of steps in every leaf"),
    ("neither inputs nor length", lambda: unroll(None, carry=zeros(B, H)),
     "xs", "None", "inputs [T, *B, F], or None together with length and carry"),
    ("neither inputs nor carry", lambda: unroll(None, length=T),
     "carry", "None", "an initial carry, where xs is not one array"),
    ("length of zero", lambda: unroll(None, cell=plain, carry=zeros(B), length=0),
     "length", "0", "a whole number above 0"),
    ("negative length", lambda: unroll(None, cell=plain, carry=zeros(B), length=-1),
     "length", "-1", "a whole number above 0"),
    ("contradicting length", lambda: unroll(length=T + 1),
     "length", "6", "5, the steps in xs (or leave it out)"),
    ("method by name", lambda: unroll(method="scan"),
     "method", "'scan'", "a method such as jaxrnn.Scan()"),
    ("loop of no steps", lambda: Scan(unroll=0),
     "unroll", "0", "a whole number above 0"),
    # Lengths, masks, resets.
    ("negative lengths", lambda: unroll(seq_lengths=np.array([-1, 3])),
     "seq_lengths", "values from -1 to 3", "0 to 5, the steps of the sequences"),
    ("too long lengths", lambda: unroll(seq_lengths=np.array([2, T + 1])),
     "seq_lengths", "values from 2 to 6", "0 to 5, the steps of the sequences"),
    ("lengths for another batch", lambda: unroll(seq_lengths=np.array([1, 2, 3])),
     "seq_lengths", "[3]", "shape [2], [*B]"),
    ("one length for all", lambda: unroll(seq_lengths=4),
     "seq_lengths", "[]", "shape [2], [*B]"),
    ("lengths of more than 32 bits", lambda: unroll(seq_lengths=np.array([2**40, 2**32 + 3])),
     "seq_lengths", "values from 4294967299 to 1099511627776", "0 to 5, the steps"),
    ("lengths of unequal rows", lambda: unroll(seq_lengths=[1, [2, 3]]),
     "seq_lengths", "[int 1, [int 2", "an array of numbers"),
    ("a mask of unequal rows", lambda: unroll(mask=[[True], [True, False]]),
     "mask", "[[bool True]", "an array of numbers"),
    ("inputs that are no array", lambda: unroll({"a": "b"}, carry=zeros(B, H)),
     "xs['a']", "str 'b'", "an array of numbers (jnp.asarray makes one)"),
    ("a dtype that is none", lambda: GRUCell(F, H, param_dtype="flaot", rngs=nnx.Rngs(0)),
     "param_dtype", "str 'flaot'", "a dtype of floats, such as jnp.float32"),
    ("float lengths", lambda: unroll(seq_lengths=np.array([1.0, 2.0], np.float32)),
     "seq_lengths", "float32[2]", "integers"),
    ("boolean lengths", lambda: unroll(seq_lengths=np.array([True, False])),
     "seq_lengths", "bool[2]", "integers"),
    ("batch-first mask", lambda: unroll(mask=np.ones((B, T), bool)),
     "mask", "bool[2, 5]", "shape [5, 2], [T, *B]"),
    ("mask of numbers", lambda: unroll(mask=np.ones((T, B), np.float32)),
     "mask", "float32[5, 2]", "booleans"),
    ("resets of one sequence", lambda: unroll(resets=np.ones(T, bool)),
     "resets", "bool[5]", "shape [5, 2], [T, *B]"),
    ("resets of numbers", lambda: unroll(resets=np.ones((T, B), np.int32)),
     "resets", "int32[5, 2]", "booleans"),
]  # fmt: skip


def pattern(text):
    """A regular expression for `text`, in which only ".*" is special."""
    return ".*".join(map(re.escape, text.split(".*")))


@pytest.mark.parametrize(
    ("call", "argument", "got", "expected"),
    [row[1:] for row in REFUSED],
    ids=[row[0] for row in REFUSED],
)
def test_refusal_names_argument_what_came_and_what_was_expected(call, argument, got, expected):
    with pytest.raises(checks.InputError) as refusal:
        call()
    form = f"^{pattern(argument)}: got [^;]*{pattern(got)}[^;]*; expected {pattern(expected)}"
    assert re.match(form, str(refusal.value))


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_refuses_a_foreign_input_and_carry(name):
    cell = jaxrnn.make_cell(name, F, H, rngs=nnx.Rngs(0))
    carry = cell.initialize_carry((B, F))
    with pytest.raises(checks.InputError, match=r"^x: got"):
        cell(carry, zeros(B, F + 1))
    with pytest.raises(checks.InputError, match=r"^carry.*: got"):
        cell(jax.tree.map(lambda a: a[:1], carry), zeros(B, F))


def test_refused_inside_jit_too():
    with pytest.raises(checks.InputError, match=r"^mask: got"):
        jax.jit(lambda mask: unroll(mask=mask))(np.ones((B, T), bool))


@pytest.mark.parametrize("value", [2.5, 0, -1, True, "4", None])
def test_only_whole_numbers_above_zero_count(value):
    with pytest.raises(checks.InputError, match=r"^units: got .*; expected a whole number above 0"):
        checks.count("units", value)


@pytest.mark.parametrize("value", [0, -0.5, float("nan"), True, "4", None])
def test_only_numbers_above_zero_are_positive(value):
    with pytest.raises(checks.InputError, match=r"^rate: got .*; expected a number above 0"):
        checks.positive("rate", value)


def test_numpys_numbers_will_do():
    checks.count("units", np.int64(4))
    checks.positive("rate", np.float32(0.5))


def test_an_input_error_is_a_value_error():
    assert issubclass(checks.InputError, ValueError)


def test_a_traced_value_is_not_looked_at():
    """Lengths out of range cannot be seen while they are traced: they pass, and count as clipped."""
    clipped = unroll(seq_lengths=np.array([T, 0])).outputs
    long = jax.jit(lambda lengths: unroll(seq_lengths=lengths).outputs)(np.array([T + 9, -9]))
    np.testing.assert_array_equal(long, clipped)


MORE = [
    ("dropout_key", lambda: jaxrnn.RNN(gru(), dropout=0.1)(zeros(B, T, F), dropout_key=np.arange(3))),
    ("dropout_key", lambda: jaxrnn.RNN(gru(), dropout=0.1)(zeros(B, T, F), dropout_key=zeros(0))),
    ("words", lambda: tasks.Vocabulary(["a", None])),  # pyright: ignore[reportArgumentType]
    ("words", lambda: tasks.Vocabulary(np.zeros((2, 2)))),  # pyright: ignore[reportArgumentType]
    ("targets", lambda: tasks.bucketed([XS[0], XS[0]], [1, [2, 3]])),
    ("carries", lambda: analysis.flow_modes(decay(), None, 0)),
    ("carries", lambda: analysis.flow_modes(decay(), None, zeros(2, H, dtype=jnp.complex64))),
    ("x", lambda: analysis.fixed_points(gru(), [1, [2, 3]], zeros(4, H))),
    ("x", lambda: analysis.fixed_points(gru(), jax.random.split(jax.random.key(0), 3), zeros(4, H))),
    ("logits", lambda: models.cross_entropy(jax.ShapeDtypeStruct((2, 3), jnp.float32), np.zeros(2, int))),
    ("noise", lambda: analysis.candidates_from(path(), 3, key=jax.random.key(0), noise=10**400)),
]  # fmt: skip


def decay():
    return analysis.Flow(lambda s, x: jax.tree.map(lambda leaf: -leaf, s), 0.1)


def path():
    return analysis.trace(gru(), XS)


@pytest.mark.parametrize("row", range(len(MORE)))
def test_what_a_fuzz_found_is_refused_by_name(row):
    name, call = MORE[row]
    with pytest.raises(checks.InputError, match=rf"^{name}(\[1\])?: got "):
        call()


def test_a_whole_number_beyond_32_bits_is_a_float_where_one_is_asked_for():
    logits = np.array([0.0, 1.0], np.float32)
    assert models.sample(logits, jax.random.key(0), temperature=2**40).shape == ()
    cell = jaxrnn.LRUCell(F, H, largest_phase=2**33, rngs=nnx.Rngs(0))
    assert np.isfinite(np.asarray(jax.tree.leaves(cell)[0])).all()
