"""FSP, flow of solution procedure: Gram matrices of adjacent stages."""

from __future__ import annotations

from jaxkd.fields import choice, names, number
from jaxkd.losses import flow_of_solution
from jaxkd.methods._features import STAGES, feature_term
from jaxkd.methods._stages import AUTO, chosen_pairs, stage_options, widths_matched
from jaxkd.methods.base import Method, Setup, Term, Warmup
from jaxkd.methods.distillation import per_example


def _distillations(setup: Setup) -> list[Term]:
  hyperparameters, stages = setup.hyperparameters, chosen_pairs(setup)
  options = stage_options(setup, stages, flows=True)
  loss = per_example(
    flow_of_solution, **options, pool=hyperparameters.pool, norm=hyperparameters.norm
  )
  return [feature_term("fsp", setup, loss, stages, **widths_matched("fsp", setup, stages))]


METHOD = Method(
  "flow of solution procedure (Yim et al., 2017)",
  {
    **STAGES,
    "stages": names(("stem", AUTO)),
    "pool": choice("average", ("average", "max")),
    "norm": choice("mse", ("mse", "columns")),
    "weight": number(50.0),
  },
  _distillations,
  source="Yim et al., A Gift from Knowledge Distillation, CVPR 2017",
  # RepDistiller's second phase: labels alone.
  warmup=Warmup(default=True, epochs=30, label_weight=1.0, kd_weight=0.0),
  deepest=lambda setup: setup.deepest(chosen_pairs(setup)),
  needs="maps",
  same_classes="",
  multi_label=True,
)
