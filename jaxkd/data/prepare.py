"""Getting a data set onto the disk, whatever a machine has: a copy, files, or a network."""

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

# Where Debian's package dataset-fashion-mnist puts its files.
DEBIAN_FOLDERS = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}
_DEBIAN_PACKAGES = {"fashion_mnist": "dataset-fashion-mnist"}


class DataUnavailable(ConfigError):
  """A data set that is not here and cannot be had from here; the message says how to get it."""


def prepared_digits(directory: str | None) -> tfds.core.DatasetBuilder:
  """The builder of the digits, prepared in the TFDS directory."""
  from jaxkd.data.builders import Digits

  return _prepare(functools.partial(Digits, data_dir=directory))


def prepared_files(name: str, directory: str | None) -> tfds.core.DatasetBuilder:
  """A prepared builder of a data set known to TFDS.

  The first of these that is there: the stock TFDS copy, if in a format with random access; this
  project's copy; the original files in `downloads/manual/NAME` of the TFDS directory or where
  Debian puts them; a download. Only the last needs a network, and it is tried with a timeout
  first, since tfds repeats hopeless attempts for minutes.

  Raises:
    DataUnavailable: saying how to get the data.
  """
  with needed_by("jaxkd.data.load"):
    import tensorflow_datasets as tfds

  from jaxkd.data import builders

  stock = tfds.builder(name, data_dir=directory)
  if _is_prepared(stock) and _has_random_access(stock):
    return stock

  kind = (
    builders.CifarBinary if name in builders.CifarBinary.builder_configs else builders.IdxImages
  )
  ours = kind(config=name, data_dir=directory)
  if _is_prepared(ours):
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
  """The stock builder of ImageNet, which nobody can download without an account.

  Raises:
    DataUnavailable: saying how to get the data.
  """
  with needed_by("jaxkd.data.load"):
    import tensorflow_datasets as tfds

  stock = tfds.builder("imagenet2012", data_dir=directory)
  root = stock.data_dir_root
  if not (_is_prepared(stock) and _has_random_access(stock)):
    obstacle = f"is not prepared in {root} in a format with random access"
  elif missing := {"train", "validation"} - set(stock.info.splits):
    obstacle = f"in {stock.data_dir} has no split {', '.join(sorted(missing))}"
  else:
    return stock
  raise DataUnavailable(
    f"imagenet2012 {obstacle}, and its authors hand it out to registered users only. Register at "
    "https://image-net.org/download-images, put ILSVRC2012_img_train.tar and "
    f"ILSVRC2012_img_val.tar into {Path(root, 'downloads', 'manual')} and run `tfds build "
    f"imagenet2012 --data_dir={root} --file_format=array_record` where TensorFlow is installed, or "
    f"copy a TFDS directory that was prepared so to {root}"
  )


def _prepare(make_builder: Callable[[], tfds.core.DatasetBuilder]) -> tfds.core.DatasetBuilder:
  """Prepares unless that is done, alone or beside other processes that do the same.

  tfds writes into a folder of its own and renames it last, so a killed preparation leaves nothing
  under the final name, and of several at once all but the first fail at the renaming: they then
  use what the first one wrote. A lock would add nothing but trouble on network file systems.
  """
  builder = make_builder()
  if _is_prepared(builder):
    return builder
  try:
    # tfds tells of its progress on stdout, which belongs to the program, and draws bars, which
    # belong to a terminal.
    report = sys.stderr if sys.stderr.isatty() else io.StringIO()
    with contextlib.redirect_stdout(report), contextlib.redirect_stderr(report):
      builder.download_and_prepare(file_format="array_record")
  except Exception as error:
    finished = make_builder()
    if _is_prepared(finished):
      return finished
    raise DataUnavailable(
      f"{builder.info.full_name} could not be prepared in {builder.data_dir}: {one_line(error)}"
    ) from error
  return builder


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
  # tfds warns of every folder that is not there yet.
  return os.path.exists(builder.data_dir) and builder.is_prepared()


def _has_random_access(builder: tfds.core.DatasetBuilder) -> bool:
  with needed_by("jaxkd.data.load"):
    from tensorflow_datasets.core import file_adapters

  wanted = {file_adapters.FileFormat.ARRAY_RECORD, file_adapters.FileFormat.PARQUET}
  return bool(wanted & set(builder.info.available_file_formats()))


def _obstacle(url: str) -> str | None:
  """Why a file cannot be downloaded, or None if it can; says so within seconds."""
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
