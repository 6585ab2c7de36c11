"""Golden cases of deep mutual learning (DML) and native ensembles (ONE)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.adapters import Gate
from jaxkd.methods import ramp
from jaxkd.types import Output
from tests.golden_adapters.case_outputs import run_connector, several_logits
from tests.golden_cases import Arrays, Case


def dml(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  okddip = "OKDDip" in case.word("source")
  options: dict[str, Any] = {"temperature": case.number("T", 1.0)}
  if case.has("eps"):
    smoothed = "target_smoothing" if okddip else "ratio_smoothing"
    options[smoothed] = case.number("eps", 0.0)
  if case.has("net_0"):
    return _networks(case, arrays, okddip, options)
  pair = arrays["student"], arrays["teacher"]
  if "labels" not in arrays:
    # The bare term: the peer is not detached inside it.
    return losses.peer_kl(*pair, detached=False, **options), {}
  aux = {
    "aux_ce": losses.cross_entropy(pair[0], arrays["labels"]),
    "aux_kl": losses.peer_kl(*pair, detached=not okddip, **options),
  }
  return aux["aux_ce"] + case.number("lambda_kd", 1.0) * aux["aux_kl"], aux


def _networks(
  case: Case, arrays: Arrays, okddip: bool, options: dict[str, Any]
) -> tuple[jax.Array, dict[str, Any]]:
  """Sum over networks of the cross-entropy and the mutual term with all others."""
  networks = several_logits("net", arrays)
  weight = case.number("lambda_kd", 1.0)
  options |= {
    "over_peers": "mean" if okddip else "sum",
    "target": "ensemble" if "ensemble" in case.word("desc") else "pairwise",
    "detached": not okddip,
  }
  each = []
  for i, network in enumerate(networks):
    terms = losses.mutual(network, networks[:i] + networks[i + 1 :], **options)
    label_term = losses.cross_entropy(network.logits, arrays["labels"])
    each.append(label_term + weight * terms.total)
  return sum(each[1:], each[0]), {"aux_per_net_losses": jnp.stack(each)}


def one(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  if case.has("epochs"):
    epochs = jnp.asarray(arrays["epochs"])
    weights = [_ramped(epochs[i], float(length)) for i, length in enumerate(case.values["lengths"])]
    return 0.0 * epochs[0], {"aux_weights": jnp.stack(weights)}
  options = {
    "temperature": case.number("T", 3.0),
    "target_smoothing": case.number("eps", 1e-7),
    "detached": "OKDDip" not in case.word("source"),
  }
  if "student" in arrays:
    branch, ensemble = (Output(logits=arrays[name]) for name in ("student", "teacher"))
    return losses.native_ensemble([branch], ensemble, **options).total, {}
  branches = several_logits("branch", arrays)
  ensemble = Output(logits=losses.gated_logits(branches, _gate(case, arrays)))
  outputs = [*branches, ensemble]
  label_term = sum(losses.cross_entropy(z.logits, arrays["labels"]) for z in outputs)
  weight: Any = case.number("weight", 1.0)
  if not case.has("weight") and case.has("epoch"):
    epoch = jnp.asarray(case.number("epoch", 0.0))
    weight = _ramped(epoch, case.number("rampup_length", 0.0))
  aux = {
    "aux_ensemble_logits": ensemble.logits,
    "aux_ce": label_term,
    "aux_kl_per_branch": jnp.stack(
      [losses.native_ensemble([branch], ensemble, **options).total for branch in branches]
    ),
  }
  terms = losses.native_ensemble(branches, ensemble, **options)
  return label_term + weight * terms.total, aux


def _ramped(epoch: jax.Array, length: float) -> jax.Array:
  """ONE's weight; a ramp of length 0 gives 1, and epochs before 0 count as 0."""
  if length == 0:
    return jnp.ones_like(epoch)
  return ramp("exponential", steps=length)(jnp.maximum(epoch, 0.0))


def _gate(case: Case, arrays: Arrays) -> jax.Array:
  params = {
    "linear": {"kernel": arrays["gate_kernel"], "bias": arrays["gate_bias"]},
    "bn": {"scale": arrays["gate_bn_scale"], "bias": arrays["gate_bn_bias"]},
  }
  module = Gate(params["linear"]["bias"].shape[0])
  return run_connector(case, module, params, arrays["gate_feature"])
