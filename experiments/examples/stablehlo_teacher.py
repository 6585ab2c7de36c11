"""A StableHLO file as a frozen teacher, as --config.teacher.stablehlo=FILE, of a linen student."""

import tempfile

import jax
import numpy as np
import optax
import sklearn.datasets
from flax import linen as nn

from jaxkd import losses, methods, models, train, types
from jaxkd.export import stablehlo


def main(steps=10):
  """Export a network, load it as a teacher, distil it; returns the losses."""
  digits = sklearn.datasets.load_digits()
  images, labels = np.float32(digits.images[:128, ..., None] / 16), digits.target[:128]
  teacher = nn.Sequential([lambda x: x.reshape(-1, 64), nn.Dense(64), nn.relu, nn.Dense(10)])
  weights = teacher.init(jax.random.key(1), images)
  shape = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("b"), 8, 8, 1), np.float32)
  exported = jax.export.export(jax.jit(lambda images: teacher.apply(weights, images)))(shape)
  with tempfile.NamedTemporaryFile(buffering=0) as file:
    file.write(exported.serialize())
    frozen, found = stablehlo.load_network(file.name), []
  student = models.tap(nn.Sequential([teacher.layers[0], nn.Dense(10)]), {})
  kd = methods.Distillation("kd", methods.per_example(losses.knowledge_distillation))
  scheme, optimizer = methods.offline(student, {"teacher": frozen.module}, [kd]), optax.adam(1e-2)
  batch = types.Batch(images, labels, np.ones(128), np.arange(128))
  given = {"teacher": frozen.variables}
  state = train.create_state(scheme, optimizer, jax.random.key(0), batch, given=given)
  step = jax.jit(train.training_step(scheme, optimizer, lambda keys, b: b, axis_name=None))
  for _ in range(steps):
    state, metrics = step(state, batch)
    found.append(float(metrics["loss"][0]) / 128)
  return found


if __name__ == "__main__":
  print(main())
