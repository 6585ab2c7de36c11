"""Networks as ONNX files, from raw images to logits, that run without jax and this library.

    import onnxruntime
    logits = onnxruntime.InferenceSession("model.onnx").run(None, {"images": images})[0]

Each model is compared in onnxruntime with jax before it gets its file name.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
from jax import export

from jaxkd.errors import ConfigError, one_line, writing
from jaxkd.export.onnx.graph import NoOperatorError, converted, no_form
from jaxkd.export.stablehlo import stored_inputs
from jaxkd.shapes import batched, named_leaves
from jaxkd.types import Array, Network, Output

# Largest difference between onnxruntime and jax, in units of the largest logit, or of 1.
TOLERANCE = 1e-5
# Entry of a description -> metadata of the model.
_FACTS = ("class_names", "data", "model", "method", "test_accuracy")


@dataclasses.dataclass(frozen=True)
class OnnxModel:
  """A model that has been compared with jax.

  Attributes:
    serialized: the content of its file.
    inputs: name -> shape and type of each input; the first size is "batch" or a number.
    outputs: names of the outputs: "logits", or "logits_0" ... of several exits.
    difference: the largest difference from jax's logits, divided by the largest logit or by 1.
  """

  serialized: bytes
  inputs: Mapping[str, jax.ShapeDtypeStruct]
  outputs: tuple[str, ...]
  difference: float


def export_onnx(
  network: Network, description: Mapping[str, Any], *, batch_size: int | None = None
) -> OnnxModel:
  """Export a network in evaluation mode as an ONNX model of raw images, or of other inputs.

  Args:
    network: result of `jaxkd.export.bundles.load_bundle`, or any whose module returns an Output or
      one Output per exit.
    description: its "image_shape", [H, W, C], and "mean" and "std", one number per channel, for
      pixel values scaled to 0..1; or its "inputs" (`jaxkd.shapes.described`). Class names and
      others are copied into the model's metadata.
    batch_size: number of images, or None for a model of any number.

  Returns:
    The model: from uint8 "images" (B, H, W, C), 0..255 as stored in the data set, to float32
    "logits" (B, classes), or "logits_0", "logits_1", ... of the exits, shallowest first. It
    normalises the images itself.

  Raises:
    ConfigError: for an incomplete description or a batch size below 1; for a network that ONNX
      cannot express, naming the operation, or whose logits are not finite or differ from jax's by
      more than TOLERANCE.
    MissingPackage: without onnx or onnxruntime.
  """
  shape, prepare = stored_inputs(description)
  if batch_size is not None and batch_size < 1:
    raise ConfigError(f"batch_size={batch_size}: expected a number of at least 1, or None")
  called = f"a {type(network.module).__name__}"
  leading = export.symbolic_shape("batch") if batch_size is None else (batch_size,)
  like = batched(shape, leading)
  tree = jax.tree.structure(like)
  images = "inputs" not in description
  inputs = {"images": like} if images else _named(like)

  def predict(*arrays: Array) -> tuple[Array, ...]:
    stored = prepare(jax.tree.unflatten(tree, arrays))
    return _logits(called, network.module.apply(network.variables, stored, False))

  count = len(jax.eval_shape(predict, *jax.tree.leaves(batched(shape, (1,)))))
  outputs = ("logits",) if count == 1 else tuple(f"logits_{exit}" for exit in range(count))
  try:
    serialized = converted(predict, inputs, outputs, _facts(description))
  except NoOperatorError as error:
    raise no_form(called, error) from error
  except (jax.errors.InconclusiveDimensionOperation, TypeError) as error:
    if batch_size is not None:
      raise
    raise ConfigError(
      f"{called} cannot be exported for any batch size ({str(error).splitlines()[0]}); give "
      "batch_size"
    ) from error
  trial = _trial(batched(shape, (batch_size or 3,)))
  difference = _difference(called, serialized, predict, trial, fixed=batch_size is not None)
  if not difference <= TOLERANCE:
    raise ConfigError(
      f"{called} gives other logits in onnxruntime than in jax: a difference of {difference:.2g} "
      f"of the largest logit, expected at most {TOLERANCE:g}; nothing was written"
    )
  return OnnxModel(serialized, inputs, outputs, difference)


def save_onnx(path: str | Path, serialized: bytes) -> None:
  """Write a model to a file: under another name first, so that no file is ever incomplete.

  Raises:
    DiskError: if it cannot be written.
  """
  target = Path(path)
  partial = target.with_name(target.name + ".partial")
  with writing(target):
    target.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(serialized)
    partial.replace(target)


def session(serialized: bytes | str, *, threads: int = 0) -> Any:
  """Load a model in onnxruntime, on the CPU, without its messages.

  Args:
    serialized: the content of the file, or its path.
    threads: number of threads; 0 leaves it to onnxruntime.

  Raises:
    ConfigError: if onnxruntime cannot run it.
  """
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 4
  options.intra_op_num_threads = threads
  try:
    return onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
  except Exception as error:  # classes of its own, below Exception
    raise ConfigError(f"onnxruntime cannot run the model: {one_line(error)}") from error


def _logits(called: str, output: Any) -> tuple[Array, ...]:
  outputs = output if isinstance(output, tuple) else (output,)
  if not all(isinstance(one, Output) and one.logits is not None for one in outputs):
    raise ConfigError(f"{called} returns no Output with logits: there is no prediction to export")
  return tuple(one.logits.astype(jnp.float32) for one in outputs)


def _named(like: Any) -> dict[str, Any]:
  """Return the arrays of inputs that are no images by names that suit any program."""
  leaves = named_leaves(like)
  return {re.sub(r"\W+", "_", name).strip("_"): leaf for name, leaf in leaves.items()}


def _facts(description: Mapping[str, Any]) -> dict[str, str]:
  """Return the metadata of the model: each entry as JSON."""
  return {name: json.dumps(description[name]) for name in _FACTS if description.get(name)}


def _trial(like: Any) -> list[np.ndarray]:
  """Return inputs for the comparison: noise, and of images also a black and white half."""
  rng = np.random.default_rng(0)
  arrays = []
  for leaf in jax.tree.leaves(like):
    if leaf.dtype == jnp.uint8:
      array = rng.integers(0, 256, leaf.shape, np.uint8)
      array[-1] = 0
      array[-1, : leaf.shape[1] // 2] = 255
    elif jnp.issubdtype(leaf.dtype, jnp.floating):
      array = rng.normal(size=leaf.shape).astype(leaf.dtype)
    else:
      array = rng.integers(0, 2, leaf.shape).astype(leaf.dtype)  # tokens that every model has
    arrays.append(array)
  return arrays


def _difference(
  called: str,
  serialized: bytes,
  predict: Callable[..., Any],
  arrays: Sequence[np.ndarray],
  *,
  fixed: bool,
) -> float:
  """Return the largest difference of logits, for a batch and, if any size will do, one example."""
  with jax.default_device(jax.devices("cpu")[0]):
    wanted = [np.asarray(logits) for logits in jax.jit(predict)(*arrays)]
  for logits in wanted:
    if not np.isfinite(logits).all():
      raise ConfigError(f"{called} gives logits that are not finite: nothing was written")
  run = session(serialized)
  names = [given.name for given in run.get_inputs()]
  worst = 0.0
  for size in [len(arrays[0])] if fixed else [len(arrays[0]), 1]:
    try:
      found = run.run(None, {n: x[:size] for n, x in zip(names, arrays, strict=True)})
    except Exception as error:  # classes of its own, below Exception
      raise ConfigError(f"onnxruntime cannot run {called}: {one_line(error)}") from error
    for got, logits in zip(found, wanted, strict=True):
      scale = max(1.0, float(np.abs(logits).max()))
      far = float(np.abs(got.astype(np.float64) - logits[:size]).max()) / scale
      worst = max(worst, far if np.isfinite(far) else np.inf)
  return worst
