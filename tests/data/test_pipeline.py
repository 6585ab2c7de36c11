import subprocess
import sys

import chex
import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd.data import (
  UNLABELLED,
  ArrayExamples,
  RecordExamples,
  evaluation_batches,
  training_batches,
)
from jaxkd.errors import ConfigError


def make(n):
  """Examples with images filled with their position, labels position % 3, indices 100 + it."""
  positions = np.arange(n)
  images = np.broadcast_to(positions.astype(np.uint8)[:, None, None, None], (n, 2, 2, 1)).copy()
  return ArrayExamples(images, (positions % 3).astype(np.int32), (positions + 100).astype(np.int32))


def together(shares):
  return jax.tree.map(lambda *parts: np.concatenate(parts), *shares)


def take(batches, count):
  return [next(batches) for _ in range(count)]


def stream(batches, count):
  return np.concatenate([batch.indices for batch in take(batches, count)])


@given(n=st.integers(1, 9), batch_size=st.integers(1, 20), epochs=st.integers(1, 4))
def test_k_epochs_show_every_example_exactly_k_times(n, batch_size, epochs):
  steps = -(-n * epochs // batch_size)
  seen = stream(training_batches(make(n), batch_size=batch_size, seed=3), steps)
  assert len(seen) == steps * batch_size, "every batch is full"
  for k in range(1, epochs + 1):
    counts = np.bincount(seen[: n * k] - 100, minlength=n)
    np.testing.assert_array_equal(counts, np.full(n, k))


def test_every_epoch_has_its_own_order_given_by_the_seed():
  examples = make(50)
  seen = stream(training_batches(examples, batch_size=10, seed=0), 10)
  again = stream(training_batches(examples, batch_size=10, seed=0), 10)
  other = stream(training_batches(examples, batch_size=10, seed=1), 10)
  np.testing.assert_array_equal(seen, again)
  orders = [tuple(part) for part in (seen[:50], seen[50:], other[:50], other[50:])]
  assert len(set(orders)) == 4, "epochs of two seeds have four different orders"
  assert orders[0] != tuple(np.arange(50) + 100)


def test_training_batches_keep_image_label_and_index_together():
  batch = next(training_batches(make(7), batch_size=4, seed=0))
  positions = batch.indices - 100
  np.testing.assert_array_equal(batch.inputs[:, 0, 0, 0], positions)
  np.testing.assert_array_equal(batch.labels, positions % 3)
  np.testing.assert_array_equal(batch.weights, np.ones(4))
  assert [np.asarray(leaf).dtype for leaf in (batch.inputs, batch.labels)] == [np.uint8, np.int32]
  assert batch.weights.dtype == np.float32 and batch.indices.dtype == np.int32


def test_unlabelled_examples_have_weight_0_and_hidden_labels():
  examples = make(7).hide_labels(np.array([0, 3, 4]))
  batches = [
    *take(training_batches(examples, batch_size=4, seed=0), 7),
    *evaluation_batches(examples, batch_size=4),
  ]
  seen = set()
  for batch in batches:
    positions = batch.indices - 100
    unlabelled = np.isin(positions, [0, 3, 4])
    np.testing.assert_array_equal(batch.labels, np.where(unlabelled, UNLABELLED, positions % 3))
    assert (batch.weights[unlabelled] == 0).all() and batch.weights.dtype == np.float32
    np.testing.assert_array_equal(batch.inputs[:, 0, 0, 0], positions)
    seen |= set(zip(positions.tolist(), batch.weights.tolist(), strict=True))
  # The last of the seven examples pads the last evaluation batch with weight 0.
  assert seen - {(6, 0.0)} == {(n, float(n not in (0, 3, 4))) for n in range(7)}


@given(
  n=st.integers(1, 23),
  batch_size=st.integers(1, 6),
  processes=st.integers(1, 4),
  position=st.integers(0, 3),
)
def test_shares_of_processes_form_the_batches_of_one_process_after_resuming(
  n, batch_size, processes, position
):
  examples = make(n).hide_labels(np.array([0]))
  whole = training_batches(examples, batch_size=batch_size * processes, seed=5)
  parts = [
    training_batches(
      examples, batch_size=batch_size, seed=5, process_index=i, process_count=processes
    )
    for i in range(processes)
  ]
  take(whole, position)
  for part in parts:
    part.set_state(whole.get_state())
  for _ in range(3):
    shares = [next(part) for part in parts]
    chex.assert_trees_all_equal(together(shares), next(whole))
  assert all(part.get_state() == whole.get_state() for part in parts)


@given(n=st.integers(1, 23), batch_size=st.integers(1, 6), processes=st.integers(1, 4))
def test_evaluation_shares_of_processes_form_the_batches_of_one_process(n, batch_size, processes):
  examples = make(n)
  whole = evaluation_batches(examples, batch_size=batch_size * processes)
  parts = [
    evaluation_batches(examples, batch_size=batch_size, process_index=i, process_count=processes)
    for i in range(processes)
  ]
  for batch, *shares in zip(whole, *parts, strict=True):
    chex.assert_trees_all_equal(together(shares), batch)


@pytest.mark.parametrize("threads", [0, 3])
def test_restored_iterator_continues_with_the_next_batch(tmp_path, threads):
  def fresh():
    return training_batches(make(7), batch_size=5, seed=0, threads=threads)

  batches = fresh()
  take(batches, 4)
  state = batches.get_state()
  with ocp.CheckpointManager(tmp_path) as manager:
    manager.save(4, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(batches)))
    expected = stream(batches, 5)
    by_orbax = fresh()
    next(by_orbax)
    manager.restore(4, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(by_orbax)))
  by_state = fresh()
  by_state.set_state(state)
  np.testing.assert_array_equal(stream(by_orbax, 5), expected)
  np.testing.assert_array_equal(stream(by_state, 5), expected)
  for iterator in (batches, by_orbax, by_state):
    iterator.close()


def test_reading_ahead_does_not_change_batches():
  direct = training_batches(make(7), batch_size=5, seed=0, threads=0)
  ahead = training_batches(make(7), batch_size=5, seed=0, threads=4)
  np.testing.assert_array_equal(stream(direct, 12), stream(ahead, 12))
  ahead.close()


@given(n=st.integers(1, 12), batch_size=st.integers(1, 5), processes=st.sampled_from([1, 2, 3]))
def test_evaluation_counts_every_example_once_in_batches_of_one_size(n, batch_size, processes):
  examples = make(n)
  shares = [
    list(
      evaluation_batches(examples, batch_size=batch_size, process_index=i, process_count=processes)
    )
    for i in range(processes)
  ]
  assert len({len(share) for share in shares}) == 1, "all processes step equally often"
  seen = []
  for step in zip(*shares, strict=True):
    for batch in step:
      assert batch.inputs.shape == (batch_size, 2, 2, 1)
      assert batch.weights.dtype == np.float32
      np.testing.assert_array_equal(batch.inputs[:, 0, 0, 0], batch.indices - 100)
      seen.extend(batch.indices[batch.weights == 1])
      assert set(batch.weights) <= {0.0, 1.0}
  np.testing.assert_array_equal(seen, examples.indices)


def test_errors_name_bad_arguments_before_the_first_batch():
  for batches in (training_batches, evaluation_batches):
    options = {"seed": 0} if batches is training_batches else {}
    with pytest.raises(ConfigError, match="examples: there are none"):
      batches(make(0), batch_size=1, **options)
    for batch_size in (0, -1, 2.0, True):
      with pytest.raises(ConfigError, match="batch_size: expected an integer >= 1"):
        batches(make(3), batch_size=batch_size, **options)
    with pytest.raises(ConfigError, match=r"process_index: .* got 2 of 2"):
      batches(make(3), batch_size=1, process_index=2, process_count=2, **options)
  with pytest.raises(ConfigError, match="seed"):
    training_batches(make(3), batch_size=1, seed=-1)
  with pytest.raises(ConfigError, match="threads"):
    training_batches(make(3), batch_size=1, seed=0, threads=-1)


class SlowSource:
  def __getitems__(self, keys):
    return [{"image": np.full((2, 2, 1), key, np.uint8)} for key in keys]


def test_examples_on_disk_are_read_ahead_by_threads():
  labels = np.zeros(9, np.int32)
  examples = RecordExamples(SlowSource(), labels, np.arange(9, dtype=np.int32))
  batches = training_batches(examples, batch_size=4, seed=0)
  batch = next(batches)
  np.testing.assert_array_equal(batch.inputs[:, 0, 0, 0], batch.indices)
  batches.close()


SCRIPT = """
import sys
import jaxkd.data
assert not {"grain", "tensorflow", "tensorflow_datasets"} & set(sys.modules), "imported too early"
import numpy as np
n = np.arange(9, dtype=np.int32)
examples = jaxkd.data.ArrayExamples(np.zeros((9, 1, 1, 1), np.uint8), n, n)
batches = jaxkd.data.training_batches(examples, batch_size=4, seed=0, threads=4)
next(batches)
assert "tensorflow" not in sys.modules
"""


def test_import_loads_no_tfds_and_an_open_iterator_does_not_block_exit():
  run = subprocess.run(
    [sys.executable, "-W", "error", "-c", SCRIPT], capture_output=True, text=True, timeout=600
  )
  assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
