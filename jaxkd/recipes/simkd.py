"""The recipe of SimKD and its variants."""

from __future__ import annotations

import dataclasses

from jaxkd import config, schemes
from jaxkd.adapters import projector_for
from jaxkd.adapters.projector import LAYOUTS
from jaxkd.config import choice, number, text
from jaxkd.errors import ConfigError
from jaxkd.recipes.method import Method, Pair, Training
from jaxkd.recipes.objective import DISTILLED
from jaxkd.recipes.stages import ACTIVATION, AUTO, ends_in_relu, last_pair


def _simkd(pair: Pair) -> list[Training]:
  own = pair.hyperparameters
  stages = _stages(pair)
  projectors = {}
  notes = []
  for name in pair.teachers:
    at_hand = dataclasses.replace(pair, at=name)
    student, teacher = at_hand.shapes(stages)
    notes.append(f"simkd compares {at_hand.compared([stages])}")
    projectors[name] = projector_for(
      student,
      teacher,
      stage=stages[0],
      layout=own.projector,
      reduction=own.reduction,
      activation=ends_in_relu(at_hand, stages[1]),
      **pair.options,
    )
  joint = own.classifier == "joint"
  inherit = {name: f"{name}/{name}" for name in pair.teachers}
  matching = Training(
    DISTILLED,
    schemes.simkd(
      pair.student,
      pair.models,
      projectors,
      image_shape=pair.image_shape,
      stages=stages,
      weight=own.weight,
      teacher_weights=pair.shares,
      label_weight=own.label_weight if joint else 0.0,
      kd_weight=own.kd_weight if joint else 0.0,
      temperature=own.temperature,
      classifier="student" if joint else "teacher",
    ),
    inherit,
    learning_rate=own.learning_rate,
    reuses_classifier=not joint,
    notes=tuple(notes),
  )
  if own.classifier != "sequential":
    return [matching]
  encoder = dataclasses.replace(matching, name="encoder")
  if own.kd_weight and len(pair.teachers) > 1:
    raise ConfigError(
      f"method.kd_weight={own.kd_weight}: expected 0 with classifier='sequential' and "
      f"{len(pair.teachers)} teachers"
    )
  teachers = [pair.teacher.model] if own.kd_weight else []
  classifier = Training(
    DISTILLED,
    schemes.fresh_classifier(
      pair.student,
      *teachers,
      image_shape=pair.image_shape,
      from_stage=stages[0],
      label_weight=own.label_weight,
      kd_weight=own.kd_weight,
      temperature=own.temperature,
    ),
    {"student": "encoder/student", **({"teacher": inherit["teacher"]} if teachers else {})},
    epochs=own.classifier_epochs,
    learning_rate=own.classifier_learning_rate,
  )
  return [encoder, classifier]


def _stages(pair: Pair) -> tuple[str, str]:
  """The stages that are matched: those of the config, or as many earlier as are reused as well."""
  own, named = pair.hyperparameters, last_pair(pair, vectors=True)
  found = []
  for model, stage in zip((pair.student, pair.teacher.module), named, strict=True):
    order = tuple(model.stages)
    position = order.index(stage) - own.reused_stages
    if position < 0:
      raise ConfigError(
        f"method.reused_stages={own.reused_stages}: expected at most {order.index(stage)}, as "
        f"there are {order} up to {stage!r}"
      )
    found.append(order[position])
  return found[0], found[1]


METHODS = {
  "simkd": Method(
    "SimKD: the reused teacher classifier (Chen et al., 2022)",
    {
      "stage": text(AUTO),
      # Of the teacher, beside its classifier: 1 is SimKD+, 2 is SimKD++.
      "reused_stages": config.integer(0),
      "projector": choice("1x1-3x3-1x1", LAYOUTS),
      "reduction": config.integer(2, minimum=1),
      "activation": ACTIVATION,
      "weight": number(1.0),
      # "joint" and "sequential" train the student's own classifier and predict by it: along with
      # the encoder, or afterwards on the frozen encoder. What follows is theirs alone.
      "classifier": choice("teacher", ("teacher", "joint", "sequential")),
      "label_weight": number(1.0),
      "kd_weight": number(1.0),
      "temperature": number(4.0, exclusive=True),
      "classifier_epochs": config.integer(30, minimum=1),
      "classifier_learning_rate": number(0.0),
    },
    trainings=_simkd,
    needs="features",
    same_classes="predicts through the teacher's classifier",
  ),
}
