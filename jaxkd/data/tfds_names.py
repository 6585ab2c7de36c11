"""Data sets of TensorFlow Datasets beyond those of this project: by name, or a builder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jaxkd.data import prepare
from jaxkd.data.assembly import MEMORY_LIMIT, Parts, check_side
from jaxkd.data.dataset import Dataset
from jaxkd.data.rows import Rows, dataset_of_rows, usual_splits
from jaxkd.errors import ConfigError, needed_by, one_line


def from_tfds(
  builder: Any,
  *,
  directory: str | os.PathLike[str] | None = None,
  image_size: int = 0,
  validation: float | int = 0.1,
  test: float | int | None = None,
  seed: int = 0,
  memory_limit: int = MEMORY_LIMIT,
) -> Dataset:
  """Return a data set of TFDS; it must be prepared in a format with random access.

  The image is the first of TFDS's supervised keys, the label the second; where there are none, the
  only image feature and the only class label. A split "validation" ("valid", "val", "dev") and a
  split "test" are used where there are any; others are held out of "train".

  Args:
    builder: a name ("svhn_cropped", "name/config", "name:1.0.0"), a folder of a prepared data set
      (.../name/1.0.0), or a builder.
    directory: TFDS's data directory; default TFDS_DATA_DIR, or else TFDS's own default.
    image_size: side of squares to which all images are resized and cropped; 0 keeps their size,
      which must be the same for all.
    validation: fraction or count of the training examples, if there is no validation split.
    test: fraction or count of the training examples, if there is no test split; None is 0.2. The
      choice does not depend on `seed`, so that runs of several seeds have the same test examples.
    seed: seed of the choice of validation examples.
    memory_limit: bytes; the images of a larger split are read on access.

  Raises:
    ConfigError: for a name that TFDS does not know, or naming the split and the row.
    DataUnavailable: if it is not prepared, saying how to do that.
  """
  with needed_by("jaxkd.data.from_tfds"):
    import tensorflow_datasets as tfds

  check_side(image_size)
  parts = Parts(validation, test, seed)
  if isinstance(builder, (str, os.PathLike)):
    name = f"tfds:{os.fspath(builder)}"
    builder = _builder(os.fspath(builder), directory)
  else:
    name = f"tfds:{builder.info.full_name}"
  if not (prepare.is_prepared(builder) and prepare.has_random_access(builder)):
    raise prepare.DataUnavailable(
      f"{name} is not prepared in {builder.data_dir} in a format with random access; run `tfds "
      f"build {builder.info.full_name.rpartition('/')[0]} --data_dir={builder.data_dir_root} "
      "--file_format=array_record` where there are a network and TensorFlow, or "
      "builder.download_and_prepare(file_format='array_record') for a builder of your own"
    )
  chosen = usual_splits(name, list(builder.info.splits))
  image, label = _features(name, builder)
  if not isinstance(builder.info.features[label], tfds.features.ClassLabel):
    raise ConfigError(f"{name}: feature {label!r} is no class label")
  encoded = (
    {image: tfds.decode.SkipDecoding()}
    if isinstance(builder.info.features[image], tfds.features.Image)
    else None
  )
  try:
    rows = {
      split: Rows(
        builder.as_data_source(theirs, decoders=encoded),
        f"{name}: {theirs}",
        keys=(image, label),
        side=image_size,
      )
      for split, theirs in chosen.items()
    }
  except (OSError, RuntimeError, ValueError) as error:
    raise prepare.DataUnavailable(
      f"{name}: the copy in {builder.data_dir} cannot be read ({one_line(error)})"
    ) from error
  # TFDS names classes "0", "1", ... where they have no names.
  names = builder.info.features[label].names
  classes = len(names) if names == [str(n) for n in range(len(names))] else names
  return dataset_of_rows(name, rows, parts, classes=classes, memory_limit=memory_limit)


def _builder(name: str, directory: str | os.PathLike[str] | None) -> Any:
  with needed_by("jaxkd.data.from_tfds"):
    import tensorflow_datasets as tfds

  folder = Path(name).expanduser()
  if folder.is_absolute() or name.startswith((".", "~")):
    try:
      return tfds.builder_from_directory(folder)
    except Exception as error:  # tfds raises many kinds for what is no data set
      raise ConfigError(
        f"tfds:{name}: no prepared data set (NAME/CONFIG/VERSION): {one_line(error)}"
      ) from error
  try:
    return tfds.builder(name, data_dir=prepare.tfds_directory(directory))
  except Exception as error:  # an unknown name, an unknown config, an unfit version
    raise ConfigError(
      f"tfds:{name}: {one_line(error):.300}; known names are in tfds.list_builders(), a folder "
      "starts with / or ./"
    ) from error


def _features(name: str, builder: Any) -> tuple[str, str]:
  """Return the names of the image and the label."""
  with needed_by("jaxkd.data.from_tfds"):
    import tensorflow_datasets as tfds

  features = builder.info.features
  keys = builder.info.supervised_keys
  if keys is not None and len(keys) == 2 and all(isinstance(key, str) for key in keys):
    return keys
  images = [key for key, value in features.items() if isinstance(value, tfds.features.Image)]
  images = images or [key for key in features if key == "image"]
  labels = [k for k, value in features.items() if isinstance(value, tfds.features.ClassLabel)]
  if len(images) != 1 or len(labels) != 1:
    raise ConfigError(
      f"{name} has features {', '.join(features)}: expected one image and one class label"
    )
  return images[0], labels[0]
