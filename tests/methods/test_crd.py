"""The memory of the method crd in a training: resumed exactly, and equal on all devices."""

from __future__ import annotations

import dataclasses
import itertools
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import models
from jaxkd.data import ArrayExamples, Dataset
from jaxkd.data.pipeline import training_batches
from jaxkd.errors import ConfigError
from jaxkd.experiment import build, config
from jaxkd.networks import select
from jaxkd.runtime.mapping import AXIS_NAME
from jaxkd.runtime.signals import Interrupted, Interruption
from jaxkd.train import Silent, TrainOptions, TrainState, train_phase, training_step
from jaxkd.types import MEMORY
from tests.models.drawn import drawn
from tests.tiny import create

SIZE, BATCH = 48, 24


def dataset():
  rng = np.random.default_rng(0)

  def examples(count):
    labels = np.arange(count, dtype=np.int32) % 3
    images = rng.integers(0, 256, (count, 6, 6, 1), dtype=np.uint8)
    return ArrayExamples(images, labels, 2 * np.arange(count, dtype=np.int32))

  return Dataset("drawn", examples(SIZE), None, examples(9), 3, (6, 6, 1), (0.5,), (0.3,))


@pytest.fixture
def phase(monkeypatch):
  """The phase of the student, with weights of a drawn teacher."""
  monkeypatch.setattr(models, "create", create)
  settings = config.base_config("crd")
  settings.update({"batch_size": BATCH, "baseline": False})
  settings.data.update({"crop": 0, "flip": False, "validation": 0.0})
  settings.teacher.model, settings.student.model = "resnet8_w8", "resnet8_w4"
  settings.student.epochs = 2
  settings.method.update({"width": 4, "negatives": 5})
  config.check_config(settings)
  found = build.phases(settings, dataset())[-1]
  teacher = create("resnet8_w8", num_classes=3, axis_name=None, dtype=None)
  return dataclasses.replace(found, given={"teacher": drawn(teacher, np.ones((2, 6, 6, 1)))})


def train(phase, directory, **options):
  return train_phase(
    phase,
    directory=directory / "checkpoints",
    devices=jax.local_devices()[:2],
    validation=None,
    options=TrainOptions(targets=directory / "targets", checkpoint_seconds=1e9),
    **{"stop": None, "reporter": Silent(), **options},
  )


class StopAfter(Silent):
  """Requests a stop after the first update."""

  def __init__(self):
    self.stop = Interruption()

  def stepped(self, metrics, images):
    self.stop.request(signal.SIGTERM)


@pytest.mark.long
def test_a_resumed_run_ends_in_the_same_bits(phase, tmp_path):
  whole = train(phase, tmp_path / "whole")
  stopping = StopAfter()
  with pytest.raises(Interrupted):
    train(phase, tmp_path / "parts", reporter=stopping, stop=stopping.stop)
  resumed = train(phase, tmp_path / "parts")
  jax.tree.map(np.testing.assert_array_equal, resumed.participants, whole.participants)
  memory = whole.participants["crd_adapter"][MEMORY]
  assert memory["student"].shape == (SIZE, 4) and memory["steps"] == 4
  assert memory["normalized"] and np.isfinite(memory["log_normalizers"]).all()
  # Every example was seen, so every row has norm 1.
  np.testing.assert_allclose(np.linalg.norm(memory["teacher"], axis=1), 1, rtol=1e-5)


def memories(phase, count):
  """The memory after two steps, with every device's copy along the first axis."""
  optimizer = optax.sgd(0.01)
  batches = training_batches(phase.examples, batch_size=BATCH, seed=0)  # an endless stream
  stored = list(itertools.islice(batches, SIZE // BATCH))
  prepared = [phase.prepare_evaluation(batch) for batch in stored]
  participants = jax.jit(phase.scheme.init)(jax.random.key(0), prepared[0])
  key = jax.random.key_data(jax.random.key(0))
  learning = select(participants, phase.scheme.learners)
  state = TrainState(jnp.int32(0), key, participants, optimizer.init(learning))
  step = training_step(phase.scheme, optimizer, lambda keys, b: b, axis_name=AXIS_NAME)
  devices = jax.local_devices()[:count]
  mapped = jax.pmap(step, axis_name=AXIS_NAME, out_axes=0, devices=devices)
  state = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *jnp.shape(x))), state)
  for batch in prepared:
    shared = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
    state, _ = mapped(state, shared)
  return jax.device_get(state.participants["crd_adapter"][MEMORY])


@pytest.mark.long
def test_all_devices_keep_equal_bits_of_the_memory_and_their_number_does_not_matter(phase):
  one = memories(phase, 1)  # other numbers: tests/adapters/test_contrast.py
  for count in (3,):
    for name, copies in memories(phase, count).items():
      for copy in copies[1:]:
        np.testing.assert_array_equal(copy, copies[0])
      np.testing.assert_allclose(copies[0], one[name][0], rtol=1e-3, atol=1e-4)


def test_parts_of_a_batch_are_refused(phase, tmp_path):
  with pytest.raises(ConfigError, match=r"'crd'.*which keeps a memory of every example"):
    train(dataclasses.replace(phase, accumulate=2), tmp_path)
