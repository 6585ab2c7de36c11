"""Losses of multi-label classification: every class is a question of its own, yes or no.

A class's logit z is the log-odds of yes: sigmoid(z) is the first probability of softmax([z, 0]).
Both kernels are therefore those of `jaxkd.losses` for two classes, over one more axis.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError
from jaxkd.losses._checks import check_same_shape, logits_of
from jaxkd.losses._numerics import widen
from jaxkd.losses.cross_entropy import cross_entropy
from jaxkd.losses.kd import soft_target_kl
from jaxkd.types import Output, Terms

# The reduction over classes.
Classes = Literal["mean", "sum"]


def sigmoid_cross_entropy(
  logits: ArrayLike,
  labels: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  classes: Classes = "mean",
  label_smoothing: float = 0.0,
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Weighted mean binary cross-entropy between logits and multi-hot labels.

  sum_bc w_bc * ce_bc / sum_bc w_bc, with ce = -y log sigmoid(z) - (1 - y) log sigmoid(-z), where
  y = (1 - label_smoothing) * label + label_smoothing / 2. It is 0 if every weight is 0.

  The mean over classes keeps the loss near log 2 for an untrained network, whatever the number of
  classes, so that learning rates carry over between data sets. `classes="sum"` is C times as much.

  Args:
    logits: (..., C), with any leading axes. -inf is an impossible class.
    labels: (..., C), numbers or booleans in 0..1: the probability that the class applies. They
      need not sum to 1.
    weights: weight of the labels, 0 for unknown ones: (B,), or more of the axes of `labels`, up to
      all of them, (B, C), for classes that are unknown one by one. None weights all by 1.
    classes: "mean" or "sum" over the classes of an example.
    label_smoothing: share of every target that is moved to 1/2.
    axis_name: device axis of a mapped step, as for `cross_entropy`.
    where: mask of what counts, of the shapes allowed for `weights`; the rest may hold any values.

  Returns:
    The loss, a scalar, float32 or wider. Value and gradient are NaN if a label that counts is
    outside 0..1. The value is inf if a label that counts has a class whose logit is -inf.

  Raises:
    ConfigError: if the shapes do not fit together, or an option is out of range.

  Source: the common definition; the mean over classes as torch's BCEWithLogitsLoss, the sum as the
  code of Yang et al., "Multi-Label Knowledge Distillation", ICCV 2023 (penghui-yang/L2D), which
  sums over examples, too.

  >>> sigmoid_cross_entropy(jnp.zeros((2, 3)), jnp.array([[1, 0, 1], [0, 0, 0]])).round(4)
  Array(0.6931, dtype=float32)
  """
  (logits,) = widen(logits, what="sigmoid_cross_entropy")
  labels = jnp.asarray(labels)
  if labels.shape != logits.shape:
    raise ConfigError(
      f"sigmoid_cross_entropy: labels {labels.shape} do not belong to logits {logits.shape}: "
      "expected a number in 0..1 for every class"
    )
  labels = labels.astype(logits.dtype)
  loss = cross_entropy(
    _yes_and_no(logits),
    jnp.stack([labels, 1 - labels], axis=-1),
    weights,
    label_smoothing=label_smoothing,
    axis_name=axis_name,
    where=where,
  )
  return _over_classes(classes, logits) * loss


def sigmoid_kl(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  temperature: float | jax.Array = 1.0,
  squared_temperature: bool = True,
  classes: Classes = "mean",
  where: ArrayLike | None = None,
) -> jax.Array:
  """Binary Kullback-Leibler divergence of every class, from the student to the teacher.

  T^2 * mean_bc (p_t log(p_t / p_s) + (1 - p_t) log((1 - p_t) / (1 - p_s))), p = sigmoid(z / T).

  Args:
    student: logits (..., C), with any leading axes.
    teacher: logits of the same shape, constant: they take no gradient.
    temperature: T > 0, a number or a traced scalar.
    squared_temperature: multiply by T^2, so that the gradient keeps its size as T changes.
    classes: "mean" over the classes, like `sigmoid_cross_entropy`, or "sum".
    where: mask (B,), or more of the axes of the logits, up to all of them, nonzero where a class
      counts; the rest may hold any values. None: all count.

  Returns:
    The loss, a scalar, float32 or wider: 0 if nothing counts.

  Raises:
    ConfigError: if the shapes differ, or an option is out of range.

  Source: Yang et al., "Multi-Label Knowledge Distillation", ICCV 2023, the multi-label logits
  distillation (MLD) loss, which has T = 1 and the sum over classes (`classes="sum"`) in the
  authors' code (penghui-yang/L2D). It clips probabilities to 1e-8; here they are exact.

  >>> sigmoid_kl(jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 2.0]])).round(4)
  Array(0.1639, dtype=float32)
  """
  student, teacher = widen(student, lax.stop_gradient(teacher), what="sigmoid_kl")
  check_same_shape("logits", student, teacher, "both must score the same classes, (..., C)")
  divergence = soft_target_kl(
    _yes_and_no(student),
    _yes_and_no(teacher),
    temperature=temperature,
    squared_temperature=squared_temperature,
    where=where,
  )
  return _over_classes(classes, student) * divergence


def sigmoid_distillation(
  student: Output,
  teacher: Output,
  *,
  temperature: float | jax.Array = 1.0,
  squared_temperature: bool = True,
  classes: Classes = "mean",
  where: ArrayLike | None = None,
) -> Terms:
  """Multi-label knowledge distillation: match the teacher's probability of every class.

  Args:
    student: Output with logits (..., C).
    teacher: Output with logits (..., C), constant.
    temperature: T > 0.
    squared_temperature: see `sigmoid_kl`.
    classes: "mean" or "sum" over the classes of an example.
    where: mask of what counts, see `sigmoid_kl`.

  Returns:
    Terms(logit=`sigmoid_kl`), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs; if logits are missing or differ in shape; if the
      temperature is not positive.

  Source: Yang et al., "Multi-Label Knowledge Distillation", ICCV 2023; see `sigmoid_kl`.

  >>> z = Output(logits=jnp.array([[1.0, 0.0]]))
  >>> float(sigmoid_distillation(z, z).total)
  0.0
  """
  what = "sigmoid_distillation"
  return Terms(
    logit=sigmoid_kl(
      logits_of(student, what=what, role="student"),
      logits_of(teacher, what=what, role="teacher"),
      temperature=temperature,
      squared_temperature=squared_temperature,
      classes=classes,
      where=where,
    )
  )


def _yes_and_no(logits: jax.Array) -> jax.Array:
  """Return logits (..., 2), whose softmax is the sigmoid of each logit and its complement."""
  return jnp.stack([logits, jnp.zeros_like(logits)], axis=-1)


def _over_classes(classes: str, logits: jax.Array) -> int:
  if classes not in ("mean", "sum"):
    raise ConfigError(f"classes={classes!r}: expected 'mean' or 'sum'")
  return logits.shape[-1] if classes == "sum" else 1
