"""CC, correlation congruence: correlations between the examples of a batch."""

from __future__ import annotations

from typing import Any

from jaxkd.adapters import Embeddings
from jaxkd.fields import choice, flag, integer, names, number
from jaxkd.losses import correlation_congruence
from jaxkd.methods._features import STAGES, feature_term
from jaxkd.methods._stages import chosen_pairs, stage_options
from jaxkd.methods.base import Method, Setup, Term
from jaxkd.methods.distillation import whole_batch


def _distillations(setup: Setup) -> list[Term]:
  own = setup.hyperparameters
  pairs = chosen_pairs(setup, vectors=True)
  options: dict[str, Any] = {"form": "adjacent", "detached": False}
  adapter: dict[str, Any] = {}
  if own.form == "embedding":
    embed = Embeddings(pairs, own.width, dtype=setup.options.get("dtype"))
    adapter = {"adapter": embed}
  else:
    options = {name: own[name] for name in ("form", "gamma", "order", "normalize", "norm")}
  loss = whole_batch(correlation_congruence, **stage_options(setup, pairs), **options)
  return [feature_term("cc", setup, loss, pairs, **adapter)]


METHOD = Method(
  "correlation congruence (Peng et al., 2019)",
  {
    **STAGES,
    "stages": names(("pooled",)),
    # "embedding" is the authors' code, of embeddings that learn; its published weight is 0.02.
    "form": choice("gaussian", ("gaussian", "bilinear", "embedding")),
    "gamma": number(0.4, exclusive=True),
    "order": integer(2, minimum=1),
    "normalize": flag(True),
    "norm": choice("mse", ("mse", "frobenius")),
    "width": integer(128, minimum=1),
    "weight": number(100.0),
  },
  _distillations,
  source="Peng et al., Correlation Congruence for Knowledge Distillation, ICCV 2019",
  needs="features",
  same_classes="",
  multi_label=True,
)
