"""Golden cases of the distillation-oriented trainer: parameters after some updates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd.train.by_term import LABELS, OTHERS
from jaxkd.train.dot import dot as trainer
from tests.golden_cases import Arrays, Case


def dot(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  low, high = case.number("momentum_task", 0.825), case.number("momentum_kd", 0.975)
  rates = jnp.atleast_1d(jnp.asarray(arrays["lr"] if "lr" in arrays else case.number("lr", 0.05)))
  optimizer = trainer(
    lambda count: rates[jnp.minimum(count, len(rates) - 1)],
    momentum=(low + high) / 2,
    delta=(high - low) / 2,
    weight_decay=case.number("weight_decay", 0.0),
    dampening=case.number("dampening", 0.0),
    late_decay=True,
  )
  count, steps = int(case.number("n_params", 0)), int(case.number("n_steps", 0))
  parameters = {j: jnp.asarray(arrays[f"param_{j}"]) for j in range(count)}
  state, aux = optimizer.init(parameters), {}
  for step in range(steps):
    gradients = {
      name: {j: arrays.get(f"{word}_grad_{step}_{j}") for j in range(count)}
      for name, word in ((LABELS, "ce"), (OTHERS, "kd"))
    }
    updates, state = optimizer.update(gradients, state, parameters)
    parameters = optax.apply_updates(parameters, updates)
    aux |= {f"aux_param_{j}_after_step{step}": value for j, value in parameters.items()}
  plain = low == 0  # the published code has no buffer then
  for j in range(count):
    if np.atleast_1d(case.values.get("has_ce", np.ones(count)))[j] and not plain:
      aux[f"aux_momentum_buffer_{j}"] = state.labels[j]
    if np.atleast_1d(case.values.get("has_kd", np.ones(count)))[j]:
      aux[f"aux_momentum_kd_buffer_{j}"] = state.others[j]
  total: Any = sum(jnp.sum(value) for value in parameters.values())
  return total, aux
