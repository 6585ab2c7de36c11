"""CAT-KD, class attention transfer: where each class is seen in the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxkd.errors import ConfigError
from jaxkd.fields import choice, flag, integer, number, text
from jaxkd.losses import class_attention
from jaxkd.methods._features import feature_term
from jaxkd.methods._stages import AUTO, last_pair
from jaxkd.methods.base import Method, Setup, Term
from jaxkd.types import Array, Batch, Context, Output, Terms

_MAPS = "class_maps"
_OPTIONS = ("resolution", "normalize", "binarize", "transfer", "count")


def class_maps(classify: Callable[..., Array], maps: Array, stage: str, last: Array) -> Output:
  """Return the class activation maps: the later layers at every position, without the bias.

  Args:
    classify: (features, from_stage) -> logits, of `Context.classifiers`.
    maps: (B, H, W, C), the features of `stage`. What follows them are layers of each position
      alone, the mean over positions, and a linear classifier.
    stage: name of the stage.
    last: zeros (1, D), of the shape of the classifier's input.
  """
  batch, rows, columns, channels = maps.shape
  logits = classify(maps.reshape(-1, 1, 1, channels), stage) - classify(last)
  return Output(features={_MAPS: logits.reshape(batch, rows, columns, -1)})


def _distillations(setup: Setup) -> list[Term]:
  own, name = setup.hyperparameters, setup.teacher_name
  stages = last_pair(setup)
  models = {"student": setup.student, name: setup.teacher.module}
  for (owner, model), stage in zip(models.items(), stages, strict=True):
    if not hasattr(model, "resume") or stage not in getattr(model, "stages", ()):
      raise ConfigError(
        f"method.stage={own.stage!r}: the {owner} cannot continue from {stage!r}: method 'catkd' "
        "applies the layers after a stage to each of its positions"
      )
  for owner, shape in zip(models, setup.shapes(stages), strict=True):
    if len(shape) != 4:
      raise ConfigError(f"the {owner}'s {stages} {shape[1:]}: expected a map (H, W, C)")
  classes = setup.teacher.num_classes
  if own.transfer != "all" and not 0 < own.count <= classes:
    raise ConfigError(
      f"method.count={own.count}: expected 1 to {classes}, the number of classes, with "
      f"transfer={own.transfer!r}"
    )
  widths = [shape[-1] for shape in setup.shapes("pooled")]
  options = {option: own[option] for option in _OPTIONS}

  def loss(student: Any, teacher: Any, batch: Batch, context: Context) -> Terms:
    sides = []
    for owner, output, stage, width in zip(models, (student, teacher), stages, widths, strict=True):
      maps = jnp.asarray(output.features[stage])
      zeros = jnp.zeros((1, width), maps.dtype)
      sides.append(class_maps(context.classifiers[owner], maps, stage, zeros))
    return class_attention(*sides, where=batch.mask, **options)

  return [feature_term("catkd", setup, loss, [stages])]


METHOD = Method(
  "class attention transfer (Guo et al., 2023)",
  {
    "stage": text(AUTO),
    "resolution": integer(2, minimum=1),
    "normalize": flag(True),
    "binarize": flag(False),
    # Classes of the teacher's largest or smallest logits, `count` of them, in place of all.
    "transfer": choice("all", ("all", "top", "lowest")),
    "count": integer(0),
    "weight": number(400.0),
  },
  _distillations,
  source="Guo et al., Class Attention Transfer Based Knowledge Distillation, CVPR 2023",
  needs="maps",
  same_classes="compares class activation maps",
  needs_network=True,
  multi_label=True,
)
