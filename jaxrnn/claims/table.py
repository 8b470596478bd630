"""The claims by subject, in the order of the page: importing a subject puts its claims into `CLAIMS`."""

# isort: off
from jaxrnn.claims import gradients
from jaxrnn.claims import eigenvalues
from jaxrnn.claims import gates
from jaxrnn.claims import gate_roles
from jaxrnn.claims import updates
from jaxrnn.claims import memory
from jaxrnn.claims import direction
from jaxrnn.claims import context
from jaxrnn.claims import structure
from jaxrnn.claims import cost
from jaxrnn.claims import quality
from jaxrnn.claims import scaling
from jaxrnn.claims import unmeasured

SUBJECTS = (
    gradients, eigenvalues, gates, gate_roles, updates, memory, direction, context, structure,
    cost, quality, scaling, unmeasured,
)  # fmt: skip
