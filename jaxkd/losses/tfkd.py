"""Teacher-free knowledge distillation (Tf-KD): a virtual teacher that is made of the label."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError
from jaxkd.losses._checks import check_fraction, check_positive, logits_of
from jaxkd.losses._numerics import log_probabilities, relative_entropy, widen
from jaxkd.losses._targets import target_classes
from jaxkd.types import Output, Terms

Classes = Literal["sum", "mean"]


def virtual_teacher_kl(
  student: ArrayLike,
  labels: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  correct_probability: float | jax.Array = 0.99,
  temperature: float | jax.Array = 20.0,
  classes: Classes = "sum",
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Divergence from the student's distribution to that of a virtual teacher.

  mean_b KL(u_b || softmax(student_b)), u = softmax(d / T), where d is a at the label's class and
  (1 - a) / (C - 1) at each other one, a the `correct_probability`.

  d are probabilities, used as logits: at T = 20, u is nearly uniform. The student has no
  temperature, and there is no T^2.

  Args:
    student: logits (..., C), with any leading axes.
    labels: class numbers with the leading axes, or class probabilities (..., C), of which the
      largest is the class.
    weights: weight of each label, (B,) or with all leading axes; 0 leaves an example out. None
      weights all by 1.
    correct_probability: a, between 0 and 1.
    temperature: T > 0, of the virtual teacher alone.
    classes: "sum" over the classes, as in the paper, or "mean", which is C times smaller.
    axis_name: device axis of a mapped step; see `target_class_kl`.
    where: mask (B,) or with all leading axes of the logits, nonzero where a position counts; the
      rest is padding and may hold any values. None: all count.

  Returns:
    The loss, a scalar, float32 or wider, 0 if nothing counts; NaN if a label that counts is not a
    class; inf if a class is impossible for the student, as none is for the virtual teacher.

  Raises:
    ConfigError: if the shapes do not fit together, or an option is out of range.

  Source: Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR
  2020, eq. 12 and 13, as the authors' loss_kd_regularization
  (yuanli2333/Teacher-free-Knowledge-Distillation), which takes the mean over all elements
  (`classes="mean"`) and multiplies it by 1, 50 or 100 instead.

  >>> virtual_teacher_kl(jnp.array([[1.0, 0.0]]), jnp.array([0]), temperature=0.98).round(4)
  Array(0., dtype=float32)
  """
  what = "virtual_teacher_kl"
  check_positive("temperature", temperature)
  check_fraction("correct_probability", correct_probability)
  if classes not in ("sum", "mean"):
    raise ConfigError(f"classes={classes!r}: expected 'sum' or 'mean'")
  (student,) = widen(student, what=what)
  targets = target_classes(what, student, labels, weights, where)
  (student,) = targets.keep(student)
  others = (1.0 - correct_probability) / max(student.shape[-1] - 1, 1)
  virtual = jnp.where(targets.chosen, correct_probability, others).astype(student.dtype)
  log_u = log_probabilities(virtual, temperature)
  values = relative_entropy(log_probabilities(student), log_u)
  return targets.mean(values, axis_name) / (student.shape[-1] if classes == "mean" else 1)


def virtual_teacher(
  student: Output,
  labels: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  correct_probability: float | jax.Array = 0.99,
  temperature: float | jax.Array = 20.0,
  classes: Classes = "sum",
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> Terms:
  """Teacher-free regularisation (Tf-KD_reg): the virtual teacher's term of the objective.

  `virtual_teacher_kl`; the objective is (1 - alpha) * cross-entropy + alpha * this.

  Args:
    student: Output with logits (..., C).
    labels: class numbers with the leading axes, or class probabilities (..., C).
    weights: weight of each label; 0 leaves an example out.
    correct_probability: the virtual teacher's probability of the label's class.
    temperature: T > 0, of the virtual teacher alone.
    classes: "sum" or "mean" over the classes; see `virtual_teacher_kl`.
    axis_name: device axis of a mapped step; see `target_class_kl`.
    where: mask of what counts; see `virtual_teacher_kl`.

  Returns:
    Terms(logit=...), float32 or wider.

  Raises:
    ConfigError: for an array in place of an Output, missing logits, or as `virtual_teacher_kl`.

  Source: Yuan et al., CVPR 2020; defaults of the authors' ResNet-18 on CIFAR-100: T = 20, and
  alpha = 0.1 with a mean over elements times 100, which for 100 classes is the sum over classes.
  The other form of the paper, self-training, is `soft_target_kl` with a trained copy as the
  teacher.

  >>> z = Output(logits=jnp.array([[0.0, 0.0]]))
  >>> round(float(virtual_teacher(z, [0]).logit), 4)
  0.0003
  """
  value = virtual_teacher_kl(
    logits_of(student, what="virtual_teacher", role="student"),
    labels,
    weights,
    correct_probability=correct_probability,
    temperature=temperature,
    classes=classes,
    axis_name=axis_name,
    where=where,
  )
  return Terms(logit=value)
