"""Golden cases of CRD: several steps, with the memory updated after each."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.adapters import ContrastMemory, ExampleTable
from jaxkd.types import MEMORY, Batch, Output
from tests.golden_cases import Arrays, Case


def crd(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  size, width = arrays["memory_v1"].shape
  temperature = case.number("nce_t", 0.07)
  adapter = ContrastMemory(
    ExampleTable(range(size), range(size)),
    width,
    temperature=temperature,
    momentum=case.number("nce_m", 0.5),
    stages=("x", "x"),
  )
  params = {
    f"{side}_embedding": {part: arrays[f"embed_{side[0]}_{part}"] for part in ("kernel", "bias")}
    for side in ("student", "teacher")
  }
  memory = {
    "student": arrays["memory_v1"],
    "teacher": arrays["memory_v2"],
    "key": jax.random.key_data(jax.random.key(0)),
    "steps": jnp.int32(0),
    "log_normalizers": jnp.zeros_like(arrays["memory_v1"], shape=2),
    "normalized": jnp.zeros((), bool),
  }
  examples = int(case.number("n_data", size))
  values, aux = [], {}
  step = 0
  while case.has(f"idx_{step}"):
    indices = arrays[f"idx_{step}"]
    batch = Batch(None, None, None, indices)
    student, teacher = (Output(features={"x": arrays[f"{s}_{step}"]}) for s in _SIDES)
    found, changes = adapter.apply(
      {"params": params, MEMORY: memory},
      (student, teacher, batch),
      train=True,
      contrasts=arrays[f"contrast_idx_{step}"],
      mutable=[MEMORY],
    )
    memory = changes[MEMORY]
    values.append(
      sum(
        losses.contrastive_representation(
          anchor,
          other,
          examples=examples,
          temperature=temperature,
          log_normalizer=anchor.features["log_normalizer"],
        ).total
        for anchor, other in (found, found[::-1])
      )
    )
    aux[f"aux_memory_v1_after_step{step}"] = memory["student"]
    aux[f"aux_memory_v2_after_step{step}"] = memory["teacher"]
    step += 1
  aux["aux_step_losses"] = jnp.stack(values)
  aux["aux_Z"] = jnp.exp(memory["log_normalizers"])
  return jnp.sum(aux["aux_step_losses"]), aux


_SIDES = ("student", "teacher")
