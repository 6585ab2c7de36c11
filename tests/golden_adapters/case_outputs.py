"""What adapters share: outputs from a case's arrays, connectors with its weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.types import Output
from tests.golden_cases import Arrays, Case


def run_connector(case: Case, module: Any, params: Any, features: jax.Array) -> jax.Array:
  assert case.number("bn_eps", 1e-5) == 1e-5, "connectors normalise with eps 1e-5"
  statistics = {
    name: {"mean": jnp.zeros_like(bn["bias"]), "var": jnp.ones_like(bn["bias"])}
    for name, bn in params.items()
    if name.startswith("bn")
  }
  out, _ = module.apply(
    {"params": params, "batch_stats": statistics}, features, train=True, mutable=["batch_stats"]
  )
  return out


def stages_of(who: str, arrays: Arrays) -> Output:
  """All stages of `student`, or of `student_0`, `student_1`, ... in their order."""
  if who in arrays:
    return Output(features={"0": arrays[who]})
  found = sorted(int(name.rsplit("_", 1)[1]) for name in arrays if name.startswith(f"{who}_"))
  return Output(features={str(i): arrays[f"{who}_{i}"] for i in found})


def several_logits(who: str, arrays: Arrays) -> list[Output]:
  """Outputs with the logits `who_0`, `who_1`, ..., in their order."""
  count = sum(name.startswith(f"{who}_") for name in arrays)
  return [Output(logits=arrays[f"{who}_{i}"]) for i in range(count)]
