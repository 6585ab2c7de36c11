"""numpy arrays and a trained teacher -> a student that predicts, in one call.

python experiments/examples/one_call.py
"""

import jax
import numpy as np
from flax import linen as nn

import jaxkd


class Net(nn.Module):
  """A network that returns logits; its classes are numbered from 0."""

  width: int

  @nn.compact
  def __call__(self, images, train=False):
    """Return logits (B, 3)."""
    x = images.reshape((len(images), -1))
    return nn.Dense(3)(nn.relu(nn.Dense(self.width)(x)))


def main(epochs=5, console=None):
  """Return the student's accuracy on all images."""
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 600)
  images = rng.integers(0, 160, (600, 6, 6), np.uint8)
  images[np.arange(600), 2 * labels] += 90  # one bright row for each class

  alone = jaxkd.distill(Net(64), None, (images, labels), "alone", epochs=epochs, console=console)
  teacher = (alone.student, jax.tree.map(np.asarray, alone.variables))
  result = jaxkd.distill(Net(4), teacher, (images, labels), epochs=epochs, console=console)
  print(result.scores)
  return np.mean(result.predict(images).argmax(-1) == labels)


if __name__ == "__main__":
  print(main())
