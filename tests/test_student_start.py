"""`student.bundle` and `student.weights`: the weights from which a student starts."""

import io
import json

import chex
import jax
import jax.numpy as jnp
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from jaxkd import models
from jaxkd.errors import ConfigError
from jaxkd.experiment import build, config
from jaxkd.experiment import run as experiment
from jaxkd.export.bundles import load_bundle, save_bundle
from jaxkd.train.start import example_batch
from jaxkd.types import Network, Preprocessing
from tests.models.drawn import drawn
from tests.test_bad_input import dataset, settings_for
from tests.test_new_head import THIRDS
from tests.test_teachers import GOLDEN_MODELS
from tests.torch_weights import regenerate

# Whole runs.
pytestmark = pytest.mark.long

MODEL = "resnet8_w4"


def bundle(folder, name=MODEL, classes=10):
  module = models.create(name, num_classes=classes)
  variables = jax.device_get(drawn(module, jnp.ones((1, 8, 8, 1))))
  save_bundle(
    folder, Network(module, variables, Preprocessing((0.5,), (0.2,), (8, 8))), {"model": name}
  )
  return variables


def phases(method="kd", /, data=None, **student):
  settings = settings_for(method, student={"model": MODEL, **student})
  config.check_config(settings)
  return {p.name: p for p in build.phases(settings, data or dataset())}


@pytest.mark.parametrize("method", ["kd", "ab", "simkd", "alone", "kd+at", "born_again"])
def test_every_phase_that_draws_the_student_starts_from_the_bundle(tmp_path, method):
  variables = bundle(tmp_path / "b")
  found = phases(method, bundle=str(tmp_path / "b"))
  students = [p for p in found.values() if draws_student(p)]
  assert students and found["alone"] in students
  for phase in students:
    chex.assert_trees_all_equal(phase.given["student"], variables)
    assert any(note.startswith("it starts from student.bundle=") for note in phase.notes)
  assert not any("student" in p.given for p in found.values() if p not in students)


def draws_student(phase):
  drawn = jax.eval_shape(phase.scheme.init, jax.random.key(0), example_batch(phase))
  return "student" in drawn and "student" not in phase.inherit


def test_weights_of_pytorch_are_a_start(tmp_path):
  spec = json.loads((GOLDEN_MODELS / "specs.json").read_text())["resnet8"]["state_dict_spec"]
  save_file(regenerate(spec, seed=0), tmp_path / "w.safetensors")
  start = {"model": "resnet8", "weights": str(tmp_path / "w.safetensors")}
  found = phases(data=dataset((32, 32, 3), 100), **start)
  own = models.from_torch(start["weights"], models.create("resnet8", num_classes=100))
  for name in ("alone", "distilled"):
    chex.assert_trees_all_equal(found[name].given["student"], own)
  message = r"^student\.weights='.*' predicts 100 classes, digits has 10"
  with pytest.raises(ConfigError, match=message):
    phases(data=dataset((32, 32, 3)), **start)
  with pytest.raises(ConfigError, match=r"^student\.weights='.*', for student\.model='resnet14'"):
    phases(data=dataset((32, 32, 3), 100), **{**start, "model": "resnet14"})


@pytest.mark.parametrize(
  ("student", "message"),
  [
    ({"bundle": "absent"}, r"student\.bundle='absent'"),
    ({"weights": "absent.pth"}, r"student\.weights='absent\.pth'"),
    (
      {"bundle": "a", "weights": "b"},
      r"student\.bundle='a' and student\.weights='b': expected one",
    ),
    ({"bundle": "7"}, r"student\.bundle='7' predicts 7 classes, digits has 10"),
    ({"bundle": "wide"}, r"student\.bundle='wide' is of another architecture than student\.model="),
    ({"bundle": "vgg"}, r"student\.bundle='vgg' holds a vgg8, but student\.model='resnet8_w4'"),
    ({"model": "resnet", "bundle": "7"}, r"unknown model 'resnet'"),
  ],
)
def test_another_network_is_refused_in_one_line(tmp_path, monkeypatch, student, message):
  monkeypatch.chdir(tmp_path)
  bundle(tmp_path / "7", classes=7)
  bundle(tmp_path / "wide", "resnet8_w8")
  if student.get("bundle") == "vgg":
    module = models.create("vgg8", num_classes=10)
    variables = jax.device_get(drawn(module, jnp.ones((1, 32, 32, 1))))
    save_bundle(
      tmp_path / "vgg",
      Network(module, variables, None),
      {"model": "vgg8", "image_shape": [32, 32, 1]},
    )
  with pytest.raises(ConfigError, match=message) as caught:
    phases(**student)
  assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("method", ["dml", "byot", "one"])
def test_methods_that_train_another_form_of_the_student_refuse_it(tmp_path, method):
  bundle(tmp_path / "b")
  with pytest.raises(ConfigError, match=r"student\.bundle=.*: expected '' with phase 'distilled'"):
    phases(method, bundle=str(tmp_path / "b"))


def test_a_run_starts_there_and_resumes(tmp_path):
  settings = config.base_config("alone")
  settings.batch_size, settings.devices = 20, 1
  settings.student.update(
    {"model": MODEL, "epochs": 1, "learning_rate": 1e-20, "weight_decay": 0.0}
  )
  settings.student.bundle = str(tmp_path / "b")
  module = models.create(MODEL, num_classes=3)
  variables = jax.device_get(drawn(module, jnp.ones((1, 12, 12, 1))))
  network = Network(module, variables, Preprocessing((0.3,), (0.2,), (6, 6)))
  save_bundle(tmp_path / "b", network, {"model": MODEL})
  console = Console(file=io.StringIO(), width=300)
  experiment.run(settings, tmp_path / "run", console, load_data=lambda *a, **k: THIRDS)
  assert "it starts from student.bundle=" in console.file.getvalue()
  assert "trained on images of 6x6, mean (0.3), std (0.2); here 12x12" in console.file.getvalue()
  (made,) = (tmp_path / "run/bundles").glob("*/*")
  chex.assert_trees_all_close(
    load_bundle(made)[0].variables["params"], variables["params"], rtol=1e-6
  )
  (tmp_path / "run/summary.json").unlink()
  experiment.run(settings, tmp_path / "run", console, load_data=lambda *a, **k: THIRDS)
  assert json.loads((tmp_path / "run/summary.json").read_text())["stages"]["alone"]["epochs"] == 1
