"""SDD, scale-decoupled distillation: logits of regions of the feature map."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.fields import Field, choice, flag, number, text
from jaxkd.losses import adaptive_average_pool, scale_decoupled
from jaxkd.losses.sdd import FORMS
from jaxkd.methods._soft_targets import STANDARDIZE
from jaxkd.methods._stages import AUTO, last_pair
from jaxkd.methods.base import Method, Setup, Term
from jaxkd.methods.distillation import Distillation, PerLabel, per_label
from jaxkd.methods.ramps import warm_up
from jaxkd.types import Array, Batch, Context, Output

_SCALES = ((1,), (1, 2), (1, 4), (1, 2, 4))


def _is_known(scales: Any) -> bool:
  return isinstance(scales, tuple | list) and tuple(scales) in _SCALES


_OPTIONS: dict[str, Any] = {
  "form": choice("kd", FORMS),
  "temperature": number(4.0, exclusive=True),
  # Weight of a region from which the teacher decides rightly and from the whole image wrongly, or
  # the other way round.
  "complementary_weight": number(2.0),
  # Of form="dkd"; the authors then have warmup_epochs=20, weight=1 and label_weight=1.
  "target_weight": number(1.0),
  "others_weight": number(8.0),
  # Of form="nkd", with temperature=1. The published mask of the label's class has no effect, as
  # mask_target=False.
  "gamma": number(1.5),
  "mask_target": flag(True),
  **STANDARDIZE,
}


def _distillations(setup: Setup) -> list[Term]:
  hyperparameters = setup.hyperparameters
  ours, theirs = last_pair(setup)
  scales = tuple(hyperparameters.scales)
  compare = per_label(
    scale_decoupled,
    what="scale-decoupled distillation",
    **{name: hyperparameters[name] for name in _OPTIONS},
  )
  teacher_name = setup.teacher_name

  def loss(student: Output, teacher: Output, batch: Batch, context: Context) -> Any:
    classify = context.classifiers
    student = _of_regions(student, ours, scales, classify["student"])
    teacher = _of_regions(teacher, theirs, scales, classify[teacher_name])
    return compare.loss(student, teacher, batch, context)

  weight = warm_up(
    setup.share * hyperparameters.weight,
    epochs=hyperparameters.warmup_epochs,
    steps_per_epoch=setup.steps_per_epoch,
  )
  found = Distillation(setup.named("sdd"), PerLabel(loss), weight, teacher_name)
  regions = sum(scale * scale for scale in scales)
  return [Term(found, f"{regions} regions of {setup.compared([(ours, theirs)])}")]


def _of_regions(
  output: Output, stage: str, scales: Sequence[int], classify: Callable[..., Array]
) -> Output:
  """Return the Output whose logits (B, N, C) are those of the regions, the whole image first."""
  logits = [jnp.asarray(output.logits)[:, None]]
  for scale, maps in zip(scales[1:], regions(output.features[stage], scales)[1:], strict=True):
    found = classify(maps, stage)
    logits.append(found.reshape(-1, scale * scale, found.shape[-1]))
  return dataclasses.replace(output, logits=jnp.concatenate(logits, axis=1))


def regions(maps: jax.Array, scales: Sequence[int]) -> list[jax.Array]:
  """Return the cells of maps (B, H, W, C) at each scale s, (B * s^2, H / s, W / s, C), row by row.

  Where the largest scale does not divide H and W, the maps are first pooled to that many rows and
  columns, as in the published code.
  """
  largest = max(scales)
  if maps.shape[1] % largest or maps.shape[2] % largest:
    maps = adaptive_average_pool(maps, largest, largest)
  batch, height, width, channels = maps.shape
  found = []
  for scale in scales:
    rows, columns = height // scale, width // scale
    cells = maps.reshape(batch, scale, rows, scale, columns, channels).transpose(0, 1, 3, 2, 4, 5)
    found.append(cells.reshape(-1, rows, columns, channels))
  return found


METHOD = Method(
  "scale-decoupled distillation: logits of the image's regions (Luo, 2024)",
  {
    "stage": text(AUTO),
    # s cuts the feature map into s x s regions; 1 is the whole image.
    "scales": Field((1, 2), _is_known, f"one of {_SCALES}"),
    **_OPTIONS,
    # The weight of epoch e, from 1, is multiplied by min(e / warmup_epochs, 1); 0 is no warm-up.
    "warmup_epochs": number(0.0),
    "weight": number(0.9),
  },
  _distillations,
  source="Luo, Scale Decoupled Distillation, CVPR 2024",
  label_weight=0.1,
  needs="features",
)
