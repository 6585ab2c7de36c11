"""VkD: features through an orthogonal projection against normalised features of the teacher."""

from __future__ import annotations

from flax import linen as nn

from jaxkd.adapters import OrthogonalProjector
from jaxkd.errors import ConfigError
from jaxkd.fields import choice, number
from jaxkd.losses import orthogonal_projection
from jaxkd.methods._features import STAGES, feature_term
from jaxkd.methods._stages import adapter_at, chosen_pairs, stage_options
from jaxkd.methods.base import Method, Setup, Term
from jaxkd.methods.distillation import per_example, whole_batch


def _distillations(setup: Setup) -> list[Term]:
  own = setup.hyperparameters
  pairs = chosen_pairs(setup, vectors=True, last=True)
  both = own.standardize == "both"
  modules: dict[str, nn.Module] = {}
  for ours, theirs in pairs:
    student, teacher = setup.shapes((ours, theirs))
    if both and student[1:-1] != teacher[1:-1]:
      raise ConfigError(
        f"method.standardize='both' compares every position, and {ours!r} {student[1:]} of the "
        f"student and {theirs!r} {teacher[1:]} of the {setup.teacher_name} have different ones"
      )
    prefix = 0 if both else getattr(setup.student, "prefix", 0)
    modules[ours] = OrthogonalProjector(
      teacher[-1], prefix=prefix, positions=both, affine=both, **setup.options
    )
  options = {**stage_options(setup, pairs), "standardize": own.standardize}
  bind = whole_batch if both else per_example
  loss = bind(orthogonal_projection, **options)
  return [feature_term("vkd", setup, loss, pairs, **adapter_at("vkd", setup, modules))]


METHOD = Method(
  "VkD: orthogonal projections (Miles et al., 2024)",
  {
    **STAGES,
    # "both" is the form for detectors, with weight 4.
    "standardize": choice("teacher", ("teacher", "both")),
    "weight": number(1.0),
  },
  _distillations,
  source="Miles et al., VkD: Improving Knowledge Distillation using Orthogonal Projections, 2024",
  needs="features",
  same_classes="",
  multi_label=True,
)
