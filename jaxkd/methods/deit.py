"""DeiT: a distillation token of the student learns from the teacher."""

from __future__ import annotations

from jaxkd.errors import ConfigError
from jaxkd.fields import choice, number
from jaxkd.losses import distillation_token
from jaxkd.methods.base import Method, Setup
from jaxkd.methods.distillation import Distillation, per_example

# Features of a student with two heads: the logits of the class token and of the other.
_LABELLED, _DISTILLED = "logits_cls", "logits_dist"


def _distillations(setup: Setup) -> list[Distillation]:
  own = setup.hyperparameters
  for stage in (_LABELLED, _DISTILLED):
    if stage not in setup.plain_output.features:
      raise ConfigError(
        f"method 'deit' needs a student with a distillation head, and this one has no {stage!r}: "
        "expected a model such as deit_mini_p2 or timm_deit_tiny_distilled_patch16_224"
      )
  loss = per_example(
    distillation_token,
    stage=_DISTILLED,
    kind=own.kind,
    temperature=own.temperature,
    form=own.form,
  )
  weight = setup.share * own.weight
  name = setup.named("deit")
  return [Distillation(name, loss, weight, setup.teacher_name, labelled=_LABELLED)]


METHOD = Method(
  "DeiT: distillation through a token (Touvron et al., 2021)",
  {
    "kind": choice("hard", ("hard", "soft")),
    # The paper's for "soft" is 3, with weight 0.1 and label_weight 0.9.
    "temperature": number(1.0, exclusive=True),
    # "code": "soft" is divided by the number of classes, too, as published.
    "form": choice("paper", ("paper", "code")),
    "weight": number(0.5),
  },
  _distillations,
  source="Touvron et al., Training data-efficient image transformers, ICML 2021",
  label_weight=0.5,
)
