"""Recipes of methods that match logits."""

from __future__ import annotations

import functools

from jaxkd import losses
from jaxkd.config import choice, number
from jaxkd.recipes.method import Method, Pair
from jaxkd.schemes import Distillation


def _kd(pair: Pair) -> list[Distillation]:
  own = pair.hyperparameters
  loss = functools.partial(losses.knowledge_distillation, temperature=own.temperature)
  if own.combine == "logits":
    # One target for all teachers, so one summand.
    return [Distillation("kd", loss, own.weight, pair.shares)] if pair.at == "teacher" else []
  return [Distillation(pair.named("kd"), loss, pair.share * own.weight, pair.at)]


METHODS = {
  "kd": Method(
    "knowledge distillation: softened logits (Hinton et al., 2015)",
    {
      "temperature": number(4.0, exclusive=True),
      # Of several teachers: the mean of the losses, or the loss of the mean of their logits.
      "combine": choice("losses", ("losses", "logits")),
      "weight": number(0.9),
    },
    _kd,
    label_weight=0.1,
  ),
}
