"""Costs of trained networks: size, multiply-adds, memory, and latency of the exported function."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import evaluate
from jaxkd.errors import ConfigError, one_line
from jaxkd.experiment.predictions import Predictor
from jaxkd.export import stablehlo

BATCHES = (1, 64)
# Timings of each batch: this many after the warm-up, or fewer once they have taken so long.
_ROUNDS, _WARM_UP, _SECONDS = 50, 3, 3.0
_LEAST_ROUNDS = 5


def costs(subject: Predictor) -> dict[str, Any]:
  """Measure the costs of a network.

  The latency is the time of one call of the function that `jaxkd export` writes, compiled for this
  machine and this batch, from an array of stored inputs to logits on the host.

  Args:
    subject: the network.

  Returns:
    parameters: numbers that learn
    bytes: of all variables, as stored
    multiply_adds: of one example; None if a loop of unknown length multiplies matrices
    device: the kind of device
    batches: a row for each batch size: batch, activation_bytes (memory of intermediate results of
      the compiled function, None where the compiler does not say), milliseconds (median), low and
      high (quartiles), rounds
    note: why nothing is measured for a network that cannot be exported, else ""
  """
  variables = subject.network.variables
  stored = jax.tree.map(jnp.asarray, subject.dataset.test.fetch(np.arange(1)))
  inputs = jax.eval_shape(subject.prepare, stored)

  def logits(variables: Any, inputs: Any) -> Any:
    found = subject.network.module.apply(variables, inputs, False)
    return (found[-1] if isinstance(found, tuple) else found).logits

  found: dict[str, Any] = {
    "parameters": sum(x.size for x in jax.tree.leaves(dict(variables).get("params", {}))),
    "bytes": sum(x.nbytes for x in jax.tree.leaves(variables)),
    "multiply_adds": None,
    "device": jax.devices()[0].device_kind,
    "batches": [],
    "note": "",
  }
  try:
    found["multiply_adds"] = evaluate.multiply_adds(logits, variables, inputs)
    found["batches"] = [_timed(subject, batch) for batch in BATCHES]
  except ConfigError as error:
    found["note"] = f"{subject.name}: {one_line(error)}"
  return found


def _timed(subject: Predictor, batch: int) -> dict[str, Any]:
  """Measure one batch size of the exported function."""
  exported = stablehlo.export_function(
    subject.network, subject.description, platforms=(_platform(),), batch_size=batch
  )
  (avals,), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
  inputs = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), avals)
  program = jax.jit(exported.call).lower(inputs).compile()
  analysis = program.memory_analysis()
  seconds: list[float] = []
  until = time.perf_counter() + _SECONDS
  for turn in range(_WARM_UP + _ROUNDS):
    started = time.perf_counter()
    np.asarray(program(inputs))
    if turn >= _WARM_UP:
      seconds.append(time.perf_counter() - started)
    if len(seconds) >= _LEAST_ROUNDS and time.perf_counter() > until:
      break
  low, median, high = (1e3 * float(q) for q in np.quantile(seconds, (0.25, 0.5, 0.75)))
  return {
    "batch": batch,
    "activation_bytes": int(analysis.temp_size_in_bytes) if analysis is not None else None,
    "milliseconds": median,
    "low": low,
    "high": high,
    "rounds": len(seconds),
  }


def _platform() -> str:
  """Return this machine's platform, as `jax.export` calls it."""
  platform = jax.default_backend()
  if platform != "gpu":
    return platform
  return "rocm" if "rocm" in jax.devices()[0].client.platform_version.lower() else "cuda"
