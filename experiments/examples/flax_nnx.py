"""jaxkd in Flax NNX: hints from an NNX teacher to an NNX student through an NNX regressor.

`python experiments/examples/flax_nnx.py` prints the losses; it needs scikit-learn.
"""

import jax.numpy as jnp
import optax
import sklearn.datasets
from flax import nnx

from jaxkd import losses
from jaxkd.types import Output


class Net(nnx.Module):
  """A perceptron whose hidden layer is its feature; `hint` brings it to a teacher's width."""

  def __init__(self, width, hint_width, rngs):
    self.hidden = nnx.Linear(64, width, rngs=rngs)
    self.hint = nnx.Linear(width, hint_width, rngs=rngs)
    self.classifier = nnx.Linear(width, 10, rngs=rngs)

  def __call__(self, x):
    """Map images (B, 64) to an Output."""
    pooled = nnx.relu(self.hidden(x))
    features = {"pooled": pooled, "hint": nnx.relu(self.hint(pooled))}
    return Output(self.classifier(pooled), features)


def objective(student, teacher, x, y):
  """Cross-entropy, soft targets, and the student's hint against the teacher's pooled features."""
  if teacher is None:
    return losses.cross_entropy(student(x).logits, y)
  ours, theirs = student(x), teacher(x)
  terms = 0.9 * losses.knowledge_distillation(ours, theirs, temperature=4.0)
  terms += 10.0 * losses.fitnets(ours, theirs, stages=[("hint", "pooled")])
  return terms.total + 0.1 * losses.cross_entropy(ours.logits, y)


@nnx.jit
def step(student, teacher, optimizer, x, y):
  """Make one update of the student; the teacher has no gradient."""
  loss, gradient = nnx.value_and_grad(objective)(student, teacher, x, y)
  optimizer.update(student, gradient)
  return loss


def main(steps=10):
  """Train a wide teacher on labels, then a narrow student on both; returns its losses."""
  images, labels = sklearn.datasets.load_digits(return_X_y=True)
  x, y = jnp.asarray(images[:256] / 16, jnp.float32), jnp.asarray(labels[:256])
  teacher, student = Net(32, 1, nnx.Rngs(0)), Net(8, 32, nnx.Rngs(1))
  first, second = (nnx.Optimizer(n, optax.adam(1e-2), wrt=nnx.Param) for n in (teacher, student))
  for _ in range(steps):
    step(teacher, None, first, x, y)
  return [float(step(student, teacher, second, x, y)) for _ in range(steps)]


if __name__ == "__main__":
  print(main())
