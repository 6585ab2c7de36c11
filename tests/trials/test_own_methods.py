"""Methods in one file outside the package train, add up, resume, and keep equal banks."""

import dataclasses
import importlib.util
import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from rich.console import Console

from jaxkd import methods, models
from jaxkd.adapters import all_examples, write_rows
from jaxkd.data import ArrayExamples, Dataset
from jaxkd.errors import ConfigError
from jaxkd.experiment import build, config, run
from jaxkd.methods import Distillation, per_example
from jaxkd.networks import select
from jaxkd.runtime.mapping import AXIS_NAME
from jaxkd.runtime.signals import Interrupted, Interruption
from jaxkd.train import Silent, TrainOptions, TrainState, train_phase, training_step
from jaxkd.types import MEMORY, Batch, Output, Terms
from tests.models.drawn import drawn
from tests.tiny import create

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "experiments/examples"
FILES = {"bank": FOLDER / "bank_method.py", "fusion": FOLDER / "fusion_method.py"}
ROWS, BATCH = 60, 24


@pytest.fixture(autouse=True)
def files(monkeypatch):
  """name -> the module of its file; its method is registered for one test."""
  monkeypatch.setattr(models, "create", create)
  # A bundle holds classes of the library; the script's test saves some.
  monkeypatch.setattr(run, "save_bundles", lambda *arguments: [])
  found = {}
  for name, path in FILES.items():
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found[name])
  yield found
  for name in FILES:
    methods.METHODS.pop(name)


def dataset():
  rng = np.random.default_rng(0)

  def examples(count):
    labels = np.arange(count, dtype=np.int32) % 3
    images = rng.integers(0, 256, (count, 6, 6, 1), dtype=np.uint8)
    return ArrayExamples(images, labels, np.arange(count, dtype=np.int32))

  parts = examples(40), examples(9), examples(9)
  return Dataset("drawn", *parts, 3, (6, 6, 1), (0.5,), (0.3,))


def settings_for(method, files, **changes):
  name = "bank" if "bank" in method else "fusion"
  settings = files[name].get_config(method)
  settings.update({"batch_size": BATCH, "baseline": False, "evaluate_every": 1, **changes})
  settings.data.update({"per_class": 0, "crop": 0})
  settings.teacher.update({"model": "resnet8_w8", "epochs": 1})
  settings.student.update({"model": "resnet8_w4", "epochs": 3})
  bank = methods.section(settings, "bank")
  if bank is not None:
    bank.rows = ROWS
  return settings


def distilled(method, files, **changes):
  """The phase of the student, with weights of a drawn teacher."""
  settings = settings_for(method, files, **changes)
  config.check_config(settings)
  phase = build.phases(settings, dataset())[-1]
  teacher = drawn(
    create("resnet8_w8", num_classes=3, axis_name=None, dtype=None), np.ones((2, 6, 6, 1))
  )
  return dataclasses.replace(phase, given={"teacher": teacher})


def train(phase, directory, **options):
  options = {"stop": None, "reporter": Silent(), **options}
  return train_phase(
    phase,
    directory=directory / "checkpoints",
    devices=jax.local_devices()[:2],
    validation=dataset().validation,
    options=TrainOptions(targets=directory / "targets", checkpoint_seconds=1e9),
    **options,
  )


def memory(participants):
  return participants["bank_adapter"][MEMORY]


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
  "method", ["bank+kd", *(pytest.param(m, marks=pytest.mark.long) for m in ("kd+fusion", *FILES))]
)
def test_a_method_of_ones_own_runs_as_an_experiment(method, files, tmp_path):
  settings = settings_for(method, files)
  summary = run.run(
    settings, tmp_path / "run", Console(quiet=True), load_data=lambda *a, **o: dataset()
  )
  found = summary["stages"]["distilled"]["train"]
  for part in method.split("+"):
    kind = "logit" if part == "kd" else "feature"
    assert np.isfinite(found[f"{part}_{kind}"]) and found[f"{part}_{kind}"] > 0
  own = "bank" if "bank" in method else "fusion"
  with pytest.raises(ConfigError, match="holds another config's run"):
    settings.method.learning_rate = 0.01
    run.run(settings, tmp_path / "run", Console(quiet=True))
  assert methods.is_taught(method) and methods.methods(method)[own].summary


@pytest.mark.long
@pytest.mark.parametrize("method", ["bank", "kd+fusion"])
def test_the_loss_of_a_method_of_ones_own_falls(method, files, tmp_path):
  phase = dataclasses.replace(distilled(method, files), epochs=8, optimizer=optax.adam(3e-3))
  rows = [row["train"] for row in train(phase, tmp_path).rows]
  name = "bank_feature" if "bank" in method else "fusion_feature"
  # The bank is empty at first, so its loss starts at 0.
  assert rows[-1][name] < rows[2][name]


class RequestAfter(Silent):
  """Requests a stop once so many updates are reported."""

  def __init__(self, updates):
    self.left, self.stop = updates, Interruption()

  def stepped(self, metrics, images):
    self.left -= 1
    if self.left == 0:
      self.stop.request(signal.SIGTERM)


@pytest.mark.parametrize(
  "method", ["bank", *(pytest.param(m, marks=pytest.mark.long) for m in ("bank+kd", "kd+fusion"))]
)
def test_a_resumed_run_ends_in_the_same_bits(method, files, tmp_path):
  phase = distilled(method, files)
  whole = train(phase, tmp_path / "whole")
  requesting = RequestAfter(1)
  with pytest.raises(Interrupted):
    train(phase, tmp_path / "parts", reporter=requesting, stop=requesting.stop)
  resumed = train(phase, tmp_path / "parts")
  assert_same(resumed.participants, whole.participants)
  assert resumed.rows == whole.rows
  if "bank" in method:
    assert memory(whole.participants)["written"].sum() == 40


@pytest.mark.long
@pytest.mark.parametrize(
  "method", ["bank", *(pytest.param(m, marks=pytest.mark.long) for m in ("fusion", "bank+kd"))]
)
def test_cached_targets_train_the_same_weights(method, files, tmp_path):
  phase = distilled(method, files)
  usual = train(phase, tmp_path / "usual")
  cached = train(dataclasses.replace(phase, cached_targets=True), tmp_path / "cached")
  for a, b in zip(usual.rows, cached.rows, strict=True):
    assert b["train"] == pytest.approx(a["train"], rel=1e-4, abs=1e-5)
  for a, b in zip(
    jax.tree.leaves(usual.participants), jax.tree.leaves(cached.participants), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def batches():
  """Three batches of 24; the second and the third repeat examples."""
  rng = np.random.default_rng(1)
  for step in range(3):
    images = rng.normal(size=(BATCH, 6, 6, 1)).astype(np.float32)
    indices = rng.integers(0, ROWS, BATCH) if step else np.arange(0, 2 * BATCH, 2)
    labels = (indices % 3).astype(np.int32)
    yield Batch(images, labels, np.ones(BATCH, np.float32), indices.astype(np.int32))


def memories(phase, count, accumulate=1):
  """The bank after three steps, with every device's copy along the first axis."""
  optimizer = optax.sgd(0.01)
  first = next(batches())
  participants = drawn(phase.scheme, first)
  blank = jax.eval_shape(phase.scheme.init, jax.random.key(0), first)["bank_adapter"][MEMORY]
  participants["bank_adapter"] = {
    **participants["bank_adapter"],
    MEMORY: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), blank),
  }
  learning = select(participants, phase.scheme.learners)
  key = jax.random.key_data(jax.random.key(0))
  state = TrainState(jnp.int32(0), key, participants, optimizer.init(learning))
  step = training_step(
    phase.scheme, optimizer, lambda keys, b: b, axis_name=AXIS_NAME, accumulate=accumulate
  )
  devices = jax.local_devices()[:count]
  mapped = jax.pmap(step, axis_name=AXIS_NAME, out_axes=0, devices=devices)
  state = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *jnp.shape(x))), state)
  for batch in batches():
    shared = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
    state, _ = mapped(state, shared)
  return jax.device_get(memory(state.participants))


@pytest.mark.long
@pytest.mark.parametrize("sync_batch_norm", [pytest.param(True, marks=pytest.mark.long), False])
def test_all_devices_keep_equal_bits_of_the_bank_and_their_number_does_not_matter(
  files, sync_batch_norm
):
  phase = distilled("bank", files, sync_batch_norm=sync_batch_norm)
  one = memories(phase, 1)
  seen = np.unique(np.concatenate([batch.indices for batch in batches()]))
  assert np.flatnonzero(one["written"][0]).tolist() == seen.tolist()
  for count in (2, 3, 8):
    found = memories(phase, count)
    for name, copies in found.items():
      assert len(copies) == count
      for copy in copies[1:]:
        np.testing.assert_array_equal(copy, copies[0])
      np.testing.assert_allclose(copies[0], one[name][0], rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_the_bank_does_not_depend_on_the_parts_of_a_batch(files):
  phase = distilled("bank", files)
  one, found = memories(phase, 1), memories(phase, 2, accumulate=3)
  np.testing.assert_array_equal(found["features"][0], found["features"][1])
  np.testing.assert_array_equal(found["written"][0], one["written"][0])


def test_padding_is_not_written_and_does_not_count(files):
  phase = distilled("bank", files, sync_batch_norm=False)
  whole = next(batches())
  participants = drawn(phase.scheme, whole)
  mask = np.arange(BATCH) < 20
  padded = dataclasses.replace(
    whole, mask=mask, inputs=np.where(mask[:, None, None, None], whole.inputs, np.nan)
  )
  optimizer = optax.sgd(0.01)
  state = TrainState(
    jnp.int32(0),
    jax.random.key_data(jax.random.key(0)),
    participants,
    optimizer.init(select(participants, phase.scheme.learners)),
  )
  step = training_step(phase.scheme, optimizer, lambda keys, b: b, axis_name=None)
  after, metrics = jax.jit(step)(state, padded)
  before, now = (
    np.asarray(memory(tree)["features"]) for tree in (participants, after.participants)
  )
  changed = np.flatnonzero((before != now).any(axis=1))
  assert set(changed) <= set(whole.indices[:20].tolist()) and len(changed) > 0
  assert np.isfinite(metrics["loss"][0])


def test_write_rows_keeps_the_last_of_equal_rows_and_drops_rows_outside():
  rows, values = jnp.array([1, 5, -1, 1, 0]), jnp.array([1.0, 2.0, 3.0, 4.0, 5.0])
  np.testing.assert_array_equal(write_rows(jnp.zeros(3), rows, values), [5.0, 4.0, 0.0])
  where = jnp.array([1, 1, 1, 0, 1])
  np.testing.assert_array_equal(write_rows(jnp.zeros(3), rows, values, where), [5.0, 1.0, 0.0])


def test_a_student_with_other_stages_is_refused_in_one_line(files, monkeypatch):
  with pytest.raises(ConfigError, match=r"^unknown method 'bank\+': |^unknown method ''"):
    methods.methods("bank+")
  settings = settings_for("fusion", files)
  monkeypatch.undo()
  settings.teacher.model = "vgg8_w8"
  with pytest.raises(ConfigError, match=r"^method 'fusion' needs as many stages .* of the teacher"):
    build.phases(settings, dataclasses.replace(dataset(), image_shape=(32, 32, 1)))


@pytest.mark.long
@pytest.mark.parametrize("method", ["bank", "bank+kd", "fusion", "kd+fusion"])
def test_the_script_trains_a_method_of_ones_own_on_the_digits(method, tmp_path):
  file = FILES["bank" if "bank" in method else "fusion"].relative_to(ROOT)
  short = ("data.per_class=8", "data.teacher_per_class=16", "teacher.epochs=1", "student.epochs=2")
  flags = [
    f"--config.{setting}" for setting in (*short, "cpu_devices=1", "teacher.model=resnet8_w8")
  ]
  arguments = ["experiments/train.py", "--config", f"{file}:{method}", *flags]
  environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
  done = subprocess.run(
    [sys.executable, *arguments, f"--workdir={tmp_path / 'run'}"],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr
  assert f"student, {method}" in done.stdout


class Centre(nn.Module):
  """Subtracts the mean of the teacher's earlier features; it has memory and no parameters."""

  device_axis: str | None = None

  @nn.compact
  def __call__(self, inputs, train):
    student, teacher, _ = inputs
    theirs = teacher.features["pooled"]
    centre = self.variable(MEMORY, "centre", jnp.zeros, theirs.shape[1:])
    before = centre.value
    if train:
      centre.value = 0.9 * before + 0.1 * all_examples(theirs, self.device_axis).mean(0)
    return student, Output(features={"pooled": theirs - before[None, :]})


@pytest.mark.long
def test_an_adapter_may_have_memory_and_no_parameters(tmp_path, files):
  loss = per_example(lambda s, t, where=None: Terms(feature=jnp.mean(t.features["pooled"] ** 2)))
  teacher = create("resnet8_w8", num_classes=3, axis_name=None, dtype=None)
  student = create("resnet8_w4", num_classes=3, axis_name=AXIS_NAME, dtype=None)
  scheme = methods.offline(
    student, {"teacher": teacher}, [Distillation("centre", loss, adapter=Centre())]
  )
  phase = dataclasses.replace(distilled("bank", files), scheme=scheme)
  whole = train(phase, tmp_path / "whole")
  assert np.abs(whole.participants["centre_adapter"][MEMORY]["centre"]).max() > 0
  requesting = RequestAfter(1)
  with pytest.raises(Interrupted):
    train(phase, tmp_path / "parts", reporter=requesting, stop=requesting.stop)
  assert_same(train(phase, tmp_path / "parts").participants, whole.participants)


class Local(nn.Module):
  """Keeps a memory without the device axis: every device would write its own."""

  @nn.compact
  def __call__(self, inputs, train):
    count = self.variable(MEMORY, "count", jnp.zeros, ())
    count.value = count.value + len(inputs[2].indices)
    return inputs[:2]


def test_a_memory_without_the_device_axis_is_refused_in_one_line(files, tmp_path):
  loss = per_example(lambda s, t, where=None: Terms(feature=jnp.mean(s.features["pooled"] ** 2)))
  teacher = create("resnet8_w8", num_classes=3, axis_name=None, dtype=None)
  student = create("resnet8_w4", num_classes=3, axis_name=AXIS_NAME, dtype=None)
  local = Distillation("local", loss, adapter=Local())
  scheme = methods.offline(student, {"teacher": teacher}, [local])
  phase = dataclasses.replace(distilled("bank", files), scheme=scheme)
  with pytest.raises(ConfigError, match=r"Local of distillation 'local' .* no field device_axis"):
    train(phase, tmp_path)
