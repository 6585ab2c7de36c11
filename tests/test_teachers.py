"""Trained teachers: their preprocessing, their classes, their accuracy."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from jaxkd import models
from jaxkd.data import ArrayExamples, Dataset
from jaxkd.errors import ConfigError
from jaxkd.experiment import build, config, networks
from jaxkd.experiment import run as experiment
from jaxkd.export.bundles import load_bundle, save_bundle
from jaxkd.losses import cross_entropy
from jaxkd.models import MLP, CifarResNet
from jaxkd.preprocessing import Converted, as_trained, convert
from jaxkd.train import Silent, TrainOptions, train_phase
from jaxkd.types import Network, Preprocessing
from tests import tiny
from tests.models.drawn import drawn
from tests.torch_weights import regenerate

GOLDEN_MODELS = Path(__file__).parent / "golden" / "models"
THEIRS = Preprocessing((0.3,), (0.2,), (6, 6))


class Heard(Silent):
  """A reporter that keeps its messages."""

  def __init__(self):
    self.lines = []

  def message(self, line):
    self.lines.append(line)


def examples(count, size=6, channels=1, seed=0):
  """Examples of `tests.tiny`, with pixels repeated to reach the size."""
  own = tiny.examples(count, seed)
  times = size // 6
  images = own.images.repeat(times, 1).repeat(times, 2).repeat(channels, 3)
  return ArrayExamples(images, own.labels, own.indices)


def dataset(mean=0.3, std=0.2, size=6, channels=1, classes=3):
  parts = [examples(count, size, channels, seed) for seed, count in enumerate((240, 210, 210))]
  shape = (size, size, channels)
  return Dataset("thirds", *parts, classes, shape, (mean,) * channels, (std,) * channels)


@pytest.fixture(scope="module")
def teacher():
  """An MLP that tells the thirds apart, of images with THEIRS."""
  module, own = MLP(widths=(16,), num_classes=3), dataset()
  images = (own.train.images / 255 - 0.3) / 0.2
  optimizer = optax.adam(0.02)

  @jax.jit
  def train(variables):
    def loss(variables):
      return cross_entropy(module.apply(variables, images).logits, own.train.labels)

    def step(_, carry):
      variables, state = carry
      updates, state = optimizer.update(jax.grad(loss)(variables), state)
      return optax.apply_updates(variables, updates), state

    return jax.lax.fori_loop(0, 60, step, (variables, optimizer.init(variables)))[0]

  variables = train(module.init(jax.random.key(0), jnp.float32(images[:1])))
  return Network(module, jax.device_get(variables), THEIRS)


def bundle(folder, network, **description):
  images = {} if network.preprocessing else {"image_shape": [6, 6, 1]}
  save_bundle(folder, network, {"model": "thirds", "test_accuracy": 1.0, **images, **description})
  return folder


def settings_for(method="kd", paths=(), student="mlp", /, **teacher):
  settings = config.base_config(method)
  settings.batch_size, settings.baseline, settings.sync_batch_norm = 32, False, False
  settings.student.update({"model": student, "epochs": 1, "learning_rate": 0.01})
  settings.teacher.update({"model": "", "bundle": ",".join(map(str, paths)), **teacher})
  config.check_config(settings)
  return settings


def stages_of(settings, data):
  return build.phases(settings, data)


def targets_of(stages, data, count=8):
  """Return the targets of the last phase for the first test images."""
  teachers = {name: stage.given[name] for stage in stages for name in stage.given}
  images = (data.test.images[:count] / 255 - np.array(data.mean)) / np.array(data.std)
  number = jnp.arange(count)
  batch = tiny.Batch(jnp.float32(images), data.test.labels[:count], jnp.ones(count), number)
  return stages[-1].scheme.targets(teachers, batch)


def accuracy_of(stage, data):
  """Return the accuracy of a trained teacher on the test images, and its messages."""
  heard = Heard()
  finished = train_phase(
    stage,
    directory=None,
    devices=jax.local_devices()[:1],
    reporter=heard,
    validation=data.validation,
    test=data.test,
  )
  return finished.test.get("teacher", {}).get("accuracy"), heard.lines


RUNS = {
  "the same images": {},
  "another mean and std": {"mean": 0.9, "std": 0.05},
  "another size": {"size": 12},
  "all of it": {"mean": 0.05, "std": 0.7, "size": 18},
}


@pytest.mark.parametrize("rescore", [True, False])
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_a_bundle_teaches_equally_well_with_other_preprocessing(teacher, tmp_path, run, rescore):
  data = dataset(**run)
  settings = settings_for("kd", [bundle(tmp_path / "b", teacher)], rescore=rescore)
  stages = stages_of(settings, data)
  accuracy, lines = accuracy_of(stages[0], data)
  assert lines == [] and accuracy == (pytest.approx(1.0, abs=0.02) if rescore else None)
  own = jnp.float32((data.test.images[:8] / 255 - 0.3) / 0.2)
  own = jax.image.resize(own, (8, 6, 6, 1), "linear")
  want = teacher.module.apply(teacher.variables, own).logits
  np.testing.assert_allclose(targets_of(stages, data)["kd"].logits, want, rtol=1e-4, atol=1e-4)
  exported = stages[0].scheme.export(stages[0].given)["teacher"]
  assert exported.module == teacher.module
  assert (exported.preprocessing or THEIRS) == THEIRS
  assert len(stages[0].notes) == bool(run)


def test_equal_preprocessing_changes_nothing(teacher):
  assert as_trained(teacher, THEIRS) is teacher.module
  images = jnp.ones((2, 6, 6, 1))
  same = jax.make_jaxpr(lambda x: convert(x, given=THEIRS, wanted=THEIRS))(images)
  assert not same.eqns


def test_each_of_several_teachers_sees_its_own_images(teacher, tmp_path):
  other = Network(teacher.module, teacher.variables, Preprocessing((0.1,), (0.4,), (6, 6)))
  paths = [bundle(tmp_path / name, n) for name, n in (("a", teacher), ("b", other))]
  data = dataset(mean=0.5, std=0.5)
  stages = stages_of(settings_for("kd", paths), data)
  seen = targets_of(stages, data)
  for name, mean, std in (("kd", 0.3, 0.2), ("kd_teacher_1", 0.1, 0.4)):
    own = (data.test.images[:8] / 255 - mean) / std
    want = teacher.module.apply(teacher.variables, jnp.float32(own)).logits
    np.testing.assert_allclose(seen[name].logits, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["simkd", "rkd", "gradient_at", "kd+rkd", "fitnets", "ab"])
def test_every_method_takes_a_teacher_of_other_images(teacher, tmp_path, method):
  settings = settings_for(method, [bundle(tmp_path / "b", teacher)])
  stages = stages_of(settings, dataset(mean=0.1, size=12))
  assert isinstance(settings.teacher.image_size, int) and stages[0].epochs == 0


def test_a_gradient_at_the_images_is_that_at_the_images_given(teacher):
  from jaxkd.methods._gradients import infer_with_gradients

  given = Preprocessing((0.6,), (0.8,), (12, 12))
  model = as_trained(teacher, given)
  images, labels = jnp.float32(np.random.default_rng(0).normal(size=(3, 12, 12, 1))), jnp.arange(3)
  found = infer_with_gradients(model, teacher.variables, images, labels, None, ("images",))

  def loss(images):
    seen = convert(images, given=given, wanted=THEIRS)
    return 3 * cross_entropy(teacher.module.apply(teacher.variables, seen).logits, labels)

  want = jax.grad(loss)(images)
  assert found.gradients["images"].shape == images.shape
  np.testing.assert_allclose(found.gradients["images"], want, rtol=1e-4, atol=1e-6)


def test_cached_targets_are_those_of_the_converted_images(teacher, tmp_path):
  data = dataset(mean=0.8, std=0.4, size=12)
  path = bundle(tmp_path / "b", teacher)
  rows = []
  for cached in (False, True):
    settings = settings_for("kd", [path])
    settings.cached_targets = cached
    stage = stages_of(settings, data)[-1]
    finished = train_phase(
      dataclasses.replace(stage, reported="", given={"teacher": teacher.variables}),
      directory=tmp_path / str(cached),
      devices=jax.local_devices()[:1],
      reporter=Silent(),
      options=TrainOptions(targets=tmp_path / "targets"),
    )
    rows.append(finished.rows[-1]["train"])
  for name, value in rows[0].items():
    assert rows[1][name] == pytest.approx(value, rel=1e-4), name


def test_a_run_scores_and_saves_a_teacher_with_its_own_preprocessing(teacher, tmp_path):
  data = dataset(mean=0.8, std=0.4, size=12)
  settings = settings_for("simkd", [bundle(tmp_path / "b", teacher)])
  said = io.StringIO()
  console = Console(file=said, width=200)
  summary = experiment.run(settings, tmp_path / "run", console, load_data=lambda *a, **k: data)
  assert summary["stages"]["teacher"]["accuracy"] > 0.95
  assert "teacher: its images are converted to 6x6, mean (0.3), std (0.2)\n" in said.getvalue()
  assert "warning" not in said.getvalue()
  kept, description = load_bundle(tmp_path / "run/bundles/teacher/teacher")
  assert kept.preprocessing == THEIRS and kept.module == teacher.module
  assert (description["image_shape"], description["mean"]) == ([6, 6, 1], [0.3])
  student, description = load_bundle(tmp_path / "run/bundles/distilled/student")
  assert student.preprocessing == Preprocessing((0.8,), (0.4,), (12, 12))
  assert description["image_shape"] == [12, 12, 1]
  images = (data.test.images / 255 - 0.8) / 0.4
  logits = student.module.apply(student.variables, jnp.float32(images)).logits
  found = np.mean(logits.argmax(1) == data.test.labels)
  assert found == pytest.approx(summary["stages"]["distilled"]["accuracy"], abs=0.01)


def test_the_assumption_for_an_old_bundle_is_reported_and_can_be_overridden(teacher, tmp_path):
  old = bundle(tmp_path / "old", teacher._replace(preprocessing=None))
  data = dataset(mean=0.8, std=0.05)
  stages = stages_of(settings_for("kd", [old]), data)
  [note] = stages[0].notes
  assert "does not say which mean and std" in note and len(note.splitlines()) == 1
  own = (data.test.images[:8] / 255 - 0.3) / 0.2
  want = teacher.module.apply(teacher.variables, jnp.float32(own)).logits
  assert not np.allclose(targets_of(stages, data)["kd"].logits, want, atol=1.0)
  found = stages_of(settings_for("kd", [old], mean=(0.3,), std=(0.2,)), data)
  np.testing.assert_allclose(targets_of(found, data)["kd"].logits, want, rtol=1e-4, atol=1e-4)
  assert found[0].notes == ("its images are converted to 6x6, mean (0.3), std (0.2)",)


@pytest.mark.parametrize("rescore", [True, False])
@pytest.mark.parametrize("validation", [True, False])
def test_a_teacher_with_low_accuracy_is_reported_before_training(
  teacher, tmp_path, rescore, validation
):
  data = dataset() if validation else dataclasses.replace(dataset(), validation=None)
  classifier = {k: np.roll(v, 1, -1) for k, v in teacher.variables["params"]["classifier"].items()}
  wrong = {"params": {**teacher.variables["params"], "classifier": classifier}}
  for stated, why in (
    (0.97, "come with a test accuracy of 97.0%"),
    (None, "no better than chance"),
  ):
    path = bundle(tmp_path / f"{stated}", teacher._replace(variables=wrong), test_accuracy=stated)
    stage = stages_of(settings_for("kd", [path], rescore=rescore), data)[0]
    _, [line] = accuracy_of(stage, data)
    assert line.startswith("warning: teacher: its accuracy on 2") and why in line
    assert ("validation" if validation else "training") in line


@pytest.mark.parametrize(
  ("run", "changes", "message"),
  [
    ({"channels": 3}, {}, r"teacher.bundle='.*' takes images of 1 channels, .* have 3"),
    ({}, {"image_size": 8}, r"teacher.bundle='.*' cannot take thirds's images: .*"),
    ({}, {"mean": (0.5, 0.5)}, r"teacher.mean=\(0.5, 0.5\): expected 1 finite numbers"),
    ({}, {"std": ((0.5,), (0.5,))}, r"teacher.std=.*: expected one for each of 1 files"),
    ({}, {"image_size": (6, 6)}, r"teacher.image_size=\(6, 6\): expected one for each of 1 files"),
  ],
)
def test_images_that_a_teacher_cannot_take_are_a_one_line_error(
  teacher, tmp_path, run, changes, message
):
  settings = settings_for("kd", [bundle(tmp_path / "b", teacher)], **changes)
  with pytest.raises(ConfigError, match=f"^{message}") as error:
    stages_of(settings, dataset(**run))
  assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("changes", [{"mean": (0.5,)}, {"std": (1.0,)}, {"image_size": 8}])
def test_a_teacher_that_is_trained_in_the_run_has_the_runs_images(changes):
  with pytest.raises(ConfigError, match=r"^teacher\.\w+=.*without teacher.bundle"):
    settings_for("kd", model="resnet8_w4", **changes)


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("of two\nlines"), AssertionError()])
def test_any_exception_of_a_module_is_a_one_line_error(monkeypatch, error):
  class Foreign(MLP):
    def __call__(self, images, train=False):
      raise error

  monkeypatch.setattr(
    models, "create", lambda name, *, num_classes, **options: Foreign((4,), num_classes)
  )
  with pytest.raises(ConfigError, match=r"^teacher.model='mlp' cannot take thirds's") as found:
    stages_of(settings_for("kd", model="mlp"), dataset())
  assert len(str(found.value).splitlines()) == 1 and found.value.__cause__ is not None


def convolutional(folder, classes):
  module = CifarResNet(blocks=1, widths=(4, 4, 8, 16), num_classes=classes)
  variables = jax.device_get(drawn(module, jnp.ones((1, 12, 12, 1))))
  network = Network(module, variables, Preprocessing((0.3,), (0.2,), (12, 12)))
  return bundle(folder, network)


NO_LOGITS = [
  *("fitnets", "at+rkd", "ab/two_stage=False"),
  *(pytest.param(name, marks=pytest.mark.long) for name in ("at", "nst", "fsp", "ft", "rkd")),
]


def changed(settings, changes):
  for change in changes:
    field, value = change.split("=")
    settings.method[field] = json.loads(value.lower())
  return settings


@pytest.mark.parametrize("method", NO_LOGITS)
def test_a_teacher_may_have_other_classes_if_no_logits_are_compared(tmp_path, method):
  name, *changes = method.split("/")
  path = convolutional(tmp_path / "b", 7)
  stages = stages_of(changed(settings_for(name, [path], "resnet8_w4"), changes), dataset(size=12))
  assert (stages[0].reported, stages[0].expected) == ("", None)
  assert stages[0].notes == ("it predicts 7 classes, and thirds has 3: it is not scored",)


@pytest.mark.parametrize(
  "method", ["kd", "simkd", "gradient_at", "kd+at", "ab", "fitnets/two_stage=True", "teacher"]
)
def test_a_teacher_of_other_classes_is_refused_if_logits_are_compared(tmp_path, method):
  name, *changes = method.split("/")
  settings = settings_for(name, [convolutional(tmp_path / "b", 7)], "resnet8_w4")
  with pytest.raises(ConfigError, match=r"^teacher.bundle='.*' predicts 7 classes, the student 3"):
    stages_of(changed(settings, changes), dataset(size=12))


@pytest.fixture(scope="module")
def resnet8(tmp_path_factory):
  """PyTorch's weights of a ResNet-8 for three channels and 100 classes."""
  spec = json.loads((GOLDEN_MODELS / "specs.json").read_text())["resnet8"]["state_dict_spec"]
  file = tmp_path_factory.mktemp("weights") / "resnet8.safetensors"
  save_file(regenerate(spec, seed=0), file)
  return file


def test_weights_of_other_classes_and_images_teach(resnet8):
  data = dataset(mean=0.5, std=0.5, size=12, channels=3)
  given = {"weights": f"{resnet8},{resnet8}", "model": "resnet8", "image_size": (0, 18)}
  given |= {"mean": ((), (0.1, 0.2, 0.3)), "std": ((0.2, 0.3, 0.4), ())}
  stages = stages_of(settings_for("at", [], "resnet8_w4", **given), data)
  [(one, _), (other, _)] = networks.teachers(
    settings_for("at", [], "resnet8_w4", **given), data, {"axis_name": None, "dtype": jnp.float32}
  )
  assert one.num_classes == other.num_classes == 100
  assert one.converted.wanted == Preprocessing((0.5,) * 3, (0.2, 0.3, 0.4), (12, 12))
  assert other.converted.wanted == Preprocessing((0.1, 0.2, 0.3), (0.5,) * 3, (18, 18))
  assert [stage.epochs for stage in stages] == [0, 0, 1]
  with pytest.raises(ConfigError, match=r"predicts 100 classes, the student 3"):
    stages_of(settings_for("kd", [], "resnet8_w4", **given), data)


def test_weights_of_other_channels_are_a_one_line_error(resnet8):
  settings = settings_for("at", [], "resnet8_w4", weights=str(resnet8), model="resnet8")
  with pytest.raises(
    ConfigError, match=r"^teacher.weights, for teacher.model='resnet8': "
  ) as error:
    stages_of(settings, dataset(size=12))
  assert len(str(error.value).splitlines()) == 1


def test_weights_part_chooses_an_entry_or_a_prefix_of_the_weights(resnet8, tmp_path):
  state, parts = load_file(resnet8), tmp_path / "parts.safetensors"
  other = {name: value + 1 for name, value in state.items()}
  both = {"ema.module": state, "online.module": other}
  save_file({f"{p}.{name}": v for p, part in both.items() for name, v in part.items()}, parts)
  data, options = dataset(size=12, channels=3), {"axis_name": None, "dtype": jnp.float32}

  def read(**fields):
    settings = settings_for("at", [], "resnet8_w4", model="resnet8", **fields)
    config.check_config(settings)
    return networks.teachers(settings, data, options)

  [(teacher, variables)] = read(weights=str(parts), weights_part="ema")
  assert teacher.num_classes == 100
  chex.assert_trees_all_equal(variables, read(weights=str(resnet8))[0][1])
  with pytest.raises(ConfigError, match=r"weights_part in a config.* takes a part .*ema") as error:
    read(weights=str(parts))
  assert "online" in str(error.value)
  with pytest.raises(
    ConfigError,
    match=r"^teacher.weights, for .* and teacher.weights_part='x': .*no part 'x': expected (o|e)",
  ):
    read(weights=str(parts), weights_part="x")
  with pytest.raises(ConfigError, match=r"^teacher.weights_part='ema': expected '' without teach"):
    read(weights_part="ema")


def test_imagenet_models_get_torchvisions_preprocessing_by_default(monkeypatch):
  def zeros(path, module, *, image_shape, part):
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), images)

  monkeypatch.setattr(models, "from_torch", zeros)
  read = functools.partial(
    networks.teachers,
    data=dataset(size=12, channels=3),
    options={"axis_name": None, "dtype": jnp.float32},
  )
  options = {"weights": "resnet18.pth", "model": "imagenet_resnet18"}
  [(usual, _)] = read(settings_for("at", [], "resnet8_w4", **options))
  assert isinstance(usual.model, Converted)
  assert usual.converted.wanted == models.published_preprocessing("imagenet_resnet18")
  assert "224x224, mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225)" in usual.notes[0]
  given = {"mean": (0.1, 0.2, 0.3), "image_size": 64}
  [(teacher, _)] = read(settings_for("at", [], "resnet8_w4", **options, **given))
  want = Preprocessing((0.1, 0.2, 0.3), (0.229, 0.224, 0.225), (64, 64))
  assert teacher.converted.wanted == want


def test_a_bundle_is_described_by_its_network(teacher, tmp_path):
  save_bundle(tmp_path / "b", teacher, {})
  loaded, description = load_bundle(tmp_path / "b")
  assert loaded.preprocessing == THEIRS
  assert description == {"image_shape": [6, 6, 1], "mean": [0.3], "std": [0.2]}
  save_bundle(tmp_path / "b", teacher, {"std": [0.0]})
  with pytest.raises(ConfigError, match=r"^bundle .*: std=\[0.0\]: expected 1 finite numbers > 0"):
    load_bundle(tmp_path / "b")
