"""Generators of teacher features from masked student features: MGD's and ViTKD's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses._resize import adaptive_average_pool
from jaxkd.losses.vitkd import HIGH, MASKED
from jaxkd.types import Batch, Output

MASKS = ("channel", "spatial")


class MaskedGenerator(nn.Module):
  """MGD's generation of the teacher's map from a masked map of the student.

  generation2(relu(generation1(mask * align(x)))): 3x3 convolutions of padding 1 with biases, after
  a 1x1 convolution with bias if the channels differ. In training, a part of the channels, or of the
  positions, is set to 0, drawn anew in every step for every example; the kept values are not
  scaled. In evaluation nothing is masked.

  Attributes:
    size: the teacher's (height, width); a student's map with more rows is average-pooled to it.
    channels: the teacher's channels.
    align: whether there is the 1x1 convolution.
    mask: "channel" or "spatial".
    masked: probability that a channel or a position is masked.
    axis_name: not used, since there are no batch statistics; here because every adapter takes it.
    dtype: dtype of the computation; parameters stay float32.

  Parameters: "align", "generation1", "generation2" {"kernel", "bias"}.

  Source: Yang et al., "Masked Generative Distillation", ECCV 2022, as MGD: "channel" with 0.15 for
  classification, "spatial" with 0.65 for detection and 0.75 for segmentation. Pooling is this
  project's: the code refuses maps of different sizes.
  """

  size: tuple[int, int]
  channels: int
  align: bool
  mask: str = "channel"
  masked: float = 0.15
  axis_name: str | None = None
  dtype: Any = None

  def setup(self) -> None:
    """Create the convolutions; their parameters are created when they first run."""
    if self.mask not in MASKS:
      raise unknown_name("mask", self.mask, MASKS)
    if self.align:
      self.aligned = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name="align")
    self.generation1, self.generation2 = (
      nn.Conv(self.channels, (3, 3), padding=1, dtype=self.dtype) for _ in range(2)
    )

  def __call__(self, features: jax.Array, train: bool) -> jax.Array:
    """Map (B, H, W, C) to (B, H', W', C'), with a new mask in training."""
    return self.generated(features, self.drawn(self._resized(features)) if train else None)

  def drawn(self, x: jax.Array) -> jax.Array:
    """Return a new mask (B, 1, 1, C') or (B, H', W', 1) for maps x, False where it masks."""
    shape = (1, 1, self.channels) if self.mask == "channel" else (*x.shape[1:3], 1)
    noise = jax.random.uniform(self.make_rng("dropout"), (x.shape[0], *shape))
    return noise >= self.masked if self.mask == "channel" else noise <= 1 - self.masked

  def generated(self, features: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Map (B, H, W, C) to (B, H', W', C') with a given mask; None masks nothing."""
    x = self._resized(features)
    if self.align:
      x = self.aligned(x)
    if mask is not None:
      x = x * mask.astype(x.dtype)
    return self.generation2(nn.relu(self.generation1(x)))

  def _resized(self, x: jax.Array) -> jax.Array:
    if x.ndim != 4:
      raise ConfigError(f"MaskedGenerator: features {x.shape} are not (B, H, W, C)")
    return adaptive_average_pool(x, *self.size) if x.shape[1] > self.size[0] else x


class TokenGenerator(nn.Module):
  """ViTKD's adapter: aligned tokens of shallow blocks, and generated tokens of a deep one.

  Shallow tokens pass one linear layer each, the deep ones another; a part of the deep ones, drawn
  anew in every step for every example, is then replaced by a learned token, before two 3x3
  convolutions of padding 1 over the square grid of tokens, with a ReLU between.

  The student's Output gets the features "low1", "low2", ... and "high" (B, N, D), and "masked"
  (B, N), 1 for a replaced token; the teacher's the first two kinds.

  Attributes:
    low: pairs of the student's and the teacher's shallow stages, of features (B, T, D), or of maps
      (B, H, W, D).
    high: pair of the deep stages.
    prefixes: number of tokens before the patches, of the student and of the teacher, which are
      left out.
    width: the teacher's width D.
    align: whether there are the linear layers: the student's width differs.
    masked: share of the replaced tokens; their number is N - int(N * (1 - masked)).
    axis_name: not used, since there are no batch statistics; here because every adapter takes it.
    dtype: dtype of the computation; parameters stay float32.

  Parameters: "align_low1", ..., "align_high", "generation1", "generation2" {"kernel", "bias"} and
  "mask_token" (1, 1, D), at first 0.

  Source: Yang et al., "ViTKD: Practical Guidelines for ViT Feature Knowledge Distillation", 2022,
  as ViTKDLoss of cls_KD.
  """

  low: Sequence[tuple[str, str]]
  high: tuple[str, str]
  prefixes: tuple[int, int]
  width: int
  align: bool
  masked: float = 0.5
  axis_name: str | None = None
  dtype: Any = None

  def setup(self) -> None:
    """Create the layers; their parameters are created when they first run."""
    names = [*(f"low{i + 1}" for i in range(len(self.low))), "high"]
    if self.align:
      self.aligned = {n: nn.Dense(self.width, dtype=self.dtype, name=f"align_{n}") for n in names}
    self.mask_token = self.param("mask_token", nn.initializers.zeros, (1, 1, self.width))
    self.generation1, self.generation2 = (
      nn.Conv(self.width, (3, 3), padding=1, dtype=self.dtype) for _ in range(2)
    )

  def __call__(self, inputs: tuple[Output, Output, Batch], train: bool) -> tuple[Output, Output]:
    """Map (student, teacher, batch) to both with tokens to compare."""
    student, teacher, _ = inputs
    batch, count = self._tokens(student, self.high[0], self.prefixes[0]).shape[:2]
    # In evaluation, the last tokens are replaced.
    noise = jax.random.uniform(self.make_rng("dropout"), (batch, count)) if train else None
    return self.compared(student, teacher, jnp.zeros((batch, count)) if noise is None else noise)

  def compared(self, student: Output, teacher: Output, noise: jax.Array) -> tuple[Output, Output]:
    """Return both sides with tokens to compare; those of the largest noise (B, N) are replaced."""
    ours, theirs = {}, {}
    pairs = dict(zip((f"low{i + 1}" for i in range(len(self.low))), self.low, strict=True))
    for name, (s, t) in {**pairs, HIGH: self.high}.items():
      ours[name] = self._tokens(student, s, self.prefixes[0])
      theirs[name] = self._tokens(teacher, t, self.prefixes[1])
      if self.align:
        ours[name] = self.aligned[name](ours[name])
    count = noise.shape[1]
    # Ranks of the noise: equal values are replaced from the last one.
    rank = jnp.argsort(jnp.argsort(noise, axis=1, stable=True), axis=1)
    masked = rank >= int(count * (1 - self.masked))
    ours[HIGH] = self._generated(ours[HIGH], masked)
    ours[MASKED] = masked.astype(jnp.float32)
    return Output(features=ours), Output(features=theirs)

  def _generated(self, x: jax.Array, masked: jax.Array) -> jax.Array:
    batch, count, width = x.shape
    side = math.isqrt(count)
    if side * side != count:
      raise ConfigError(f"TokenGenerator: {count} tokens: expected a square number of patches")
    x = jnp.where(masked[:, :, None], self.mask_token.astype(x.dtype), x)
    x = self.generation1(x.reshape(batch, side, side, width))
    return self.generation2(nn.relu(x)).reshape(batch, count, width)

  def _tokens(self, output: Output, stage: str, prefix: int) -> jax.Array:
    x = output.features[stage]
    return x.reshape(x.shape[0], -1, x.shape[-1]) if x.ndim == 4 else x[:, prefix:]
