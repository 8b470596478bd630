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
# # Learning to remember
#
# The other notebooks look at networks as they are. Here they learn, several at once, and one question is followed
# through: does the gradient of a fresh network say what it will be able to learn?
#
# The task is the smallest that needs a memory. Sixty numbers come in, one after the other, and at the end the network
# is asked for the sign of the first.

# %%
import dataclasses
import tempfile
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import jaxrnn
from jaxrnn import analysis, plot, tasks, training
from jaxrnn.experiments import flow_history, probes, scores
from jaxrnn.models import SequenceClassifier
from jaxrnn.training import FitConfig, RunFolder

# %% [markdown]
# ## Data of one's own
#
# A `Task` is three sets of examples and what is asked of them: here one class a sequence.

# %%
STEPS = 60
draw = np.random.default_rng(0)


def examples(count):
    """Draw sequences [N, T, 1] and the sign of their first number [N]."""
    x = draw.normal(size=(count, STEPS, 1)).astype(np.float32)
    return tasks.Examples(x, (x[:, 0, 0] > 0).astype(np.int32))


task = tasks.Task(
    name="first-sign",
    source="drawn here",
    train=examples(2000),
    valid=examples(500),
    test=examples(500),
    answers="sequence",
    in_features=1,
    outputs=2,
    loss="cross_entropy",
    metric=tasks.accuracy,
    chance=0.5,
    solved=0.95,
)

# %% [markdown]
# ## Two networks that differ in one vector
#
# Both are LSTMs of 16 units. In one the forget gates start half open, $\sigma(0) = \tfrac12$, so half of the cell state
# is gone after each step. In the other their biases are spread so that the units forget over 1 to 60 steps
# (Tallec & Ollivier 2018).

# %%
BIASES = {
    "forget bias 0": jaxrnn.LSTMCell.forget_bias(0.0),
    "chrono": jaxrnn.LSTMCell.chrono(STEPS),
}


def maker(bias):
    """Return what makes a network from its random streams."""

    def make(rngs):
        return SequenceClassifier(jaxrnn.LSTMCell(1, 16, bias_init=bias, rngs=rngs), 2, rngs=rngs)

    return make


# %% [markdown]
# ## Eight networks at a time
#
# A result from one seed is an anecdote. `fit` trains all seeds and all learning rates in one program: four seeds at two
# rates each. A folder keeps settings, metrics and checkpoints; `probes` adds to each report how the gradient of the
# loss comes through the sequence.

# %%
config = FitConfig(
    steps=240, every=24, batch_size=64, seeds=4, learning_rate=(1e-2, 3e-2), optimizer="adam"
)
runs = Path(tempfile.mkdtemp())
results = {}
for name, bias in BIASES.items():
    folder = RunFolder(runs / name.replace(" ", "-"), dataclasses.asdict(config))
    results[name] = training.fit(
        maker(bias), task, config, folder=folder, observe=probes(task), title=name
    )
    for score in scores(results[name].members, results[name].test_score):
        print(f"{name:14} rate {score.settings['learning_rate']:<6g} test accuracy {score.text}")

# %%
with plot.house_style():
    _, ax = plt.subplots(figsize=(6, 4))
    for name, result in results.items():
        plot.learning_curves(result.history, result.metric, ax, label=name)
    ax.axhline(task.chance, color="grey", linewidth=0.8, linestyle="--")
    ax.legend()

# %% [markdown]
# ## What the gradient said beforehand
#
# The first report was made before the first optimiser step. This is the gradient with respect to the state after the
# first number, where all that matters is, relative to the one after the last.

# %%
for name, result in results.items():
    flow = flow_history(result.history)
    lost = np.median(flow.log_norms[:, :, 0] - flow.log_norms[:, :, -1], axis=1) / np.log(10)
    print(f"{name:14} {lost[0]:+6.1f} decades before training, {lost[-1]:+5.1f} after")

# %%
with plot.house_style():
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for ax, (name, result) in zip(axes, results.items(), strict=True):
        plot.flow_history(flow_history(result.history), ax)
        ax.set_title(name)

# %% [markdown]
# The colours of the two span thirteen decades and one. With half-open forget gates the gradient that would teach the
# network to look back is smaller than the rounding of the one that it gets from the last steps, and stays so: there is
# nothing for the optimiser to follow. Where it comes through, the networks learn, and what they learn shows as a
# gradient that no longer fades.

# %%
best = {
    name: max(np.median(score.values) for score in scores(result.members, result.test_score))
    for name, result in results.items()
}
for name, score in best.items():
    print(f"{name:14} median test accuracy at the better rate {score:.3f}")
assert best["chrono"] > 0.8
assert best["forget bias 0"] < 0.6

# %% [markdown]
# ## A run that was broken off
#
# What is in the folder is enough to go on. Here a run ends on its way to step 120, as if the machine had gone down. It
# goes on from the checkpoint of its last report, and arrives where the first run did, to the bit.

# %%
stopped = RunFolder(runs / "stopped", dataclasses.asdict(config))


def until_half(models):
    """Observe nothing, and end everything before the sixth report is written."""
    seen.append(len(seen))
    if len(seen) > 5:
        raise RuntimeError("power cut")
    return {}


seen = []
try:
    training.fit(maker(BIASES["chrono"]), task, config, folder=stopped, observe=until_half)
except RuntimeError as failure:
    kept = [row["step"] for row in training.read_metrics(stopped.path)]
    print(f"{failure}; kept are the reports at steps {kept}")
resumed = RunFolder(stopped.path, dataclasses.asdict(config), resume=True)
again = training.fit(maker(BIASES["chrono"]), task, config, folder=resumed)
same = jax.tree.map(np.array_equal, again.models, results["chrono"].models)
print("the same weights:", all(jax.tree.leaves(same)))
assert all(jax.tree.leaves(same))

# %% [markdown]
# ## A trained network under the microscope
#
# `view` takes a network apart as the analyses want it: its cell, what the cell reads, and the loss as a function of its
# outputs. What was measured on fresh cells in the other notebooks works on it as it is.

# %%
best = int(np.argmax(results["chrono"].test_score))
model = jax.tree.map(lambda leaf: leaf[best], results["chrono"].models)
part = training.view(model, task, training.whole_sequences(task.test, 16))
found = analysis.diagnose(part.cell, part.xs, part.loss)
print(found.verdict.sentence)

# %% [markdown]
# From the command line the same is `jaxrnn train` and `jaxrnn diagnose`, with the tasks of `jaxrnn tasks`.
