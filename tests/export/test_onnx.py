"""ONNX models agree with jax for every kind of predictor, or say in one line what has no form."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from flax import linen as nn
from jax import export, lax

from jaxkd import commands, models
from jaxkd.adapters import Projector
from jaxkd.commands import export as script
from jaxkd.data import normalize
from jaxkd.errors import ConfigError
from jaxkd.export.bundles import save_bundle
from jaxkd.export.onnx import files
from jaxkd.export.onnx.files import export_onnx
from jaxkd.export.onnx.graph import NoOperatorError, converted
from jaxkd.types import Network, Output
from tests.models.drawn import drawn
from tests.tiny import TinyNet

SHAPE = (4, 6, 2)
DESCRIPTION = {"image_shape": list(SHAPE), "mean": [0.3, 0.5], "std": [0.2, 0.4]}
PIXELS = np.random.default_rng(0).integers(0, 256, (5, *SHAPE), dtype=np.uint8)
SPLICED = models.ReusedClassifier(
  TinyNet(), Projector((2, 3), 8), TinyNet(width=8), "stage2", "stage1"
)
EXITS = models.MultiExit(
  TinyNet(), {"stage1": models.LinearExit(3), "stage2": models.LinearExit(3)}, "pooled"
)


def network(module):
  return Network(module, drawn(module, jnp.ones((1, *SHAPE))))


def logits(model, pixels=PIXELS):
  return onnxruntime.InferenceSession(model.serialized).run(None, {"images": pixels})


def expected(given, pixels=PIXELS):
  images = normalize(jnp.asarray(pixels), DESCRIPTION["mean"], DESCRIPTION["std"])
  found = jax.jit(lambda x: given.module.apply(given.variables, x))(images)
  return [one.logits for one in (found if isinstance(found, tuple) else (found,))]


@pytest.mark.parametrize(
  "module",
  [TinyNet(), models.Ensemble({"a": TinyNet(), "b": TinyNet(width=2)})],
  ids=["a student", "an ensemble"],
)
def test_logits_are_those_of_jax_for_any_batch_size(module):
  given = network(module)
  model = export_onnx(given, {**DESCRIPTION, "class_names": ["a", "b", "c"]})
  assert model.outputs == ("logits",) and 0 <= model.difference < files.TOLERANCE
  for size in (5, 2):
    np.testing.assert_allclose(
      logits(model, PIXELS[:size])[0], expected(given)[0][:size], rtol=1e-5, atol=1e-5
    )
  stored = onnx.load_from_string(model.serialized)
  (images,) = stored.graph.input
  sizes = images.type.tensor_type.shape.dim
  assert sizes[0].dim_param == "batch" and [size.dim_value for size in sizes[1:]] == list(SHAPE)
  assert {p.key: json.loads(p.value) for p in stored.metadata_props} == {
    "class_names": ["a", "b", "c"]
  }


def test_all_exits_are_outputs_of_one_model():
  given = network(EXITS)
  model = export_onnx(given, DESCRIPTION)
  assert model.outputs == ("logits_0", "logits_1", "logits_2")
  for found, wanted in zip(logits(model), expected(given), strict=True):
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_batch_norm_becomes_part_of_the_convolution(tmp_path):
  options = onnxruntime.SessionOptions()
  options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
  options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
  onnxruntime.InferenceSession(export_onnx(network(TinyNet()), DESCRIPTION).serialized, options)
  kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
  assert kinds.count("Conv") == 2 and kinds.count("Transpose") == 1
  assert kinds.count("Add") <= 1  # of the normalisation of the images


class Sorted(nn.Module):
  stages = ()

  @nn.compact
  def __call__(self, images, train=False):
    return Output(jnp.sort(nn.Dense(3)(images.mean((1, 2))), axis=-1))


class NotFinite(nn.Module):
  @nn.compact
  def __call__(self, images, train=False):
    return Output(jnp.log(-1.0 - jnp.abs(nn.Dense(3)(images.mean((1, 2))))))


def test_operation_without_an_onnx_form_is_named():
  with pytest.raises(ConfigError, match=r"a Sorted cannot be written as ONNX: .*'sort'") as error:
    export_onnx(network(Sorted()), DESCRIPTION)
  assert "\n" not in str(error.value)


def test_logits_that_are_not_finite_are_refused():
  with pytest.raises(ConfigError, match="logits that are not finite: nothing was written"):
    export_onnx(network(NotFinite()), DESCRIPTION)


def test_other_logits_than_jax_s_are_refused(monkeypatch):
  given = network(TinyNet())
  real = files.converted

  def wrong(*arguments):
    model = onnx.load_from_string(real(*arguments))
    for stored in model.graph.initializer:
      array = onnx.numpy_helper.to_array(stored)
      if array.dtype == np.float32 and array.ndim > 1:
        stored.CopyFrom(onnx.numpy_helper.from_array(array * np.float32(1.001), stored.name))
    return model.SerializeToString()

  monkeypatch.setattr(files, "converted", wrong)
  with pytest.raises(ConfigError, match="other logits in onnxruntime than in jax"):
    export_onnx(given, DESCRIPTION)


X = np.random.default_rng(1).normal(size=(3, 4, 4, 2)).astype(np.float32)
# Operations that no model of the zoo has, or in another form.
FUNCTIONS = {
  "select": lambda x: jnp.where(x > 0.5, x, -1.0),
  "comparisons": lambda x: (x != 1.0) & (x < 0.3) | ~(x >= -0.2),
  "clamp": lambda x: jnp.clip(x, -0.5, 0.5),
  "hard and soft": lambda x: nn.silu(x) + nn.gelu(x) + jax.nn.softplus(x) + nn.elu(x),
  "powers": lambda x: x**3 + jnp.exp2(x) + jnp.expm1(x) + jnp.abs(x) ** 0.7,
  "stack": lambda x: jnp.stack([x, 2 * x], axis=1),
  "split": lambda x: jnp.split(x, 2, axis=1)[1],
  "strides": lambda x: x[:, ::2][..., -1],
  "padding": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)), constant_values=3.0),
  "cut": lambda x: lax.pad(x, 0.0, ((0, 0, 0), (-1, 0, 0), (0, -1, 0), (0, 0, 0))),
  "argmax": lambda x: x.argmax(-1),
  "rows of a table": lambda x: jnp.arange(12.0).reshape(4, 3)[x.argmax(1)],
  "two contracted axes": lambda x: jnp.einsum("bhwc,hwd->bcd", x, jnp.ones((4, 4, 3))),
  "attention": lambda x: jnp.einsum("bhwc,bhvc->bhwv", x, x),
  "many free axes": lambda x: jnp.einsum("bhwc,bvd->bhwcvd", x, x[:, 0]),
  "pooling": lambda x: nn.max_pool(x, (2, 2), (2, 2)) + nn.avg_pool(x, (3, 3), (2, 2), "SAME"),
  "standard": lambda x: nn.standardize(x, axis=(1, 2)),
  "rounding": lambda x: jnp.round(4 * x) + jnp.floor(x) + jnp.sign(x),
  "constants": lambda x: jnp.broadcast_to(jnp.arange(2.0), x.shape),
  "tokens": lambda x: jnp.concatenate(
    [jnp.broadcast_to(jnp.ones((1, 1, 2)), (x.shape[0], 1, 2)), x.reshape(x.shape[0], 16, 2)], 1
  ),
}


LONG = ("hard and soft", "comparisons", "standard", "powers")  # compile many operations


@pytest.mark.parametrize(
  "name", [pytest.param(n, marks=pytest.mark.long) if n in LONG else n for n in FUNCTIONS]
)
def test_operation_agrees_with_jax(name):
  function = FUNCTIONS[name]
  (batch,) = export.symbolic_shape("batch")
  like = jax.ShapeDtypeStruct((batch, *X.shape[1:]), X.dtype)
  model = converted(lambda x: [function(x)], {"x": like}, ["y"])
  for x in (X, X[:1]):
    (found,) = onnxruntime.InferenceSession(model).run(None, {"x": x})
    wanted = function(jnp.asarray(x))
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
  ("function", "named"),
  [
    (lambda x: jnp.cumsum(x, axis=1), "cumsum"),
    (lambda x: lax.scan(lambda c, _: (2 * c, None), x, length=3)[0], "scan"),
    (lambda x: x / x.shape[0], "batch size as a number"),
    (lambda x: lax.pad(x, 0.0, ((0, 0, 0), (0, 0, 1), (0, 0, 0), (0, 0, 0))), "pad"),
    (lambda x: x + jnp.arange(x.shape[0])[:, None, None, None], "iota"),
  ],
)
def test_other_operations_are_named(function, named):
  (batch,) = export.symbolic_shape("batch")
  like = jax.ShapeDtypeStruct((2 * batch, *X.shape[1:]), X.dtype)
  with pytest.raises(NoOperatorError, match=named):
    converted(lambda x: [function(x)], {"x": like}, ["y"])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
  path = tmp_path_factory.mktemp("onnx") / "bundle"
  save_bundle(path, network(models.CifarResNet(1, (2, 2, 2, 2), 3)), DESCRIPTION)
  return path


def run(*arguments):
  script.FLAGS.unparse_flags()
  for name in script.FLAGS:
    script.FLAGS[name].unparse()
  script.main(script.FLAGS(["export.py", *(str(argument) for argument in arguments)]))


def refused(*arguments):
  """Return the error of a command."""
  with pytest.raises(ConfigError) as error:
    run(*arguments)
  assert "\n" not in str(error.value)
  return str(error.value)


@pytest.mark.long
def test_command_writes_the_model_and_how_to_call_it(bundle, tmp_path, capsys):
  for _ in range(2):  # an older export is replaced
    run("--bundle", bundle, "--output", tmp_path / "out", "--format", "onnx")
  text = capsys.readouterr().out
  assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.txt", "model.onnx"]
  assert "images, uint8 (batch, 4, 6, 2), 0..255" in text and "InferenceSession" in text
  session = onnxruntime.InferenceSession(str(tmp_path / "out/model.onnx"))
  assert session.run(None, {"images": PIXELS})[0].shape == (5, 3)


@pytest.mark.long
def test_ensemble_of_exits_is_written_with_all_its_exits(tmp_path):
  save_bundle(tmp_path / "bundle", network(models.ExitEnsemble(EXITS)), DESCRIPTION)
  output = tmp_path / "out"
  run(
    "--bundle",
    tmp_path / "bundle",
    "--output",
    output,
    "--format",
    "onnx",
    "--allow_import",
    "tests",
  )
  session = onnxruntime.InferenceSession(str(output / "exits.onnx"))
  assert [given.name for given in session.get_outputs()] == ["logits_0", "logits_1", "logits_2"]
  assert onnxruntime.InferenceSession(str(output / "model.onnx")).get_outputs()[0].name == "logits"


@pytest.mark.long
@pytest.mark.parametrize(
  "module",
  [SPLICED, *(models.AtExit(EXITS, exit) for exit in range(3)), models.ExitEnsemble(EXITS)],
  ids=["a simkd student", "exit 0", "exit 1", "exit 2", "the mean of exits"],
)
def test_other_predictors_agree(module):
  given = network(module)
  model = export_onnx(given, DESCRIPTION)
  np.testing.assert_allclose(logits(model)[0], expected(given)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--format", "tflite"], "unknown format 'tflite'"),
    (["--int8"], "--int8 is for --format onnx"),
    (["--format", "onnx", "--data", "digits"], "--data and --directory are for --int8"),
    (["--format", "onnx", "--int8", "--calibration", "8"], "calibration=8: too few images"),
  ],
)
def test_wrong_flags_write_nothing(bundle, tmp_path, arguments, message):
  assert message in refused("--bundle", bundle, "--output", tmp_path / "out", *arguments)
  assert not (tmp_path / "out").exists()


def test_other_files_are_not_replaced(bundle, tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  error = refused("--bundle", bundle, "--output", tmp_path, "--format", "onnx")
  assert "holds something else than an ONNX export" in error
  assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_missing_package_is_named_in_one_line(bundle, tmp_path, monkeypatch):
  for name in [name for name in sys.modules if name.startswith("jaxkd.export.onnx")]:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.delitem(sys.modules, "jaxkd.commands.exported_onnx", raising=False)
  monkeypatch.delattr(commands, "exported_onnx", raising=False)
  monkeypatch.setitem(sys.modules, "onnx", None)
  error = refused("--bundle", bundle, "--output", tmp_path / "out", "--format", "onnx")
  assert "needs onnx, which is not installed: pip install onnx" in error
  assert "jaxkd-distillation[onnx]" in error
