# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The microscope: from $\sigma' \le \frac14$ to Lyapunov spectra
#
# Textbooks explain vanishing gradients in one line: the slope of a sigmoid is at most ¼, so every step back in
# time divides the gradient by four. This notebook follows that line as far as it goes. Each section takes one
# statement, computes it, and shows where it stops being the whole truth:
#
# 1. a bound on slopes, and what the product of Jacobians really does;
# 2. eigenvalues inside the unit circle, and a gradient that grows all the same;
# 3. a theory of large random networks, beside networks;
# 4. exponents with error bars, for maps, flows and cells;
# 5. which lags a network learns from;
# 6. fixed points: how a trained network remembers, and how memories come into being.

# %%
import math

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import jaxrnn
from jaxrnn import analysis, plot
from jaxrnn.tasks.flip_flop import flip_flop

# %% [markdown]
# ## 1. $\sigma' \le \frac14$
#
# For $h_t = \sigma(W h_{t-1} + \dots)$ the step Jacobian is $\mathrm{diag}(\sigma')\,W$, so no gradient can grow
# faster than $\sigma_1(W)\,\gamma$ a step, with $\sigma_1$ the largest *singular* value of $W$ and
# $\gamma = \sup \sigma' = \frac14$ (Pascanu, Mikolov & Bengio 2013). The bound proves that this network's
# gradients vanish. It does not say how fast they do.

# %%
cell = jaxrnn.make_cell("elman-sigmoid", 3, 32, rngs=nnx.Rngs(0))
xs = jax.random.normal(jax.random.key(1), (60, 8, 3))
path = analysis.trace(cell, xs)
bound = analysis.weight_bound(cell.recurrent_kernel[...], jax.nn.sigmoid)
product = analysis.propagator(cell, path)
print(f"bound:    {bound.word}, at most {float(bound.rate_bound):+.3f} nats a step")
print(f"measured: {float(product.rate.value):+.3f} ± {float(product.rate.stderr):.3f} nats a step")
with plot.house_style():
    plot.propagator(product, theory=float(bound.rate_bound))
# %% [markdown]
# ## 2. Eigenvalues are not enough
#
# The eigenvalues of a Jacobian say what its powers do in the end. Before that, a *non-normal* matrix may stretch
# a gradient by orders of magnitude. Here is a chain in which every unit drives the next: all eigenvalues have
# modulus ½, and yet the product of 45 such steps has a norm of $10^8$. The ε-pseudospectrum knows: for an ε of
# $10^{-8}$ it still reaches outside the unit circle, and that bounds the growth from below (Kreiss).

# %%
size = 24
chain = 0.5 * np.eye(size) + 1.2 * np.eye(size, k=1)


def linear(s, x):
    moved = s @ jnp.asarray(chain.T, jnp.float32)
    return moved, moved


still = analysis.trace(linear, None, carry=jnp.zeros(size), length=60)
modes = analysis.modes_of(jnp.asarray(chain))
halo = analysis.pseudospectrum(chain, points=80, extent=(-1.5, 2.5, -2.0, 2.0))
print(
    f"spectral radius {float(abs(modes.eigenvalues[0])):.2f}, norm {np.linalg.norm(chain, 2):.2f}"
)
print(f"Henrici's departure from normality, relative: {float(modes.relative_departure):.2f}")
print(f"some product of steps grows to at least {halo.kreiss:.0f}")

with plot.house_style():
    _, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
plot.pseudospectrum(halo, left, levels=(-8, -6, -4, -2))
plot.propagator(
    analysis.propagator(linear, still, lags=range(1, 61)), right, ranks=(1, 12, 24), fit=False
)
_ = right.axhline(0, color="0.35", linewidth=1, linestyle="--")

# %% [markdown]
# ## 3. Theory beside measurement
#
# A large random network $h \leftarrow \tanh(J h)$ with $J_{ij} \sim N(0, g^2/N)$ is silent for $g < 1$ and chaotic
# beyond (Sompolinsky, Crisanti & Sommers 1988). Mean-field theory predicts its largest Lyapunov exponent in the
# limit $N \to \infty$. Three networks of 200 units at each gain show how far they are from that limit: near the
# edge, at $g = 1$, finite networks are not chaotic yet.


# %%
def random_map(gain, seed, size=200):
    weights, start = jax.random.split(jax.random.key(seed))
    coupling = gain / math.sqrt(size) * jax.random.normal(weights, (size, size))
    return lambda s, x: (jnp.tanh(s) @ coupling, s), jax.random.normal(start, (size,))


gains, measured = (0.8, 1.0, 1.2, 1.5, 2.0, 3.0, 4.0), []
for gain in gains:
    draws = []
    for seed in range(3):
        step, start = random_map(gain, seed)
        found = analysis.lyapunov(step, carry=start, length=1200, warmup=400, k=1)
        draws.append(float(found.exponents[0]))
    measured.append(draws)
measured = np.array(measured)
fine = np.linspace(0.8, 4.0, 33)
with plot.house_style():
    _, ax = plt.subplots(figsize=(6, 4))
    ax.plot(
        fine,
        [analysis.mean_field(jnp.tanh, g).lyapunov for g in fine],
        "k-",
        label="mean field, N → ∞",
    )
    spread = measured.std(axis=1, ddof=1) / math.sqrt(3)
    ax.errorbar(
        gains, measured.mean(axis=1), spread, fmt="o", capsize=3, label="N = 200, three networks"
    )
    ax.axhline(0, color="0.35", linewidth=1, linestyle="--")
    ax.set(xlabel="gain g", ylabel="λ₁ (nats a step)")
    ax.legend()

# %% [markdown]
# ## 4. Exponents with error bars
#
# The same function measures maps, flows and cells. A flow is a Runge–Kutta step taken as a map, its rates are
# per unit of time. Lorenz's system has exponents 0.906, 0 and −14.57 (Sprott), and their sum is known exactly:
# it is the divergence of the field, −13.667. That check, $\sum \lambda = \langle \ln|\det J| \rangle$, is made
# in every run.


# %%
def lorenz(s, x):
    return jnp.stack([10 * (s[1] - s[0]), s[0] * (28 - s[2]) - s[1], s[0] * s[1] - 8 / 3 * s[2]])


with jax.enable_x64(True):
    flow = analysis.Flow(lorenz, time_step=0.01)
    chaos = analysis.lyapunov(flow, carry=jnp.array([1.0, 1.0, 20.0]), length=100_000, warmup=2000)
print(chaos.text)
with plot.house_style():
    plot.lyapunov_convergence(chaos)
# %% [markdown]
# A recurrent network under input is a driven system, and its exponents decide how a perturbation, or a gradient,
# fares in the long run. An LSTM's state is $(c, h)$: exponents of $h$ alone would miss its memory.

# %%
with jax.enable_x64(True):
    lstm = jaxrnn.LSTMCell(3, 16, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    inputs = jax.random.normal(jax.random.key(2), (2000, 3), jnp.float64)
    driven = analysis.lyapunov(lstm, inputs, warmup=200)
    ax = plot.lyapunov(driven, label="LSTM, 16 units")
ax.axhline(math.log(1 / (1 + math.exp(-1))), color="0.6", linestyle=":")
_ = ax.set_title("dotted: ln σ(1), the rate of a forget gate at its bias", fontsize=9)

# %% [markdown]
# ## 5. Which lags a network learns from
#
# The gradient of a loss by the weights is a sum over lags: how much of it comes from dependencies of $k$ steps?
# In a fresh sigmoid network nearly all comes from the last few; the parts sum to `jax.grad`'s own gradient,
# and the record says to how many digits.

# %%
for name in ("elman-sigmoid", "elman-tanh", "lstm"):
    fresh = jaxrnn.make_cell(name, 3, 32, rngs=nnx.Rngs(0))
    parts = analysis.lag_contributions(fresh, xs, lambda ys: (ys[-1] ** 2).sum())
    reach = int(np.argmax(np.asarray(parts.cumulative) > 0.9))
    print(
        f"{name:14} 90 % from lags up to {reach:2}; sum − jax.grad: {float(parts.difference):.0e}"
    )

# %% [markdown]
# ## 6. Fixed points
#
# ### How memories come into being
#
# One unit, $s \leftarrow \tanh(w s + \mu)$ with $w = 2$, has one fixed point for large $|\mu|$ and three for small:
# two memories with a barrier between them. Following the branch shows the two folds where a memory appears
# out of nothing. In closed form they lie at $\mu = \pm(\operatorname{artanh} s - 2 s)$ with $s^2 = \frac12$.

# %%
with jax.enable_x64(True):

    def unit(s, mu):
        return jnp.tanh(2 * s + mu), s

    start = jnp.array([-1.0])
    branch = analysis.continuation(unit, lambda mu: mu, start, begin=-1.5, end=1.5, max_step=0.05)
    print(branch.text)
    plot.bifurcation_diagram(branch)
print(f"closed form: ±{2 * math.sqrt(0.5) - math.atanh(math.sqrt(0.5)):.6f}")

# %% [markdown]
# ### How a trained network remembers
#
# The 3-bit flip-flop (Sussillo & Barak 2013) asks a network to hold three bits, each set by rare pulses. There
# are eight things to remember, and the trained network holds them in eight stable fixed points, with saddles
# between them. Nothing of this was put in: it is found by looking where the state stands still.


# %%
class Memory(nnx.Module):
    def __init__(self, rngs):
        self.cell = jaxrnn.GRUCell(3, 24, rngs=rngs)
        self.readout = nnx.Linear(24, 3, rngs=rngs)

    def __call__(self, inputs):
        return self.readout(jaxrnn.unroll(self.cell, inputs).outputs)


def loss(model, key):
    inputs, targets = flip_flop(key, steps=100, batch=32, probability=0.08)
    return jnp.mean((model(inputs) - targets) ** 2)


optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(2e-2, 1200))
)


@jax.jit
def update(carry, key):
    model, state = carry
    value, gradient = jax.value_and_grad(loss)(model, key)
    moves, state = optimizer.update(gradient, state)
    return (optax.apply_updates(model, moves), state), value


model = Memory(nnx.Rngs(0))
keys = jax.random.split(jax.random.key(0), 1200)
state = optimizer.init(model)
(model, _), values = jax.lax.scan(update, (model, state), keys)
print(f"mean squared error {float(values[-100:].mean()):.4f}")

# %%
pulses, _ = flip_flop(jax.random.key(1), steps=100, batch=32, probability=0.08)
walk = analysis.trace(model.cell, pulses)
candidates = analysis.candidates_from(walk, 512, key=jax.random.key(2), noise=0.3)
points = analysis.fixed_points(model.cell, jnp.zeros(3), candidates)
print(points.text)
print(np.round(model.readout(points.states[points.stable])).astype(int))
with plot.house_style():
    plot.phase_portrait(walk, points)

# %% [markdown]
# Everything at once, with a verdict, is `analysis.diagnose(cell, xs)`, or `jaxrnn diagnose` on the command line.
