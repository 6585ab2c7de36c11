"""ONNX models with 8-bit weights and activations, by onnxruntime's static quantisation.

The scales of activations are set from calibration images. Several ways to set them are tried, and
the one with the most accurate model on validation images is kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from jaxkd.errors import ConfigError, one_line
from jaxkd.export.onnx import learned_ranges
from jaxkd.export.onnx.files import session
from jaxkd.types import Network

# The fewest calibration images; a scale set from fewer cuts off what other images need.
FEWEST = 32
# Name -> how onnxruntime sets the range of an activation, and its options.
CALIBRATIONS: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
  "minmax": (quantization.CalibrationMethod.MinMax, {}),
  "percentile 99.9": (
    quantization.CalibrationMethod.Percentile,
    {"CalibPercentile": 99.9, "CalibTensorRangeSymmetric": True},
  ),
  "percentile 99.99": (
    quantization.CalibrationMethod.Percentile,
    {"CalibPercentile": 99.99, "CalibTensorRangeSymmetric": True},
  ),
  "entropy": (quantization.CalibrationMethod.Entropy, {"CalibTensorRangeSymmetric": True}),
}


@dataclasses.dataclass(frozen=True)
class QuantizedModel:
  """A quantised model.

  Attributes:
    serialized: the content of its file.
    calibration: the name of the way that set its scales.
    validation: name of each way -> accuracy on the validation images.
  """

  serialized: bytes
  calibration: str
  validation: Mapping[str, float]


def quantized(
  serialized: bytes,
  images: np.ndarray,
  validation: tuple[np.ndarray, np.ndarray],
  *,
  calibrations: Sequence[str] = tuple(CALIBRATIONS),
  student: Network | None = None,
) -> QuantizedModel:
  """Quantise a model of images to int8: weights per output channel, activations per tensor.

  Args:
    serialized: a model of `jaxkd.export.onnx.files.export_onnx` with one output.
    images: (N, H, W, C) uint8 of the training split, at least FEWEST.
    validation: images (M, H, W, C) uint8 and labels (M,) that choose among the ways.
    calibrations: some of CALIBRATIONS.
    student: the network, if it or a part of it is a `jaxkd.models.Quantized`: inputs of layers have
      the ranges that it learned, everything else the range of its smallest and largest value.

  Raises:
    ConfigError: for fewer than FEWEST images, no validation images, or a model that onnxruntime
      cannot quantise.
  """
  check_count("images", len(images))
  if not len(validation[0]):
    raise ConfigError("validation: no images, which choose the calibration")
  found: dict[str, tuple[float, bytes]] = {}
  with tempfile.TemporaryDirectory(prefix="jaxkd-int8-") as folder:
    prepared = Path(folder) / "prepared.onnx"
    source = Path(folder) / "float.onnx"
    source.write_bytes(serialized)
    try:
      with _quiet():
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    except Exception as error:  # classes of its own, below Exception
      raise ConfigError(f"onnxruntime cannot quantise the model: {one_line(error)}") from error
    learned: dict[str, Any] = {}
    if student is not None:
      tensors = learned_ranges.overrides(onnx.load(str(prepared)), student)
      learned, calibrations = {"TensorQuantOverrides": tensors}, ("learned",)
    for name in calibrations:
      target = Path(folder) / "int8.onnx"
      method, options = CALIBRATIONS["minmax" if learned else name]
      try:
        with _quiet():
          quantization.quantize_static(
            str(prepared),
            str(target),
            _Images(images),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            # Unsigned activations overflow in the 16-bit sums of processors without VNNI.
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=method,
            extra_options={**options, **learned},
          )
      except Exception as error:  # classes of its own, below Exception
        raise ConfigError(
          f"onnxruntime cannot quantise the model, calibration {name!r}: {one_line(error)}"
        ) from error
      content = _with_facts(target.read_bytes(), serialized)
      predicted = logits_of(session(content), validation[0]).argmax(-1)
      found[name] = (float((predicted == validation[1]).mean()), content)
  best = max(found, key=lambda name: found[name][0])  # the first of equals
  return QuantizedModel(found[best][1], best, {name: score for name, (score, _) in found.items()})


def _with_facts(quantized: bytes, serialized: bytes) -> bytes:
  """Return a model with the metadata of another, which quantisation leaves out."""
  model, source = (onnx.load_from_string(content) for content in (quantized, serialized))
  helper.set_model_props(model, {fact.key: fact.value for fact in source.metadata_props})
  return bytes(model.SerializeToString())


def check_count(what: str, count: int) -> None:
  """Raise a ConfigError for too few calibration images."""
  if count < FEWEST:
    raise ConfigError(
      f"{what}={count}: too few images to calibrate with, expected at least {FEWEST}"
    )


def logits_of(run: Any, images: np.ndarray, *, batch_size: int = 256) -> np.ndarray:
  """Return the logits (N, classes) of a session for images (N, H, W, C) uint8."""
  parts = range(0, len(images), batch_size)
  return np.concatenate([run.run(None, {"images": images[i : i + batch_size]})[0] for i in parts])


class _Images(quantization.CalibrationDataReader):
  """Calibration images in batches, as onnxruntime reads them."""

  def __init__(self, images: np.ndarray) -> None:
    self._batches: Iterator[np.ndarray] = iter(np.array_split(images, -(-len(images) // FEWEST)))

  def get_next(self) -> dict[str, np.ndarray] | None:
    batch = next(self._batches, None)
    return None if batch is None else {"images": batch}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Leave out what onnxruntime prints and advises while it quantises."""
  logging.disable(logging.WARNING)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.disable(logging.NOTSET)
