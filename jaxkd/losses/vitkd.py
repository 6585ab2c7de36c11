"""ViTKD: shallow tokens of a vision transformer are mimicked, deep ones generated."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError
from jaxkd.losses._checks import is_number, over_stages, stage_arrays
from jaxkd.losses.mgd import squared_error_sum
from jaxkd.types import Output, Terms

# Names of the features that `jaxkd.adapters.TokenGenerator` returns.
LOW = ("low1", "low2")
HIGH = "high"
# The positions that were generated, (B, N).
MASKED = "masked"


def vit_distillation(
  student: Output,
  teacher: Output,
  *,
  low: Sequence[str] = LOW,
  high: str = HIGH,
  low_weight: float = 3e-5,
  high_weight: float = 3e-6,
  masked: float = 0.5,
  where: ArrayLike | None = None,
) -> Terms:
  """ViTKD: features of the first blocks, and masked features of the last one.

  low_weight * sum_low mean_b sum (s - t)^2
  + high_weight / masked * mean_b sum_n m_n |s_n - t_n|^2, where m_n is 1 for a generated token.

  Args:
    student: Output whose features are (B, N, D), from `jaxkd.adapters.TokenGenerator`: aligned
      ones at `low`, generated ones at `high`, and the mask (B, N) at "masked".
    teacher: Output with features (B, N, D) of the same names, constant.
    low: names of the shallow features; () has none.
    high: name of the deep feature.
    low_weight: weight of the shallow features.
    high_weight: weight of the deep feature; at 0 it is not needed.
    masked: share of the tokens that are generated, the divisor of its term; the real share may be
      larger, since their number is a whole one.
    where: mask (B,) of the examples that count; see `squared_error_sum`.

  Returns:
    Terms(feature=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, an unknown feature, shapes that do not fit, or a
      share that is not in (0, 1].

  Source: Yang et al., "ViTKD: Practical Guidelines for ViT Feature Knowledge Distillation", 2022,
  as ViTKDLoss of cls_KD, which compares the outputs of the first two blocks and of the last one
  after its normalisation. Its published runs add NKD.

  >>> x = jnp.ones((2, 4, 3))
  >>> tokens = Output(features={"low1": x, "low2": x, "high": x, "masked": jnp.ones((2, 4))})
  >>> float(vit_distillation(tokens, tokens).total)
  0.0
  """
  if is_number(masked) and not 0 < masked <= 1:
    raise ConfigError(f"masked is {masked}: it must be greater than 0, and at most 1")

  def shallow(s: jax.Array, t: jax.Array) -> jax.Array:
    return squared_error_sum(s, t, where=where)

  def deep(s: jax.Array, t: jax.Array) -> jax.Array:
    positions = stage_arrays(student, MASKED, role="student", what="vit_distillation")
    return squared_error_sum(s, t, positions=positions, where=where) / masked

  what = "vit_distillation"
  total = jnp.float32(0)
  if low:
    total = total + low_weight * over_stages(shallow, student, teacher, low, what=what)
  if not (is_number(high_weight) and high_weight == 0):
    total = total + high_weight * over_stages(deep, student, teacher, (high,), what=what)
  return Terms(feature=total)
