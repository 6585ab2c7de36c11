"""An NNX student with batch statistics and dropout, trained by jaxkd, and back into NNX."""

import jax
import numpy as np
import optax
import sklearn.datasets
from flax import nnx

from jaxkd import methods, models, train, types


class Net(nnx.Module):
  """A perceptron that returns logits alone."""

  def __init__(self, width, rngs):
    self.hidden, self.norm = nnx.Linear(64, width, rngs=rngs), nnx.BatchNorm(width, rngs=rngs)
    self.drop, self.head = nnx.Dropout(0.1, rngs=rngs), nnx.Linear(width, 10, rngs=rngs)

  def __call__(self, x):
    """Map images (B, 64) to logits."""
    return self.head(self.drop(nnx.relu(self.norm(self.hidden(x)))))


def main(steps=10):
  """Train the model from labels; returns the losses."""
  images, labels = sklearn.datasets.load_digits(return_X_y=True)
  batch = types.Batch(np.float32(images[:128] / 16), labels[:128], np.ones(128), np.arange(128))
  student = models.from_nnx(model := Net(32, nnx.Rngs(0)), {"pooled": "head:input"})
  scheme, optimizer, losses = methods.supervised(student), optax.adam(1e-2), []
  state = train.create_state(scheme, optimizer, jax.random.key(0), batch)
  step = jax.jit(train.training_step(scheme, optimizer, lambda keys, b: b, axis_name=None))
  for _ in range(steps):
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"][0] / metrics["loss"][1]))
  models.to_nnx(types.Network(student, state.participants["student"]), model)
  return losses


if __name__ == "__main__":
  print(main())
