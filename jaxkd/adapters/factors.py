"""Networks of factor transfer: the teacher's paraphraser and the student's translator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from jaxkd.errors import ConfigError
from jaxkd.losses._checks import is_number


class FactorEncoder(nn.Module):
  """Three 3x3 convolutions from a feature map to a factor, each followed by a leaky ReLU.

  C -> C -> channels -> channels, with biases and padding 1, so the size does not change. On the
  teacher's map it is the paraphraser, on the student's the translator. If the two factors differ
  in size, `jaxkd.losses.factor_transfer` average-pools the larger.

  Attributes:
    channels: channels of the factor.
    batch_norm: normalise after each convolution.
    negative_slope: slope of the leaky ReLU for negative inputs.
    axis_name: device axis over which batch statistics are shared; None keeps them per device.
    dtype: dtype of the computation; parameters and statistics stay float32.

  Parameters: "conv1".."conv3" {"kernel", "bias"}; with `batch_norm` also "bn1".."bn3" {"scale",
  "bias"} and statistics of those names.

  Source: Kim et al., "Paraphrasing Complex Network: Network Compression via Factor Transfer",
  NeurIPS 2018, as the authors' code. RepDistiller's translator has `batch_norm=True`, its
  paraphraser has not.
  """

  channels: int
  batch_norm: bool = False
  negative_slope: float = 0.1
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, features: jax.Array, train: bool) -> jax.Array:
    """Map (B, H, W, C) to (B, H, W, channels)."""
    if features.ndim != 4:
      raise ConfigError(f"{type(self).__name__}: features {features.shape} are not (B, H, W, C)")
    x = features
    for i, width in enumerate([features.shape[-1], self.channels, self.channels], start=1):
      x = nn.Conv(width, (3, 3), padding=1, dtype=self.dtype, name=f"conv{i}")(x)
      if self.batch_norm:
        x = nn.BatchNorm(
          use_running_average=not train,
          momentum=0.9,
          epsilon=1e-5,
          axis_name=self.axis_name,
          use_fast_variance=False,  # the fast form cancels in float32 where |mean| >> deviation
          dtype=self.dtype,
          name=f"bn{i}",
        )(x)
      x = nn.leaky_relu(x, self.negative_slope)
    return x


class FactorDecoder(FactorEncoder):
  """The mirror image of FactorEncoder, from a factor back to the teacher's feature map.

  Three transposed 3x3 convolutions, kC -> kC -> C -> C, each followed by a leaky ReLU. Of stride
  1, a transposed convolution is a convolution with its kernel turned by 180 degrees, so these
  are FactorEncoder's own layers.

  Attributes:
    channels: the teacher's, C.
    batch_norm: normalise after each convolution.
    negative_slope: slope of the leaky ReLU for negative inputs.
    axis_name: device axis over which batch statistics are shared; None keeps them per device.
    dtype: dtype of the computation; parameters and statistics stay float32.
  """


def paraphraser_for(
  teacher_shape: Sequence[int], *, stage: str, rate: float = 0.5, **options: Any
) -> tuple[FactorEncoder, FactorDecoder]:
  """Return an encoder and a decoder that learn to reconstruct a teacher's feature map.

  Args:
    teacher_shape: (B, H, W, C_t); the batch size is not used.
    stage: name of the stage, for the error.
    rate: channels of the factor per channel of the teacher (the paper's k), rounded down.
    **options: other attributes of FactorEncoder, for both.

  Returns:
    (encoder, decoder), for `jaxkd.methods.ft`.

  Raises:
    ConfigError: naming the stage and the shape, if it is not a map or the factor has no channel.

  >>> encoder, decoder = paraphraser_for((2, 4, 4, 64), stage="stage3")
  >>> encoder.channels, decoder.channels
  (32, 64)
  """
  teacher = tuple(teacher_shape)
  where = f"stage {stage!r}: no paraphraser of teacher {teacher}"
  if len(teacher) != 4:
    raise ConfigError(f"{where}: it must be (B, H, W, C)")
  channels = _factor_channels(where, teacher[-1], rate)
  return FactorEncoder(channels, **options), FactorDecoder(teacher[-1], **options)


def translator_for(
  student_shape: Sequence[int],
  teacher_shape: Sequence[int],
  *,
  stage: str,
  rate: float = 0.5,
  **options: Any,
) -> FactorEncoder:
  """Return an encoder from a student's feature map to the channels of the teacher's factor.

  Args:
    student_shape: (B, H, W, C_s).
    teacher_shape: (B, H', W', C_t), of the feature map that the paraphraser takes; the sizes may
      differ. Batch sizes are not used.
    stage: name of the stage, for the error.
    rate: rate of the teacher's paraphraser.
    **options: other attributes of FactorEncoder.

  Returns:
    A FactorEncoder, C_s -> C_s -> rate * C_t -> rate * C_t. It keeps the student's size.

  Raises:
    ConfigError: naming the stage and both shapes, if one is not a map or the factor has no
      channel.

  >>> translator_for((2, 8, 8, 16), (2, 4, 4, 64), stage="stage3", rate=0.75).channels
  48
  """
  student, teacher = tuple(student_shape), tuple(teacher_shape)
  where = f"stage {stage!r}: no translator from student {student} to teacher {teacher}"
  if not len(student) == len(teacher) == 4:
    raise ConfigError(f"{where}: both must be (B, H, W, C)")
  return FactorEncoder(_factor_channels(where, teacher[-1], rate), **options)


def _factor_channels(where: str, channels: int, rate: float) -> int:
  if not is_number(rate) or not math.isfinite(rate) or int(channels * rate) < 1:
    raise ConfigError(
      f"{where}: rate is {rate!r}, which must leave at least one of {channels} channels"
    )
  return int(channels * rate)
