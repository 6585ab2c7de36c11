"""A newly initialised classifier on a frozen encoder: SimKD's sequential training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.methods._soft_targets import soft_targets
from jaxkd.methods.distillation import Distillation
from jaxkd.methods.offline import offline
from jaxkd.networks import Model
from jaxkd.shapes import InputShape
from jaxkd.types import Batch, Context, Scheme, Terms


def fresh_classifier(
  student: nn.Module,
  teacher: Model | None = None,
  *,
  image_shape: InputShape,
  from_stage: str = "pooled",
  label_weight: float = 1.0,
  kd_weight: float = 0.0,
  temperature: float = 4.0,
) -> Scheme:
  """Return the scheme in which the student's encoder is frozen and its later layers learn.

  The encoder runs in evaluation mode: neither its parameters nor its batch statistics change. The
  objective is label_weight * cross-entropy + kd_weight * T^2 KL(teacher).

  "student" is one participant, encoder and classifier together, and inherits its variables as a
  whole. After pure SimKD the student's own classifier still has its initial weights, as sequential
  training requires. After joint training it is already trained, and training continues. After
  SimKD+ or ++ every layer after the matched stage has its initial weights: with that stage as
  `from_stage`, all of them learn.

  Participants: "student", and "teacher" if there is one. Terms: "labels", "kd".

  Args:
    student: `__call__(images, train) -> Output` and `resume(features, from_stage, train)`.
    teacher: `__call__(images, train) -> Output`; needed for kd_weight.
    image_shape: (H, W, C), or the shapes of other inputs (`jaxkd.shapes`); the layers that learn
      are found by tracing.
    from_stage: the student's last frozen stage.
    label_weight: weight of the cross-entropy.
    kd_weight: weight of knowledge distillation from the teacher's logits.
    temperature: temperature of knowledge distillation.

  Raises:
    ConfigError: if there is no such stage or no parameter after it, the student has no `resume`,
      kd_weight has no teacher, or both weights are 0.

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
  return offline(
    student,
    {} if teacher is None else {"teacher": teacher},
    [mean_soft_targets(kd_weight, {"teacher": 1.0}, temperature)] if kd_weight else [],
    label_weight=label_weight,
    from_stage=from_stage,
    image_shape=image_shape,
  )


def mean_soft_targets(
  weight: float, shares: Mapping[str, float], temperature: float
) -> Distillation:
  """Return one term of softened logits for all teachers: their losses weighted by the shares."""
  soft: Any = soft_targets(temperature=temperature)

  def loss(student: Any, teachers: Any, batch: Batch, context: Context) -> Terms:
    each = (share * soft(student, teachers[name], batch, context) for name, share in shares.items())
    return sum(each, start=Terms())

  return Distillation("kd", loss, weight, tuple(shares))
