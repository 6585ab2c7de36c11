"""Distil a classifier for examples that may belong to several classes at once.

    python experiments/examples/multi_label.py runs/multi_label

An example's labels are a row of 0 and 1, one for each class.
"""

import pathlib
import sys

import numpy as np
from rich.console import Console

from jaxkd import data
from jaxkd.experiment.config import base_config
from jaxkd.experiment.run import run


def main(workdir, *, method="kd", epochs=6):
  """Train a teacher, the student alone and the distilled student; return the run's summary."""
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(600, 12)).astype(np.float32)
  labels = (rows[:, :5] + rows[:, 1:6] > 0.7).astype(np.uint8)  # about 0.3 of them are 1
  train, test = data.split_off(data.MultiLabelExamples(rows, labels), 0.25, seed=0)
  tags = data.Dataset("tags", train, None, test, num_classes=5)
  config = base_config(method)
  config.data.update({"name": "tags", "labels": "multi", "validation": 0.0})
  for network in (config.teacher, config.student):
    network.model, network.optimizer, network.learning_rate = "mlp", "adamw", 0.01
    network.epochs, network.schedule, network.weight_decay = epochs, "constant", 0.0
  return run(config, pathlib.Path(workdir), Console(), load_data=lambda *_, **__: tags)


if __name__ == "__main__":
  for name, row in main(*sys.argv[1:2])["stages"].items():
    print(name, row["test"][row["predictor"]])
