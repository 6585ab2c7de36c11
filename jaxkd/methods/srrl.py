"""SRRL, softmax regression: the frozen classifier of the teacher on the student's features."""

from __future__ import annotations

import dataclasses

from jaxkd.adapters import regressor_for
from jaxkd.fields import number, text
from jaxkd.losses import softmax_regression
from jaxkd.methods._features import feature_term
from jaxkd.methods._stages import ACTIVATION, AUTO, adapter_at, ends_in_relu, last_pair
from jaxkd.methods.base import Method, Setup, Term
from jaxkd.types import Batch, Context, Output, Terms


def _distillations(setup: Setup) -> list[Term]:
  ours, theirs = stage = last_pair(setup, vectors=True)
  student, teacher = setup.shapes(stage)
  projection = regressor_for(
    student,
    (*student[:-1], teacher[-1]),
    stage=ours,
    use_bias=False,
    activation=ends_in_relu(setup, theirs),
    **setup.options,
  )
  classifier, logit_weight = setup.teacher_name, setup.hyperparameters.logit_weight

  def loss(student: Output, teacher: Output, batch: Batch, context: Context) -> Terms:
    logits = context.classifiers[classifier](student.features[ours], theirs)
    projected = dataclasses.replace(student, logits=logits)
    return softmax_regression(
      projected, teacher, stages=(stage,), logit_weight=logit_weight, where=batch.mask
    )

  adapter = adapter_at("srrl", setup, {ours: projection})
  return [feature_term("srrl", setup, loss, [stage], **adapter)]


METHOD = Method(
  "softmax regression by the teacher's classifier (Yang et al., 2021)",
  {
    # "pooled" is the form of SimKD's repository, which projects the pooled vector.
    "stage": text(AUTO),
    "activation": ACTIVATION,
    "logit_weight": number(1.0),
    "weight": number(1.0),
  },
  _distillations,
  source="Yang et al., Knowledge Distillation via Softmax Regression Representation Learning, "
  "ICLR 2021",
  needs="features",
  same_classes="",
  multi_label=True,
)
