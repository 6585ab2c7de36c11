"""Golden cases of generalised divergences, as trl, DistiLLM and DistillKit compute them."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from tests.golden_cases import Arrays, Case

# DistiLLM's functions; `lam` of its js_distance is the share of the student.
DISTILLM = {
  "forward_ce": {"divergence": "forward", "cross_entropy": True},
  "reverse_kl": {"divergence": "reverse"},
  "symmetric": {"divergence": "symmetric", "cross_entropy": True},
  "js": {"divergence": "jensen_shannon"},
  "tv": {"divergence": "total_variation"},
  "skew_forward": {"divergence": "skewed_forward", "cross_entropy": True},
  "skew_reverse": {"divergence": "skewed_reverse"},
}


def divergences(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  variant = case.word("variant")
  where = _counted(case, arrays)
  student = arrays["student"]
  count = jnp.sum(where) if where is not None else student.shape[0] * student.shape[1]
  count = jnp.asarray(count, jnp.asarray(student).dtype)
  options: dict[str, Any] = {"where": where, "temperature": case.number("temperature", 1.0)}
  if variant in DISTILLM:
    beta = {"beta": case.number("lam", 0.0)} if case.has("lam") else {}
    if variant == "js":
      beta = {"beta": 1.0 - case.number("lam", 0.9)}
    options |= DISTILLM[variant] | beta | {"drop_impossible": True}
    return losses.soft_target_divergence(student, arrays["teacher"], **options), {}
  if variant == "gjsd":
    options |= {"divergence": "jensen_shannon", "beta": case.number("beta", 0.5)}
    value = losses.soft_target_divergence(
      student, arrays["teacher"], squared_temperature=False, **options
    )
    return value * count / _divisor(case, student, count), {}
  if variant == "dense_kl":
    value = losses.soft_target_divergence(student, arrays["teacher"], **options)
    return value * count / case.number("num_items", 1.0), {}
  if variant == "topk_tail":
    missing = "bucket" if case.number("add_tail", 1) else "renormalized"
    # It clamps the logarithm of the known sum.
    floor = -math.expm1(-case.number("tail_clamp", 1e-7))
    value = losses.top_k_divergence(
      student,
      arrays["target_ids"],
      arrays["target_values"],
      missing=missing,
      floor=floor,
      target_temperature=options["temperature"],
      squared_temperature=False,
      **options,
    )
    return value, {}
  assert variant in ("sparse_kl", "sparse_js"), variant
  return _sparse(case, arrays, options) * count / case.number("num_items", 1.0), {}


def _sparse(case: Case, arrays: Arrays, options: dict[str, Any]) -> jax.Array:
  """Return DistillKit's mean over positions."""
  values, target_temperature = (
    arrays["target_values"],
    case.number("target_generation_temperature", 1),
  )
  bucket = case.word("missing") == "symmetric_uniform"
  if bucket and not case.number("log_target", 1):
    # Logits without a normaliser: their softmax leaves nothing for the bucket.
    values = jax.nn.log_softmax(values * (target_temperature / options["temperature"]))
    target_temperature = options["temperature"]
  return losses.top_k_divergence(
    arrays["student"],
    arrays["target_ids"],
    values,
    divergence="jensen_shannon" if case.word("variant") == "sparse_js" else "forward",
    missing="bucket" if bucket else "impossible",
    floor=case.number("eps", 1e-8),
    target_temperature=target_temperature,
    **options,
  )


def _counted(case: Case, arrays: Arrays) -> jax.Array | None:
  if case.number("use_mask", 0):
    return arrays["mask"]
  if "labels" in arrays and case.number("use_labels", 1):
    return arrays["labels"] != -100
  return None


def _divisor(case: Case, student: jax.Array, count: jax.Array) -> Any:
  """Return by what trl divides the sum over tokens and classes."""
  if case.number("use_num_items", 0):
    return case.number("num_items", 1.0)
  reduction = case.word("reduction")
  if reduction == "sum":
    return 1.0
  if reduction == "mean":
    return count * student.shape[-1]
  # "batchmean": with labels the tokens that have one, else the batch.
  return count if case.number("use_labels", 0) else student.shape[0]
