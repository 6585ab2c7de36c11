"""A frozen equinox teacher for a linen student: `models.from_function` in `methods.offline`.

Needs equinox and scikit-learn.
"""

import equinox as eqx
import jax
import numpy as np
import optax
import sklearn.datasets
from flax import linen as nn

from jaxkd import losses, methods, models, train, types


def main(steps=10):
  """Distil a network of equinox, which maps one image, into a perceptron; returns the losses."""
  images, labels = sklearn.datasets.load_digits(return_X_y=True)
  images, labels = np.float32(images[:128] / 16), labels[:128]
  arrays, rest = eqx.partition(eqx.nn.MLP(64, 10, 32, 1, key=jax.random.key(0)), eqx.is_array)

  def logits(arrays, images):
    return jax.vmap(eqx.combine(arrays, rest))(images)

  teacher = models.from_function(logits, arrays)
  student = models.tap(nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(10)]), {})
  kd = methods.Distillation("kd", methods.per_example(losses.knowledge_distillation))
  scheme, optimizer = methods.offline(student, {"teacher": teacher.module}, [kd]), optax.adam(1e-2)
  batch = types.Batch(images, labels, np.ones(128), np.arange(128))
  given, found = {"teacher": teacher.variables}, []
  state = train.create_state(scheme, optimizer, jax.random.key(0), batch, given=given)
  step = jax.jit(train.training_step(scheme, optimizer, lambda keys, b: b, axis_name=None))
  for _ in range(steps):
    state, metrics = step(state, batch)
    found.append(float(metrics["loss"][0] / metrics["loss"][1]))
  return found


if __name__ == "__main__":
  print(main())
