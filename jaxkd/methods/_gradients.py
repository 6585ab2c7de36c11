"""Apply a network and compute the gradients of its loss at the images or at features of stages.

The differentiated scalar is the weighted sum of the examples' cross-entropies. If a network treats
examples independently (a teacher in evaluation mode does), the gradient of an example is that of
its own loss and does not depend on the batch. Batch normalisation in training mode couples the
examples: the gradient of an example then includes its effect on the losses of other examples
through the batch statistics. Statistics shared over a device axis couple the examples of all
devices, and the gradient is that of the sum over all devices, as on one device with the whole
batch.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses import cross_entropy
from jaxkd.losses._numerics import widen
from jaxkd.losses.cross_entropy import effective_weights
from jaxkd.networks import Model, infer, learn
from jaxkd.padding import without_padding
from jaxkd.preprocessing import inputs_of, plain
from jaxkd.shapes import shown
from jaxkd.types import Array, Output

IMAGES, FLIPPED_IMAGES = "images", "flipped_images"

# (module, inputs) -> (Output, new non-parameter state)
_Call = Callable[[Any, Any], tuple[Output, dict[str, Any]]]


def learn_with_gradients(
  module: nn.Module,
  variables: Mapping[str, Any],
  images: Array,
  labels: Array,
  weights: Array | None,
  stages: Sequence[str],
  rng: Array,
  where: Array | None = None,
) -> tuple[Output, dict[str, Any]]:
  """Return a learner's output with gradients, and its new non-parameter state, in training mode.

  Both are as from `jaxkd.networks.learn`, with `Output.gradients` added. Everything, gradients
  included, can be differentiated with respect to the variables.

  Args:
    module: `__call__(images, train) -> Output`; for gradients at stages also `stages`, `encode`
      and `resume` (see jaxkd.models).
    variables: its Flax variable dict.
    images: (B, H, W, C), floating point.
    labels: class numbers (B,), or class probabilities (B, C).
    weights: (B,); an example of weight 0 (unlabelled) has no loss. None is a weight of 1 for all.
    stages: where gradients are taken: "images", "flipped_images" (at the mirrored images, mirrored
      back; a second pass, whose batch statistics are discarded), names of stages.
    rng: for dropout.
    where: `Batch.mask`: padding has no loss, and is excluded from the batch statistics.

  Raises:
    ConfigError: for a stage that the module does not have, or cannot be entered at.
  """

  def call(module: Any, inputs: Any) -> tuple[Output, dict[str, Any]]:
    return learn(module, variables, inputs, rng, where=where)

  targets = _Targets(labels, weights, where)
  return _with_gradients(module, call, without_padding(images, where), targets, stages)


def infer_with_gradients(
  module: Model,
  variables: Mapping[str, Any],
  images: Array,
  labels: Array,
  weights: Array | None,
  stages: Sequence[str],
  where: Array | None = None,
) -> Output:
  """Return a network's output with gradients, in evaluation mode.

  Args:
    module: as in `learn_with_gradients`. If its images are converted, the gradient at "images"
      is the gradient at the images before conversion.
    variables: its Flax variable dict.
    images: (B, H, W, C), floating point.
    labels: class numbers (B,), or class probabilities (B, C), of the student's classes.
    weights: (B,), or None.
    stages: where gradients are taken, as in `learn_with_gradients`.
    where: `Batch.mask`: padding has no loss.

  Raises:
    ConfigError: for a stage that the module does not have, or cannot be entered at.
  """

  def call(part: Any, inputs: Any) -> tuple[Output, dict[str, Any]]:
    if isinstance(part, _Entered):
      images, offsets = inputs
      inputs = inputs_of(module, images), offsets
    else:
      inputs = inputs_of(module, inputs)
    return infer(part, variables, inputs), {}

  return _with_gradients(plain(module), call, images, _Targets(labels, weights, where), stages)[0]


class _Targets(NamedTuple):
  """Labels, weights and mask of the differentiated cross-entropies."""

  labels: Array
  weights: Array | None
  where: Array | None


def _with_gradients(
  module: nn.Module,
  call: _Call,
  images: Array,
  targets: _Targets,
  stages: Sequence[str],
) -> tuple[Output, dict[str, Any]]:
  entered = _entered(module, stages)
  if (IMAGES in stages or FLIPPED_IMAGES in stages) and not _is_differentiable(images):
    raise ConfigError(
      f"gradients at {IMAGES!r}: expected images (B, H, W, C) of floating point, got "
      f"{shown(images)}"
    )

  def loss(images: Array, offsets: dict[str, Array]) -> tuple[Array, tuple[Output, dict[str, Any]]]:
    output, changes = (
      call(_Entered(module, entered), (images, offsets)) if entered else call(module, images)
    )
    return _summed_cross_entropy(output, targets), (output, changes)

  offsets: dict[str, Array] = {}
  if entered:
    features = jax.eval_shape(lambda images: call(module, images)[0].features, images)
    offsets = {stage: jnp.zeros(features[stage].shape, features[stage].dtype) for stage in entered}
  # The gradient at the images needs a backward pass through the first layers: only on request.
  with_images = IMAGES in stages
  differentiate = jax.grad(loss, argnums=(0, 1) if with_images else (1,), has_aux=True)
  found, (output, changes) = differentiate(images, offsets)
  gradients: dict[str, Array] = {**found[-1]}
  if with_images:
    gradients[IMAGES] = found[0]
  if FLIPPED_IMAGES in stages:
    # The flip is inside the differentiated function, so the gradient is already flipped back.
    def flipped(images: Array) -> Array:
      return _summed_cross_entropy(call(module, images[:, :, ::-1])[0], targets)

    gradients[FLIPPED_IMAGES] = jax.grad(flipped)(images)
  return dataclasses.replace(output, gradients=gradients), changes


class _Entered(NamedTuple):
  """A module with offsets added to its features; `learn` and `infer` take it in place of a module.

  Its inputs are (images, {stage: offset}).

  Attributes:
    module: a model with `encode` and `resume`.
    stages: stages at which offsets are added, from shallow to deep; at least one.
  """

  module: nn.Module
  stages: Sequence[str]

  def apply(
    self, variables: Mapping[str, Any], inputs: tuple[Array, Mapping[str, Array]], **options: Any
  ) -> Any:
    """The module's `apply` on the images, with the offsets added."""
    return self.module.apply(variables, *inputs, method=self._through, **options)

  def _through(
    self, model: Any, images: Array, offsets: Mapping[str, Array], train: bool
  ) -> Output:
    features: dict[str, Array] = {}
    preactivations: dict[str, Array] = {}
    part = model.encode(images, train, to_stage=self.stages[0])
    for stage, following in zip(self.stages, [*self.stages[1:], None], strict=True):
      moved = part.features[stage] + offsets[stage]
      features |= {**part.features, stage: moved}
      preactivations |= part.preactivations
      # `to_stage` is passed only if needed: with one stage, `resume` need not accept it.
      stop = {} if following is None else {"to_stage": following}
      try:
        part = model.resume(moved, stage, train, **stop)
      except NotImplementedError as error:
        raise ConfigError(f"there are no gradients at stage {stage!r}: {error}") from error
    return dataclasses.replace(
      part,
      features={**features, **part.features},
      preactivations={**preactivations, **part.preactivations},
    )


def _is_differentiable(inputs: Any) -> bool:
  return hasattr(inputs, "ndim") and inputs.ndim == 4 and jnp.issubdtype(inputs.dtype, jnp.floating)


def _entered(module: nn.Module, stages: Sequence[str]) -> list[str]:
  """Return the stages of the module among `stages`, from shallow to deep.

  Raises:
    ConfigError: for one that the module does not have, or cannot be entered at.
  """
  if isinstance(stages, str):
    raise ConfigError(f"stages is {stages!r}: write ({stages!r},), a sequence of names")
  wanted = [stage for stage in stages if stage not in (IMAGES, FLIPPED_IMAGES)]
  known = tuple(getattr(module, "stages", ()))
  for stage in wanted:
    if stage not in known:
      raise unknown_name("stage", stage, (IMAGES, FLIPPED_IMAGES, *known))
  if not wanted:
    return []
  resume = getattr(module, "resume", None)
  if resume is None or not hasattr(module, "encode"):
    raise ConfigError(
      f"{_kind(module)} has no encode and resume, so there are no gradients at stage "
      f"{wanted[0]!r}: only at {IMAGES!r} and {FLIPPED_IMAGES!r}"
    )
  entered = [stage for stage in known if stage in wanted]
  parameters = inspect.signature(resume).parameters
  if len(entered) > 1 and "to_stage" not in parameters:
    raise ConfigError(
      f"{_kind(module)}'s resume takes no to_stage: gradients at one stage at most, not at "
      f"{entered}"
    )
  return entered


def _summed_cross_entropy(output: Any, targets: _Targets) -> Array:
  if not isinstance(output, Output) or output.logits is None:
    raise ConfigError(
      "gradients need one cross-entropy: the model must return one Output, with logits"
    )
  labels, weights, where = targets
  (logits,) = widen(output.logits)
  found = effective_weights("gradients", logits, weights, where)
  count = logits.size // logits.shape[-1] if found is None else jnp.sum(found)
  return cross_entropy(logits, labels, weights, where=where) * count


def _kind(module: nn.Module) -> str:
  return type(module).__name__
