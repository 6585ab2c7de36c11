"""Preparation of data sets on disk from a TFDS copy, original files or a download."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from jaxkd.errors import ConfigError, needed_by, one_line

if TYPE_CHECKING:
  import tensorflow_datasets as tfds

# Folders in which Debian's packages install data sets.
DEBIAN_FOLDERS = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}
_DEBIAN_PACKAGES = {"fashion_mnist": "dataset-fashion-mnist"}


class DataUnavailable(ConfigError):
  """A data set is not on this machine and cannot be downloaded; the message says how to get it."""


def prepared_digits(directory: str | None) -> tfds.core.DatasetBuilder:
  """Return the builder of the digits, prepared in the TFDS directory."""
  from jaxkd.data.builders import Digits

  return _prepare(functools.partial(Digits, data_dir=directory))


def prepared_files(name: str, directory: str | None) -> tfds.core.DatasetBuilder:
  """Return a prepared builder of a data set known to TFDS.

  It uses the first of these that exists: the stock TFDS copy, if in a format with random access;
  this project's copy; the original files in `downloads/manual/NAME` of the TFDS directory or in
  Debian's folder; a download. Only the download needs a network. A request with a timeout precedes
  it, since tfds retries failing downloads for minutes.

  Raises:
    DataUnavailable: with the ways to get the data.
  """
  with needed_by("jaxkd.data.load"):
    import tensorflow_datasets as tfds

  from jaxkd.data import builders

  stock = tfds.builder(name, data_dir=directory)
  if is_prepared(stock) and has_random_access(stock):
    return stock

  kind = (
    builders.CifarBinary if name in builders.CifarBinary.builder_configs else builders.IdxImages
  )
  ours = kind(config=name, data_dir=directory)
  if is_prepared(ours):
    return ours

  config = ours.builder_config
  folders = [Path(stock.data_dir_root, "downloads", "manual", name)]
  folders += [DEBIAN_FOLDERS[name]] if name in DEBIAN_FOLDERS else []
  for folder in folders:
    if all(builders.in_folder(folder, file) for file in config.files):
      return _prepare(functools.partial(kind, config=name, data_dir=directory, folder=folder))

  obstacle = _obstacle(config.url + config.files[-1])
  if obstacle:
    raise DataUnavailable(_advice(name, stock, folders[0], config.files, obstacle))
  return _prepare(functools.partial(kind, config=name, data_dir=directory))


def prepared_imagenet(directory: str | None) -> tfds.core.DatasetBuilder:
  """Return the stock builder of ImageNet, whose download needs an account.

  Raises:
    DataUnavailable: with the way to get the data.
  """
  with needed_by("jaxkd.data.load"):
    import tensorflow_datasets as tfds

  stock = tfds.builder("imagenet2012", data_dir=directory)
  root = stock.data_dir_root
  if not (is_prepared(stock) and has_random_access(stock)):
    obstacle = f"is not prepared in {root} in a format with random access"
  elif missing := {"train", "validation"} - set(stock.info.splits):
    obstacle = f"in {stock.data_dir} has no split {', '.join(sorted(missing))}"
  else:
    return stock
  raise DataUnavailable(
    f"imagenet2012 {obstacle}, and only registered users can download it. Register at "
    "https://image-net.org/download-images, put ILSVRC2012_img_train.tar and "
    f"ILSVRC2012_img_val.tar into {Path(root, 'downloads', 'manual')} and run `tfds build "
    f"imagenet2012 --data_dir={root} --file_format=array_record` where TensorFlow is installed, or "
    f"copy a TFDS directory prepared by that command to {root}"
  )


def tfds_directory(directory: str | os.PathLike[str] | None) -> str | None:
  """Return TFDS's data directory as an absolute path, or None for TFDS's own default."""
  # Read here because tfds reads the variable only once, when it is imported.
  chosen = directory or os.environ.get("TFDS_DATA_DIR")
  return os.path.abspath(os.path.expanduser(chosen)) if chosen else None


def _prepare(make_builder: Callable[[], tfds.core.DatasetBuilder]) -> tfds.core.DatasetBuilder:
  """Prepare a data set unless it is prepared; safe when several processes do so at once.

  tfds writes into a temporary folder and renames it last. A killed preparation therefore leaves
  nothing under the final name; of several concurrent ones, all but the first fail when renaming and
  then use the first one's files. No lock is needed, and locks are unreliable on network file
  systems.
  """
  builder = make_builder()
  if is_prepared(builder):
    return builder
  try:
    # tfds prints progress to stdout, which the program needs, and bars, which need a terminal.
    report = sys.stderr if sys.stderr.isatty() else io.StringIO()
    with contextlib.redirect_stdout(report), contextlib.redirect_stderr(report):
      builder.download_and_prepare(file_format="array_record")
  except Exception as error:
    finished = make_builder()
    if is_prepared(finished):
      return finished
    raise DataUnavailable(
      f"{builder.info.full_name} could not be prepared in {builder.data_dir}: {one_line(error)}"
    ) from error
  return builder


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
  """Check whether a data set is on disk."""
  # Test for the folder first, since tfds warns about every missing one.
  return os.path.exists(builder.data_dir) and builder.is_prepared()


def has_random_access(builder: tfds.core.DatasetBuilder) -> bool:
  """Check whether a prepared data set is in a format with random access."""
  with needed_by("jaxkd.data.load"):
    from tensorflow_datasets.core import file_adapters

  wanted = {file_adapters.FileFormat.ARRAY_RECORD, file_adapters.FileFormat.PARQUET}
  return bool(wanted & set(builder.info.available_file_formats()))


def _obstacle(url: str) -> str | None:
  """Return the reason why a file cannot be downloaded, within seconds, or None if it can."""
  with needed_by("jaxkd.data.load"):
    import requests

  try:
    with requests.get(url, stream=True, timeout=5) as response:
      return None if response.ok else f"{url} answers {response.status_code}"
  except requests.RequestException as error:
    return f"{url} cannot be reached ({type(error).__name__})"


def _advice(
  name: str,
  stock: tfds.core.DatasetBuilder,
  manual: Path,
  files: tuple[str, ...],
  obstacle: str,
) -> str:
  root = stock.data_dir_root
  tried = f"{name} is not prepared in {root}"
  if os.path.exists(stock.data_dir):
    tried += f" (the copy in {stock.data_dir} is not in a format with random access)"
  ways = [
    f"put {', '.join(files)} into {manual}",
    f"run `python -c 'import jaxkd.data; jaxkd.data.load(\"{name}\")'` where there is a network "
    f"and copy its TFDS directory to {root}",
  ]
  if name in _DEBIAN_PACKAGES:
    ways.insert(0, f"install Debian's package (apt-get install {_DEBIAN_PACKAGES[name]})")
  return f"{tried} and {obstacle}. Either {', or '.join(ways)}"
