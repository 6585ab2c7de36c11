"""Neuron selectivity transfer."""

from __future__ import annotations

from jaxkd.fields import choice, integer, number
from jaxkd.losses import neuron_selectivity_transfer
from jaxkd.methods._features import STAGES, feature_term
from jaxkd.methods._stages import chosen_pairs, stage_options
from jaxkd.methods.base import Method, Setup, Term
from jaxkd.methods.distillation import per_example


def _distillations(setup: Setup) -> list[Term]:
  own = setup.hyperparameters
  stages = chosen_pairs(setup, where=own.where)
  loss = per_example(
    neuron_selectivity_transfer,
    **stage_options(setup, stages),
    kernel=own.kernel,
    degree=own.degree,
    offset=own.offset,
    arrays=own.where,
  )
  return [feature_term("nst", setup, loss, stages, own.where)]


METHOD = Method(
  "neuron selectivity transfer (Huang and Wang, 2017)",
  {
    **STAGES,
    "kernel": choice("polynomial", ("polynomial", "gaussian", "linear")),
    "degree": integer(2, minimum=1),
    "offset": number(0.0),
    "where": choice("features", ("features", "preactivations")),
    "weight": number(50.0),
  },
  _distillations,
  source="Huang and Wang, Like What You Like, 2017",
  needs="maps",
  same_classes="",
)
