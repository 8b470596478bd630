"""Import and export of weights: PyTorch, Keras, Flax and Equinox as arrays, any module as a safetensors file.

Of these frameworks only Flax is imported, and no file that is read can run code.
"""

from jaxrnn.interop.equinox import from_equinox
from jaxrnn.interop.files import load, save
from jaxrnn.interop.flax import from_linen, from_nnx, to_linen, to_nnx
from jaxrnn.interop.keras import from_keras, to_keras
from jaxrnn.interop.pytorch import (
    carry_from_pytorch,
    carry_to_pytorch,
    from_pytorch,
    to_pytorch,
)

__all__ = [
    "carry_from_pytorch",
    "carry_to_pytorch",
    "from_equinox",
    "from_keras",
    "from_linen",
    "from_nnx",
    "from_pytorch",
    "load",
    "save",
    "to_keras",
    "to_linen",
    "to_nnx",
    "to_pytorch",
]
