"""jaxkd in equinox: models without a batch axis, mapped over the examples; two kernels on arrays.

`python experiments/examples/equinox_model.py` prints the losses. Needs equinox and scikit-learn.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import sklearn.datasets

from jaxkd.losses import attention_map_mse, cross_entropy, soft_target_kl


class Net(eqx.Module):
  """One convolution, pooled, and a classifier."""

  convolution: eqx.nn.Conv2d
  classifier: eqx.nn.Linear

  def __init__(self, width, key):
    first, second = jax.random.split(key)
    self.convolution = eqx.nn.Conv2d(1, width, 3, padding=1, key=first)
    self.classifier = eqx.nn.Linear(width, 10, key=second)

  def __call__(self, image):
    """Map one image (1, H, W) to logits and the map (H, W, C), in jaxkd's order of axes."""
    features = jax.nn.relu(self.convolution(image))
    return self.classifier(features.mean((1, 2))), jnp.moveaxis(features, 0, -1)


@eqx.filter_jit
def step(student, teacher, images, labels, weight=1.0, learning_rate=0.1):
  """One step of SGD for the student, from labels, and the teacher's logits and attention maps."""

  def objective(student):
    logits, maps = jax.vmap(student)(images)
    soft, teacher_maps = jax.vmap(teacher)(images)
    terms = soft_target_kl(logits, soft), 100.0 * attention_map_mse(maps, teacher_maps)
    return cross_entropy(logits, labels) + weight * sum(terms)

  loss, gradient = eqx.filter_value_and_grad(objective)(student)
  return eqx.apply_updates(student, jax.tree.map(lambda g: -learning_rate * g, gradient)), loss


def main(steps=10):
  """Train a wide teacher on labels, then a narrow student on both; returns its losses."""
  images, y = sklearn.datasets.load_digits(return_X_y=True)
  x, y = np.float32(images[:64].reshape(-1, 1, 8, 8) / 16), y[:64]
  teacher, student, losses = Net(16, jax.random.key(0)), Net(4, jax.random.key(1)), []
  for _ in range(steps):
    teacher, _ = step(teacher, teacher, x, y, weight=0.0)
  for _ in range(steps):
    student, loss = step(student, teacher, x, y)
    losses += [float(loss)]
  return losses


if __name__ == "__main__":
  print(main())
