"""jaxkd in bare JAX: a kernel on arrays, plain dicts of weights, SGD by hand. No `Output`.

`python experiments/examples/bare_jax.py` prints the losses; it needs scikit-learn.
"""

import jax
import numpy as np
import sklearn.datasets

from jaxkd.losses import cross_entropy, soft_target_kl


def init(seed, width):
  """Return a perceptron with one hidden layer: a dict of float32 arrays."""
  rng = np.random.default_rng(seed)
  w1, w2 = rng.normal(0, 0.2, (64, width)), rng.normal(0, 0.2, (width, 10))
  return jax.tree.map(np.float32, {"w1": w1, "b1": np.zeros((1, width)), "w2": w2})


def logits_of(params, x):
  """Map images (B, 64) to logits (B, 10)."""
  return jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"]


def train(loss, params, steps, learning_rate=0.5):
  """Run plain SGD on the whole batch; returns the parameters and every step's loss."""

  @jax.jit
  def step(params):
    value, gradient = jax.value_and_grad(loss)(params)
    return jax.tree.map(lambda p, g: p - learning_rate * g, params, gradient), value

  losses = []
  for _ in range(steps):
    params, value = step(params)
    losses.append(float(value))
  return params, losses


def main(steps=20):
  """Train a teacher on labels, then a narrow student on both; returns the student's losses."""
  images, labels = sklearn.datasets.load_digits(return_X_y=True)
  x, y = np.float32(images[:256] / 16), labels[:256]

  def fit(params):
    return cross_entropy(logits_of(params, x), y)

  teacher, _ = train(fit, init(0, width=64), steps)
  soft = jax.jit(logits_of)(teacher, x)

  def distillation(params):
    return 0.9 * soft_target_kl(logits_of(params, x), soft, temperature=4.0) + 0.1 * fit(params)

  return train(distillation, init(1, width=8), steps)[1]


if __name__ == "__main__":
  print(main())
