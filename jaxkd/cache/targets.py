"""Targets of frozen networks that are computed once per example and view."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.cache.split import split_loss
from jaxkd.cache.store import StoredTargets, fingerprint
from jaxkd.data.keys import view_keys
from jaxkd.data.pipeline import evaluation_batches, training_batches
from jaxkd.errors import ConfigError
from jaxkd.runtime import mapping
from jaxkd.types import Array, Batch, Context, Counts, Participants, Scheme

# Allowed difference relative to the largest value: more than float32 rounding in another order.
TOLERANCE = 1e-3


def depends_on_batch(
  compute: Callable[[Batch], Any], batch: Batch, *, tolerance: float = TOLERANCE
) -> bool:
  """Check whether per-example outputs depend on the rest of the batch, or on the place in it.

  A permutation would not detect symmetric functions of the batch, such as batch statistics. So one
  example of each pair of neighbours is replaced by a copy of the other, in both directions: every
  example is computed at its own place and at its neighbour's.

  Args:
    compute: batch -> pytree of arrays (B, ...), compiled or not.
    batch: B >= 2 examples that are not all equal.
    tolerance: allowed rounding difference, relative to the largest value of an array.
  """
  size = len(batch.indices)
  usual = _host(compute(batch))
  pairs = np.arange(size) // 2 * 2
  for chosen in (pairs, np.minimum(pairs + 1, size - 1)):
    # Each array is (B, ...), so `chosen` picks examples.
    replaced = _host(compute(jax.tree.map(lambda x, at=chosen: np.asarray(x)[at], batch)))
    for before, after in zip(usual, replaced, strict=True):
      allowed = tolerance * np.max(np.abs(before), initial=0.0)
      if not np.all(np.abs(after - before[chosen]) <= allowed):
        return True
  return False


def _host(tree: Any) -> list[np.ndarray]:
  return [np.asarray(x, np.float64) for x in jax.device_get(jax.tree.leaves(tree))]


class Trained(Protocol):
  """The attributes of a training phase that this module reads.

  A protocol, so that `jaxkd.cache` does not import `jaxkd.train`.
  """

  @property
  def name(self) -> str:
    """Name of the phase."""

  @property
  def scheme(self) -> Scheme:
    """Scheme that is trained."""

  @property
  def label_smoothing(self) -> float:
    """Share of every label that is spread evenly over the classes."""

  @property
  def class_weights(self) -> tuple[float, ...]:
    """Weight of each class in the cross-entropy of labels."""

  @property
  def examples(self) -> Any:
    """Training examples."""

  @property
  def batch_size(self) -> int:
    """Examples per update."""

  @property
  def accumulate(self) -> int:
    """Parts of a batch."""

  @property
  def views(self) -> int:
    """Augmented versions of every example; 0 for new ones each time."""

  @property
  def prepare_training(self) -> Callable[[Array, Batch], Batch]:
    """Normalisation and augmentation of a training batch."""

  @property
  def prepare_evaluation(self) -> Callable[[Batch], Batch]:
    """Normalisation of an evaluation batch."""


class CachedTargets:
  """The precomputed part of a phase's targets, for every example and view.

  Attributes:
    bytes: total size of the arrays.
  """

  def __init__(self, phase: Trained, shapes: Participants, devices: Sequence[jax.Device]) -> None:
    """Split the loss of the phase; only shapes are used.

    Args:
      phase: the training phase.
      shapes: shapes and types of its participants.
      devices: devices of this process.

    Raises:
      ConfigError: naming the phase, if its targets come from networks that it trains, or do not
        have the examples along their first axis.
    """
    self._phase = phase
    self._devices = devices
    self._views = max(phase.views, 1)
    self._axis_size = len(devices) * jax.process_count()
    # Examples of one evaluation of the loss: the share of a device, or a part of it.
    self._part = phase.batch_size // self._axis_size // phase.accumulate
    seen = _as_seen(phase, self._part)
    self._split = split_loss(
      phase.scheme, shapes, seen, _context_of(phase, seen), axis_size=self._axis_size
    )
    if self._split.changing:
      raise ConfigError(
        f"cached_targets=True: the targets of phase {phase.name!r} depend on "
        f"{self._split.changing[0]}, which changes in it; expected False"
      )
    self.bytes = self._split.bytes_stored * self._views * len(phase.examples)

  @property
  def loss_from_cache(self) -> Callable[..., Any]:
    """(learning, participants, batch, cached targets, context) -> result of the scheme's loss."""
    return self._split.loss_from_cache

  def in_memory(self, rng: Array, participants: Participants, report: Callable[[str], None]) -> Any:
    """Compute all targets: arrays (views, N, ...) on the host.

    Args:
      rng: PRNG key data of the phase.
      participants: participants, of which the frozen ones have their final values.
      report: receives a line with the size and the time taken.

    Raises:
      ConfigError: naming the phase, if the targets of an example depend on the rest of its batch.
    """
    started = time.monotonic()
    size = (self._views, len(self._phase.examples))
    found = tuple(np.empty((*size, *x.shape[1:]), x.dtype) for x in self._split.stored)
    for view, start, arrays in self._computed(rng, participants):
      for whole, part in zip(found, arrays, strict=True):
        whole[view, start : start + len(part)] = part
    self._report_size(report, "on each device", time.monotonic() - started)
    return found

  def on_disk(
    self,
    rng: Array,
    participants: Participants,
    directory: pathlib.Path,
    report: Callable[[str], None],
  ) -> Callable[[np.ndarray, np.ndarray], Any]:
    """Store all targets; return a reader: (positions (B,), epochs (B,)) -> arrays (B, ...).

    Args:
      rng: as `in_memory`.
      participants: as `in_memory`.
      directory: where they are stored; stored targets are used again if they are still valid.
      report: as `in_memory`.

    Raises:
      ConfigError: as `in_memory`.
    """
    started = time.monotonic()
    leaves = jax.tree.leaves_with_path(participants)
    paths = {f"participants{jax.tree_util.keystr(path)}": leaf for path, leaf in leaves}
    read = {path: leaf for path, leaf in paths.items() if path in self._split.reads}
    layout = [[*x.shape[1:], str(x.dtype)] for x in self._split.stored]
    examples = self._phase.examples.indices
    about = fingerprint(rng, read, examples, self._views, repr(layout))
    kept = StoredTargets(directory, self._split.stored, about)
    if not (kept.complete and self._still_valid(kept, rng, participants)):
      kept.write(arrays for _, _, arrays in self._computed(rng, participants))
      self._report_size(report, f"in {directory}", time.monotonic() - started)
    count = len(self._phase.examples)
    return lambda positions, epochs: kept.read(epochs % self._views * count + positions)

  def _still_valid(self, kept: StoredTargets, rng: Array, participants: Participants) -> bool:
    """Compare the stored targets of the first batch with targets that are computed now.

    The fingerprint covers weights and the numbers of the examples. This comparison also detects
    other images under the same numbers, another normalisation, and another conversion of the
    teacher's images.
    """
    _, _, arrays = next(self._computed(rng, participants))
    stored = kept.read(np.arange(len(arrays[0])))
    return all(map(_agree, stored, arrays))

  def _computed(
    self, rng: Array, participants: Participants
  ) -> Iterator[tuple[int, int, list[np.ndarray]]]:
    """Yield (view, first position, arrays of the examples from that position on), in order."""
    phase = self._phase

    def reduced(state: Any, batch: Batch) -> Any:
      rng, participants = state
      batch = phase.prepare_training(view_keys(rng, batch, self._views), batch)
      return self._split.precompute(phase.scheme.targets(participants, batch))

    mapped = mapping.map_over_examples(reduced, self._devices)
    replicated = mapping.replicate((rng, participants), self._devices)
    size, count = self._part * len(self._devices), len(phase.examples)

    def run(batch: Batch) -> list[np.ndarray]:
      found = jax.device_get(mapped(replicated, mapping.shard(batch, self._devices)))
      return [x.reshape(size, *x.shape[2:]) for x in found]

    for view in range(self._views):
      batches = evaluation_batches(phase.examples, batch_size=size)
      for start, batch in zip(range(0, count, size), batches, strict=True):
        batch = dataclasses.replace(batch, epochs=np.full(size, view, np.int32))
        if view == start == 0 and size > 1 and depends_on_batch(run, batch):
          raise ConfigError(
            f"cached_targets=True: the targets of phase {phase.name!r} depend on which examples "
            "meet in a batch; expected False"
          )
        yield view, start, [x[: count - start] for x in run(batch)]

  def _report_size(self, report: Callable[[str], None], where: str, seconds: float) -> None:
    views = f"{self._views} views" if self._views > 1 else "one view"
    report(
      f"{self._phase.name}: targets of {views} of {len(self._phase.examples)} examples, "
      f"{self.bytes / 2**20:.1f} MiB {where}, computed in {seconds:.1f} s"
    )


def _agree(stored: np.ndarray, computed: np.ndarray) -> bool:
  """Check whether two arrays are equal up to the rounding of another program."""
  if not np.issubdtype(computed.dtype, np.floating):
    # Integers and booleans, such as signs of values near 0, may differ in a few places.
    return bool(np.mean(stored != computed) <= TOLERANCE)
  allowed = TOLERANCE * np.max(np.abs(computed), initial=0.0)
  return bool(np.all(np.abs(stored - computed) <= allowed))


def _context_of(phase: Trained, batch: Batch) -> Context:
  """Return a context of the structure that the phase's step has."""
  whole = phase.accumulate == 1 and batch.mask is None  # as in `jaxkd.counts.whole_counts`
  counts = None if whole else Counts(*[jnp.float32(1)] * 3)
  step = jnp.int32(0)
  return Context(
    jax.random.key(0),
    step,
    mapping.AXIS_NAME,
    phase.accumulate,
    counts,
    label_smoothing=phase.label_smoothing,
    class_weights=phase.class_weights,
  )


def _as_seen(phase: Trained, size: int) -> Batch:
  """Return the shapes of a batch of the phase, as its networks see it."""
  partners = getattr(phase, "partners", ())
  batch = next(training_batches(phase.examples, batch_size=2, seed=0, threads=0, partners=partners))
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, size, *x.shape[1:]), x.dtype), batch)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (1, size)))
  prepare = jax.vmap(phase.prepare_training, axis_name=mapping.AXIS_NAME)
  seen = jax.eval_shape(prepare, keys, batch)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), seen)
