"""Batches of a split: an endless checkpointable stream to train on, a finite one to evaluate."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxkd.data.examples import UNLABELLED, ArrayExamples, Examples
from jaxkd.data.partners import PartnerDraws
from jaxkd.data.subsets import check_seed, permutation
from jaxkd.data.trees import TreeExamples
from jaxkd.errors import ConfigError, needed_by
from jaxkd.types import Batch, BatchIndices

if TYPE_CHECKING:
  import grain


# Examples that are read without decoding; threads would not read them faster.
IN_MEMORY = (ArrayExamples, TreeExamples)


def training_batches(
  examples: Examples,
  *,
  batch_size: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
  threads: int | None = None,
  places: bool = False,
  partners: Sequence[str] = (),
) -> grain.DatasetIterator[Any]:
  """Return an endless stream of full batches that passes over the examples epoch after epoch.

  The stream is the concatenation of epochs, each a permutation that (seed, epoch) determines, cut
  into global batches of batch_size * process_count; a batch may span two epochs, and every example
  occurs exactly k times in the first k epochs. Process p gets the p-th share of each global batch,
  so the global batches depend on their size alone.

  The iterator's state is its step: `get_state`, `set_state`, or an item of an orbax checkpoint
  through `grain.checkpoint.CheckpointSave` and `CheckpointRestore`. A restored iterator continues
  with the next batch.

  Args:
    examples: one or more examples.
    batch_size: batch size of this process.
    seed: seed of the order, an integer >= 0.
    process_index: number of this process.
    process_count: number of processes that share each global batch.
    threads: number of threads that read ahead; default 0 for examples in memory, else 8.
    places: True returns BatchIndices in place of batches, for a device that holds the examples.
    partners: names of views of the batches (`Batch.views`) with the inputs of another example of
      each example's class (`jaxkd.data.partners`).

  Returns:
    A grain iterator of Batch with numpy leaves: inputs as `fetch` returns them, images (B, H, W, C)
    uint8; labels (B, ...) int32, or (B, C) float32 with `multi_label`; weights of their shape,
    float32, 1 for the labelled and 0 for the unlabelled; indices (B,) int32; epochs (B,) int32; the
    mask of the examples, if they have one; or of BatchIndices.

  Raises:
    ConfigError: naming the argument that is out of range.
  """
  with needed_by("jaxkd.data.training_batches"):
    import grain  # takes a second, and only training needs it

  _check(examples, batch_size, process_index, process_count)
  if threads is None:
    threads = 0 if places or isinstance(examples, IN_MEMORY) else 8
  if threads < 0:
    raise ConfigError(f"threads: expected an integer >= 0, got {threads}")
  pairs = PartnerDraws(examples, check_seed(seed), tuple(partners)) if partners else None
  stream = _Stream(
    examples, batch_size, check_seed(seed), process_index, process_count, places, pairs
  )
  ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
  return iter(grain.MapDataset.source(stream).to_iter_dataset(ahead))


def evaluation_batches(
  examples: Examples, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
  """Return every example once, in order, in batches of one size.

  The last batch is padded by repeating the last example with weight 0, so a jitted step sees one
  shape and weighted sums count each example once. Several processes share each global batch as in
  `training_batches`, and all get the same number of batches.

  Raises:
    ConfigError: naming the argument that is out of range.
  """
  _check(examples, batch_size, process_index, process_count)
  return _one_pass(examples, batch_size, process_index, process_count)


def _one_pass(
  examples: Examples, batch_size: int, process_index: int, process_count: int
) -> Iterator[Batch]:
  for start in range(0, len(examples), batch_size * process_count):
    unclipped = start + process_index * batch_size + np.arange(batch_size)
    positions = np.minimum(unclipped, len(examples) - 1)
    yield _gather(examples, positions, unclipped < len(examples))


@dataclasses.dataclass(frozen=True)
class _Stream:
  """Random access to the batches of an endless stream, by step."""

  examples: Examples
  batch_size: int
  seed: int
  process_index: int
  process_count: int
  places: bool
  pairs: PartnerDraws | None

  def __len__(self) -> int:
    return sys.maxsize  # grain's convention for an endless data set

  def __getitem__(self, step: int) -> Batch | BatchIndices:
    first = (step * self.process_count + self.process_index) * self.batch_size
    positions = self._positions(first, first + self.batch_size)
    epochs = ((first + np.arange(self.batch_size)) // len(self.examples)).astype(np.int32)
    found = self.pairs.of(positions, epochs) if self.pairs else {}
    if self.places:
      return BatchIndices(positions.astype(np.int32), epochs, found)
    batch = _gather(self.examples, positions, np.ones(self.batch_size, bool))
    views = {name: self.examples.fetch(at) for name, at in found.items()}
    return dataclasses.replace(batch, epochs=epochs, views=views)

  def _positions(self, start: int, stop: int) -> np.ndarray:
    n = len(self.examples)
    parts = []
    for epoch in range(start // n, (stop - 1) // n + 1):
      order = _epoch_order(n, self.seed, epoch)
      parts.append(order[max(start - epoch * n, 0) : min(stop - epoch * n, n)])
    return np.concatenate(parts)


# Consecutive steps need the same epoch; several are cached for the threads that read ahead.
@functools.lru_cache(maxsize=8)
def _epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
  return permutation(n, seed, epoch)


def _gather(examples: Examples, positions: np.ndarray, real: np.ndarray) -> Batch:
  labels, mask = examples.labels[positions], getattr(examples, "mask", None)
  real = real.reshape(-1, *(1,) * (labels.ndim - 1))
  return Batch(
    inputs=examples.fetch(positions),
    labels=labels,
    weights=(real & (labels != UNLABELLED)).astype(np.float32),
    indices=examples.indices[positions],
    mask=None if mask is None else mask[positions],
    multi_label=getattr(examples, "multi_label", False),
  )


def _check(examples: Examples, batch_size: int, process_index: int, process_count: int) -> None:
  if len(examples) == 0:
    raise ConfigError("examples: there are none")
  if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
    raise ConfigError(f"batch_size: expected an integer >= 1, got {batch_size!r}")
  if not 0 <= process_index < process_count:
    raise ConfigError(
      f"process_index: expected 0..process_count-1, got {process_index} of {process_count}"
    )
