# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What is true of recurrent networks
#
# "RNNs forget", "the sigmoid makes gradients vanish", "LSTMs solve it": articles say such things, and teachers
# repeat them. `jaxrnn.claims` decides each by an experiment and a rule that was fixed before the run. This
# notebook reads ten verdicts from the records of the repository, and measures three of them live.

# %%
from pathlib import Path

from jaxrnn import claims
from jaxrnn.claims.figures import draw

# %% [markdown]
# ## Ten verdicts from records
#
# A record holds what was measured, not what it means: the rule is applied when the record is read.

# %%
folder = Path("../docs/evidence")
folder = folder if folder.is_dir() else Path("docs/evidence")
evidence = claims.read_folder(folder)
ten = list(evidence)[:10]
verdicts = claims.judge_all(evidence)
for name in ten:
    print(f"{name:24} {verdicts[name].text:40} {claims.CLAIMS[name].statement}")

# %% [markdown]
# One of them in full: what each condition says, and the figure.

# %%
print(claims.claim_text("lstm-solves", evidence))

# %%
draw(evidence["lstm-solves"])
# %% [markdown]
# ## Three measured now
#
# An LSTM vanishes as slowly as its forget gate says. Whether *any* sigmoid network must vanish is another
# question, and one counter-example answers it: weights of 4, units at 1/2.

# %%
found = claims.run("sigmoid-hence-vanishing")
print(found)
print(claims.judge(found).text)

# %% [markdown]
# The output's sigmoid stands in the chain rule once, not at every step.

# %%
found = claims.run("output-sigmoid")
print(claims.judge(found).text)
draw(found)
# %% [markdown]
# A plain network can hold a bit for ten thousand steps. That training does not always find such weights is a
# claim of its own (`can-hold-cannot-learn`).

# %%
found = claims.run("incapable")
print(found)
print(claims.judge(found).text)

# %% [markdown]
# ## Your own statement
#
# A claim is one function and one record: `CONTRIBUTING.md` has one in forty lines. All of them are listed by
# `jaxrnn claims`, and `jaxrnn claims run --all --out runs/claims` measures them on your machine.
