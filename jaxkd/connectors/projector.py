"""SimKD's projector: the student's last feature map in the shape of the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from jaxkd.errors import ConfigError
from jaxkd.losses.spatial import adaptive_average_pool


class Projector(nn.Module):
  """Three convolutions, 1x1 - 3x3 - 1x1, each with batch normalisation and ReLU.

  C_s -> C_t / reduction -> C_t / reduction -> C_t, without biases. A student's map with more
  rows than the teacher's is average-pooled to its size first.

  Attributes:
    size: the teacher's (height, width).
    channels: the teacher's channels, C_t.
    reduction: how much narrower the middle is; it must divide C_t. The paper tries 1, 2, 4, 8.
    axis_name: device axis over which batch statistics are shared; None keeps them per device.
    dtype: of the computation; parameters and statistics stay float32.

  Parameters: "conv1".."conv3" {"kernel"} and "bn1".."bn3" {"scale", "bias"}; statistics:
  "bn1".."bn3".

  Source: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022,
  as the authors' code, whose default reduction is 2.
  """

  size: tuple[int, int]
  channels: int
  reduction: int = 2
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, features: jax.Array, train: bool) -> jax.Array:
    """(B, H, W, C_s) -> (B, H', W', C_t), H' and W' the teacher's or the student's, if smaller."""
    if features.ndim != 4:
      raise ConfigError(f"Projector: features {features.shape} are not (B, H, W, C)")
    width = _middle_width(self.channels, self.reduction)
    x = features
    if x.shape[1] > self.size[0]:
      x = adaptive_average_pool(x, *self.size)
    for i, (channels, kernel) in enumerate([(width, 1), (width, 3), (self.channels, 1)], start=1):
      x = nn.Conv(
        channels,
        (kernel, kernel),
        padding=kernel // 2,
        use_bias=False,
        dtype=self.dtype,
        name=f"conv{i}",
      )(x)
      x = nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        axis_name=self.axis_name,
        use_fast_variance=False,  # the fast form cancels in float32 where |mean| >> deviation
        dtype=self.dtype,
        name=f"bn{i}",
      )(x)
      x = nn.relu(x)
    return x


def projector_for(
  student_shape: Sequence[int],
  teacher_shape: Sequence[int],
  *,
  stage: str,
  reduction: int = 2,
  **options: Any,
) -> Projector:
  """The Projector between two feature maps, or an error that says why there is none.

  Args:
    student_shape: (B, H, W, C_s).
    teacher_shape: (B, H', W', C_t); the batch size is not looked at.
    stage: its name, for the error.
    reduction: see Projector.
    **options: Projector's other attributes.

  Returns:
    A Projector.

  Raises:
    ConfigError: naming the stage and both shapes, if one is not a map or reduction does not
      divide C_t.

  >>> projector_for((2, 8, 8, 16), (2, 4, 4, 32), stage="stage3", reduction=4).channels
  32
  """
  student, teacher = tuple(student_shape), tuple(teacher_shape)
  where = f"stage {stage!r}: no projector from student {student} to teacher {teacher}"
  if not len(student) == len(teacher) == 4:
    raise ConfigError(f"{where}: both must be (B, H, W, C)")
  try:
    _middle_width(teacher[-1], reduction)
  except ConfigError as error:
    raise ConfigError(f"{where}: {error}") from error
  return Projector(
    size=(teacher[1], teacher[2]), channels=teacher[-1], reduction=reduction, **options
  )


def _middle_width(channels: int, reduction: int) -> int:
  if reduction < 1 or channels % reduction:
    raise ConfigError(f"reduction is {reduction}: it must divide the teacher's {channels} channels")
  return channels // reduction
