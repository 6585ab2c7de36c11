"""Training with cached targets equals training that computes them in every step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, methods
from jaxkd.adapters import Projector
from jaxkd.data import ArrayExamples, normalize
from jaxkd.data.keys import view_keys
from jaxkd.errors import ConfigError
from jaxkd.methods import Distillation, per_example
from jaxkd.runtime.mapping import AXIS_NAME
from jaxkd.train import Silent, TrainOptions, train_phase
from jaxkd.types import Output
from tests.models.drawn import drawn
from tests.tiny import TinyNet, batch, examples, phase


class Recorder(Silent):
  """Records the messages."""

  def __init__(self):
    self.lines = []

  def message(self, line):
    self.lines.append(line)


def taught(*distillations):
  return methods.offline(TinyNet(axis_name=AXIS_NAME), {"teacher": TinyNet(width=6)}, distillations)


KD = Distillation("kd", per_example(losses.knowledge_distillation))
AT = Distillation(
  "at", per_example(losses.attention_transfer, stages=("stage1", "stage2")), weight=10.0
)


def train(directory, scheme, *, devices=2, reporter=None, **changes):
  changes = {"views": 2, "epochs": 4, "average_decay": None, "reported": "", **changes}
  given = {"teacher": drawn(TinyNet(width=6), batch().inputs)}
  return train_phase(
    phase(scheme=scheme, given=given, **changes),
    directory=directory / "checkpoints",
    devices=jax.local_devices()[:devices],
    reporter=reporter or Silent(),
    options=TrainOptions(targets=directory / "targets"),
  )


def assert_close(one, other):
  assert one.rows[-1]["train"].keys() == other.rows[-1]["train"].keys()
  for a, b in zip(one.rows, other.rows, strict=True):
    for name, value in a["train"].items():
      assert b["train"][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
  for a, b in zip(
    jax.tree.leaves(one.participants), jax.tree.leaves(other.participants), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def uncached(tmp_path_factory):
  return train(tmp_path_factory.mktemp("uncached"), taught(KD, AT))


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.long), 2])
def test_cached_targets_train_the_same_weights(devices, uncached, tmp_path):
  recorder = Recorder()
  cached = train(tmp_path, taught(KD, AT), devices=devices, cached_targets=True, reporter=recorder)
  assert_close(uncached, cached)
  [line] = recorder.lines
  assert line.startswith("alone: targets of 2 views of 20 examples, ")
  assert "on each device" in line
  assert not (tmp_path / "targets").exists()


@pytest.mark.long
def test_targets_beyond_device_memory_are_read_from_disk_and_reused(uncached, tmp_path):
  recorder = Recorder()
  options = {"cached_targets": True, "resident_bytes": 0, "reporter": recorder}
  assert_close(uncached, train(tmp_path, taught(KD, AT), **options))
  # A later run finds the stored targets.
  before = {p: p.stat().st_mtime_ns for p in (tmp_path / "targets").iterdir()}
  assert len(before) == 2
  for checkpoint in (tmp_path / "checkpoints").iterdir():
    checkpoint.rename(tmp_path / checkpoint.name)
  assert_close(uncached, train(tmp_path, taught(KD, AT), **options))
  assert {p: p.stat().st_mtime_ns for p in (tmp_path / "targets").iterdir()} == before
  assert len(recorder.lines) == 1
  assert f"in {tmp_path / 'targets'}" in recorder.lines[0]


@pytest.mark.long
def test_targets_of_another_teacher_are_not_reused(tmp_path):
  options = {"cached_targets": True, "resident_bytes": 0, "epochs": 1}
  train(tmp_path / "one", taught(KD), **options)
  (tmp_path / "other").mkdir()
  (tmp_path / "one" / "targets").rename(tmp_path / "other" / "targets")
  recorder = Recorder()
  train_phase(
    phase(
      scheme=taught(KD),
      views=2,
      reported="",
      average_decay=None,
      given={"teacher": drawn(TinyNet(width=6), batch().inputs, seed=1)},
      **options,
    ),
    directory=tmp_path / "other" / "checkpoints",
    devices=jax.local_devices()[:1],
    reporter=recorder,
    options=TrainOptions(targets=tmp_path / "other" / "targets"),
  )
  assert len(recorder.lines) == 1


@pytest.mark.long
def test_targets_of_other_images_or_normalisation_are_not_reused(tmp_path):
  options = {"cached_targets": True, "resident_bytes": 0, "epochs": 1}
  train(tmp_path, taught(KD), **options)

  def brighter(batch):
    return dataclasses.replace(batch, inputs=normalize(batch.inputs, (0.2,), (0.5,)))

  def trained(name, **changes):
    recorder = Recorder()
    found = train(
      tmp_path / name,
      taught(KD),
      reporter=recorder,
      prepare_training=lambda keys, batch: brighter(batch),
      prepare_evaluation=brighter,
      **changes,
    )
    return found, recorder.lines

  expected, _ = trained("uncached", epochs=1)
  (tmp_path / "other").mkdir()
  (tmp_path / "targets").rename(tmp_path / "other" / "targets")
  found, lines = trained("other", **options)
  assert len(lines) == 1
  assert_close(expected, found)


@pytest.mark.long
def test_accumulation_reads_the_targets_of_each_part(tmp_path):
  options = {"accumulate": 2, "devices": 1}
  plain = train(tmp_path / "plain", taught(KD, AT), **options)
  assert_close(plain, train(tmp_path / "cached", taught(KD, AT), cached_targets=True, **options))


@pytest.mark.long
def test_simkd_s_features_are_read_back(tmp_path):
  scheme = methods.simkd(
    TinyNet(axis_name=AXIS_NAME),
    TinyNet(width=6),
    Projector(size=(3, 3), channels=12, axis_name=AXIS_NAME),
    image_shape=(6, 6, 1),
    stages=("stage2", "stage2"),
  )
  plain = train(tmp_path / "plain", scheme)
  assert_close(plain, train(tmp_path / "cached", scheme, cached_targets=True))


def test_views_depend_on_example_and_epoch_alone():
  seen = {}
  rng = jax.random.key_data(jax.random.key(0))
  one = dataclasses.replace(batch(4), inputs=examples(4).images)
  for epoch in range(4):
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
      mixed = jax.tree.map(lambda x, order=order: jnp.asarray(x)[jnp.array(order)], one)
      mixed = dataclasses.replace(mixed, epochs=jnp.full(4, epoch, jnp.int32))
      images = phase().prepare_training(view_keys(rng, mixed, 3), mixed).inputs
      for place, example in enumerate(order):
        seen.setdefault((example, epoch), []).append(np.asarray(images[place]))
  for example in range(4):
    for epoch in range(4):
      np.testing.assert_array_equal(*seen[example, epoch])
    np.testing.assert_array_equal(seen[example, 0][0], seen[example, 3][0])
  assert any(not np.array_equal(seen[e, 0][0], seen[e, 1][0]) for e in range(4))


def test_targets_from_a_trained_network_are_an_error(tmp_path):
  plain = taught(KD)

  def targets(participants, batch):
    student = TinyNet(axis_name=AXIS_NAME).apply(participants["student"], batch.inputs)
    return {"kd": Output(logits=student.logits)}

  with pytest.raises(ConfigError, match="which changes in it") as error:
    train(tmp_path, plain._replace(targets=targets), cached_targets=True)
  assert "cached_targets=True" in str(error.value)
  assert not tmp_path.joinpath("checkpoints").exists() or not list(
    tmp_path.joinpath("checkpoints").iterdir()
  )


def test_targets_beyond_device_memory_need_a_directory(tmp_path):
  options = {"views": 2, "cached_targets": True, "resident_bytes": 0}
  with pytest.raises(ConfigError, match="targets=None: expected a directory"):
    train_phase(
      phase(scheme=taught(KD), untrained=("teacher",), **options),
      directory=tmp_path,
      devices=jax.local_devices()[:1],
      reporter=Silent(),
    )


def test_targets_that_mix_examples_are_an_error(tmp_path):
  plain = taught(KD)

  def targets(participants, batch):
    output = plain.targets(participants, batch)["kd"]
    return {"kd": Output(logits=output.logits * jnp.arange(len(output.logits))[:, None])}

  with pytest.raises(ConfigError, match="which examples meet in a batch"):
    train(tmp_path, plain._replace(targets=targets), cached_targets=True)


@pytest.mark.long
def test_unlabelled_examples_have_the_same_weights_on_devices(tmp_path):
  whole = examples(20)
  hidden = whole.hide_labels(np.arange(0, 20, 2))
  assert isinstance(hidden, ArrayExamples)
  held = train(tmp_path / "held", taught(KD), examples=hidden, epochs=1)
  fed = train(tmp_path / "fed", taught(KD), examples=hidden, epochs=1, resident_bytes=0)
  assert_close(held, fed)
