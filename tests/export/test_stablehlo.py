"""Exported networks: a function that runs with jax alone, and the weights by name."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export

from jaxkd import models
from jaxkd.adapters import Gate, Projector
from jaxkd.commands import export as script
from jaxkd.data import normalize
from jaxkd.errors import ConfigError
from jaxkd.export.bundles import save_bundle
from jaxkd.export.stablehlo import export_function, is_function, save_function
from jaxkd.types import Network, Output
from tests.models.drawn import drawn
from tests.tiny import TinyNet

ROOT = pathlib.Path(__file__).parents[2]
SHAPE, MEAN, STD = (4, 6, 2), [0.3, 0.5], [0.2, 0.4]
DESCRIPTION = {"image_shape": list(SHAPE), "mean": MEAN, "std": STD}
PIXELS = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), dtype=np.uint8)
STUDENT = models.CifarResNet(1, (2, 2, 2, 2), 3)


def network(module):
  return Network(module, drawn(module, jnp.ones((1, *SHAPE))))


def expected(given, pixels=PIXELS):
  images = normalize(jnp.asarray(pixels), MEAN, STD)
  return given.module.apply(given.variables, images).logits


KINDS = {
  # The student's map is larger than the teacher's, so it is pooled.
  "a simkd student": models.ReusedClassifier(
    TinyNet(), Projector((2, 3), 8), TinyNet(), "stage1", "stage2"
  ),
  "an exit": models.AtExit(
    models.MSDNet(
      3,
      blocks=2,
      base=1,
      step=1,
      channels=2,
      growth_rate=2,
      growth_factors=(1, 2),
      bottleneck_factors=(1, 2),
      scales=2,
      exit_width=4,
    ),
    0,
  ),
  "gated branches": models.GatedBranches(
    models.Branched(TinyNet(), 2, "stage1"), Gate(2), "stage1"
  ),
  "an ensemble": models.Ensemble({"a": TinyNet(), "b": TinyNet(width=2)}),
  "a transformer": models.VisionTransformer(2, 8, 2, (1, 1, 1), 3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_predictor_exports_for_any_batch_size(kind):
  given = network(KINDS[kind])
  written = export_function(given, DESCRIPTION).serialize()
  exported = export.deserialize(written)
  assert exported.platforms == ("cpu", "cuda", "tpu")
  assert str(exported.in_avals[0].shape[0]) == "batch"
  assert exported.in_avals[0].dtype == jnp.uint8
  assert exported.out_avals[0].dtype == jnp.float32
  found, wanted = jax.jit(lambda x: (exported.call(x), expected(given, x)))(PIXELS)
  assert np.ptp(wanted, axis=0).min() > 0
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
  """The directory of a run with one bundle, and the network in it."""
  run, given = tmp_path_factory.mktemp("run"), network(STUDENT)
  described = {**DESCRIPTION, "data": "drawn", "predictor": "student", "test_accuracy": 0.5}
  save_bundle(run / "bundles/distilled/student", given, described)
  return run, given


@pytest.fixture(scope="module")
def command():
  """A function that runs experiments/export.py with the given flags."""

  def run(**given):
    script.FLAGS.unparse_flags()
    arguments = [f"--{name}={value}" for name, value in given.items()]
    script.main(script.FLAGS(["export.py", *arguments]))

  return run


# The code of README.txt, in a process that can import neither this library nor flax.
ELSEWHERE = """
import sys
for name in ("jaxkd", "flax", "optax", "safetensors"):
  sys.modules[name] = None
import numpy as np
images = pixels = np.load("pixels.npy")
{lines}
np.savez("found.npz", one=function.call(pixels[:1]), three=logits)
"""


def test_exported_function_runs_without_this_library(bundle, command, tmp_path, capsys):
  run, given = bundle
  command(bundle=run, output=tmp_path)
  output = tmp_path / "distilled/student"
  readme = (output / "README.txt").read_text()
  assert readme.strip() in capsys.readouterr().out
  assert "uint8 (batch, 4, 6, 2)" in readme
  assert "float32 (batch, 3)" in readme
  assert "cpu, cuda, tpu" in readme
  assert "test_accuracy: 0.5" in readme

  np.save(output / "pixels.npy", PIXELS)
  lines = [line.strip() for line in readme.splitlines() if "import" in line or " = " in line]
  code = ELSEWHERE.format(lines="\n".join(lines))
  done = subprocess.run(
    [sys.executable, "-W", "error", "-c", code],
    cwd=output,
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr
  wanted = expected(given)
  with np.load(output / "found.npz") as found:
    np.testing.assert_allclose(found["three"], wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["one"], wanted[:1], rtol=1e-5, atol=1e-5)


def test_exported_weights_file_is_the_bundles(bundle, command, tmp_path):
  source = bundle[0] / "bundles/distilled/student"
  command(bundle=source, output=tmp_path / "new")
  copied = (tmp_path / "new/weights.safetensors").read_bytes()
  assert copied == (source / "weights.safetensors").read_bytes()
  names = json.loads(copied[8 : 8 + int.from_bytes(copied[:8], "little")])
  assert "params/stem_conv/kernel" in names
  files = {"function.stablehlo", "weights.safetensors", "README.txt"}
  assert {path.name for path in (tmp_path / "new").iterdir()} == files

  # A second export replaces the files, here for other platforms.
  command(bundle=source, output=tmp_path / "new", platforms="cpu", batch_size=2)
  exported = export.deserialize(bytearray((tmp_path / "new/function.stablehlo").read_bytes()))
  assert exported.platforms == ("cpu",)
  assert exported.in_avals[0].shape == (2, *SHAPE)
  assert {path.name for path in (tmp_path / "new").iterdir()} == files


def test_export_script_names_what_is_no_bundle(bundle, command, tmp_path):
  with pytest.raises(ConfigError, match=r"no model\.json there, so neither a bundle nor a run"):
    command(bundle=tmp_path, output=tmp_path / "out")
  damaged = tmp_path / "damaged"
  damaged.mkdir()
  (damaged / "model.json").write_text("{")
  with pytest.raises(ConfigError, match=r"damaged model\.json"):
    command(bundle=damaged, output=tmp_path / "out")
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("there", ["notes.txt", "README.txt", "function.stablehlo"])
def test_export_overwrites_only_exports(bundle, command, tmp_path, there):
  (tmp_path / there).write_text("mine")
  source = bundle[0] / "bundles/distilled/student"
  with pytest.raises(ConfigError, match="something else than an export: nothing was written"):
    command(bundle=source, output=tmp_path)
  with pytest.raises(ConfigError, match="is a file, expected a directory"):
    command(bundle=source, output=tmp_path / there)
  exported = export.export(jax.jit(jnp.sin), platforms=("cpu",))(1.0)
  with pytest.raises(ConfigError, match="is not an exported function: nothing was written"):
    save_function(tmp_path / there, exported)
  with pytest.raises(ConfigError, match="cannot be written"):
    save_function(tmp_path / there / "below", exported)
  assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
  save_function(tmp_path / "deep/new", exported)
  save_function(tmp_path / "deep/new", exported)
  assert is_function(tmp_path / "deep/new")
  assert [path.name for path in (tmp_path / "deep").iterdir()] == ["new"]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"mean": None}, r"expected image_shape, .*, mean and std"),
    ({"image_shape": [4, 6]}, r"expected image_shape"),
    ({"std": [0.2]}, r"expected 2 each, one per channel"),
    ({"std": [0.2, 0.0]}, r"std above 0"),
  ],
)
def test_error_names_what_a_description_lacks(changes, message):
  with pytest.raises(ConfigError, match=message):
    export_function(Network(STUDENT, {}), {**DESCRIPTION, **changes})


class NeedsTheNumber(nn.Module):
  @nn.compact
  def __call__(self, images, train=False):
    return Output(jnp.stack([image.mean((0, 1)) for image in images]))


def test_export_errors_say_what_would_work():
  given = Network(NeedsTheNumber(), {})
  with pytest.raises(ConfigError, match=r"NeedsTheNumber .* for any batch size .*give batch_size"):
    export_function(given, DESCRIPTION)
  assert export_function(given, DESCRIPTION, batch_size=2).in_avals[0].shape == (2, *SHAPE)
  branched = models.Branched(TinyNet(), 2, "stage1")
  with pytest.raises(ConfigError, match=r"Branched does not return one Output"):
    export_function(network(branched), DESCRIPTION)
  for options, message in (
    ({"platforms": ("gpu",)}, "unknown platform 'gpu'"),
    ({"platforms": ()}, "expected at least one of cpu"),
    ({"batch_size": 0}, "batch_size=0: expected a number of at least 1"),
  ):
    with pytest.raises(ConfigError, match=message):
      export_function(given, DESCRIPTION, **options)
