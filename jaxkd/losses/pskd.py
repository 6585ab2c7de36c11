"""PS-KD: labels softened by the network's own predictions of the epoch before."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError
from jaxkd.losses._checks import check_fraction, check_same_shape, logits_of
from jaxkd.losses._counting import counted_positions, keep, mean, over_positions
from jaxkd.losses._numerics import log_probabilities, widen
from jaxkd.types import Output, Terms


def past_cross_entropy(
  student: ArrayLike,
  past: ArrayLike,
  labels: ArrayLike,
  *,
  past_weight: ArrayLike = 0.8,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Cross-entropy with labels that are softened by earlier predictions.

  mean_b -sum_c ((1 - a) * onehot(label)_c + a * past_c) * log softmax(student)_c, a = past_weight.

  Args:
    student: logits (..., C), with any leading axes. A logit of -inf is an impossible class.
    past: probabilities of the same shape, constant: an earlier prediction for the same examples.
    labels: class numbers with the leading axes, or probabilities (..., C).
    past_weight: a, between 0 and 1; or one for each position, of the leading axes or the first of
      them.
    where: mask (B,) or with all leading axes of the logits, nonzero where a position counts; the
      rest is padding and may hold any values. None: all count.

  Returns:
    The loss, a scalar, float32 or wider. It is at least the entropy of the softened labels, and inf
    if a class is impossible for the student and has a part in them. NaN, and so is its gradient, if
    a label that counts is a number of no class.

  Raises:
    ConfigError: if the shapes do not fit together, or past_weight is a number outside [0, 1].

  Source: Kim et al., "Self-Knowledge Distillation with Progressive Refinement of Targets", ICCV
  2021, equation 5, as the authors' code.

  >>> past_cross_entropy(jnp.zeros((1, 4)), jnp.full((1, 4), 0.25), jnp.array([2])).round(4)
  Array(1.3863, dtype=float32)
  """
  check_fraction("past_weight", past_weight)
  student, past = widen(student, lax.stop_gradient(past), what="past_cross_entropy")
  hint = "both are of the same examples and classes"
  check_same_shape("past_cross_entropy", student, past, hint, other="past")
  counted = counted_positions("past_cross_entropy", where, student)
  target = softened_labels(past, labels, past_weight)
  student, target = keep(counted, student, target)
  log_p = log_probabilities(student)
  impossible = log_p == -jnp.inf
  products = target * jnp.where(impossible, 0.0, log_p)
  values = -jnp.sum(jnp.where(impossible & (target > 0), -jnp.inf, products), axis=-1)
  classes = jnp.asarray(labels)
  if classes.shape == values.shape and jnp.issubdtype(classes.dtype, jnp.integer):
    known = (classes >= 0) & (classes < student.shape[-1])
    # A factor, not a value: the gradient is then NaN, too.
    values = values * jnp.where(known if counted is None else known | ~counted, 1.0, jnp.nan)
  return mean(values, counted)


def progressive_self_distillation(
  student: Output,
  past: Output,
  labels: ArrayLike,
  *,
  past_weight: ArrayLike = 0.8,
  where: ArrayLike | None = None,
) -> Terms:
  """PS-KD: learn from labels softened by the network's own past predictions.

  `past_cross_entropy(student, softmax(past), labels)`, in place of the cross-entropy with the
  labels.

  Args:
    student: Output with logits (..., C).
    past: Output with logits (..., C), constant: the network's prediction one epoch earlier.
    labels: class numbers with the leading axes, or probabilities (..., C).
    past_weight: weight a of the past prediction; the published one grows by epoch, from 0.8 / E
      to 0.8 in E epochs.
    where: mask of what counts; see `past_cross_entropy`.

  Returns:
    Terms(logit=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs; if logits are missing, shapes do not fit together,
      or past_weight is a number outside [0, 1].

  Source: Kim et al., "Self-Knowledge Distillation with Progressive Refinement of Targets", ICCV
  2021, as the authors' code.

  >>> z = Output(logits=jnp.zeros((1, 2)))
  >>> round(float(progressive_self_distillation(z, z, jnp.array([0])).total), 4)
  0.6931
  """
  what = "progressive_self_distillation"
  (earlier,) = widen(lax.stop_gradient(logits_of(past, what=what, role="past")))
  return Terms(
    logit=past_cross_entropy(
      logits_of(student, what=what, role="student"),
      jnp.exp(log_probabilities(earlier)),
      labels,
      past_weight=past_weight,
      where=where,
    )
  )


def softened_labels(past: jax.Array, labels: ArrayLike, past_weight: ArrayLike) -> jax.Array:
  """Return (1 - a) * onehot(labels) + a * past.

  Args:
    past: earlier probabilities (..., C).
    labels: class numbers with the leading axes, or probabilities (..., C). A number that is no
      class has no part.
    past_weight: a, a number or an array with the first of the leading axes.

  Raises:
    ConfigError: for labels or weights of other shapes.
  """
  labels, weight = jnp.asarray(labels), jnp.asarray(past_weight, past.dtype)
  if labels.shape == past.shape[:-1] and jnp.issubdtype(labels.dtype, jnp.integer):
    labels = jax.nn.one_hot(labels, past.shape[-1], dtype=past.dtype)
  if labels.shape != past.shape:
    raise ConfigError(
      f"labels {labels.shape} do not belong to predictions {past.shape}: they must be class "
      f"numbers {past.shape[:-1]}, or class probabilities {past.shape}"
    )
  if weight.ndim:
    weight = over_positions(f"past_weight {weight.shape} does not belong", weight, past)[..., None]
  return (1 - weight) * labels + weight * past


def past_weight_of(epochs: ArrayLike, *, last: float, of: int) -> jax.Array:
  """Return PS-KD's weight of past predictions in an epoch: last * (epoch + 1) / of.

  Args:
    epochs: number of earlier epochs, any shape; epochs after the last count as the last.
    last: alpha_T, the weight in the last epoch, between 0 and 1.
    of: number of epochs of the training, at least 1.

  >>> weights = past_weight_of(jnp.array([0, 149, 299]), last=0.8, of=300)
  >>> [round(float(weight), 4) for weight in weights]
  [0.0027, 0.4, 0.8]
  """
  check_fraction("past_weight", last)
  (epochs,) = widen(epochs)
  return last * (jnp.minimum(epochs, of - 1) + 1) / of
