"""KD-SVD: relations between the singular vectors of adjacent stages."""

from __future__ import annotations

from jaxkd.errors import ConfigError
from jaxkd.fields import choice, integer, number
from jaxkd.losses import singular_value_distillation
from jaxkd.methods._features import STAGES, feature_term
from jaxkd.methods._stages import chosen_pairs, stage_options, widths_matched
from jaxkd.methods.base import Method, Setup, Term
from jaxkd.methods.distillation import per_example


def _distillations(setup: Setup) -> list[Term]:
  own, pairs = setup.hyperparameters, chosen_pairs(setup)
  if len(pairs) < 2:
    raise ConfigError(
      f"method 'kdsvd' compares adjacent stages: expected two or more, got {pairs[0][0]!r} alone"
    )
  adapter = {}
  if own.layout == "channels":
    adapter = widths_matched("kdsvd", setup, pairs)
  options = stage_options(setup, pairs, flows=True)
  loss = per_example(singular_value_distillation, **options, count=own.count, layout=own.layout)
  return [feature_term("kdsvd", setup, loss, pairs, **adapter)]


METHOD = Method(
  "relations of singular vectors (Lee et al., 2018)",
  {
    **STAGES,
    "count": integer(1, minimum=1),
    "layout": choice("channels", ("channels", "columns")),
    "weight": number(1.0),
  },
  _distillations,
  source="Lee et al., Self-supervised Knowledge Distillation Using Singular Value Decomposition, "
  "ECCV 2018",
  needs="maps",
  same_classes="",
  multi_label=True,
)
