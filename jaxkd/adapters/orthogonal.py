"""VkD's projection, whose kernel has orthonormal rows or columns at every step."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import expm, solve_triangular

from jaxkd.errors import ConfigError

# Collection of the fixed base of a parametrisation.
CONSTANTS = "constants"


class OrthogonalProjector(nn.Module):
  """A linear projection without bias whose kernel (D_s, D_t) has orthonormal rows or columns.

  The kernel is (base q(raw))^T with a fixed orthogonal matrix `base`. q is a product of Householder
  reflections if the widths differ, the exponential of a skew-symmetric matrix if they are equal.

  Features (B, H, W, D_s) or (B, T, D_s) are first averaged over positions, except with `positions`.

  Attributes:
    channels: the teacher's width D_t.
    prefix: tokens (B, T, D_s) that are left out, from the first.
    positions: project every position in place of their mean.
    affine: whether a learned factor and offset of each channel follow.
    axis_name: not used, since there are no batch statistics; here because every adapter takes it.
    dtype: dtype of the projection; parameters and the parametrisation stay float32.

  Parameters: "raw" (D_t, D_s), at first -1 on the diagonal, for which q is the identity; "scale"
  and "bias" (D_t,) if `affine`. Variables of the collection "constants": "base", square with the
  larger width, drawn once.

  Source: Miles et al., "VkD: Improving Knowledge Distillation using Orthogonal Projections", CVPR
  2024, whose code uses torch's orthogonal parametrisation of this form. There, the diagonal of
  `raw` is a factor of each column that is rounded to an integer, so that weight decay on `raw`
  makes it 0; here its sign counts alone. The factor and offset are those of its ViDT.
  """

  channels: int
  prefix: int = 0
  positions: bool = False
  affine: bool = False
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, features: jax.Array, train: bool) -> jax.Array:
    """Map (B, H, W, D_s), (B, T, D_s) or (B, D_s) to (B, D_t), with `positions` (B, ..., D_t)."""
    x = jnp.asarray(features)
    if x.ndim not in (2, 3, 4):
      raise ConfigError(
        f"OrthogonalProjector: features {x.shape} are not (B, H, W, C), (B, T, C) or (B, C)"
      )
    if x.ndim == 3:
      x = x[:, self.prefix :]
    if not self.positions:
      x = jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))
    width = x.shape[-1]
    raw = self.param("raw", _minus_identity, (self.channels, width))
    side = max(self.channels, width)

    def draw() -> jax.Array:
      return nn.initializers.orthogonal()(self.make_rng("params"), (side, side))

    base = self.variable(CONSTANTS, "base", draw).value
    kernel = orthogonal_kernel(raw, base).astype(self.dtype or x.dtype)
    x = x.astype(kernel.dtype) @ kernel
    if self.affine:
      scale = self.param("scale", nn.initializers.ones, (self.channels,))
      bias = self.param("bias", nn.initializers.zeros, (self.channels,))
      scale, bias = (y.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,)) for y in (scale, bias))
      x = x * scale + bias
    return x


def orthogonal_kernel(raw: jax.Array, base: jax.Array) -> jax.Array:
  """Return the kernel (D_s, D_t) with orthonormal rows or columns, whichever are fewer.

  Args:
    raw: (D_t, D_s), any values. Of unequal widths, what is below its diagonal counts (of its
      transpose, if it is wide), and the signs of the diagonal, which take no gradient.
    base: orthogonal, square with the larger width, constant.
  """
  base = lax.stop_gradient(base)
  tall = raw if raw.shape[0] >= raw.shape[1] else raw.T
  if raw.shape[0] == raw.shape[1]:
    lower = jnp.tril(tall)
    found = expm(lower - lower.T)
  else:
    found = _reflections(tall)
  found = jnp.matmul(base, found, precision=lax.Precision.HIGHEST)
  return found.T if raw.shape[0] >= raw.shape[1] else found


def _reflections(tall: jax.Array) -> jax.Array:
  """Return the first columns of the product of reflections I - 2 v v^T / |v|^2, with signs.

  v_k is e_k plus what is below the diagonal in column k. The product is I - V T V^T, where the
  inverse of T is the upper triangle of V^T V with half its diagonal.
  """
  rows, columns = tall.shape
  vectors = jnp.tril(tall, -1) + jnp.eye(rows, columns, dtype=tall.dtype)
  gram = jnp.matmul(vectors.T, vectors, precision=lax.Precision.HIGHEST)
  inverse = jnp.triu(gram, 1) + 0.5 * jnp.diag(jnp.diag(gram))
  first = vectors[:columns].T
  solved = solve_triangular(inverse, first)
  product = jnp.matmul(vectors, solved, precision=lax.Precision.HIGHEST)
  signs = jnp.where(jnp.diag(lax.stop_gradient(tall)) < 0, -1.0, 1.0).astype(tall.dtype)
  return (jnp.eye(rows, columns, dtype=tall.dtype) - product) * signs[None, :]


def _minus_identity(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
  return -jnp.eye(*shape, dtype=dtype)
