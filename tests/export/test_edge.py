"""From pictures in folders to a program on a device that has neither jax nor this library."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import onnxruntime
import PIL
import pytest
from PIL import Image

from tests.test_examples import FOLDER, load

CLASSIFY = FOLDER / "own_edge_classify.py"
COLOURS = {"blue": (30, 40, 200), "green": (30, 180, 60), "red": (210, 40, 30)}


def pictures(path, count):
  rng = np.random.default_rng(0)
  for name, colour in COLOURS.items():
    (path / name).mkdir(parents=True)
    for number in range(count):
      pixels = np.clip(rng.normal(colour, 40, (12, 16, 3)), 0, 255).astype(np.uint8)
      Image.fromarray(pixels).save(path / name / f"{number}.jpg")


def only(folder):
  """Fill a folder with onnxruntime, numpy and Pillow, and the libraries in their wheels."""
  folder.mkdir()
  for package in (onnxruntime, np, PIL):
    place = pathlib.Path(package.__file__).parent
    libraries = {"numpy": "numpy.libs", "PIL": "pillow.libs"}.get(place.name)
    for found in (place, place.parent / libraries if libraries else place):
      if found.exists() and not (folder / found.name).exists():
        (folder / found.name).symlink_to(found)
  return folder


def test_the_program_on_the_device_is_short():
  assert len(CLASSIFY.read_text().splitlines()) <= 25
  assert "jax" not in CLASSIFY.read_text()


@pytest.mark.long
def test_pictures_are_classified_without_jax(tmp_path):
  pictures(tmp_path / "pictures", 40)
  output = load(FOLDER / "own_edge.py").main(
    tmp_path / "pictures",
    tmp_path / "run",
    size=8,
    epochs=6,
    networks=("resnet8_w4", "resnet8_w4"),
    images=32,
  )
  given = [tmp_path / "pictures" / name / "0.jpg" for name in COLOURS]
  environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(only(tmp_path / "device"))}
  for model in ("model.onnx", "model_int8.onnx"):
    assert (output / model).stat().st_size < 300_000
    command = [sys.executable, "-S", CLASSIFY, output / model, *given]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [line.split()[1] for line in done.stdout.splitlines()]
    assert found == list(COLOURS), done.stdout
  probe = "import importlib.util as u; print([u.find_spec(n) for n in ('jax', 'jaxkd', 'onnx')])"
  done = subprocess.run(
    [sys.executable, "-S", "-c", probe],
    cwd=tmp_path,
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.strip() == "[None, None, None]"
