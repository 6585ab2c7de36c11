"""A data set from arrays in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxkd.data.assembly import Parts, assemble, check_side
from jaxkd.data.dataset import Dataset
from jaxkd.data.examples import UNLABELLED, ArrayExamples
from jaxkd.data.pictures import square
from jaxkd.errors import ConfigError, one_line

# A part that is held out of the examples, or a split (images, labels) of its own.
Part = float | int | tuple[Any, Any] | None


def from_arrays(
  images: Any,
  labels: Any,
  *,
  validation: Part = 0.1,
  test: Part = None,
  unlabelled: Any = None,
  classes: int | Sequence[str] | None = None,
  seed: int = 0,
  image_size: int = 0,
) -> Dataset:
  """Return a data set of arrays.

  Mean and deviation of the pixels are computed from the training split. Parts that are held out
  have the classes in proportion; indices are positions in the arrays.

  Args:
    images: (N, H, W, C), or (N, H, W) for one channel: uint8, or floats in 0..1, which are stored
      as uint8 (rounded).
    labels: (N,) or (N, 1) class numbers from 0, of any integer type.
    validation: fraction (float) or count (int) of the training examples, or (images, labels); 0
      for none.
    test: fraction or count of all examples, or (images, labels); None is 0.2. The choice does not
      depend on `seed`, so that runs of several seeds have the same test examples.
    unlabelled: further training images without labels, like `images`.
    classes: number of classes, or their names; None is the largest label + 1.
    seed: seed of the choice of validation examples.
    image_size: side of squares to which all images are resized and cropped; 0 keeps their size.

  Raises:
    ConfigError: naming the argument, and the row if it is one that differs.

  >>> images = np.arange(20 * 4 * 4, dtype=np.uint8).reshape(20, 4, 4)
  >>> data = from_arrays(images, np.arange(20) % 2, classes=["even", "odd"])
  >>> len(data.train), len(data.validation), len(data.test), data.image_shape
  (14, 2, 4, (4, 4, 1))
  """
  pairs: dict[str, tuple[Any, Any]] = {"train": (images, labels)}
  sizes: dict[str, Any] = {}
  for name, part in (("validation", validation), ("test", test)):
    if not isinstance(part, (tuple, list)):
      sizes[name] = part
    elif len(part) == 2:
      pairs[name] = (part[0], part[1])
    else:
      raise ConfigError(f"{name}: expected (images, labels), got {len(part)} values")
  parts = Parts(**sizes, seed=seed)
  return dataset_of_pairs("arrays", pairs, parts, classes, unlabelled, image_size)


def dataset_of_pairs(
  name: str,
  pairs: dict[str, tuple[Any, Any]],
  parts: Parts,
  classes: int | Sequence[str] | None,
  unlabelled: Any,
  image_size: int,
) -> Dataset:
  """Return the data set of one (images, labels) for each split."""
  splits = {}
  for split, (images, labels) in pairs.items():
    prefix = "" if split == "train" else f"{split} "
    pixels = _sized(as_images(images, f"{prefix}images"), image_size)
    numbers = as_labels(labels, f"{prefix}labels")
    if len(pixels) != len(numbers):
      raise ConfigError(f"{prefix}images: {len(pixels)} of them for {len(numbers)} labels")
    splits[split] = (pixels, numbers)
  labels = [numbers for _, numbers in splits.values()]
  known = check_classes(classes, labels, list(splits))
  shape = splits["train"][0].shape[1:]
  if unlabelled is not None:
    extra = _sized(as_images(unlabelled, "unlabelled"), image_size)
    if extra.shape[1:] != shape:
      raise ConfigError(f"unlabelled: images are {extra.shape[1:]}, those of train {shape}")
    pixels, numbers = splits["train"]
    hidden = np.full(len(extra), UNLABELLED, np.int32)
    splits["train"] = (np.concatenate([pixels, extra]), np.concatenate([numbers, hidden]))
  examples = {
    split: ArrayExamples(pixels, numbers, np.arange(len(numbers), dtype=np.int32))
    for split, (pixels, numbers) in splits.items()
  }
  return assemble(name, examples, parts, classes=known)


def as_images(images: Any, where: str) -> np.ndarray:
  """Return images as (N, H, W, C) uint8.

  Raises:
    ConfigError: naming `where` and the row of values that are no pixels.
  """
  pixels = _array(images, where)
  if pixels.ndim == 3:
    pixels = pixels[..., None]
  if pixels.ndim != 4 or 0 in pixels.shape[1:]:
    raise ConfigError(f"{where}: expected (N, H, W, C) or (N, H, W), got {pixels.shape}")
  if not len(pixels):
    raise ConfigError(f"{where}: there are none")
  _, first, second, last = pixels.shape
  if last > 4 and (first == 3 or (first == 1 and second == last)):
    raise ConfigError(
      f"{where}: {pixels.shape} looks like (N, C, H, W), expected (N, H, W, C): "
      "images.transpose(0, 2, 3, 1)"
    )
  if pixels.dtype == np.uint8:
    return pixels
  if pixels.dtype.kind not in "biuf":
    raise ConfigError(f"{where}: expected uint8 or floats in 0..1, got {pixels.dtype}")
  if pixels.dtype.kind == "f":
    finite = np.isfinite(pixels).all((1, 2, 3))
    if not finite.all():
      raise ConfigError(f"{where}: image {np.argmin(finite)} has values that are not finite")
    if pixels.min() >= 0 and pixels.max() <= 1:
      return np.round(pixels * pixels.dtype.type(255)).astype(np.uint8)
  low, high = pixels.min(), pixels.max()
  hint = "; whole numbers of 0..255 are images.astype(np.uint8)" if 0 <= low < high <= 255 else ""
  raise ConfigError(
    f"{where}: expected uint8 or floats in 0..1, got {pixels.dtype} in {low:g}..{high:g}{hint}"
  )


def as_labels(labels: Any, where: str) -> np.ndarray:
  """Return labels as (N,) int32.

  Raises:
    ConfigError: naming `where`, and the row of a number that is no class.
  """
  numbers = _array(labels, where)
  if numbers.ndim == 2 and numbers.shape[1] == 1:
    numbers = numbers[:, 0]
  if numbers.ndim != 1:
    hint = ""
    if numbers.ndim == 2:
      hint = (
        "; class numbers of one-hot rows are labels.argmax(1), rows of several classes are "
        "jaxkd.data.MultiLabelExamples"
      )
    raise ConfigError(f"{where}: expected class numbers (N,), got {numbers.shape}{hint}")
  if numbers.dtype.kind not in "iu":
    hint = ""
    if numbers.dtype.kind in "US":
      hint = "; class_names, labels = np.unique(labels, return_inverse=True) numbers them"
    elif numbers.dtype.kind == "b":
      hint = "; labels.astype(int) are 0 and 1"
    elif numbers.dtype.kind == "f" and np.isfinite(numbers).all():
      hint = "; labels.astype(int) are integers"
    raise ConfigError(f"{where}: expected integers, got {numbers.dtype}{hint}")
  wrong = np.flatnonzero((numbers < 0) | (numbers > _MOST_CLASSES))
  if wrong.size:
    row = wrong[0]
    hint = "; images without labels are given as `unlabelled`" if numbers[row] == UNLABELLED else ""
    raise ConfigError(f"{where}: row {row} is {numbers[row]}, expected a class number >= 0{hint}")
  return numbers.astype(np.int32)


def _array(values: Any, where: str) -> np.ndarray:
  try:
    return np.asarray(values)
  except ValueError as error:  # rows of several shapes
    raise ConfigError(f"{where}: rows differ in shape: {one_line(error)}") from error


# A label beyond is a mistake, not a class: a classifier for as many does not fit into memory.
_MOST_CLASSES = 2**20


def check_classes(
  classes: int | Sequence[str] | None, labels: Sequence[np.ndarray], splits: Sequence[str]
) -> int | tuple[str, ...]:
  """Return the names of the classes, or their number if they have none.

  Args:
    classes: number or names of the classes; None is the largest training label + 1.
    labels: labels of each split, training first.
    splits: name of each split.

  Raises:
    ConfigError: naming the split and row of a label that is no class.
  """
  if isinstance(classes, np.ndarray):
    classes = classes.tolist()
  if isinstance(classes, bool) or not isinstance(classes, (int, tuple, list, type(None))):
    raise ConfigError(f"classes: expected a number or a list of names, got {classes!r}")
  if isinstance(classes, (tuple, list)):
    if not all(isinstance(name, str) for name in classes) or len(set(classes)) < len(classes):
      raise ConfigError(f"classes: expected different names, got {list(classes)!r:.200}")
    count = len(classes)
  else:
    count = int(labels[0].max()) + 1 if classes is None and len(labels[0]) else classes or 0
  for split, numbers in zip(splits, labels, strict=True):
    outside = np.flatnonzero(numbers >= count)
    if outside.size:
      reason = "as training labels are" if classes is None else f"as there are {count} classes"
      raise ConfigError(
        f"{split} labels: row {outside[0]} is {numbers[outside[0]]}, expected 0..{count - 1}, "
        f"{reason}"
      )
  return tuple(classes) if isinstance(classes, (tuple, list)) else count


def _sized(images: np.ndarray, side: int) -> np.ndarray:
  check_side(side)
  return np.stack([square(image, side) for image in images]) if side else images
