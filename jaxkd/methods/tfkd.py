"""Tf-KD, distillation without a teacher: a virtual teacher, or the trained network itself."""

from __future__ import annotations

from typing import Any

from jaxkd.fields import choice, number
from jaxkd.losses import knowledge_distillation, virtual_teacher
from jaxkd.methods._labels import refuse_multi_hot
from jaxkd.methods.base import (
  BASELINE,
  DISTILLED,
  Method,
  PhaseSpec,
  Setup,
  check_something_learns,
)
from jaxkd.methods.distillation import Distillation, PerLabel, label_weights, per_example
from jaxkd.methods.offline import offline
from jaxkd.methods.supervised import supervised
from jaxkd.types import Batch, Context, Terms


def from_virtual_teacher(**options: Any) -> PerLabel:
  """Return `losses.virtual_teacher` as a loss of a `Distillation` without teachers.

  Args:
    **options: passed to it.
  """

  def loss(student: Any, teachers: Any, batch: Batch, context: Context) -> Terms:
    refuse_multi_hot("a virtual teacher", batch)
    axis_name, weights = label_weights(batch, context)
    return virtual_teacher(
      student, batch.labels, weights, axis_name=axis_name, where=batch.mask, **options
    )

  return PerLabel(loss)


def _phases(setup: Setup) -> list[PhaseSpec]:
  check_something_learns(setup)
  hyperparameters = setup.hyperparameters
  rate, label_weight = hyperparameters.learning_rate, hyperparameters.label_weight
  temperature, weight = hyperparameters.temperature, hyperparameters.weight
  if hyperparameters.form == "regularization":
    loss = from_virtual_teacher(
      correct_probability=hyperparameters.correct_probability, temperature=temperature
    )
    scheme = offline(
      setup.student, {}, [Distillation("tfkd", loss, weight, ())], label_weight=label_weight
    )
    return [PhaseSpec(DISTILLED, scheme, learning_rate=rate)]
  first = PhaseSpec(BASELINE, supervised(setup.student), learning_rate=rate, role="baseline")
  copy = Distillation("tfkd", per_example(knowledge_distillation, temperature=temperature), weight)
  scheme = offline(setup.student, {"teacher": setup.student}, [copy], label_weight=label_weight)
  inherit = {"teacher": f"{BASELINE}/student"}
  return [first, PhaseSpec(DISTILLED, scheme, inherit, learning_rate=rate)]


METHOD = Method(
  "distillation without a teacher: a virtual one, or a trained copy (Yuan et al., 2020)",
  {
    # "self" trains the student alone first, and then again with that as its teacher.
    "form": choice("regularization", ("regularization", "self")),
    "temperature": number(20.0, exclusive=True),
    "correct_probability": number(0.99, maximum=1.0),
    # alpha and 1 - alpha of the paper. The code has a mean over classes times a multiplier:
    # for 100 classes, weight is alpha * multiplier / 100.
    "weight": number(0.1),
    "label_weight": number(0.9),
  },
  phases=_phases,
  source="Yuan et al., Revisiting Knowledge Distillation via Label Smoothing, CVPR 2020",
  without_teacher=True,
)
