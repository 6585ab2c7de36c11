"""Universal self-knowledge distillation (USKD): soft labels of a network's own output."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError
from jaxkd.losses._checks import check_same_shape, logits_of
from jaxkd.losses._numerics import entropy, log_probabilities, relative_entropy, widen
from jaxkd.losses._targets import Targets, target_classes
from jaxkd.losses.cross_entropy import cross_entropy
from jaxkd.types import Output, Terms

RankedBy = Literal["probabilities", "log_probabilities"]

# Added to what is left of the classes besides the labels, in the score by which they are ranked.
_EPS = 1e-6


def self_target_cross_entropy(
  student: ArrayLike,
  labels: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Log-likelihood of the label's class, weighted by the network's own smoothed probability of it.

  -sum_j mean_b (p_bj^2 + v_bj - mean_b p_bj^2) * log p_bj, p = softmax(student), where j is the
  label's class with v = 1; for class probabilities, the two largest of them, v their values.

  Args:
    student: logits (..., C), with any leading axes.
    labels: class numbers with the leading axes, or class probabilities (..., C). Of those that name
      one class alone, the second has v = 0 and does not count.
    weights: weight of each label, of both means over b; 0 leaves an example out.
    axis_name: device axis of a mapped step. Both means are then over the global batch: every device
      gets the loss of the global batch, and `lax.pmean` of the gradients is its gradient.
    where: mask of what counts; see `target_class_kl`.

  Returns:
    The loss, a scalar, float32 or wider, 0 if nothing counts; NaN if a label that counts is not a
    class. The factor takes no gradient; it may be negative, where p is far below the mean.

  Raises:
    ConfigError: if the shapes do not fit together.

  Source: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified
  Approach with Normalized Loss and Customized Soft Labels", ICCV 2023, as the authors' USKDLoss
  (yzd-v/cls_KD).

  >>> self_target_cross_entropy(jnp.zeros((1, 2)), jnp.array([0])).round(4)
  Array(0.6931, dtype=float32)
  """
  what = "self_target_cross_entropy"
  (student,) = widen(student, what=what)
  targets = target_classes(what, student, labels, weights, where)
  (student,) = targets.keep(student)
  log_p = log_probabilities(student)
  total = jnp.zeros((), student.dtype)
  for chosen, value in _labelled(what, targets, labels):
    counts = value > 0
    log_own = jnp.sum(jnp.where(chosen & counts[..., None], log_p, 0.0), axis=-1)
    square = jnp.where(counts, jnp.exp(2.0 * lax.stop_gradient(log_own)), 0.0)
    mean = _mean(targets, lax.stop_gradient(square), axis_name)
    own = jnp.where(counts, square + value - mean, 0.0)
    total = total - _mean(targets, own * log_own, axis_name)
  return total


def ranked_cross_entropy(
  student: ArrayLike,
  weak: ArrayLike,
  labels: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  ranked_by: RankedBy = "probabilities",
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Cross-entropy of the other classes with Zipf's distribution over their ranks.

  -mean_b sum_c r_bc * log q_bc over the classes c that are no label, q the student's softmax over
  these, r proportional to 1 / rank_c. Classes are ranked from 1, in falling order among all, by
  w_c / (1 - sum_labels w + 1e-6) + p_c / (1 - sum_labels p + 1e-6), w = softmax(weak).

  Args:
    student: logits (..., C), with any leading axes. A class that is impossible has r = 0.
    weak: logits of the same shape of an earlier layer, constant.
    labels: class numbers with the leading axes, or class probabilities (..., C), of which the two
      largest are labels.
    weights: weight of each label; see `target_class_kl`.
    ranked_by: "probabilities" of the student, as in the paper, or the "log_probabilities" that the
      published code has in place of every p in the formula.
    axis_name: device axis of a mapped step; see `self_target_cross_entropy`.
    where: mask of what counts; see `target_class_kl`.

  Returns:
    The loss, a scalar, float32 or wider, 0 if nothing counts. The ranks take no gradient.

  Raises:
    ConfigError: if the shapes do not fit together, or ranked_by is unknown.

  Source: Yang et al., ICCV 2023, as the authors' USKDLoss, which has overwritten the probabilities
  by their logarithms where it ranks the classes: `ranked_by="log_probabilities"`. A class
  probability of 1 as a soft label removes an arbitrary second class there, here none.

  >>> z = jnp.array([[5.0, 0.0, 0.0]])
  >>> ranked_cross_entropy(z, z, jnp.array([0])).round(4)
  Array(0.6931, dtype=float32)
  """
  what = "ranked_cross_entropy"
  if ranked_by not in ("probabilities", "log_probabilities"):
    raise ConfigError(f"ranked_by={ranked_by!r}: expected 'probabilities' or 'log_probabilities'")
  student, weak = widen(student, lax.stop_gradient(weak), what=what)
  check_same_shape(what, student, weak, "both must score the same classes, (..., C)", other="weak")
  targets = target_classes(what, student, labels, weights, where)
  student, weak = targets.keep(student, weak)
  named = jnp.zeros_like(targets.chosen)
  for chosen, value in _labelled(what, targets, labels):
    named = named | (chosen & (value > 0)[..., None])
  possible = ~named & (student > -jnp.inf)
  alone = ~jnp.any(possible, axis=-1)
  scores = _share(jnp.exp(log_probabilities(weak)), named)
  own = lax.stop_gradient(log_probabilities(student))
  scores = scores + _share(jnp.exp(own) if ranked_by == "probabilities" else own, named)
  order = jnp.argsort(jnp.argsort(-scores, axis=-1), axis=-1)
  zipf = jnp.where(possible, 1.0 / (order + 1.0), 0.0).astype(student.dtype)
  target = jnp.log(zipf / jnp.maximum(jnp.sum(zipf, axis=-1, keepdims=True), 1e-30))
  others = jnp.where(possible, student, -jnp.inf)
  log_q = log_probabilities(jnp.where(alone[..., None], 0.0, others))
  values = jnp.where(alone, 0.0, relative_entropy(log_q, target) + entropy(target))
  return _mean(targets, values, axis_name)


def unified_self_distillation(
  student: Output,
  weak: Output,
  labels: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  target_weight: float | jax.Array = 0.1,
  others_weight: float | jax.Array = 0.1,
  weak_weight: float | jax.Array = 0.1,
  label_smoothing: float = 0.1,
  ranked_by: RankedBy = "probabilities",
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> dict[str, Terms]:
  """Universal self-knowledge distillation (USKD), as three terms.

  alpha * self_target_cross_entropy + beta * ranked_cross_entropy + mu * cross_entropy(weak).

  Args:
    student: Output with logits (..., C).
    weak: Output with the logits (..., C) of a linear layer on features of the middle of the
      network. It learns from the labels alone.
    labels: class numbers with the leading axes, or class probabilities (..., C).
    weights: weight of each label; 0 leaves an example out of all terms.
    target_weight: alpha.
    others_weight: beta.
    weak_weight: mu, weight of the weak logits' cross-entropy.
    label_smoothing: of the weak logits' labels.
    ranked_by: see `ranked_cross_entropy`.
    axis_name: device axis of a mapped step; see `self_target_cross_entropy`.
    where: mask of what counts; see `target_class_kl`.

  Returns:
    {"target": Terms(logit=...), "others": ..., "weak": ...}, weighted, float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, or logits that are missing or differ in shape.

  Source: Yang et al., ICCV 2023, as the authors' USKDLoss (yzd-v/cls_KD), added to the
  cross-entropy: alpha = beta = mu = 0.1 for CIFAR-100; 1, 0.1 and 0.005 for ImageNet.

  >>> z = Output(logits=jnp.zeros((1, 2)))
  >>> terms = unified_self_distillation(z, z, jnp.array([0]))
  >>> {name: round(float(part.logit), 4) for name, part in terms.items()}
  {'target': 0.0693, 'others': 0.0, 'weak': 0.0693}
  """
  what = "unified_self_distillation"
  ours = logits_of(student, what=what, role="student")
  theirs = logits_of(weak, what=what, role="weak")
  # Widened once: the gradients of all terms are then added in float32.
  ours, theirs = widen(ours, theirs)
  options: dict[str, Any] = {"axis_name": axis_name, "where": where}
  target = self_target_cross_entropy(ours, labels, weights, **options)
  others = ranked_cross_entropy(ours, theirs, labels, weights, ranked_by=ranked_by, **options)
  labelled = cross_entropy(theirs, labels, weights, label_smoothing=label_smoothing, **options)
  if axis_name is not None:
    labelled = lax.pmean(labelled, axis_name)
  return {
    "target": Terms(logit=target_weight * target),
    "others": Terms(logit=others_weight * others),
    "weak": Terms(logit=weak_weight * labelled),
  }


def _labelled(what: str, targets: Targets, labels: ArrayLike) -> list[tuple[jax.Array, jax.Array]]:
  """Return (class as a mask (..., C), value (...)) of the label, or of the two largest."""
  labels = jnp.asarray(labels)
  dtype = targets.factor.dtype
  if labels.shape != targets.chosen.shape or jnp.issubdtype(labels.dtype, jnp.integer):
    return [(targets.chosen, jnp.ones(targets.factor.shape, dtype))]
  (labels,) = targets.keep(labels.astype(dtype))
  first = jnp.sum(jnp.where(targets.chosen, labels, 0.0), axis=-1)
  rest = jnp.where(targets.chosen, -jnp.inf, labels)
  classes = lax.broadcasted_iota(jnp.int32, labels.shape, labels.ndim - 1)
  second = jnp.argmax(rest, axis=-1)[..., None] == classes
  return [(targets.chosen, first), (second, jnp.maximum(jnp.max(rest, axis=-1), 0.0))]


def _share(x: jax.Array, named: jax.Array) -> jax.Array:
  """Return x / (1 - sum of x over the named classes + eps)."""
  rest = 1.0 - jnp.sum(jnp.where(named, x, 0.0), axis=-1, keepdims=True)
  return x / (rest + _EPS)


def _mean(targets: Targets, values: jax.Array, axis_name: str | None) -> jax.Array:
  """Return the mean over the labels of all devices."""
  value = targets.mean(values, axis_name)
  return value if axis_name is None else lax.pmean(value, axis_name)
