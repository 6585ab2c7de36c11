"""CRD's embeddings of both networks, and the memory of what they were for every example."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn.initializers import variance_scaling

from jaxkd.adapters.memory import all_examples, write_rows
from jaxkd.errors import ConfigError
from jaxkd.losses._checks import stage_arrays
from jaxkd.losses._numerics import l2_normalize, widen
from jaxkd.losses.crd import log_normalizer_of
from jaxkd.types import MEMORY, Batch, Output

# torch's default for linear layers.
_uniform = variance_scaling(1 / 3, "fan_in", "uniform")


class ExampleTable:
  """The examples of a memory: their rows, and which of them have other classes.

  Attributes:
    size: number of examples N.
    fewest: the smallest number, over all examples, of examples of other classes.
  """

  def __init__(self, indices: Any, labels: Any) -> None:
    """Make the table.

    Args:
      indices: (N,) integers, `Batch.indices` of every example, each once; row i is indices[i].
      labels: (N,) class numbers; -1, or an array of another rank (multi-hot labels, labels of
        positions): an example is then of a class of its own.

    Raises:
      ConfigError: if there is no example, an index occurs twice, or all are of one class.
    """
    indices, labels = np.asarray(indices), np.asarray(labels)
    self.size = len(indices)
    if not self.size or len(np.unique(indices)) != self.size or indices.min() < 0:
      raise ConfigError(
        f"indices of {self.size} examples: expected at least one, numbers >= 0, each of them once"
      )
    own = np.arange(self.size) + (labels.max(initial=0) + 1 if labels.ndim == 1 else 0)
    classes = np.where(labels >= 0, labels, own) if labels.ndim == 1 else own
    self._row_of = np.full(indices.max() + 1, self.size, np.int32)
    self._row_of[indices] = np.arange(self.size)
    self._by_class = np.argsort(classes, kind="stable").astype(np.int32)
    ordered = classes[self._by_class]
    # Where the class of a row begins in this order, and how many are of it.
    self._start = np.searchsorted(ordered, classes, side="left").astype(np.int32)
    self._same = np.searchsorted(ordered, classes, side="right").astype(np.int32) - self._start
    self.fewest = self.size - int(self._same.max())
    if not self.fewest:
      raise ConfigError(f"labels of {self.size} examples: expected more than one class")

  def rows(self, indices: Array) -> Array:
    """Return the rows (B,) of examples; N for an index that is none of the table's."""
    return jnp.take(self._row_of, indices, mode="fill", fill_value=self.size)

  def others(self, keys: Array, rows: Array, count: int) -> Array:
    """Return `count` different rows of other classes for each example, (B, count).

    The rows of other classes, in order of their class, are turned by a random number and cut in
    `count` parts of nearly equal size; one row is drawn of each. Every row is as likely as any
    other. The work does not depend on N.

    Args:
      keys: (B,) PRNG keys.
      rows: (B,).
      count: at most `fewest`.
    """
    return jax.vmap(functools.partial(self._others, count=count))(keys, rows)

  def _others(self, key: Array, row: Array, count: int) -> Array:
    start, same = (jnp.take(x, row, mode="clip") for x in (self._start, self._same))
    number = self.size - same
    key, turning = jax.random.split(key)
    quotient, remainder = number // count, number % count
    part = jnp.arange(count)
    first = part * quotient + jnp.minimum(part, remainder)
    length = quotient + (part < remainder)
    within = jnp.floor(jax.random.uniform(key, (count,)) * length).astype(jnp.int32)
    place = first + jnp.minimum(within, length - 1)
    place = (place + jax.random.randint(turning, (), 0, number)) % number
    # The class of the example itself is left out of the order.
    return jnp.take(self._by_class, place + jnp.where(place >= start, same, 0))


class ContrastMemory(nn.Module):
  """An adapter that embeds both networks' features, and remembers the embeddings of all examples.

  e = normalised(linear(flattened feature)) on each side. For every example of the batch, the
  contrasts of a side are rows of its memory: that of the example itself, then `negatives` others of
  other classes. After they are read, the rows of the batch become normalised(m row + (1 - m) e).

  The negatives depend on a key of the memory, the step and the example's index alone, so that they
  are the same on any number of devices. Work and memory traffic per step are O(B K), whatever N.

  Attributes:
    table: the examples.
    width: D, dimensions of the embeddings.
    negatives: K; at most as many as every example has of other classes.
    temperature: of the scores, for the normaliser.
    momentum: m, in 0..1.
    stages: (student's stage, teacher's stage).
    device_axis: set by the training step; the memory is written from the examples of all devices.
    dtype: dtype of the linear layers; parameters and memory stay float32.

  Parameters: "student_embedding", "teacher_embedding" {"kernel", "bias"}. Collection "memory":
  "student" and "teacher" (N, D), drawn with a mean squared norm of 1; "log_normalizers" (2,) of the
  first batch, which "normalized" says is there; "key", "steps".

  Source: Tian et al., ICLR 2020, as Embed and ContrastMemory of RepDistiller and mdistiller. Those
  draw with replacement where K is larger than the number of other examples; here K is reduced.
  """

  table: ExampleTable
  width: int = 128
  negatives: int = 16384
  temperature: float = 0.07
  momentum: float = 0.5
  stages: tuple[str, str] = ("pooled", "pooled")
  device_axis: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(
    self,
    inputs: tuple[Output, Output, Batch],
    train: bool,
    contrasts: Array | None = None,
  ) -> tuple[Output, Output]:
    """Map (student, teacher, batch) to both, with "embedding", "contrasts", "log_normalizer".

    Args:
      inputs: student, teacher and batch.
      train: whether the memory is written.
      contrasts: (B, 1 + K) rows in place of those drawn, the example's own first.
    """
    student, teacher, batch = inputs
    ours = self._embedded("student", student)
    theirs = self._embedded("teacher", teacher)
    memories = [self._memory(name) for name in ("student", "teacher")]
    key = self.variable(MEMORY, "key", lambda: jax.random.key_data(self.make_rng("params")))
    steps = self.variable(MEMORY, "steps", lambda: jnp.int32(0))
    rows = self.table.rows(batch.indices)
    if contrasts is None:
      step_key = jax.random.fold_in(jax.random.wrap_key_data(key.value), steps.value)
      keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, batch.indices)
      count = min(self.negatives, self.table.fewest)
      contrasts = jnp.concatenate([rows[:, None], self.table.others(keys, rows, count)], axis=1)
    # An index that is none of the table's gives NaN, not another example's row.
    read = [jnp.take(m.value, contrasts, axis=0, mode="fill") for m in memories]
    normalizers = self._normalizers((ours, read[1]), (theirs, read[0]), batch, train)
    if train:
      for memory, embedding in zip(memories, (ours, theirs), strict=True):
        self._write(memory, rows, embedding, batch)
      steps.value = steps.value + 1
    found = [
      Output(features={"embedding": e, "contrasts": c, "log_normalizer": z})
      for e, c, z in zip((ours, theirs), read, normalizers, strict=True)
    ]
    return found[0], found[1]

  def _embedded(self, name: str, output: Output) -> Array:
    x = stage_arrays(output, self.stages[name == "teacher"], role=name)
    x = x.reshape(x.shape[0], -1)
    bound = x.shape[1] ** -0.5
    linear = nn.Dense(
      self.width,
      dtype=self.dtype,
      kernel_init=_uniform,
      bias_init=lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
      ),
      name=f"{name}_embedding",
    )
    (embedding,) = widen(linear(x))
    return l2_normalize(embedding, axis=1)

  def _memory(self, name: str) -> Any:
    def drawn() -> Array:
      bound = (3 / self.width) ** 0.5
      shape = (self.table.size, self.width)
      return jax.random.uniform(self.make_rng("params"), shape, minval=-bound, maxval=bound)

    return self.variable(MEMORY, name, drawn)

  def _normalizers(
    self,
    student: tuple[Array, Array],
    teacher: tuple[Array, Array],
    batch: Batch,
    train: bool,
  ) -> Array:
    """Log Z of both anchors: that of the first batch in which an example counts."""
    stored = self.variable(MEMORY, "log_normalizers", lambda: jnp.zeros(2, student[0].dtype))
    there = self.variable(MEMORY, "normalized", lambda: jnp.zeros((), bool))
    fresh = jnp.stack(
      [
        log_normalizer_of(
          *side,
          examples=self.table.size,
          temperature=self.temperature,
          axis_name=self.device_axis,
          where=batch.mask,
        )
        for side in (student, teacher)
      ]
    )
    found = jnp.where(there.value, stored.value, fresh)
    if train:
      stored.value = jnp.where(jnp.isfinite(found), found, 0).astype(stored.value.dtype)
      there.value = there.value | jnp.isfinite(fresh).all()
    return found

  def _write(self, memory: Any, rows: Array, embedding: Array, batch: Batch) -> None:
    axis = self.device_axis
    mask = None if batch.mask is None else all_examples(batch.mask, axis)
    rows, new = all_examples(rows, axis), all_examples(jax.lax.stop_gradient(embedding), axis)
    old = jnp.take(memory.value, rows, axis=0, mode="clip")
    moved = l2_normalize(self.momentum * old + (1 - self.momentum) * new, axis=1)
    memory.value = write_rows(memory.value, rows, moved, mask)
