"""The class of an example's label, and its logits apart from those of all other classes."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError
from jaxkd.losses._checks import check_same_shape
from jaxkd.losses._counting import keep
from jaxkd.losses._numerics import log_probabilities, softened, widen
from jaxkd.losses._standardization import standardized
from jaxkd.losses.cross_entropy import are_classes, effective_weights


class Targets(NamedTuple):
  """The classes of labels.

  Attributes:
    chosen: (..., C), True at the class of each label.
    weights: (...), 0 where a label does not count; None weights all by 1.
    factor: (...), 1, or NaN where a label that counts is no class.
  """

  chosen: jax.Array
  weights: jax.Array | None
  factor: jax.Array

  def keep(self, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Replace the values of labels that do not count by zeros, NaN included."""
    return keep(None if self.weights is None else self.weights != 0, *arrays)

  def mean(self, values: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Return sum w * value / sum w over labels (...); 0 if every weight is 0.

    Args:
      values: (...), finite where a label does not count.
      axis_name: device axis: the weights are then summed over all devices and divided by their
        number, so that `lax.pmean` of the value is the mean of the global batch.
    """
    values = values * self.factor
    if self.weights is None:
      return jnp.mean(values)
    total = jnp.sum(self.weights)
    if axis_name is not None:
      total = lax.pmean(total, axis_name)
    (values,) = self.keep(values)
    return jnp.sum(self.weights * values) / jnp.where(total > 0, total, 1.0)


def target_classes(
  what: str,
  logits: jax.Array,
  labels: ArrayLike,
  weights: ArrayLike | None = None,
  where: ArrayLike | None = None,
) -> Targets:
  """Return the class of each label.

  Args:
    what: the function's name, for the error.
    logits: (..., C).
    labels: integer class numbers with the leading axes, or class probabilities (..., C), of which
      the largest is the class.
    weights: weight of each label, with the first or all of the leading axes.
    where: mask likewise.

  Raises:
    ConfigError: if the shapes do not fit together.
  """
  labels = jnp.asarray(labels)
  if labels.dtype.itemsize < 4 and jnp.issubdtype(labels.dtype, jnp.integer):
    labels = labels.astype(jnp.int32)
  hard = labels.shape == logits.shape[:-1] and jnp.issubdtype(labels.dtype, jnp.integer)
  if not hard and labels.shape != logits.shape:
    raise ConfigError(
      f"{what}: labels {labels.shape} of {labels.dtype} do not belong to logits {logits.shape}: "
      f"they must be class numbers {logits.shape[:-1]}, integer, or class probabilities "
      f"{logits.shape}"
    )
  effective = effective_weights(what, logits, weights, where)
  weighed = None if effective is None else effective != 0
  (labels,) = keep(weighed, labels)
  known = are_classes(labels, hard, logits.shape[-1])
  numbers = labels if hard else jnp.argmax(labels, axis=-1)
  classes = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  chosen = numbers[..., None].astype(jnp.int32) == classes
  counts = known if weighed is None else known | ~weighed
  return Targets(chosen, effective, jnp.where(counts, 1.0, jnp.nan).astype(logits.dtype))


def logits_and_targets(
  what: str,
  student: ArrayLike,
  teacher: ArrayLike,
  labels: ArrayLike,
  weights: ArrayLike | None,
  where: ArrayLike | None,
  *,
  standardize: bool,
) -> tuple[jax.Array, jax.Array, Targets]:
  """Return both sides' logits, 0 where they do not count, and the classes of the labels.

  The logits are float32 or wider, and the teacher's constant.

  Raises:
    ConfigError: if the shapes do not fit together.
  """
  student, teacher = widen(student, lax.stop_gradient(teacher), what=what)
  check_same_shape(what, student, teacher, "both must score the same classes, (..., C)")
  targets = target_classes(what, student, labels, weights, where)
  student, teacher = targets.keep(student, teacher)
  if standardize:
    student, teacher = standardized(student), standardized(teacher)
  return student, teacher, targets


def of_target(x: jax.Array, chosen: jax.Array) -> jax.Array:
  """Return the element (...) of x (..., C) at the chosen class."""
  return jnp.sum(jnp.where(chosen, x, 0.0), axis=-1)


def other_log_probabilities(
  logits: jax.Array, chosen: jax.Array, temperature: ArrayLike = 1.0
) -> tuple[jax.Array, jax.Array]:
  """Return the log-probabilities over the other classes alone, and where none is possible.

  Returns:
    (log q, alone): log softmax(logits / T) over the classes that are not chosen, (..., C), -inf at
    the chosen one; `alone` (...) is True where no other class is possible, and log q finite there.
  """
  others = jnp.where(chosen, -jnp.inf, logits)
  alone = jnp.max(others, axis=-1) == -jnp.inf
  others = jnp.where(alone[..., None], 0.0, others)
  return log_probabilities(others, temperature), alone


def binary_log_probabilities(
  logits: jax.Array, chosen: jax.Array, temperature: ArrayLike = 1.0
) -> jax.Array:
  """Return (..., 2): log p and log(1 - p) of the chosen class, p = softmax(logits / T).

  log(1 - p) is exact where p rounds to 1: it is computed from the other classes' logits.

  >>> z, chosen = jnp.array([200.0, 0.0, -jnp.inf]), jnp.array([True, False, False])
  >>> binary_log_probabilities(z, chosen)
  Array([   0., -200.], dtype=float32)
  """
  log_q, alone = other_log_probabilities(logits, chosen, temperature)
  others = jnp.where(chosen, -jnp.inf, logits)
  classes = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  largest = jnp.argmax(others, axis=-1)[..., None] == classes
  # The largest other logit z is the origin of both: (target - z) / T, and the logarithm of the sum
  # of exp((other - z) / T), which is -log q of the largest.
  origin = jnp.where(alone, 0.0, of_target(logits, largest))
  target = softened(of_target(logits, chosen) - origin, temperature)
  rest = -of_target(log_q, largest)
  pair = jnp.stack([jnp.where(alone, 0.0, target), jnp.where(alone, -jnp.inf, rest)], axis=-1)
  return log_probabilities(pair)


def between_others(
  value: jax.Array, student_alone: jax.Array, teacher_alone: jax.Array
) -> jax.Array:
  """Return the divergence between the other classes, also where no other class is possible.

  It is 0 where none is possible for the teacher, and inf where none is for the student alone.
  """
  return jnp.where(teacher_alone, 0.0, jnp.where(student_alone, jnp.inf, value))
