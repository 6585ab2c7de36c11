"""OFA, one-for-all distillation: a head on every stage of the student, compared by its logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxkd.adapters import ExitsAtStages
from jaxkd.errors import ConfigError, unknown_name
from jaxkd.fields import flag, names, number, weights
from jaxkd.losses import one_for_all
from jaxkd.methods._labels import refuse_multi_hot
from jaxkd.methods._stages import AUTO, inner_stages
from jaxkd.methods.base import Method, Setup, Term, sizes
from jaxkd.methods.distillation import Distillation, Loss
from jaxkd.models.compose.stage_head import StageHead
from jaxkd.types import Batch, Context, Terms


def enhanced(*, stage_weight: float = 1.0, logit_weight: float = 1.0, **options: Any) -> Loss:
  """Return the loss `jaxkd.losses.one_for_all` of a student's exits, with the batch's labels.

  Args:
    stage_weight: weight of the heads' part, "stages".
    logit_weight: weight of the student's own logits, "logits"; a part of weight 0 is left out.
    **options: exponent, stage_exponents, temperature, standardize.
  """
  by_part = {"stages": stage_weight, "logits": logit_weight}

  def loss(exits: Any, teacher: Any, batch: Batch, context: Context) -> Mapping[str, Terms]:
    refuse_multi_hot("one-for-all distillation", batch)
    parts = one_for_all(exits, teacher, batch.labels, batch.weights, where=batch.mask, **options)
    return {part: weight * parts[part] for part, weight in by_part.items() if weight}

  return loss


def _distillations(setup: Setup) -> list[Term]:
  hyperparameters = setup.hyperparameters
  if not hyperparameters.stage_weight and not hyperparameters.logit_weight:
    raise ConfigError(
      "method.stage_weight=0.0 and method.logit_weight=0.0: expected one of them > 0"
    )
  heads = _heads(setup)
  exponents = tuple(hyperparameters.stage_exponents)
  if exponents and len(exponents) != len(heads):
    raise ConfigError(
      f"method.stage_exponents={exponents}: expected {len(heads)}, one for each of the stages "
      f"{', '.join(heads)}"
    )
  loss = enhanced(
    exponent=hyperparameters.exponent,
    stage_exponents=exponents or None,
    temperature=hyperparameters.temperature,
    standardize=hyperparameters.standardize,
    stage_weight=hyperparameters.stage_weight,
    logit_weight=hyperparameters.logit_weight,
  )
  shapes = setup.student_shapes()
  found = Distillation(
    setup.named("ofa"),
    loss,
    setup.share * hyperparameters.weight,
    setup.teacher_name,
    adapter=ExitsAtStages(heads),
  )
  shown = ", ".join(f"{stage} {sizes(shapes[stage])}" for stage in heads)
  return [Term(found, f"heads on {shown} with logits of the {setup.teacher_name}")]


def _heads(setup: Setup) -> dict[str, StageHead]:
  """Return the head of every chosen stage, shallow to deep."""
  shapes, logits = setup.student_shapes(), setup.plain_output.logits
  if not shapes:
    raise ConfigError(
      "method 'ofa' has heads on the student's stages, and the student gives logits alone: "
      "student.tap names stages"
    )
  if logits is None or logits.ndim != 2:
    shape = "none" if logits is None else logits.shape
    raise ConfigError(f"method 'ofa' has heads of logits (B, C), and the student's are {shape}")
  inner = inner_stages(shapes)
  chosen: list[str] = []
  for stage in setup.hyperparameters.stages:
    if stage != AUTO and stage not in shapes:
      raise unknown_name("stage of the student", stage, shapes)
    chosen += inner if stage == AUTO else [stage]
  order = list(shapes)
  theirs = [shape[-1] for shape in setup.all_shapes()[1].values()]
  width: int = max(shapes[order[-1]][-1], *theirs[-1:])
  return {
    stage: StageHead(
      logits.shape[-1],
      width,
      halvings=sum(order.index(later) > order.index(stage) for later in inner),
      **setup.options,
    )
    for stage in sorted(set(chosen), key=order.index)
  }


METHOD = Method(
  "one-for-all distillation: heads on every stage, an enhanced target (Hao et al., 2023)",
  {
    # "auto" is every stage between the stem and the pooled features.
    "stages": names((AUTO,)),
    # Power of the teacher's distribution at the label; () of the stages takes `exponent`.
    "exponent": number(1.0, exclusive=True),
    "stage_exponents": weights(),
    "temperature": number(1.0, exclusive=True),
    # Logits of mean 0 and standard deviation 1 over the classes, on both sides.
    "standardize": flag(False),
    # Weights of the heads and of the student's own logits.
    "stage_weight": number(1.0),
    "logit_weight": number(1.0),
    "weight": number(1.0),
  },
  _distillations,
  source="Hao et al., One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge "
  "Distillation, NeurIPS 2023",
)
