"""KD, knowledge distillation: softened logits."""

from __future__ import annotations

from typing import Any

from jaxkd.errors import ConfigError
from jaxkd.fields import Field, choice, integer, number
from jaxkd.losses._divergences import DIVERGENCES, check_divergence
from jaxkd.losses.divergences import MISSING
from jaxkd.methods._soft_targets import STANDARDIZE, soft_targets
from jaxkd.methods.base import Method, Setup
from jaxkd.methods.distillation import Distillation

_AUTO = "auto"
_share = number(0.5, maximum=1.0)


def _distillations(setup: Setup) -> list[Distillation]:
  hyperparameters = setup.hyperparameters
  loss = soft_targets(
    temperature=hyperparameters.temperature,
    standardize=hyperparameters.standardize,
    **_divergence(hyperparameters),
  )
  if hyperparameters.combine == "losses":
    weight = setup.share * hyperparameters.weight
    return [Distillation(setup.named("kd"), loss, weight, setup.teacher_name)]
  # One target for all teachers: one term.
  return [Distillation("kd", loss, hyperparameters.weight, setup.shares)] if setup.is_first else []


def _divergence(hyperparameters: Any) -> dict[str, Any]:
  """Return the options of the divergence that are not those of plain soft targets."""
  found: dict[str, Any] = {}
  beta = None if hyperparameters.beta == _AUTO else hyperparameters.beta
  check_divergence(hyperparameters.divergence, beta)
  if hyperparameters.divergence != "forward":
    found |= {"divergence": hyperparameters.divergence, "beta": beta}
  if hyperparameters.top_k:
    found |= {"top_k": hyperparameters.top_k, "missing": hyperparameters.missing}
  elif hyperparameters.missing != "bucket":
    raise ConfigError(
      f"method.missing={hyperparameters.missing!r}: expected 'bucket' with top_k=0, which compares "
      "all classes"
    )
  return found


METHOD = Method(
  "knowledge distillation: softened logits (Hinton et al., 2015)",
  {
    "temperature": number(4.0, exclusive=True),
    # For several teachers: the mean of the losses, or the loss of their mean logits.
    "combine": choice("losses", ("losses", "logits")),
    **STANDARDIZE,
    "divergence": choice("forward", DIVERGENCES),
    # Its share, where it has one: "auto" is 0.5, and 0.1 for the skewed ones.
    "beta": Field(
      _AUTO, lambda v: v == _AUTO or _share.accepts(v), f'"{_AUTO}", or {_share.meaning}', True
    ),
    # K > 0 compares the teacher's K largest classes alone, as of stored ones (`teacher.logits`),
    # and the others as one class ("bucket"), not at all, or as impossible for the teacher.
    "top_k": integer(0),
    "missing": choice("bucket", MISSING),
    "weight": number(0.9),
  },
  _distillations,
  source="Hinton et al., Distilling the Knowledge in a Neural Network, 2015",
  label_weight=0.1,
  multi_label=True,
)
