"""The smallest networks and data that have all features: stages, batch statistics, resume."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxkd import methods
from jaxkd.data import ArrayExamples, normalize, pad_crop
from jaxkd.models import ClassTokenTransformer, VisionTransformer
from jaxkd.networks import frozen
from jaxkd.train import Phase
from jaxkd.types import Batch, Output


class TinyNet(nn.Module):
  """Two convolutional stages and a classifier; compiles in a fraction of a second."""

  width: int = 4
  num_classes: int = 3
  norm: bool = True
  axis_name: str | None = None
  dtype: Any = None  # of its computations

  stages = ("stage1", "stage2", "pooled")

  def setup(self):
    self.conv1 = nn.Conv(self.width, (3, 3), dtype=self.dtype)
    self.conv2 = nn.Conv(2 * self.width, (3, 3), strides=2, dtype=self.dtype)
    if self.norm:
      self.bn1 = nn.BatchNorm(momentum=0.9, axis_name=self.axis_name, dtype=self.dtype)
      self.bn2 = nn.BatchNorm(momentum=0.9, axis_name=self.axis_name, dtype=self.dtype)
    self.classifier = nn.Dense(self.num_classes, dtype=self.dtype)

  def __call__(self, images, train=False):
    return self._classified(self.encode(images, train))

  def encode(self, images, train=False, to_stage="pooled"):
    return self._through(self.stages[: self.stages.index(to_stage) + 1], images, train)

  def resume(self, features, from_stage, train=False, to_stage=None):
    start = self.stages.index(from_stage) + 1
    stop = len(self.stages) if to_stage is None else self.stages.index(to_stage) + 1
    output = self._through(self.stages[start:stop], features, train)
    return output if to_stage is not None else self._classified(output, features)

  def _through(self, stages, x, train):
    features, preactivations = {}, {}
    for stage in stages:
      if stage == "pooled":
        x = x.mean((1, 2))
      else:
        preactivations[stage] = self._layer(stage[-1], x, train)
        x = nn.relu(preactivations[stage])
      features[stage] = x
    return Output(features=features, preactivations=preactivations)

  def _classified(self, output, pooled=None):
    logits = self.classifier(output.features.get("pooled", pooled))
    return dataclasses.replace(output, logits=logits)

  def _layer(self, number, x, train):
    x = getattr(self, f"conv{number}")(x)
    if self.norm:
      x = getattr(self, f"bn{number}")(x, use_running_average=not train)
    return x


# By the names of the models that they stand for: some methods compare tokens.
TRANSFORMERS = {
  "vit_tiny": functools.partial(VisionTransformer, 4, 12, 2, (1, 1, 1)),
  "deit_mini_p4": functools.partial(
    ClassTokenTransformer, 4, 8, 2, 4, distillation_token=True, distillation_head=True
  ),
}


def create(name, *, num_classes, axis_name, dtype):
  """Replacement of `jaxkd.models.create`: networks that compile fast; the teacher is wider."""
  if name in TRANSFORMERS:
    return TRANSFORMERS[name](num_classes=num_classes, axis_name=axis_name, dtype=dtype)
  width = {"resnet8_w8": 6, "resnet8_w4": 4}[name]
  return TinyNet(width=width, num_classes=num_classes, axis_name=axis_name)


def examples(count=24, seed=0):
  """Images of three classes, which differ in the third that is bright."""
  rng = np.random.default_rng(seed)
  labels = np.arange(count, dtype=np.int32) % 3
  images = rng.integers(0, 120, (count, 6, 6, 1), dtype=np.uint8)
  for image, label in zip(images, labels, strict=True):
    image[2 * label : 2 * label + 2] += 80
  return ArrayExamples(images, labels, np.arange(count, dtype=np.int32))


def batch(size=8, seed=0):
  """A normalised batch of `examples`."""
  chosen = examples(size, seed)
  images = jnp.asarray(chosen.fetch(np.arange(size)), jnp.float32) / 128 - 0.5
  return Batch(images, jnp.asarray(chosen.labels), jnp.ones(size), jnp.arange(size))


def frozen_participants(scheme):
  """The participants that do not learn; a test draws them at random."""
  return frozen(jax.eval_shape(scheme.init, jax.random.key(0), batch()), scheme.learners)


def phase(**changes):
  """Four epochs of a student alone; `changes` are Phase's fields."""

  def prepare(batch):
    return dataclasses.replace(batch, inputs=normalize(batch.inputs, (0.5,), (0.5,)))

  def augment(keys, batch):
    batch = prepare(batch)
    return dataclasses.replace(batch, inputs=pad_crop(keys, batch.inputs, padding=1))

  values = {
    "name": "alone",
    "scheme": methods.supervised(TinyNet()),
    "optimizer": optax.sgd(0.05, momentum=0.9),
    "epochs": 4,
    "examples": examples(20),
    "batch_size": 8,
    "seed": 3,
    "prepare_training": augment,
    "prepare_evaluation": prepare,
    "reported": "student",
    "label": "tiny",
    "average_decay": 0.9,
  }
  return Phase(**{**values, **changes})
