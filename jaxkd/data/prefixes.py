"""Names of data sets with a prefix that says where they come from: "folder:/data/birds"."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from jaxkd.data.dataset import Dataset
from jaxkd.data.folders import from_folder
from jaxkd.data.hugging_face import from_hugging_face
from jaxkd.data.npz import from_npz
from jaxkd.data.tfds_names import from_tfds
from jaxkd.errors import ConfigError, unknown_name

# Prefix -> what follows it.
PREFIXES = {
  "folder": "a folder of pictures, train/CLASS/*.png or CLASS/*.png",
  "npz": "a file of the arrays images and labels, or x_train, y_train, ...",
  "tfds": "a name of TensorFlow Datasets, or a folder that it prepared",
  "hf": "a folder that save_to_disk of Hugging Face's datasets wrote",
}
_READERS = {"folder": from_folder, "npz": from_npz, "tfds": from_tfds, "hf": from_hugging_face}


def load_prefixed(
  name: str, *, directory: str | os.PathLike[str] | None, memory_limit: int, **options: Any
) -> Dataset:
  """Load the data set of a name with a prefix.

  Args:
    name: PREFIX:PATH, or tfds:NAME; the prefix is one of `PREFIXES`.
    directory: TFDS's data directory.
    memory_limit: bytes; a larger split stays on disk where the source allows that.
    **options: image_size, validation, test and seed of the functions `from_...`.

  Raises:
    ConfigError: for an unknown prefix, or as those functions.
  """
  check_prefix(name)
  prefix, _, rest = name.partition(":")
  if prefix != "npz":  # whose arrays are in memory
    options["memory_limit"] = memory_limit
  if prefix == "tfds":
    options["directory"] = directory
  reader: Any = _READERS[prefix]
  return dataclasses.replace(reader(rest, **options), name=name)


def check_prefix(name: str) -> None:
  """Raise a ConfigError if a name with a colon has no known prefix, or nothing after it."""
  prefix, _, rest = name.partition(":")
  if prefix not in PREFIXES:
    raise unknown_name("prefix of a data set", prefix, PREFIXES)
  if not rest:
    raise ConfigError(f"data set {name!r}: expected {PREFIXES[prefix]}, after {prefix}:")
