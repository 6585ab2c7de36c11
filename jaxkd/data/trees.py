"""Examples whose inputs are any pytree of arrays: tokens, tables, images with dense labels."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import jax
import numpy as np

from jaxkd.data.examples import UNLABELLED
from jaxkd.errors import ConfigError
from jaxkd.shapes import named_leaves

_INT32 = np.iinfo(np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class TreeExamples:
  """Examples in memory with inputs of any kind.

  A model receives the inputs as they are here, with a leading axis B in place of N: nothing is
  normalised, unless the `Dataset` has an `image_shape`.

  Attributes:
    inputs: a pytree (dict, list, tuple, dataclass, or one array) of arrays with leading axis N:
      numbers or booleans. float64 and int64 become float32 and int32, as everywhere in JAX.
    labels: class numbers (N,), (N, T) or (N, H, W), of any integer type; UNLABELLED (-1) where the
      class is hidden. They have the leading axes of the model's logits.
    indices: (N,) int32, positions in the original split; None numbers the examples.
    mask: (N,), or more of the first axes of `labels`; 0 or False marks padding, which is left out
      of losses, metrics and statistics. Its labels and inputs may hold anything. None: no padding.

  Raises:
    ConfigError: naming the leaf, if an array is of another length or type, or a value has no place
      in int32; for labels that are no integers, or a mask of another shape.

  >>> tokens = np.array([[5, 3, 0], [2, 0, 0]])
  >>> examples = TreeExamples({"tokens": tokens}, np.array([1, 0]))
  >>> examples.fetch(np.array([1]))
  {'tokens': array([[2, 0, 0]], dtype=int32)}
  >>> TreeExamples({"tokens": tokens}, np.array([1, 0, 1]))
  Traceback (most recent call last):
  jaxkd.errors.ConfigError: inputs['tokens'] has 2 rows and labels 3: expected one row per example
  """

  inputs: Any
  labels: np.ndarray
  indices: np.ndarray = None  # type: ignore[assignment]
  mask: np.ndarray | None = None

  def __post_init__(self) -> None:
    labels = _labels(self.labels)
    count = len(labels)
    named = {name: _array(name, leaf) for name, leaf in named_leaves(self.inputs).items()}
    if not named:
      raise ConfigError(f"inputs={self.inputs!r}: expected at least one array")
    for name, leaf in named.items():
      if len(leaf) != count:
        raise ConfigError(
          f"{name} has {len(leaf)} rows and labels {count}: expected one row per example"
        )
    indices = np.arange(count, dtype=np.int32) if self.indices is None else self.indices
    indices = np.asarray(indices)
    if indices.dtype.kind not in "iu" or indices.shape != (count,):
      raise ConfigError(
        f"indices: expected integers ({count},), got {indices.dtype} {indices.shape}"
      )
    _set(
      self,
      inputs=jax.tree.unflatten(jax.tree.structure(self.inputs), list(named.values())),
      labels=labels,
      indices=_as_type("indices", indices, np.dtype(np.int32)),
      mask=None if self.mask is None else _mask(self.mask, labels),
    )

  def __len__(self) -> int:
    return len(self.labels)

  @property
  def nbytes(self) -> int:
    """Bytes of the arrays that a device holds for these examples."""
    arrays = [*jax.tree.leaves(self.inputs), self.labels, self.labels, self.mask]
    return sum(array.nbytes for array in arrays if array is not None)

  def fetch(self, positions: np.ndarray) -> Any:
    """Return the inputs at these positions, a pytree of arrays (n, ...)."""
    return jax.tree.map(lambda leaf: leaf[positions], self.inputs)

  def take(self, positions: np.ndarray) -> Self:
    """Return the subset at these positions, in their order."""
    return dataclasses.replace(
      self,
      inputs=self.fetch(positions),
      labels=self.labels[positions],
      indices=self.indices[positions],
      mask=None if self.mask is None else self.mask[positions],
    )

  def hide_labels(self, positions: np.ndarray) -> Self:
    """Return the same examples with all labels at these positions hidden."""
    labels = self.labels.copy()
    labels[positions] = UNLABELLED
    return dataclasses.replace(self, labels=labels)


def check_finite_inputs(where: str, examples: Any) -> None:
  """Raise a ConfigError that names the first leaf and row with a NaN or an infinity, if any.

  Examples of which nothing counts may hold anything.

  Args:
    where: data set and split, for the error.
    examples: examples in memory.
  """
  mask = getattr(examples, "mask", None)
  counted = np.ones(len(examples), bool)
  if mask is not None:
    counted = mask.reshape(len(examples), -1).any(axis=1)
  for name, leaf in named_leaves(examples.inputs).items():
    if not jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact):
      continue
    bad = counted & ~np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1)
    if bad.any():
      row = int(np.argmax(bad))
      values = np.ravel(leaf[row])
      value = values[~np.isfinite(values)][0]
      raise ConfigError(f"{where}: {name}, row {row}: {value}: expected finite numbers")


def check_same_inputs(where: str, inputs: Any, reference: Any) -> None:
  """Raise a ConfigError that names the first leaf of another shape or type than in training.

  Args:
    where: data set and split, for the error.
    inputs: inputs of one or more examples of the split, (n, ...).
    reference: inputs of the training split.
  """
  want, have = (
    {name: f"{x.dtype} {x.shape[1:]}" for name, x in named_leaves(tree).items()}
    for tree in (reference, inputs)
  )
  for name in want | have:
    if want.get(name) != have.get(name):
      raise ConfigError(
        f"{where}: {name} is {have.get(name, 'missing')}, that of the training examples is "
        f"{want.get(name, 'missing')}"
      )
  ours, theirs = str(jax.tree.structure(inputs)), str(jax.tree.structure(reference))
  if ours != theirs:
    raise ConfigError(f"{where}: inputs are {ours}, those of the training examples {theirs}")


def _set(examples: TreeExamples, **values: Any) -> None:
  for name, value in values.items():
    object.__setattr__(examples, name, value)


def _array(name: str, leaf: Any) -> np.ndarray:
  """Return a leaf as a numpy array of a type that JAX has, with at least one axis."""
  if np.ndim(leaf) == 0:
    raise ConfigError(
      f"{name}={leaf!r}: expected an array with a row per example (lists are read as pytrees: "
      "np.asarray makes an array)"
    )
  array = np.asarray(leaf)
  if not (np.issubdtype(array.dtype, np.bool_) or jax.numpy.issubdtype(array.dtype, np.number)):
    raise ConfigError(
      f"{name}: expected numbers, got {array.dtype} {array.shape}: text must be tokenised first"
    )
  return _as_type(name, array, jax.dtypes.canonicalize_dtype(array.dtype))


def _as_type(name: str, array: np.ndarray, dtype: Any) -> np.ndarray:
  """Return the array in another type, if all integers have a place in it."""
  if array.dtype == dtype:
    return array
  if np.issubdtype(dtype, np.integer) and array.size:
    info = np.iinfo(dtype)
    outside = (array < info.min) | (array > info.max)
    if outside.any():
      first = tuple(int(place) for place in np.argwhere(outside)[0])
      raise ConfigError(f"{name}, row {first[0]}: {array[first]} has no place in {dtype}")
  with np.errstate(over="ignore"):  # a number beyond float32 becomes inf, which validation names
    return array.astype(dtype)


def _labels(labels: Any) -> np.ndarray:
  array = np.asarray(labels)
  if array.ndim == 0 or array.dtype.kind not in "biu":
    raise ConfigError(
      f"labels: expected integers (N,), or of every position (N, T) or (N, H, W), got "
      f"{array.dtype} {array.shape}"
    )
  # A number beyond int32 is no class; padding may hold it.
  return np.clip(array, _INT32.min, _INT32.max).astype(np.int32)


def _mask(mask: Any, labels: np.ndarray) -> np.ndarray:
  array = np.asarray(mask)
  if array.ndim == 0 or array.dtype.kind not in "biuf" or array.shape != labels.shape[: array.ndim]:
    allowed = " or ".join(str(labels.shape[: axes + 1]) for axes in range(labels.ndim))
    raise ConfigError(
      f"mask: expected {allowed}, the axes of labels {labels.shape}, got {array.dtype} "
      f"{array.shape}; a mask that only the model reads is part of the inputs"
    )
  return array != 0
