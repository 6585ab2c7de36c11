"""FitNets: one hint through a regressor."""

from __future__ import annotations

from jaxkd.adapters import regressor_for
from jaxkd.fields import number, text
from jaxkd.losses import fitnets
from jaxkd.methods._features import feature_term
from jaxkd.methods._stages import ACTIVATION, AUTO, adapter_at, ends_in_relu, hint_pair
from jaxkd.methods.base import Method, Setup, Term, Warmup
from jaxkd.methods.distillation import per_example


def _distillations(setup: Setup) -> list[Term]:
  stage = hint_pair(setup)
  student, teacher = setup.shapes(stage)
  regressor = regressor_for(
    student, teacher, stage=stage[0], activation=ends_in_relu(setup, stage[1]), **setup.options
  )
  loss = per_example(fitnets, stages=(stage,))
  adapter = adapter_at("fitnets", setup, {stage[0]: regressor})
  return [feature_term("fitnets", setup, loss, [stage], **adapter)]


METHOD = Method(
  "FitNets: one hint through a regressor (Romero et al., 2015)",
  {"stage": text(AUTO), "activation": ACTIVATION, "weight": number(100.0)},
  _distillations,
  source="Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015",
  # The paper's second phase: soft targets at T = 3, with a weight that falls from 4 to 1.
  warmup=Warmup(
    default=False,
    epochs=30,
    label_weight=1.0,
    kd_weight=1.0,
    temperature=3.0,
    squared_temperature=False,
    kd_start=4.0,
  ),
  deepest=lambda setup: setup.deepest([hint_pair(setup)]),
  needs="features",
  same_classes="",
  multi_label=True,
)
