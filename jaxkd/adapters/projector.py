"""SimKD's projector, from the student's feature to the shape of the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses._resize import adaptive_average_pool

# The convolutions of a layout, first to last; "dw" is depthwise.
LAYOUTS = ("1x1", "1x1-1x1", "1x1-3x3-1x1", "1x1-dw3x3-1x1")


class Projector(nn.Module):
  """One to three convolutions, each with batch normalisation and ReLU, without biases.

  With w = C_t / reduction, from C_s channels to C_t:

  | layout | channels | parameters, 2 per channel of batch normalisation included |
  |---|---|---|
  | 1x1 | C_s, C_t | C_s C_t + 2 C_t |
  | 1x1-1x1 | C_s, w, C_t | C_s w + w C_t + 2 (w + C_t) |
  | 1x1-3x3-1x1 | C_s, w, w, C_t | C_s w + 9 w^2 + w C_t + 2 (2 w + C_t) |
  | 1x1-dw3x3-1x1 | C_s, w, w, C_t | C_s w + 9 w + w C_t + 2 (2 w + C_t) |

  A student's map with more rows than the teacher's is average-pooled to its size first. For a
  teacher's vector (B, C_t) a map is averaged to a vector, and every convolution, the depthwise one
  too, is a dense layer between the same channels: 9 w^2 and 9 w are then w^2.

  Attributes:
    size: the teacher's (height, width); None for a vector (B, C_t).
    channels: the teacher's channels, C_t.
    reduction: C_t / width of the middle; it must divide C_t. The paper tries 1, 2, 4, 8. The layout
      "1x1" has no middle and ignores it.
    layout: one of LAYOUTS; "dw3x3" is depthwise.
    activation: whether a ReLU follows the last normalisation. Without it, the output can match
      features of both signs (a model's `signed_stages`).
    axis_name: device axis over which batch statistics are shared; None keeps them per device.
    dtype: dtype of the computation; parameters and statistics stay float32.

  Parameters: "conv1", ... {"kernel"} and "bn1", ... {"scale", "bias"} in the layout's order;
  statistics: "bn1", .... Kernels are (k, k, in, out), for vectors (in, out).

  Source: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022,
  as in the authors' code, whose projector is "1x1-3x3-1x1" with reduction 2 by default. The other
  layouts are from the paper's ablation; the code has none of them (the depthwise one as a comment).
  Here they have batch normalisation and ReLU after every convolution, too. Vectors, and the form
  without a final ReLU, are this project's.
  """

  size: tuple[int, int] | None
  channels: int
  reduction: int = 2
  axis_name: str | None = None
  dtype: Any = None
  layout: str = "1x1-3x3-1x1"
  activation: bool = True

  @nn.compact
  def __call__(self, features: jax.Array, train: bool) -> jax.Array:
    """Map (B, H, W, C_s) to (B, H', W', C_t), of the teacher's size or the student's, if smaller.

    With `size=None`, map (B, H, W, C_s) or (B, C_s) to (B, C_t).
    """
    convolutions = _convolutions(self.layout, self.channels, self.reduction)
    x = self._resized(features)
    for i, (channels, kernel, groups) in enumerate(convolutions, start=1):
      options: dict[str, Any] = {"use_bias": False, "dtype": self.dtype, "name": f"conv{i}"}
      if x.ndim == 2:
        x = nn.Dense(channels, **options)(x)
      else:
        window = (kernel, kernel)
        x = nn.Conv(channels, window, padding=kernel // 2, feature_group_count=groups, **options)(x)
      x = nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        axis_name=self.axis_name,
        use_fast_variance=False,  # the fast form cancels in float32 where |mean| >> deviation
        dtype=self.dtype,
        name=f"bn{i}",
      )(x)
      if self.activation or i < len(convolutions):
        x = nn.relu(x)
    return x

  def _resized(self, x: jax.Array) -> jax.Array:
    if x.ndim != 4 and not (x.ndim == 2 and self.size is None):
      vector = " or (B, C)" if self.size is None else ""
      raise ConfigError(f"Projector: features {x.shape} are not (B, H, W, C){vector}")
    if self.size is None:
      return x if x.ndim == 2 else jnp.mean(x, axis=(1, 2))
    return adaptive_average_pool(x, *self.size) if x.shape[1] > self.size[0] else x


def projector_for(
  student_shape: Sequence[int],
  teacher_shape: Sequence[int],
  *,
  stage: str,
  reduction: int = 2,
  layout: str = "1x1-3x3-1x1",
  **options: Any,
) -> Projector:
  """Return the Projector between two features.

  Args:
    student_shape: (B, H, W, C_s); if the teacher's feature is a vector, also (B, C_s).
    teacher_shape: (B, H', W', C_t) or (B, C_t); the batch size is not used.
    stage: name of the stage, for the error.
    reduction: see Projector.
    layout: see Projector.
    **options: other attributes of Projector.

  Returns:
    A Projector.

  Raises:
    ConfigError: naming the stage and both shapes, if only the teacher's is a map, reduction does
      not divide C_t, or there is no such layout.

  >>> projector_for((2, 8, 8, 16), (2, 4, 4, 32), stage="stage3", reduction=4).size
  (4, 4)
  >>> projector_for((2, 8, 8, 16), (2, 32), stage="pooled").size is None
  True
  """
  student, teacher = tuple(student_shape), tuple(teacher_shape)
  where = f"stage {stage!r}: no projector from student {student} to teacher {teacher}"
  if len(teacher) == 4 and len(student) == 2:
    raise ConfigError(f"{where}: a vector (B, C) cannot become a map (B, H, W, C)")
  if len(teacher) not in (2, 4) or len(student) not in (2, 4):
    raise ConfigError(f"{where}: they must be (B, H, W, C) or (B, C)")
  try:
    _convolutions(layout, teacher[-1], reduction)
  except ConfigError as error:
    raise ConfigError(f"{where}: {error}") from error
  return Projector(
    size=(teacher[1], teacher[2]) if len(teacher) == 4 else None,
    channels=teacher[-1],
    reduction=reduction,
    layout=layout,
    **options,
  )


def _convolutions(layout: str, channels: int, reduction: int) -> list[tuple[int, int, int]]:
  """Return (output channels, kernel size, channel groups) of each convolution."""
  if layout not in LAYOUTS:
    raise unknown_name("projector layout", layout, LAYOUTS)
  *middle, _ = layout.split("-")
  if middle and (reduction < 1 or channels % reduction):
    raise ConfigError(f"reduction is {reduction}: it must divide the teacher's {channels} channels")
  width = channels // reduction if middle else channels
  narrow = [(width, 1, 1), (width, 3, width if "dw3x3" in middle else 1)]
  return [*narrow[: len(middle)], (channels, 1, 1)]
