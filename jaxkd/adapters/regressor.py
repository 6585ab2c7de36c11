"""FitNets' regressor, a small network from the student's features to the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax

from jaxkd.errors import ConfigError

Size = tuple[int, int]


class Regressor(nn.Module):
  """One convolution, batch normalisation and ReLU from student to teacher features.

  The sizes determine the convolution; the first row that applies:

  | student against teacher | convolution |
  |---|---|
  | twice as large | 3x3, stride 2, padding 1 |
  | half as large | transposed 4x4, stride 2, padding 1 |
  | as large or larger | valid, kernel 1 + difference of the sizes |
  | smaller | 3x3, padding 1; the loss pools the teacher to the student's size |

  Attributes:
    size: the teacher's (height, width); None for features (B, D), or of tokens (B, T, D), which
      take a dense layer.
    channels: the teacher's channels.
    batch_norm: whether batch normalisation follows the convolution.
    use_bias: whether the convolution has a bias, as in torch by default.
    activation: whether a ReLU comes last. Without it, the output can match features of both signs
      (a model's `signed_stages`).
    axis_name: device axis over which batch statistics are shared; None keeps them per device.
    dtype: dtype of the computation; parameters and statistics stay float32.

  Parameters: "conv" {"kernel", "bias"} and "bn" {"scale", "bias"}; statistics: "bn".

  Source: Romero et al., "FitNets", ICLR 2015; the table is ConvReg of RepDistiller and
  mdistiller, its last row SimKD's. RKD's is `batch_norm=False, use_bias=False,
  activation=False`. Here both axes are compared, so that maps need not be square.
  """

  size: Size | None
  channels: int
  batch_norm: bool = True
  use_bias: bool = True
  activation: bool = True
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, features: jax.Array, train: bool) -> jax.Array:
    """Map (B, H, W, C), (B, T, D) or (B, D) to the teacher's shape; smaller maps keep theirs."""
    x = self._linear(features)
    if self.batch_norm:
      x = nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        axis_name=self.axis_name,
        use_fast_variance=False,  # the fast form cancels in float32 where |mean| >> deviation
        dtype=self.dtype,
        name="bn",
      )(x)
    return nn.relu(x) if self.activation else x

  def _linear(self, x: jax.Array) -> jax.Array:
    options: dict[str, Any] = {"use_bias": self.use_bias, "dtype": self.dtype, "name": "conv"}
    if x.ndim not in ((2, 3) if self.size is None else (4,)):
      raise ConfigError(f"Regressor of size {self.size} cannot take features {x.shape}")
    if self.size is None:
      return nn.Dense(self.channels, **options)(x)
    rows, columns = x.shape[1:3]
    relation = _relation((rows, columns), self.size)
    if relation == "twice":
      return nn.Conv(self.channels, (3, 3), strides=2, padding=1, **options)(x)
    if relation == "half":
      # Padding 1 of the output is padding 4 - 1 - 1 of the dilated input.
      padding = ((2, 2), (2, 2))
      return nn.ConvTranspose(self.channels, (4, 4), strides=(2, 2), padding=padding, **options)(x)
    if relation == "larger":
      kernel = (1 + rows - self.size[0], 1 + columns - self.size[1])
      return nn.Conv(self.channels, kernel, padding="VALID", **options)(x)
    if relation == "smaller":
      return nn.Conv(self.channels, (3, 3), padding=1, **options)(x)
    raise ConfigError(f"Regressor: no convolution brings {x.shape} to the size {self.size}")


def regressor_for(
  student_shape: Sequence[int], teacher_shape: Sequence[int], *, stage: str, **options: Any
) -> Regressor:
  """Return the Regressor between two features.

  Args:
    student_shape: (B, H, W, C), (B, T, D) or (B, D).
    teacher_shape: likewise; the batch size is not used.
    stage: name of the stage, for the error.
    **options: other attributes of Regressor.

  Returns:
    A Regressor; its output has the teacher's shape, or the student's height and width if the
    student is smaller and `jaxkd.losses.fitnets` pools the teacher.

  Raises:
    ConfigError: naming the stage and both shapes, if one is a map and the other is not, the numbers
      of tokens differ, or the student has more rows and fewer columns.

  >>> regressor_for((2, 8, 8, 16), (2, 4, 4, 32), stage="stage2").size
  (4, 4)
  """
  student, teacher = tuple(student_shape), tuple(teacher_shape)
  if len(student) == len(teacher) in (2, 3) and student[1:-1] == teacher[1:-1]:
    return Regressor(size=None, channels=teacher[-1], **options)
  where = f"stage {stage!r}: no regressor from student {student} to teacher {teacher}"
  if not len(student) == len(teacher) == 4:
    raise ConfigError(f"{where}: both must be (B, H, W, C), (B, T, D) or (B, D)")
  size = (teacher[1], teacher[2])
  if _relation((student[1], student[2]), size) is None:
    raise ConfigError(f"{where}: the student has more rows but fewer columns")
  return Regressor(size=size, channels=teacher[-1], **options)


def _relation(student: Size, teacher: Size) -> Literal["twice", "half", "larger", "smaller"] | None:
  """Return the row of the table that applies to two sizes; None if there is none."""
  (rows, columns), (teacher_rows, teacher_columns) = student, teacher
  # A 3x3 convolution of stride 2 and padding 1 rounds odd sizes up.
  if rows == 2 * teacher_rows and (columns + 1) // 2 == teacher_columns:
    return "twice"
  if (2 * rows, 2 * columns) == teacher:
    return "half"
  if rows >= teacher_rows and columns >= teacher_columns:
    return "larger"
  # Rows alone decide, as in the loss, which then pools the teacher to the student's size.
  return "smaller" if rows <= teacher_rows else None
