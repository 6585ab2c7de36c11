"""Further training images without labels, from a folder of pictures."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxkd.data.assembly import MEMORY_LIMIT, held
from jaxkd.data.dataset import Dataset, images_only
from jaxkd.data.examples import (
  UNLABELLED,
  ArrayExamples,
  Examples,
  RecordExamples,
  without_label,
)
from jaxkd.data.folders import unlabelled_pictures
from jaxkd.errors import ConfigError


def join_unlabelled(
  data: Dataset,
  folder: str | os.PathLike[str],
  *,
  image_size: int = 0,
  memory_limit: int = MEMORY_LIMIT,
) -> Dataset:
  """Return the data set with the pictures of a folder as further, unlabelled training examples.

  They follow the training examples; their label is UNLABELLED (-1), so that they do not count in
  losses and metrics that compare with labels. Their indices follow the largest index of the
  training split and its validation part.

  Args:
    data: a data set.
    folder: pictures in it and in folders in it; names of folders do not matter.
    image_size: the size with which `data` was loaded; 0 if its images kept theirs, which the
      pictures must then have, too.
    memory_limit: bytes; if the training examples with the pictures take more, the pictures stay on
      disk.

  Raises:
    ConfigError: naming the folder, or the picture that cannot be read; or if the training examples
      have more than one label each, or a mask.
  """
  _check_one_label(data, folder)
  pictures = unlabelled_pictures(folder, data, image_size=image_size)
  first = 1 + max(
    int(part.indices.max()) for part in (data.train, data.validation) if part is not None
  )
  labels = np.full(len(pictures), UNLABELLED, np.int32)
  room = memory_limit - len(data.train) * math.prod(images_only(data))
  extra = held(pictures, labels, images_only(data), room)
  indices = np.concatenate([data.train.indices, extra.indices + np.int32(first)])
  labels = np.concatenate([data.train.labels, labels])
  train: Examples
  if isinstance(data.train, ArrayExamples) and isinstance(extra, ArrayExamples):
    train = ArrayExamples(np.concatenate([data.train.images, extra.images]), labels, indices)
  else:
    train = RecordExamples(_Joined(data.train, extra, first), labels, indices)
  return dataclasses.replace(data, train=train)


def _check_one_label(data: Dataset, folder: str | os.PathLike[str]) -> None:
  labels, masked = data.train.labels, getattr(data.train, "mask", None) is not None
  if labels.ndim > 1 or masked:
    have = "a mask" if masked else f"labels {labels.shape[1:]} each"
    raise ConfigError(
      f"unlabelled folder {str(folder)!r}: the training examples of {data.name!r} have {have}: "
      "expected one class number each and no mask"
    )


def labelled_only(examples: Examples) -> Examples:
  """Return the examples that have a label; the same object if all have one."""
  hidden = without_label(examples)
  return examples.take(np.flatnonzero(~hidden)) if hidden.any() else examples


def with_unlabelled_of(chosen: Examples, split: Examples) -> Examples:
  """Return a subset of a split and, after it, the examples that have no label in the split.

  Args:
    chosen: a subset of `split`, in its order, of which some labels may have been hidden.
    split: the examples that `chosen` was taken from.
  """
  without = without_label(split)
  if not without.any():
    return chosen
  order = {int(index): position for position, index in enumerate(split.indices)}
  taken = np.array([order[int(index)] for index in chosen.indices], np.int64)
  joined = split.take(np.concatenate([taken, np.flatnonzero(without)]))
  return joined.hide_labels(np.flatnonzero(without_label(chosen)))


class _Joined:
  """Random access by index to the images of two parts of examples.

  Attributes:
    first: examples whose indices are below `start`.
    second: examples in memory or on disk, in order.
    start: index of the first example of `second`.
  """

  def __init__(self, first: Examples, second: Examples, start: int) -> None:
    self.first, self.second, self.start = first, second, start
    self._positions = np.full(start, -1, np.int64)
    self._positions[first.indices] = np.arange(len(first))

  def __getitems__(self, keys: Sequence[int]) -> list[dict[str, Any]]:
    """Return records {"image"}."""
    wanted = np.asarray(keys, np.int64)
    early = wanted < self.start
    found: list[Any] = [None] * len(keys)
    for chosen, part, positions in (
      (np.flatnonzero(early), self.first, self._positions[wanted[early]]),
      (np.flatnonzero(~early), self.second, wanted[~early] - self.start),
    ):
      if len(chosen):
        for place, image in zip(chosen, part.fetch(positions), strict=True):
          found[place] = {"image": image}
    return found
