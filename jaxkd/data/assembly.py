"""From splits as they come to a `Dataset`: held-out parts, statistics, checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd.data import subsets
from jaxkd.data.dataset import Dataset, divided, pixel_statistics
from jaxkd.data.examples import UNLABELLED, ArrayExamples, Examples, RecordExamples
from jaxkd.data.validation import validate_dataset
from jaxkd.errors import ConfigError

# Bytes of a split's images above which they stay on disk and are decoded on access.
MEMORY_LIMIT = 2 * 2**30
# Fraction of the examples held out for tests, for data without a test split.
TEST_FRACTION = 0.2
# Seed of that choice: the same test examples in runs of every seed, which may share a teacher.
_TEST_SEED = 0
# Number of records decoded at a time.
_CHUNK = 512


@dataclasses.dataclass(frozen=True)
class Parts:
  """The parts into which data without splits of their own are divided.

  Attributes:
    validation: fraction or count of the training examples, for data without a validation split; 0
      for none.
    test: fraction or count of all examples, for data without a test split; None is 0.2. The choice
      does not depend on the seed.
    seed: seed of the choice of validation examples.

  Raises:
    ConfigError: naming the part that is out of range.
  """

  validation: float | int = 0.1
  test: float | int | None = None
  seed: int = 0

  def __post_init__(self) -> None:
    check_part("validation", self.validation)
    if self.test is not None:
      check_part("test", self.test)
      if self.test == 0:
        raise ConfigError("test=0: expected a fraction or a count > 0, as results are of the test")
    subsets.check_seed(self.seed)


def check_part(name: str, size: Any) -> None:
  """Raise a ConfigError if a size is no fraction in 0..1 and no count."""
  is_number = isinstance(size, (int, float, np.integer)) and not isinstance(size, bool)
  if not is_number or not (0 <= size < 1 or (size >= 1 and not isinstance(size, float))):
    raise ConfigError(
      f"{name}={size!r}: expected a fraction (0 <= float < 1) or a count (int >= 0)"
    )


def check_side(side: Any) -> None:
  """Raise a ConfigError if an `image_size` is no integer in 0..4096."""
  if isinstance(side, bool) or not isinstance(side, int) or not 0 <= side <= 4096:
    raise ConfigError(f"image_size={side!r}: expected an integer >= 0 and <= 4096")


def held(
  source: Any, labels: np.ndarray, image_shape: Sequence[int], memory_limit: int
) -> ArrayExamples | RecordExamples:
  """Return the examples of a split, with their images in memory if they take few bytes.

  Args:
    source: `source.__getitems__(list of int)` returns records with an "image" (H, W, C) uint8.
    labels: (N,) int32.
    image_shape: (H, W, C).
    memory_limit: bytes.
  """
  indices = np.arange(len(labels), dtype=np.int32)
  if len(labels) * int(np.prod(image_shape)) > memory_limit:
    return RecordExamples(source, labels, indices)
  images = np.empty((len(labels), *image_shape), np.uint8)
  for start in range(0, len(labels), _CHUNK):
    keys = list(range(start, min(start + _CHUNK, len(labels))))
    for key, record in zip(keys, source.__getitems__(keys), strict=True):
      images[key] = record["image"]
  return ArrayExamples(images, labels, indices)


def assemble(
  name: str,
  splits: Mapping[str, Examples],
  parts: Parts,
  *,
  classes: int | Sequence[str],
) -> Dataset:
  """Return the data set of these splits, with held-out parts in place of missing ones.

  Args:
    name: name of the data set.
    splits: "train", and "validation" and "test" where the data have them.
    parts: sizes of the parts that are held out.
    classes: number of classes, or their names.

  Raises:
    ConfigError: naming the part that is empty, the class or the split.
  """
  names = () if isinstance(classes, int) else tuple(classes)
  num_classes = classes if isinstance(classes, int) else len(names)
  train = splits["train"]
  _check_several(name, train.labels, num_classes)
  if "test" not in splits:
    train, test = _test_part(name, train, parts)
  elif parts.test is not None:
    raise ConfigError(f"test={parts.test}: expected none, as {name} has a test split of its own")
  else:
    test = splits["test"]
  mean, std = pixel_statistics(train)
  constant = [channel for channel, deviation in enumerate(std) if deviation == 0]
  if constant:
    raise ConfigError(
      f"{name}: channel {constant[0]} has one value in all training images: nothing can be learned"
    )
  if "validation" in splits:
    validation: Examples | None = splits["validation"]
  else:
    train, validation = _named(name, train, parts)
  height, width, channels = train.fetch(np.array([0])).shape[1:]
  shape = (height, width, channels)
  return validate_dataset(
    Dataset(name, train, validation, test, num_classes, shape, mean, std, names)
  )


def _named(name: str, train: Examples, parts: Parts) -> tuple[Examples, Examples | None]:
  try:
    return divided(train, parts.validation, None, parts.seed)
  except ConfigError as error:
    raise ConfigError(f"{name}: {error}") from error


def _test_part(name: str, train: Examples, parts: Parts) -> tuple[Examples, Examples]:
  size = TEST_FRACTION if parts.test is None else parts.test
  try:
    return subsets.split_off(train, size, seed=_TEST_SEED)
  except ConfigError as error:
    reason = str(error).partition(": ")[2]
    raise ConfigError(f"{name}: test={size}: {reason}") from error


def _check_several(name: str, labels: np.ndarray, num_classes: int) -> None:
  found = np.unique(labels[labels != UNLABELLED])
  if len(found) < 2:
    only = f"class {found[0]}" if len(found) else "no class"
    raise ConfigError(
      f"{name}: the training labels name {only} alone: expected at least 2 of {num_classes} classes"
    )
