"""ICKD: correlations between the channels of a map."""

from __future__ import annotations

from jaxkd.adapters import regressor_for
from jaxkd.fields import number
from jaxkd.losses import inter_channel_correlation
from jaxkd.methods._features import STAGES, feature_term
from jaxkd.methods._stages import adapter_at, chosen_pairs, stage_options
from jaxkd.methods.base import Method, Setup, Term
from jaxkd.methods.distillation import per_example


def _distillations(setup: Setup) -> list[Term]:
  pairs = chosen_pairs(setup, last=True)
  embeddings = {}
  for ours, theirs in pairs:
    student, teacher = setup.shapes((ours, theirs))
    # The student's size: the matrices do not depend on it.
    embeddings[ours] = regressor_for(
      student,
      (*student[:-1], teacher[-1]),
      stage=ours,
      use_bias=False,
      activation=False,
      **setup.options,
    )
  loss = per_example(inter_channel_correlation, **stage_options(setup, pairs))
  return [feature_term("ickd", setup, loss, pairs, **adapter_at("ickd", setup, embeddings))]


METHOD = Method(
  "inter-channel correlation (Liu et al., 2021)",
  {**STAGES, "weight": number(2.5)},
  _distillations,
  source="Liu et al., Exploring Inter-Channel Correlation for Diversity-preserved Knowledge "
  "Distillation, ICCV 2021",
  needs="maps",
  same_classes="",
  multi_label=True,
)
