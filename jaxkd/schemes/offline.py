"""A student that learns from frozen teachers: any sum of losses, through any connectors."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.networks import Model, infer, initialize, key_for, learn, merge, partial_learners
from jaxkd.schemes.distillation import Distillation, mask_option
from jaxkd.schemes.gradients import infer_with_gradients, learn_with_gradients
from jaxkd.schemes.labels import accuracy, label_terms
from jaxkd.types import (
  Array,
  Aux,
  Batch,
  Context,
  Network,
  Output,
  Participants,
  Scheme,
  Terms,
)


def offline(
  student: nn.Module,
  teachers: Mapping[str, Model],
  distillations: Sequence[Distillation],
  *,
  label_weight: float = 1.0,
  to_stage: str | None = None,
  image_shape: tuple[int, int, int] | None = None,
) -> Scheme:
  """A scheme of one student and one or several teachers that do not change.

  The objective is label_weight * cross-entropy + sum of weight * loss(student, teacher). Teachers
  run in evaluation mode on the student's augmented images, converted if need be.

  Args:
    student: `__call__(images, train) -> Output`.
    teachers: participant name -> model; `jaxkd.preprocessing.as_trained` where one was trained on
      images of another normalisation or size than the student's.
    distillations: what is matched, with whom, at which weight.
    label_weight: weight of the cross-entropy on labelled examples; 0 needs no labels.
    to_stage: run and train the student up to this stage only (it must have `encode`): a first
      stage of training, before the rest of it learns. There are no logits then, so no predictor.
    image_shape: (H, W, C), by which the layers up to `to_stage` are found; needed with it.

  Raises:
    ConfigError: if `to_stage` is given together with a label weight, or without `image_shape`.
    ValueError: if two distillations share a name ("labels" is the cross-entropy's), two
      participants would, or a distillation names a teacher that is not there.
  """
  connectors, trained_connectors = _check_names(teachers, distillations)
  gradient_stages = tuple(_each(d.student_gradients for d in distillations))
  learners: tuple[str, ...] = ("student",)
  if to_stage is not None:
    if label_weight:
      raise ConfigError(f"label_weight is {label_weight}: up to {to_stage!r} there are no logits")
    if image_shape is None:
      raise ConfigError(f"to_stage is {to_stage!r}: image_shape must be given with it")
    learners = partial_learners(student, "student", to_stage, image_shape)

  def init(rng: Array, batch: Batch) -> Participants:
    participants = {"student": initialize(student, rng, "student", batch.images)}
    for name, model in teachers.items():
      participants[name] = initialize(model, rng, name, batch.images)
    if connectors:
      output = infer(student, participants["student"], batch.images)
      for name, (distillation, stage) in connectors.items():
        arrays = getattr(output, distillation.connects)
        module = distillation.connectors[stage]
        participants[name] = initialize(module, rng, name, arrays[stage])
    for name, (distillation, stage) in trained_connectors.items():
      [owner] = distillation.teachers
      seen = infer(teachers[owner], participants[owner], batch.images).features[stage]
      module = distillation.teacher_connectors[stage]
      participants[name] = initialize(module, rng, name, seen)
    return participants

  def targets(participants: Participants, batch: Batch) -> dict[str, Output]:
    """What each distillation sees of its teacher."""
    outputs = {}
    for name, model in teachers.items():
      stages = tuple(_each(d.teacher_gradients for d in distillations if name in d.teachers))
      if stages:
        outputs[name] = infer_with_gradients(
          model, participants[name], batch.images, batch.labels, batch.weights, stages, batch.mask
        )
      else:
        outputs[name] = infer(model, participants[name], batch.images)
    seen = {}
    for distillation in distillations:
      output = distillation.combined(outputs)
      features = dict(output.features)
      for stage, module in distillation.teacher_connectors.items():
        variables = participants[distillation.teacher_connector_name(stage)]
        features[stage] = infer(module, variables, output.features[stage])
      seen[distillation.name] = dataclasses.replace(output, features=features)
    return seen

  def run_student(variables: Participants, batch: Batch, rng: Array) -> tuple[Any, Participants]:
    if gradient_stages:
      return learn_with_gradients(
        student,
        variables,
        batch.images,
        batch.labels,
        batch.weights,
        gradient_stages,
        rng,
        batch.mask,
      )
    return learn(student, variables, batch.images, rng, to_stage=to_stage, where=batch.mask)

  def loss(
    learning: Participants,
    participants: Participants,
    batch: Batch,
    targets: dict[str, Output],
    context: Context,
  ) -> tuple[Array, Aux]:
    everyone = merge(participants, learning)
    output, changes = run_student(everyone["student"], batch, context.rng)
    state: Participants = {"student": changes}
    terms: dict[str, Terms] = {}
    metrics = {}
    if to_stage is None:
      metrics["accuracy"] = accuracy(output.logits, batch)
    if label_weight:
      terms["labels"] = label_weight * label_terms(output.logits, batch, context)
    for distillation in distillations:
      arrays = dict(getattr(output, distillation.connects))
      for stage, module in distillation.connectors.items():
        name = distillation.connector_name(stage)
        arrays[stage], state[name] = learn(
          module, everyone[name], arrays[stage], key_for(context.rng, name), where=batch.mask
        )
      changed: dict[str, Any] = {distillation.connects: arrays}
      connected = dataclasses.replace(output, **changed)
      seen = targets[distillation.name]
      terms[distillation.name] = distillation.terms(connected, seen, batch, context)
      for name, metric in distillation.metrics.items():
        options = mask_option(metric, batch, f"metric {name!r} of {distillation.name!r}")
        metrics[f"{distillation.name}_{name}"] = metric(connected, seen, **options)
    total = sum((t.total for t in terms.values()), start=jax.numpy.float32(0))
    return total, Aux(terms, metrics, state)

  def predict(participants: Participants, images: Array) -> dict[str, Array]:
    if to_stage is not None:
      return {}
    return {"student": infer(student, participants["student"], images).logits}

  def export(participants: Participants) -> dict[str, Network]:
    if to_stage is not None:
      return {}
    return {"student": Network(student, participants["student"])}

  return Scheme(init, targets, loss, predict, (*learners, *connectors), export)


# Participant -> its distillation and stage.
_Connectors = dict[str, tuple[Distillation, str]]


def _check_names(
  teachers: Iterable[str], distillations: Sequence[Distillation]
) -> tuple[_Connectors, _Connectors]:
  """The connectors that learn and those that do not; a ValueError for names that collide."""
  names = ["labels", *(distillation.name for distillation in distillations)]
  if len(set(names)) < len(names):
    raise ValueError(f"the terms of the objective need different names, got {names}")
  for distillation in distillations:
    for teacher in distillation.teachers:
      if teacher not in teachers:
        raise ValueError(
          f"distillation {distillation.name!r} names teacher {teacher!r}; "
          f"there are {sorted(teachers)}"
        )
    if distillation.teacher_connectors and len(distillation.teachers) > 1:
      raise ValueError(
        f"distillation {distillation.name!r} has teacher connectors, which need the features of "
        "one teacher, but looks to the mean of several ones' logits"
      )
  learning = [
    (d.connector_name(stage), (d, stage)) for d in distillations for stage in d.connectors
  ]
  trained = [
    (d.teacher_connector_name(stage), (d, stage))
    for d in distillations
    for stage in d.teacher_connectors
  ]
  everyone_named = ["student", *teachers, *(name for name, _ in (*learning, *trained))]
  if len(set(everyone_named)) < len(everyone_named):
    raise ValueError(f"participants need different names, got {everyone_named}")
  return dict(learning), dict(trained)


def _each(groups: Iterable[Iterable[str]]) -> Iterable[str]:
  """Every name of the groups once, in their order."""
  return dict.fromkeys(itertools.chain.from_iterable(groups))
