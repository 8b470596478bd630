"""The multi-dimensional LSTM: a recurrence over an image, along its rows and its columns at once.

At pixel (r, s), from the pixel above, (r − 1, s), and the one to the left, (r, s − 1), zeros at the border,

    i, f↓, f→, g, o = W x_{r,s} + U↓ h_{r−1,s} + U→ h_{r,s−1} + b
    c_{r,s} = σ(f↓) c_{r−1,s} + σ(f→) c_{r,s−1} + σ(i) tanh(g)
    h_{r,s} = σ(o) tanh(c_{r,s})

Graves, Fernández & Schmidhuber 2007, "Multi-Dimensional Recurrent Neural Networks", with one forget gate a
dimension, here without their peepholes. One such network sees the quadrant above and to the left of a pixel;
four, with weights of their own, start from the four corners and together see the whole image. The paper
feeds all four hidden layers to one output layer, so the features of a pixel are the four h side by side.

Pixels of an anti-diagonal, r + s = d, do not depend on each other. The image is skewed so that a diagonal
is one row, and one scan of depth rows + columns − 1 takes the place of rows · columns steps, for the four
directions together. Each step computes as many pixels as there are rows, so the recurrence over a square
image costs about twice its pixels.

Weakness: a cell is summed over all paths from a pixel to another, C(Δr + Δs, Δr) of them. With forget gates
at σ(f↓) + σ(f→) > 1 it grows exponentially (Leifert et al. 2016), so their biases start at 0, where the sum
is 1, and not at 1 as in `LSTMCell`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import sigmoid
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells import initializers
from jaxrnn.cells.base import affine
from jaxrnn.models.readouts import linear
from jaxrnn.typing import ArrayLike

_GATES = 5  # input, forget along the rows, forget along the columns, cell, output
_ROWS, _COLUMNS = -3, -2
_CORNERS = ((), (_COLUMNS,), (_ROWS,), (_ROWS, _COLUMNS))
"""The axes to flip, so that the reading starts at the top left, top right, bottom left, bottom right."""


class MultiDimensionalLSTM(nnx.Module):
    """Four LSTMs over an image, one from each corner.

    Args:
      in_features: features F of a pixel.
      hidden_features: units H of each direction.
      param_dtype: dtype of parameters and arithmetic.
      rngs: ``nnx.Rngs`` whose ``params`` stream draws the weights.

    Attributes:
      quadrants: a `QuadrantLSTM` whose parameters have a leading axis of 4, one a corner: top left, top
        right, bottom left, bottom right.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn.models import MultiDimensionalLSTM
      >>> MultiDimensionalLSTM(3, 8, rngs=nnx.Rngs(0))(jnp.ones((4, 28, 20, 3))).shape
      (4, 28, 20, 32)
    """

    @checked
    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        checks.floating_dtype("param_dtype", param_dtype)
        checks.count("in_features", in_features)
        checks.count("hidden_features", hidden_features)
        self.in_features = in_features
        self.out_features = len(_CORNERS) * hidden_features
        self.quadrants = jax.vmap(
            lambda key: QuadrantLSTM(
                in_features, hidden_features, param_dtype=param_dtype, rngs=nnx.Rngs(key)
            )
        )(jax.random.split(rngs.params(), len(_CORNERS)))

    @checked
    def __call__(self, images: Float[ArrayLike, "*B R S F"] | Any) -> Float[Array, "*B R S Y"]:
        """Map images [*B, rows, columns, F] to features [*B, rows, columns, 4·H].

        Raises:
          InputError: images that do not fit.
        """
        checks.features("images", images, self.in_features, self.dtype, "network")
        if images.ndim < 3 or 0 in images.shape[_ROWS : _COLUMNS + 1]:
            checks.refuse(
                "images", checks.describe(images), "at least one pixel, [*B, rows, columns, F]"
            )
        seen = jnp.stack([jnp.flip(images, axes) for axes in _CORNERS])
        read = jax.vmap(lambda quadrant, seen: quadrant(seen))(self.quadrants, seen)
        turned = [jnp.flip(h, axes) for h, axes in zip(read, _CORNERS, strict=True)]
        return jnp.concatenate(turned, axis=-1)

    @property
    def dtype(self) -> Any:
        """The dtype of parameters and arithmetic."""
        return self.quadrants.bias.dtype


class QuadrantLSTM(nnx.Module):
    """The recurrence from the top left corner: h at a pixel depends on what is not below or right of it.

    Attributes:
      kernel: input weights [F, 5·H], gates side by side: input, forget along the rows, forget along the
        columns, cell, output.
      recurrent_kernel: recurrent weights [2·H, 5·H]; the upper half reads the pixel above, the lower half
        the one to the left.
      bias: biases [5·H], zero at the start.
    """

    def __init__(self, in_features: int, hidden_features: int, *, param_dtype: Any, rngs: nnx.Rngs):
        f, h = in_features, hidden_features
        draw = initializers.per_gate
        self.kernel = nnx.Param(
            draw(initializers.glorot(), rngs.params(), (f, h), _GATES, param_dtype)
        )
        # Orthonormal over both neighbours at once: with a block for each, their pulls' variances would add.
        self.recurrent_kernel = nnx.Param(
            draw(initializers.orthogonal(), rngs.params(), (2 * h, h), _GATES, param_dtype)
        )
        self.bias = nnx.Param(jnp.zeros((_GATES * h,), param_dtype))

    def __call__(self, images: Float[Array, "*B R S F"]) -> Float[Array, "*B R S H"]:
        """Return h at every pixel."""
        drive = affine(images, self.kernel[...], self.bias[...])
        diagonals = _skewed(jnp.moveaxis(drive, (_ROWS, _COLUMNS), (0, 1)))
        zeros = jnp.zeros((*diagonals.shape[1:-1], self.bias.shape[0] // _GATES), drive.dtype)
        _, hs = jax.lax.scan(self.step, (zeros, zeros), diagonals)
        return jnp.moveaxis(_straight(hs, images.shape[_COLUMNS]), (0, 1), (_ROWS, _COLUMNS))

    def step(self, carry: Any, drive: Float[Array, "R *B P"]) -> tuple[Any, Float[Array, "R *B H"]]:
        """Take one diagonal further; carry (c, h) of the last one, each [rows, *B, H], row by row.

        Where the diagonal has not yet entered the image the drive is zero, bias included, and so is all that
        comes before: there tanh(g) = 0 and the cell stays at the zero that the border asks for. Where it has
        left the image the result is read by no pixel.
        """
        c, h = carry
        above_c, above_h = _one_row_down(c), _one_row_down(h)
        pull = jnp.concatenate([above_h, h], axis=-1) @ self.recurrent_kernel[...]
        i, f_rows, f_columns, g, o = jnp.split(drive + pull, _GATES, axis=-1)
        c = sigmoid(f_rows) * above_c + sigmoid(f_columns) * c + sigmoid(i) * jnp.tanh(g)
        h = sigmoid(o) * jnp.tanh(c)
        return (c, h), h


class ImageClassifier(nnx.Module):
    """A multi-dimensional LSTM and a linear readout of its mean over the pixels.

        logits = V mean_{r,s} h_{r,s} + d

    The mean of what a linear readout would say at every pixel; the paper labels the pixels themselves.

    Args:
      network: maps images to features at every pixel.
      classes: number of classes C.
      rngs: ``nnx.Rngs`` whose ``params`` stream draws the readout's weights.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> from jaxrnn.models import ImageClassifier, MultiDimensionalLSTM
      >>> rngs = nnx.Rngs(0)
      >>> model = ImageClassifier(MultiDimensionalLSTM(1, 8, rngs=rngs), 10, rngs=rngs)
      >>> model(jnp.ones((32, 8, 8, 1))).shape
      (32, 10)
    """

    @checked
    def __init__(self, network: MultiDimensionalLSTM | Any, classes: int, *, rngs: nnx.Rngs):
        if not isinstance(network, MultiDimensionalLSTM):
            checks.refuse("network", type(network).__name__, "a MultiDimensionalLSTM")
        checks.count("classes", classes)
        self.network = network
        self.readout = linear(network.out_features, classes, network.dtype, rngs)

    @checked
    def __call__(self, images: Float[ArrayLike, "*B R S F"] | Any) -> Float[Array, "*B C"]:
        """Map images [*B, rows, columns, F] to logits [*B, C]."""
        return self.readout(jnp.mean(self.network(images), axis=(_ROWS, _COLUMNS)))


def _skewed(pixels: Float[Array, "R S *rest"]) -> Float[Array, "D R *rest"]:
    """Shift row r by r columns, with zeros around, and return diagonals first: [rows + columns − 1, rows].

    Rows that are padded to a width of rows + columns, and read again as rows one shorter, are each shifted by
    one more than the row before: no gather, in either direction.
    """
    rows, columns, *rest = pixels.shape
    padded = jnp.pad(pixels, [(0, 0), (0, rows)] + [(0, 0)] * len(rest))
    flat = padded.reshape(rows * (rows + columns), *rest)[:-rows]
    return jnp.swapaxes(flat.reshape(rows, rows + columns - 1, *rest), 0, 1)


def _straight(diagonals: Float[Array, "D R *rest"], columns: int) -> Float[Array, "R S *rest"]:
    """Undo `_skewed`."""
    width, rows, *rest = diagonals.shape
    flat = jnp.swapaxes(diagonals, 0, 1).reshape(rows * width, *rest)
    padded = jnp.pad(flat, [(0, rows)] + [(0, 0)] * len(rest))
    return padded.reshape(rows, rows + columns, *rest)[:, :columns]


def _one_row_down(state: Float[Array, "R *B H"]) -> Float[Array, "R *B H"]:
    """Hand each row the state of the row above, the first one zeros."""
    return jnp.concatenate([jnp.zeros_like(state[:1]), state[:-1]])
