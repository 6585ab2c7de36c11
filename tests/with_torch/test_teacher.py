"""A teacher that PyTorch trained, loaded where PyTorch cannot be imported.

Needs PyTorch, so it is no part of the default tests: `pytest tests/with_torch`.
"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.models import create, from_torch
from tests.with_torch import train_teacher

# What a user without PyTorch runs; importing a module that is None fails.
PREDICT = """
import json, sys
sys.modules["torch"] = None
import numpy as np
from jaxkd.models import create, from_torch

model = create("resnet14_w8", num_classes=10)
variables = from_torch(sys.argv[1], model, image_shape=(8, 8, 1))
with np.load(sys.argv[2]) as test:
  logits = np.asarray(model.apply(variables, test["images"]).logits)
  accuracy = np.mean(logits.argmax(1) == test["labels"])
  difference = np.abs(logits - test["logits"]).max()
print(json.dumps({"accuracy": float(accuracy), "difference": float(difference)}))
"""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  folder = tmp_path_factory.mktemp("teacher")
  return folder, train_teacher.main(folder)


@pytest.mark.parametrize("name", ["teacher.pth", "teacher_legacy.pth", "teacher.safetensors"])
def test_teacher_is_as_accurate_here_as_in_pytorch(teacher, name):
  folder, accuracy = teacher
  assert accuracy > 0.95
  command = [sys.executable, "-c", PREDICT, folder / name, folder / "images.npz"]
  done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
  found = json.loads(done.stdout)
  print(f"{name}: accuracy {accuracy:.4f} in PyTorch, {found['accuracy']:.4f} here; {found}")
  assert found["accuracy"] == pytest.approx(accuracy, abs=1e-6)
  assert found["difference"] < 1e-4


def test_tensors_of_pytorch_need_no_file(teacher):
  model = create("resnet14_w8", num_classes=10)
  state = train_teacher.ResNet14(1, 10).bfloat16().state_dict()
  bias = from_torch(state, model, image_shape=(8, 8, 1))["params"]["classifier"]["bias"]
  np.testing.assert_array_equal(bias, state["fc.bias"].float().numpy())
  with pytest.raises(ConfigError, match="of another shape"):
    from_torch(state, model)
