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
# # Where gradients go
#
# An RNN is trained by pushing a gradient back through every step it has taken. Each step multiplies that
# gradient by one matrix, the step Jacobian $J_t = \partial s_t / \partial s_{t-1}$, so after $k$ steps back it
# has been multiplied by
#
# $$\frac{\partial s_T}{\partial s_{T-k}} = J_T\, J_{T-1} \cdots J_{T-k+1}.$$
#
# Whether gradients vanish or explode is a statement about this product. This notebook takes it apart for
# three cells: what one step does, what the product does, and what is left of a loss's gradient.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

import jaxrnn
from jaxrnn import analysis, plot

# %% [markdown]
# ## One step
#
# A sequence of 100 random inputs, and an Elman network $h' = \tanh(Wx + Uh + b)$ of 32 units whose recurrent
# matrix $U$ starts orthogonal. `trace` runs it and keeps every state; `spectrum` takes the Jacobian of every
# step and its eigenvalues.

# %%
xs = jax.random.normal(jax.random.key(0), (100, 4, 3))  # time, batch, features
elman = jaxrnn.ElmanCell(3, 32, rngs=nnx.Rngs(0))
path = analysis.trace(elman, xs)
steps = analysis.spectrum(elman, path)
path.states.shape, steps.eigenvalues.shape

# %%
with plot.house_style():
    plot.spectrum(steps)
    plt.title("tanh, orthogonal U")

# %% [markdown]
# An orthogonal $U$ alone would put every eigenvalue on the circle. The inputs move the units away from the origin,
# the only place where $\tanh' = 1$, so the eigenvalues of $\mathrm{diag}(\tanh')\,U$ lie inside. The norm of a step
# hardly moves, though: it is decided by the one unit that happens to be nearest to the origin. With the sigmoid,
# $\sigma' \le 1/4$, and no unit can do better than that.

# %%
sigmoid = jaxrnn.make_cell("elman-sigmoid", 3, 32, rngs=nnx.Rngs(0))
sigmoid_steps = analysis.spectrum(sigmoid, analysis.trace(sigmoid, xs))
for name, found in {"tanh": steps, "sigmoid": sigmoid_steps}.items():
    radius, norm = float(np.median(found.spectral_radius)), float(np.median(found.norm))
    print(f"{name:8}  median spectral radius {radius:.3f}, median norm {norm:.3f}")
assert float(sigmoid_steps.norm.max()) <= 0.25 + 1e-6  # an orthogonal U, so the bound is σ' itself

# %% [markdown]
# ## The product
#
# The bound of ¼ needs $\|U\| \le 1$. With larger weights the sigmoid's gradient need not vanish at all: the factor
# is $\mathrm{diag}(\sigma')\,U$, and $U$ has a say. `propagator` gives the singular values of the product for every
# lag, in logarithms, so neither overflow nor rounding touches them.

# %%
strong = jaxrnn.make_cell(
    "elman-sigmoid",
    3,
    32,
    recurrent_kernel_init=jaxrnn.cells.initializers.orthogonal(scale=5.0),
    rngs=nnx.Rngs(0),
)
strong.bias[...] = (
    -strong.recurrent_kernel[...].sum(axis=0) / 2
)  # keeps the units near σ = ½, where σ' = ¼
products = {
    "sigmoid, ‖U‖ = 1": analysis.propagator(sigmoid, analysis.trace(sigmoid, xs)),
    "sigmoid, ‖U‖ = 5": analysis.propagator(strong, analysis.trace(strong, xs)),
}
with plot.house_style():
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8))
    for ax, (name, product) in zip(axes, products.items(), strict=True):
        plot.propagator(product, ax)
        ax.set_title(name)
for name, product in products.items():
    print(
        f"{name}: {float(product.rate.value):+.3f} ± {float(product.rate.stderr):.3f} nats a step"
    )

# %% [markdown]
# ## The gradient of a loss
#
# The product bounds what any gradient can be; `gradient_flow` follows one. Here the loss is read from the last
# output of three fresh cells of 32 units.

# %%
cells = {
    name: jaxrnn.make_cell(name, 3, 32, rngs=nnx.Rngs(0)) for name in ("elman-tanh", "lstm", "gru")
}
flows = {
    name: analysis.gradient_flow(cell, xs, lambda outputs: outputs[-1].sum(axis=-1))
    for name, cell in cells.items()
}
with plot.house_style():
    _, ax = plt.subplots(figsize=(6, 4))
    for name, flow in flows.items():
        plot.gradient_flow(flow, ax, label=name)
    ax.legend()
for name, flow in flows.items():
    print(f"{name:11} {float(flow.rate):+.4f} ± {float(flow.rate_stderr):.4f} nats a step back")

# %% [markdown]
# A fresh GRU fades fastest of the three: its update gate starts half open, so half of the state is forgotten at each
# step. An LSTM keeps what its forget gate lets it keep. Its bias decides: with forget gates spread over long time
# scales (Tallec & Ollivier 2018) much more of the gradient arrives.

# %%
for name, bias in {
    "forget bias 0": jaxrnn.LSTMCell.forget_bias(0.0),
    "forget bias 1": jaxrnn.LSTMCell.forget_bias(1.0),
    "chrono, up to 1000": jaxrnn.LSTMCell.chrono(1000),
}.items():
    lstm = jaxrnn.LSTMCell(3, 32, bias_init=bias, rngs=nnx.Rngs(0))
    verdict = analysis.diagnose(lstm, xs).verdict
    print(f"{name:19} {verdict.sentence}; fades to 1 % in {verdict.horizon_text} steps")

# %% [markdown]
# ## Your own system
#
# Everything above takes any function `(carry, x) -> (carry, y)`. The Hénon map has the Jacobian
# $\begin{pmatrix}-2ax & 1\\ b & 0\end{pmatrix}$ with determinant $-b$ at every point, so the logarithms of the
# singular values of any product of $k$ steps must sum to $k \ln b$, however chaotic the path.


# %%
def henon(state, _):
    """Take one step of the Hénon map, a = 1.4, b = 0.3."""
    x, y = state
    moved = jnp.stack([1 - 1.4 * x**2 + y, 0.3 * x])
    return moved, moved


orbit = analysis.trace(henon, None, carry=jnp.array([0.1, 0.1]), length=200)
product = analysis.propagator(henon, orbit, lags=[1, 10, 100, 200])
sums = product.log_singular_values.sum(axis=-1) / product.lags.astype(jnp.float32)
print("sum of logs per step:", np.asarray(sums), "  ln 0.3 =", np.log(0.3))
assert np.allclose(sums, np.log(0.3), atol=1e-3)
