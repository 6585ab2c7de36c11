"""The PyTorch twins of `make bench` equal jaxkd; needs PyTorch: `pytest tests/with_torch`."""

from __future__ import annotations

import importlib
import pathlib
import sys

import jax
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from jaxkd import models
from jaxkd.evaluate import multiply_adds
from jaxkd.models import from_torch

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmarks():
  sys.path.insert(0, str(ROOT / "experiments/studies/bench"))
  try:
    names = ("torch_twin", "torch_run", "pairs")
    yield {name: importlib.import_module(f"benchmarks.{name}") for name in names}
  finally:
    sys.path.remove(str(ROOT / "experiments/studies/bench"))


def _variables(network, image_shape):
  images = np.zeros((1, *image_shape), np.float32)
  shapes = jax.eval_shape(network.init, jax.random.key(0), images)
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: 0.1 * np.abs(rng.normal(size=leaf.shape)).astype(np.float32), shapes
  )


@pytest.mark.parametrize(
  ("name", "image_shape"),
  [
    ("resnet32x4", (32, 32, 3)),
    ("resnet8x4", (32, 32, 3)),
    ("resnet20", (32, 32, 3)),
    ("resnet8", (32, 32, 3)),
    ("resnet20_w8_s2", (28, 28, 1)),
    ("resnet8_w8_s2", (28, 28, 1)),
    ("resnet14_w8", (8, 8, 1)),
    ("resnet8_w4", (8, 8, 1)),
  ],
)
def test_twins_have_as_many_parameters_and_multiply_adds(benchmarks, name, image_shape):
  network = models.create(name, num_classes=10)
  variables = _variables(network, image_shape)
  twin = benchmarks["torch_twin"].twin(network, variables, image_shape[-1]).eval()
  ours = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
  assert sum(tensor.numel() for tensor in twin.parameters()) == ours
  height, width, channels = image_shape
  with FlopCounterMode(display=False) as counter, torch.no_grad():
    twin(torch.zeros(1, channels, height, width))
  images = np.zeros((1, *image_shape), np.float32)
  counted = multiply_adds(lambda v, x: network.apply(v, x).logits, variables, images)
  assert counter.get_total_flops() == 2 * counted
  back = from_torch(twin.state_dict(), network, image_shape=image_shape)
  jax.tree.map(np.testing.assert_array_equal, dict(back), variables)


@pytest.mark.parametrize("channels_last", [False, True])
def test_twins_make_the_same_update(benchmarks, channels_last):
  """Compare one step of the benchmark's PyTorch loop and one of jaxkd, from equal weights."""
  pairs = benchmarks["pairs"]
  pair = pairs.Pair("resnet8_w8", "resnet8_w4", (8, 8, 1), batch_size=16)
  against = importlib.import_module("benchmarks.against_pytorch")
  batch = pairs.random_batch(pair.image_shape, pair.batch_size)
  ours = pairs.Stepper(
    pairs.distilling(pair), batch, jax.local_devices()[:2], untrained=("teacher",)
  )
  theirs = against.torch_step(pair, ours.participants, channels_last)
  images = torch.from_numpy(batch.inputs.transpose(0, 3, 1, 2).copy())
  ours.step()
  theirs.step(images, torch.from_numpy(batch.labels.astype(np.int64)))
  assert theirs.loss == pytest.approx(ours.loss, rel=1e-5)
  student = models.create(pair.student, num_classes=10)
  trained = from_torch(theirs.student.state_dict(), student, image_shape=pair.image_shape)
  for one, other in zip(
    jax.tree.leaves(trained["params"]),
    jax.tree.leaves(ours.participants["student"]["params"]),
    strict=True,
  ):
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_plain_loop_crops_and_flips_each_image_independently(benchmarks):
  augmented = benchmarks["torch_run"]._augmented
  torch.manual_seed(0)
  image = torch.arange(9.0).reshape(1, 1, 3, 3) + 1
  black = torch.full((1, 1, 1, 1), -1.0)
  found = augmented(image.expand(200, 1, 3, 3), black, 1)
  padded = torch.nn.functional.pad(image, (1, 1, 1, 1), value=-1.0)[0, 0]
  views = [padded[i : i + 3, j : j + 3] for i in range(3) for j in range(3)]
  views += [view.flip(1) for view in views]
  seen = {next(n for n, view in enumerate(views) if torch.equal(one[0], view)) for one in found}
  assert seen == set(range(18))
