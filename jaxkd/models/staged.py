"""Base classes of networks that can stop at a stage and resume from one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.models.layers import check_images
from jaxkd.types import Array, Output

# (regular expression of a PyTorch module's name, path of our module or a function match -> path, or
# None for a module that does not exist)
TorchNames = tuple[tuple[str, str | Callable[[Any], str | None]], ...]


class StagedModel(nn.Module):
  """A network that is a chain of stages and a classifier; a subclass defines these.

  The input of every stage is exactly the feature of the previous stage, so that the network can be
  cut after any of them.

  A subclass defines `channels`, `run_stage`, and in `setup` its layers with a `classifier`.

  Class attributes:
    smallest: the smallest number of rows and of columns that images may have.
    takes_tables: whether vectors (B, D) are accepted in place of images.
    signed_stages: stages whose features have both signs, since no ReLU ends them: an adapter that
      ends in a ReLU cannot match them.
    torch_names: module names in the published PyTorch code, for `jaxkd.models.from_torch`.
  """

  smallest: ClassVar[int] = 1
  takes_tables: ClassVar[bool] = False
  signed_stages: ClassVar[tuple[str, ...]] = ()
  torch_names: ClassVar[TorchNames] = ()

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features, shallow to deep."""
    raise NotImplementedError

  @property
  def vectors(self) -> tuple[str, ...]:
    """The stages whose features are (B, C), not (B, H, W, C)."""
    return ("pooled",)

  @property
  def sequences(self) -> tuple[str, ...]:
    """The stages whose features are (B, tokens, C), not (B, H, W, C)."""
    return ()

  @property
  def views(self) -> Mapping[str, str]:
    """Further features, which no stage continues from -> the stage that they are a part of.

    "logits" in place of a stage: the classifier computes them.
    """
    return {}

  def view(self, name: str, feature: Array) -> Array:
    """One of `views` for the feature of its stage."""
    raise NotImplementedError

  def run_stage(self, stage: str, x: Array, train: bool) -> tuple[Array, Mapping[str, Array]]:
    """Run one stage.

    Args:
      stage: one of `stages`.
      x: the images for the first stage, else the feature of the previous stage.
      train: whether batch normalisation uses the statistics of the batch, and updates its own.

    Returns:
      The feature, and preactivations by stage. In a network that normalises a stage's output at the
      start of the next stage, the next stage returns the preactivation of the earlier one.
    """
    raise NotImplementedError

  def classify(self, pooled: Array) -> Array:
    """The last stage's feature (B, C) -> logits (B, classes)."""
    return self.classifier(pooled)

  @property
  def stages(self) -> tuple[str, ...]:
    """The names of the features, shallow to deep."""
    return tuple(self.channels)

  def __call__(self, images: Array, train: bool = False) -> Output:
    """Logits, features and preactivations of every stage.

    Args:
      images: (B, H, W, C), normalised, floating point, of at least `smallest` rows and columns.
      train: whether batch normalisation uses the statistics of the batch, and updates its own.

    Raises:
      ConfigError: for smaller images.
      ValueError: for images of another rank, or not of a floating dtype.
    """
    output = self.encode(images, train, self.stages[-1])
    return self._classified(output, output.features[self.stages[-1]])

  def encode(self, images: Array, train: bool = False, to_stage: str = "pooled") -> Output:
    """Features up to and including `to_stage`, without logits; runs only those layers.

    Raises:
      ConfigError: for an unknown stage, and as `__call__`.
      ValueError: as `__call__`.
    """
    check_images(images, self.smallest, tables=self.takes_tables)
    return self._through(self.stages[: self._position(to_stage) + 1], images, train)

  def resume(
    self, features: Array, from_stage: str, train: bool = False, to_stage: str | None = None
  ) -> Output:
    """Continue from the features of `from_stage`; runs only later layers.

    Args:
      features: the feature of `from_stage`: (B, H, W, C) with any H and W, (B, tokens, C), or
        (B, C).
      from_stage: one of `stages`.
      train: as in `__call__`.
      to_stage: the last stage to run, without logits; None runs to the logits.

    Returns:
      The features and preactivations of the stages after `from_stage`, and the logits.

    Raises:
      ConfigError: for an unknown stage, one of `views`, or a `to_stage` before `from_stage`.
      ValueError: for features whose rank or channel count is not that of `from_stage`.
    """
    start = self._position(from_stage) + 1
    stop = len(self.stages) if to_stage is None else self._position(to_stage) + 1
    if stop < start:
      raise ConfigError(f"resume: to_stage {to_stage!r} comes before from_stage {from_stage!r}")
    width = self.channels[from_stage]
    shape = f"(B, H, W, {width})"
    if from_stage in self.vectors:
      shape = f"(B, {width})"
    elif from_stage in self.sequences:
      shape = f"(B, tokens, {width})"
    if jnp.ndim(features) != shape.count(",") + 1 or jnp.shape(features)[-1] != width:
      raise ValueError(
        f"features to resume from {from_stage!r} must be {shape}, not {jnp.shape(features)}"
      )
    output = self._through(self.stages[start:stop], features, train)
    if to_stage is not None:
      return output
    return self._classified(output, output.features.get(self.stages[-1], features))

  def _through(self, stages: Sequence[str], x: Array, train: bool) -> Output:
    features: dict[str, Array] = {}
    preactivations: dict[str, Array] = {}
    for stage in stages:
      x, found = self.run_stage(stage, x, train)
      features[stage] = x
      features |= {name: self.view(name, x) for name, of in self.views.items() if of == stage}
      preactivations |= found
    return Output(features=features, preactivations=preactivations)

  def _classified(self, output: Output, last: Array) -> Output:
    return Output(self.classify(last), output.features, output.preactivations)

  def _position(self, stage: str) -> int:
    if stage in self.views:
      raise ConfigError(
        f"{stage!r} is a part of {self.views[stage]!r} and not enough to continue from: expected "
        f"one of {', '.join(self.stages)}"
      )
    if stage not in self.stages:
      raise unknown_name("stage", stage, self.stages)
    return self.stages.index(stage)


class RectifiedModel(StagedModel):
  """A StagedModel whose stages end in a ReLU and whose last stage is the mean over the image.

  A subclass defines `preactivation` instead of `run_stage`.
  """

  def preactivation(self, stage: str, x: Array, train: bool) -> Array:
    """The output of a stage before its last ReLU; arguments as for `run_stage`."""
    raise NotImplementedError

  def run_stage(self, stage: str, x: Array, train: bool) -> tuple[Array, Mapping[str, Array]]:
    """The feature of one stage, and its preactivation; see StagedModel."""
    if stage == "pooled":
      return jnp.mean(x, axis=(1, 2)), {}
    preactivation = self.preactivation(stage, x, train)
    return nn.relu(preactivation), {stage: preactivation}
