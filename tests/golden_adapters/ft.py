"""Golden cases of factor transfer, its translator and its paraphraser."""

from __future__ import annotations

from typing import Any

import jax

from jaxkd import losses
from jaxkd.adapters import FactorDecoder, FactorEncoder
from jaxkd.types import Output
from tests.golden_adapters.case_outputs import run_connector
from tests.golden_cases import Arrays, Case


def ft(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  if case.has("dec_0_tkernel"):
    return _reconstruction(case, arrays)
  aux = {}
  factors = dict(arrays)
  for side, network in (("student", "tra"), ("teacher", "par")):
    if case.has(f"{network}_0_kernel"):
      factors[side] = aux[f"aux_factor_{side}"] = _convolve(case, arrays, network, arrays[side])
  options: dict[str, Any] = {"order": case.number("p", 1)}
  if case.has("p1") or "RepDistiller" in case.word("source"):
    options = {
      "normalization": "repdistiller",
      "power": case.number("p1", 2),
      "order": case.number("p2", 1),
    }
  student, teacher = (Output(features={"factor": factors[side]}) for side in ("student", "teacher"))
  return losses.factor_transfer(student, teacher, stages=["factor"], **options).total, aux


def _reconstruction(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  """The reconstruction error of the paraphraser, trained as an auto-encoder."""
  features = arrays["teacher"] if "teacher" in arrays else arrays["student"]
  factors = _convolve(case, arrays, "enc", features)
  restored = _convolve(case, arrays, "dec", factors)
  error = "mse" if "RepDistiller" in case.word("source") else "l1"
  aux = dict.fromkeys(("aux_factor", "aux_factor_teacher", "aux_factor_student"), factors)
  return losses.reconstruction_error(restored, features, error=error), aux


def _convolve(case: Case, arrays: Arrays, network: str, features: jax.Array) -> jax.Array:
  """Apply the case's three convolutions named "tra", "par", "enc" or "dec"."""
  params = {}
  for i in range(3):
    if case.has(f"{network}_{i}_tkernel"):
      # The reference code flips the kernel.
      kernel = arrays[f"{network}_{i}_tkernel"][::-1, ::-1]
    else:
      kernel = arrays[f"{network}_{i}_kernel"]
    params[f"conv{i + 1}"] = {"kernel": kernel, "bias": arrays[f"{network}_{i}_bias"]}
  kind = FactorDecoder if network == "dec" else FactorEncoder
  module = kind(kernel.shape[-1], negative_slope=case.number("leaky_slope", 0.1))
  return run_connector(case, module, params, features)
