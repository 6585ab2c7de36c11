"""SimKD: the student's encoder learns the features of a teacher and reuses its classifier."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from jaxkd import losses
from jaxkd.adapters import AtStages, projector_for
from jaxkd.adapters.projector import LAYOUTS
from jaxkd.errors import ConfigError, unknown_name
from jaxkd.fields import choice, integer, number, text
from jaxkd.methods._stages import ACTIVATION, AUTO, ends_in_relu, last_pair
from jaxkd.methods.base import DISTILLED, Method, PhaseSpec, Setup
from jaxkd.methods.distillation import Distillation, per_example
from jaxkd.methods.fresh_classifier import fresh_classifier, mean_soft_targets
from jaxkd.methods.offline import offline
from jaxkd.models import reuse_classifier, reuse_classifiers
from jaxkd.networks import Model, infer
from jaxkd.preprocessing import plain
from jaxkd.shapes import InputShape
from jaxkd.types import Array, Network, Output, Participants, Scheme


def simkd(
  student: nn.Module,
  teacher: Model | Mapping[str, Model],
  projector: nn.Module | Mapping[str, nn.Module],
  *,
  image_shape: InputShape,
  stages: tuple[str, str] = ("stage3", "stage3"),
  weight: float = 1.0,
  teacher_weights: Mapping[str, float] | None = None,
  label_weight: float = 0.0,
  kd_weight: float = 0.0,
  temperature: float = 4.0,
  classifier: str = "teacher",
) -> Scheme:
  """Return the scheme that matches the student's projected feature with the teacher's.

  By default there is no label term and no logit term: the objective is weight * mse(projected,
  teacher's feature). The student predicts through projector and the teacher's frozen later layers,
  by default pooling and the classifier. Its own later layers do not run and do not learn: they keep
  their initial weights, also under weight decay and moving averages.

  SimKD+ and SimKD++ reuse the teacher's last one or two stages as well as its classifier: they are
  `stages` ("stage2", "stage2") and ("stage1", "stage1") of a network of three stages.

  Joint training: with label_weight or kd_weight above 0 the whole student runs, and its own
  classifier learns as well, by label_weight * cross-entropy + kd_weight * T^2 KL(teacher) on its
  own logits. There are then two predictors. With `classifier` "teacher", the one through the
  teacher's classifier is "student", and the other is "own"; with "student", the one through the
  student's classifier is "student", and the other is "reused".

  Several teachers: each has its own projector. With the shares s_t = teacher_weights,
  normalised, the objective is weight * sum_t s_t mse(projected_t, map_t), the terms of joint
  training take sum_t s_t KL_t, and the student predicts by sum_t s_t logits_t through the
  teachers' classifiers; "student_via_NAME" predicts through the classifier of one teacher.

  Participants: "student"; "teacher" or the names given; "projector", or "projector_NAME" for
  several teachers. Terms: "simkd" or "simkd_NAME", "labels", "kd".

  Args:
    student: `__call__(images, train) -> Output`; with `encode`, it stops at its matched stage.
    teacher: also `resume(features, from_stage, train) -> Output`; or name -> model for several.
    projector: `__call__(features, train)`, from the student's feature to the teacher's channels
      (`jaxkd.adapters.projector_for`), without a final ReLU if the teacher's feature has both
      signs; or teacher's name -> projector for several.
    image_shape: (H, W, C), or the shapes of other inputs (`jaxkd.shapes`); the layers that learn
      and that `export` needs are found by tracing.
    stages: the matched stages, of the student and of the teachers.
    weight: weight of the feature term.
    teacher_weights: name -> weight of a teacher; None is equal weights.
    label_weight: weight of the cross-entropy of the student's own logits.
    kd_weight: weight of knowledge distillation on the student's own logits.
    temperature: temperature of knowledge distillation.
    classifier: "teacher" or "student": the classifier of the predictor "student".

  Raises:
    ConfigError: if there is no teacher, the names of teachers, projectors and weights differ
      or clash, a weight is negative or all are 0, there is no such stage, or `classifier` is
      "student" without a term that trains it.

  Source: Chen et al., Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022, and
  the authors' code: its -b is `weight`, its -c and -d are label_weight and kd_weight, by default
  0; with either above 0 that code, too, scores the teacher's classifier. SimKD+, ++ and several
  teachers are in the paper only, without details on how several teachers are combined: shares of
  losses and of logits are this project's choice.
  """
  student_stage, teacher_stage = stages
  teachers = dict(teacher) if isinstance(teacher, Mapping) else {"teacher": teacher}
  projectors = (
    dict(projector) if isinstance(projector, Mapping) else dict.fromkeys(teachers, projector)
  )
  if not teachers:
    raise ConfigError("teacher is empty: SimKD needs at least one teacher")
  several = len(teachers) > 1
  shares = _shares(teachers, projectors, teacher_weights)
  participant = {name: f"projector_{name}" if several else "projector" for name in teachers}
  joint = bool(label_weight or kd_weight)
  reused_name, own_name = _predictors(classifier, joint)
  matching = {
    name: Distillation(
      f"simkd_{name}" if several else "simkd",
      per_example(losses.simkd, stages=(stages,)),
      weight * shares[name],
      name,
      adapter=AtStages({student_stage: projectors[name]}),
      adapter_name=participant[name],
    )
    for name in teachers
  }

  def reused(participants: Participants, projected: Mapping[str, Array]) -> dict[str, Array]:
    """Return logits through the teachers' classifiers, by predictor."""
    via = {
      name: infer(model, participants[name], projected[name], from_stage=teacher_stage).logits
      for name, model in teachers.items()
    }
    each = {f"student_via_{name}": logits for name, logits in via.items()} if several else {}
    return {reused_name: sum(shares[name] * logits for name, logits in via.items()), **each}

  def logits_of(participants: Participants, output: Output, adapted: Mapping[str, Any]) -> Any:
    features = {name: adapted[d.name].features[student_stage] for name, d in matching.items()}
    return {**reused(participants, features), own_name: output.logits}["student"]

  soft_targets = [mean_soft_targets(kd_weight, shares, temperature)] if kd_weight else []
  taught = offline(
    student,
    teachers,
    [*matching.values(), *soft_targets],
    label_weight=label_weight,
    # Pure SimKD runs and trains the student up to the matched stage.
    to_stage=None if joint else student_stage,
    image_shape=image_shape,
    logits_of=logits_of,
  )

  def predict(participants: Participants, images: Array) -> dict[str, Array]:
    to_stage = None if joint else student_stage
    output = infer(student, participants["student"], images, to_stage=to_stage)
    features = output.features[student_stage]
    projected = {
      name: infer(projectors[name], participants[participant[name]], features) for name in teachers
    }
    own_logits = {own_name: output.logits} if joint else {}
    return {**reused(participants, projected), **own_logits}

  def export(participants: Participants) -> dict[str, Network]:
    common: dict[str, Any] = {
      "student_stage": student_stage,
      "teacher_stage": teacher_stage,
      "image_shape": image_shape,
    }
    via = {
      name: reuse_classifier(
        Network(student, participants["student"]),
        Network(projectors[name], participants[participant[name]]),
        Network(plain(model), participants[name]),  # Its later layers take features, no images.
        **common,
      )
      for name, model in teachers.items()
    }
    networks = {f"student_via_{name}": network for name, network in via.items()}
    if several:
      networks[reused_name] = reuse_classifiers(
        Network(student, participants["student"]),
        {name: Network(projectors[name], participants[participant[name]]) for name in teachers},
        {name: Network(plain(model), participants[name]) for name, model in teachers.items()},
        shares=shares,
        **common,
      )
    else:
      networks = {reused_name: next(iter(via.values()))}
    own_network = {own_name: Network(student, participants["student"])} if joint else {}
    return {**networks, **own_network}

  return taught._replace(predict=predict, export=export)


def _shares(
  teachers: Mapping[str, Any],
  projectors: Mapping[str, Any],
  weights: Mapping[str, float] | None,
) -> dict[str, float]:
  """Return each teacher's share, in the teachers' order; they sum to 1."""
  given = dict.fromkeys(teachers, 1.0) if weights is None else dict(weights)
  for what, names in (("projector", projectors), ("teacher_weights", given)):
    if set(names) != set(teachers):
      raise ConfigError(f"{what} names {sorted(names)}, but the teachers are {sorted(teachers)}")
  total = sum(given.values())
  if min(given.values(), default=0.0) < 0 or not total > 0:
    raise ConfigError(f"teacher_weights is {given}: no weight may be negative, nor all of them 0")
  return {name: given[name] / total for name in teachers}


def _predictors(classifier: str, joint: bool) -> tuple[str, str]:
  """Return the predictors' names: through the teachers' and through the student's classifier."""
  known = {"teacher": ("student", "own"), "student": ("reused", "student")}
  if classifier not in known:
    raise unknown_name("classifier", classifier, known)
  if classifier == "student" and not joint:
    raise ConfigError(
      "classifier='student': nothing trains the student's own classifier; set label_weight or "
      "kd_weight above 0"
    )
  return known[classifier]


def _phases(setup: Setup) -> list[PhaseSpec]:
  hyperparameters = setup.hyperparameters
  stages = _stages(setup)
  projectors = {}
  notes = []
  for name in setup.teachers:
    chosen = setup.for_teacher(name)
    student, teacher = chosen.shapes(stages)
    notes.append(f"simkd compares {chosen.compared([stages])}")
    projectors[name] = projector_for(
      student,
      teacher,
      stage=stages[0],
      layout=hyperparameters.projector,
      reduction=hyperparameters.reduction,
      activation=ends_in_relu(chosen, stages[1]),
      **setup.options,
    )
  joint = hyperparameters.classifier == "joint"
  inherit = {name: f"{name}/{name}" for name in setup.teachers}
  matching = PhaseSpec(
    DISTILLED,
    simkd(
      setup.student,
      setup.models,
      projectors,
      image_shape=setup.image_shape,
      stages=stages,
      weight=hyperparameters.weight,
      teacher_weights=setup.shares,
      label_weight=hyperparameters.label_weight if joint else 0.0,
      kd_weight=hyperparameters.kd_weight if joint else 0.0,
      temperature=hyperparameters.temperature,
      classifier="student" if joint else "teacher",
    ),
    inherit,
    learning_rate=hyperparameters.learning_rate,
    reuses_classifier=not joint,
    notes=tuple(notes),
  )
  if hyperparameters.classifier != "sequential":
    return [matching]
  encoder = dataclasses.replace(matching, name="encoder", role="")
  if hyperparameters.kd_weight and len(setup.teachers) > 1:
    raise ConfigError(
      f"method.kd_weight={hyperparameters.kd_weight}: expected 0 with classifier='sequential' and "
      f"{len(setup.teachers)} teachers"
    )
  teachers = [setup.teacher.model] if hyperparameters.kd_weight else []
  classifier = PhaseSpec(
    DISTILLED,
    fresh_classifier(
      setup.student,
      *teachers,
      image_shape=setup.image_shape,
      from_stage=stages[0],
      label_weight=hyperparameters.label_weight,
      kd_weight=hyperparameters.kd_weight,
      temperature=hyperparameters.temperature,
    ),
    {"student": "encoder/student", **({"teacher": inherit["teacher"]} if teachers else {})},
    epochs=hyperparameters.classifier_epochs,
    learning_rate=hyperparameters.classifier_learning_rate,
  )
  return [encoder, classifier]


def _stages(setup: Setup) -> tuple[str, str]:
  """Return the matched stages: those of the config, or `reused_stages` earlier ones."""
  hyperparameters, named = setup.hyperparameters, last_pair(setup, vectors=True)
  found = []
  for model, stage in zip((setup.student, setup.teacher.module), named, strict=True):
    order = tuple(model.stages)
    if stage not in order:
      raise ConfigError(
        f"stage {stage!r} is not enough to continue from: set method.stage to one of "
        f"{', '.join(order)}, such as 'pooled'"
      )
    position = order.index(stage) - hyperparameters.reused_stages
    if position < 0:
      raise ConfigError(
        f"method.reused_stages={hyperparameters.reused_stages}: expected at most "
        f"{order.index(stage)}, as there are {order} up to {stage!r}"
      )
    found.append(order[position])
  return found[0], found[1]


METHOD = Method(
  "SimKD: the reused teacher classifier (Chen et al., 2022)",
  {
    "stage": text(AUTO),
    # Number of reused stages of the teacher besides its classifier: 1 is SimKD+, 2 is SimKD++.
    "reused_stages": integer(0),
    "projector": choice("1x1-3x3-1x1", LAYOUTS),
    "reduction": integer(2, minimum=1),
    "activation": ACTIVATION,
    "weight": number(1.0),
    # "joint" and "sequential" train the student's own classifier and predict with it: together
    # with the encoder, or afterwards on the frozen encoder. The fields below need one of the two.
    "classifier": choice("teacher", ("teacher", "joint", "sequential")),
    "label_weight": number(1.0),
    "kd_weight": number(1.0),
    "temperature": number(4.0, exclusive=True),
    "classifier_epochs": integer(30, minimum=1),
    "classifier_learning_rate": number(0.0),
  },
  phases=_phases,
  source="Chen et al., Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022",
  needs="features",
  same_classes="predicts through the teacher's classifier",
  multi_label=True,
)
