"""Diagonal linear state-space cells, whose complex units rotate and decay independently: LRU and S5.

    s' = λ s + γ B x          s, λ, B complex, λ and γ a number for each unit
    y  = (Re s', Im s')

`LRUCell`: λ = exp(−e^ν + i θ) and γ = √(1 − |λ|²) at the start. Orvieto et al., "Resurrecting Recurrent
Neural Networks for Long Sequences", ICML 2023.

`S5Cell`: the equation ds/dt = Λ s + B x with x held constant over a step Δ: λ = exp(Λ Δ), γ = (λ − 1) / Λ,
with Λ from the HiPPO-N matrix at the start and a learned Δ for each unit. Smith, Warrington & Linderman,
"Simplified State Space Layers for Sequence Modeling", ICLR 2023. Of each conjugate pair only one number is
stored.

The eigenvalues are parametrised directly, with |λ| < 1 for all values of the parameters: λ is shortened by
one rounding unit of its dtype, which in bfloat16 limits the memory to 128 steps. The step Jacobian is
constant, and all steps can be computed at once (`jaxrnn.Associative`). The papers' real readout
Re(C s) + D x, with weights C and D, is a linear layer on y and x, and their nonlinearity is between layers. A
single cell of this kind is only a linear filter.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.cells.base import SplitStep, everywhere, product
from jaxrnn.typing import at_least_float32

ComplexCarry = tuple[Float[Array, "*B H"], Float[Array, "*B H"]]
Complex = tuple[Float[Array, "H"], Float[Array, "H"]]


class StateSpaceCell(SplitStep):
    """A diagonal linear recurrence of complex units; carry (re, im), each [*B, H], output both [*B, 2·H].

    Attributes:
      kernel: B, real and imaginary part side by side [F, 2·H].
    """

    carry_names: ClassVar[tuple[str, ...]] = ("re", "im")

    kernel: nnx.Param

    @abc.abstractmethod
    def eigenvalues(self) -> Complex:
        """Return λ, real and imaginary part, each [H]."""

    @abc.abstractmethod
    def input_scale(self) -> Complex:
        """Return γ, real and imaginary part, each [H]."""

    @property
    def out_features(self) -> int:
        """Number Y of features of the output: real and imaginary parts."""
        return 2 * self.hidden_features

    def project(self, x: Float[Array, "*B F"]) -> Float[Array, "*B P"]:
        """Return γ B x."""
        return product(x, _times(self.input_scale(), jnp.split(self.kernel[...], 2, axis=-1)))

    def mix(self, carry: ComplexCarry) -> Float[Array, "*B P"]:
        """Return λ s."""
        return _times(self.eigenvalues(), carry)

    def update(
        self, carry: ComplexCarry, drive: Float[Array, "*B P"], pull: Float[Array, "*B P"]
    ) -> ComplexCarry:
        """Return drive + pull."""
        del carry  # enters through the pull alone
        re, im = jnp.split(drive + pull, 2, axis=-1)
        return re, im

    def readout(self, carry: ComplexCarry) -> Float[Array, "*B Y"]:
        """Return real and imaginary parts side by side."""
        return jnp.concatenate(carry, axis=-1)


def _times(factor: Complex, parts: Any) -> Float[Array, "*B P"]:
    """Return the complex product, real and imaginary part side by side."""
    re, im = parts
    a, b = (everywhere(part, re) for part in factor)
    return jnp.concatenate([a * re - b * im, b * re + a * im], axis=-1)


_PHASES = (1e-30, 1e30)  # float32 represents these numbers, and a millionth of them


class LRUCell(StateSpaceCell):
    """Linear recurrent unit; carry (re, im), each [*B, H], output both [*B, 2·H].

    Args:
      in_features: size F of the input.
      hidden_features: number H of complex units.
      radius: |λ| starts uniform over the area of this ring (least, largest), within 0 and 1.
      largest_phase: arg λ starts uniform from 0 to this, radians; from 1e-30 to 1e30.
      param_dtype: dtype of the parameters, the carry and the arithmetic.
      rngs: ``nnx.Rngs`` whose ``params`` stream draws the weights.

    Attributes:
      log_decay: ν [H].
      log_phase: log θ [H].
      log_scale: log γ [H].

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> cell = jaxrnn.LRUCell(3, 8, rngs=nnx.Rngs(0))
      >>> jaxrnn.unroll(cell, jnp.ones((20, 5, 3)), method=jaxrnn.Associative()).outputs.shape
      (20, 5, 16)
    """

    @checked
    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        radius: tuple[float, float] | Any = (0.4, 0.99),
        largest_phase: float = 2 * np.pi,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        checks.floating_dtype("param_dtype", param_dtype)
        super().__init__(in_features, hidden_features, rngs=rngs)
        least, largest = checks.interval("radius", radius, 0, 1 - 1e-6)
        if not _PHASES[0] <= largest_phase <= _PHASES[1]:
            expected = f"a number above 0, from {_PHASES[0]:g} to {_PHASES[1]:g}"
            checks.refuse("largest_phase", largest_phase, expected)
        h, draw = hidden_features, jax.random.uniform
        square = draw(rngs.params(), (h,), jnp.float32, max(least, 1e-3 * largest) ** 2, largest**2)
        phase = draw(rngs.params(), (h,), jnp.float32, 1e-6 * largest_phase, largest_phase)
        self.log_decay = nnx.Param(jnp.log(-0.5 * jnp.log(square)).astype(param_dtype))
        self.log_phase = nnx.Param(jnp.log(phase).astype(param_dtype))
        self.log_scale = nnx.Param(0.5 * jnp.log1p(-square).astype(param_dtype))
        self.kernel = nnx.Param(_complex_normal(rngs, in_features, h, param_dtype))

    def eigenvalues(self) -> Complex:
        """Return λ = exp(−e^ν + i θ), real and imaginary part, each [H]."""
        return _polar(-jnp.exp(self.log_decay[...]), jnp.exp(self.log_phase[...]))

    def input_scale(self) -> Complex:
        """Return γ, real and imaginary part, each [H]."""
        scale = jnp.exp(self.log_scale[...])
        return scale, jnp.zeros_like(scale)


class S5Cell(StateSpaceCell):
    """S5 state space; carry (re, im), each [*B, H], output both [*B, 2·H].

    Args:
      in_features: size F of the input.
      hidden_features: number H of complex units, one of each conjugate pair.
      steps: Δ starts log-uniform in this range (least, largest).
      param_dtype: dtype of the parameters, the carry and the arithmetic.
      rngs: ``nnx.Rngs`` whose ``params`` stream draws the weights.

    Attributes:
      log_decay: log(−Re Λ) [H].
      frequency: Im Λ [H].
      log_step: log Δ [H].

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> import jaxrnn
      >>> cell = jaxrnn.S5Cell(3, 8, rngs=nnx.Rngs(0))
      >>> jaxrnn.unroll(cell, jnp.ones((20, 5, 3)), method=jaxrnn.Associative()).outputs.shape
      (20, 5, 16)
    """

    @checked
    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        steps: tuple[float, float] | Any = (0.001, 0.1),
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        checks.floating_dtype("param_dtype", param_dtype)
        super().__init__(in_features, hidden_features, rngs=rngs)
        least, largest = checks.interval("steps", steps, 1e-6, 10)
        h = hidden_features
        values, vectors = _hippo_modes(h)
        self.log_decay = nnx.Param(jnp.log(jnp.asarray(-values.real)).astype(param_dtype))
        self.frequency = nnx.Param(jnp.asarray(values.imag).astype(param_dtype))
        log_steps = jax.random.uniform(
            rngs.params(), (h,), jnp.float32, np.log(least), np.log(largest)
        )
        self.log_step = nnx.Param(log_steps.astype(param_dtype))
        # B is drawn real in the coordinates of HiPPO-N, and transformed to those of its eigenvectors.
        drawn = jax.random.normal(rngs.params(), (in_features, 2 * h), jnp.float32)
        parts = [drawn @ jnp.asarray(part, jnp.float32) for part in (vectors.real, -vectors.imag)]
        kernel = jnp.concatenate(parts, axis=-1) * in_features**-0.5
        self.kernel = nnx.Param(kernel.astype(param_dtype))

    def eigenvalues(self) -> Complex:
        """Return λ = exp(Λ Δ), real and imaginary part, each [H]."""
        step = jnp.exp(self.log_step[...])
        return _polar(-jnp.exp(self.log_decay[...]) * step, self.frequency[...] * step)

    def input_scale(self) -> Complex:
        """Return (λ − 1) / Λ, real and imaginary part, each [H]."""
        re, im = -jnp.exp(self.log_decay[...]), self.frequency[...]
        step = jnp.exp(self.log_step[...])
        # λ − 1 by e^a cos b − 1 = (e^a − 1) − 2 e^a sin²(b/2), without loss of digits at small steps.
        a, b = re * step, im * step
        grown_re = jnp.expm1(a) - 2 * jnp.exp(a) * jnp.sin(b / 2) ** 2
        grown_im = jnp.exp(a) * jnp.sin(b)
        square = re**2 + im**2
        return (grown_re * re + grown_im * im) / square, (grown_im * re - grown_re * im) / square


def _polar(log_size: Float[Array, "H"], angle: Float[Array, "H"]) -> Complex:
    """Return e^(log_size + i angle), shortened by one rounding unit so that it does not round beyond 1."""
    dtype = log_size.dtype
    wide = at_least_float32(dtype)
    size = (1 - float(jnp.finfo(dtype).eps)) * jnp.exp(log_size.astype(wide))
    angle = angle.astype(wide)
    return (size * jnp.cos(angle)).astype(dtype), (size * jnp.sin(angle)).astype(dtype)


def _complex_normal(rngs: nnx.Rngs, features: int, units: int, dtype: Any) -> Any:
    """Return complex Gaussian weights of variance 1/F, parts side by side [F, 2·H]."""
    drawn = jax.random.normal(rngs.params(), (features, 2 * units), jnp.float32)
    return (drawn * (2 * features) ** -0.5).astype(dtype)


def _hippo_modes(units: int) -> tuple[Any, Any]:
    """Return the eigenvalues of HiPPO-N [2·H, 2·H] above the real axis [H], and eigenvectors [2·H, H]."""
    root = np.sqrt(2 * np.arange(2 * units) + 1)
    product = np.tril(root[:, None] * root[None, :], -1)
    skew = 0.5 * (product.T - product)  # HiPPO-N is −I/2 plus this matrix
    frequencies, vectors = np.linalg.eigh(-1j * skew)
    above = frequencies > 0
    return -0.5 + 1j * frequencies[above], vectors[:, above]
