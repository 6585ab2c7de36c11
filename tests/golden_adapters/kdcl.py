"""Golden cases of KDCL."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.losses._kdcl_target import _labelled, ensemble_target, linear_weights
from tests.golden_adapters.case_outputs import several_logits
from tests.golden_cases import Arrays, Case

NAMES = {"naive_sample": "naive"}


def kdcl(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  branches, labels = several_logits("branch", arrays), arrays["labels"]
  stacked = jnp.stack([branch.logits for branch in branches])
  ensemble = NAMES.get(case.word("ensemble"), case.word("ensemble"))
  linear = int(case.number("n_iters", 50)), case.number("lr", 0.1), "normalize"
  temperature = case.number("T", 2.0)
  target = ensemble_target(stacked, labels, None, ensemble=ensemble, linear=linear)
  weight = case.number("kd_weight", 1.0)
  if case.word("kd_reduction") != "batchmean":  # the mean over B and C, divided by B again
    weight /= stacked[0].size
  each = jnp.stack(
    [
      case.number("ce_weight", 0.0) * losses.cross_entropy(branch.logits, labels)
      + weight * losses.soft_target_kl(branch.logits, target, temperature=temperature)
      for branch in branches
    ]
  )
  options: dict[str, Any] = {"ensemble": ensemble, "temperature": temperature}
  options |= {"steps": linear[0], "rate": linear[1], "projection": linear[2]}
  taught = losses.collaborative_learning(branches, labels, **options).total
  hard = sum(losses.cross_entropy(branch.logits, labels) for branch in branches)
  loss = case.number("ce_weight", 0.0) * hard + weight * taught
  aux = {"aux_teacher_logits": target, "aux_branch_losses": each}
  if ensemble == "linear":
    classes, counts = _labelled(stacked[0], labels, None, None)
    aux["aux_linear_weights"] = linear_weights(stacked, classes, counts, linear)
  return loss, aux
