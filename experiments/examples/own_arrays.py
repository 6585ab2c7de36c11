"""Distil a small network for arrays of your own.

    python experiments/examples/own_arrays.py FILE.npz runs/own

FILE.npz has images (N, H, W, C), uint8 or floats in 0..1, and labels (N,). For a file as it is,
experiments/train.py --config.data.name=npz:FILE.npz does the same.
"""

import pathlib
import sys

import numpy as np
from rich.console import Console

from jaxkd import data
from jaxkd.experiment.config import base_config
from jaxkd.experiment.run import run


def main(path, workdir, *, epochs=30, teacher="resnet14_w8", student="resnet8_w4"):
  """Train a teacher, the student alone and the distilled student; return the run's summary."""
  with np.load(path) as arrays:
    images, labels = arrays["images"], arrays["labels"]
  own = data.from_arrays(images, labels, validation=0.1, test=0.2)
  config = base_config("kd")
  config.data.name = own.name
  config.teacher.model, config.student.model = teacher, student
  for network in (config.teacher, config.student):
    network.epochs = epochs
    network.schedule = "cosine"
  return run(config, pathlib.Path(workdir), Console(), load_data=lambda *_, **__: own)


if __name__ == "__main__":
  main(*sys.argv[1:3])
