"""Methods by name, their hyperparameters and their schemes: where names meet code."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
from flax import linen as nn

from jaxkd import config, losses, schemes
from jaxkd.config import Fields, number, text
from jaxkd.connectors import projector_for, regressor_for
from jaxkd.errors import unknown_name
from jaxkd.schemes import Distillation
from jaxkd.types import Output, Scheme


@dataclasses.dataclass(frozen=True)
class Pair:
  """What a method builds its scheme from.

  Attributes:
    student: the model that learns.
    teacher: the model it learns from.
    student_output: the shapes it returns.
    teacher_output: the shapes it returns.
    image_shape: (H, W, C).
    options: fields every trained module takes: the axis of cross-device statistics, the dtype.
    hyperparameters: the config's "method" section.
  """

  student: nn.Module
  teacher: nn.Module
  student_output: Output
  teacher_output: Output
  image_shape: tuple[int, int, int]
  options: Mapping[str, Any]
  hyperparameters: ml_collections.ConfigDict

  def shapes(self, stage: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The student's and the teacher's shape at a stage, batch included."""
    return (
      feature_shape(self.student_output, stage, "student"),
      feature_shape(self.teacher_output, stage, "teacher"),
    )


@dataclasses.dataclass(frozen=True)
class Method:
  """A way to train a student.

  Attributes:
    summary: one line for listings.
    fields: its hyperparameters, the config's "method" section.
    scheme: from a pair of networks to the scheme that trains the student; None for methods
      without a distilled student.
    reuses_classifier: whether the student predicts through the teacher's classifier.
  """

  summary: str
  fields: Fields
  scheme: Callable[[Pair], Scheme] | None
  reuses_classifier: bool = False


def _offline(pair: Pair, distillation: Distillation) -> Scheme:
  return schemes.offline(
    pair.student,
    {"teacher": pair.teacher},
    [distillation],
    label_weight=pair.hyperparameters.label_weight,
  )


def _kd(pair: Pair) -> Scheme:
  own = pair.hyperparameters
  loss = functools.partial(losses.knowledge_distillation, temperature=own.temperature)
  return _offline(pair, Distillation("kd", loss, own.weight))


def _fitnets(pair: Pair) -> Scheme:
  own = pair.hyperparameters
  student, teacher = pair.shapes(own.stage)
  regressor = regressor_for(student, teacher, stage=own.stage, **pair.options)
  loss = functools.partial(losses.fitnets, stages=(own.stage,))
  return _offline(
    pair, Distillation("fitnets", loss, own.weight, connectors={own.stage: regressor})
  )


def _attention_transfer(pair: Pair) -> Scheme:
  own = pair.hyperparameters
  for stage in own.stages:
    pair.shapes(stage)
  loss = functools.partial(
    losses.attention_transfer, stages=tuple(own.stages), power=own.power, norm=own.norm
  )
  return _offline(pair, Distillation("at", loss, own.weight))


def _simkd(pair: Pair) -> Scheme:
  own = pair.hyperparameters
  student, teacher = pair.shapes(own.stage)
  projector = projector_for(
    student, teacher, stage=own.stage, reduction=own.reduction, **pair.options
  )
  return schemes.simkd(
    pair.student,
    pair.teacher,
    projector,
    image_shape=pair.image_shape,
    stages=(own.stage, own.stage),
    weight=own.weight,
  )


METHODS: Mapping[str, Method] = {
  "teacher": Method("the teacher alone, from labels", {}, None),
  "alone": Method("the student alone, from labels", {}, None),
  "kd": Method(
    "knowledge distillation: softened logits (Hinton et al., 2015)",
    {
      "temperature": number(4.0, exclusive=True),
      "weight": number(0.9),
      "label_weight": number(0.1),
    },
    _kd,
  ),
  "fitnets": Method(
    "FitNets: one hint through a regressor (Romero et al., 2015)",
    {"stage": text("stage2"), "weight": number(100.0), "label_weight": number(1.0)},
    _fitnets,
  ),
  "at": Method(
    "attention transfer from activations (Zagoruyko and Komodakis, 2017)",
    {
      "stages": config.names(("stage1", "stage2", "stage3")),
      "power": number(2.0, exclusive=True),
      "norm": config.choice("code", ("code", "paper")),
      "weight": number(1000.0),
      "label_weight": number(1.0),
    },
    _attention_transfer,
  ),
  "simkd": Method(
    "SimKD: the reused teacher classifier (Chen et al., 2022)",
    {
      "stage": text("stage3"),
      "reduction": config.integer(2, minimum=1),
      "weight": number(1.0),
    },
    _simkd,
    reuses_classifier=True,
  ),
}


def fields(method: str) -> Fields:
  """Every field of a config for `method`, with what each accepts.

  Raises:
    ConfigError: if there is no such method, naming the nearest.
  """
  if not isinstance(method, str) or method not in METHODS:
    raise unknown_name("method", method, METHODS)
  own = {"name": text(method), **METHODS[method].fields}
  if METHODS[method].scheme is not None:
    # Objectives differ in scale: 0 takes the rate of the student alone.
    own["learning_rate"] = number(0.0)
  return {**config.COMMON, "method": own}


def base_config(method: str) -> ml_collections.ConfigDict:
  """The config that files in `configs/` start from: RepDistiller's CIFAR recipe for `method`."""
  return config.defaults(fields(method))


def check_config(settings: ml_collections.ConfigDict) -> None:
  """Raises a ConfigError if a field is unknown, missing or out of range."""
  method = settings.get("method", {})
  name = method.get("name", "") if hasattr(method, "get") else method
  config.check(settings, fields(name))


def feature_shape(output: Output, stage: str, owner: str) -> tuple[int, ...]:
  """The shape of a stage's features.

  Raises:
    ConfigError: if the model has no such stage, naming those it has.
  """
  if stage not in output.features:
    raise unknown_name(f"stage of the {owner}", stage, output.features)
  return output.features[stage].shape
