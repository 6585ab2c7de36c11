"""Golden cases of curriculum temperature."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.adapters import LearnedTemperature
from jaxkd.losses.ctkd import scaled_gradient
from jaxkd.methods.ctkd import curriculum
from jaxkd.types import Output
from tests.golden_cases import Arrays, Case


def ctkd(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  if case.word("variant") == "instance":
    eps = case.number("target_eps", 0.0)
    sides = arrays["student"], arrays["teacher"], arrays["T_instance"]
    return losses.temperature_kl(*sides, target_eps=eps), {}
  factor = curriculum(
    "linear_code" if case.word("schedule") == "linear" else "cosine",
    epochs=case.number("decay_loops", 10.0),
    start=case.number("decay_max", 0.0),
    end=case.number("decay_min", -1.0),
  )
  lam = factor(jnp.asarray(case.values["epoch"]))
  loss = _loss(case, arrays, lam)
  aux = {"aux_lambda_by_epoch": jax.vmap(factor)(jnp.asarray(case.values["schedule_epochs"]))}
  sides = arrays["student"], arrays["temp_param"]
  value, (term, temperature) = loss(*sides)
  aux |= {"aux_term": term, "aux_T": temperature}
  if case.has("aux_grad_student_masked"):
    slopes, _ = jax.grad(loss, argnums=(0, 1), has_aux=True)(*sides)
    aux["aux_grad_student_masked"], aux["aux_grad_temp_param_masked"] = slopes
  return value, aux


def _loss(case: Case, arrays: Arrays, lam: jax.Array) -> Any:
  adapter = LearnedTemperature(least=case.number("t_start", 1.0), spread=case.number("t_end", 20.0))

  def loss(student: jax.Array, theta: jax.Array) -> tuple[jax.Array, Any]:
    ours, theirs = Output(logits=student), Output(logits=arrays["teacher"])
    inputs: Any = ours, theirs, None
    (_, temperature), _ = adapter.apply({"params": {"theta": theta}}, inputs, train=True)
    reversed_one = scaled_gradient(temperature, lam)
    if case.word("variant") == "dkd":
      parts = losses.decoupled_distillation(
        ours,
        theirs,
        arrays["labels"],
        target_weight=case.number("dkd_alpha", 1.0),
        others_weight=case.number("dkd_beta", 2.0),
        temperature=reversed_one.reshape(()),
      )
      term = sum(part.logit for part in parts.values())
    else:
      standardize = case.word("variant") == "kl_logit_std"
      term = losses.curriculum_temperature(
        ours, theirs, reversed_one, standardize=standardize
      ).logit
    value = case.number("kl_weight", 1.0) * term
    if weight := case.number("ce_weight", 0.0):
      value = value + weight * losses.cross_entropy(student, arrays["labels"])
    return value, (term, temperature)

  return loss
