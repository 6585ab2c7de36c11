"""Golden cases of SemCKD: its loss, its attention and the whole objective."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.adapters import SemanticCalibration, StageAttention
from jaxkd.types import Batch, Output
from tests.golden_adapters.case_outputs import run_adapter, stages_of
from tests.golden_cases import Arrays, Case


def semckd(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  count = int(case.number("n_student", 1)), int(case.number("n_teacher", 1))
  pairs = [(i, j) for i in range(count[0]) for j in range(count[1])]
  aux = {}
  if case.has("weight"):
    attention = arrays["weight"]
    sides = {(i, j): (arrays[f"s_value_{i}_{j}"], arrays[f"f_target_{i}_{j}"]) for i, j in pairs}
  else:
    student, teacher = (stages_of(side, arrays).features for side in ("student", "teacher"))
    module = StageAttention(tuple(student), tuple(teacher), **_options(case, arrays))
    layers = list(student.values()), list(teacher.values())
    attention = aux["aux_attention"] = module.apply({"params": _embeddings(arrays)}, *layers, None)
    sides = {(i, j): losses.match_sizes(layers[0][i], layers[1][j]) for i, j in pairs}
  ours, theirs = (
    Output(features={f"{i}:{j}": pair[side] for (i, j), pair in sides.items()}) for side in (0, 1)
  )
  return _loss(ours, theirs, attention), aux


def semckd_full(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  student, teacher = stages_of("student", arrays), stages_of("teacher", arrays)
  widths = {name: x.shape[-1] for name, x in teacher.features.items()}
  adapter = SemanticCalibration(tuple(student.features), widths, **_options(case, arrays))
  params: dict[str, Any] = {"attention": _embeddings(arrays)}
  for source in student.features:
    for target in widths:
      prefix = f"reg_{source}_{target}"
      regressor = {f"conv{n}": {"kernel": arrays[f"{prefix}_conv{n}_kernel"]} for n in (1, 2, 3)}
      for n in (1, 2):
        norm = {part: arrays[f"{prefix}_bn{n}_{part}"] for part in ("scale", "bias")}
        regressor[f"bn{n}"] = norm
      params[f"regress_{source}_{target}"] = regressor
  batch = Batch(None, None, None, None)
  student, teacher = run_adapter(case, adapter, params, ((student, teacher, batch),))
  attention = student.features["attention"]
  loss = case.number("weight", 1.0) * _loss(student, teacher, attention)
  return loss, {"aux_attention": attention}


def _loss(student: Output, teacher: Output, attention: jax.Array) -> jax.Array:
  _, ours, theirs = attention.shape
  pairs = [(i, j) for i in range(ours) for j in range(theirs)]
  return losses.semantic_calibration(
    student,
    teacher,
    stages=[f"{i}:{j}" for i, j in pairs],
    attention=[attention[:, i, j] for i, j in pairs],
    layers=ours,
  ).total


def _options(case: Case, arrays: Arrays) -> dict[str, Any]:
  return {
    "slots": arrays["query_0_linear1_kernel"].shape[0],
    "factor": int(case.number("factor", 4)),
    "temperature": case.number("soft", 1.0),
  }


def _embeddings(arrays: Arrays) -> dict[str, Any]:
  """The parameters of StageAttention from arrays such as "query_0_linear1_kernel"."""
  params: dict[str, Any] = {}
  for name, value in arrays.items():
    kind, _, rest = name.partition("_")
    if kind in ("query", "key"):
      number, layer, part = rest.split("_")
      params.setdefault(f"{kind}_{number}", {}).setdefault(layer, {})[part] = jnp.asarray(value)
  return params
