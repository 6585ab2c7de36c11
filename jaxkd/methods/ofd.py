"""OFD: values before the ReLU, above a margin from the teacher's batch normalisation."""

from __future__ import annotations

from typing import Any

from jaxkd.adapters import AtStages, regressor_for
from jaxkd.errors import ConfigError
from jaxkd.fields import choice, number, weights
from jaxkd.fields import names as stage_names
from jaxkd.losses import batch_norm_margin, overhaul
from jaxkd.methods._features import feature_term
from jaxkd.methods._norms import norms_before
from jaxkd.methods._stages import AUTO, chosen_pairs, stage_options
from jaxkd.methods.base import Method, Setup, StagePair, Term
from jaxkd.methods.distillation import Loss, whole_batch
from jaxkd.types import Batch, Context, Terms


def _distillations(setup: Setup) -> list[Term]:
  pairs = chosen_pairs(setup, where="preactivations", vectors=True)
  options = stage_options(setup, pairs)
  modules = {}
  for pair in pairs:
    student, teacher = setup.shapes(pair, "preactivations")
    # Each stage has a connector, also where the channels agree; the larger map is pooled.
    modules[pair[0]] = regressor_for(
      student,
      (*student[:-1], teacher[-1]),
      stage=pair[0],
      use_bias=False,
      activation=False,
      **setup.options,
    )
  loss: Loss = whole_batch(overhaul, **options)
  parameters: dict[str, str] = {}
  if setup.hyperparameters.margins == "norm":
    parameters = _norms(setup, pairs)
    loss = _with_margins(pairs, options)
  term = feature_term(
    "ofd",
    setup,
    loss,
    pairs,
    "preactivations",
    adapter=AtStages(modules, "preactivations"),
    teacher_parameters=parameters,
  )
  return [Term(term.distillation, f"preactivations of {term.compares}")]


def _norms(setup: Setup, pairs: tuple[StagePair, ...]) -> dict[str, str]:
  """Return the paths of the teacher's scales and biases by the names `_with_margins` reads."""
  teacher = setup.teacher
  shape = teacher.converted.wanted.image_shape if teacher.converted else setup.image_shape
  stages = [stage for _, stage in pairs]
  norms = norms_before(teacher.module, shape, stages)
  lacking = [stage for stage in stages if stage not in norms]
  if lacking:
    raise ConfigError(
      f"method.margins='norm': stage {lacking[0]!r} of the {setup.teacher_name} is not the output "
      "of a batch normalisation: expected another stage, or margins='batch'"
    )
  return {f"{stage}_{part}": f"{path}/{part}" for stage, path in norms.items() for part in _PARTS}


_PARTS = ("scale", "bias")


def _with_margins(pairs: tuple[StagePair, ...], options: dict[str, Any]) -> Loss:
  def loss(student: Any, teacher: Any, batch: Batch, context: Context) -> Terms:
    margins = [
      batch_norm_margin(*(teacher.features[f"{stage}_{part}"] for part in _PARTS))
      for _, stage in pairs
    ]
    return overhaul(student, teacher, margins=margins, where=batch.mask, **options)

  return loss


METHOD = Method(
  "OFD: values before the ReLU, above a margin (Heo et al., 2019)",
  {
    "stages": stage_names((AUTO,)),
    "stage_weights": weights(),
    # "norm": from the teacher's batch normalisation; "batch": the mean of its negative values.
    "margins": choice("norm", ("norm", "batch")),
    "weight": number(1.0),
  },
  _distillations,
  source="Heo et al., A Comprehensive Overhaul of Feature Distillation, ICCV 2019",
  needs="preactivations",
  same_classes="",
  multi_label=True,
)
