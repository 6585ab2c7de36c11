"""VID, variational information distillation: a Gaussian of the teacher's features."""

from __future__ import annotations

from jaxkd.adapters import VariationalRegressors, variational_regressor_for
from jaxkd.errors import ConfigError
from jaxkd.fields import number
from jaxkd.losses import variational_information
from jaxkd.methods._features import STAGES, feature_term
from jaxkd.methods._stages import chosen_pairs, stage_options
from jaxkd.methods.base import Method, Setup, Term
from jaxkd.methods.distillation import per_example


def _distillations(setup: Setup) -> list[Term]:
  own = setup.hyperparameters
  if own.eps >= own.initial_variance:
    raise ConfigError(
      f"method.eps={own.eps:g}: expected less than method.initial_variance={own.initial_variance:g}"
    )
  pairs = chosen_pairs(setup, vectors=True)
  options = {
    "eps": own.eps,
    "initial_variance": own.initial_variance,
    "dtype": setup.options.get("dtype"),
  }
  modules = {
    pair[0]: variational_regressor_for(*setup.shapes(pair), stage=pair[0], **options)
    for pair in pairs
  }
  loss = per_example(variational_information, **stage_options(setup, pairs))
  return [feature_term("vid", setup, loss, pairs, adapter=VariationalRegressors(modules))]


METHOD = Method(
  "variational information distillation (Ahn et al., 2019)",
  {
    **STAGES,
    "eps": number(1e-5, exclusive=True),
    "initial_variance": number(5.0, exclusive=True),
    "weight": number(1.0),
  },
  _distillations,
  source="Ahn et al., Variational Information Distillation for Knowledge Transfer, CVPR 2019",
  needs="features",
  same_classes="",
  multi_label=True,
)
