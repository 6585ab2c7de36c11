"""A minimal model with several exits, and images for it."""

from __future__ import annotations

import functools

import jax
import numpy as np
from flax import linen as nn

from jaxkd.types import Output

SHAPE = (4, 4, 1)
EXITS = 3


class Blocks(nn.Module):
  """A model with a convolution and a classifier for each exit.

  Attributes:
    watch: called with (block, rows) at every run of a block, compiled or not.
  """

  num_exits: int = EXITS
  watch: object = None

  def setup(self):
    self.convs = [nn.Conv(4, (3, 3), strides=1 + (block > 0)) for block in range(self.num_exits)]
    self.classifiers = [nn.Dense(3) for _ in range(self.num_exits)]

  def __call__(self, images, train=False):
    carry, outputs = images, []
    for block in range(self.num_exits):
      carry, output = self.run_block(carry, block, train)
      outputs.append(output)
    return tuple(outputs)

  def run_block(self, carry, block, train=False):
    # The carry may be any pytree; this one has two leaves.
    maps = carry["maps"] if block else carry
    if self.watch is not None:
      jax.debug.callback(self.watch, block, len(maps))
    maps = nn.relu(self.convs[block](maps))
    mean = maps.mean((1, 2)) + (carry["mean"] if block else 0)
    return {"maps": maps, "mean": mean}, Output(3 * self.classifiers[block](mean))


def images(count, seed=0):
  return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float32)


@functools.cache
def variables():
  return jax.jit(Blocks().init)(jax.random.key(0), images(1))
