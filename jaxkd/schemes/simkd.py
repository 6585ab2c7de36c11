"""SimKD: the student's encoder learns to feed its teachers' own classifiers, which it reuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxkd.counts import scaled
from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses import knowledge_distillation
from jaxkd.losses import simkd as simkd_loss
from jaxkd.models import reuse_classifier, reuse_classifiers
from jaxkd.networks import Model, infer, initialize, key_for, learn, merge, partial_learners
from jaxkd.preprocessing import plain
from jaxkd.schemes.labels import accuracy, label_terms
from jaxkd.types import Array, Aux, Batch, Context, Network, Output, Participants, Scheme, Terms


def simkd(
  student: nn.Module,
  teacher: Model | Mapping[str, Model],
  projector: nn.Module | Mapping[str, nn.Module],
  *,
  image_shape: tuple[int, int, int],
  stages: tuple[str, str] = ("stage3", "stage3"),
  weight: float = 1.0,
  teacher_weights: Mapping[str, float] | None = None,
  label_weight: float = 0.0,
  kd_weight: float = 0.0,
  temperature: float = 4.0,
  classifier: str = "teacher",
) -> Scheme:
  """The student's feature, projected, matches the teacher's; the teacher's later layers follow.

  By default there is no label term and no logit term: the objective is weight * mse(projected,
  teacher's feature). The student predicts through projector and the teacher's frozen later layers,
  by default pooling and the classifier. Its own later layers are neither run nor learned: they stay
  as they were drawn, and no weight decay or moving average changes them.

  SimKD+ and SimKD++ reuse the teacher's last one or two stages as well as its classifier: they are
  `stages` ("stage2", "stage2") and ("stage1", "stage1") of a network of three stages.

  Joint training: with label_weight or kd_weight above 0 the whole student runs, and its own
  classifier learns as well, by label_weight * cross-entropy + kd_weight * T^2 KL(teacher) on its
  own logits. There are then two predictors, and `classifier` says whose is "student": the
  teacher's, the student's own then being "own"; or the student's, the teacher's being "reused".

  Several teachers: each has a projector of its own. With the shares s_t = teacher_weights,
  normalised, the objective is weight * sum_t s_t mse(projected_t, map_t), the terms of joint
  training take sum_t s_t KL_t, and the student predicts by sum_t s_t logits_t through the
  teachers' classifiers; "student_via_NAME" is each one's.

  Participants: "student"; "teacher" or the names given; "projector", or "projector_NAME" for
  several teachers. Terms: "simkd" or "simkd_NAME", "labels", "kd".

  Args:
    student: `__call__(images, train) -> Output`; stops at its stage if it has `encode`.
    teacher: also `resume(features, from_stage, train) -> Output`. Several as name -> model.
    projector: `__call__(features, train)`, from the student's feature to the teacher's channels
      (`jaxkd.adapters.projector_for`), without a ReLU at its end where the teacher's feature has
      both signs. Several as name -> projector, under the teachers' names.
    image_shape: (H, W, C), by which is found what learns and what `export` takes along.
    stages: the student's and the teachers' stage that are matched.
    weight: of the feature term.
    teacher_weights: name -> weight of a teacher; None weighs all alike.
    label_weight: of the cross-entropy of the student's own logits.
    kd_weight: of knowledge distillation on the student's own logits.
    temperature: of knowledge distillation.
    classifier: "teacher" or "student": the one through which "student" predicts.

  Raises:
    ConfigError: if there is no teacher, the names of teachers, projectors and weights do not agree
      or clash, a weight is negative or all are 0, there is no such stage, or `classifier` is
      "student" without a term that trains it.

  Source: Chen et al., Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022, and
  the authors' code: its -b is `weight`, its -c and -d are label_weight and kd_weight, by default
  0; with either above 0 it, too, scores the teacher's classifier. SimKD+, ++ and several teachers
  are in the paper only. How the paper combines several teachers could not be sourced: shares of
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
  connector = {name: f"projector_{name}" if several else "projector" for name in teachers}
  joint = bool(label_weight or kd_weight)
  reused_name, own_name = _predictors(classifier, joint)
  everyone_named = ["student", *teachers, *connector.values()]
  if len(set(everyone_named)) < len(everyone_named):
    raise ConfigError(f"participants need different names, got {everyone_named}")
  # As deep as each network has to run.
  student_end = None if joint else student_stage
  teacher_end = None if kd_weight else teacher_stage

  def reused(participants: Participants, projected: Mapping[str, Array]) -> dict[str, Array]:
    """Logits through the teachers' classifiers, by predictor."""
    via = {
      name: infer(model, participants[name], projected[name], from_stage=teacher_stage).logits
      for name, model in teachers.items()
    }
    each = {f"student_via_{name}": logits for name, logits in via.items()} if several else {}
    return {reused_name: sum(shares[name] * logits for name, logits in via.items()), **each}

  def init(rng: Array, batch: Batch) -> Participants:
    participants = {"student": initialize(student, rng, "student", batch.images)}
    output = infer(student, participants["student"], batch.images, to_stage=student_stage)
    for name, model in teachers.items():
      participants[name] = initialize(model, rng, name, batch.images)
      participants[connector[name]] = initialize(
        projectors[name], rng, connector[name], output.features[student_stage]
      )
    return participants

  def targets(participants: Participants, batch: Batch) -> dict[str, Output]:
    return {
      name: infer(model, participants[name], batch.images, to_stage=teacher_end)
      for name, model in teachers.items()
    }

  def loss(
    learning: Participants,
    participants: Participants,
    batch: Batch,
    targets: dict[str, Output],
    context: Context,
  ) -> tuple[Array, Aux]:
    everyone = merge(participants, learning)
    output, changes = learn(
      student,
      everyone["student"],
      batch.images,
      context.rng,
      to_stage=student_end,
      where=batch.mask,
    )
    state: Participants = {"student": changes}
    terms: dict[str, Terms] = {}
    projected: dict[str, Array] = {}
    for name in teachers:
      projected[name], state[connector[name]] = learn(
        projectors[name],
        everyone[connector[name]],
        output.features[student_stage],
        key_for(context.rng, connector[name]),
        where=batch.mask,
      )
      seen = dataclasses.replace(
        output, features={**output.features, student_stage: projected[name]}
      )
      matched = simkd_loss(seen, targets[name], stages=(stages,), where=batch.mask)
      terms[f"simkd_{name}" if several else "simkd"] = (
        weight * shares[name] * scaled(matched, batch, context)
      )
    if label_weight:
      terms["labels"] = label_weight * label_terms(output.logits, batch, context)
    if kd_weight:
      soft = (
        shares[name]
        * knowledge_distillation(output, targets[name], temperature=temperature, where=batch.mask)
        for name in teachers
      )
      terms["kd"] = kd_weight * scaled(sum(soft, start=Terms()), batch, context)
    logits = {**reused(everyone, projected), own_name: output.logits}["student"]
    metrics = {"accuracy": accuracy(logits, batch)}
    total = sum((t.total for t in terms.values()), start=jnp.float32(0))
    return total, Aux(terms, metrics, state)

  def predict(participants: Participants, images: Array) -> dict[str, Array]:
    output = infer(student, participants["student"], images, to_stage=student_end)
    features = output.features[student_stage]
    projected = {
      name: infer(projectors[name], participants[connector[name]], features) for name in teachers
    }
    own = {own_name: output.logits} if joint else {}
    return {**reused(participants, projected), **own}

  def export(participants: Participants) -> dict[str, Network]:
    common: dict[str, Any] = {
      "student_stage": student_stage,
      "teacher_stage": teacher_stage,
      "image_shape": image_shape,
    }
    via = {
      name: reuse_classifier(
        Network(student, participants["student"]),
        Network(projectors[name], participants[connector[name]]),
        Network(plain(model), participants[name]),  # Its last layers see no image.
        **common,
      )
      for name, model in teachers.items()
    }
    networks = {f"student_via_{name}": network for name, network in via.items()}
    if several:
      networks[reused_name] = reuse_classifiers(
        Network(student, participants["student"]),
        {name: Network(projectors[name], participants[connector[name]]) for name in teachers},
        {name: Network(plain(model), participants[name]) for name, model in teachers.items()},
        shares=shares,
        **common,
      )
    else:
      networks = {reused_name: next(iter(via.values()))}
    own = {own_name: Network(student, participants["student"])} if joint else {}
    return {**networks, **own}

  encoder = partial_learners(student, "student", student_stage, image_shape)
  learners = (*(("student",) if joint else encoder), *connector.values())
  return Scheme(init, targets, loss, predict, learners, export)


def _shares(
  teachers: Mapping[str, Any],
  projectors: Mapping[str, Any],
  weights: Mapping[str, float] | None,
) -> dict[str, float]:
  """Each teacher's part of the whole, in the teachers' order."""
  given = dict.fromkeys(teachers, 1.0) if weights is None else dict(weights)
  for what, names in (("projector", projectors), ("teacher_weights", given)):
    if set(names) != set(teachers):
      raise ConfigError(f"{what} names {sorted(names)}, but the teachers are {sorted(teachers)}")
  total = sum(given.values())
  if min(given.values(), default=0.0) < 0 or not total > 0:
    raise ConfigError(f"teacher_weights is {given}: no weight may be negative, nor all of them 0")
  return {name: given[name] / total for name in teachers}


def _predictors(classifier: str, joint: bool) -> tuple[str, str]:
  """What predicting through the teachers' and through the student's own classifier is called."""
  known = {"teacher": ("student", "own"), "student": ("reused", "student")}
  if classifier not in known:
    raise unknown_name("classifier", classifier, known)
  if classifier == "student" and not joint:
    raise ConfigError(
      "classifier='student': nothing trains the student's own classifier; set label_weight or "
      "kd_weight above 0"
    )
  return known[classifier]
