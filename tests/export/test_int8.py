"""Models with 8 bits agree with the float model, and too few calibration images are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest

from jaxkd import models
from jaxkd.adapters import Projector
from jaxkd.commands import export as script
from jaxkd.commands import exported_onnx
from jaxkd.errors import ConfigError
from jaxkd.export.bundles import save_bundle
from jaxkd.export.onnx import files, int8, learned_ranges
from jaxkd.models import reuse_classifier
from jaxkd.models.compose.quantized import input_ranges, with_float_inputs
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


NORMALIZED = (np.float32(PIXELS) / 255 - 0.3) / 0.4


def trained_for_it(precision="int8"):
  module = models.quantized(network().module, precision)
  made = module.init(jax.random.key(0), NORMALIZED[:32])
  run = jax.jit(lambda v: learn(module, v, NORMALIZED[:32], jax.random.key(1))[1])
  return Network(module, {**made, **run(made)})


def spliced():
  student, teacher = trained_for_it(), network()
  projector = Projector((2, 2), 8)
  weights = drawn(projector, jnp.ones((1, 2, 2, 8)), train=False, seed=2)
  return reuse_classifier(student, Network(projector, weights), teacher, image_shape=SHAPE)


@pytest.mark.long
@pytest.mark.parametrize("made", [trained_for_it, lambda: trained_for_it("int4"), spliced])
def test_layers_of_a_student_have_the_ranges_that_it_learned(made):
  student = made()
  float_inputs = student._replace(module=with_float_inputs(student.module))
  model = files.export_onnx(float_inputs, DESCRIPTION)
  wanted = np.asarray(student.module.apply(student.variables, NORMALIZED, False).logits)
  validation = PIXELS, wanted.argmax(-1)
  found = int8.quantized(model.serialized, PIXELS[:32], validation, student=student)
  assert found.calibration == "learned" and found.validation["learned"] > 0.9
  stored = onnx.load_from_string(found.serialized)
  scalars = [float(onnx.numpy_helper.to_array(x)) for x in stored.graph.initializer if not x.dims]
  ranges = list(input_ranges(student.variables))
  assert len(ranges) >= 9
  for path, low, high in ranges:
    assert np.isclose(scalars, (high - low) / 255, rtol=1e-5, atol=0).any(), path


@pytest.mark.long
def test_a_layer_that_the_model_does_not_have_is_named():
  student = trained_for_it()
  model = files.export_onnx(student._replace(module=with_float_inputs(student.module)), DESCRIPTION)
  kernel = student.variables["params"]["network"]["classifier"]["kernel"][::-1]
  changed = update(student.variables, {"params": {"network": {"classifier": {"kernel": kernel}}}})
  with pytest.raises(ConfigError, match="network/classifier has no operation with its kernel"):
    learned_ranges.overrides(
      onnx.load_from_string(model.serialized), student._replace(variables=changed)
    )


@pytest.mark.long
def test_command_exports_a_student_that_was_trained_for_it(tmp_path, capsys):
  save_bundle(tmp_path / "bundle", trained_for_it(), DESCRIPTION)
  options = exported_onnx.Int8(None, None, 64)
  text = exported_onnx.write(
    tmp_path / "bundle", tmp_path / "out", allow=(), batch_size=None, int8=options
  )
  assert "calibration 'learned'" in text and (tmp_path / "out/model_int8.onnx").exists()


def test_too_few_images_are_refused():
  with pytest.raises(ConfigError, match=r"images=31: too few images to calibrate with, .* 32"):
    int8.quantized(b"", PIXELS[:31], (PIXELS, np.zeros(96)))
  with pytest.raises(ConfigError, match="calibration=5: too few images"):
    exported_onnx.check(exported_onnx.Int8("digits", None, 5))
