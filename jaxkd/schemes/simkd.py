"""SimKD: the student's encoder learns to feed the teacher's own classifier, which it reuses."""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import linen as nn

from jaxkd.evaluate.accuracy import score
from jaxkd.losses import simkd as simkd_loss
from jaxkd.models import reuse_classifier
from jaxkd.participants import merge
from jaxkd.schemes.networks import infer, initialize, key_for, learn
from jaxkd.types import Array, Aux, Batch, Context, Network, Output, Participants, Scheme


def simkd(
  student: nn.Module,
  teacher: nn.Module,
  projector: nn.Module,
  *,
  image_shape: tuple[int, int, int],
  stages: tuple[str, str] = ("stage3", "stage3"),
  weight: float = 1.0,
) -> Scheme:
  """The student's last map, projected, matches the teacher's; the teacher's classifier follows.

  There is no label term and no logit term: the objective is weight * mse(projected, teacher's
  map). The student predicts through projector, pooling and the teacher's frozen classifier. Its
  own classifier takes no part and receives no gradient.

  Args:
    student: `__call__(images, train) -> Output`.
    teacher: also `resume(features, from_stage, train) -> Output`.
    projector: `__call__(features, train)`, from the student's map to the teacher's channels
      (`jaxkd.connectors.projector_for`).
    image_shape: (H, W, C), by which `export` finds the variables that the student needs.
    stages: the student's and the teacher's stage that are matched.
    weight: of the feature term.

  Source: Chen et al., Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022, and
  the authors' code (-c 0 -d 0 -b 1).
  """
  student_stage, teacher_stage = stages

  def classify(participants: Participants, projected: Array) -> Array:
    output: Any = teacher.apply(
      participants["teacher"], projected, teacher_stage, train=False, method="resume"
    )
    return output.logits

  def init(rng: Array, batch: Batch) -> Participants:
    participants = {
      "student": initialize(student, rng, "student", batch.images),
      "teacher": initialize(teacher, rng, "teacher", batch.images),
    }
    features = infer(student, participants["student"], batch.images).features[student_stage]
    participants["projector"] = initialize(projector, rng, "projector", features)
    return participants

  def targets(participants: Participants, batch: Batch) -> Output:
    return infer(teacher, participants["teacher"], batch.images)

  def loss(
    learning: Participants,
    participants: Participants,
    batch: Batch,
    targets: Output,
    context: Context,
  ) -> tuple[Array, Aux]:
    everyone = merge(participants, learning)
    output, student_changes = learn(student, everyone["student"], batch.images, context.rng)
    projected, projector_changes = learn(
      projector,
      everyone["projector"],
      output.features[student_stage],
      key_for(context.rng, "projector"),
    )
    seen = dataclasses.replace(output, features={**output.features, student_stage: projected})
    terms = weight * simkd_loss(seen, targets, stages=(stages,))
    logits = classify(everyone, projected)
    metrics = {"accuracy": score(logits, batch.labels, batch.weights)["accuracy"]}
    state = {"student": student_changes, "projector": projector_changes}
    return terms.total, Aux({"simkd": terms}, metrics, state)

  def predict(participants: Participants, images: Array) -> dict[str, Array]:
    features = infer(student, participants["student"], images).features[student_stage]
    projected = infer(projector, participants["projector"], features)
    return {"student": classify(participants, projected)}

  def export(participants: Participants) -> dict[str, Network]:
    network = reuse_classifier(
      student,
      projector,
      teacher,
      participants["student"],
      participants["projector"],
      participants["teacher"],
      student_stage=student_stage,
      teacher_stage=teacher_stage,
      image_shape=image_shape,
    )
    return {"student": network}

  return Scheme(init, targets, loss, predict, ("student", "projector"), export)
