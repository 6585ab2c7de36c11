"""Splits of data sets: labels in memory, images on request."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from jaxkd.errors import ConfigError, one_line

# Label of an example whose class is hidden; no class has this number.
UNLABELLED = -1

# Number of records read and decoded at a time; bounds the memory needed beyond the split's own.
_CHUNK = 4096


class Examples(Protocol):
  """N inputs and labels. A position counts within these N, an index within the original split.

  Examples may also have `mask`, (N, ...) with the first axes of `labels`: 0 marks padding; and
  `multi_label`: True for labels (N, C) float32 of every class, as in `MultiLabelExamples`.
  """

  @property
  def labels(self) -> np.ndarray:
    """Class numbers, int32: (N,), or (N, ...) with a label of every position.

    UNLABELLED (-1) where the class is hidden.
    """
    ...

  @property
  def indices(self) -> np.ndarray:
    """Positions in the original split (N,), int32; a subset keeps them."""
    ...

  def __len__(self) -> int: ...

  def fetch(self, positions: np.ndarray) -> Any:
    """Return the inputs at these positions: images (n, H, W, C) uint8, or a pytree of arrays."""
    ...

  def take(self, positions: np.ndarray) -> Examples:
    """Return the subset at these positions, in their order."""
    ...

  def hide_labels(self, positions: np.ndarray) -> Examples:
    """Return the same examples with the labels at these positions hidden."""
    ...


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayExamples:
  """Examples in memory.

  Attributes:
    images: (N, H, W, C) uint8.
    labels: (N,) int32.
    indices: (N,) int32.

  Raises:
    ConfigError: naming the argument whose type or shape differs.

  >>> images = np.zeros((3, 8, 8, 1), np.uint8)
  >>> examples = ArrayExamples(images, np.int32([0, 1, 0]), np.arange(3, dtype=np.int32))
  >>> examples.take(np.array([2])).indices
  array([2], dtype=int32)
  """

  images: np.ndarray
  labels: np.ndarray
  indices: np.ndarray

  def __post_init__(self) -> None:
    if self.images.dtype != np.uint8 or self.images.ndim != 4:
      raise ConfigError(f"images: expected uint8 (N, H, W, C), got {_describe(self.images)}")
    _check_names(self.labels, self.indices)
    if len(self.images) != len(self.labels):
      raise ConfigError(f"images: {len(self.images)} of them for {len(self.labels)} labels")

  def __len__(self) -> int:
    return len(self.labels)

  def fetch(self, positions: np.ndarray) -> np.ndarray:
    """Return the images at these positions, (n, H, W, C) uint8."""
    return self.images[positions]

  def take(self, positions: np.ndarray) -> ArrayExamples:
    """Return the subset at these positions, in their order."""
    return ArrayExamples(self.images[positions], self.labels[positions], self.indices[positions])

  def hide_labels(self, positions: np.ndarray) -> ArrayExamples:
    """Return the same examples with the labels at these positions hidden."""
    return dataclasses.replace(self, labels=_hidden(self.labels, positions))


@dataclasses.dataclass(frozen=True, eq=False)
class RecordExamples:
  """Examples read from a tfds data source on access, for splits too large for memory.

  Attributes:
    source: `source.__getitems__(list of int)` returns records with an "image".
    labels: (N,) int32.
    indices: (N,) int32, position of each example in `source`.
  """

  source: Any
  labels: np.ndarray
  indices: np.ndarray

  def __post_init__(self) -> None:
    _check_names(self.labels, self.indices)

  def __len__(self) -> int:
    return len(self.labels)

  def fetch(self, positions: np.ndarray) -> np.ndarray:
    """Return the images at these positions, (n, H, W, C) uint8."""
    wanted = self.indices[positions].tolist()
    try:
      return np.stack([_pixels(record) for record in self.source.__getitems__(wanted)])
    except (OSError, RuntimeError, ValueError) as error:  # raised by readers: damaged records
      raise self._unreadable(wanted, error) from error

  def _unreadable(self, wanted: Sequence[int], error: Exception) -> ConfigError:
    """Return an error that names the first unreadable record, found by reading one at a time."""
    for index in wanted:
      try:
        _pixels(self.source.__getitems__([index])[0])
      except (OSError, RuntimeError, ValueError) as own:
        return ConfigError(f"record {index} of the split cannot be read: {one_line(own)}")
    return ConfigError(f"records {wanted[:3]}, ... do not fit together: {one_line(error)}")

  def take(self, positions: np.ndarray) -> RecordExamples:
    """Return the subset at these positions, in their order."""
    return RecordExamples(self.source, self.labels[positions], self.indices[positions])

  def hide_labels(self, positions: np.ndarray) -> RecordExamples:
    """Return the same examples with the labels at these positions hidden."""
    return dataclasses.replace(self, labels=_hidden(self.labels, positions))


def read_examples(
  source: Any,
  label_source: Any,
  *,
  num_classes: int,
  image_shape: Sequence[int],
  memory_limit: int,
) -> ArrayExamples | RecordExamples:
  """Read examples of a tfds data source, into memory if they take at most `memory_limit` bytes.

  Args:
    source: random access to records {"image", "label"}.
    label_source: the same records; only "label" is used. A source that leaves images encoded lets
      the labels of a large split be read without decoding its images.
    num_classes: labels must be in 0 .. num_classes - 1.
    image_shape: (H, W, C) of every image.
    memory_limit: bytes.

  Raises:
    ConfigError: if a label is out of range, or an image of another type or shape.
  """
  count = len(source)
  labels = np.empty(count, np.int32)
  indices = np.arange(count, dtype=np.int32)
  if count * int(np.prod(image_shape)) > memory_limit:
    for start, records in _chunks(label_source):
      labels[start : start + len(records)] = [record["label"] for record in records]
    check_labels(labels, num_classes)
    return RecordExamples(source, labels, indices)

  images = np.empty((count, *image_shape), np.uint8)
  for start, records in _chunks(source):
    for index, record in enumerate(records, start):
      pixels = _pixels(record)
      if pixels.shape != tuple(image_shape):
        raise ConfigError(f"image {index}: shape {pixels.shape}, expected {tuple(image_shape)}")
      images[index], labels[index] = pixels, record["label"]
  check_labels(labels, num_classes)
  return ArrayExamples(images, labels, indices)


def check_labels(labels: np.ndarray, num_classes: int, counted: np.ndarray | bool = True) -> None:
  """Raise a ConfigError that names the first label outside 0 .. num_classes - 1, if any.

  Args:
    labels: (N, ...).
    num_classes: number of classes.
    counted: of the shape of `labels`; False for labels that may be anything.
  """
  outside = np.argwhere(((labels < 0) | (labels >= num_classes)) & counted)
  if outside.size:
    first = tuple(int(place) for place in outside[0])
    where = f"example {first[0]}" + (f" at position {first[1:]}" if first[1:] else "")
    raise ConfigError(f"label of {where} is {labels[first]}, not in 0..{num_classes - 1}")


def has_label(examples: Any) -> np.ndarray:
  """Return a flag for each label of examples: True unless it is hidden or padding.

  Args:
    examples: `Examples`, with `labels` (N, ...).
  """
  labels = np.asarray(examples.labels)
  found: np.ndarray = labels != UNLABELLED
  mask = getattr(examples, "mask", None)
  if mask is not None:
    counted = np.asarray(mask) != 0
    found &= counted.reshape(*counted.shape, *(1,) * (labels.ndim - counted.ndim))
  return found


def without_label(examples: Any) -> np.ndarray:
  """Return a flag for each example (N,): True if every label of it is hidden."""
  labels = np.asarray(examples.labels)
  found: np.ndarray = (labels == UNLABELLED).reshape(len(labels), -1).all(axis=1)
  return found


def counted_labels(examples: Any) -> np.ndarray:
  """Return all labels of examples that are neither hidden nor padding, as one axis."""
  return np.asarray(examples.labels)[has_label(examples)]


def _chunks(source: Any) -> Iterator[tuple[int, Sequence[Any]]]:
  for start in range(0, len(source), _CHUNK):
    yield start, source.__getitems__(list(range(start, min(start + _CHUNK, len(source)))))


def _hidden(labels: np.ndarray, positions: np.ndarray) -> np.ndarray:
  labels = labels.copy()
  labels[positions] = UNLABELLED
  return labels


def _pixels(record: Any) -> np.ndarray:
  image = record["image"]
  if image.dtype != np.uint8:
    raise ConfigError(f"images must be uint8, got {_describe(image)}")
  return image


def _check_names(labels: np.ndarray, indices: np.ndarray) -> None:
  for name, array in (("labels", labels), ("indices", indices)):
    if array.dtype != np.int32 or array.ndim != 1:
      raise ConfigError(f"{name}: expected int32 (N,), got {_describe(array)}")
  if len(labels) != len(indices):
    raise ConfigError(f"labels {labels.shape} and indices {indices.shape} differ in length")


def _describe(array: np.ndarray) -> str:
  words = f"{array.dtype} {array.shape}"
  if array.dtype.kind == "f" and (wrong := int(np.sum(~np.isfinite(array)))):
    words += f", of which {wrong} are not finite"
  return words
