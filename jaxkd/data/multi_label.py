"""Examples with a label of every class, 0 or 1, or a probability: classes may apply together."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from jaxkd.data.dataset import Dataset
from jaxkd.data.examples import UNLABELLED, ArrayExamples, without_label
from jaxkd.data.trees import TreeExamples
from jaxkd.errors import ConfigError

# The names of `data.labels`.
SINGLE, MULTI = "single", "multi"


@dataclasses.dataclass(frozen=True, eq=False)
class MultiLabelExamples(TreeExamples):
  """Examples in memory, each with the labels of all classes.

  Their batches have `Batch.multi_label`: losses and scores take every class for itself.

  Attributes:
    inputs: as for `TreeExamples`.
    labels: (N, C): 0 or 1, or the probability that the class applies, of any type of number. A row
      of -1 alone (UNLABELLED) is an example without labels.
    indices: as for `TreeExamples`.
    mask: (N,), as for `TreeExamples`.

  Raises:
    ConfigError: as for `TreeExamples`; naming the row of labels outside 0..1, or of another width
      than the first one.

  >>> examples = MultiLabelExamples(np.zeros((2, 5)), np.array([[1, 0, 1], [0, 0, 0]], np.uint8))
  >>> examples.labels.tolist()
  [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
  >>> MultiLabelExamples(np.zeros((2, 5)), np.array([[1, 0, 1], [0, 2, 0]]))
  Traceback (most recent call last):
  jaxkd.errors.ConfigError: labels: row 1 has 2 for class 1: expected numbers in 0..1
  """

  multi_label: ClassVar[bool] = True

  def __post_init__(self) -> None:
    labels = multi_hot(self.labels, "labels")
    # Everything but the labels is checked as for class numbers.
    object.__setattr__(self, "labels", np.zeros(len(labels), np.int32))
    super().__post_init__()
    object.__setattr__(self, "labels", labels)


def multi_hot(labels: Any, where: str) -> np.ndarray:
  """Return labels as (N, C) float32.

  Raises:
    ConfigError: naming `where`, and the row of labels outside 0..1 or of another width.
  """
  try:
    array = np.asarray(labels)
  except ValueError:  # rows of several widths
    array = np.fromiter(labels, dtype=object)
  if array.dtype == object and array.ndim:
    widths = [len(row) if hasattr(row, "__len__") else 1 for row in array]
    row = next((n for n, width in enumerate(widths) if width != widths[0]), None)
    if row is not None:
      raise ConfigError(
        f"{where}: row {row} has {widths[row]} labels, row 0 {widths[0]}: expected one per class"
      )
  if array.ndim != 2 or array.dtype.kind not in "biuf" or not array.shape[1]:
    raise ConfigError(
      f"{where}: expected (N, C) with a number in 0..1 for every class, got {array.dtype} "
      f"{array.shape}"
    )
  hidden = (array == UNLABELLED).all(axis=1) if array.dtype.kind in "if" else False
  # Comparisons with NaN are False.
  right = (array >= 0) & (array <= 1)
  wrong = np.flatnonzero(~(right.all(axis=1) | hidden))
  if wrong.size:
    row = int(wrong[0])
    column = int(np.argmin(right[row]))
    raise ConfigError(
      f"{where}: row {row} has {array[row, column]} for class {column}: expected numbers in 0..1"
    )
  return array.astype(np.float32)


def with_labels(data: Dataset, labels: str) -> Dataset:
  """Return a data set whose examples have the labels that `data.labels` states.

  Args:
    data: the data set.
    labels: "single" or "multi". With "multi", examples in memory with labels (N, C) become
      `MultiLabelExamples`.

  Raises:
    ConfigError: naming the split: for other labels; naming the row, if it is a row of them.
  """
  splits: dict[str, Any] = {}
  for split in ("train", "validation", "test"):
    examples = getattr(data, split)
    if examples is None:
      continue
    where = f"data set {data.name!r}: {split} labels"
    if labels == SINGLE:
      if getattr(examples, "multi_label", False):
        raise ConfigError(
          f"data.labels={labels!r}: expected {MULTI!r}, as {where} are multi-hot "
          f"{examples.labels.shape}"
        )
      continue
    splits[split] = _converted(examples, where, split, data.num_classes)
  return dataclasses.replace(data, **splits) if splits else data


def _converted(examples: Any, where: str, split: str, classes: int) -> MultiLabelExamples:
  shape = np.shape(examples.labels)
  if len(shape) != 2:
    raise ConfigError(
      f"data.labels={MULTI!r}: {where} are {shape}: expected (N, {classes}), 0 or 1 for every "
      "class (jaxkd.data.MultiLabelExamples)"
    )
  if shape[1] != classes:
    raise ConfigError(
      f"data.labels={MULTI!r}: {where}: row 0 has {shape[1]} labels: expected {classes}, one per "
      "class"
    )
  if isinstance(examples, MultiLabelExamples):
    found = examples
  elif isinstance(examples, TreeExamples | ArrayExamples):
    inputs = examples.images if isinstance(examples, ArrayExamples) else examples.inputs
    multi_hot(examples.labels, where)
    mask = getattr(examples, "mask", None)
    found = MultiLabelExamples(inputs, examples.labels, examples.indices, mask)
  else:
    raise ConfigError(
      f"data.labels={MULTI!r}: {where} are of {type(examples).__name__}: expected examples in "
      "memory (jaxkd.data.MultiLabelExamples)"
    )
  hidden = np.flatnonzero(without_label(found))
  if split != "train" and hidden.size:
    raise ConfigError(f"{where}: row {hidden[0]} has {UNLABELLED} alone: expected numbers in 0..1")
  if len(hidden) == len(found):
    raise ConfigError(f"{where}: no example has a label")
  return found
