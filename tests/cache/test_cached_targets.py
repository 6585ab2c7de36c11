"""Targets that are computed once are those that would be computed every time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, schemes
from jaxkd.adapters import Projector
from jaxkd.data import ArrayExamples, normalize
from jaxkd.data.keys import view_keys
from jaxkd.errors import ConfigError
from jaxkd.runtime.mapping import AXIS_NAME
from jaxkd.schemes import Distillation
from jaxkd.train import Silent, train_stage
from jaxkd.types import Output
from tests.models.drawn import drawn
from tests.tiny import TinyNet, batch, examples, stage


class Heard(Silent):
  """Keeps what was told."""

  def __init__(self):
    self.lines = []

  def told(self, line):
    self.lines.append(line)


def taught(*distillations):
  return schemes.offline(TinyNet(axis_name=AXIS_NAME), {"teacher": TinyNet(width=6)}, distillations)


KD = Distillation("kd", losses.knowledge_distillation)
AT = Distillation(
  "at", functools.partial(losses.attention_transfer, stages=("stage1", "stage2")), weight=10.0
)


def train(directory, scheme, *, devices=2, reporter=None, **changes):
  changes = {"views": 2, "epochs": 4, "average_decay": None, "reported": "", **changes}
  return train_stage(
    stage(scheme=scheme, **changes),
    directory=directory / "checkpoints",
    devices=jax.local_devices()[:devices],
    reporter=reporter or Silent(),
    given={"teacher": drawn(TinyNet(width=6), batch().images)},
    targets=directory / "targets",
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
def test_a_run_that_reads_its_targets_back_is_the_run_that_computes_them(
  devices, uncached, tmp_path
):
  heard = Heard()
  cached = train(tmp_path, taught(KD, AT), devices=devices, cached_targets=True, reporter=heard)
  assert_close(uncached, cached)
  [line] = heard.lines
  assert line.startswith("alone: targets of 2 views of 20 examples, ")
  assert "on each device" in line
  assert not (tmp_path / "targets").exists()


def test_what_devices_cannot_hold_is_read_from_disk_and_used_again(uncached, tmp_path):
  heard = Heard()
  options = {"cached_targets": True, "resident_bytes": 0, "reporter": heard}
  assert_close(uncached, train(tmp_path, taught(KD, AT), **options))
  # After a first half, the second half finds the targets there.
  before = {p: p.stat().st_mtime_ns for p in (tmp_path / "targets").iterdir()}
  assert len(before) == 2
  for checkpoint in (tmp_path / "checkpoints").iterdir():
    checkpoint.rename(tmp_path / checkpoint.name)
  assert_close(uncached, train(tmp_path, taught(KD, AT), **options))
  assert {p: p.stat().st_mtime_ns for p in (tmp_path / "targets").iterdir()} == before
  assert len(heard.lines) == 1
  assert f"in {tmp_path / 'targets'}" in heard.lines[0]


@pytest.mark.long
def test_targets_of_another_teacher_are_not_used_again(tmp_path):
  options = {"cached_targets": True, "resident_bytes": 0, "epochs": 1}
  train(tmp_path / "one", taught(KD), **options)
  (tmp_path / "other").mkdir()
  (tmp_path / "one" / "targets").rename(tmp_path / "other" / "targets")
  heard = Heard()
  train_stage(
    stage(scheme=taught(KD), views=2, reported="", average_decay=None, **options),
    directory=tmp_path / "other" / "checkpoints",
    devices=jax.local_devices()[:1],
    reporter=heard,
    given={"teacher": drawn(TinyNet(width=6), batch().images, seed=1)},
    targets=tmp_path / "other" / "targets",
  )
  assert len(heard.lines) == 1


def test_targets_of_other_images_or_another_normalisation_are_not_used_again(tmp_path):
  options = {"cached_targets": True, "resident_bytes": 0, "epochs": 1}
  train(tmp_path, taught(KD), **options)

  def brighter(batch):
    return dataclasses.replace(batch, images=normalize(batch.images, (0.2,), (0.5,)))

  def trained(name, **changes):
    heard = Heard()
    found = train(
      tmp_path / name,
      taught(KD),
      reporter=heard,
      prepare_training=lambda keys, batch: brighter(batch),
      prepare_evaluation=brighter,
      **changes,
    )
    return found, heard.lines

  expected, _ = trained("uncached", epochs=1)
  (tmp_path / "other").mkdir()
  (tmp_path / "targets").rename(tmp_path / "other" / "targets")
  found, lines = trained("other", **options)
  assert len(lines) == 1
  assert_close(expected, found)


@pytest.mark.long
def test_a_batch_in_parts_reads_each_part_s_targets(tmp_path):
  options = {"accumulate": 2, "devices": 1}
  plain = train(tmp_path / "plain", taught(KD, AT), **options)
  assert_close(plain, train(tmp_path / "cached", taught(KD, AT), cached_targets=True, **options))


@pytest.mark.long
def test_simkd_s_features_are_read_back(tmp_path):
  scheme = schemes.simkd(
    TinyNet(axis_name=AXIS_NAME),
    TinyNet(width=6),
    Projector(size=(3, 3), channels=12, axis_name=AXIS_NAME),
    image_shape=(6, 6, 1),
    stages=("stage2", "stage2"),
  )
  plain = train(tmp_path / "plain", scheme)
  assert_close(plain, train(tmp_path / "cached", scheme, cached_targets=True))


def test_a_view_is_the_same_whenever_and_wherever_an_example_comes():
  seen = {}
  rng = jax.random.key_data(jax.random.key(0))
  one = dataclasses.replace(batch(4), images=examples(4).images)
  for epoch in range(4):
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
      mixed = jax.tree.map(lambda x, order=order: jnp.asarray(x)[jnp.array(order)], one)
      mixed = dataclasses.replace(mixed, epochs=jnp.full(4, epoch, jnp.int32))
      images = stage().prepare_training(view_keys(rng, mixed, 3), mixed).images
      for place, example in enumerate(order):
        seen.setdefault((example, epoch), []).append(np.asarray(images[place]))
  for example in range(4):
    for epoch in range(4):
      np.testing.assert_array_equal(*seen[example, epoch])
    np.testing.assert_array_equal(seen[example, 0][0], seen[example, 3][0])
  assert any(not np.array_equal(seen[e, 0][0], seen[e, 1][0]) for e in range(4))


def test_targets_of_learners_are_refused(tmp_path):
  plain = taught(KD)

  def targets(participants, batch):
    student = TinyNet(axis_name=AXIS_NAME).apply(participants["student"], batch.images)
    return {"kd": Output(logits=student.logits)}

  with pytest.raises(ConfigError, match="which changes in it") as error:
    train(tmp_path, plain._replace(targets=targets), cached_targets=True)
  assert "cached_targets=True" in str(error.value)
  assert not tmp_path.joinpath("checkpoints").exists() or not list(
    tmp_path.joinpath("checkpoints").iterdir()
  )


def test_targets_that_devices_cannot_hold_need_a_directory(tmp_path):
  options = {"views": 2, "cached_targets": True, "resident_bytes": 0}
  with pytest.raises(ConfigError, match="targets=None: expected a directory"):
    train_stage(
      stage(scheme=taught(KD), **options),
      directory=tmp_path,
      devices=jax.local_devices()[:1],
      reporter=Silent(),
      untrained=("teacher",),
    )


def test_targets_that_mix_examples_are_refused(tmp_path):
  plain = taught(KD)

  def targets(participants, batch):
    output = plain.targets(participants, batch)["kd"]
    return {"kd": Output(logits=output.logits * jnp.arange(len(output.logits))[:, None])}

  with pytest.raises(ConfigError, match="which examples meet in a batch"):
    train(tmp_path, plain._replace(targets=targets), cached_targets=True)


def test_unlabelled_examples_keep_their_weight_where_devices_hold_them(tmp_path):
  whole = examples(20)
  hidden = whole.hide_labels(np.arange(0, 20, 2))
  assert isinstance(hidden, ArrayExamples)
  held = train(tmp_path / "held", taught(KD), examples=hidden, epochs=1)
  fed = train(tmp_path / "fed", taught(KD), examples=hidden, epochs=1, resident_bytes=0)
  assert_close(held, fed)
