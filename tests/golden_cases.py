"""Cases of reference values: reading them, running ours on them, comparing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Arrays = Mapping[str, jax.Array]
# From a case (its words and hyperparameters) and its arrays to the loss and named intermediates.
Adapter = Callable[["Case", Arrays], tuple[jax.Array, dict[str, Any]]]

# Relative to the largest reference value of the same array.
TOLERANCE = {"float64": 1e-9, "float32": 1e-5}
# Below this a reference value is rounding noise around 0, ...
NOISE = 1e-10
# ... and what is allowed is absolute.
ABSOLUTE = {"float64": 1e-12, "float32": 1e-6}
# In float32, sums of terms of both signs; the README of the references has 7e-5 for their own run.
CANCELLING = {("ctkd", "grad_temp_param"): 7e-5}
# Chains of normalised layers, in which a small gradient is a sum of large terms: allowed is the
# reference's own error relative to the largest gradient of the case.
LAYERED = {"reviewkd_full", "semckd_full"}


class Case(NamedTuple):
  """One case of a file: all of its values by name."""

  method: str
  index: int
  values: dict[str, np.ndarray]

  def word(self, name: str) -> str:
    return str(self.values[name]) if name in self.values else ""

  def number(self, name: str, default: float) -> float:
    return float(self.values[name]) if name in self.values else default

  def has(self, name: str) -> bool:
    return name in self.values


def load(path: Path) -> list[Case]:
  with np.load(path, allow_pickle=False) as file:
    method, count = str(file["method"]), int(file["n_cases"])
    cases: list[dict[str, np.ndarray]] = [{} for _ in range(count)]
    for key in file.files:
      if match := re.fullmatch(r"case(\d+)/(.+)", key):
        cases[int(match[1])][match[2]] = file[key]
  return [Case(method, i, values) for i, values in enumerate(cases)]


def arrays_of(case: Case, dtype: str) -> dict[str, jax.Array]:
  """What an adapter is given of a case: its arrays that are inputs."""
  return {
    name: jnp.asarray(value, dtype if value.dtype.kind == "f" else None)
    for name, value in case.values.items()
    if value.ndim and not name.startswith(("grad_", "aux_"))
  }


def compute(case: Case, adapter: Adapter, dtype: str) -> dict[str, np.ndarray]:
  """Our loss, gradients and intermediates, under the names the case has them by."""
  arrays = arrays_of(case, dtype)
  wanted = [name.removeprefix("grad_") for name in case.values if name.startswith("grad_")]

  def loss(differentiated):
    return adapter(case, {**arrays, **differentiated})

  # Each case is compiled once and run once, so the compiler's time is what counts.
  evaluate = jax.jit(
    jax.value_and_grad(loss, has_aux=True), compiler_options={"xla_backend_optimization_level": 0}
  )
  (value, aux), gradients = evaluate({name: arrays[name] for name in wanted})
  assert value.dtype == dtype and value.shape == ()
  results = {"loss": value} | {f"grad_{name}": g for name, g in gradients.items()}
  return {name: np.asarray(v) for name, v in (results | aux).items()}


def disagreements(case: Case, ours: Mapping[str, np.ndarray], dtype: str) -> list[str]:
  """What does not agree with the reference, in words; empty if all does.

  Intermediates that an adapter does not give are left alone: loss and gradients pin them.
  """
  gradients = [v for name, v in case.values.items() if name.startswith("grad_")]
  largest_gradient = max((_largest(g) for g in gradients), default=0.0)
  nonfinite = set(re.split(r"[^\w]+", case.word("nonfinite")))
  found = []
  for name, reference in case.values.items():
    if name != "loss" and not name.startswith(("grad_", "aux_")):
      continue
    if _of_an_attached_teacher(case, name):
      continue
    if name not in ours:
      if not name.startswith("aux_"):
        found.append(f"{name}: not computed")
      continue
    value = ours[name]
    if value.shape != reference.shape:
      found.append(f"{name}: shape {value.shape}, reference {reference.shape}")
    elif not np.isfinite(value).all():
      found.append(f"{name}: not finite")
    elif name not in nonfinite and np.isfinite(reference).all():
      error = _largest(value - reference)
      allowed = _allowed(case, name, _largest(reference), largest_gradient, dtype)
      if error > allowed:
        found.append(f"{name}: off by {error:.3g}, allowed {allowed:.3g}")
  return found


def _of_an_attached_teacher(case: Case, name: str) -> bool:
  """Check for a teacher's gradient that only the reference's loss lets through, not its trainer.

  Every loss here stops it, and the property tests check that.
  """
  attached = not (case.number("teacher_detached", 1) and case.number("teacher_no_grad", 1))
  return attached and name.startswith("grad_teacher")


def _allowed(case: Case, name: str, size: float, largest_gradient: float, dtype: str) -> float:
  relative = TOLERANCE[dtype]
  if dtype == "float32":
    relative = CANCELLING.get((case.method, name), relative)
  is_gradient = name.startswith("grad_")
  if dtype == "float32" and case.word("edge"):
    # The reference's own float32 run says how ill-conditioned an edge case is.
    own = case.number("f32_grad_relerr", 0.0)
    if name == "loss" and size > NOISE:
      own = abs(case.number("loss_f32", 0.0) - case.number("loss", 0.0)) / size
    relative = max(relative, 2.0 * own) if np.isfinite(own) else relative
  if is_gradient and size < 1e-6 * largest_gradient:
    # The true value is 0 (a bias in front of a batch normalisation): what remains is the rounding
    # of terms as large as the other gradients.
    return 1e-6 * relative * largest_gradient + 64 * np.finfo(dtype).eps * largest_gradient
  if is_gradient and dtype == "float32" and case.method in LAYERED:
    own = case.number("f32_grad_relerr", 0.0)
    floor = own * largest_gradient if np.isfinite(own) else 0.0
    return max(relative * size if size > NOISE else ABSOLUTE[dtype], floor)
  return relative * size if size > NOISE else ABSOLUTE[dtype]


def _largest(x: np.ndarray) -> float:
  x = np.abs(np.asarray(x, np.float64))
  return float(x[np.isfinite(x)].max(initial=0.0))
