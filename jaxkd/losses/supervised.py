"""Labels: the cross-entropy that every method adds its own terms to."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError
from jaxkd.losses.checks import check_fraction
from jaxkd.losses.precision import widen


def cross_entropy(
  logits: ArrayLike,
  labels: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  label_smoothing: float = 0.0,
  axis_name: str | None = None,
) -> jax.Array:
  """Weighted mean cross-entropy between logits and labels.

  sum_b w_b * ce_b / sum_b w_b with ce_b = -sum_c y_bc * log softmax(logits_b)_c, where
  y = (1 - label_smoothing) * label + label_smoothing / C. It is 0 if every weight is 0.

  Args:
    logits: (B, C). Any finite value, +-1e4 included.
    labels: class numbers (B,), integer; or class probabilities (B, C). An example whose number
      is not a class (unlabelled, padding) must have weight 0.
    weights: (B,), 0 leaves an example out. None weighs all alike.
    label_smoothing: the share of the target spread evenly over the classes.
    axis_name: the device axis of a mapped step. The weights are then summed over all devices
      and divided by their number, so that `lax.pmean` of the value, and of its gradient, is
      exactly the weighted mean of the global batch, however the weights are spread.

  Returns:
    The loss, a scalar, float32 or wider.

  Raises:
    ConfigError: if the shapes do not belong together, or label_smoothing is outside [0, 1].

  Source: the common definition; label smoothing as Szegedy et al., CVPR 2016, and as torch's
  cross_entropy, which spreads the share over all classes, the true one included.

  >>> cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3])).round(4)
  Array(1.3863, dtype=float32)
  """
  check_fraction("label_smoothing", label_smoothing)
  (logits,) = widen(logits)
  labels = jnp.asarray(labels)
  classes = logits.shape[-1]
  if labels.shape == logits.shape[:-1] and jnp.issubdtype(labels.dtype, jnp.integer):
    targets = jax.nn.one_hot(labels, classes, dtype=logits.dtype)
  elif labels.shape == logits.shape:
    targets = labels.astype(logits.dtype)
  else:
    raise ConfigError(
      f"labels {labels.shape} of {labels.dtype} do not belong to logits {logits.shape}: they must "
      f"be class numbers {logits.shape[:-1]}, integer, or class probabilities {logits.shape}"
    )
  targets = (1.0 - label_smoothing) * targets + label_smoothing / classes
  losses = -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)
  if weights is None:
    return jnp.mean(losses)
  weights = jnp.asarray(weights).astype(losses.dtype)
  if weights.shape != losses.shape:
    raise ConfigError(f"weights {weights.shape} do not belong to logits {logits.shape}")
  total = jnp.sum(weights)
  if axis_name is not None:
    total = lax.pmean(total, axis_name)
  return jnp.sum(weights * losses) / jnp.where(total > 0, total, 1.0)
