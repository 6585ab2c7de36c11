"""`teacher.new_head` and `teacher.finetune_epochs`; teachers of other classes, in whole runs."""

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict
from rich.console import Console
from safetensors.numpy import save_file

from jaxkd.data import ArrayExamples, Dataset, TreeExamples
from jaxkd.errors import ConfigError
from jaxkd.experiment import build, config
from jaxkd.experiment import run as experiment
from jaxkd.export.bundles import load_bundle, save_bundle
from jaxkd.methods import Teacher
from jaxkd.models import MLP, CifarResNet
from jaxkd.shapes import described
from jaxkd.types import Network, Output, Preprocessing
from tests import tiny
from tests.models.drawn import drawn
from tests.test_teachers import GOLDEN_MODELS
from tests.torch_weights import regenerate


def examples(count, seed):
  own = tiny.examples(count, seed)
  return ArrayExamples(own.images.repeat(2, 1).repeat(2, 2), own.labels, own.indices)


THIRDS = Dataset(
  "thirds", examples(60, 0), examples(30, 1), examples(30, 2), 3, (12, 12, 1), (0.5,), (0.25,)
)
NETWORKS = {
  "resnet": lambda classes: CifarResNet(blocks=1, widths=(4, 4, 8, 16), num_classes=classes),
  "mlp": lambda classes: MLP(widths=(16,), num_classes=classes),
}


def bundle(folder, classes, kind="mlp"):
  """A bundle of a network for images that are not the run's."""
  module = NETWORKS[kind](classes)
  variables = jax.device_get(drawn(module, jnp.ones((1, 6, 6, 1))))
  network = Network(module, variables, Preprocessing((0.3,), (0.2,), (6, 6)))
  save_bundle(folder, network, {"model": kind, "test_accuracy": 0.5})
  return folder, network


def settings_for(method, path, /, student="mlp", **teacher):
  settings = config.base_config(method)
  settings.batch_size, settings.baseline, settings.sync_batch_norm = 20, False, False
  settings.devices = 1
  settings.student.update({"model": student, "epochs": 1, "learning_rate": 0.02})
  settings.teacher.update({"model": "", "bundle": str(path), "learning_rate": 0.02, **teacher})
  return settings


def phases(settings, data=THIRDS):
  config.check_config(settings)
  return build.phases(settings, data)


def run(settings, folder):
  console = Console(file=io.StringIO(), width=200)
  summary = experiment.run(settings, folder, console, load_data=lambda *a, **k: THIRDS)
  return summary, console.file.getvalue()


@pytest.mark.long
@pytest.mark.parametrize("classes", [7, 3])
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_classifier_alone_is_new(tmp_path, classes, kind):
  path, network = bundle(tmp_path / "b", classes, kind)
  settings = settings_for("kd", path, new_head=True, finetune_epochs=4)
  teacher, student = phases(settings)
  given = flatten_dict(dict(teacher.given["teacher"]))
  before = flatten_dict(dict(network.variables))
  assert given.keys() == before.keys()
  new = {p for p in given if "classifier" in p}
  assert len(new) == 2 and given["params", "classifier", "kernel"].shape[-1] == 3
  for path_, value in before.items():
    if path_ not in new:
      np.testing.assert_array_equal(given[path_], value)
  kernel = given["params", "classifier", "kernel"]
  assert not np.array_equal(kernel, before["params", "classifier", "kernel"][..., :3])
  assert (teacher.epochs, teacher.role, teacher.reported) == (4, "teacher", "teacher")
  assert teacher.expected is None and student.inherit == {"teacher": "teacher/teacher"}
  assert teacher.notes[-2:] == (
    "its classifier is new, for 3 classes",
    "it is fine-tuned for 4 epochs",
  )
  assert "6x6" in teacher.notes[0] and len(teacher.notes) == 3
  # It follows from the seed.
  again = flatten_dict(dict(phases(settings)[0].given["teacher"]))
  np.testing.assert_array_equal(again["params", "classifier", "kernel"], kernel)
  settings.seed = 1
  other = flatten_dict(dict(phases(settings)[0].given["teacher"]))
  assert not np.array_equal(other["params", "classifier", "kernel"], kernel)


def test_a_bundle_of_other_inputs_gets_a_new_classifier_too(tmp_path):
  examples = TreeExamples(np.zeros((60, 5), np.float32), np.arange(60) % 3)
  data = Dataset("rows", examples, None, examples, 3)
  module = NETWORKS["mlp"](7)
  network = Network(module, jax.device_get(module.init(jax.random.key(0), np.zeros((1, 5)))))
  save_bundle(tmp_path / "b", network, {"inputs": described(data.input_shape)})
  settings = settings_for("kd", tmp_path / "b", new_head=True, finetune_epochs=4)
  teacher, _ = phases(settings, data)
  new = teacher.given["teacher"]["params"]["classifier"]["kernel"]
  assert (teacher.epochs, new.shape) == (4, (16, 3))
  settings.teacher.new_head = False
  with pytest.raises(ConfigError, match=r"new_head=False: expected True, as teacher\.bundle="):
    phases(settings, data)


@pytest.mark.parametrize("field", ["weights", "stablehlo"])
def test_a_file_for_images_is_named_where_inputs_are_no_images(field):
  rows = TreeExamples(np.zeros((60, 5), np.float32), np.arange(60) % 3)
  settings = settings_for("kd", "", model="mlp", **{field: "x"})
  with pytest.raises(ConfigError, match=rf"^teacher\.{field}='x': expected '', as the inputs of"):
    phases(settings, Dataset("rows", rows, None, rows, 3))


def test_a_run_fine_tunes_scores_and_saves_the_teacher(tmp_path):
  path, network = bundle(tmp_path / "b", 7)
  settings = settings_for("kd", path, new_head=True, finetune_epochs=12)
  summary, said = run(settings, tmp_path / "run")
  row = summary["stages"]["teacher"]
  assert (row["role"], row["epochs"], row["model"]) == ("teacher", 12, "mlp")
  assert row["accuracy"] > 0.9 and "warning" not in said
  assert "teacher: its classifier is new, for 3 classes\n" in said and "not scored" not in said
  kept, description = load_bundle(tmp_path / "run/bundles/teacher/teacher")
  assert (kept.module.num_classes, description["num_classes"]) == (3, 3)
  assert kept.preprocessing == network.preprocessing
  assert description["test_accuracy"] == row["accuracy"]
  moved = flatten_dict(dict(kept.variables))
  assert any(
    not np.array_equal(moved[p], value)
    for p, value in flatten_dict(dict(network.variables)).items()
    if "classifier" not in p
  )
  # It can be taken as a teacher that comes trained.
  assert [p.epochs for p in phases(settings_for("kd", tmp_path / "run/bundles/teacher/teacher"))]


@pytest.mark.long
def test_a_teacher_of_the_same_classes_is_fine_tuned_from_its_own_classifier(tmp_path):
  path, network = bundle(tmp_path / "b", 3)
  settings = settings_for("kd", path, finetune_epochs=2, finetune_learning_rate=1e-30)
  settings.teacher.weight_decay = 0.0
  teacher, _ = phases(settings)
  assert teacher.epochs == 2
  for ours, theirs in zip(
    jax.tree.leaves(teacher.given["teacher"]), jax.tree.leaves(network.variables), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)
  # Its rate is that of fine-tuning: nothing moves.
  run(settings, tmp_path / "run")
  kept, _ = load_bundle(tmp_path / "run/bundles/teacher/teacher")
  for ours, theirs in zip(
    jax.tree.leaves(kept.variables), jax.tree.leaves(network.variables), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_several_teachers_and_the_method_teacher_are_fine_tuned(tmp_path):
  paths = [str(bundle(tmp_path / name, 7)[0]) for name in ("a", "b")]
  settings = settings_for("kd", ",".join(paths), new_head=True, finetune_epochs=2)
  one, other, _ = phases(settings)
  assert (one.epochs, other.epochs) == (2, 2)
  kernels = [p.given[p.name]["params"]["classifier"]["kernel"] for p in (one, other)]
  assert not np.array_equal(*kernels)
  [alone] = phases(settings_for("teacher", paths[0], new_head=True, finetune_epochs=2))
  assert (alone.name, alone.epochs) == ("teacher", 2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """PyTorch's weights of a ResNet-8 for three channels and 100 classes."""
  spec = json.loads((GOLDEN_MODELS / "specs.json").read_text())["resnet8"]["state_dict_spec"]
  file = tmp_path_factory.mktemp("weights") / "resnet8.safetensors"
  save_file(regenerate(spec, seed=0), file)
  return file


def in_colour(data):
  parts = [
    dataclasses.replace(part, images=part.images.repeat(3, 3))
    for part in (data.train, data.validation, data.test)
  ]
  return Dataset("colours", *parts, 3, (12, 12, 3), data.mean * 3, data.std * 3)


def test_weights_of_pytorch_get_a_new_classifier(weights):
  fields = {"weights": str(weights), "model": "resnet8", "new_head": True, "finetune_epochs": 1}
  teacher, _ = phases(settings_for("kd", "", **fields), in_colour(THIRDS))
  assert teacher.given["teacher"]["params"]["classifier"]["kernel"].shape == (64, 3)
  assert teacher.epochs == 1


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"new_head": True}, r"teacher.finetune_epochs=0: expected an integer >= 1 with teacher.new_"),
    ({"finetune_epochs": 1}, r"teacher.new_head=False: expected True, as teacher.bundle='.*' pred"),
    ({"finetune_learning_rate": 0.1}, r"teacher.finetune_learning_rate=0.1: expected 0 with"),
    (
      {"bundle": "", "model": "mlp", "new_head": True, "finetune_epochs": 1},
      r"teacher.new_head=True: expected False without teacher.bundle and teacher.weights",
    ),
    (
      {"bundle": "", "model": "mlp", "finetune_epochs": 1},
      r"teacher.finetune_epochs=1: expected 0 without teacher.bundle and teacher.weights",
    ),
    (
      {"new_head": True, "finetune_epochs": 2, "warmup_epochs": 3.0},
      r"teacher.warmup_epochs=3: expected a number <= 2, as teacher.finetune_epochs=2 says",
    ),
  ],
)
def test_contradictions_are_a_one_line_error(tmp_path, fields, message):
  path, _ = bundle(tmp_path / "b", 7)
  settings = settings_for("kd", path)
  settings.teacher.update(fields)
  with pytest.raises(ConfigError, match=f"^{message}") as error:
    phases(settings)
  assert len(str(error.value).splitlines()) == 1


class Fixed(nn.Module):
  """A model of five classes, whatever is asked."""

  num_classes: int = 5

  @nn.compact
  def __call__(self, images, train=False):
    return Output(logits=nn.Dense(5)(images.reshape(len(images), -1)))


class Nameless(nn.Module):
  """A model without a field for the number of classes."""

  @nn.compact
  def __call__(self, images, train=False):
    return Output(logits=nn.Dense(5)(images.reshape(len(images), -1)))


@pytest.mark.parametrize(
  ("module", "message"),
  [(Fixed(), "no layer of Fixed depends on"), (Nameless(), "Nameless has no field num_classes")],
)
def test_a_module_that_cannot_get_a_classifier_is_refused_in_one_line(module, message):
  from jaxkd.experiment.new_head import fine_tuned

  images = jnp.ones((1, 12, 12, 1))
  variables = module.init(jax.random.key(0), images)
  teacher = Teacher(module, module.apply(variables, images), "own", "teacher.model='own'")
  settings = settings_for("kd", "", new_head=True, finetune_epochs=1)
  with pytest.raises(ConfigError, match=rf"^teacher.new_head=True: .*'own', .*{message}"):
    fine_tuned(teacher, variables, settings, THIRDS, {})


@pytest.mark.long
@pytest.mark.parametrize("method", ["rkd", "fitnets", "at+rkd"])
def test_a_run_learns_features_from_a_bundle_of_other_classes(tmp_path, method):
  path, _ = bundle(tmp_path / "b", 7, "resnet")
  summary, said = run(settings_for(method, path, "resnet8_w4"), tmp_path / "run")
  assert "it predicts 7 classes, and thirds has 3: it is not scored" in said
  row = summary["stages"]["distilled"]
  assert "accuracy" not in summary["stages"]["teacher"] and np.isfinite(row["train"]["loss"])
  names = [name for name in row["train"] if name.endswith("_feature")]
  assert len(names) == len(method.split("+")) and all(row["train"][n] > 0 for n in names)


@pytest.mark.long
def test_a_run_learns_features_from_weights_of_other_classes(weights, tmp_path):
  settings = settings_for("at", "", "resnet8_w4", weights=str(weights), model="resnet8")
  console = Console(file=io.StringIO(), width=200)
  data = in_colour(THIRDS)
  summary = experiment.run(settings, tmp_path / "run", console, load_data=lambda *a, **k: data)
  assert "it predicts 100 classes, and colours has 3: it is not scored" in console.file.getvalue()
  assert summary["stages"]["distilled"]["train"]["at_feature"] > 0


def test_a_sum_with_logits_of_other_classes_is_refused_in_one_line(tmp_path):
  path, _ = bundle(tmp_path / "b", 7, "resnet")
  with pytest.raises(ConfigError, match=r"^teacher.bundle='.*' predicts 7 classes, the stu") as e:
    phases(settings_for("kd+at", path, "resnet8_w4"))
  assert len(str(e.value).splitlines()) == 1 and "'kd' compares logits" in str(e.value)
  settings = settings_for("kd+at", path, "resnet8_w4", new_head=True, finetune_epochs=1)
  assert [phase.epochs for phase in phases(settings)] == [1, 1]
