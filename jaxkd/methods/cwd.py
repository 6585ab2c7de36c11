"""CWD, channel-wise distillation: where in the image each channel is active."""

from __future__ import annotations

from flax import linen as nn

from jaxkd.adapters import regressor_for
from jaxkd.errors import ConfigError
from jaxkd.fields import choice, number
from jaxkd.losses import channel_wise
from jaxkd.methods._dense import compared_logits, dense_pairs
from jaxkd.methods._features import STAGES, feature_term
from jaxkd.methods._stages import adapter_at, stage_options
from jaxkd.methods.base import Method, Setup, Term
from jaxkd.methods.distillation import Distillation, per_example


def _distillations(setup: Setup) -> list[Term]:
  own = setup.hyperparameters
  if own.divergence == "mse" and own.temperature != 1:
    raise ConfigError(
      f"method.temperature={own.temperature}: expected 1 with divergence='mse', which has none"
    )
  options = {name: own[name] for name in ("norm", "divergence", "temperature")}
  pairs = dense_pairs(setup)
  if pairs is None:
    if own.stage_weights:
      raise ConfigError(f"method.stage_weights={own.stage_weights}: expected (), logits have none")
    loss = per_example(channel_wise, **options)
    weight = setup.share * own.weight
    term = Distillation(setup.named("cwd"), loss, weight, setup.teacher_name)
    return [Term(term, compared_logits(setup))]
  modules: dict[str, nn.Module] = {}
  for ours, theirs in pairs:
    student, teacher = setup.shapes((ours, theirs))
    if student[-1] != teacher[-1]:
      target = (*student[:-1], teacher[-1])
      modules[ours] = regressor_for(
        student, target, stage=ours, batch_norm=False, activation=False, **setup.options
      )
  loss = per_example(channel_wise, **stage_options(setup, pairs), **options)
  return [feature_term("cwd", setup, loss, pairs, **adapter_at("cwd", setup, modules))]


METHOD = Method(
  "channel-wise distillation of dense outputs (Shu et al., 2021)",
  {
    # "auto" and "logits" are the logits of every pixel; features pass a 1x1 convolution first if
    # their channels differ.
    **STAGES,
    "norm": choice("channel", ("channel", "spatial", "channel_mean", "none")),
    "divergence": choice("kl", ("kl", "mse")),
    "temperature": number(4.0, exclusive=True),
    "weight": number(3.0),
  },
  _distillations,
  source="Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021",
  needs="dense",
  same_classes="",
  multi_label=True,
)
