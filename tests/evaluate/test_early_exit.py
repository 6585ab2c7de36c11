import collections

import jax
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.evaluate import EarlyExit, chosen_exits, confidences
from tests.evaluate.blocks import EXITS, SHAPE, Blocks, images, variables

SIZES = (2, 4, 8)
COUNT = 19  # two full batches and three images


class Watched:
  """An early exit whose blocks record what they compute."""

  def __init__(self):
    self.seen, self.traced = [], 0
    model = Blocks(watch=lambda block, rows: self.seen.append((int(block), int(rows))))
    self.early = EarlyExit(Traced(model, self), variables(), sizes=SIZES)
    self.early.compile(SHAPE)

  def run(self, thresholds, count=COUNT):
    """Return the predictions and the number of rows that each block computed."""
    jax.effects_barrier()
    self.seen.clear()
    found = self.early(images(count), thresholds)
    jax.effects_barrier()
    rows = collections.Counter()
    for block, size in self.seen:
      rows[block] += size
    return found, [rows[block] for block in range(EXITS)]


class Traced:
  """A model that counts how often it is traced."""

  def __init__(self, model, watched):
    self.num_exits, self._model, self._watched = model.num_exits, model, watched

  def apply(self, *args, **kwargs):
    self._watched.traced += 1
    return self._model.apply(*args, **kwargs)


@pytest.fixture(scope="module")
def watched():
  return Watched()


@pytest.fixture(scope="module")
def reference():
  """Logits of the whole network for all images, (N, M, C)."""
  outputs = jax.jit(Blocks().apply)(variables(), images(COUNT))
  return np.stack([output.logits for output in outputs], axis=1)


def between(values, rank):
  """Return the midpoint between the values of two successive ranks."""
  ordered = np.sort(values)
  assert ordered[rank] - ordered[rank - 1] > 1e-4
  return (ordered[rank] + ordered[rank - 1]) / 2


@pytest.mark.parametrize("ranks", [(4, 9), (15, 2), (9, 4), (11, 6)])
def test_early_exit_equals_the_whole_network_with_the_thresholds(watched, reference, ranks):
  sure = confidences(reference)
  thresholds = (between(sure[:, 0], ranks[0]), between(sure[:, 1], ranks[1]), -np.inf)
  found, _ = watched.run(thresholds)
  expected = chosen_exits(sure, thresholds)
  assert len(set(expected)) > 1
  np.testing.assert_array_equal(found.exits, expected)
  np.testing.assert_allclose(
    found.logits, reference[np.arange(COUNT), expected], rtol=1e-5, atol=1e-5
  )


def test_blocks_compute_only_images_that_have_not_left(watched, reference):
  sure = confidences(reference)
  thresholds = (between(sure[:, 0], 12), -np.inf, -np.inf)
  found, rows = watched.run(thresholds)
  staying = [int((sure[start : start + 8, 0] < thresholds[0]).sum()) for start in (0, 8, 16)]
  assert sum(staying) == 12
  # The smallest size that holds them; 19 images are batches of 8, 8 and, padded, 4.
  padded = [min(size for size in (0, *SIZES) if size >= count) for count in staying]
  assert rows == [20, sum(padded), 0]
  assert found.rows == tuple(rows)


def test_later_blocks_do_not_run_if_all_images_leave_first(watched):
  found, rows = watched.run((-np.inf,) * EXITS)
  assert rows == [20, 0, 0]
  assert set(found.exits) == {0}


def test_every_block_computes_all_images_if_none_leaves(watched):
  found, rows = watched.run((np.inf,) * EXITS)
  assert rows == [20, 20, 20]
  assert set(found.exits) == {EXITS - 1}


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 9])
def test_early_exit_accepts_any_number_of_images(watched, reference, count):
  found, _ = watched.run((between(confidences(reference)[:, 0], 9), np.inf, np.inf), count)
  np.testing.assert_allclose(
    found.logits, reference[np.arange(count), found.exits], rtol=1e-5, atol=1e-5
  )


def test_every_block_is_compiled_once_per_size(watched, reference):
  assert watched.traced == EXITS * len(SIZES)
  sure = confidences(reference)
  for rank in (3, 9, 15):
    watched.run((between(sure[:, 0], rank), between(sure[:, 1], rank), -np.inf))
  assert watched.traced == EXITS * len(SIZES)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: EarlyExit(Blocks(), {}, sizes=(4, 2)), "sizes: expected rising"),
    (lambda: EarlyExit(Blocks(), {}, sizes=()), "sizes: expected rising"),
    (lambda: EarlyExit(Blocks(), {})(images(2), [0.0]), "1 for a model with 3 exits"),
    (lambda: EarlyExit(Blocks(), {})(images(0), [0.0] * 3), "images: there are none"),
  ],
)
def test_errors_name_the_argument(call, message):
  with pytest.raises(ConfigError, match=message):
    call()
