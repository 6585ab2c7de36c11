"""The time of one step of several networks that learn together, over that of its parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks import pairs
from benchmarks.alternating import alternate, compared, milliseconds
from benchmarks.pairs import Stepper
from jaxkd import methods, models
from jaxkd.adapters import Gate
from jaxkd.models.compose.parts import separate
from jaxkd.runtime import mapping
from jaxkd.types import Array, Batch, Output

MEMBERS = 4
FROM_STAGE = "stage2"

# model -> shape of its images
SETTINGS: dict[str, tuple[int, int, int]] = {
  "resnet8_w8_s2": (28, 28, 1),
  "resnet8": (32, 32, 3),
}


def measure(
  settings: dict[str, tuple[int, int, int]] = SETTINGS,
  *,
  members: int = MEMBERS,
  batch_size: int = 64,
  rounds: int = 100,
  seconds: float = 15.0,
) -> dict[str, Any]:
  """Return scheme and model -> the step's time over the sum of its parts.

  The schemes are "dml" and "one". The parts of `members` peers are as many supervised steps of the
  network. The parts of a network with `members` branches are a step of the trunk and a step per
  branch, see `TrunkAlone` and `BranchAlone`. All are mapped over the devices that an experiment
  chooses for the whole, and every step is waited for.
  """
  found = {}
  for model, shape in settings.items():
    network = models.create(model, num_classes=pairs.CLASSES, axis_name=mapping.AXIS_NAME)
    batch = pairs.random_batch(shape, batch_size)
    for kind, make in (("dml", _peers), ("one", _branches)):
      together, parts = make(network, batch, members)
      contestants = {"together": together.step, "parts": lambda parts=parts: _each(parts)}
      times = alternate(contestants, rounds=rounds, seconds=seconds, warmup=3)
      row = compared(times, "together", "parts")
      row |= {f"{name}_ms": milliseconds(values) for name, values in times.items()}
      found[f"{kind} {model}"] = row | {"members": members, "devices": len(together.devices)}
  return found


_Step = Callable[[], None]


def _each(steps: list[_Step]) -> None:
  for step in steps:
    step()


def _peers(network: nn.Module, batch: Batch, members: int) -> tuple[Stepper, list[_Step]]:
  cohort = Stepper(methods.mutual({f"peer_{k}": network for k in range(members)}), batch)
  single = Stepper(methods.supervised(network), batch, cohort.devices)
  return cohort, members * [single.step]


def _branches(network: nn.Module, batch: Batch, members: int) -> tuple[Stepper, list[_Step]]:
  gate = Gate(members, axis_name=mapping.AXIS_NAME)
  scheme = methods.native_ensemble(network, gate, branches=members, from_stage=FROM_STAGE)
  cohort = Stepper(scheme, batch)
  trunk = Stepper(methods.supervised(TrunkAlone(network, FROM_STAGE)), batch, cohort.devices)
  branch = Stepper(
    methods.supervised(BranchAlone(network, FROM_STAGE)),
    dataclasses.replace(batch, inputs=_features(network, batch)),
    cohort.devices,
  )
  return cohort, [trunk.step, *(members * [branch.step])]


class TrunkAlone(nn.Module):
  """The layers up to a stage, and a mean and a linear layer for their gradient to start from.

  Attributes:
    network: a model with `encode`.
    stage: last stage of the trunk.
  """

  network: nn.Module
  stage: str

  def setup(self) -> None:
    """Makes the copy."""
    self.trunk = separate(self.network)
    self.linear = nn.Dense(pairs.CLASSES)

  def __call__(self, images: Array, train: bool = False) -> Output:
    """Images to logits."""
    features = self.trunk.encode(images, train, self.stage).features[self.stage]
    return Output(self.linear(jnp.mean(features, axis=(1, 2))))


class BranchAlone(nn.Module):
  """The layers after a stage; their input has a bias, so that its gradient is computed.

  Attributes:
    network: a model with `resume`.
    stage: the stage whose features are the input.
  """

  network: nn.Module
  stage: str

  def setup(self) -> None:
    """Makes the copy."""
    self.branch = separate(self.network)
    self.bias = self.param("bias", nn.initializers.zeros, (self.network.channels[self.stage],))

  def __call__(self, features: Array, train: bool = False) -> Output:
    """Features (B, H, W, C) to logits."""
    return self.branch.resume(features + self.bias[None, None, None], self.stage, train)


def _features(network: nn.Module, batch: Batch) -> np.ndarray:
  """Noise in the shape of the trunk's features, half of it cut off as by a ReLU."""

  def run(images: Array) -> Array:
    output, _ = network.init_with_output(jax.random.key(0), images, train=False)
    return output.features[FROM_STAGE]

  shape = jax.eval_shape(run, batch.inputs).shape
  return np.maximum(np.random.default_rng(1).normal(size=shape), 0).astype(np.float32)
