"""Standardised logits: mean 0 and standard deviation 1 over the classes of each example."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.losses._numerics import ROUNDINGS, below_largest, l2_norm, power_of_two, widen


def standardized(logits: ArrayLike, *, eps: float = 1e-7) -> jax.Array:
  """Return (z - mean z) / (eps + std z) over the classes of logits z (..., C), float32 or wider.

  The variance is the unbiased one: the sum of squares is divided by C - 1. Logits that are
  standardised on both sides compare the order and the relative distances of the classes: the loss
  does not change if either side's logits are shifted or multiplied by a positive number.

  A logit of -inf, an impossible class, stays -inf; mean and deviation are those of the others. A
  row whose logits all agree (up to 16 roundings of the largest), or of one class alone, has the
  value 0 and takes no gradient.

  Args:
    logits: (..., C), with any leading axes. They keep their gradient: the caller stops the
      teacher's.
    eps: added to the standard deviation, not to the variance.

  Source: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, the authors'
  code (sunshangquan/logit-standardization-KD, `normalize`), and torchdistill's LogitStdKDLoss.
  There, a row of equal logits has a gradient 1 / eps times too large, 1e7: a student whose last
  layer starts at zero would leave its weights in the first step. One class alone gives NaN there.

  >>> standardized(jnp.array([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])).round(4)
  Array([[-1.,  0.,  1.],
         [ 0.,  0.,  0.]], dtype=float32)
  """
  (logits,) = widen(logits, what="standardized")
  possible = logits != -jnp.inf
  count = jnp.sum(possible, axis=-1, keepdims=True, dtype=logits.dtype)
  # Relative to the largest, so that the mean of large and close logits does not cancel.
  centred = jnp.where(possible, below_largest(logits), 0.0)
  centred = centred - jnp.sum(centred, axis=-1, keepdims=True) / jnp.maximum(count, 1.0)
  centred = jnp.where(possible, centred, 0.0)
  # Divided by a power of two, so that squares neither overflow nor vanish.
  scale = power_of_two(jnp.max(jnp.abs(centred), axis=-1, keepdims=True))
  centred = centred / scale
  deviation = l2_norm(centred, -1, keepdims=True) / jnp.sqrt(jnp.maximum(count - 1.0, 1.0))
  largest = jnp.max(jnp.where(possible, jnp.abs(logits), 0.0), axis=-1, keepdims=True)
  rounding = ROUNDINGS * jnp.finfo(logits.dtype).eps * lax.stop_gradient(largest) / scale
  # A row with NaN or inf stays NaN.
  varies = (deviation > rounding) | ~jnp.isfinite(largest)
  divisor = jnp.where(varies, deviation, 1.0) + eps / scale
  return jnp.where(possible, jnp.where(varies, centred / divisor, 0.0), -jnp.inf)
