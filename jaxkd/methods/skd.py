"""SKD, structured distillation of dense outputs: every pixel, and pairs of regions."""

from __future__ import annotations

from jaxkd.fields import choice, flag, number
from jaxkd.losses import structured
from jaxkd.methods._features import STAGES, feature_term
from jaxkd.methods._stages import chosen_pairs, stage_options
from jaxkd.methods.base import Method, Setup, Term
from jaxkd.methods.distillation import per_example, whole_batch

_OPTIONS = ("pixel_weight", "pair_weight", "form", "scale", "pool", "norm_detached")


def _distillations(setup: Setup) -> list[Term]:
  own = setup.hyperparameters
  pairs = chosen_pairs(setup, last=True)
  options = {**stage_options(setup, pairs), **{name: own[name] for name in _OPTIONS}}
  if own.form == "code":
    loss = whole_batch(structured, reason="which is summed over the batch (form='code')", **options)
    return [feature_term("skd", setup, loss, pairs)]
  return [feature_term("skd", setup, per_example(structured, **options), pairs)]


METHOD = Method(
  "structured distillation: pixels and pairs of regions (Liu et al., 2020)",
  {
    **STAGES,
    "pixel_weight": number(10.0),
    "pair_weight": number(1.0),
    # "code": a cross-entropy that is summed over the batch, as published.
    "form": choice("paper", ("paper", "code")),
    # Size of a region, as a share of the teacher's map.
    "scale": number(0.5, exclusive=True, maximum=1.0),
    "pool": choice("max", ("max", "average")),
    # The published code's gradient, without that of the norms.
    "norm_detached": flag(False),
    "weight": number(1.0),
  },
  _distillations,
  source="Liu et al., Structured Knowledge Distillation for Dense Prediction, TPAMI 2020",
  needs="maps",
)
