"""Data sets by name, with their splits."""

from __future__ import annotations

import dataclasses
import os

import numpy as np

from jaxkd.data import prepare, subsets
from jaxkd.data.examples import Examples, read_examples
from jaxkd.errors import ConfigError, unknown_name


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """A data set in its parts.

  Attributes:
    name: as asked for.
    train: to learn from.
    validation: held out from the training split to choose by, or None.
    test: the original test split, to report on and never to choose by.
    num_classes: labels are 0 .. num_classes - 1.
    image_shape: (H, W, C).
    mean: of each channel over the whole training split, of pixel values scaled to 0..1.
    std: likewise.
  """

  name: str
  train: Examples
  validation: Examples | None
  test: Examples
  num_classes: int
  image_shape: tuple[int, int, int]
  mean: tuple[float, ...]
  std: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class _Facts:
  num_classes: int
  image_shape: tuple[int, int, int]
  mean: tuple[float, ...] = ()  # none: computed from the training split
  std: tuple[float, ...] = ()


_FACTS = {
  "digits": _Facts(10, (8, 8, 1)),
  # Over the pixels of the training split, as torchvision's users have them.
  "mnist": _Facts(10, (28, 28, 1), (0.1307,), (0.3081,)),
  "fashion_mnist": _Facts(10, (28, 28, 1), (0.2860,), (0.3530,)),
  "cifar10": _Facts(10, (32, 32, 3), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
  # RepDistiller's.
  "cifar100": _Facts(100, (32, 32, 3), (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}

DATASETS = tuple(sorted(_FACTS))


def load(
  name: str,
  *,
  directory: str | os.PathLike[str] | None = None,
  validation: float | int = 0.1,
  per_class: int | None = None,
  seed: int = 0,
  memory_limit: int = 2 * 2**30,
) -> Dataset:
  """A data set by name, prepared on first use.

  The validation part is taken from the training split, stratified and seeded; `per_class` then
  leaves n examples of each class in the rest. The test split is returned as it is. Indices name
  places in the original split, so they are the same for every choice of these options; they may
  differ between the stock TFDS copy of a data set, which is shuffled, and this project's.

  Args:
    name: one of `DATASETS`.
    directory: TFDS's data directory; default TFDS_DATA_DIR, or else TFDS's own default.
    validation: a fraction or a count of the training split; 0 for none.
    per_class: training examples of each class; default all.
    seed: of both choices.
    memory_limit: a split of more bytes is left on the disk and read as needed.

  Raises:
    ConfigError: naming the option that is out of range, or the unknown name and those known.
    DataUnavailable: saying how to get the data.
  """
  if name not in _FACTS:
    raise unknown_name("data set", name, _FACTS)
  if isinstance(validation, bool) or not isinstance(validation, (int, float)) or validation < 0:
    raise ConfigError(f"validation: expected a fraction or a count >= 0, got {validation!r}")
  facts = _FACTS[name]
  train, test = _splits(name, facts, _tfds_directory(directory), memory_limit)
  mean, std = (facts.mean, facts.std) if facts.mean else _statistics(train)

  held_out = None
  if validation:
    train, held_out = subsets.split_off(train, validation, seed=seed)
  if per_class is not None:
    train = subsets.per_class(train, per_class, seed=seed)
  return Dataset(name, train, held_out, test, facts.num_classes, facts.image_shape, mean, std)


def _splits(
  name: str, facts: _Facts, directory: str | None, memory_limit: int
) -> tuple[Examples, Examples]:
  import tensorflow_datasets as tfds

  if name == "digits":
    builder = prepare.prepared_digits(directory)
  else:
    builder = prepare.prepared_files(name, directory)
  encoded = {"image": tfds.decode.SkipDecoding()}

  def read(split: str) -> Examples:
    return read_examples(
      builder.as_data_source(split),
      builder.as_data_source(split, decoders=encoded),
      num_classes=facts.num_classes,
      image_shape=facts.image_shape,
      memory_limit=memory_limit,
    )

  try:
    return read("train"), read("test")
  except (OSError, RuntimeError) as error:  # array_record's own for truncated and missing files
    raise prepare.DataUnavailable(
      f"{name}: the copy in {builder.data_dir} cannot be read ({error}); remove that folder to "
      "have it prepared anew"
    ) from error


def _tfds_directory(directory: str | os.PathLike[str] | None) -> str | None:
  # tfds itself reads the variable once, when it is imported.
  chosen = directory or os.environ.get("TFDS_DATA_DIR")
  return os.path.abspath(os.path.expanduser(chosen)) if chosen else None


def _statistics(train: Examples) -> tuple[tuple[float, ...], tuple[float, ...]]:
  # Of integers, so that the sums are exact.
  channels = train.fetch(np.array([0])).shape[-1]
  count, total, squares = 0, np.zeros(channels, np.int64), np.zeros(channels, np.int64)
  for positions in np.array_split(np.arange(len(train)), len(train) // 4096 + 1):
    pixels = train.fetch(positions).astype(np.int64)
    count += pixels[..., 0].size
    total += pixels.sum((0, 1, 2))
    squares += (pixels**2).sum((0, 1, 2))
  mean = total / count
  std = np.sqrt(squares / count - mean**2)
  return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
