"""Own pictures in folders, a teacher, a distilled student, and its 8-bit ONNX file for a device.

    python experiments/examples/own_edge.py PATH runs/edge
    python experiments/examples/own_edge_classify.py runs/edge/onnx/model_int8.onnx PICTURE.jpg

PATH has CLASS/*.jpg, or train/CLASS and test/CLASS. The second program needs onnxruntime, numpy and
Pillow alone, so that it and the model can be copied to the device.
"""

import pathlib
import sys

from rich.console import Console

from jaxkd.commands import exported_onnx
from jaxkd.experiment.config import base_config
from jaxkd.experiment.run import run


def main(path, workdir, *, size=32, epochs=30, networks=("resnet14_w8", "resnet8_w8"), images=256):
  """Train and export; return the directory with model.onnx and model_int8.onnx."""
  config = base_config("kd")
  config.data.name = f"folder:{path}"
  config.data.image_size = size
  config.data.flip = True
  for network, model in zip((config.teacher, config.student), networks, strict=True):
    network.model, network.epochs, network.schedule = model, epochs, "cosine"
  console = Console()
  run(config, pathlib.Path(workdir), console)
  output, int8 = pathlib.Path(workdir) / "onnx", exported_onnx.Int8(None, None, images)
  exported_onnx.check_output(output)
  bundle = pathlib.Path(workdir) / "bundles/distilled/student"
  text = exported_onnx.write(bundle, output, allow=(), batch_size=None, int8=int8)
  console.print(text, soft_wrap=True, highlight=False, markup=False)
  return output


if __name__ == "__main__":
  main(*sys.argv[1:3])
