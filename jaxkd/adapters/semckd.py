"""SemCKD's attention of the student's layers over the teacher's, and its regressors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn.initializers import variance_scaling

from jaxkd.adapters.memory import all_examples
from jaxkd.errors import ConfigError
from jaxkd.losses._checks import stage_arrays
from jaxkd.losses._counting import counted_examples, keep
from jaxkd.losses._numerics import l2_normalize, widen
from jaxkd.losses._resize import match_sizes
from jaxkd.types import Batch, Output

# torch's default for convolutions and linear layers.
_uniform = variance_scaling(1 / 3, "fan_in", "uniform")


class StageAttention(nn.Module):
  """For each example and layer of the student, weights of the teacher's layers that sum to 1.

  softmax_j(<q_i, k_j> / temperature), where q_i and k_j are unit vectors of an example, made by two
  linear layers of the similarities <x_b, x_c> of its flattened feature to those of all examples c.

  The first linear layer has `slots` inputs: examples c, c + slots, ... share one, and an input
  without an example is 0. A batch of `slots` examples has one input for each, as in the published
  code, where the batch size is the number of inputs and smaller batches are left out.

  Attributes:
    students: names of the student's layers, which name parameters.
    teachers: names of the teacher's.
    slots: inputs of the first linear layers.
    factor: their outputs are 2 (slots // factor), those of the second slots // factor.
    temperature: of the softmax.
    device_axis: set by the training step; similarities are those to the examples of all devices.
    dtype: dtype of the linear layers; parameters stay float32.

  Parameters: "query_NAME", "key_NAME", each {"linear1", "linear2"} {"kernel", "bias"}.

  Source: Chen et al., AAAI 2021, eq. 5 to 8, as SelfA of the authors' code. The copy in SimKD's
  repository has the temperature, by its name `soft`. Neither bounds the norm of q and k from below.
  """

  students: tuple[str, ...]
  teachers: tuple[str, ...]
  slots: int = 64
  factor: int = 4
  temperature: float = 1.0
  device_axis: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(
    self, student: Sequence[jax.Array], teacher: Sequence[jax.Array], mask: Any = None
  ) -> jax.Array:
    """Map the layers of both, (B, ...), and the mask to weights (B, student's, teacher's)."""
    if self.slots // self.factor < 1:
      raise ConfigError(f"slots is {self.slots}: expected at least factor={self.factor}")
    queries = [
      self._embedded(f"query_{name}", x, mask)
      for name, x in zip(self.students, student, strict=True)
    ]
    keys = [
      self._embedded(f"key_{name}", lax.stop_gradient(x), mask)
      for name, x in zip(self.teachers, teacher, strict=True)
    ]
    products = jnp.einsum(
      "bsd,btd->bst",
      jnp.stack(queries, axis=1),
      jnp.stack(keys, axis=1),
      precision=lax.Precision.HIGHEST,
    )
    return nn.softmax(products / self.temperature, axis=-1)

  def _embedded(self, name: str, x: jax.Array, mask: Any) -> jax.Array:
    (x,) = widen(x)
    x = x.reshape(x.shape[0], -1)
    (x,) = keep(counted_examples("StageAttention", mask, x), x)
    # HIGHEST: GPUs and TPUs would otherwise round the operands.
    gram = jnp.matmul(x, all_examples(x, self.device_axis).T, precision=lax.Precision.HIGHEST)
    missing = -gram.shape[1] % self.slots
    gram = jnp.pad(gram, ((0, 0), (0, missing)))
    inputs = jnp.sum(gram.reshape(gram.shape[0], -1, self.slots), axis=1)
    (embedding,) = widen(_Embedding(self.slots // self.factor, self.dtype, name=name)(inputs))
    return l2_normalize(embedding, axis=1)


class _Embedding(nn.Module):
  """Two linear layers with a ReLU between them, to 2 width and to width."""

  width: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Map (B, slots) to (B, width)."""
    for number, width in ((1, 2 * self.width), (2, self.width)):
      bound = x.shape[1] ** -0.5
      x = nn.Dense(
        width,
        dtype=self.dtype,
        kernel_init=_uniform,
        bias_init=lambda key, shape, dtype=jnp.float32, bound=bound: jax.random.uniform(
          key, shape, dtype, -bound, bound
        ),
        name=f"linear{number}",
      )(x)
      x = nn.relu(x) if number == 1 else x
    return x


class LayerRegressor(nn.Module):
  """1x1, 3x3 and 1x1 convolutions without biases, to 2C, 2C and C channels.

  Batch normalisation and ReLU follow the first two.

  Attributes:
    channels: the teacher's, C.
    axis_name: device axis over which batch statistics are shared; None keeps them per device.
    dtype: dtype of the computation; parameters and statistics stay float32.

  Parameters: "conv1", "conv2", "conv3" {"kernel"}, "bn1", "bn2" {"scale", "bias"}; statistics:
  "bn1", "bn2".

  Source: AAEmbed of SemCKD's authors.
  """

  channels: int
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Map (B, H, W, C') to (B, H, W, C)."""
    widths = (2 * self.channels, 2 * self.channels, self.channels)
    for number, (width, size) in enumerate(zip(widths, (1, 3, 1), strict=True), start=1):
      x = nn.Conv(
        width,
        (size, size),
        padding=size // 2,
        use_bias=False,
        dtype=self.dtype,
        kernel_init=_uniform,
        name=f"conv{number}",
      )(x)
      if number < 3:
        x = nn.BatchNorm(
          use_running_average=not train,
          momentum=0.9,
          epsilon=1e-5,
          axis_name=self.axis_name,
          use_fast_variance=False,  # the fast form cancels in float32 where |mean| >> deviation
          dtype=self.dtype,
          name=f"bn{number}",
        )(x)
        x = nn.relu(x)
    return x


class SemanticCalibration(nn.Module):
  """An adapter that compares every layer of the student with every layer of the teacher.

  Of each pair, the larger map is average-pooled to the size of the smaller, and a `LayerRegressor`
  brings the student's to the teacher's channels. `StageAttention` weighs the pairs.

  Attributes:
    students: the student's stages, feature maps.
    teachers: the teacher's stage -> its channels.
    slots: as in StageAttention, and so are factor, temperature and device_axis.
    factor: see `slots`.
    temperature: see `slots`.
    device_axis: see `slots`.
    axis_name: as in LayerRegressor.
    dtype: dtype of the computation; parameters and statistics stay float32.

  Parameters: "attention", and one LayerRegressor per pair, "regress_STUDENT_TEACHER".

  Source: Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021, as the
  authors' code.
  """

  students: tuple[str, ...]
  teachers: Mapping[str, int]
  slots: int = 64
  factor: int = 4
  temperature: float = 1.0
  device_axis: str | None = None
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, inputs: tuple[Output, Output, Batch], train: bool) -> tuple[Output, Output]:
    """Map (student, teacher, batch) to both, with features by pair, "STUDENT:TEACHER".

    The student's Output also has "attention", (B, student's layers, teacher's layers).
    """
    student, teacher, batch = inputs
    ours = {name: stage_arrays(student, name, role="student") for name in self.students}
    theirs = {name: stage_arrays(teacher, name, role="teacher") for name in self.teachers}
    attention = StageAttention(
      self.students,
      tuple(self.teachers),
      self.slots,
      self.factor,
      self.temperature,
      self.device_axis,
      self.dtype,
      name="attention",
    )(list(ours.values()), list(theirs.values()), None if batch is None else batch.mask)
    projected, targets = {"attention": attention}, {}
    for source, x in ours.items():
      for target, y in theirs.items():
        pair = f"{source}:{target}"
        x_sized, targets[pair] = match_sizes(x, y)
        regressor = LayerRegressor(
          self.teachers[target], self.axis_name, self.dtype, name=f"regress_{source}_{target}"
        )
        projected[pair] = regressor(x_sized, train)
    return Output(features=projected), Output(features=targets)
