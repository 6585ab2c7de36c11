"""AB: activation boundaries of hidden neurons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.fields import names, number, weights
from jaxkd.losses import activation_boundaries, boundary_disagreement
from jaxkd.losses._counting import counted_examples
from jaxkd.methods._features import feature_term
from jaxkd.methods._stages import AUTO, chosen_pairs, stage_options, widths_matched
from jaxkd.methods.base import Method, Setup, StagePair, Term, Warmup
from jaxkd.methods.distillation import Metric, per_example
from jaxkd.types import Batch, Context


def _distillations(setup: Setup) -> list[Term]:
  stages = _stages(setup)
  loss = per_example(
    activation_boundaries, **stage_options(setup, stages), margin=setup.hyperparameters.margin
  )
  adapter = widths_matched("ab", setup, stages, "preactivations", sizes=True)
  metrics = {"disagreement": _disagreement(stages)}
  term = feature_term("ab", setup, loss, stages, "preactivations", **adapter, metrics=metrics)
  return [Term(term.distillation, f"preactivations of {term.compares}")]


def _disagreement(stages: Sequence[StagePair]) -> Metric:
  """Return the metric: share of neurons active in exactly one network, averaged over stages."""

  def metric(
    student: Any, teacher: Any, batch: Batch, context: Context
  ) -> tuple[jax.Array, jax.Array]:
    where = batch.mask
    shares = [
      boundary_disagreement(
        student.preactivations[ours], teacher.preactivations[theirs], where=where
      )
      for ours, theirs in stages
    ]
    counted = jnp.float32(1)
    if where is not None:
      first = student.preactivations[stages[0][0]]
      counted = jnp.sum(
        jnp.asarray(counted_examples("disagreement", where, first)), dtype=jnp.float32
      )
    return counted * sum(shares, start=jnp.float32(0)), counted * len(shares)

  return metric


def _stages(setup: Setup) -> tuple[StagePair, ...]:
  return chosen_pairs(setup, where="preactivations", vectors=True)


METHOD = Method(
  "activation boundaries of hidden neurons (Heo et al., 2019)",
  {
    "stages": names((AUTO,)),
    "stage_weights": weights(),
    "margin": number(1.0, exclusive=True),
    "weight": number(1.0),
  },
  _distillations,
  source="Heo et al., Knowledge Transfer via Distillation of Activation Boundaries, AAAI 2019",
  # The second phase of the authors' code: soft targets at T = 3 alone.
  warmup=Warmup(
    default=True,
    epochs=30,
    label_weight=0.0,
    kd_weight=1.0,
    temperature=3.0,
    squared_temperature=False,
  ),
  deepest=lambda setup: setup.deepest(_stages(setup), "preactivations"),
  needs="preactivations",
  same_classes="",
  multi_label=True,
)
