"""CRD: contrast between each network's embedding and a memory of the other's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxkd.adapters import ContrastMemory, ExampleTable
from jaxkd.fields import integer, number, text
from jaxkd.losses import contrastive_representation
from jaxkd.methods._features import feature_term
from jaxkd.methods._stages import AUTO, last_pair, stage_pairs
from jaxkd.methods.base import Method, Setup, StagePair, Term
from jaxkd.methods.distillation import WholeBatch
from jaxkd.types import Batch, Context, Output, Terms


def _distillations(setup: Setup) -> list[Term]:
  hyperparameters = setup.hyperparameters
  pair = _pair(setup)
  table = ExampleTable(setup.examples.indices, setup.examples.labels)
  temperature = hyperparameters.temperature
  memory = ContrastMemory(
    table,
    hyperparameters.width,
    hyperparameters.negatives,
    temperature,
    hyperparameters.momentum,
    pair,
    dtype=setup.options["dtype"],
  )

  def contrast(anchor: Output, other: Output, batch: Batch, context: Context) -> Terms:
    return contrastive_representation(
      anchor,
      other,
      examples=table.size,
      temperature=temperature,
      log_normalizer=anchor.features["log_normalizer"],
      axis_name=context.axis_name,
      where=batch.mask,
    )

  def loss(student: Any, teacher: Any, batch: Batch, context: Context) -> Mapping[str, Terms]:
    return {
      "student": contrast(student, teacher, batch, context),
      "teacher": contrast(teacher, student, batch, context),
    }

  whole = WholeBatch(loss, "which keeps a memory of every example")
  return [feature_term("crd", setup, whole, [pair], adapter=memory)]


def _pair(setup: Setup) -> StagePair:
  [named] = stage_pairs((setup.hyperparameters.stage,))
  if AUTO in named:
    return last_pair(setup, vectors=True)
  setup.shapes(named)
  return named


METHOD = Method(
  "contrastive representation distillation, with a memory of all examples (Tian et al., 2020)",
  {
    "stage": text("pooled"),
    "width": integer(128, minimum=1),
    # At most as many as every example has of other classes.
    "negatives": integer(16384, minimum=1),
    "temperature": number(0.07, exclusive=True),
    "momentum": number(0.5, maximum=1.0),
    "weight": number(0.8),
  },
  _distillations,
  source="Tian et al., Contrastive Representation Distillation, ICLR 2020",
  needs="features",
  same_classes="",
  multi_label=True,
)
