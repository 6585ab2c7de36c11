"""Data that a program gives to a run: a data set, or arrays of inputs and labels."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import jax
import numpy as np

from jaxkd.data import ArrayExamples, Dataset, TreeExamples, split_off, validate_dataset
from jaxkd.errors import ConfigError

# Number of images of a split whose pixels are part of a data set's digest.
_SAMPLE = 256


def data_set(given: Any, *, validation: float, test: float, seed: int) -> Dataset:
  """Return a data set whose name has a digest of its content.

  Args:
    given: a Dataset, or (inputs, labels): images (N, H, W, C) or (N, H, W), uint8 or floats in
      0..1, with one class number each; or a pytree of arrays with leading axis N, which is used as
      it is, with labels (N, ...).
    validation: fraction of the training examples of arrays that is held out; 0 for none.
    test: fraction of all examples of arrays that is held out. The choice does not depend on `seed`.
    seed: seed of the choice of validation examples.

  Raises:
    ConfigError: naming the array and the row, or as `validate_dataset`.
  """
  if isinstance(given, Dataset):
    data = validate_dataset(given)
  elif isinstance(given, tuple | list) and len(given) == 2:
    data = validate_dataset(_of_arrays(given[0], given[1], validation, test, seed))
  else:
    raise ConfigError(
      f"data: expected a jaxkd.data.Dataset, (inputs, labels) or the name of a data set, got a "
      f"{type(given).__name__}"
    )
  return dataclasses.replace(data, name=f"{data.name}#{_digest(data)}")


def pixels_of(images: Any, where: str) -> np.ndarray:
  """Return images as uint8 (N, H, W, C), as a run stores them; floats in 0..1 are rounded.

  Raises:
    ConfigError: for another shape or type, and values that are no pixels.
  """
  try:
    pixels = np.asarray(images)
  except ValueError as error:  # rows of several shapes
    raise ConfigError(f"{where}: rows differ in shape: {error}") from error
  pixels = pixels[..., None] if pixels.ndim == 3 else pixels
  if pixels.ndim != 4:
    raise ConfigError(f"{where}: expected (N, H, W, C) or (N, H, W), got {pixels.shape}")
  if pixels.dtype == np.uint8:
    return pixels
  if pixels.dtype.kind != "f" or not pixels.size or not (pixels.min() >= 0 and pixels.max() <= 1):
    span = f" in {pixels.min():g}..{pixels.max():g}" if pixels.size else ""
    raise ConfigError(f"{where}: expected uint8 or floats in 0..1, got {pixels.dtype}{span}")
  return np.round(pixels * pixels.dtype.type(255)).astype(np.uint8)


def _of_arrays(inputs: Any, labels: Any, validation: float, test: float, seed: int) -> Dataset:
  """Return the data set of arrays, with examples held out."""
  numbers = np.asarray(labels)
  if numbers.ndim == 2 and numbers.shape[1] == 1:
    numbers = numbers[:, 0]
  if numbers.dtype.kind not in "iu" or not numbers.ndim:
    raise ConfigError(
      f"labels: expected integers (N,) or with more axes, got {numbers.dtype} {numbers.shape}"
    )
  if not numbers.size:
    raise ConfigError("labels: there are none")
  wrong = np.flatnonzero((numbers < 0).reshape(len(numbers), -1).any(1))
  if wrong.size:
    row = int(wrong[0])
    raise ConfigError(f"labels: row {row} is {numbers[row]}, expected class numbers >= 0")
  images = _are_images(inputs, numbers)
  indices = np.arange(len(numbers), dtype=np.int32)
  if images:
    pixels = pixels_of(inputs, "images")
    if len(pixels) != len(numbers):
      raise ConfigError(f"images: {len(pixels)} of them for {len(numbers)} labels")
    examples: Any = ArrayExamples(pixels, numbers.astype(np.int32), indices)
  else:
    examples = TreeExamples(inputs, numbers)
  train, tested = split_off(examples, test, seed=0)
  mean, std = _statistics(train.fetch(np.arange(len(train)))) if images else ((), ())
  validated = None
  if validation:
    train, validated = split_off(train, validation, seed=seed)
  shape = pixels.shape[1:] if images else None
  return Dataset("arrays", train, validated, tested, int(numbers.max()) + 1, shape, mean, std)


def _are_images(inputs: Any, labels: np.ndarray) -> bool:
  """Check whether inputs are one array of images with one label each."""
  return hasattr(inputs, "shape") and len(inputs.shape) in (3, 4) and labels.ndim == 1


def _statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Return mean and deviation of each channel, of pixels scaled to 0..1."""
  channels = images.shape[-1]
  counts = [np.bincount(images[..., c].ravel(), minlength=256) for c in range(channels)]
  levels = np.arange(256) / 255
  mean = [float((count * levels).sum() / count.sum()) for count in counts]
  spread = [
    float(np.sqrt((count * (levels - centre) ** 2).sum() / count.sum()))
    for count, centre in zip(counts, mean, strict=True)
  ]
  return tuple(mean), tuple(spread)


def _digest(data: Dataset) -> str:
  """Return a digest of the labels, and of the inputs of a sample of each split."""
  digest = hashlib.sha256()
  for examples in (data.train, data.validation, data.test):
    if examples is None:
      continue
    digest.update(np.ascontiguousarray(examples.labels).tobytes())
    rows = np.unique(np.linspace(0, len(examples) - 1, _SAMPLE).astype(int))
    for leaf in jax.tree.leaves(examples.fetch(rows)):
      digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()[:8]
