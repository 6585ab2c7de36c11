"""ONNX files of bundles, for `jaxkd export --format onnx`, and their int8 models side by side."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd import data, models, report
from jaxkd.commands.export import check_replaceable, origin
from jaxkd.errors import ConfigError
from jaxkd.export import bundles, scores
from jaxkd.export.onnx import files, int8
from jaxkd.models.compose.quantized import RANGES, with_float_inputs
from jaxkd.types import Network

MODEL, EXITS, QUANTIZED, README = "model.onnx", "exits.onnx", "model_int8.onnx", "README.txt"
# Part of the training split that chooses the calibration.
VALIDATION = 0.1
# Batch sizes of the latency, and how often each is measured.
BATCHES, REPEATS = (1, 64), 30


@dataclasses.dataclass(frozen=True)
class Int8:
  """Options of the quantisation: data set, TFDS's directory, number of calibration images."""

  data: str | None
  directory: str | None
  calibration: int


def check(options: Int8) -> None:
  """Raise a ConfigError for options that no data set can meet."""
  int8.check_count("calibration", options.calibration)


def check_output(directory: pathlib.Path) -> None:
  """Raise a ConfigError unless a directory is new, empty, or an older ONNX export."""
  check_replaceable(
    directory,
    lambda names: MODEL in names and names <= {MODEL, EXITS, QUANTIZED, README},
    "an ONNX export",
  )


def write(
  bundle: pathlib.Path,
  directory: pathlib.Path,
  *,
  allow: Sequence[str],
  batch_size: int | None,
  int8: Int8 | None,
) -> str:
  """Export one bundle; returns the text of README.txt."""
  network, description = bundles.load_bundle(bundle, allow=allow)
  student = network if RANGES in network.variables else None
  if student is not None:
    # Activations of int8 are in the quantised model. A rounded value between two levels falls to
    # either side, so that no float model could agree with jax.
    network = network._replace(module=with_float_inputs(network.module))
  found = {MODEL: files.export_onnx(network, description, batch_size=batch_size)}
  if isinstance(network.module, models.ExitEnsemble) and hasattr(
    network.module.network, "run_block"
  ):
    inside = models.exits_inside(network)
    found[EXITS] = files.export_onnx(inside, description, batch_size=batch_size)
  text = described(found, description)
  content = {name: model.serialized for name, model in found.items()}
  if int8 is not None:
    content[QUANTIZED], table = _quantized(bundle, found[MODEL], description, int8, student)
    text += f"\n{table}"
  # All models are complete before the first is written.
  for name, serialized in content.items():
    files.save_onnx(directory / name, serialized)
  for name in {EXITS, QUANTIZED} - set(content):  # of an older export, of other weights
    (directory / name).unlink(missing_ok=True)
  report.write_atomically(directory / README, text)
  return text


def described(found: Mapping[str, files.OnnxModel], description: Mapping[str, Any]) -> str:
  """Return the text of README.txt."""
  lines = [origin(description), ""]
  for name, model in found.items():
    lines.append(f"{name}: the whole prediction, weights inside, {len(model.serialized):,} bytes.")
    for given, like in model.inputs.items():
      sizes = ", ".join(map(str, like.shape))
      pixels = ", 0..255 as the data set stores them" if like.dtype == np.uint8 else ""
      lines.append(f"  in:   {given}, {like.dtype} ({sizes}){pixels}")
    lines.append(f"  out:  {', '.join(model.outputs)}, float32, one logit per class")
    lines.append(
      f"  onnxruntime and jax differ by {model.difference:.1e} of the largest logit at most"
    )
  (first, *_) = next(iter(found.values())).inputs
  lines += [
    "",
    "  import onnxruntime",
    f'  session = onnxruntime.InferenceSession("{MODEL}")',
    f'  logits = session.run(None, {{"{first}": {first}}})[0]',
    "",
  ]
  return "\n".join(lines)


def _quantized(
  bundle: pathlib.Path,
  model: files.OnnxModel,
  description: Mapping[str, Any],
  options: Int8,
  student: Network | None,
) -> tuple[bytes, str]:
  """Quantise a model; return the quantised one, and a table of both on the test split."""
  if "inputs" in description or len(model.outputs) > 1:
    raise ConfigError(f"bundle {bundle}: --int8 takes networks of images with one output")
  if isinstance(model.inputs["images"].shape[0], int):
    raise ConfigError("batch_size: --int8 takes models of any number of images; leave it out")
  dataset = _data(bundle, description, options)
  shape = tuple(description["image_shape"])
  train, validation, test = (
    _images(part, dataset.image_shape, shape)
    for part in (dataset.train, dataset.validation, dataset.test)
  )
  if len(train[0]) < options.calibration:
    raise ConfigError(
      f"calibration={options.calibration}: data set {dataset.name!r} has {len(train[0])} images "
      "for training beside those for validation"
    )
  chosen = np.random.default_rng(0).permutation(len(train[0]))[: options.calibration]
  result = int8.quantized(model.serialized, train[0][chosen], validation, student=student)
  sessions = {"float32": model.serialized, "int8": result.serialized}
  return result.serialized, _table(sessions, test, result, BATCHES)


def _data(bundle: pathlib.Path, description: Mapping[str, Any], options: Int8) -> data.Dataset:
  """Load the data set with images held out from its training split."""
  load = functools.partial(_with_validation, data.load)
  try:
    dataset = scores.data_of(description, options.data, directory=options.directory, load=load)
  except ConfigError as error:
    raise ConfigError(f"bundle {bundle}: {error}") from error
  classes = description.get("num_classes", dataset.num_classes)
  if dataset.image_shape is None or classes != dataset.num_classes:
    raise ConfigError(
      f"bundle {bundle}: a network of {classes} classes of images, and data set {dataset.name!r} "
      f"has {dataset.num_classes} classes of {dataset.image_shape or 'other inputs'}"
    )
  return dataset


def _with_validation(load: Any, *arguments: Any, **options: Any) -> Any:
  return load(*arguments, **{**options, "validation": VALIDATION})


def _images(
  examples: Any, stored: Sequence[int] | None, wanted: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
  """Return images and labels of a split; of larger images the centre, as in evaluation."""
  labels = np.asarray(examples.labels)
  images = np.asarray(examples.fetch(np.arange(len(examples))))
  rows, columns = images.shape[1:3]
  height, width, channels = wanted
  if images.shape[3] != channels or rows < height or columns < width:
    raise ConfigError(
      f"the data set has images of {stored}, the network takes {tuple(wanted)}: expected that size "
      "or a larger one"
    )
  top, left = (rows - height) // 2, (columns - width) // 2
  images = images[:, top : top + height, left : left + width]
  return images[labels >= 0], labels[labels >= 0]


def _table(
  models: Mapping[str, bytes],
  test: tuple[np.ndarray, np.ndarray],
  result: int8.QuantizedModel,
  batches: Sequence[int],
) -> str:
  """Return accuracy, agreement, size and latency of both models as a Markdown table."""
  images, labels = test
  runs = {name: files.session(content, threads=1) for name, content in models.items()}
  predicted = {name: int8.logits_of(run, images).argmax(-1) for name, run in runs.items()}
  times = _latencies(runs, images, batches)
  scored = ", ".join(f"{name} {score:.2%}" for name, score in result.validation.items())
  lines = [
    f"{QUANTIZED}: calibration {result.calibration!r}, the most accurate on validation ({scored}).",
    "",
    "| model | test accuracy | agreement with float32 | bytes | "
    + " | ".join(f"ms for {size} (median, quartiles)" for size in batches)
    + " |",
    "|---|---|---|---|" + "---|" * len(batches),
  ]
  for name, content in models.items():
    accuracy = (predicted[name] == labels).mean()
    agreement = (predicted[name] == predicted["float32"]).mean()
    cells = [name, f"{accuracy:.2%}", f"{agreement:.2%}", f"{len(content):,}"]
    for size in batches:
      low, middle, high = statistics.quantiles(times[name, size], n=4)
      cells.append(f"{middle:.3f} ({low:.3f} to {high:.3f})")
    lines.append(f"| {' | '.join(cells)} |")
  lines.append(f"\n{len(labels)} test images; latency of onnxruntime on this CPU with one thread.")
  return "\n".join(lines) + "\n"


def _latencies(
  runs: Mapping[str, Any], images: np.ndarray, batches: Sequence[int]
) -> dict[tuple[str, int], list[float]]:
  """Return milliseconds by model and batch size; the models take turns."""
  times: dict[tuple[str, int], list[float]] = {}
  for size in batches:
    batch = np.resize(images, (size, *images.shape[1:]))
    for repeat in range(REPEATS + 3):
      for name, run in runs.items():
        start = time.perf_counter()
        run.run(None, {"images": batch})
        if repeat >= 3:  # the first calls allocate
          times.setdefault((name, size), []).append((time.perf_counter() - start) * 1e3)
  return times
