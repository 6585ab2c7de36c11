"""Runs of a config on inputs that are no images: results, bundles, exports, and what is refused."""

import functools
import io
from unittest import mock

import jax
import numpy as np
import pytest
from flax import linen as nn
from rich.console import Console

from jaxkd import data, methods, models
from jaxkd.errors import ConfigError
from jaxkd.experiment import build, config, dry_run, overview
from jaxkd.experiment.run import run
from jaxkd.export import bundles, scores, stablehlo
from jaxkd.models import imported
from jaxkd.types import Output


class Reader(nn.Module):
  """{"tokens": (B, T), "mask": (B, T)} -> logits (B, C), or (B, T, C); widths by name."""

  num_classes: int
  width: int = 4
  dense: bool = False

  stages = ("tokens", "pooled")

  @nn.compact
  def __call__(self, inputs, train=False):
    tokens, mask = inputs["tokens"], inputs["mask"]
    x = nn.tanh(nn.Dense(self.width)(nn.Embed(9, self.width)(tokens)))
    pooled = (x * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    logits = nn.Dense(self.num_classes)(x if self.dense else pooled)
    return Output(logits=logits, features={"tokens": x, "pooled": pooled})


@pytest.fixture(autouse=True)
def readers(monkeypatch):
  """Models of tokens by name, and in bundles, as registered ones have."""
  monkeypatch.setattr(imported, "REGISTERED", {})
  models.register("reader", Reader)
  models.register("tagger", functools.partial(Reader, dense=True))


def texts(dense=False, count=60):
  rng = np.random.default_rng(0)
  mask = np.arange(5) < rng.integers(2, 6, (count, 1))
  tokens = rng.integers(0, 9, mask.shape)
  inputs = {"tokens": tokens, "mask": mask}
  if dense:
    examples = data.TreeExamples(inputs, tokens // 3, mask=mask)
  else:
    examples = data.TreeExamples(inputs, tokens[:, 0] // 3)
  rest, test = data.split_off(examples, 0.25, seed=0)
  train, validation = data.split_off(rest, 0.2, seed=0)
  return data.Dataset("texts", train, validation, test, 3)


def table(count=60):
  rng = np.random.default_rng(0)
  labels = np.arange(count) % 3
  values = rng.normal(size=(count, 4)) + 3 * np.eye(4)[labels]
  rest, test = data.split_off(data.TreeExamples(values, labels), 0.25, seed=0)
  return data.Dataset("table", rest, None, test, 3)


def settings(method="kd", model="reader", **changes):
  found = config.base_config(method)
  found.data.name, found.batch_size, found.cpu_devices = "own", 8, 1
  found.teacher.model = found.student.model = model
  found.teacher.epochs = found.student.epochs = 1
  found.update_from_flattened_dict(changes)
  return found


def ran(chosen, dataset, folder):
  console = Console(file=io.StringIO(), width=200)
  return run(chosen, folder, console, load_data=lambda *_, **__: dataset)


def test_tokens_with_dense_labels_through_a_run_a_bundle_and_an_export(tmp_path):
  dataset = texts(dense=True)
  chosen = settings(model="tagger", cached_targets=True, baseline=False, keep="best")
  summary = ran(chosen, dataset, tmp_path / "run")
  bundle = tmp_path / "run/bundles/distilled/student"
  network, description = bundles.load_bundle(bundle, allow=("tests",))
  assert description["inputs"] == {
    "dict": {
      "mask": {"shape": [5], "dtype": "bool"},
      "tokens": {"shape": [5], "dtype": "int32"},
    }
  }
  assert network.preprocessing is None and "image_shape" not in description
  found = scores.score_network(network, dataset)
  assert found["accuracy"] == pytest.approx(summary["stages"]["distilled"]["accuracy"])
  assert 0 <= found["calibration_error"] <= 1

  inputs = dataset.test.fetch(np.arange(3))
  wanted = network.module.apply(network.variables, inputs).logits
  function = stablehlo.export_function(network, description, platforms=("cpu",))
  stablehlo.save_function(tmp_path / "function.stablehlo", function)
  loaded = jax.export.deserialize(bytearray((tmp_path / "function.stablehlo").read_bytes()))
  np.testing.assert_allclose(loaded.call(inputs), wanted, rtol=1e-5)

  teacher = {"teacher.bundle": str(bundle), "teacher.allow_import": "tests"}
  again = settings(model="tagger", baseline=False, **teacher)
  later = ran(again, dataset, tmp_path / "again")
  assert later["stages"]["teacher"]["accuracy"] == summary["stages"]["distilled"]["accuracy"]


@pytest.mark.long
def test_a_table_needs_no_own_model(tmp_path):
  slow = {"student.epochs": 3, "student.learning_rate": 0.01, "teacher.learning_rate": 0.01}
  summary = ran(settings(model="mlp", **slow), table(), tmp_path / "run")
  assert summary["stages"]["distilled"]["accuracy"] > 0.5
  network, description = bundles.load_bundle(tmp_path / "run/bundles/distilled/student")
  assert description["inputs"] == {"shape": [4], "dtype": "float32"}
  assert network.module.apply(network.variables, np.zeros((2, 4), np.float32)).logits.shape == (
    2,
    3,
  )


@pytest.mark.parametrize("name", ["reader", "tagger"])
@pytest.mark.long
def test_every_method_takes_tokens_or_says_in_one_line_why_not(name):
  takes, refused = set(), {}
  for method in methods.METHODS:
    try:
      build.phases(settings(method, name), texts(name == "tagger"))
      takes.add(method)
    except ConfigError as error:
      refused[method] = str(error)
  assert takes >= {"teacher", "alone", "kd", "born_again", "dml"}
  assert takes >= {"rkd", "fitnets"}
  words = ("(B, H, W, C)", "(B, C)", "preactivations", "stages", "images", "exit", "resume(")
  words += ("distillation head", "score the same classes, (..., C)")
  for reason in refused.values():
    assert "\n" not in reason and "has no attribute" not in reason
  unclear = {m: reason for m, reason in refused.items() if not any(w in reason for w in words)}
  assert not unclear
  assert "images" in refused["gradient_at"]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"data.crop": 2}, "data.crop=2: expected 0, as the inputs of texts are no images: inputs["),
    ({"data.flip": True}, "data.flip=True: expected False, as the inputs of texts are no images"),
    ({"data.mixup": 0.2}, "data.mixup=0.2: expected 0.0, as the inputs of texts are no images"),
    ({"teacher.weights": "x.pth"}, "teacher.weights='x.pth': expected '', as the inputs of texts"),
    ({"student.model": "resnet8_w4"}, "student.model='resnet8_w4' cannot take texts's inputs: "),
    ({"student.model": "tagger"}, "labels"),
  ],
)
def test_settings_that_need_images_are_refused_before_anything_is_written(
  changes, message, tmp_path
):
  with pytest.raises(ConfigError) as error:
    ran(settings(**changes), texts(), tmp_path / "run")
  assert message in str(error.value) and "\n" not in str(error.value)
  assert not (tmp_path / "run").exists()


def test_labels_of_another_shape_name_both_shapes(tmp_path):
  with pytest.raises(ConfigError, match=r"labels \(2,\) .* logits \(2, 5, 3\)"):
    ran(settings(model="tagger"), texts(), tmp_path / "run")


def test_images_with_labels_of_pixels_are_normalised_and_not_augmented():
  rng = np.random.default_rng(0)
  some = data.TreeExamples(
    rng.integers(0, 255, (8, 6, 6, 3), np.uint8), rng.integers(0, 3, (8, 6, 6))
  )
  dataset = data.Dataset("pixels", some, None, some, 3, (6, 6, 3), (0.5,) * 3, (0.2,) * 3)
  with pytest.raises(ConfigError, match=r"data.flip=True: expected False, as the labels of pixels"):
    build.as_seen(settings(**{"data.flip": True}), data.validate_dataset(dataset))
  assert build.as_seen(settings(), dataset) is dataset


def test_bundle_of_tokens_is_no_teacher_of_images_and_the_other_way_round(tmp_path):
  network = methods.Teacher(Reader(3), None, "").module
  inputs = texts().train.fetch(np.arange(1))
  variables = network.init(jax.random.key(0), inputs)
  shapes = {"inputs": {"dict": {"mask": _shape("bool"), "tokens": _shape("int32")}}}
  bundles.save_bundle(tmp_path / "tokens", bundles.Network(network, variables), shapes)
  mlp = models.registry.create("mlp", num_classes=3)
  drawn = mlp.init(jax.random.key(0), np.zeros((1, 8, 8, 1)))
  images = {"image_shape": [8, 8, 1], "mean": [0.5], "std": [0.5]}
  bundles.save_bundle(tmp_path / "images", bundles.Network(mlp, drawn), images)
  digits = data.fake_dataset("digits")
  for folder, dataset, message in (
    ("tokens", digits, "takes no images, and those of digits are"),
    ("images", texts(), "takes images, and the inputs of texts are none"),
  ):
    chosen = settings(model="mlp", **{"teacher.bundle": str(tmp_path / folder)})
    chosen.teacher.model, chosen.teacher.allow_import = "", "tests"
    with pytest.raises(ConfigError, match=message):
      build.phases(chosen, dataset)
  with pytest.raises(ConfigError, match="the network takes images, and the inputs of the run"):
    scores.score_network(bundles.load_bundle(tmp_path / "images")[0], texts())
  damaged = {"inputs": {"dict": {"tokens": {"shape": "five", "dtype": "int32"}}}}
  with pytest.raises(ConfigError, match="expected shapes and types, as jaxkd writes them"):
    bundles.save_bundle(tmp_path / "x", bundles.Network(network, variables), damaged)


def _shape(dtype):
  return {"shape": [5], "dtype": dtype}


def test_overview_and_dry_run_take_any_inputs():
  console = Console(file=io.StringIO(), width=200)
  with mock.patch.object(build, "dataset", lambda settings: texts()):
    overview.overview(settings(), console)
  assert "5 steps, 36 examples" in console.file.getvalue()
  assert "tokens" in console.file.getvalue()
  plan = dry_run.prepare(settings(baseline=False), lambda *_, **__: texts(dense=False))
  assert {one.step for one in dry_run.lower(plan, device_count=1)} == {"training", "evaluation"}
