"""What networks made of stages have in common: stopping at a stage, and going on from one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.models.layers import check_images
from jaxkd.types import Array, Output

# (regular expression of a PyTorch module's name, the path of ours or what makes it of the match)
TorchNames = tuple[tuple[str, str | Callable[[Any], str]], ...]


class StagedModel(nn.Module):
  """A network that is a chain of stages and a classifier; a subclass says what these are.

  What goes from a stage to the next one is exactly its feature, so that the network can be cut
  after any of them.

  Class attributes:
    smallest: rows and columns that images must have.
    signed_stages: stages whose features have both signs, as no ReLU ends them: a connector that
      ends in one cannot imitate them.
    torch_names: how the published PyTorch code calls the modules, for `jaxkd.models.from_torch`.
  """

  smallest: ClassVar[int] = 1
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

  def run_stage(self, stage: str, x: Array, train: bool) -> tuple[Array, Mapping[str, Array]]:
    """One stage.

    Args:
      stage: one of `stages`.
      x: the images for the first stage, then the feature of the stage before.
      train: whether batch normalisation uses the statistics of the batch, and updates its own.

    Returns:
      The feature, and preactivations by stage. A network that normalises what a stage leaves at
      the beginning of the next one gives the earlier stage's preactivation with the later.
    """
    raise NotImplementedError

  def classify(self, pooled: Array) -> Array:
    """The last stage's feature -> logits (B, classes)."""
    raise NotImplementedError

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
    """Features up to and including `to_stage`, without logits; touches only those layers.

    Raises:
      ConfigError: for an unknown stage, and as `__call__`.
      ValueError: as `__call__`.
    """
    check_images(images, self.smallest)
    return self._through(self.stages[: self._position(to_stage) + 1], images, train)

  def resume(
    self, features: Array, from_stage: str, train: bool = False, to_stage: str | None = None
  ) -> Output:
    """Continues from the features of `from_stage`; touches only the layers after it.

    Args:
      features: what `from_stage` gives: (B, H, W, C) with any H and W, or (B, C).
      from_stage: one of `stages`.
      train: as in `__call__`.
      to_stage: where to stop, without logits; None goes on to the logits.

    Returns:
      The features and preactivations of the stages after `from_stage`, and the logits.

    Raises:
      ConfigError: for an unknown stage, or a `to_stage` before `from_stage`.
      ValueError: for features of a rank or channel count that `from_stage` does not give.
    """
    start = self._position(from_stage) + 1
    stop = len(self.stages) if to_stage is None else self._position(to_stage) + 1
    if stop < start:
      raise ConfigError(f"resume: to_stage {to_stage!r} comes before from_stage {from_stage!r}")
    width = self.channels[from_stage]
    shape = f"(B, {width})" if from_stage in self.vectors else f"(B, H, W, {width})"
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
      preactivations |= found
    return Output(features=features, preactivations=preactivations)

  def _classified(self, output: Output, last: Array) -> Output:
    return Output(self.classify(last), output.features, output.preactivations)

  def _position(self, stage: str) -> int:
    if stage not in self.stages:
      raise unknown_name("stage", stage, self.stages)
    return self.stages.index(stage)
