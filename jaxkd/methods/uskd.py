"""USKD, universal self-knowledge distillation: soft labels of the network's own output."""

from __future__ import annotations

from typing import Any

from jaxkd.adapters import WeakHead
from jaxkd.fields import choice, number, text
from jaxkd.losses import unified_self_distillation
from jaxkd.methods._labels import refuse_multi_hot
from jaxkd.methods._stages import AUTO
from jaxkd.methods.base import (
  DISTILLED,
  Method,
  PhaseSpec,
  Setup,
  check_something_learns,
  feature_shape,
)
from jaxkd.methods.distillation import Distillation, WholeBatch
from jaxkd.methods.offline import offline
from jaxkd.types import Batch, Context, Terms


def own_soft_labels(**options: Any) -> WholeBatch:
  """Return `losses.unified_self_distillation` as a loss of a `Distillation` without teachers.

  Args:
    **options: passed to it.
  """

  def loss(student: Any, weak: Any, batch: Batch, context: Context) -> dict[str, Terms]:
    refuse_multi_hot("soft labels of its own", batch)
    return unified_self_distillation(
      student,
      weak,
      batch.labels,
      batch.weights,
      axis_name=context.axis_name,
      where=batch.mask,
      **options,
    )

  return WholeBatch(loss, "whose factor is relative to the mean of a batch")


def _phases(setup: Setup) -> list[PhaseSpec]:
  check_something_learns(setup)
  hyperparameters = setup.hyperparameters
  loss = own_soft_labels(
    target_weight=hyperparameters.target_weight,
    others_weight=hyperparameters.others_weight,
    weak_weight=hyperparameters.weak_weight,
    ranked_by=hyperparameters.ranked_by,
  )
  stage = hyperparameters.stage
  if stage == AUTO:
    stages = [name for name, shape in setup.student_shapes().items() if name != "pooled"]
    stage = stages[-2:][0] if stages else "pooled"
  feature_shape(setup.plain_output, stage, "student")
  logits = setup.plain_output.logits
  assert logits is not None
  head = WeakHead(logits.shape[-1], stage, dtype=setup.options.get("dtype"))
  term = Distillation("uskd", loss, hyperparameters.weight, (), adapter=head)
  scheme = offline(setup.student, {}, [term], label_weight=hyperparameters.label_weight)
  notes = (f"uskd ranks classes with a linear layer on {stage}",)
  return [PhaseSpec(DISTILLED, scheme, learning_rate=hyperparameters.learning_rate, notes=notes)]


METHOD = Method(
  "USKD: soft labels of the network's own output (Yang et al., 2023)",
  {
    # Features of the linear layer by which classes are ranked; "auto" is the stage before the last.
    "stage": text(AUTO),
    # alpha, beta and mu: 0.1 on CIFAR-100; 1, 0.1 and 0.005 on ImageNet.
    "target_weight": number(0.1),
    "others_weight": number(0.1),
    "weak_weight": number(0.1),
    # The published code ranks by logarithms of the student's probabilities.
    "ranked_by": choice("probabilities", ("probabilities", "log_probabilities")),
    "weight": number(1.0),
    "label_weight": number(1.0),
  },
  phases=_phases,
  source="Yang et al., From Knowledge Distillation to Self-Knowledge Distillation, ICCV 2023",
  without_teacher=True,
  needs="features",
)
