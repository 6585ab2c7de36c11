"""Models with 8 bits agree with the float model, and too few calibration images are refused."""

import jax.numpy as jnp
import numpy as np
import onnx
import pytest

from jaxkd import models
from jaxkd.commands import export as script
from jaxkd.commands import exported_onnx
from jaxkd.errors import ConfigError
from jaxkd.export.bundles import save_bundle
from jaxkd.export.onnx import files, int8
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


def test_too_few_images_are_refused():
  with pytest.raises(ConfigError, match=r"images=31: too few images to calibrate with, .* 32"):
    int8.quantized(b"", PIXELS[:31], (PIXELS, np.zeros(96)))
  with pytest.raises(ConfigError, match="calibration=5: too few images"):
    exported_onnx.check(exported_onnx.Int8("digits", None, 5))
