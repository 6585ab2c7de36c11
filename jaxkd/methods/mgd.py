"""MGD, masked generative distillation: teacher features generated from masked student features."""

from __future__ import annotations

from flax import linen as nn

from jaxkd.adapters import MaskedGenerator
from jaxkd.errors import ConfigError
from jaxkd.fields import choice, number
from jaxkd.losses import masked_generative
from jaxkd.methods._features import STAGES, feature_term
from jaxkd.methods._stages import adapter_at, chosen_pairs, stage_options
from jaxkd.methods.base import Method, Setup, Term
from jaxkd.methods.distillation import per_example


def _distillations(setup: Setup) -> list[Term]:
  own = setup.hyperparameters
  pairs = chosen_pairs(setup, last=True)
  modules: dict[str, nn.Module] = {}
  for ours, theirs in pairs:
    student, teacher = setup.shapes((ours, theirs))
    if not len(student) == len(teacher) == 4:
      raise ConfigError(
        f"method.stages: {ours!r} {student[1:]} and {theirs!r} {teacher[1:]}: expected maps "
        "(H, W, C) of both networks"
      )
    modules[ours] = MaskedGenerator(
      size=(teacher[1], teacher[2]),
      channels=teacher[-1],
      align=student[-1] != teacher[-1],
      mask=own.mask,
      masked=own.masked,
      **setup.options,
    )
  loss = per_example(masked_generative, **stage_options(setup, pairs))
  return [feature_term("mgd", setup, loss, pairs, **adapter_at("mgd", setup, modules))]


METHOD = Method(
  "masked generative distillation (Yang et al., 2022)",
  {
    **STAGES,
    # What is masked, and its share: 0.15 of the channels for classification; 0.65 of the positions
    # for detection and 0.75 for segmentation, with weight 2e-5.
    "mask": choice("channel", ("channel", "spatial")),
    "masked": number(0.15, maximum=1.0),
    "weight": number(7e-5),
  },
  _distillations,
  source="Yang et al., Masked Generative Distillation, ECCV 2022",
  needs="maps",
  same_classes="",
  multi_label=True,
)
