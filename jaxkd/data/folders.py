"""A data set from folders of pictures, one folder for each class."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from jaxkd.data.assembly import MEMORY_LIMIT, Parts, assemble, check_side, held
from jaxkd.data.dataset import Dataset, images_only
from jaxkd.data.pictures import SUFFIXES, Header, Pictures, common_header
from jaxkd.errors import ConfigError

# Names of the folders of each split.
_SPLITS = {
  "train": ("train", "training"),
  "validation": ("validation", "valid", "val", "dev"),
  "test": ("test", "testing"),
}
# Folders that are neither a split nor a class.
_BESIDE = ("unlabelled", "unlabeled", "__MACOSX")
# Files beside the pictures that are no pictures.
_NO_PICTURES = (".txt", ".md", ".csv", ".tsv", ".json", ".xml", ".html", ".ini", ".db", ".yaml")


def from_folder(
  path: str | os.PathLike[str],
  *,
  image_size: int = 0,
  validation: float | int = 0.1,
  test: float | int | None = None,
  seed: int = 0,
  memory_limit: int = MEMORY_LIMIT,
) -> Dataset:
  """Return a data set of pictures in folders named after their classes.

  The folder contains `train/CLASS/...`, and `val` (`valid`, `validation`) and `test` likewise; or
  `CLASS/...` alone. Splits that it lacks are held out of the training pictures, with the classes in
  proportion. Classes are numbered in the order of their names. Pictures are PNG, JPEG, BMP and WebP
  files, also in folders below that of the class; hidden files are left out, and folders
  `unlabelled`, whose pictures `join_unlabelled` adds. If one is coloured, all become RGB. Pictures
  are turned upright as EXIF says, and transparent ones laid over white.

  Args:
    path: the folder.
    image_size: side of squares to which pictures are resized (the shorter side) and cropped (the
      middle); 0 keeps the size, which must be the same for all.
    validation: fraction (float) or count (int) of the training pictures, if there is no validation
      folder; 0 for none.
    test: fraction or count of all pictures, if there is no test folder; None is 0.2. The choice
      does not depend on `seed`, so that runs of several seeds have the same test pictures.
    seed: seed of the choice of validation pictures.
    memory_limit: bytes; the pictures of a larger split stay on disk and are decoded on access.

  Raises:
    ConfigError: naming the folder, the class or the file.
  """
  parts = Parts(validation, test, seed)
  check_side(image_size)
  root = _folder(path)
  name = f"folder:{path}"
  splits = {split: _classes(folder) for split, folder in _split_folders(root).items()}
  names = sorted(splits["train"])
  for split, classes in splits.items():
    if unknown := sorted(set(classes) - set(names)):
      raise ConfigError(
        f"{classes[unknown[0]]}: class {unknown[0]!r} of {split} has no folder in train, which has "
        f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
      )
  if len(names) < 2:
    raise ConfigError(f"{root} has one class alone, {names[0]!r}: expected at least 2")

  listed = {split: _listed(classes, names) for split, classes in splits.items()}
  everything = [file for files, _ in listed.values() for file in files]
  header = common_header(everything, [str(file) for file in everything], image_size)
  examples = {
    split: held(
      _source(files, header, image_size), labels, (*header.size, header.channels), memory_limit
    )
    for split, (files, labels) in listed.items()
  }
  return assemble(name, examples, parts, classes=names)


def unlabelled_pictures(
  path: str | os.PathLike[str], data: Dataset, *, image_size: int
) -> Pictures:
  """Return the pictures of a folder and of all folders in it, in the shape of a data set's images.

  Args:
    path: the folder.
    data: the data set that the pictures join.
    image_size: the size with which `data` was loaded, 0 if its images kept theirs.

  Raises:
    ConfigError: naming the folder or the file; or if images of the data set have neither 1 nor 3
      channels.
  """
  root = _folder(path)
  files = sorted(_pictures(root, (os.path.realpath(root),)))
  if not files:
    raise ConfigError(f"{root} has no pictures ({', '.join(SUFFIXES)})")
  height, width, channels = images_only(data)
  if channels not in (1, 3):
    raise ConfigError(
      f"{root}: the images of {data.name} have {channels} channels, pictures 1 or 3"
    )
  header = common_header(files, [str(file) for file in files], image_size)
  if header.size != (height, width):
    raise ConfigError(
      f"pictures in {root} are {header.size[1]}x{header.size[0]}, the images of {data.name} "
      f"{width}x{height}; image_size (data.image_size) brings all to squares of one size"
    )
  return _source(files, header._replace(channels=channels), image_size)


def _source(files: list[Path], header: Header, image_size: int) -> Pictures:
  names = [str(file) for file in files]
  return Pictures(files, names, channels=header.channels, side=image_size)


def _folder(path: str | os.PathLike[str]) -> Path:
  root = Path(path).expanduser()
  if not root.is_dir():
    reason = "is no folder" if root.exists() else "does not exist"
    raise ConfigError(f"folder {str(root)!r} {reason}")
  return root


def _split_folders(root: Path) -> dict[str, Path]:
  """Return the folder of each split; that of "train" is `root` if it has none for splits."""
  folders = {folder.name: folder for folder in _subfolders(root)}
  found: dict[str, Path] = {}
  for split, names in _SPLITS.items():
    present = [name for name in folders if name.lower() in names]
    if len(present) > 1:
      raise ConfigError(f"{root} has {' and '.join(sorted(present))}: expected one {split} folder")
    if present:
      found[split] = folders.pop(present[0])
  # Classes may be named like splits: cars, planes, train.
  if not found or (folders and not any(map(_subfolders, found.values()))):
    return {"train": root}
  if "train" not in found:
    raise ConfigError(
      f"{root} has {', '.join(f.name for f in found.values())}, but no train folder"
    )
  if folders:
    raise ConfigError(
      f"{root} has a folder {min(folders)!r} beside {found['train'].name!r}: expected train, "
      "validation (valid, val) and test"
    )
  return found


def _classes(split: Path) -> dict[str, Path]:
  """Return the folders of a split by class; every class has one."""
  found: dict[str, Path] = {}
  for folder in _subfolders(split):
    if not folder.name.isprintable():
      raise ConfigError(f"folder {str(folder)!a}: expected a name of printable characters")
    # The same name may be spelled with composed or decomposed accents, as on other systems.
    name = unicodedata.normalize("NFC", folder.name)
    if name in found:
      raise ConfigError(f"{found[name]} and {folder} are one name, spelled differently")
    found[name] = folder
  if not found:
    loose = next(_pictures(split, (os.path.realpath(split),)), None)
    have = f"has pictures, such as {loose.name}, outside" if loose else "has no"
    raise ConfigError(
      f"{split} {have} folders of classes: expected CLASS/*.png, or train/CLASS/*.png"
    )
  return found


def _listed(classes: Mapping[str, Path], names: list[str]) -> tuple[list[Path], np.ndarray]:
  """Return the pictures of a split, sorted within each class, and their labels (N,) int32."""
  files: list[Path] = []
  labels: list[int] = []
  for label, name in enumerate(names):
    if name not in classes:
      continue
    folder = classes[name]
    pictures = sorted(_pictures(folder, (os.path.realpath(folder),)))
    if not pictures:
      raise ConfigError(f"{folder}: class {name!r} has no pictures ({', '.join(SUFFIXES)})")
    files += pictures
    labels += [label] * len(pictures)
  return files, np.array(labels, np.int32)


def _subfolders(folder: Path) -> list[Path]:
  return sorted(
    Path(entry.path)
    for entry in _entries(folder)
    if entry.name not in _BESIDE and _is_folder(entry)
  )


def _pictures(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
  """Yield the pictures in a folder and in those below it.

  Args:
    folder: the folder.
    above: real paths of the folder and of those that led to it, to find loops of links.
  """
  for entry in _entries(folder):
    path = Path(entry.path)
    if _is_folder(entry):
      real = os.path.realpath(path)
      if real in above:
        raise ConfigError(f"{path} is a link to a folder that contains it")
      yield from _pictures(path, (*above, real))
    elif path.suffix.lower() in SUFFIXES:
      yield path
    elif path.suffix.lower() not in _NO_PICTURES:
      raise ConfigError(f"{path} is no picture by its name: expected {', '.join(SUFFIXES)}")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
  """Return what a folder contains, without hidden files."""
  try:
    with os.scandir(folder) as entries:
      return [entry for entry in entries if not entry.name.startswith(".")]
  except OSError as error:
    raise ConfigError(f"folder {folder} cannot be read: {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
  try:
    entry.stat()
  except OSError as error:  # a link to itself, or to what is not there
    raise ConfigError(f"{entry.path} cannot be read: {error.strerror}") from error
  return entry.is_dir()
