"""ReviewKD's fusion of the student's stages, from deep to shallow."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import variance_scaling

from jaxkd.errors import ConfigError
from jaxkd.losses._checks import Arrays, stage_arrays
from jaxkd.types import Batch, Output

# torch's kaiming_uniform_(a=1), and its default for convolutions.
_uniform = variance_scaling(1.0, "fan_in", "uniform")
_default = variance_scaling(1 / 3, "fan_in", "uniform")


class AttentionFusion(nn.Module):
  """One step of the fusion: a stage's map and the fused map of the deeper stages.

  x = BN(conv1x1(map)); y is the deeper map at the size of x; (g, h) = sigmoid(conv1x1([x, y])), one
  number each per position; fused = g x + h y, resized to `size`; output = BN(conv3x3(fused)). The
  deepest stage has no y and no gates.

  Attributes:
    width: channels of the fused map.
    channels: the teacher's channels.
    size: the teacher's (height, width).
    axis_name: device axis over which batch statistics are shared; None keeps them per device.
    dtype: dtype of the computation; parameters and statistics stay float32.

  Parameters: "conv1", "conv2" {"kernel"}, "bn1", "bn2" {"scale", "bias"} and, with a deeper map,
  "gates" {"kernel", "bias"}; statistics: "bn1", "bn2". Initial values are those of the authors.

  Source: Chen et al., CVPR 2021, figure 3, as ABF of the authors' code and mdistiller.
  """

  width: int
  channels: int
  size: tuple[int, int]
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: jax.Array, deeper: jax.Array | None, train: bool
  ) -> tuple[jax.Array, jax.Array]:
    """Map (B, H, W, C) and the deeper fused map, or None, to (output, fused map)."""
    x = self._conv(self.width, 1, "conv1")(x)
    x = self._norm("bn1", train)(x)
    if deeper is not None:
      deeper = nearest(deeper, (x.shape[1], x.shape[2]))
      bound = (2 * self.width) ** -0.5
      gates = nn.Conv(
        2,
        (1, 1),
        dtype=self.dtype,
        kernel_init=_default,
        bias_init=lambda key, shape, dtype=jnp.float32: jax.random.uniform(
          key, shape, dtype, -bound, bound
        ),
        name="gates",
      )(jnp.concatenate([x, deeper], axis=-1))
      gates = nn.sigmoid(gates)
      x = x * gates[..., :1] + deeper * gates[..., 1:]
    fused = nearest(x, self.size)
    return self._norm("bn2", train)(self._conv(self.channels, 3, "conv2")(fused)), fused

  def _conv(self, width: int, size: int, name: str) -> nn.Conv:
    return nn.Conv(
      width,
      (size, size),
      padding=size // 2,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=_uniform,
      name=name,
    )

  def _norm(self, name: str, train: bool) -> nn.BatchNorm:
    return nn.BatchNorm(
      use_running_average=not train,
      momentum=0.9,
      epsilon=1e-5,
      axis_name=self.axis_name,
      use_fast_variance=False,  # the fast form cancels in float32 where |mean| >> deviation
      dtype=self.dtype,
      name=name,
    )


class ReviewFusion(nn.Module):
  """An adapter from all stages of the student to the shapes of all stages of the teacher.

  From deep to shallow, an `AttentionFusion` joins each stage with what the deeper ones gave. A
  vector (B, C) is a map of one position.

  Attributes:
    stages: (student's stage, teacher's stage), shallow to deep.
    shapes: the teacher's (H, W, C) of each, or (C,) for a vector.
    width: channels of the fused maps.
    student_arrays: what is read of the student's stages with maps, "features" or "preactivations".
    teacher_arrays: likewise of the teacher. Vectors are features in either case.
    axis_name: as in AttentionFusion.
    dtype: as in AttentionFusion.

  Parameters and statistics: one `AttentionFusion` per teacher's stage, "fuse_STAGE".

  Source: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, as the authors' code
  and mdistiller. `MAX_MID_CHANNEL` of mdistiller, which that code reads and never uses, is `width`
  here.
  """

  stages: tuple[tuple[str, str], ...]
  shapes: tuple[tuple[int, ...], ...]
  width: int
  student_arrays: Arrays = "features"
  teacher_arrays: Arrays = "features"
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, inputs: tuple[Output, Output, Batch], train: bool) -> tuple[Output, Output]:
    """Map (student, teacher, batch) to both, with the compared features by teacher's stage."""
    student, teacher, _ = inputs
    ours: dict[str, jax.Array] = {}
    theirs: dict[str, jax.Array] = {}
    deeper = None
    for (source, target), shape in reversed(list(zip(self.stages, self.shapes, strict=True))):
      is_map = len(shape) == 3
      x = stage_arrays(
        student, source, role="student", arrays=self.student_arrays if is_map else "features"
      )
      if x.ndim != len(shape) + 1:
        raise ConfigError(
          f"ReviewFusion: stage {source!r} of the student {x.shape} and stage {target!r} of the "
          f"teacher (B, {', '.join(map(str, shape))}) must be two maps or two vectors"
        )
      fuse = AttentionFusion(
        self.width,
        shape[-1],
        (shape[0], shape[1]) if is_map else (1, 1),
        self.axis_name,
        self.dtype,
        name=f"fuse_{target}",
      )
      out, deeper = fuse(x if is_map else x[:, None, None, :], deeper, train)
      ours[target] = out if is_map else out[:, 0, 0, :]
      theirs[target] = stage_arrays(
        teacher, target, role="teacher", arrays=self.teacher_arrays if is_map else "features"
      )
    return Output(features=ours), Output(features=theirs)


def nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Resize maps (B, H, W, C): output row i is input row floor(i H / height), columns likewise.

  `jax.image.resize` takes the row nearest to the centre of i, which is another one where the sizes
  do not divide.

  >>> nearest(jnp.arange(3.0).reshape(1, 3, 1, 1), (4, 1)).ravel()
  Array([0., 0., 1., 2.], dtype=float32)
  """
  for axis, wanted in zip((1, 2), size, strict=True):
    found = x.shape[axis]
    if wanted == found:
      continue
    if wanted % found == 0:
      x = jnp.repeat(x, wanted // found, axis=axis)
    else:
      x = jnp.take(x, jnp.arange(wanted) * found // wanted, axis=axis)
  return x
