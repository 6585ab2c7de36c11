"""Data sets by name, with their splits, and checks that they are sound."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxkd.data import prepare, subsets
from jaxkd.data.examples import UNLABELLED, Examples, RecordExamples, check_labels, read_examples
from jaxkd.data.imagenet import ImageNetLabels, ImageNetRecords
from jaxkd.errors import ConfigError, needed_by, one_line, unknown_name

if TYPE_CHECKING:
  import tensorflow_datasets as tfds


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
  examples: tuple[int, int]  # of the training and the test split
  mean: tuple[float, ...] = ()  # none: computed from the training split
  std: tuple[float, ...] = ()


_FACTS = {
  "digits": _Facts(10, (8, 8, 1), (1437, 360)),
  # Over the pixels of the training split, as torchvision's users have them.
  "mnist": _Facts(10, (28, 28, 1), (60_000, 10_000), (0.1307,), (0.3081,)),
  "fashion_mnist": _Facts(10, (28, 28, 1), (60_000, 10_000), (0.2860,), (0.3530,)),
  "cifar10": _Facts(
    10, (32, 32, 3), (50_000, 10_000), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
  ),
  # RepDistiller's.
  "cifar100": _Facts(
    100, (32, 32, 3), (50_000, 10_000), (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
  ),
  # ILSVRC 2012, its validation split as the test; torchvision's mean and deviation.
  "imagenet": _Facts(
    1000, (256, 256, 3), (1_281_167, 50_000), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  ),
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
  facts = _facts(name, validation)
  train, test = _splits(name, facts, _tfds_directory(directory), memory_limit)
  mean, std = (facts.mean, facts.std) if facts.mean else _statistics(train)
  parts = _parted(train, validation, per_class, seed)
  return Dataset(name, *parts, test, facts.num_classes, facts.image_shape, mean, std)


def fake_dataset(
  name: str,
  *,
  directory: str | os.PathLike[str] | None = None,
  validation: float | int = 0.1,
  per_class: int | None = None,
  seed: int = 0,
) -> Dataset:
  """Noise with the shapes, classes and sizes of a named data set, which need not be here.

  Images are random bytes, labels go round, normalisation is the data set's own where it is known.
  For rehearsals: nothing can be learnt from it.

  Args:
    name: one of `DATASETS`.
    directory: not used; so that it can stand in for `load`.
    validation: as for `load`.
    per_class: as for `load`.
    seed: of the choices; the noise is always the same.

  Raises:
    ConfigError: as `load`.

  >>> data = fake_dataset("imagenet", validation=0.0)
  >>> len(data.train), data.train.fetch(np.array([5])).shape
  (1281167, (1, 256, 256, 3))
  """
  del directory
  facts = _facts(name, validation)
  noise = _Noise(facts.image_shape)

  def split(count: int) -> RecordExamples:
    places = np.arange(count, dtype=np.int32)
    return RecordExamples(noise, places % np.int32(facts.num_classes), places)

  train, test = (split(count) for count in facts.examples)
  channels = facts.image_shape[-1]
  mean, std = facts.mean or (0.5,) * channels, facts.std or (0.25,) * channels
  parts = _parted(train, validation, per_class, seed)
  return Dataset(name, *parts, test, facts.num_classes, facts.image_shape, mean, std)


@dataclasses.dataclass(frozen=True)
class _Noise:
  image_shape: tuple[int, int, int]

  def __getitems__(self, keys: Sequence[int]) -> list[dict[str, Any]]:
    def draw(key: int) -> np.ndarray:
      return np.random.default_rng(key).integers(0, 256, self.image_shape, dtype=np.uint8)

    return [{"image": draw(key)} for key in keys]


def _facts(name: str, validation: float | int) -> _Facts:
  if name not in _FACTS:
    raise unknown_name("data set", name, _FACTS)
  if isinstance(validation, bool) or not isinstance(validation, (int, float)) or validation < 0:
    raise ConfigError(f"validation: expected a fraction or a count >= 0, got {validation!r}")
  return _FACTS[name]


def _parted(
  train: Examples, validation: float | int, per_class: int | None, seed: int
) -> tuple[Examples, Examples | None]:
  """What is left to train on, and what is held out."""
  held_out = None
  if validation:
    try:
      train, held_out = subsets.split_off(train, validation, seed=seed)
    except ConfigError as error:
      reason = str(error).partition(": ")[2]
      raise ConfigError(f"validation={validation!r}: {reason}") from error
  if per_class is not None:
    train = subsets.per_class(train, per_class, seed=seed)
  return train, held_out


def _splits(
  name: str, facts: _Facts, directory: str | None, memory_limit: int
) -> tuple[Examples, Examples]:
  with needed_by("jaxkd.data.load"):
    import tensorflow_datasets as tfds

  try:
    builder = _builder(name, directory)
  except ConfigError:
    raise
  except Exception as error:  # of many kinds, for a damaged description of what is there
    where = directory or "TFDS's directory"
    raise prepare.DataUnavailable(
      f"{name}: the copy in {where} cannot be read ({one_line(error)}); remove its folder "
      "to have it prepared anew"
    ) from error
  encoded = {"image": tfds.decode.SkipDecoding()}

  def read(split: str) -> Examples:
    labelled: Any = builder.as_data_source(split, decoders=encoded)
    if name == "imagenet":
      images: Any = ImageNetRecords(labelled, facts.image_shape[0])
      labelled = ImageNetLabels(labelled, Path(builder.data_dir, f"jaxkd_labels_{split}.npy"))
    else:
      images = builder.as_data_source(split)
    return read_examples(
      images,
      labelled,
      num_classes=facts.num_classes,
      image_shape=facts.image_shape,
      memory_limit=memory_limit,
    )

  try:
    return read("train"), read("validation" if name == "imagenet" else "test")
  except (OSError, RuntimeError) as error:  # array_record's own for truncated and missing files
    raise prepare.DataUnavailable(
      f"{name}: the copy in {builder.data_dir} cannot be read ({one_line(error)}); remove "
      "that folder to have it prepared anew"
    ) from error


def _builder(name: str, directory: str | None) -> tfds.core.DatasetBuilder:
  if name == "digits":
    return prepare.prepared_digits(directory)
  if name == "imagenet":
    return prepare.prepared_imagenet(directory)
  return prepare.prepared_files(name, directory)


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


def validate_dataset(data: Dataset) -> Dataset:
  """The data set, if its parts fit what it says of itself.

  Raises:
    ConfigError: naming the data set and the part, for a part without examples, training examples
      that all have no label, a label that is no class, images of another type or shape, or a
      normalisation that is not finite.
  """
  channels = data.image_shape[-1]
  for name, values, least in (("mean", data.mean, -math.inf), ("std", data.std, 0.0)):
    if len(values) != channels or not all(math.isfinite(v) and v > least for v in values):
      wanted = "finite numbers" if name == "mean" else "finite numbers > 0"
      raise ConfigError(
        f"data set {data.name!r}: {name}={values}: expected {channels} {wanted}, one per channel"
      )
  for part in ("train", "validation", "test"):
    examples = getattr(data, part)
    if examples is not None:
      _check_part(f"data set {data.name!r}: {part}", examples, data, part == "train")
  if not np.any(data.train.labels != UNLABELLED):
    raise ConfigError(f"data set {data.name!r}: train: no example has a label")
  return data


def unseen_classes(data: Dataset) -> str:
  """In words, the classes that no training example has; "" if there are none."""
  missing = np.setdiff1d(np.arange(data.num_classes), data.train.labels)
  if not missing.size:
    return ""
  more = f" and {missing.size - 1} more" if missing.size > 1 else ""
  return f"class {missing[0]}{more} of {data.num_classes} has no training example"


def _check_part(where: str, examples: Examples, data: Dataset, unlabelled: bool) -> None:
  if len(examples) == 0:
    raise ConfigError(f"{where}: there are no examples")
  labels = examples.labels
  try:
    check_labels(
      np.where(labels == UNLABELLED, 0, labels) if unlabelled else labels, data.num_classes
    )
  except ConfigError as error:
    raise ConfigError(f"{where}: {error}") from error
  # One stands for all: those of a set too large for memory are not read through.
  image = examples.fetch(np.array([0]))
  if image.dtype != np.uint8 or image.shape[1:] != tuple(data.image_shape):
    raise ConfigError(
      f"{where}: images are {image.dtype} {image.shape[1:]}, expected uint8 {data.image_shape}"
    )
