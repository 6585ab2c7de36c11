"""Data sets by name, with their splits; fake data sets."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxkd.data import prepare, subsets
from jaxkd.data.assembly import MEMORY_LIMIT, check_part, check_side
from jaxkd.data.dataset import Dataset, divided, pixel_statistics
from jaxkd.data.examples import Examples, RecordExamples, read_examples
from jaxkd.data.imagenet import ImageNetLabels, ImageNetRecords
from jaxkd.data.pictures import Resized
from jaxkd.data.prefixes import PREFIXES, check_prefix, load_prefixed
from jaxkd.errors import ConfigError, needed_by, one_line, unknown_name

if TYPE_CHECKING:
  import tensorflow_datasets as tfds


@dataclasses.dataclass(frozen=True)
class _Facts:
  num_classes: int
  image_shape: tuple[int, int, int]
  examples: tuple[int, int]  # sizes of the training and the test split
  mean: tuple[float, ...] = ()  # empty: computed from the training split
  std: tuple[float, ...] = ()


_FACTS = {
  "digits": _Facts(10, (8, 8, 1), (1437, 360)),
  # Statistics of the training split's pixels, as in common torchvision code.
  "mnist": _Facts(10, (28, 28, 1), (60_000, 10_000), (0.1307,), (0.3081,)),
  "fashion_mnist": _Facts(10, (28, 28, 1), (60_000, 10_000), (0.2860,), (0.3530,)),
  "cifar10": _Facts(
    10, (32, 32, 3), (50_000, 10_000), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
  ),
  # Mean and deviation as in RepDistiller.
  "cifar100": _Facts(
    100, (32, 32, 3), (50_000, 10_000), (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
  ),
  # ILSVRC 2012 with its validation split as test split; mean and deviation as in torchvision.
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
  memory_limit: int = MEMORY_LIMIT,
  image_size: int = 0,
  test: float | int | None = None,
) -> Dataset:
  """Load a data set by name; it is prepared on first use.

  The validation part is taken from the training split, stratified and seeded; `per_class` then
  keeps n examples of each class of the rest. The test split is returned unchanged. Indices are
  positions in the original split, the same for every choice of these options; they may differ
  between the stock TFDS copy of a data set, which is shuffled, and this project's copy.

  A name with a prefix is a data set of the user's own, see `from_folder`, `from_npz`, `from_tfds`
  and `from_hugging_face`.

  Args:
    name: one of `DATASETS`, or "folder:PATH", "npz:FILE", "tfds:NAME" or "hf:FOLDER".
    directory: TFDS's data directory; default TFDS_DATA_DIR, or else TFDS's own default.
    validation: a fraction or a count of the training split; 0 for none. Data of the user's own may
      have a validation split, which is then used.
    per_class: number of training examples of each class; default all.
    seed: seed of both choices.
    memory_limit: bytes; a larger split stays on disk and is read on access.
    image_size: side of squares to which all images are resized and cropped; 0 keeps their size.
    test: a fraction or a count of the user's own examples, for data without a test split; None is
      0.2. The choice does not depend on the seed.

  Raises:
    ConfigError: naming the option that is out of range, or the unknown name and those known.
    DataUnavailable: saying how to get the data.
  """
  check_side(image_size)
  subsets.check_seed(seed)
  if ":" in name:
    data = load_prefixed(
      name,
      directory=directory,
      memory_limit=memory_limit,
      image_size=image_size,
      validation=validation,
      test=test,
      seed=seed,
    )
    if per_class is None:
      return data
    return dataclasses.replace(data, train=subsets.per_class(data.train, per_class, seed=seed))
  facts = _facts(name, validation, image_size, test)
  train, test_split = _splits(name, facts, prepare.tfds_directory(directory), memory_limit)
  mean, std = (facts.mean, facts.std) if facts.mean else pixel_statistics(train)
  parts = divided(train, validation, per_class, seed)
  return Dataset(name, *parts, test_split, facts.num_classes, facts.image_shape, mean, std)


def check_name(name: str, what: str = "data set") -> None:
  """Raise a ConfigError that starts with `what` if `load` knows neither a name nor its prefix."""
  if ":" in name:
    check_prefix(name)
  elif name not in _FACTS:
    error = unknown_name(what, name, _FACTS)
    own = ", ".join(f"{prefix}:..." for prefix in PREFIXES)
    hint = f"; a folder of pictures is folder:{name}" if os.path.isdir(name) else ""
    raise ConfigError(f"{error}; your own: {own}{hint}")


def load_options(section: Mapping[str, Any]) -> dict[str, Any]:
  """Return the options of `jaxkd.data.load` that decide what the images and the test split are.

  Args:
    section: a config's "data", or a bundle's description; options at their defaults may be missing.
  """
  return {name: section[name] for name in ("image_size", "test") if section.get(name)}


def fake_dataset(
  name: str,
  *,
  directory: str | os.PathLike[str] | None = None,
  validation: float | int = 0.1,
  per_class: int | None = None,
  seed: int = 0,
  image_size: int = 0,
  test: float | int | None = None,
) -> Dataset:
  """Return noise with the shapes, classes and sizes of a named data set, without its files.

  Images are random bytes, labels cycle through the classes, the normalisation is the data set's own
  if it is known. For dry runs: the noise contains nothing to learn.

  Args:
    name: one of `DATASETS`.
    directory: unused; the signature is that of `load`.
    validation: as for `load`.
    per_class: as for `load`.
    seed: seed of the choices; the noise does not depend on it.
    image_size: as for `load`.
    test: as for `load`; named data sets take None alone.

  Raises:
    ConfigError: as `load`.

  >>> data = fake_dataset("imagenet", validation=0.0)
  >>> len(data.train), data.train.fetch(np.array([5])).shape
  (1281167, (1, 256, 256, 3))
  """
  del directory
  check_side(image_size)
  subsets.check_seed(seed)
  facts = _facts(name, validation, image_size, test)
  noise = _Noise(facts.image_shape)

  def split(count: int) -> RecordExamples:
    indices = np.arange(count, dtype=np.int32)
    return RecordExamples(noise, indices % np.int32(facts.num_classes), indices)

  train, test_split = (split(count) for count in facts.examples)
  channels = facts.image_shape[-1]
  mean, std = facts.mean or (0.5,) * channels, facts.std or (0.25,) * channels
  parts = divided(train, validation, per_class, seed)
  return Dataset(name, *parts, test_split, facts.num_classes, facts.image_shape, mean, std)


@dataclasses.dataclass(frozen=True)
class _Noise:
  """Random access to records whose image is a function of the record's number."""

  image_shape: tuple[int, int, int]

  def __getitems__(self, keys: Sequence[int]) -> list[dict[str, Any]]:
    def draw(key: int) -> np.ndarray:
      return np.random.default_rng(key).integers(0, 256, self.image_shape, dtype=np.uint8)

    return [{"image": draw(key)} for key in keys]


def _facts(name: str, validation: float | int, image_size: int, test: float | int | None) -> _Facts:
  """Return what is known of a data set, with the size to which its images are resized."""
  if name not in _FACTS:
    if ":" in name:
      raise ConfigError(f"data set {name!r}: expected one of {', '.join(DATASETS)}")
    check_name(name)
  check_part("validation", validation)
  if test is not None:
    raise ConfigError(f"test={test}: expected none, as {name} has a test split of its own")
  facts = _FACTS[name]
  if not image_size:
    return facts
  return dataclasses.replace(facts, image_shape=(image_size, image_size, facts.image_shape[-1]))


def _splits(
  name: str, facts: _Facts, directory: str | None, memory_limit: int
) -> tuple[Examples, Examples]:
  with needed_by("jaxkd.data.load"):
    import tensorflow_datasets as tfds

  try:
    builder = _builder(name, directory)
  except ConfigError:
    raise
  except Exception as error:  # tfds raises many kinds for a damaged description of a data set
    where = directory or "TFDS's directory"
    raise prepare.DataUnavailable(
      f"{name}: the copy in {where} cannot be read ({one_line(error)}); remove its folder "
      "to prepare it again"
    ) from error
  encoded = {"image": tfds.decode.SkipDecoding()}

  def read(split: str) -> Examples:
    labelled: Any = builder.as_data_source(split, decoders=encoded)
    if name == "imagenet":
      images: Any = ImageNetRecords(labelled, facts.image_shape[0])
      labelled = ImageNetLabels(labelled, Path(builder.data_dir, f"jaxkd_labels_{split}.npy"))
    else:
      images = builder.as_data_source(split)
      if facts.image_shape != _FACTS[name].image_shape:
        images = labelled = Resized(images, facts.image_shape[0])
    return read_examples(
      images,
      labelled,
      num_classes=facts.num_classes,
      image_shape=facts.image_shape,
      memory_limit=memory_limit,
    )

  try:
    return read("train"), read("validation" if name == "imagenet" else "test")
  except (OSError, RuntimeError) as error:  # raised by array_record: truncated and missing files
    raise prepare.DataUnavailable(
      f"{name}: the copy in {builder.data_dir} cannot be read ({one_line(error)}); remove "
      "that folder to prepare it again"
    ) from error


def _builder(name: str, directory: str | None) -> tfds.core.DatasetBuilder:
  if name == "digits":
    return prepare.prepared_digits(directory)
  if name == "imagenet":
    return prepare.prepared_imagenet(directory)
  return prepare.prepared_files(name, directory)
