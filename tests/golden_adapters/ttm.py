"""Golden cases of transformed teacher matching."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.losses._numerics import log_probabilities
from jaxkd.losses.ttm import power_sum
from jaxkd.types import Output
from tests.golden_cases import Arrays, Case


def ttm(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  s, t = arrays["student"], arrays["teacher"]
  exponent = case.number("l", 1.0)

  def term(s: jax.Array, t: jax.Array, weighted: bool) -> jax.Array:
    options = {"exponent": exponent, "weighted": weighted}
    return losses.transformed_teacher_matching(Output(logits=s), Output(logits=t), **options).total

  value = term(s, t, bool(case.number("weighted", 0)))
  total = case.number("weight", 1.0) * value
  if case.number("ce_weight", 0.0):
    total = total + case.number("ce_weight", 0.0) * losses.cross_entropy(s, arrays["labels"])
  aux = {
    "aux_term": value,
    "aux_norm": power_sum(t, log_probabilities(t, 1.0 / exponent), exponent),
    "aux_kl_per_sample": jnp.stack(
      [term(s[i : i + 1], t[i : i + 1], False) for i in range(len(s))]
    ),
  }
  return total, aux
