"""Cross-entropy with the labels, to which every method adds its own terms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError
from jaxkd.losses._checks import check_fraction, is_number
from jaxkd.losses._counting import counted_positions, keep, over_positions
from jaxkd.losses._numerics import log_probabilities, widen

# Allowed deviation from 1 of the sum of an example's class probabilities, in float32.
_TOLERANCE = 1e-3


def cross_entropy(
  logits: ArrayLike,
  labels: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  label_smoothing: float = 0.0,
  class_weights: ArrayLike | None = None,
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Weighted mean cross-entropy between logits and labels.

  sum_b w_b * ce_b / sum_b w_b, with ce_b = -sum_c y_bc * log softmax(logits_b)_c, where
  y = (1 - label_smoothing) * label + label_smoothing / C. It is 0 if every weight is 0.

  Args:
    logits: (..., C), with any leading axes: (B, C), (B, T, C), (B, H, W, C). Values of +-1e4 do
      not overflow; -inf is an impossible class, which adds nothing unless a label has it.
    labels: integer class numbers with the leading axes, or class probabilities (..., C).
    weights: weight of each label, 0 for an unknown one, with the first of the leading axes, (B,),
      or all of them. None weights all by 1.
    label_smoothing: share of the target spread evenly over the classes.
    class_weights: weights (C,) of the classes, for labels that are class numbers. The target of
      class c is multiplied by its weight, the one spread by label_smoothing included, and the
      denominator is sum_b w_b * class_weights[label_b].
    axis_name: device axis of a mapped step. The weights are then summed over all devices and
      divided by their number, so that `lax.pmean` of the value, and of its gradient, is exactly
      the weighted mean of the global batch, for any distribution of the weights over devices.
    where: mask of what counts, of the shapes allowed for `weights`, nonzero where it does. The rest
      is padding and may hold any values, NaN included. The effective weight is weights * where.

  Returns:
    The loss, a scalar, float32 or wider. Value and gradient are NaN if a label that counts is not
    a class: a number outside 0 to C - 1, or probabilities that are negative or do not sum to 1
    (up to 1e-3, or two roundings of bfloat16). The value is inf if a label that counts has a class
    whose logit is -inf.

  Raises:
    ConfigError: if the shapes do not fit together, label_smoothing is outside [0, 1], or there are
      class weights for labels that are probabilities.

  Source: the common definition; label smoothing as Szegedy et al., CVPR 2016, and as torch's
  cross_entropy, which spreads the share over all classes, the true one included; class weights as
  torch's CrossEntropyLoss(weight).

  >>> cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3])).round(4)
  Array(1.3863, dtype=float32)
  >>> cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 4])), cross_entropy(
  ...   jnp.zeros((2, 4)), jnp.array([0, 4]), where=jnp.array([True, False])
  ... ).round(4)
  (Array(nan, dtype=float32), Array(1.3863, dtype=float32))
  """
  check_fraction("label_smoothing", label_smoothing)
  (logits,) = widen(logits, what="cross_entropy")
  labels = jnp.asarray(labels)
  if labels.dtype.itemsize < 4 and jnp.issubdtype(labels.dtype, jnp.integer):
    # A narrower dtype may not hold the number of classes.
    labels = labels.astype(jnp.int32)
  hard = labels.shape == logits.shape[:-1] and jnp.issubdtype(labels.dtype, jnp.integer)
  if not hard and labels.shape != logits.shape:
    raise ConfigError(
      f"labels {labels.shape} of {labels.dtype} do not belong to logits {logits.shape}: they must "
      f"be class numbers {logits.shape[:-1]}, integer, or class probabilities {logits.shape}"
    )
  weights = effective_weights("cross_entropy", logits, weights, where)
  weighed = None if weights is None else weights != 0
  logits, labels = keep(weighed, logits, labels)
  known = are_classes(labels, hard, logits.shape[-1])
  if hard:
    labels = jnp.where(known, labels, 0)
  of_classes = _weights_of_classes(class_weights, logits, hard)
  losses = -_log_likelihoods(log_probabilities(logits), labels, hard, label_smoothing, of_classes)
  # A factor, not a value: the gradient is then NaN, too.
  losses = losses * jnp.where(known if weighed is None else known | ~weighed, 1.0, jnp.nan)
  if weights is None and of_classes is None:
    return jnp.mean(losses)
  weights = jnp.ones_like(losses) if weights is None else weights
  total = jnp.sum(weights if of_classes is None else weights * of_classes[labels])
  if axis_name is not None:
    total = lax.pmean(total, axis_name)
  # Smoothed labels of classes that weigh nothing have no mean, but a sum, which is a part of the
  # sum of a whole batch (`accumulate`).
  return jnp.sum(weights * losses) / jnp.where(total > 0, total, 1.0)


def effective_weights(
  what: str, logits: jax.Array, weights: ArrayLike | None, where: ArrayLike | None
) -> jax.Array | None:
  """Return weights * where over all leading axes of the logits; None if neither is given.

  Raises:
    ConfigError: with both shapes, if one of them does not fit the logits.
  """
  counted = counted_positions(what, where, logits)
  if weights is None:
    return None if counted is None else counted.astype(logits.dtype)
  given = jnp.asarray(weights).astype(logits.dtype)
  spread = over_positions(f"weights {given.shape} do not belong", given, logits)
  return keep(counted, spread)[0]


def _weights_of_classes(
  class_weights: ArrayLike | None, logits: jax.Array, hard: bool
) -> jax.Array | None:
  """Return class weights in the type of the logits.

  Raises:
    ConfigError: for another number of them, or labels that are no class numbers.
  """
  if class_weights is None:
    return None
  found = jnp.asarray(class_weights).astype(logits.dtype)
  if found.shape != logits.shape[-1:]:
    raise ConfigError(
      f"class_weights {found.shape} do not belong to logits {logits.shape}: expected "
      f"({logits.shape[-1]},), one per class"
    )
  if not hard:
    raise ConfigError("class_weights: expected None with labels that are class probabilities")
  return found


def _log_likelihoods(
  log_p: jax.Array,
  labels: jax.Array,
  hard: bool,
  label_smoothing: float,
  class_weights: jax.Array | None = None,
) -> jax.Array:
  """Sum over classes of class weight * target * log p, with 0 * -inf = 0."""
  classes = log_p.shape[-1]
  if hard:
    numbers = lax.broadcasted_iota(jnp.int32, log_p.shape, log_p.ndim - 1)
    chosen = labels[..., None].astype(jnp.int32) == numbers
    if is_number(label_smoothing) and label_smoothing == 0:
      likelihoods = jnp.sum(jnp.where(chosen, log_p, 0.0), axis=-1)
      if class_weights is not None:
        weights = class_weights[labels]
        likelihoods = jnp.where(weights == 0, 0.0, weights * likelihoods)
      # The likelihood of an impossible class is a constant without a gradient.
      return jnp.where(likelihoods == -jnp.inf, -jnp.inf, likelihoods)
    targets = chosen.astype(log_p.dtype)
  else:
    targets = labels.astype(log_p.dtype)
  targets = (1.0 - label_smoothing) * targets + label_smoothing / classes
  if class_weights is not None:
    targets = targets * jnp.broadcast_to(class_weights, targets.shape)
  impossible = log_p == -jnp.inf
  products = targets * jnp.where(impossible, 0.0, log_p)
  return jnp.sum(jnp.where(impossible & (targets > 0), -jnp.inf, products), axis=-1)


def are_classes(labels: jax.Array, hard: bool, classes: int) -> jax.Array:
  """Return a mask of the labels that are class numbers or probability distributions."""
  if hard:
    return (labels >= 0) & (labels < classes)
  dtype = labels.dtype
  tolerance = _TOLERANCE
  if jnp.issubdtype(dtype, jnp.floating):
    tolerance = max(tolerance, 2 * float(jnp.finfo(dtype).eps))
  total = jnp.sum(labels, axis=-1, dtype=jnp.promote_types(dtype, jnp.float32))
  return (jnp.abs(total - 1.0) <= tolerance) & jnp.all(labels >= 0, axis=-1)
