"""Steps made in one program equal the steps made one by one."""

import chex
import jax
import numpy as np
import pytest

from jaxkd.runtime import mapping
from jaxkd.train import Silent, TrainOptions, train_phase
from tests.tiny import examples, phase


class Recorder(Silent):
  """Records the loss of every update, and may interrupt."""

  def __init__(self, stop_after=None):
    self.losses = []
    self._stop_after = stop_after

  def stepped(self, metrics, images):
    self.losses.append(metrics["loss"])
    if len(self.losses) == self._stop_after:
      raise KeyboardInterrupt


def train(directory, together, reporter, resident_bytes=2**30):
  return train_phase(
    # Seven steps an epoch.
    phase(examples=examples(50), batch_size=8, epochs=3, resident_bytes=resident_bytes),
    directory=directory,
    devices=jax.local_devices()[:2],
    reporter=reporter,
    test=examples(9, seed=2),
    options=TrainOptions(checkpoint_seconds=0.0, steps_per_dispatch=together),
  )


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory):
  recorder = Recorder()
  return train(tmp_path_factory.mktemp("single"), 1, recorder), recorder.losses


@pytest.mark.parametrize(
  ("together", "resident_bytes", "groups"),
  [
    pytest.param(3, 2**30, [3, 3, 1], id="two groups and a step"),
    pytest.param(3, 0, [3, 3, 1], id="fed from the host", marks=pytest.mark.long),
    pytest.param(100, 2**30, [7], id="more than an epoch has", marks=pytest.mark.long),
  ],
)
def test_groups_of_steps_train_as_single_steps_do(
  tmp_path, monkeypatch, one_by_one, together, resident_bytes, groups
):
  recorder, lengths, shard = Recorder(), [], mapping.shard_steps

  def counted(batches, chosen):
    lengths.append(len(batches))
    return shard(batches, chosen)

  monkeypatch.setattr(mapping, "shard_steps", counted)
  finished = train(tmp_path, together, recorder, resident_bytes)
  assert lengths == 3 * groups
  expected, losses = one_by_one
  np.testing.assert_allclose(recorder.losses, losses, rtol=1e-4)
  chex.assert_trees_all_close(finished.participants, expected.participants, rtol=1e-3, atol=1e-5)
  assert [row["step"] for row in finished.rows] == [7, 14, 21]


def test_a_resumed_run_of_groups_ends_in_the_same_bits(tmp_path):
  whole = train(tmp_path / "whole", 3, Silent())
  with pytest.raises(KeyboardInterrupt):
    train(tmp_path / "stopped", 3, Recorder(stop_after=12))
  resumed = train(tmp_path / "stopped", 3, Silent())
  chex.assert_trees_all_equal(resumed.participants, whole.participants)
  assert resumed.rows == whole.rows
