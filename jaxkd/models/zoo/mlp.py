"""A multi-layer perceptron on flattened images, or on tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from flax import linen as nn
from jax.nn.initializers import he_normal

from jaxkd.errors import ConfigError
from jaxkd.models.layers import linear
from jaxkd.models.staged import StagedModel
from jaxkd.types import Array


class MLP(StagedModel):
  """A multi-layer perceptron; every value of an image, or of a row (B, D), is one input.

  Dense layers with ReLU, one per stage, and a linear classifier. The shape of the first layer's
  kernel fixes the size of the images. Variables: hidden_0, hidden_1, ..., classifier.

  Features, all vectors: stage1 (B, widths[0]), stage2 (B, widths[1]), ..., after ReLU, and pooled,
  equal to the last of them. Preactivations: the same before the ReLU; pooled has none.

  Attributes:
    widths: units of each hidden layer; at least one layer.
    num_classes: number of classes.
    axis_name: not used, since there are no batch statistics; here because every model takes it.
    dtype: of the computation, the logits and the features; None takes that of the images.
      Parameters stay float32.

  Initial values: He's normal ones by fan-in with biases of zero in the hidden layers, PyTorch's in
  the classifier.
  """

  widths: tuple[int, ...]
  num_classes: int
  axis_name: str | None = None
  dtype: Any = None

  takes_tables: ClassVar[bool] = True

  def setup(self) -> None:
    """Create the layers; their variables are created when they first run."""
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
    """The stages whose features are (B, C): all stages."""
    return self.stages

  def run_stage(self, stage: str, x: Array, train: bool) -> tuple[Array, Mapping[str, Array]]:
    """The feature of one stage, and its preactivation; see StagedModel."""
    if stage == "pooled":
      return x, {}
    layer = self.hidden[self.stages.index(stage)]
    preactivation = layer(x.reshape(x.shape[0], -1))
    return nn.relu(preactivation), {stage: preactivation}
