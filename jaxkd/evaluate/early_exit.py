"""Early-exit inference: confident images leave, the next block computes only the others.

A multi-exit model needs two members:
- `num_exits`, and
- `run_block(carry, block, train) -> (carry, Output)`, a linen method. Block 0 takes the images;
  `carry` is a pytree of arrays with the batch as leading axis; the Output is that of exit `block`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.errors import ConfigError
from jaxkd.evaluate.budgeted import confidences


class EarlyPredictions(NamedTuple):
  """The result of `EarlyExit`.

  Attributes:
    logits: (N, C) float32, of the exit at which each image left.
    exits: (N,) number of that exit, from 0.
    rows: number of rows that each block computed, padding included.
  """

  logits: np.ndarray
  exits: np.ndarray
  rows: tuple[int, ...]


class EarlyExit:
  """A multi-exit model that runs block by block on the images that have not left yet.

  Images are processed `sizes[-1]` at a time. After each block, images whose confidence reaches the
  exit's threshold leave; the rest are gathered into a batch of the smallest size that holds them.
  Every block is compiled once for each size, for all images and thresholds.

  Exits and logits are those of `exit_logits` and `chosen_exits`. Batches have other sizes, though,
  so an image whose confidence equals a threshold up to rounding may leave one exit earlier or
  later.

  Source: this project; Huang et al., ICLR 2018, count the saved operations and do not time them.
  """

  def __init__(self, model: Any, variables: Any, *, sizes: Sequence[int] | None = None) -> None:
    """Copy the variables to the device.

    Args:
      model: see the module's docstring.
      variables: its Flax variables.
      sizes: batch sizes for the blocks, rising; default `batch_sizes(256)`.

    Raises:
      ConfigError: for sizes that do not rise.
    """
    self.sizes = tuple(sizes) if sizes is not None else batch_sizes(256)
    if not self.sizes or list(self.sizes) != sorted(set(self.sizes)) or self.sizes[0] < 1:
      raise ConfigError(f"sizes: expected rising integers >= 1, got {list(self.sizes)!r}")
    self._count = model.num_exits
    self._variables = jax.device_put(variables)

    @functools.partial(jax.jit, static_argnums=2)
    def run(variables: Any, carry: Any, block: int) -> Any:
      carry, output = model.apply(variables, carry, block, False, method="run_block")
      # The last block's carry is not needed, so it is not computed.
      return (carry if block + 1 < model.num_exits else None), output.logits.astype(jnp.float32)

    self._run = run
    self._gather = jax.jit(lambda carry, rows: jax.tree.map(lambda x: x[rows], carry))

  def compile(self, image_shape: Sequence[int]) -> None:
    """Compile every block for every size, and the gather from every size to each smaller one.

    Args:
      image_shape: (H, W, C) of the float32 images.
    """
    for size in self.sizes:
      carry: Any = np.zeros((size, *image_shape), np.float32)
      for block in range(self._count):
        carry, _ = self._run(self._variables, carry, block)
        for smaller in self.sizes[: self.sizes.index(size)]:
          self._gather(carry, np.zeros(smaller, np.int32))
    jax.block_until_ready(carry)

  def __call__(self, images: Any, thresholds: Sequence[float]) -> EarlyPredictions:
    """Predict without computing an image beyond the exit at which it leaves.

    Args:
      images: (N, H, W, C) float32, the input of block 0.
      thresholds: as `fit_thresholds` returns them; the last one is not used.

    Raises:
      ConfigError: for no images, or another number of thresholds than of exits.
    """
    if len(thresholds) != self._count:
      raise ConfigError(f"thresholds: {len(thresholds)} for a model with {self._count} exits")
    images = np.asarray(images, np.float32)
    if not len(images):
      raise ConfigError("images: there are none")
    parts = [
      self._predict(images[start : start + self.sizes[-1]], thresholds)
      for start in range(0, len(images), self.sizes[-1])
    ]
    logits, exits, rows = zip(*parts, strict=True)
    return EarlyPredictions(
      np.concatenate(logits), np.concatenate(exits), tuple(int(n) for n in np.sum(rows, axis=0))
    )

  def _predict(
    self, images: np.ndarray, thresholds: Sequence[float]
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predict one batch of at most the largest size."""
    staying = np.arange(len(images))  # numbers of the images that have not left
    rows_of = np.arange(len(images))  # the carry's row of each of them
    size = self._smallest_size(len(images))
    padding = ((0, size - len(images)), (0, 0), (0, 0), (0, 0))
    carry: Any = np.pad(images, padding)
    logits = np.zeros(0)
    exits = np.full(len(images), self._count - 1)
    rows = np.zeros(self._count, int)
    for block in range(self._count):
      rows[block] = size
      carry, output = self._run(self._variables, carry, block)
      found = np.asarray(output)[rows_of]
      if block == 0:
        logits = found.copy()
      logits[staying] = found
      if block + 1 == self._count:
        break
      leaves = confidences(found) >= thresholds[block]
      exits[staying[leaves]] = block
      staying, rows_of = staying[~leaves], rows_of[~leaves]
      if not len(staying):
        break
      if (smaller := self._smallest_size(len(staying))) < size:
        # Padding repeats a row, so it contains ordinary values.
        chosen = np.full(smaller, rows_of[0], np.int32)
        chosen[: len(rows_of)] = rows_of
        carry, size = self._gather(carry, chosen), smaller
        rows_of = np.arange(len(staying))
    return logits, exits, rows

  def _smallest_size(self, count: int) -> int:
    """Return the smallest size that holds `count` images."""
    return next(size for size in self.sizes if size >= count)


def batch_sizes(largest: int) -> tuple[int, ...]:
  """Return batch sizes from a 16th of `largest` to `largest`: powers of two and their midpoints.

  >>> batch_sizes(256)
  (16, 24, 32, 48, 64, 96, 128, 192, 256)
  >>> batch_sizes(100)
  (6, 9, 12, 18, 25, 37, 50, 75, 100)
  """
  fractions = {largest * part // 64 for part in (4, 6, 8, 12, 16, 24, 32, 48, 64)}
  return tuple(sorted(size for size in fractions if size))
