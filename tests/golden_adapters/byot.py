"""Golden cases of "Be Your Own Teacher"."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_cases import Arrays, Case


def byot(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  later = "self-distillation-final" in case.word("source")
  options: dict[str, Any] = {
    "temperature": case.number("T", 3.0),
    "squared_temperature": not later,
    "feature": "distance" if later else "masked_squares",
  }
  if "student" in arrays:
    return _one_term(case, arrays, options), {}
  soft_weight = case.number("loss_coefficient" if later else "alpha", 0.0)
  weights = {
    "soft_weight": soft_weight,
    "feature_weight": case.number("feature_loss_coefficient" if later else "beta", 0.0),
  }
  exits = _hinted_exits(arrays, deepest_first=later)
  terms = losses.be_your_own_teacher(exits, **weights, **options)
  label_terms = [losses.cross_entropy(output.logits, arrays["labels"]) for output in exits]
  if later:
    label_term = label_terms[-1] + (1.0 - soft_weight) * sum(label_terms[:-1])
  else:
    label_term = (1.0 - soft_weight) * sum(label_terms)
  alone = [_terms_alone(exits, i, options) for i in range(len(exits) - 1)]
  if later:
    # From the exit before the deepest, which has no feature term, to the shallowest.
    alone = alone[::-1]
  soft = jnp.stack([terms.logit for terms in alone])
  features = jnp.array([terms.feature for terms in (alone[1:] if later else alone)])
  aux = {
    "aux_ce": sum(label_terms),
    "aux_soft_terms" if later else "aux_kd_terms": soft,
    "aux_feature_terms": features,
  }
  return label_term + terms.total, aux


def _terms_alone(exits: list[Output], i: int, options: dict[str, Any]) -> Any:
  """The terms of exit `i` with the deepest, with weights 1."""
  compared = [0] if exits[i].features else []
  return losses.be_your_own_teacher(
    [exits[i], exits[-1]], soft_weight=1.0, feature_weight=1.0, feature_exits=compared, **options
  )


def _one_term(case: Case, arrays: Arrays, options: dict[str, Any]) -> jax.Array:
  """The soft term or the feature term of one exit."""
  both = arrays["student"], arrays["teacher"]
  if arrays["student"].ndim == 4 or "feature" in case.word("desc"):
    later = options["feature"] == "distance"
    return (losses.euclidean_distance if later else losses.masked_sum_of_squares)(*both)
  exits = [Output(logits=z) for z in both]
  return losses.be_your_own_teacher(exits, soft_weight=1.0, feature_weight=0.0, **options).total


def _hinted_exits(arrays: Arrays, *, deepest_first: bool) -> list[Output]:
  """Exits, shallowest first, with compared features projected to the deepest's shape."""
  count = sum(name.startswith("logits_") for name in arrays)
  exits = []
  for i in range(count):
    hints = {}
    if f"feature_{i}" in arrays:
      hints["hint"] = arrays[f"feature_{i}"]
    if f"adapt_{i}_kernel" in arrays:
      projected = hints["hint"] @ arrays[f"adapt_{i}_kernel"]
      hints["hint"] = projected + arrays[f"adapt_{i}_bias"][None]
    elif deepest_first and i > 0:
      # The case has its features, which are neither projected nor compared.
      hints = {}
    exits.append(Output(arrays[f"logits_{i}"], hints))
  return exits[::-1] if deepest_first else exits
