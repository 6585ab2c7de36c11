"""NST, neuron selectivity transfer: kernels of channels' spatial activations."""

from __future__ import annotations

from jaxkd.fields import choice, integer, number
from jaxkd.losses import neuron_selectivity_transfer
from jaxkd.methods._features import STAGES, feature_term
from jaxkd.methods._stages import chosen_pairs, stage_options
from jaxkd.methods.base import Method, Setup, Term
from jaxkd.methods.distillation import per_example


def _distillations(setup: Setup) -> list[Term]:
  hyperparameters = setup.hyperparameters
  stages = chosen_pairs(setup, where=hyperparameters.where)
  loss = per_example(
    neuron_selectivity_transfer,
    **stage_options(setup, stages),
    kernel=hyperparameters.kernel,
    degree=hyperparameters.degree,
    offset=hyperparameters.offset,
    arrays=hyperparameters.where,
  )
  return [feature_term("nst", setup, loss, stages, hyperparameters.where)]


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
  multi_label=True,
)
