"""The targets of KDCL: logits made of those of several branches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError
from jaxkd.losses._counting import keep, over_positions
from jaxkd.losses._numerics import log_probabilities


def ensemble_target(
  branches: jax.Array,
  labels: ArrayLike,
  weights: ArrayLike | None,
  *,
  ensemble: str,
  linear: tuple[int, float, str] = (50, 0.1, "simplex"),
  detached: bool = True,
  axis_name: str | None = None,
  counted: jax.Array | None = None,
) -> jax.Array:
  """Return the target (..., C) of branches (M, ..., C); see `collaborative_kl`.

  Args:
    branches: logits, finite where nothing counts.
    labels: class numbers, or probabilities.
    weights: of the labels, or None.
    ensemble: kind of target.
    linear: steps, rate and projection of "linear".
    detached: whether the target takes no gradient.
    axis_name: device axis of targets of the whole batch.
    counted: mask of the positions that count, of the leading axes, or None.

  Raises:
    ConfigError: for labels or weights of other shapes.
  """
  constant = lax.stop_gradient(branches)
  branches = constant if detached else branches
  average = _weighted(branches, jnp.full(len(branches), 1 / len(branches), branches.dtype))
  if ensemble == "mean":
    return average
  classes, weight = _labelled(constant[0], labels, weights, counted)
  labelled = (weight > 0)[..., None]
  if ensemble == "minlogit":
    return jnp.where(labelled, _least(branches, classes), average)
  if ensemble == "linear":
    return _weighted(branches, linear_weights(constant, classes, weight, linear, axis_name))
  costs = _cross_entropies(log_probabilities(constant), classes)
  if ensemble == "naive_batch":
    weighed = weight[None] * jnp.where(weight[None] > 0, costs, 0.0)
    total = jnp.sum(weighed.reshape(len(costs), -1), axis=1)
    total = total if axis_name is None else lax.psum(total, axis_name)
    return branches[jnp.argmin(total)]
  chosen = jnp.argmin(costs, axis=0)
  own = jnp.take_along_axis(branches, chosen[None, ..., None], axis=0)[0]
  return jnp.where(labelled, own, average)


def linear_weights(
  branches: jax.Array,
  classes: jax.Array,
  weight: jax.Array,
  options: tuple[int, float, str],
  axis_name: str | None = None,
) -> jax.Array:
  """Return weights (M,) that minimise the cross-entropy of the weighted sum of the branches.

  Args:
    branches: logits (M, ..., C).
    classes: probabilities (..., C).
    weight: weight of each position (...).
    options: steps, rate and projection.
    axis_name: device axis over which cross-entropies are summed.
  """
  steps, rate, projection = options
  finite = jnp.where(branches == -jnp.inf, 0.0, branches)
  total = jnp.sum(weight)
  total = total if axis_name is None else lax.psum(total, axis_name)
  share = (weight / jnp.where(total > 0, total, 1.0))[..., None]

  def step(a: jax.Array, _: None) -> tuple[jax.Array, None]:
    p = jnp.exp(log_probabilities(_weighted(branches, a)))
    slope = share * (p - classes)
    slopes = jnp.sum((slope[None] * finite).reshape(len(branches), -1), axis=1)
    slopes = slopes if axis_name is None else lax.psum(slopes, axis_name)
    return _PROJECTIONS[projection](a - rate * slopes, a), None

  start = jnp.full(len(branches), 1 / len(branches), branches.dtype)
  return lax.scan(step, start, None, length=steps)[0]


def _onto_simplex(a: jax.Array, before: jax.Array) -> jax.Array:
  """Return the nearest weights that are not negative and sum to 1."""
  a = a - jnp.max(a)  # does not change the result, and keeps large numbers apart from 1
  falling = -jnp.sort(-a)
  places = jnp.arange(1, len(a) + 1)
  excess = (jnp.cumsum(jnp.maximum(falling, -2.0)) - 1) / places
  excess = excess[jnp.sum(falling > excess) - 1]
  found = jnp.maximum(a - excess, 0.0)
  return found / jnp.sum(found)


def _normalized(a: jax.Array, before: jax.Array) -> jax.Array:
  """Set negative weights to 0, and divide by the sum; the weights before, if none is left."""
  a = jnp.maximum(a, 0.0)
  total = jnp.sum(a)
  return jnp.where(total > 0, a / jnp.where(total > 0, total, 1.0), before)


_PROJECTIONS = {"simplex": _onto_simplex, "normalize": _normalized}


def _weighted(branches: jax.Array, a: jax.Array) -> jax.Array:
  """Return sum_i a_i z_i, with 0 * -inf = 0 and no gradient from a logit of -inf."""
  a = a.reshape(-1, *(1,) * (branches.ndim - 1))
  impossible = branches == -jnp.inf
  total = jnp.sum(a * jnp.where(impossible, 0.0, branches), axis=0)
  return jnp.where(jnp.any(impossible & (a > 0), axis=0), -jnp.inf, total)


def _least(branches: jax.Array, classes: jax.Array) -> jax.Array:
  """Return min_i (z_i - z_i[label]); a class that is impossible for a branch stays impossible."""
  impossible = branches == -jnp.inf
  finite = jnp.where(impossible, 0.0, branches)
  own = jnp.sum(classes[None] * finite, axis=-1, keepdims=True)
  return jnp.min(jnp.where(impossible, -jnp.inf, finite - own), axis=0)


def _cross_entropies(log_p: jax.Array, classes: jax.Array) -> jax.Array:
  """Return -sum_c y_c log p_c of every branch and position, (M, ...), with 0 * -inf = 0."""
  impossible = log_p == -jnp.inf
  products = classes[None] * jnp.where(impossible, 0.0, log_p)
  return -jnp.sum(jnp.where(impossible & (classes[None] > 0), -jnp.inf, products), axis=-1)


def _labelled(
  logits: jax.Array, labels: ArrayLike, weights: ArrayLike | None, counted: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """Return class probabilities (..., C), and the weight of each position, 0 without a label."""
  labels = jnp.asarray(labels)
  if labels.shape == logits.shape[:-1] and jnp.issubdtype(labels.dtype, jnp.integer):
    classes = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    known = (labels >= 0) & (labels < logits.shape[-1])
  elif labels.shape == logits.shape:
    classes, known = lax.stop_gradient(labels).astype(logits.dtype), jnp.bool_(True)
  else:
    raise ConfigError(
      f"labels {labels.shape} of {labels.dtype} do not belong to logits {logits.shape}: they must "
      f"be class numbers {logits.shape[:-1]}, integer, or class probabilities {logits.shape}"
    )
  weight = jnp.ones(logits.shape[:-1], logits.dtype)
  if weights is not None:
    given = jnp.asarray(weights).astype(logits.dtype)
    weight = over_positions(f"weights {given.shape} do not belong", given, logits)
  (classes,) = keep(counted, classes)
  weight = jnp.where(known, weight, 0.0)
  return classes, weight if counted is None else jnp.where(counted, weight, 0.0)
