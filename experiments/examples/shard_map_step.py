"""jaxkd under `jax.shard_map`: RKD over the global batch, whatever the number of devices.

`python experiments/examples/shard_map_step.py` prints the losses; it needs scikit-learn.
"""

import jax
import numpy as np
import sklearn.datasets
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxkd import losses
from jaxkd.types import Output


def embed(params, x):
  """Map images (B, 64) to features (B, D)."""
  return Output(features={"pooled": jax.nn.tanh(x @ params)})


def per_device(params, teacher, x, learning_rate=0.1):
  """Make one step on this device's share of the batch."""

  def objective(params):
    return losses.relational(embed(params, x), embed(teacher, x), axis_name="batch").total

  loss, gradient = jax.value_and_grad(objective)(params)
  gradient = jax.lax.pmean(gradient, "batch")
  return params - learning_rate * gradient, loss


def make_step(devices):
  """Return the step over a mesh of devices: parameters replicated, the batch split."""
  # With the default check_vma=True, shard_map sums the gradient of replicated parameters over the
  # devices by itself, and the pmean above would leave it as many times too large, silently.
  mapped = jax.shard_map(
    per_device,
    mesh=Mesh(np.asarray(devices), ("batch",)),
    in_specs=(P(), P(), P("batch")),
    out_specs=(P(), P()),
    check_vma=False,
  )
  return jax.jit(mapped)


def main(steps=5, devices=None):
  """Train 8 dimensions to have the relations of the digits' 32 principal ones; returns losses."""
  images, _ = sklearn.datasets.load_digits(return_X_y=True)
  teacher = np.float32(np.linalg.svd(images - images.mean(0), full_matrices=False)[2][:32].T)
  x, rng = np.float32(images[:64] / 16), np.random.default_rng(0)
  params = np.float32(rng.normal(0, 1 / 8, (64, 8)))
  step, values = make_step(devices or jax.devices()), []
  for _ in range(steps):
    params, loss = step(params, teacher, x)
    values.append(float(loss))
  return values


if __name__ == "__main__":
  print(main())
