"""MLKD: logits of instances, classes and batches, at several temperatures and of two views."""

from __future__ import annotations

import functools
from typing import Any

from jaxkd.errors import ConfigError
from jaxkd.fields import choice, flag, number, weights
from jaxkd.losses import cross_entropy, multi_level
from jaxkd.methods._labels import refuse_multi_hot
from jaxkd.methods.base import Method, Setup
from jaxkd.methods.distillation import Distillation, PerLabel, WholeBatch, label_weights
from jaxkd.types import Batch, Context, Terms

# The strongly augmented view of the inputs, in `Batch.views`.
STRONG = "strong"


def _levels(**options: Any) -> WholeBatch:
  """Return `losses.multi_level` of the inputs and the strong view, as a loss."""
  kernel: Any = functools.partial(multi_level, **options)

  def loss(student: Any, teacher: Any, batch: Batch, context: Context) -> Any:
    refuse_multi_hot("multi-level distillation", batch)
    strong = {"strong_student": student[STRONG], "strong_teacher": teacher[STRONG]}
    given = {"axis_name": context.axis_name, "where": batch.mask, **strong}
    return kernel(student[""], teacher[""], **given)

  return WholeBatch(loss)


def _strong_labels(student: Any, teacher: Any, batch: Batch, context: Context) -> Terms:
  """Return the cross-entropy of the strong view with the labels."""
  refuse_multi_hot("multi-level distillation", batch)
  axis_name, known = label_weights(batch, context)
  value = cross_entropy(
    student[STRONG].logits,
    batch.labels,
    known,
    label_smoothing=context.label_smoothing,
    axis_name=axis_name,
    where=batch.mask,
  )
  return Terms(logit=value)


def _distillations(setup: Setup) -> list[Distillation]:
  hyperparameters = setup.hyperparameters
  logits = setup.plain_output.logits
  if logits is not None and logits.ndim != 2:
    raise ConfigError(f"method 'mlkd' compares logits (B, C), and the student's are {logits.shape}")
  if not len(hyperparameters.temperatures):
    raise ConfigError("method.temperatures=(): expected at least one number")
  loss = _levels(
    temperatures=tuple(hyperparameters.temperatures),
    strong_temperatures=tuple(hyperparameters.strong_temperatures) or None,
    repeated_temperatures=tuple(hyperparameters.repeated_temperatures),
    selection=hyperparameters.selection,
    percentile=hyperparameters.percentile,
    standardize=hyperparameters.standardize,
  )
  weight = setup.share * hyperparameters.weight
  found = [Distillation(setup.named("mlkd"), loss, weight, setup.teacher_name, views=(STRONG,))]
  if setup.is_first and hyperparameters.strong_label_weight:
    found.append(
      Distillation(
        "labels_strong",
        PerLabel(_strong_labels),
        hyperparameters.strong_label_weight,
        setup.teacher_name,
        views=(STRONG,),
      )
    )
  return found


METHOD = Method(
  "multi-level logit distillation: instances, classes and batches (Jin et al., 2023)",
  {
    "temperatures": weights((4.0, 3.0, 5.0, 2.0, 6.0)),
    # Of the strong view, () takes `temperatures`; and those at which the weak view counts again.
    "strong_temperatures": weights(),
    "repeated_temperatures": weights(),
    # "share" is the published code's: terms times the share of the less confident.
    "selection": choice("none", ("none", "share")),
    "percentile": number(50.0, maximum=100.0),
    # Logits of mean 0 and standard deviation 1 over the classes, in the part of the instances.
    "standardize": flag(False),
    # Weight of the cross-entropy of the strong view; `label_weight` is that of the inputs.
    "strong_label_weight": number(0.1),
    "weight": number(0.9),
  },
  _distillations,
  source="Jin et al., Multi-Level Logit Distillation, CVPR 2023",
  label_weight=0.1,
  needs_network=True,
)
