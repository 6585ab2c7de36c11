"""Models of the user's own: imported, registered, tapped, of NNX, as functions, in bundles."""

from __future__ import annotations

import functools
import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jaxkd import models
from jaxkd.errors import ConfigError
from jaxkd.experiment import build, config
from jaxkd.export import stablehlo
from jaxkd.export.bundles import load_bundle, save_bundle
from jaxkd.models import imported
from jaxkd.networks import infer, initialize, learn
from jaxkd.types import Network, Output
from tests import tiny
from tests.test_teachers import dataset

SHAPE = (6, 6, 1)
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(4, *SHAPE)), jnp.float32)
FACTS = {"image_shape": list(SHAPE), "mean": [0.3], "std": [0.2]}
NETS = """
  import os
  from flax import linen as nn
  import jax.numpy as jnp
  from jaxkd import models

  class Net(nn.Module):
    num_classes: int = 7
    width: int = 4
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, deterministic):
      x = nn.relu(nn.Conv(self.width, (3, 3), name="conv1")(x))
      x = nn.Dropout(self.dropout, deterministic=deterministic)(x)
      return nn.Dense(self.num_classes, name="classifier")(x.mean((1, 2)))

  def make(num_classes):
    return Net(num_classes)

  def local(num_classes):
    class Inside(nn.Module):
      @nn.compact
      def __call__(self, x, train=False):
        return nn.Dense(num_classes)(x.mean((1, 2)))
    return Inside()

  def pair(num_classes):
    class Inside(nn.Module):
      @nn.compact
      def __call__(self, x, train=False):
        return x, x
    return Inside()

  def fixed():
    return nn.Sequential([lambda x: x.mean((1, 2)), nn.Dense(5)])

  def broken(num_classes):
    raise RuntimeError("no such\\nthing")

  def number(num_classes):
    return 3

  def teacher():
    return models.from_function(lambda w, x: x.mean((1, 2)) @ w, jnp.ones((1, 3)))

  def batches():
    return models.from_function(lambda x: jnp.ones((1, 3)))
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
  """The name of a module in the current directory, new for each test."""
  name = f"nets_{tmp_path.name.replace('-', '_')}"
  (tmp_path / f"{name}.py").write_text(textwrap.dedent(NETS))
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", list(sys.path))
  yield name
  sys.modules.pop(name, None)


def settings_for(method="kd", **changes):
  settings = config.base_config(method)
  settings.batch_size, settings.baseline = 32, False
  settings.teacher.model, settings.student.model = "mlp", "mlp"
  for name, value in changes.items():
    section, _, field = name.partition("__")
    settings[section][field] = value
  config.check_config(settings)
  return settings


def phases(**changes):
  return build.phases(settings_for(**changes), dataset())


def test_a_path_and_taps_of_a_config_give_a_student_with_stages(nets):
  taps = "stage1=conv1, pooled=classifier:input"
  plan = phases(
    method="at", student__model=f"{nets}:make", student__tap=taps, teacher__model="resnet8_w4"
  )
  variables = plan[-1].scheme.init(jax.random.key(0), tiny.batch(2))["student"]
  assert set(variables["params"]) == {"conv1", "classifier"}
  assert "at compares" in plan[-1].notes[0] and "stage1" in plan[-1].notes[0]


def test_a_file_and_a_registered_name_are_models(nets, monkeypatch):
  monkeypatch.setattr(imported, "REGISTERED", {})
  assert phases(student__model=f"{nets}.py:make")[-1].label == f"{nets}.py:make"
  models.register("mine", lambda num_classes, dtype: nn.Sequential([nn.Dense(num_classes)]))
  assert "mine" in models.names()
  module = models.create("mine", num_classes=3, dtype=jnp.float32, axis_name=None)
  assert module.apply(
    module.init(jax.random.key(0), jnp.ones((2, 4))), jnp.ones((2, 4))
  ).logits.shape == (2, 3)
  with pytest.raises(ConfigError, match=r"did you mean 'mine'.*; or PACKAGE.MODULE:CALLABLE"):
    models.create("minee", num_classes=3)
  with pytest.raises(ConfigError, match="there is a model of that name"):
    models.register("resnet8", lambda num_classes: None)


@pytest.mark.parametrize(
  ("model", "message"),
  [
    ("nothing.there:make", "cannot import 'nothing.there'"),
    ("NETS:mak", "unknown name in .* 'mak': did you mean 'make'"),
    ("NETS.py:broken", "raised RuntimeError: no such thing"),
    ("NETS:number", "returns a int, expected a linen or NNX module"),
    ("NETS:pair", "returns a tuple of ShapeDtypeStruct, ShapeDtypeStruct: expected a jaxkd"),
    ("NETS:fixed", "returns 5 logits, thirds has 3 classes"),
    ("NETS:teacher", "is a trained Network, in which nothing learns"),
    ("NETS:os.sep", "is a str, expected a callable"),
    ("__main__:make", "__main__ is the running script"),
    (":make", "expected PACKAGE.MODULE:CALLABLE"),
  ],
)
def test_a_wrong_model_is_a_one_line_error(nets, model, message):
  model = model.replace("NETS", nets)
  with pytest.raises(ConfigError, match=message) as error:
    phases(student__model=model)
  assert str(error.value).startswith(f"student.model={model!r}")
  assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"student__tap": "stage1=conv"}, "student.tap: unknown path 'conv': did you mean 'conv1'"),
    ({"student__tap": "conv1"}, "student.tap='conv1': .*expected STAGE=PATH"),
    ({"student__tap": "a=conv1,a=conv1"}, "stage 'a' is there twice"),
    ({"student__tap_preactivations": "a=conv1"}, "there is no stage 'a' in student.tap=''"),
  ],
)
def test_a_wrong_tap_is_a_one_line_error(nets, changes, message):
  with pytest.raises(ConfigError, match=message):
    phases(student__model=f"{nets}:make", **changes)


def test_bfloat16_of_a_model_without_dtype_is_refused(nets):
  settings = settings_for(student__model=f"{nets}:make")
  settings.compute_dtype = "bfloat16"
  with pytest.raises(ConfigError, match="takes no dtype"):
    build.phases(settings, dataset())


def test_a_callable_that_returns_a_network_is_a_trained_teacher(nets):
  teacher = phases(teacher__model=f"{nets}:teacher")[0]
  assert teacher.epochs == 0 and jax.tree.leaves(teacher.given["teacher"])[0].shape == (1, 3)
  assert any("not written as a bundle" in note for note in teacher.notes)
  with pytest.raises(ConfigError, match=r"returns logits \(1, 3\) for 2 images: expected 2"):
    phases(teacher__model=f"{nets}:batches")


def saved(module, folder):
  variables = dict(module.init(jax.random.key(0), IMAGES))
  save_bundle(folder, Network(module, variables), FACTS)
  return module.apply(variables, IMAGES).logits


@pytest.mark.parametrize("made", ["make", "local"])
def test_a_bundle_of_a_foreign_class_loads_if_it_is_allowed(nets, tmp_path, made):
  module = models.create(f"{nets}:{made}", num_classes=3)
  module = module if made == "make" else models.tap(module, {})
  want = saved(module, tmp_path / "b")
  with pytest.raises(ConfigError, match=rf"names code that is not part of jaxkd, {nets}:"):
    load_bundle(tmp_path / "b")
  network, _ = load_bundle(tmp_path / "b", allow=(nets,))
  np.testing.assert_allclose(
    network.module.apply(network.variables, IMAGES).logits, want, rtol=1e-5
  )
  exported = stablehlo.export_function(network, FACTS, platforms=("cpu",))
  assert exported.call(np.zeros((2, *SHAPE), np.uint8)).shape == (2, 3)


def test_a_part_of_another_network_keeps_the_call_that_made_it(nets, tmp_path):
  made = models.create(f"{nets}:local", num_classes=3)
  for _ in range(300):
    models.create(f"{nets}:local", num_classes=2)
  assert imported.origin_of(made).options == {"num_classes": 3}
  assert imported.origin_of(made.clone()) is None
  tapped = models.tap(made, {})
  parts = {"a": Network(tapped, tapped.init(jax.random.key(0), IMAGES))}
  network = models.ensemble_of(parts)
  save_bundle(tmp_path / "b", network, FACTS)
  loaded, _ = load_bundle(tmp_path / "b", allow=(nets,))
  np.testing.assert_allclose(
    loaded.module.apply(loaded.variables, IMAGES).logits,
    network.module.apply(network.variables, IMAGES).logits,
    rtol=1e-5,
  )


def test_a_bundle_cannot_call_what_an_allowed_module_imported(nets, tmp_path):
  saved(models.tap(models.create(f"{nets}:local", num_classes=3), {}), tmp_path / "b")
  path = tmp_path / "b/model.json"
  path.write_text(path.read_text().replace(f"{nets}:local", f"{nets}:os.abort"))
  with pytest.raises(ConfigError, match=r"os.abort, which is defined in"):
    load_bundle(tmp_path / "b", allow=(nets,))


def test_a_class_that_is_not_importable_is_refused(tmp_path):
  class Inside(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
      return Output(nn.Dense(3)(x.mean((1, 2))))

  with pytest.raises(ConfigError, match=r"cannot be imported by name .it is defined inside test_"):
    saved(Inside(), tmp_path / "b")
  Inside.__module__, Inside.__qualname__ = "__main__", "Inside"
  with pytest.raises(ConfigError, match="the script that runs"):
    saved(Inside(), tmp_path / "b")


class Perceptron(nnx.Module):
  def __init__(self, num_classes, rngs, rate=0.5):
    self.blocks = nnx.List([nnx.Linear(36, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)])
    self.norm, self.drop = nnx.BatchNorm(8, rngs=rngs), nnx.Dropout(rate, rngs=rngs)
    self.head = nnx.Linear(8, num_classes, rngs=rngs)

  def __call__(self, x):
    x = x.reshape(len(x), -1)
    for block in self.blocks:
      x = nnx.relu(block(x))
    return self.head(self.drop(self.norm(x)))


def test_an_nnx_model_trains_as_a_linen_module_and_goes_back():
  original = Perceptron(3, nnx.Rngs(0))
  module = models.tap(models.from_nnx(original), {"first": "blocks/0", "pooled": "head:input"})
  variables = initialize(module, jax.random.key(1), "student", IMAGES)
  original.eval()
  output = infer(module, variables, IMAGES)
  np.testing.assert_allclose(output.logits, original(IMAGES), rtol=1e-5)
  assert module.stages == ("first", "pooled") and output.features["pooled"].shape == (4, 8)
  trained = [learn(module, variables, IMAGES, jax.random.key(k)) for k in (0, 0, 1)]
  logits = [out.logits for out, _ in trained]
  np.testing.assert_array_equal(logits[0], logits[1])
  assert not np.allclose(logits[0], logits[2])  # another key drops others
  state = trained[0][1]
  assert set(state) == {"batch_stats"} and set(state["batch_stats"]["norm"]) == {"mean", "var"}
  network = Network(module, {**variables, **state})
  want = infer(module, network.variables, IMAGES).logits
  for back in (models.to_nnx(network), models.to_nnx(network, Perceptron(3, nnx.Rngs(5)))):
    np.testing.assert_allclose(back(IMAGES), want, rtol=1e-5)


def test_an_nnx_class_draws_its_values_with_the_key():
  module = models.from_nnx(functools.partial(Perceptron, 3))
  one, other = (initialize(module, jax.random.key(k), "student", IMAGES) for k in (0, 1))
  assert not np.allclose(one["params"]["head"]["kernel"], other["params"]["head"]["kernel"])


def test_a_wrong_nnx_model_is_refused():
  with pytest.raises(ConfigError, match=r"the nnx.Dropout at 'drop' has no rngs"):
    model = Perceptron(3, nnx.Rngs(0))
    model.drop = nnx.Dropout(0.5)
    models.from_nnx(model)
  with pytest.raises(ConfigError, match=r"unknown path of from_nnx: 'haed': did you mean 'head'"):
    models.from_nnx(Perceptron(3, nnx.Rngs(0)), {"a": "haed"})
  with pytest.raises(ConfigError, match="returns a int when called with rngs"):
    models.from_nnx(lambda rngs: 3)
  module = models.from_nnx(Perceptron(3, nnx.Rngs(0)))
  variables = initialize(module, jax.random.key(0), "student", IMAGES)
  with pytest.raises(ConfigError, match=r"batch.mask: FromNNX has batch statistics"):
    learn(module, variables, IMAGES, jax.random.key(0), where=jnp.ones(4))


def test_a_linen_network_becomes_an_nnx_model():
  module = models.create("mlp", num_classes=3)
  variables = module.init(jax.random.key(0), IMAGES)
  back = models.to_nnx(Network(module, variables))
  np.testing.assert_allclose(back(IMAGES).logits, module.apply(variables, IMAGES).logits)


def test_a_function_is_frozen_and_its_variables_are_arrays():
  network = models.from_function(lambda w, x: x.mean((1, 2)) @ w["a"], {"a": jnp.ones((1, 3))})
  assert infer(network.module, network.variables, IMAGES).logits.shape == (4, 3)
  with pytest.raises(ConfigError, match="it can be a teacher, not a student"):
    learn(network.module, network.variables, IMAGES, jax.random.key(0))
  with pytest.raises(ConfigError, match="variables: f is a function, expected arrays"):
    models.from_function(lambda w, x: x, {"f": len.__class__ and (lambda: 0)})
  wrong = models.from_function(lambda x: {"logits": x})
  with pytest.raises(ConfigError, match="expected logits"):
    wrong.module.apply(wrong.variables, IMAGES)


def test_an_exported_function_is_a_teacher(tmp_path):
  module = models.create("mlp", num_classes=3)
  network = Network(module, module.init(jax.random.key(0), IMAGES))
  file = tmp_path / "function.stablehlo"
  stablehlo.save_function(file, stablehlo.export_function(network, FACTS, platforms=("cpu",)))
  plan = build.phases(settings_for(teacher__stablehlo=str(file)), dataset())
  assert plan[0].epochs == 0 and "converted to 6x6, mean (0)" in plan[0].notes[0]
  pixels = np.random.default_rng(0).integers(0, 256, (4, *SHAPE)).astype(np.uint8)
  images = jnp.float32((pixels / 255 - 0.3) / 0.2)  # as the run sees them
  found = plan[0].scheme.predict(plan[0].given, images)["teacher"]
  np.testing.assert_allclose(
    found, module.apply(network.variables, images).logits, rtol=1e-4, atol=1e-5
  )
  file.write_bytes(b"nothing")
  with pytest.raises(ConfigError, match=r"^teacher.stablehlo=.* is not an exported function"):
    build.phases(settings_for(teacher__stablehlo=str(file)), dataset())


def test_a_script_finds_packages_in_the_current_directory(nets):
  code = f"from jaxkd import models; print(models.create('{nets}:make', num_classes=3).stages)"
  done = subprocess.run(
    [sys.executable, "-P", "-c", code],
    capture_output=True,
    text=True,
    check=False,
    env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
  )
  assert done.stdout == "()\n", done.stderr
