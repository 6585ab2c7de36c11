"""Models with 8 bits agree with the float model, and too few calibration images are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest

from jaxkd import models
from jaxkd.commands import export as script
from jaxkd.commands import exported_onnx
from jaxkd.errors import ConfigError
from jaxkd.export.bundles import save_bundle
from jaxkd.export.onnx import files, int8, learned_ranges
from jaxkd.models.compose.quantized import input_ranges, unrounded
from jaxkd.networks import learn, update
from jaxkd.types import Network
from tests.models.drawn import drawn

SHAPE = (8, 8, 1)
DESCRIPTION = {"image_shape": list(SHAPE), "mean": [0.3], "std": [0.4], "data": "digits"}
PIXELS = np.random.default_rng(0).integers(0, 256, (96, *SHAPE), dtype=np.uint8)


def network():
  module = models.CifarResNet(1, (4, 4, 6, 8), 10)
  return Network(module, drawn(module, jnp.ones((1, *SHAPE))))


@pytest.mark.long
def test_int8_model_agrees_and_the_best_calibration_is_kept():
  model = files.export_onnx(network(), DESCRIPTION)
  labels = int8.logits_of(files.session(model.serialized), PIXELS).argmax(-1)
  found = int8.quantized(model.serialized, PIXELS[:32], (PIXELS[32:], labels[32:]))
  assert list(found.validation) == list(int8.CALIBRATIONS)
  assert found.validation[found.calibration] == max(found.validation.values()) > 0.8
  stored = onnx.load_from_string(found.serialized)
  kernels = [x for x in stored.graph.initializer if x.data_type == onnx.TensorProto.INT8]
  scales = [x for x in stored.graph.initializer if "scale" in x.name and len(x.dims) == 1]
  assert len([x for x in kernels if len(x.dims) == 4]) == 9 and len(scales) >= 9  # per channel


@pytest.mark.long
def test_command_prints_both_models(tmp_path, capsys):
  save_bundle(tmp_path / "bundle", network(), DESCRIPTION)
  script.FLAGS.unparse_flags()
  for name in script.FLAGS:
    script.FLAGS[name].unparse()
  given = {"bundle": tmp_path / "bundle", "output": tmp_path / "out", "format": "onnx"}
  flags = [f"--{name}={value}" for name, value in given.items()]
  script.main(script.FLAGS(["export.py", *flags, "--int8", "--calibration=64"]))
  text = capsys.readouterr().out
  assert "| float32 |" in text and "| int8 |" in text and "360 test images" in text
  assert (tmp_path / "out/model_int8.onnx").exists()


def trained_for_it():
  module = models.quantized(network().module, "int8")
  images = np.float32(PIXELS[:32] / 255 - 0.3) / 0.4
  drawn_ = module.init(jax.random.key(0), images)
  changed = jax.jit(lambda v: learn(module, v, images, jax.random.key(1))[1])(drawn_)
  return Network(module, {**drawn_, **changed})


@pytest.mark.long
def test_layers_of_a_student_have_the_ranges_that_it_learned(tmp_path):
  student = trained_for_it()
  save_bundle(tmp_path / "bundle", student, DESCRIPTION)
  plain = unrounded(student.module, student.variables, kernels=False)
  model = files.export_onnx(plain, DESCRIPTION)
  images = np.float32(PIXELS / 255 - 0.3) / 0.4
  wanted = np.asarray(student.module.apply(student.variables, images).logits)
  validation = PIXELS, wanted.argmax(-1)
  found = int8.quantized(model.serialized, PIXELS[:32], validation, student=student)
  assert found.calibration == "learned" and found.validation["learned"] > 0.9
  stored = onnx.load_from_string(found.serialized)
  scalars = [float(onnx.numpy_helper.to_array(x)) for x in stored.graph.initializer if not x.dims]
  for path, low, high in input_ranges(student.variables):
    assert np.isclose(scalars, (high - low) / 255, rtol=1e-5, atol=0).any(), path
  other = models.quantized(models.CifarResNet(1, (4, 4, 6, 8), 10), "int8")
  far = student.variables["params"]["network"]["classifier"]["kernel"][::-1]
  changed = update(student.variables, {"params": {"network": {"classifier": {"kernel": far}}}})
  with pytest.raises(ConfigError, match="classifier has no operation with its kernel"):
    learned_ranges.overrides(onnx.load_from_string(model.serialized), Network(other, changed))


def test_too_few_images_are_refused():
  with pytest.raises(ConfigError, match=r"images=31: too few images to calibrate with, .* 32"):
    int8.quantized(b"", PIXELS[:31], (PIXELS, np.zeros(96)))
  with pytest.raises(ConfigError, match="calibration=5: too few images"):
    exported_onnx.check(exported_onnx.Int8("digits", None, 5))
