"""Scale-decoupled distillation (SDD): the logits of regions, besides those of the whole image."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses._checks import check_positive, check_same_shape, logits_of
from jaxkd.losses._numerics import entropy, log_probabilities, relative_entropy, widen
from jaxkd.losses._standardization import standardized
from jaxkd.losses._targets import (
  Targets,
  between_others,
  binary_log_probabilities,
  of_target,
  other_log_probabilities,
  target_classes,
)
from jaxkd.types import Output, Terms

Form = Literal["kd", "dkd", "nkd"]

FORMS: tuple[str, ...] = get_args(Form)


def region_divergence(
  student: ArrayLike,
  teacher: ArrayLike,
  labels: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  form: Form = "kd",
  temperature: float | jax.Array = 4.0,
  squared_temperature: bool = True,
  complementary_weight: float | jax.Array = 2.0,
  target_weight: float | jax.Array = 1.0,
  others_weight: float | jax.Array = 8.0,
  gamma: float | jax.Array = 1.5,
  mask_target: bool = True,
  standardize: bool = False,
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Mean over examples b and regions n of w_bn * l_bn, for a divergence l of regions' logits.

  w_bn is 1 where the teacher's decision from region n and its global one (region 0) are both right
  or both wrong, and `complementary_weight` where one of them is right alone. l is, with
  p = softmax(z / T) and y the label's class:
    kd: T^2 KL(p_t || p_s);
    dkd: `target_weight` and `others_weight` times the terms of `decoupled_distillation`;
    nkd: -p_t[y] log p_s[y] at T = 1, minus gamma T^2 sum_c q_t log q_s, q the distributions over
      the classes other than y. It is not 0 where both sides agree.

  Args:
    student: logits (..., N, C) of N regions, the global one first. A logit of -inf is an impossible
      class.
    teacher: logits of the same shape, constant.
    labels: class numbers (...), or class probabilities (..., C), of which the largest is the class.
    weights: weight of each label, (B,) or with the axes of the class numbers; 0 leaves an example
      out: its decisions are neither right nor wrong. None weights all by 1.
    form: l.
    temperature: T > 0, a number or a traced scalar.
    squared_temperature: multiply by T^2; in "nkd" the second term.
    complementary_weight: w where the decisions differ in being right.
    target_weight: alpha of "dkd".
    others_weight: beta of "dkd".
    gamma: of "nkd".
    mask_target: leave the label's class out of the second term of "nkd". False is the published
      code, whose mask has no effect.
    standardize: standardise the logits of every region first, see `soft_target_kl`; the decisions
      do not change.
    axis_name: device axis of a mapped step: the weights of the labels are then summed over all
      devices, as in `cross_entropy`.
    where: mask (B,) or with the axes of the class numbers, nonzero where an example counts; the
      rest may hold any values. None: all count.

  Returns:
    The loss, a scalar, float32 or wider, 0 if nothing counts; NaN if a label that counts is no
    class.

  Raises:
    ConfigError: if the shapes do not fit together, or an option is out of its range.

  Source: Luo, "Scale Decoupled Distillation", CVPR 2024, the author's code
  (shicaiwei123/SDD-CVPR2024): sdd_kd_loss, multi_dkd, and multi_nkd_loss with
  `mask_target=False, temperature=1.0`. There, a total that is NaN or inf becomes the constant 0;
  here it stays what it is.

  >>> z, t = jnp.array([[[1.0, 0.0], [2.0, 0.0]]]), jnp.array([[[0.0, 1.0], [1.0, 0.0]]])
  >>> region_divergence(z, t, jnp.array([0]), temperature=1.0).round(4)
  Array(0.3137, dtype=float32)
  """
  what = "region_divergence"
  if form not in FORMS:
    raise unknown_name("form", form, FORMS)
  check_positive("temperature", temperature)
  student, teacher = widen(student, lax.stop_gradient(teacher), what=what)
  check_same_shape(what, student, teacher, "both must have the same regions and classes")
  if student.ndim < 3:
    raise ConfigError(f"{what}: logits {student.shape} are not (B, regions, classes)")
  of_regions = _of_every_region(what, labels, student)
  targets = target_classes(what, student, of_regions, weights, where)
  student, teacher = targets.keep(student, teacher)
  w = region_weights(teacher, targets, complementary_weight)
  if standardize:
    student, teacher = standardized(student), standardized(teacher)
  scale = temperature * temperature if squared_temperature else 1.0
  if form == "kd":
    log_p, log_target = (log_probabilities(z, temperature) for z in (student, teacher))
    values = scale * relative_entropy(log_p, log_target)
  elif form == "dkd":
    chosen = targets.chosen
    pairs = (binary_log_probabilities(z, chosen, temperature) for z in (student, teacher))
    others = _others(student, teacher, targets, temperature, False)
    values = scale * (target_weight * relative_entropy(*pairs) + others_weight * others)
  else:
    values = gamma * scale * _nkd_others(student, teacher, targets, temperature, mask_target)
    values = values + _nkd_target(student, teacher, targets)
  return targets.mean(w * values, axis_name)


def scale_decoupled(
  student: Output,
  teacher: Output,
  labels: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  form: Form = "kd",
  temperature: float | jax.Array = 4.0,
  squared_temperature: bool = True,
  complementary_weight: float | jax.Array = 2.0,
  target_weight: float | jax.Array = 1.0,
  others_weight: float | jax.Array = 8.0,
  gamma: float | jax.Array = 1.5,
  mask_target: bool = True,
  standardize: bool = False,
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> Terms:
  """Scale-decoupled distillation: match the logits of the whole image and of its regions.

  `region_divergence` of the Outputs' logits.

  Args:
    student: Output with logits (..., N, C), those of N regions, the whole image first.
    teacher: Output likewise, of the same shape, constant.
    labels: class numbers (...), or class probabilities (..., C).
    weights: weight of each label.
    form: "kd", "dkd" or "nkd"; this and all other options: see `region_divergence`.
    temperature: T > 0.
    squared_temperature: multiply by T^2.
    complementary_weight: weight of regions whose decision is right or wrong unlike the global one.
    target_weight: alpha of "dkd".
    others_weight: beta of "dkd".
    gamma: of "nkd".
    mask_target: leave the label's class out of the second term of "nkd".
    standardize: standardise the logits of every region first.
    axis_name: device axis of a mapped step.
    where: mask of what counts.

  Returns:
    Terms(logit=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs; if logits are missing, or shapes do not fit; if an
      option is out of its range.

  Source: Luo, "Scale Decoupled Distillation", CVPR 2024; see `region_divergence`.

  >>> z = Output(logits=jnp.zeros((1, 5, 3)))
  >>> float(scale_decoupled(z, z, jnp.array([0])).total)
  0.0
  """
  what = "scale_decoupled"
  value = region_divergence(
    logits_of(student, what=what, role="student"),
    logits_of(teacher, what=what, role="teacher"),
    labels,
    weights,
    form=form,
    temperature=temperature,
    squared_temperature=squared_temperature,
    complementary_weight=complementary_weight,
    target_weight=target_weight,
    others_weight=others_weight,
    gamma=gamma,
    mask_target=mask_target,
    standardize=standardize,
    axis_name=axis_name,
    where=where,
  )
  return Terms(logit=value)


def region_weights(
  teacher: jax.Array, targets: Targets, complementary_weight: ArrayLike
) -> jax.Array:
  """Return (..., N): 1, or the weight where a region's decision is right and the global is not."""
  largest = jnp.argmax(teacher, axis=-1)
  right = largest == jnp.argmax(targets.chosen, axis=-1)
  same = right == right[..., :1]
  return jnp.where(same, 1.0, jnp.asarray(complementary_weight, teacher.dtype))


def _of_every_region(what: str, labels: ArrayLike, logits: jax.Array) -> jax.Array:
  """Return the labels of (..., C) with the axis of the regions."""
  labels = jnp.asarray(labels)
  *leading, regions, classes = logits.shape
  if labels.shape == (*leading,):
    return jnp.broadcast_to(labels[..., None], (*leading, regions))
  if labels.shape == (*leading, classes):
    return jnp.broadcast_to(labels[..., None, :], logits.shape)
  raise ConfigError(
    f"{what}: labels {labels.shape} do not belong to logits {logits.shape}: expected class numbers "
    f"{(*leading,)} or class probabilities {(*leading, classes)}"
  )


def _others(
  student: jax.Array,
  teacher: jax.Array,
  targets: Targets,
  temperature: ArrayLike,
  with_entropy: bool,
) -> jax.Array:
  """Return KL(q_t || q_s) over the classes other than the label's, or the cross-entropy."""
  log_q, student_alone = other_log_probabilities(student, targets.chosen, temperature)
  log_target, teacher_alone = other_log_probabilities(teacher, targets.chosen, temperature)
  values = relative_entropy(log_q, log_target)
  if with_entropy:
    values = values + entropy(log_target)
  return between_others(values, student_alone, teacher_alone)


def _nkd_others(
  student: jax.Array,
  teacher: jax.Array,
  targets: Targets,
  temperature: ArrayLike,
  mask_target: bool,
) -> jax.Array:
  if mask_target:
    return _others(student, teacher, targets, temperature, True)
  log_p, log_target = (log_probabilities(z, temperature) for z in (student, teacher))
  return relative_entropy(log_p, log_target) + entropy(log_target)


def _nkd_target(student: jax.Array, teacher: jax.Array, targets: Targets) -> jax.Array:
  """Return -p_t[y] log p_s[y] at T = 1; 0 where the label is impossible for the teacher."""
  log_p, log_target = (of_target(log_probabilities(z), targets.chosen) for z in (student, teacher))
  probability = jnp.exp(log_target)
  return -probability * jnp.where(probability > 0, log_p, 0.0)
