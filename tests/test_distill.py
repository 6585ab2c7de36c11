"""`jaxkd.distill`: a student, a teacher and data of a program -> the trained student."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from rich.console import Console

import jaxkd
from jaxkd.data import Dataset, TreeExamples
from jaxkd.errors import ConfigError
from jaxkd.experiment.given import data_set
from jaxkd.export.bundles import load_bundle, save_bundle
from jaxkd.models import MLP
from jaxkd.types import Network, Output, Preprocessing
from tests import tiny

ROOT = pathlib.Path(__file__).parents[1]
QUIET = Console(quiet=True)
EXAMPLES = tiny.examples(120)
ARRAYS = (EXAMPLES.images, EXAMPLES.labels)


class Plain(nn.Module):
  """A module that returns logits and has no mode."""

  width: int = 6
  classes: int = 3

  @nn.compact
  def __call__(self, images):
    x = images.reshape((len(images), -1))
    return nn.Dense(self.classes)(nn.relu(nn.Dense(self.width)(x)))


def teacher_of(module, images=ARRAYS[0]):
  return Network(module, module.init(jax.random.key(1), jnp.float32(images[:1])))


def distill(student=None, teacher=None, data=ARRAYS, method="kd", **options):
  options = {"epochs": 1, "batch_size": 32, "console": QUIET, **options}
  return jaxkd.distill(
    Plain() if student is None else student,
    teacher_of(Plain(9)) if teacher is None else teacher,
    data,
    method,
    **options,
  )


def test_import_of_jaxkd_imports_no_flax():
  code = "import jaxkd, sys; sys.exit('flax' in sys.modules or 'jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
  with pytest.raises(AttributeError, match="no attribute 'distil'"):
    _ = jaxkd.distil


def trained(module, data, **options):
  """A teacher, trained by labels alone."""
  options = {"epochs": 12, "batch_size": 16, "learning_rate": 0.1, **options}
  result = jaxkd.distill(module, None, data, "alone", console=QUIET, **options)
  return Network(result.student, result.variables, result.preprocessing)


@pytest.mark.long
def test_a_student_of_a_sum_of_methods_learns_and_predicts_raw_images():
  teacher = trained(tiny.TinyNet(width=6), ARRAYS)
  options = {"epochs": 20, "batch_size": 16, "learning_rate": 0.1}
  changes = {"method.at.weight": 1.0}
  result = distill(tiny.TinyNet(), teacher, ARRAYS, "kd+at", config=changes, **options)
  assert set(result.scores) == {"test", "validation"}
  logits = result.predict(ARRAYS[0], batch_size=50)
  assert logits.shape == (120, 3)
  assert np.mean(logits.argmax(1) == ARRAYS[1]) > 0.9
  np.testing.assert_allclose(result.predict(ARRAYS[0] / 255), logits, rtol=1e-4, atol=1e-4)
  # The student as it was given, with variables that are its own.
  assert result.student == tiny.TinyNet()
  images = (ARRAYS[0] / 255 - result.preprocessing.mean) / result.preprocessing.std
  output = result.student.apply(result.variables, jnp.float32(images))
  np.testing.assert_allclose(output.logits, logits, rtol=1e-4, atol=1e-4)


def test_a_teacher_that_is_given_is_not_trained_and_its_weights_matter(tmp_path):
  teacher = teacher_of(Plain(9))
  before = jax.tree.map(np.array, teacher.variables)
  result = distill(teacher=teacher, workdir=tmp_path / "run")
  jax.tree.map(np.testing.assert_array_equal, before, teacher.variables)
  stages = result.summary["stages"]
  assert [stages[name]["epochs"] for name in ("teacher", "distilled")] == [0, 1]
  other = jax.tree.map(lambda x: -x, teacher.variables)
  assert not np.array_equal(
    distill(teacher=(teacher.module, other)).predict(ARRAYS[0]), result.predict(ARRAYS[0])
  )


def plain_network(num_classes):
  return teacher_of(Plain(9, num_classes))


def test_a_callable_returns_a_network_whose_module_has_no_mode():
  stages = distill(teacher="tests.test_distill:plain_network").summary["stages"]
  assert stages["teacher"]["epochs"] == 0


def test_a_teacher_sees_the_images_that_it_was_trained_on():
  teacher = teacher_of(Plain(9), np.zeros((1, 12, 12, 1)))
  network = Network(teacher.module, teacher.variables, Preprocessing((0.2,), (0.4,), (12, 12)))
  assert distill(teacher=network).scores["test"] >= 0
  with pytest.raises(ConfigError, match="teacher Plain cannot take images 6x6x1"):
    distill(teacher=teacher)  # without a preprocessing it sees images of 6x6


def test_data_with_another_mask_has_another_name():
  rng = np.random.default_rng(0)
  inputs, labels = rng.normal(size=(20, 4, 3)).astype("float32"), np.zeros((20, 4), np.int32)

  def named(mask):
    examples = TreeExamples(inputs, labels, mask=mask)
    data = Dataset("tokens", examples, None, examples, 2)
    return data_set(data, validation=0.1, test=0.1, seed=0).name

  mask = np.arange(4) < 1 + np.arange(20)[:, None] % 4
  assert named(mask) == named(mask.copy()) != named(mask | (np.arange(4) < 3))
  assert named(mask) != named(None)


def test_a_work_directory_resumes_and_refuses_another_run(tmp_path):
  first = distill(workdir=tmp_path / "run")
  again = distill(workdir=tmp_path / "run")
  assert again.scores == first.scores
  np.testing.assert_array_equal(again.predict(ARRAYS[0]), first.predict(ARRAYS[0]))
  assert json.loads((tmp_path / "run/summary.json").read_text())["stages"] == json.loads(
    json.dumps(first.summary["stages"])
  )
  changed = ARRAYS[0].copy()
  changed[0] += 1
  for options, field in (
    ({"student": Plain(5)}, "student.model"),
    ({"teacher": teacher_of(Plain(8))}, "teacher.model"),
    ({"data": (changed, ARRAYS[1])}, "data.name"),
    ({"epochs": 2}, "student.epochs"),
  ):
    with pytest.raises(ConfigError, match=f"holds another config's run .*{field}"):
      distill(workdir=tmp_path / "run", **options)


def test_without_a_work_directory_nothing_stays(tmp_path, monkeypatch):
  monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
  distill()
  assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_teachers_as_a_bundle_and_by_name_and_a_student_that_is_saved(tmp_path):
  teacher = MLP(widths=(8,), num_classes=3)
  variables = teacher.init(jax.random.key(0), jnp.zeros((1, 6, 6, 1)))
  images = Preprocessing((0.5,), (0.5,), (6, 6))
  save_bundle(tmp_path / "teacher", Network(teacher, variables, images), {})
  result = distill(MLP(widths=(4,), num_classes=3), tmp_path / "teacher")
  result.save(tmp_path / "student")
  network, description = load_bundle(tmp_path / "student")
  assert description["test_accuracy"] == result.scores["test"]
  shaped = (ARRAYS[0] / 255 - network.preprocessing.mean) / network.preprocessing.std
  logits = network.module.apply(network.variables, jnp.float32(shaped)).logits
  np.testing.assert_allclose(logits, result.predict(ARRAYS[0]), rtol=1e-4, atol=1e-4)
  by_name = distill("mlp", "mlp", config={"data.validation": 0.0})
  assert by_name.summary["stages"]["teacher"]["epochs"] == 1
  assert set(by_name.scores) == {"test"}


@pytest.mark.long
def test_inputs_that_are_no_images_and_several_teachers():
  rng = np.random.default_rng(0)
  labels = np.arange(150) % 3
  rows = np.float32(rng.normal(size=(150, 5)) + 3 * np.eye(3, 5)[labels])
  teachers = [trained(Plain(n), (rows, labels)) for n in (7, 8)]
  result = distill(teacher=teachers, data=(rows, labels), epochs=8, learning_rate=0.1)
  assert result.preprocessing is None
  assert np.mean(result.predict(rows).argmax(1) == labels) > 0.8
  assert {"teacher", "teacher_1"} <= set(result.summary["stages"])


def test_labels_of_several_classes_and_options_of_a_section():
  rows = np.float32(np.random.default_rng(0).normal(size=(200, 5)))
  labels = (rows[:, :3] > 0.5).astype(np.uint8)
  options = {"student.optimizer": "optax.lion", "student.optimizer_arguments": {"b1": 0.8}}
  options |= {"student.label_smoothing": 0.1, "student.patience": 2, "data.labels": "multi"}
  teacher = trained(Plain(9), (rows, labels), learning_rate=0.01, config=options)
  result = distill(
    teacher=teacher, data=(rows, labels), config=options, epochs=12, learning_rate=0.01
  )
  section = result.summary["config"]["student"]
  assert section["optimizer_arguments"] == {"b1": 0.8}
  assert "mean_average_precision" in result.summary["stages"]["distilled"]
  assert np.mean((result.predict(rows) > 0) == labels) > 0.7
  with pytest.raises(ConfigError, match=r"labels: row 3 has 2\.0 for class 1"):
    distill(
      teacher=teacher,
      data=(rows, np.where(np.arange(600).reshape(200, 3) == 10, 2.0, 0.0)),
      config=options,
    )


def test_a_data_set_and_a_method_without_a_teacher():
  splits = (EXAMPLES, None, tiny.examples(30, 1))
  data = Dataset("own", *splits, 3, (6, 6, 1), (0.3,), (0.2,), class_names=("a", "b", "c"))
  result = jaxkd.distill(Plain(), None, data, "alone", epochs=1, console=QUIET)
  assert set(result.scores) == {"test"}
  assert result.preprocessing.mean == (0.3,)
  assert result.description["class_names"] == ["a", "b", "c"]


def test_the_example_runs():
  path = ROOT / "experiments/examples/one_call.py"
  assert len(path.read_text().splitlines()) <= 40
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  assert module.main(epochs=3, console=QUIET) > 0.9


class Returns(nn.Module):
  """A module whose output is any value."""

  value: str

  @nn.compact
  def __call__(self, images, train=False):
    logits = nn.Dense(3)(images.reshape((len(images), -1)))
    return {
      "dict": {"logits": logits},
      "pair": (logits, logits),
      "without": Output(features={"a": logits}),
      "flat": logits.sum(0),
    }[self.value]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"method": "kdd"}, "unknown method 'kdd'"),
    ({"method": None}, "method=None: expected a name"),
    ({"method": "teacher"}, "trains no student"),
    ({"method": "dml"}, "teacher: expected None, as method 'dml'"),
    ({"student": Plain}, "student: expected a linen module .* got Plain"),
    ({"student": "resnet9"}, "unknown model 'resnet9': did you mean 'resnet8'"),
    ({"student": Plain(classes=4)}, "student Plain returns 4 logits, and arrays#.* has 3 classes"),
    ({"student": Returns("dict")}, "student Returns returns a mapping with 'logits': expected"),
    ({"student": Returns("pair")}, "student Returns returns a tuple"),
    ({"student": Returns("without")}, "returns an Output without logits"),
    ({"student": Returns("flat")}, "returns logits of shape"),
    ({"teacher": Plain()}, "teacher: expected .* got a Plain without its variables"),
    ({"teacher": (Plain(), {})}, "teacher Plain: expected its variables"),
    ({"teacher": "nowhere/teacher"}, "teacher='nowhere/teacher': there is no such directory"),
    ({"teacher": "resnet9"}, "unknown model 'resnet9'"),
    ({"teacher": teacher_of(Plain(classes=4))}, "4 classes"),
    ({"data": "digit"}, "unknown data set 'digit': did you mean 'digits'"),
    ({"data": ARRAYS[0]}, "data: expected a jaxkd.data.Dataset"),
    ({"data": (ARRAYS[0], ARRAYS[1][:-1])}, "120 of them for 119 labels|119"),
    ({"data": (ARRAYS[0], ARRAYS[1] - 1)}, "labels: row 0 is -1"),
    ({"data": (ARRAYS[0], ARRAYS[1] * 0.5)}, "labels: expected integers"),
    ({"data": (ARRAYS[0] * 1.5, ARRAYS[1])}, "images: expected uint8 or floats in 0..1"),
    ({"epochs": 0}, "epochs=0: expected an integer >= 1"),
    ({"epochs": "3"}, "epochs='3': expected an integer >= 1"),
    ({"learning_rate": -1.0}, "learning_rate=-1.0: expected"),
    ({"epoch": 3}, "unknown option of distill 'epoch': did you mean 'epochs'"),
    ({"config": {"student.optimiser": "sgd"}}, "did you mean 'student.optimizer'"),
    ({"config": {"student": 3}}, "config: student: expected a field of the section"),
    ({"config": {"student.optimizer": "adamm"}}, "student.optimizer='adamm': expected"),
    ({"config": {"student.model": "mlp"}}, "expected the argument student in its place"),
    ({"config": {"teacher.bundle": "x"}}, "expected teacher=None with it"),
    ({"config": {"student.dropout": 0.5}}, "student.dropout=0.5: expected 0.0 with a module"),
    ({"config": {"compute_dtype": "bfloat16"}}, "compute_dtype='bfloat16': expected 'float32'"),
  ],
)
def test_a_mistake_is_named_before_anything_is_written(options, message, tmp_path):
  with pytest.raises(ConfigError, match=message) as error:
    distill(workdir=tmp_path / "run", **options)
  assert "\n" not in str(error.value)
  assert not (tmp_path / "run").exists()


def test_a_method_with_a_teacher_needs_one():
  with pytest.raises(ConfigError, match="teacher=None: method 'kd' learns from a teacher"):
    jaxkd.distill(Plain(), None, ARRAYS, console=QUIET)


def test_wrong_images_are_not_predicted():
  result = distill()
  for images, message in (
    (ARRAYS[0][:, :5], r"images are \(5, 6, 1\), those of training \(6, 6, 1\)"),
    (ARRAYS[0] * 1.0, "expected uint8 or floats in 0..1"),
    (ARRAYS[0][:0], "there are none"),
    (ARRAYS[0][0, 0, 0], "expected .N, H, W, C."),
  ):
    with pytest.raises(ConfigError, match=message):
      result.predict(images)
