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
# # The zoo: what every cell does to a gradient before it has learnt anything
#
# "RNNs forget" is a statement about *some* networks. Here is every cell of the table, fresh from its
# initialiser, under the same random input of 500 steps. For each, two pictures:
#
# - left, the **eigenvalues** of its step Jacobians $\partial s_t / \partial s_{t-1}$ in the complex plane, after the
#   start has been forgotten, with the unit circle. The state $s$ is the whole carry.
# - right, its **gradient flow**: $\log_{10} \lVert \partial L / \partial s_t \rVert$ for a loss on the last output,
#   against $t$. Read it from right to left, as the gradient goes.
#
# The slope of the right picture is the rate at which a fresh network forgets. It is *not* what the eigenvalues
# promise wherever Jacobians of different steps do not share eigenvectors, and the pairs below show both cases.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

import jaxrnn
from jaxrnn import analysis, plot

STEPS, SEQUENCES, FEATURES = 500, 4, 8
UNITS = {"mlstm": 6}  # its state has H² numbers
xs = jax.random.normal(jax.random.key(0), (STEPS, SEQUENCES, FEATURES))
flows = {}


def portrait(name):
    """Draw the spectrum of a fresh cell and its gradient flow; keep the flow."""
    cell = jaxrnn.make_cell(name, FEATURES, UNITS.get(name, 32), rngs=nnx.Rngs(0))
    path = analysis.trace(cell, xs)
    late = analysis.trace(cell, xs[-24:], carry=jax.tree.map(lambda leaf: leaf[-25], path.carries))
    flows[name] = analysis.gradient_flow(cell, xs, lambda outputs: (outputs[-1] ** 2).sum())
    with plot.house_style():
        _, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), width_ratios=(1, 1.5))
        plot.spectrum(analysis.spectrum(cell, late), left)
        plot.gradient_flow(flows[name], right)
        left.set_title(name)
        right.set_title(
            f"{float(flows[name].rate):+.4f} ± {float(flows[name].rate_stderr):.4f} nats a step"
        )
    plt.show()


# %% [markdown]
# ## One nonlinearity
#
# With an orthogonal $U$ all that shrinks the gradient of a **tanh** network is $\tanh' < 1$; with the **sigmoid**'s
# slope of at most ¼ it is gone after a few steps. **ReLU** lets the gradient through some units whole and through the
# others not at all, and here forgets about as fast as tanh. The **IRNN** begins as a sum: eigenvalues 1 for each active
# unit, 0 for the others, and next to no forgetting.

# %%
for name in ("elman-tanh", "elman-sigmoid", "elman-relu", "irnn"):
    portrait(name)

# %% [markdown]
# Slowed down (**CTRNN**), ticking at several periods (**Clockwork**) or cut off from each other (**IndRNN**), the
# same units keep more. Between its ticks a Clockwork unit has eigenvalue 1, and its clock 0. In an IndRNN each unit
# has its own eigenvalue, $u$ while it is active; once a sequence's units have all been silent for a step, no gradient
# passes, which is why its curve begins so late.

# %%
for name in ("ctrnn", "clockwork", "indrnn"):
    portrait(name)

# %% [markdown]
# ## Gates
#
# An **LSTM**'s state is $(c, h)$, and half of its eigenvalues, those of $c$, sit where the forget gate puts them:
# around $\sigma(1) \approx 0.73$ with the usual bias. Fresh gates forget: nothing here has learnt to stay open. The
# variants (peepholes, which start at 0; a projection; the order of reset and product; one gate instead of
# two) start almost alike.

# %%
for name in ("lstm", "lstm-peephole", "lstm-projected", "gru", "gru-reset-before", "ogru", "mgu"):
    portrait(name)

# %% [markdown]
# The bias decides. An LSTM with chrono initialisation for 500 steps starts with a memory of that order:

# %%
cells = {
    "forget bias 1": jaxrnn.LSTMCell(FEATURES, 32, rngs=nnx.Rngs(0)),
    "chrono, 500 steps": jaxrnn.LSTMCell(
        FEATURES, 32, bias_init=jaxrnn.LSTMCell.chrono(500), rngs=nnx.Rngs(0)
    ),
}
with plot.house_style():
    _, ax = plt.subplots(figsize=(6, 3.6))
    for label, cell in cells.items():
        flow = analysis.gradient_flow(cell, xs, lambda outputs: (outputs[-1] ** 2).sum())
        plot.gradient_flow(flow, ax, label=f"{label}: {float(flow.rate):+.4f} nats a step")
    ax.legend()
plt.show()

# %% [markdown]
# **sLSTM** and **mLSTM** gate exponentially. Their states hold a normaliser and a stabiliser beside the memory; the
# mLSTM's memory is a matrix, here 6 × 6.

# %%
for name in ("slstm", "mlstm"):
    portrait(name)

# %% [markdown]
# ## Norms kept by construction
#
# A fresh **orthogonal** or **unitary** cell is a linear isometry: every eigenvalue on the unit circle, and a flow
# without slope but for rounding. The **antisymmetric**, **Lipschitz** and oscillator (**coRNN**) cells take small steps
# along an equation that neither grows nor decays much, so their eigenvalues gather at 1, and a gradient may *grow* on
# its way back. **LEM** steps as far as its gates let it, here Δt = 1: fresh, it forgets like a gated cell.

# %%
for name in ("orthogonal", "unitary", "antisymmetric", "lipschitz", "cornn", "lem"):
    portrait(name)

# %% [markdown]
# ## Linear in the state
#
# Nothing but a diagonal: eigenvalues *are* decays, set by the input (**minGRU**, **minLSTM**, **RG-LRU**, and the **SRU**,
# whose gates may look at its state) or fixed (**LRU**, **S5**). What the slope of a flow can tell is the slowest unit:
# after some steps the others no longer count, and the curve bends.

# %%
for name in ("sru", "mingru", "minlstm", "rg-lru", "lru", "s5"):
    portrait(name)

# %% [markdown]
# ## All of them
#
# The rates beside each other, with 95 % intervals. A rate of −0.01 nats a step divides the gradient by $e$ every 100
# steps. Two cautions. A rate near 0 does not say that a cell *learns* what is long ago, only that the gradient
# does not stand in the way. And these are initial values: training moves them, as the first notebook shows.

# %%
order = sorted(flows, key=lambda name: float(flows[name].rate))
rates = np.array([float(flows[name].rate) for name in order])
errors = np.array([float(flows[name].rate_stderr) for name in order])
with plot.house_style():
    _, ax = plt.subplots(figsize=(7, 7))
    ax.errorbar(rates, range(len(order)), xerr=1.96 * errors, fmt="o", ms=4)
    ax.axvline(0, color="0.35", linewidth=1, linestyle="--")
    ax.set_yticks(range(len(order)), order)
    ax.set_xscale("symlog", linthresh=1e-3)
    ax.set(xlabel="growth of the gradient per step of lag (nats)")
plt.show()

# %%
assert set(flows) == set(jaxrnn.cells.CELLS)
