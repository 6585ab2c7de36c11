"""Logits of a teacher that were computed elsewhere, one row for each example of a data set.

A `Table` is a teacher without a network: its output for a batch is `logits[batch.indices]`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.errors import ConfigError
from jaxkd.table_checks import (
  check_classes,
  check_rows,
  chunks,
  float_array,
  row_name,
  served,
)
from jaxkd.types import TABLE, Array, Batch, Output

# Allowed excess of a sum of probabilities over 1: rounding of float16 logarithms.
_EXCESS = 1e-2

MISSING = ("impossible", "spread")


@dataclasses.dataclass(frozen=True, eq=False)
class TopK:
  """The K largest logits of every example.

  Attributes:
    indices: class numbers (N, ..., K), integers, distinct within a row.
    values: their logits (N, ..., K).
    num_classes: number of classes C.
    missing: probability of the C - K classes that are not in a row. "impossible": 0, so that the K
      classes have all of the probability (DistillKit's "zero" treats the teacher so). "spread":
      `values` are log-probabilities at temperature 1, and what they leave of 1 is spread evenly
      over the other classes.
  """

  indices: Any
  values: Any
  num_classes: int
  missing: Literal["impossible", "spread"] = "impossible"


class Table:
  """A frozen teacher given by its logits; in `jaxkd.methods.offline` it takes a model's place.

  Attributes:
    arrays: what is stored: "logits" (V, N, ..., C); or "classes" and "values" (V, N, ..., K) and
      "rest" (V, N, ...), the logit of every other class. V is 1 without views.
    num_classes: C.
    views: number of augmented views of each example; 0 if it has one row whatever the view.
    fed: where the rows of a batch come from. False: from the participant's variables, which hold
      the table on every device and in every checkpoint. True: from `Batch.tables`, which
      `jaxkd.train.train_phase` fills for `Phase.tables`; the variables hold a digest only.
  """

  def __init__(self, logits: Any, *, views: int = 0, fed: bool = False) -> None:
    """Check the logits; nothing is copied to a device.

    Args:
      logits: floats (N, C), or (N, ..., C) for dense predictions, row i for the example with
        `Batch.indices` i; or a `TopK`. A memory-mapped array stays on disk. -inf is an impossible
        class.
      views: V > 0 for arrays (V, N, ..., C); view e % V belongs to `Batch.epochs` e.
      fed: see the class.

    Raises:
      ConfigError: naming the array, its shape or the row, for another type or rank, NaN, +inf, a
        row in which every class is impossible, class numbers that are out of range or repeated
        within a row, or log-probabilities ("spread") whose probabilities sum to more than 1.

    >>> Table(np.float32([[0, 1], [2, 0], [1, 1]]))
    Table(3 examples, 2 classes)
    """
    if isinstance(views, bool) or not isinstance(views, int) or views < 0:
      raise ConfigError(f"views: expected an integer >= 0, got {views!r}")
    self.views, self.fed = views, fed
    self._axes = 2 if views else 1  # leading axes of the file's arrays: views and examples
    if isinstance(logits, TopK):
      self.arrays, self.num_classes = self._top_k(logits)
    else:
      array = float_array("logits", logits)
      self._check_rank("logits", array, "C")
      check_rows(self._axes, {"logits": array})
      self.arrays, self.num_classes = {"logits": self._with_views(array)}, array.shape[-1]

  def __repr__(self) -> str:
    views = f"{self.views} views of " if self.views else ""
    return f"Table({views}{len(self)} examples, {self.num_classes} classes)"

  def __len__(self) -> int:
    """Return the number of examples N."""
    return next(iter(self.arrays.values())).shape[1]

  @property
  def nbytes(self) -> int:
    """Bytes of the arrays on a device."""
    return sum(math.prod(a.shape) * served(a.dtype).itemsize for a in self.arrays.values())

  @functools.cached_property
  def digest(self) -> np.ndarray:
    """A digest of the table, (8,) uint32."""
    found = hashlib.blake2b(f"{self.views} {self.num_classes}".encode(), digest_size=32)
    for name, array in self.arrays.items():
      found.update(f"{name} {served(array.dtype)} {array.shape}".encode())
      for view in array:
        for _, rows in chunks(view):
          found.update(np.ascontiguousarray(rows, served(array.dtype)).tobytes())
    return np.frombuffer(found.digest(), np.uint32)

  @property
  def variables(self) -> dict[str, Any]:
    """The participant's variables; schemes draw the same, so they need not be given."""
    content = {"digest": self.digest} if self.fed else self.resident()
    return {TABLE: content}

  def resident(self) -> dict[str, np.ndarray]:
    """Return the arrays as a device holds them: float16 stays float16, float64 is rounded."""
    return {name: np.asarray(a, served(a.dtype)) for name, a in self.arrays.items()}

  def rows(self, indices: Any, epochs: Any = None) -> dict[str, np.ndarray]:
    """Return the rows of a batch on the host, an entry of `Batch.tables`.

    Args:
      indices: `Batch.indices` (B,).
      epochs: `Batch.epochs` (B,); needed with views.

    Raises:
      ConfigError: for an index without a row; for views without epochs.
    """
    chosen = np.asarray(indices)
    outside = chosen[(chosen < 0) | (chosen >= len(self))]
    if outside.size:
      raise ConfigError(f"indices: {outside[0]} has no row in a table of {len(self)} examples")
    self._check_epochs(epochs)
    view = np.asarray(epochs) % self.views if self.views else 0
    return {n: np.asarray(a[view, chosen], served(a.dtype)) for n, a in self.arrays.items()}

  def shapes(self, leading: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and types of `rows` with these axes in place of the batch's."""
    return {
      name: jax.ShapeDtypeStruct((*leading, *a.shape[2:]), served(a.dtype))
      for name, a in self.arrays.items()
    }

  def output(self, name: str, variables: Mapping[str, Any], batch: Batch) -> Output:
    """Return the Output with the logits (B, ..., C) of a batch, float32.

    Args:
      name: the participant, a key of `Batch.tables`.
      variables: its variables.
      batch: its `indices`, and `epochs` with views, or else its `tables` are used. The row of an
        index that the table does not have is NaN.

    Raises:
      ConfigError: for mixed labels (B, C), as the logits of a mixture are not stored; for `fed`
        without rows in `Batch.tables`.
    """
    if self.fed:
      if name not in batch.tables:
        raise ConfigError(
          f"batch.tables has no {name!r}: expected {{{name!r}: table.rows(batch.indices, "
          "batch.epochs)}, since its table is fed batch by batch (Phase.tables does that)"
        )
      rows = batch.tables[name]
    else:
      self._check_epochs(batch.epochs)
      rows = gather(variables[TABLE], batch.indices, batch.epochs)
    logits = self._dense(rows)
    if jnp.shape(batch.labels) == logits.shape and not batch.multi_label:
      raise ConfigError(
        f"batch.labels {logits.shape} are those of mixed examples, and teacher {name!r} has "
        "stored logits, which are of single ones: expected class numbers"
      )
    return Output(logits=logits)

  def _dense(self, rows: Mapping[str, Any]) -> Array:
    """Return the logits (B, ..., C) of rows, float32."""
    if "logits" in rows:
      return jnp.asarray(rows["logits"], jnp.float32)
    rest = jnp.asarray(rows["rest"], jnp.float32)[..., None]
    others = jnp.broadcast_to(rest, (*rest.shape[:-1], self.num_classes))
    values = jnp.asarray(rows["values"], jnp.float32)
    return jnp.put_along_axis(others, rows["classes"], values, axis=-1, inplace=False)

  def _check_epochs(self, epochs: Any) -> None:
    if self.views and epochs is None:
      raise ConfigError(f"batch.epochs=None: expected (B,), as the table has {self.views} views")

  def _with_views(self, array: Any) -> Any:
    return array if self.views else array[None]

  def _check_rank(self, name: str, array: np.ndarray, last: str) -> None:
    wanted = f"(V, N, {last}) with V={self.views}" if self.views else f"(N, {last})"
    if array.ndim < self._axes + 1 or 0 in array.shape:
      raise ConfigError(f"{name}: expected {wanted}, got shape {array.shape}")
    if self.views and len(array) != self.views:
      raise ConfigError(f"{name}: {len(array)} views, expected {self.views}")

  def _top_k(self, given: TopK) -> tuple[dict[str, Any], int]:
    """Return the arrays and the number of classes of a checked TopK."""
    values = float_array("values", given.values)
    classes, count = np.asanyarray(given.indices), given.num_classes
    if classes.dtype.kind not in "iu":
      raise ConfigError(f"indices: expected integers, got {classes.dtype}")
    if classes.shape != values.shape:
      raise ConfigError(f"indices {classes.shape} and values {values.shape}: expected one shape")
    self._check_rank("values", values, "K")
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
      raise ConfigError(f"num_classes: expected an integer >= 1, got {count!r}")
    if given.missing not in MISSING:
      raise ConfigError(f"missing={given.missing!r}: expected one of {', '.join(MISSING)}")
    check_classes(self._axes, classes, int(count))
    check_rows(self._axes, {"values": values})
    rest = np.full(values.shape[:-1], -np.inf, np.float32)
    if given.missing == "spread":
      rest = self._spread(values, int(count))
    arrays = {"classes": classes, "values": values, "rest": rest}
    return {name: self._with_views(array) for name, array in arrays.items()}, int(count)

  def _spread(self, values: np.ndarray, count: int) -> np.ndarray:
    """Return the log-probability of each class that a row of log-probabilities does not have."""
    sums = np.empty(values.shape[:-1])
    for at, rows in chunks(values):
      sums[at] = np.exp(rows.astype(np.float64)).sum(-1)
    wrong = np.argwhere(sums > 1 + _EXCESS)
    if wrong.size:
      at = tuple(wrong[0])
      raise ConfigError(
        f"values: {row_name(self._axes, at)} has probabilities that sum to {sums[at]:.4g}: "
        "expected log-probabilities (at most 1) with missing='spread'"
      )
    others = max(count - values.shape[-1], 1)
    with np.errstate(divide="ignore"):
      return np.log(np.maximum(1 - sums, 0) / others).astype(np.float32)


def gather(arrays: Mapping[str, Array], indices: Array, epochs: Any) -> dict[str, Array]:
  """Return the rows of a batch from arrays on the device; of an index that is absent, NaN.

  Args:
    arrays: arrays (V, N, ...) of a table.
    indices: (B,).
    epochs: (B,); None if there is one view.
  """
  views, count = next(iter(arrays.values())).shape[:2]
  indices = jnp.asarray(indices)
  inside = jnp.where(indices < 0, count, indices)  # jax counts negative ones from the end
  view = jnp.zeros_like(inside) if epochs is None else jnp.asarray(epochs) % views

  def rows(array: Array) -> Array:
    absent = jnp.nan if jnp.issubdtype(array.dtype, jnp.floating) else 0
    return jnp.asarray(array).at[view, inside].get(mode="fill", fill_value=absent)

  return {name: rows(array) for name, array in arrays.items()}


def shapes_of(
  tables: Mapping[str, Table], leading: tuple[int, ...]
) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
  """Return the shapes of `Batch.tables` with these axes in place of the batch's."""
  return {name: table.shapes(leading) for name, table in tables.items()}
