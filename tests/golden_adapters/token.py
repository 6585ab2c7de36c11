"""Golden cases of DeiT's distillation token and of VkD's orthogonal projection."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxkd import losses
from jaxkd.adapters import OrthogonalProjector
from jaxkd.adapters.orthogonal import orthogonal_kernel
from jaxkd.types import Output
from tests.golden_cases import Arrays, Case


def _base(case: Case, arrays: Arrays) -> jax.Array:
  """The loss of the labels, by the case's criterion."""
  logits, criterion = arrays["student_logits"], case.word("base_criterion")
  if criterion == "bce":
    targets = (arrays["soft_labels"] > 0).astype(logits.dtype)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets))
  if criterion == "soft_ce":
    return losses.cross_entropy(logits, arrays["soft_labels"])
  smoothing = case.number("smoothing", 0.0) if criterion == "label_smoothing" else 0.0
  return losses.cross_entropy(logits, arrays["labels"], label_smoothing=smoothing)


def deit(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  base, kind = _base(case, arrays), case.word("distillation_type")
  aux = {"aux_base_loss": base}
  if kind == "none":
    return base, aux
  terms = losses.distillation_token(
    Output(features={"logits_dist": arrays["student_dist_logits"]}),
    Output(logits=arrays["teacher_logits"]),
    kind=kind,
    temperature=case.number("tau", 1.0),
    form="code",
  )
  alpha = case.number("alpha", 0.5)
  return (1 - alpha) * base + alpha * terms.total, aux


def vkd(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  assert case.number("smooth_l1_beta", 1.0) == 1 and case.number("ln_eps", 1e-5) == 1e-5
  return _vidt(case, arrays) if case.word("form") == "vidt" else _vkd(case, arrays)


def _vkd(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  aux: dict[str, Any] = {}
  student, teacher = arrays["student"], arrays["teacher"]
  if "proj_raw" in arrays:
    variables = {"params": {"raw": arrays["proj_raw"]}}
    base = arrays["proj_base"] if "proj_base" in arrays else jnp.eye(max(arrays["proj_raw"].shape))
    variables["constants"] = {"base": base}
    projected = OrthogonalProjector(teacher.shape[-1]).apply(variables, student, train=True)
    aux["aux_proj_kernel"] = orthogonal_kernel(arrays["proj_raw"], base)
  else:
    projected = jnp.mean(student, axis=1) @ arrays["proj_kernel"]
  terms = losses.orthogonal_projection(
    Output(features={"x": projected}), Output(features={"x": teacher}), stages=["x"]
  )
  pooled = jnp.mean(teacher, axis=(1, 2))
  centred = pooled - pooled.mean(1, keepdims=True)
  normalised = centred / jnp.sqrt(jnp.square(centred).mean(1, keepdims=True) + 1e-5)
  aux |= {"aux_projected": projected, "aux_teacher_normalised": normalised}
  zero = jnp.zeros((), projected.dtype)
  alpha, gamma = case.number("alpha", 1.0), case.number("gamma", 1.0)
  representation, kl, base_loss = terms.total if alpha else zero, zero, zero
  if gamma:
    kl = losses.distillation_token(
      Output(features={"logits_dist": arrays["student_dist_logits"]}),
      Output(logits=arrays["teacher_logits"]),
      kind="soft",
      temperature=case.number("T", 1.0),
    ).total
  if case.word("base_criterion") != "none":
    base_loss = _base(case, arrays)
  aux |= {"aux_repr_loss": representation, "aux_kl_loss": kl, "aux_base_loss": base_loss}
  return base_loss + gamma * kl + alpha * representation, aux


def _vidt(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  assert case.number("std_ddof", 1) == 1
  names = [f"patch_{i}" for i in range(int(case.number("n_levels", 0)))]
  names += [name for name in ("body", "neck") if f"student_{name}" in arrays]
  student, teacher = {}, {}
  for name in names:
    mapped = arrays[f"student_{name}"] @ arrays[f"proj_{name}_kernel"]
    kernel = (arrays[f"proj_{name}_{part}"] for part in ("scale", "bias"))
    scale, bias = (x.reshape((1,) * (mapped.ndim - 1) + (-1,)) for x in kernel)
    student[name] = scale * mapped + bias
    teacher[name] = arrays[f"teacher_{name}"]
  terms = losses.orthogonal_projection(
    Output(features=student), Output(features=teacher), stages=names, standardize="both"
  )
  return case.number("weight", 4.0) * terms.total, {}
