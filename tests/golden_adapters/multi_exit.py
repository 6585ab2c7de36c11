"""Golden cases of multi-exit distillation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from tests.golden_adapters.case_outputs import several_logits
from tests.golden_cases import Arrays, Case


def multi_exit(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  if not case.has("n_steps"):
    return _step(case, arrays, "exit", arrays["labels"], case.number("T", 1.0)), {}
  temperature = jnp.asarray(1.0)
  temperatures, confidences, step_losses = [temperature], [], []
  for s in range(int(case.number("n_steps", 0))):
    name = f"step{s}_exit"
    step_losses.append(_step(case, arrays, name, arrays[f"labels_{s}"], temperature))
    deepest = several_logits(name, arrays)[-1].logits
    confidences.append(losses.mean_confidence(deepest, temperature=temperature))
    temperature = losses.adapted_temperature(
      temperature,
      deepest,
      confidence=case.number("maxprob", 0.5),
      factor=case.number("Tmult", 1.05),
    )
    temperatures.append(temperature)
  aux = {
    "aux_temperatures": jnp.stack(temperatures),
    "aux_adj_maxprob": jnp.stack(confidences),
    "aux_step_losses": jnp.stack(step_losses),
  }
  return sum(step_losses[1:], step_losses[0]), aux


def _step(case: Case, arrays: Arrays, name: str, labels: jax.Array, temperature: Any) -> jax.Array:
  """The loss of one training step; a case without C has label terms only."""
  exits = several_logits(name, arrays)
  soft_weight = case.number("C", 0.0)
  label_term = sum(losses.cross_entropy(output.logits, labels) for output in exits)
  terms = losses.multi_exit(exits, temperature=temperature)
  total = (1.0 - soft_weight) * label_term + soft_weight * terms.total
  return case.number("global_scale", 1.0) * total
