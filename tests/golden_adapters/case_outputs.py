"""Shared by the adapters: Outputs from a case's arrays, connectors with its weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.types import Output
from tests.golden_cases import Arrays, Case


def run_connector(case: Case, module: Any, params: Any, features: jax.Array) -> jax.Array:
  """Apply a connector with the case's weights, in training mode."""
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


def run_adapter(case: Case, module: Any, params: Any, inputs: Any) -> Any:
  """Apply an adapter with the case's weights, nested by module, in training mode."""
  assert case.number("bn_eps", 1e-5) == 1e-5, "adapters normalise with eps 1e-5"

  def statistics(tree: Any) -> Any:
    if "scale" in tree:
      return {"mean": jnp.zeros_like(tree["bias"]), "var": jnp.ones_like(tree["bias"])}
    found = {n: statistics(x) for n, x in tree.items() if isinstance(x, dict)}
    return {name: below for name, below in found.items() if below}

  variables = {"params": params, "batch_stats": statistics(params)}
  out, _ = module.apply(variables, *inputs, train=True, mutable=["batch_stats"])
  return out


def stages_of(name: str, arrays: Arrays) -> Output:
  """Return an Output with the array `name` as only stage, or `name_0`, `name_1`, ... as stages."""
  if name in arrays:
    return Output(features={"0": arrays[name]})
  found = sorted(int(key.rsplit("_", 1)[1]) for key in arrays if key.startswith(f"{name}_"))
  return Output(features={str(i): arrays[f"{name}_{i}"] for i in found})


def several_logits(name: str, arrays: Arrays) -> list[Output]:
  """Return Outputs with the logits `name_0`, `name_1`, ..., in this order."""
  count = sum(key.startswith(f"{name}_") for key in arrays)
  return [Output(logits=arrays[f"{name}_{i}"]) for i in range(count)]
