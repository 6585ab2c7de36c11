"""Distil a small network for pictures of your own, in folders named after their classes.

    python experiments/examples/own_folder.py PATH runs/own

PATH has train/CLASS/*.jpg (and val, test), or CLASS/*.jpg alone. The command line does the same:
experiments/train.py --config.data.name=folder:PATH --config.data.image_size=32
"""

import pathlib
import sys

from rich.console import Console

from jaxkd.experiment.config import base_config
from jaxkd.experiment.run import run


def main(path, workdir, *, image_size=32, epochs=30, teacher="resnet14_w8", student="resnet8_w4"):
  """Train a teacher, the student alone and the distilled student; return the run's summary."""
  config = base_config("kd")
  config.data.name = f"folder:{path}"
  config.data.image_size = image_size
  config.data.flip = True
  config.teacher.model, config.student.model = teacher, student
  for network in (config.teacher, config.student):
    network.epochs = epochs
    network.schedule = "cosine"
  return run(config, pathlib.Path(workdir), Console())


if __name__ == "__main__":
  main(*sys.argv[1:3])
