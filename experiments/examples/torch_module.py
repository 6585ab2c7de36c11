"""An own PyTorch network's state dict, loaded into an own linen module by patterns of names."""

import jax
import numpy as np
import optax
from flax import linen as nn

from jaxkd import models
from jaxkd.losses import soft_target_kl


def net(width):
  """Return a network of two convolutions, the mean of the map, and a linear layer."""
  convolutions = [layer for _ in range(2) for layer in (nn.Conv(width, (3, 3)), nn.relu)]
  return nn.Sequential([*convolutions, lambda x: x.mean((1, 2)), nn.Dense(10)])


def main(steps=20):
  """Return every step's loss."""
  rng = np.random.default_rng(0)
  shapes = {"features.0": (16, 3, 3, 3), "features.2": (16, 16, 3, 3), "fc": (10, 16)}
  state = {f"module.{name}.weight": rng.normal(size=shape) for name, shape in shapes.items()}
  state |= {f"module.{name}.bias": np.zeros(shape[0]) for name, shape in shapes.items()}
  names = {r"features\.(\d)": r"layers_\1", "fc": "layers_5"}
  variables = models.from_torch(state, net(16), names=names)  # or the path of a .pth file
  images = np.float32(rng.normal(size=(32, 8, 8, 3)))
  student, optimizer, targets = net(4), optax.adam(1e-2), net(16).apply(variables, images)

  def loss(params):
    return soft_target_kl(student.apply(params, images), targets, temperature=4.0)

  params, step = student.init(jax.random.key(1), images), jax.jit(jax.value_and_grad(loss))
  moments, losses = optimizer.init(params), []
  for _ in range(steps):
    value, gradient = step(params)
    updates, moments = optimizer.update(gradient, moments)
    params, losses = optax.apply_updates(params, updates), [*losses, float(value)]
  return losses
