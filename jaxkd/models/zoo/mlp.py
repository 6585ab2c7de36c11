"""Dense layers on flattened images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
from jax.nn.initializers import he_normal

from jaxkd.errors import ConfigError
from jaxkd.models.layers import linear
from jaxkd.models.staged import StagedModel
from jaxkd.types import Array


class MLP(StagedModel):
  """A multi-layer perceptron: every pixel of an image is one input.

  Dense layers with ReLU, one per stage, and a linear classifier. The first layer's variables fix
  the size of the images. Variables: hidden_0, hidden_1, ..., classifier.

  Features, all vectors: stage1 (B, widths[0]), stage2 (B, widths[1]), ..., after ReLU, and pooled,
  which is the last stage's once more. Preactivations: the same without the ReLU; pooled has none.

  Attributes:
    widths: units of the hidden layers, at least one.
    num_classes: classes.
    axis_name: not used, as there are no batch statistics; every model has one.
    dtype: what the layers compute in, and what logits and features come out in; None follows the
      images. Parameters stay float32.

  Initial values: He's normal ones by fan-in with biases of zero in the hidden layers, PyTorch's in
  the classifier.
  """

  widths: tuple[int, ...]
  num_classes: int
  axis_name: str | None = None
  dtype: Any = None

  def setup(self) -> None:
    """Names the layers; each makes its variables when it first runs."""
    self.hidden = [
      nn.Dense(width, dtype=self.dtype, kernel_init=he_normal()) for width in self.widths
    ]
    self.classifier = linear(self.num_classes, self.channels["pooled"], self.dtype)

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features, shallow to deep.

    Raises:
      ConfigError: if there is no hidden layer.
    """
    if not self.widths:
      raise ConfigError("MLP: widths is (): there must be at least one hidden layer")
    hidden = {f"stage{i}": width for i, width in enumerate(self.widths, start=1)}
    return {**hidden, "pooled": self.widths[-1]}

  @property
  def vectors(self) -> tuple[str, ...]:
    """The stages whose features are (B, C): all."""
    return self.stages

  def run_stage(self, stage: str, x: Array, train: bool) -> tuple[Array, Mapping[str, Array]]:
    """One stage's feature, and its preactivation; see StagedModel."""
    if stage == "pooled":
      return x, {}
    layer = self.hidden[self.stages.index(stage)]
    preactivation = layer(x.reshape(x.shape[0], -1))
    return nn.relu(preactivation), {stage: preactivation}

  def classify(self, pooled: Array) -> Array:
    """(B, C) -> logits (B, classes)."""
    return self.classifier(pooled)
