"""An own PyTorch network's state dict, loaded into an own linen module by patterns of names."""

import jax
import numpy as np
import optax
from flax import linen as nn

from jaxkd import models
from jaxkd.losses import soft_target_kl


class Net(nn.Module):
  width: int

  @nn.compact
  def __call__(self, x):
    for i in range(2):
      x = nn.relu(nn.Conv(self.width, (3, 3), name=f"conv{i}")(x))
    return nn.Dense(10, name="head")(x.mean((1, 2)))


def main(steps=20):
  """Return every step's loss."""
  rng = np.random.default_rng(0)
  shapes = {"blocks.0.conv": (16, 3, 3, 3), "blocks.1.conv": (16, 16, 3, 3), "fc": (10, 16)}
  state = {f"module.{name}.weight": rng.normal(size=shape) for name, shape in shapes.items()}
  state |= {f"module.{name}.bias": np.zeros(shape[0]) for name, shape in shapes.items()}
  names = {r"blocks\.(\d)\.conv": r"conv\1", "fc": "head"}
  variables = models.from_torch(state, Net(16), names=names)  # or the path of a .pth file
  images = np.float32(rng.normal(size=(32, 8, 8, 3)))
  targets = Net(16).apply(variables, images)
  student, optimizer = Net(4), optax.adam(1e-2)

  def loss(params):
    return soft_target_kl(student.apply(params, images), targets, temperature=4.0)

  params, step, losses = student.init(jax.random.key(1), images), jax.value_and_grad(loss), []
  moments, step = optimizer.init(params), jax.jit(step)
  for _ in range(steps):
    value, gradient = step(params)
    updates, moments = optimizer.update(gradient, moments)
    params = optax.apply_updates(params, updates)
    losses.append(float(value))
  return losses
