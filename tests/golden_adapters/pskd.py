"""Golden cases of PS-KD: one step, and several steps with the table of predictions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.adapters import PastPredictions
from jaxkd.losses.pskd import past_weight_of, softened_labels
from jaxkd.types import MEMORY, Batch
from tests.golden_cases import Arrays, Case


def pskd(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  last, of = case.number("alpha_T", 0.8), int(case.number("end_epoch", 300))
  if case.has("table_init"):
    return _steps(case, arrays, last, of)
  logits, labels, past = (jnp.asarray(arrays[name]) for name in ("student", "labels", "past_probs"))
  epoch = jnp.asarray(case.number("epoch", 0.0), logits.dtype)
  weight = past_weight_of(epoch, last=last, of=of)
  # In the first epoch the past is overwritten by the labels.
  used = jnp.where(epoch > 0, weight, 0.0)
  loss = losses.past_cross_entropy(logits, past, labels, past_weight=used)
  return loss, {
    "aux_alpha_t": weight,
    "aux_soft_targets": softened_labels(past, labels, used),
    "aux_probs_after": jax.nn.softmax(logits),
  }


def _steps(case: Case, arrays: Arrays, last: float, of: int) -> tuple[jax.Array, dict[str, Any]]:
  """Steps through the module with the table; the weights are those of `methods.progressive`."""
  module = PastPredictions(len(arrays["table_init"]))
  memory = {MEMORY: {"predictions": jnp.asarray(arrays["table_init"])}}
  each, aux = [], {}
  steps = int(case.number("n_steps", 0))
  for step in range(steps):
    names = ("student", "labels", "idx")
    logits, labels, idx = (jnp.asarray(arrays[f"{name}_{step}"]) for name in names)
    epoch = jnp.asarray(arrays["epochs"])[step]
    batch = Batch(None, labels, None, idx)
    (past, _), memory = module.apply(memory, (logits, batch), train=True, mutable=[MEMORY])
    weight = past_weight_of(epoch.astype(logits.dtype), last=last, of=of)
    used = jnp.where(epoch > 0, weight, 0.0)
    each.append(losses.past_cross_entropy(logits, past, labels, past_weight=used))
    aux[f"aux_table_after_step{step}"] = memory[MEMORY]["predictions"]
  aux["aux_table_after_steps"] = memory[MEMORY]["predictions"]
  aux["aux_step_losses"] = jnp.stack(each)
  epochs = jnp.asarray(arrays["epochs"]).astype(each[0].dtype)
  aux["aux_alpha_t"] = past_weight_of(epochs, last=last, of=of)
  return jnp.sum(aux["aux_step_losses"]), aux
