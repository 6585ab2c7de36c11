from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxkd import models
from jaxkd.adapters import Projector
from jaxkd.errors import ConfigError
from jaxkd.export import bundles
from jaxkd.export.bundles import load_bundle, save_bundle
from jaxkd.models import reuse_classifier, tap
from jaxkd.types import Network, Output
from tests.models.drawn import drawn

IMAGE = (8, 8, 1)
DESCRIPTION = {"image_shape": list(IMAGE), "classes": 3, "mean": [0.5], "metrics": {"test": 0.75}}
STUDENT = models.create("resnet8_w4", num_classes=3)
TEACHER = models.create("resnet8_w8", num_classes=3, dtype=jnp.bfloat16)


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).normal(size=(2, *IMAGE)).astype(np.float32)


@pytest.fixture(scope="module")
def network(images):
  return Network(STUDENT, drawn(STUDENT, images, seed=1))


@pytest.fixture(scope="module")
def teacher(images):
  return Network(TEACHER, drawn(TEACHER, images, seed=3))


@pytest.fixture(scope="module")
def distilled(network, teacher):
  return reuse(network, teacher)


def reuse(student, teacher):
  projector = Projector((2, 2), 32)
  weights = drawn(projector, jnp.ones((1, 2, 2, 16)), train=False, seed=2)
  return reuse_classifier(student, Network(projector, weights), teacher, image_shape=IMAGE)


@pytest.fixture
def bundle(tmp_path, network):
  save_bundle(tmp_path / "bundle", network, DESCRIPTION)
  return tmp_path / "bundle"


def same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def rewrite(bundle, **changes):
  document = json.loads((bundle / "model.json").read_text())
  (bundle / "model.json").write_text(json.dumps({**document, **changes}))


def test_loaded_network_equals_the_saved_one(bundle, network):
  loaded, description = load_bundle(bundle)
  assert loaded.module == STUDENT
  assert description == DESCRIPTION
  same(loaded.variables, dict(network.variables))
  assert {file.name for file in bundle.iterdir()} == {"model.json", "weights.safetensors"}


def test_dtypes_are_restored(tmp_path, teacher):
  half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), teacher.variables)
  save_bundle(tmp_path / "t", Network(TEACHER, half), DESCRIPTION)
  loaded, _ = load_bundle(tmp_path / "t")
  assert jnp.dtype(loaded.module.dtype) == jnp.bfloat16
  same(loaded.variables, half)
  assert {leaf.dtype for leaf in jax.tree.leaves(loaded.variables)} == {jnp.dtype("bfloat16")}


def test_distilled_student_loads_without_its_teachers_bundle_and_can_teach(
  tmp_path, network, distilled, images
):
  save_bundle(tmp_path / "first", distilled, DESCRIPTION)
  first, _ = load_bundle(tmp_path / "first")
  expected = jax.jit(distilled.module.apply)(distilled.variables, images)
  found = jax.jit(first.module.apply)(first.variables, images)
  same(found, expected)

  save_bundle(tmp_path / "second", reuse(network, first), DESCRIPTION)
  second, _ = load_bundle(tmp_path / "second")
  rest = second.module.apply(
    second.variables, expected.features["stage3"], "stage3", method="resume"
  )
  np.testing.assert_allclose(rest.logits, expected.logits, rtol=0.01)
  assert set(second.variables["params"]["teacher"]) == {"teacher"}


def test_modules_of_models_and_adapters_can_be_saved():
  for name in ("CifarResNet", "ReusedClassifier", "Tapped", "Projector", "Regressor"):
    assert bundles.MODULES[name].__name__ == name


class Scaled(nn.Module):
  """A network with a weight that has no axis."""

  @nn.compact
  def __call__(self, images, train=False):
    return Output(self.param("scale", nn.initializers.ones, ()) * images[:, 0, 0])


def test_a_weight_without_axes_keeps_its_shape(tmp_path, images):
  saved = Network(Scaled(), Scaled().init(jax.random.key(0), images))
  save_bundle(tmp_path / "bundle", saved, DESCRIPTION)
  loaded, _ = load_bundle(tmp_path / "bundle", allow=(Scaled.__module__,))
  assert loaded.variables["params"]["scale"].shape == ()


def test_non_contiguous_arrays_are_restored(tmp_path, network):
  fortran = jax.tree.map(lambda leaf: np.asfortranarray(leaf), dict(network.variables))
  save_bundle(tmp_path / "b", Network(STUDENT, fortran), DESCRIPTION)
  same(load_bundle(tmp_path / "b")[0].variables, dict(network.variables))


class Foreign(nn.Module):
  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, x):
    for width in self.widths:
      x = nn.Dense(width)(x.mean((1, 2)) if x.ndim == 4 else x)
    return x


def test_caller_can_add_module_classes(tmp_path):
  module = tap(Foreign((4, 3)), {"hidden": "Dense_0"})
  network = Network(module, drawn(module, jnp.ones((1, *IMAGE))))
  save_bundle(tmp_path / "b", network, DESCRIPTION, modules={"Foreign": Foreign})
  with pytest.raises(ConfigError, match=r"unknown module class in bundle .*: 'Foreign'"):
    load_bundle(tmp_path / "b")
  loaded, _ = load_bundle(tmp_path / "b", modules={"Foreign": Foreign})
  assert loaded.module == module
  same(loaded.variables, dict(network.variables))


@pytest.mark.parametrize("field", [nn.relu, print, object])
def test_error_names_a_field_that_json_cannot_hold(tmp_path, field):
  module = Foreign(field)
  with pytest.raises(ConfigError, match=r"Foreign\.widths: a bundle cannot hold"):
    save_bundle(tmp_path / "b", Network(module, {}), DESCRIPTION, modules={"Foreign": Foreign})


@pytest.mark.parametrize(
  ("description", "message"),
  [({}, "needs image_shape"), ({**DESCRIPTION, "when": object()}, "not JSON serializable")],
)
def test_unusable_description_is_refused(tmp_path, network, description, message):
  with pytest.raises(ConfigError, match=message):
    save_bundle(tmp_path / "b", network, description)
  assert not list(tmp_path.iterdir())


def test_weights_of_another_module_are_not_saved(tmp_path, network):
  with pytest.raises(ConfigError, match=r"weights of another architecture: .* of another shape"):
    save_bundle(tmp_path / "b", Network(TEACHER, network.variables), DESCRIPTION)
  assert not list(tmp_path.iterdir())


def test_saving_replaces_an_existing_bundle(bundle, teacher):
  save_bundle(bundle, teacher, DESCRIPTION)
  assert load_bundle(bundle)[0].module.widths == TEACHER.widths
  assert list(bundle.parent.iterdir()) == [bundle]


@pytest.mark.parametrize("failing", ["write_text", "rename"])
def test_failed_write_keeps_the_earlier_bundle(bundle, teacher, network, monkeypatch, failing):
  original = getattr(Path, failing)

  def fail(path, *arguments, **options):
    # Writing fails at once; renaming fails after the earlier bundle has been renamed.
    if failing == "write_text" or path.name.startswith("."):
      raise OSError("disk full")
    return original(path, *arguments, **options)

  monkeypatch.setattr(Path, failing, fail)
  with pytest.raises(OSError, match="disk full"):
    save_bundle(bundle, teacher, DESCRIPTION)
  monkeypatch.undo()
  same(load_bundle(bundle)[0].variables, dict(network.variables))
  assert list(bundle.parent.iterdir()) == [bundle]


def test_saving_overwrites_only_bundles(tmp_path, network):
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(ConfigError, match="exists and is not a bundle"):
    save_bundle(tmp_path, network, DESCRIPTION)
  with pytest.raises(ConfigError, match="exists and is not a bundle"):
    save_bundle(tmp_path / "notes.txt", network, DESCRIPTION)
  assert (tmp_path / "notes.txt").read_text() == "mine"


def test_error_names_a_directory_without_a_bundle(tmp_path):
  with pytest.raises(ConfigError, match=r"is not a bundle: no model\.json$"):
    load_bundle(tmp_path)
  with pytest.raises(ConfigError, match=r"is not a bundle: no model\.json$"):
    load_bundle(tmp_path / "nowhere")


def test_error_names_the_replaced_bundle_that_a_crash_left(bundle):
  bundle.rename(f"{bundle}.replaced")
  with pytest.raises(ConfigError, match=r"an earlier one is at .*/bundle\.replaced"):
    load_bundle(bundle)


def test_error_names_a_missing_weights_file(bundle):
  (bundle / "weights.safetensors").unlink()
  with pytest.raises(ConfigError, match=r"bundle .*: no weights\.safetensors"):
    load_bundle(bundle)


@pytest.mark.parametrize("size", [0, 5, 300, -7])
def test_truncated_weights_are_refused(bundle, size):
  file = bundle / "weights.safetensors"
  file.write_bytes(file.read_bytes()[:size])
  with pytest.raises(ConfigError, match=r"damaged weights\.safetensors"):
    load_bundle(bundle)


def test_one_flipped_bit_in_the_weights_is_detected(bundle):
  file = bundle / "weights.safetensors"
  data = bytearray(file.read_bytes())
  data[-1] ^= 1
  file.write_bytes(data)
  with pytest.raises(ConfigError, match=r"damaged weights\.safetensors: not what"):
    load_bundle(bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', "\x00"])
def test_damaged_model_json_is_refused(bundle, text):
  (bundle / "model.json").write_text(text)
  with pytest.raises(ConfigError, match=r"damaged model\.json"):
    load_bundle(bundle)


def test_error_lists_weights_of_another_architecture(bundle, tmp_path, distilled):
  save_bundle(tmp_path / "other", distilled, DESCRIPTION)
  (bundle / "weights.safetensors").write_bytes(
    (tmp_path / "other" / "weights.safetensors").read_bytes()
  )
  with pytest.raises(
    ConfigError,
    match=r"another architecture: \d\d missing \(batch_stats/stage1_0/bn1/mean, .*, \.\.\.\), "
    r"\d\d unexpected \(batch_stats/projector/bn1/mean, ",
  ):
    load_bundle(bundle)


def test_newer_format_is_refused(bundle):
  (bundle / "model.json").write_text('{"format": 2}')
  with pytest.raises(ConfigError, match="format 2, this jaxkd reads format 1"):
    load_bundle(bundle)


@pytest.mark.parametrize(
  ("architecture", "message"),
  [
    ({"class": "os.system", "fields": {}}, "unknown module class in bundle .* 'os.system'"),
    ({"class": "CifarResNet", "fields": {"depth": 8}}, "unknown field of CifarResNet .*'depth'"),
    ({"class": "CifarResNet", "fields": {"blocks": 1}}, "damaged model.json"),
    ({"clas": "CifarResNet"}, "is no part of an architecture"),
  ],
)
def test_loading_constructs_listed_classes_only(bundle, architecture, message):
  rewrite(bundle, network=architecture)
  with pytest.raises(ConfigError, match=message):
    load_bundle(bundle)
