"""A fresh classifier on a frozen encoder: SimKD's sequential training."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn

from jaxkd.counts import scaled
from jaxkd.errors import ConfigError
from jaxkd.losses import knowledge_distillation
from jaxkd.networks import Model, infer, initialize, later_learners, learn, merge
from jaxkd.schemes.labels import accuracy, label_terms
from jaxkd.types import Array, Aux, Batch, Context, Network, Output, Participants, Scheme, Terms


def fresh_classifier(
  student: nn.Module,
  teacher: Model | None = None,
  *,
  image_shape: tuple[int, int, int],
  from_stage: str = "pooled",
  label_weight: float = 1.0,
  kd_weight: float = 0.0,
  temperature: float = 4.0,
) -> Scheme:
  """The student's encoder stands still, and what comes after it learns.

  The encoder runs in evaluation mode: neither its parameters nor its batch statistics move. The
  objective is label_weight * cross-entropy + kd_weight * T^2 KL(teacher).

  "student" is one participant, encoder and classifier together, and inherits its variables as a
  whole. After pure SimKD that is what sequential training wants: the student's own classifier took
  no part there, so it is still as it was drawn. After joint training it has learned already, and
  goes on from there. After SimKD+ or ++ every layer behind the matched stage is as it was drawn:
  give that stage as `from_stage`, and they all learn.

  Participants: "student", and "teacher" if there is one. Terms: "labels", "kd".

  Args:
    student: `__call__(images, train) -> Output` and `resume(features, from_stage, train)`.
    teacher: `__call__(images, train) -> Output`; needed for kd_weight.
    image_shape: (H, W, C), by which is found what learns.
    from_stage: the student's last stage that stands still.
    label_weight: of the cross-entropy.
    kd_weight: of knowledge distillation from the teacher's logits.
    temperature: of knowledge distillation.

  Raises:
    ConfigError: if there is no such stage or nothing to learn after it, the student cannot go on
      from a stage, kd_weight has no teacher, or both weights are 0.

  Source: Chen et al., Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022, where
  sequential training is compared with reusing the teacher's classifier. The authors published no
  code for it: the optimisation and the KD option are this project's.

  >>> from jaxkd.models import create
  >>> fresh_classifier(create("resnet8", num_classes=3), image_shape=(8, 8, 1)).learners
  ('student/classifier',)
  """
  if kd_weight and teacher is None:
    raise ConfigError(f"kd_weight is {kd_weight} but there is no teacher")
  if not (label_weight or kd_weight):
    raise ConfigError("label_weight and kd_weight are both 0: nothing would be learned")
  teachers = {} if teacher is None else {"teacher": teacher}

  def init(rng: Array, batch: Batch) -> Participants:
    everyone: dict[str, Model] = {"student": student, **teachers}
    return {name: initialize(model, rng, name, batch.images) for name, model in everyone.items()}

  def targets(participants: Participants, batch: Batch) -> dict[str, Output]:
    # The encoder is as frozen as the teacher: its features are a constant of the batch.
    encoded = infer(student, participants["student"], batch.images, to_stage=from_stage)
    taught = {
      name: infer(model, participants[name], batch.images) for name, model in teachers.items()
    }
    return {"student": Output(features={from_stage: encoded.features[from_stage]}), **taught}

  def loss(
    learning: Participants,
    participants: Participants,
    batch: Batch,
    targets: dict[str, Output],
    context: Context,
  ) -> tuple[Array, Aux]:
    variables = merge(participants, learning)["student"]
    features = targets["student"].features[from_stage]
    output, changes = learn(
      student, variables, features, context.rng, from_stage=from_stage, where=batch.mask
    )
    terms: dict[str, Terms] = {}
    if label_weight:
      terms["labels"] = label_weight * label_terms(output.logits, batch, context)
    if kd_weight:
      soft = knowledge_distillation(
        output, targets["teacher"], temperature=temperature, where=batch.mask
      )
      terms["kd"] = kd_weight * scaled(soft, batch, context)
    metrics = {"accuracy": accuracy(output.logits, batch)}
    total = sum((t.total for t in terms.values()), start=jnp.float32(0))
    return total, Aux(terms, metrics, {"student": changes})

  def predict(participants: Participants, images: Array) -> dict[str, Array]:
    return {"student": infer(student, participants["student"], images).logits}

  def export(participants: Participants) -> dict[str, Network]:
    return {"student": Network(student, participants["student"])}

  learners = later_learners(student, "student", from_stage, image_shape)
  return Scheme(init, targets, loss, predict, learners, export)
