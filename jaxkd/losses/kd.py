"""Knowledge distillation: Kullback-Leibler divergence between softened class distributions."""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError
from jaxkd.losses._checks import check_positive, check_same_shape, is_number, logits_of
from jaxkd.losses._counting import counted_positions, keep, mean
from jaxkd.losses._divergences import Divergence
from jaxkd.losses._numerics import log_probabilities, relative_entropy, widen
from jaxkd.losses._standardization import standardized
from jaxkd.losses.cross_entropy import cross_entropy
from jaxkd.losses.divergences import Missing, soft_target_divergence
from jaxkd.types import Output, Terms


def soft_target_kl(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  temperature: float | jax.Array = 4.0,
  squared_temperature: bool = True,
  standardize: bool = False,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Kullback-Leibler divergence from the student's softened distribution to the teacher's.

  T^2 * mean_b sum_c p_t * (log p_t - log p_s), with p = softmax(logits / T).

  Args:
    student: logits (..., C), with any leading axes: (B, C), (B, T, C), (B, H, W, C). A logit of
      -inf is an impossible class, on either side: 0 log 0 = 0.
    teacher: logits of the same shape, constant: they take no gradient.
    temperature: T > 0, a number or a traced scalar.
    squared_temperature: multiply by T^2, so that the gradient keeps its size as T changes.
    standardize: both sides' logits first get mean 0 and standard deviation 1 over the classes:
      (z - mean) / (1e-7 + std), with C - 1 in the variance. Scale and shift of either side then
      have no effect. The authors' T is 2.
    where: mask (B,) or with all leading axes of the logits, nonzero where a position counts; the
      rest is padding and may hold any values. None: all count.

  Returns:
    The loss, a scalar, float32 or wider: sum over classes, mean over what counts, 0 if nothing
    does. It is inf if a class is impossible for the student and possible for the teacher.

  Raises:
    ConfigError: if the shapes differ, `where` does not fit them, or the temperature is a number
      that is not positive.

  Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, as RepDistiller,
  mdistiller, SimKD and the Zoo. torchdistill without alpha is `squared_temperature=False`. Code
  with torch's element-wise mean (`reduction="mean"`) is C times smaller. `standardize=True` is Sun
  et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, as the authors' code and
  torchdistill's LogitStdKDLoss; a row of equal logits takes no gradient, where theirs has one of
  about 1e7.

  >>> import jax.numpy as jnp
  >>> soft_target_kl(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]]), temperature=1.0).round(4)
  Array(0.4621, dtype=float32)
  """
  check_positive("temperature", temperature)
  student, teacher = widen(student, lax.stop_gradient(teacher), what="soft_target_kl")
  check_same_shape("logits", student, teacher, "both must score the same classes, (..., C)")
  counted = counted_positions("soft_target_kl", where, student)
  student, teacher = keep(counted, student, teacher)
  if standardize:
    student, teacher = standardized(student), standardized(teacher)
  log_p_student = log_probabilities(student, temperature)
  log_p_teacher = log_probabilities(teacher, temperature)
  divergence = relative_entropy(log_p_student, log_p_teacher)
  scale = temperature * temperature if squared_temperature else 1.0
  return scale * mean(divergence, counted)


def knowledge_distillation(
  student: Output,
  teacher: Output,
  labels: ArrayLike | None = None,
  *,
  temperature: float | jax.Array = 4.0,
  squared_temperature: bool = True,
  soft_weight: float | jax.Array = 1.0,
  hard_weight: float | jax.Array = 0.0,
  standardize: bool = False,
  divergence: Divergence = "forward",
  beta: ArrayLike | None = None,
  top_k: int = 0,
  missing: Missing = "bucket",
  where: ArrayLike | None = None,
) -> Terms:
  """Knowledge distillation: match the teacher's softened class distribution.

  soft_weight * soft_target_kl(student, teacher) + hard_weight * cross_entropy(student, labels).
  The cross-entropy is off by default, because a scheme adds its own, with masked examples.

  Args:
    student: Output with logits (..., C).
    teacher: Output with logits (..., C), constant.
    labels: class numbers with the leading axes, or probabilities (..., C); needed if hard_weight
      is not 0.
    temperature: T > 0, of the soft term alone.
    squared_temperature: see `soft_target_kl`.
    soft_weight: weight of the divergence.
    hard_weight: weight of the cross-entropy.
    standardize: standardise both sides' logits in the soft term, see `soft_target_kl`. The
      cross-entropy takes the student's logits as they are.
    divergence: "forward", `soft_target_kl`; or "reverse", "symmetric", "jensen_shannon",
      "skewed_forward", "skewed_reverse" or "total_variation", as in `soft_target_divergence`.
    beta: its share; see there.
    top_k: K > 0 compares the teacher's K largest classes at each position; 0 all.
    missing: the other classes, with `top_k`: "bucket", one class; "renormalized", left out on both
      sides; "impossible", for the teacher alone.
    where: mask of what counts, in both terms; see `soft_target_kl`.

  Returns:
    Terms(logit=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs; if logits are missing or differ in shape; if an
      option is out of its range; or if hard_weight is not 0 and there are no labels.

  Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015. The default is T^2
  KL alone, with RepDistiller's T = 4. "alpha" has opposite meanings: attention-transfer and
  RepDistiller weight the soft term by it (`soft_weight=a, hard_weight=1 - a`), torchdistill the
  hard one (`soft_weight=1 - a, hard_weight=a`; without alpha, `squared_temperature=False`).

  >>> import jax.numpy as jnp
  >>> z = Output(logits=jnp.array([[1.0, 0.0]]))
  >>> float(knowledge_distillation(z, z).total)
  0.0
  """
  student_logits = logits_of(student, what="knowledge_distillation", role="student")
  kernel: Any = soft_target_kl
  if divergence != "forward" or beta is not None or top_k:
    kernel = functools.partial(
      soft_target_divergence, divergence=divergence, beta=beta, top_k=top_k, missing=missing
    )
  soft = kernel(
    student_logits,
    logits_of(teacher, what="knowledge_distillation", role="teacher"),
    temperature=temperature,
    squared_temperature=squared_temperature,
    standardize=standardize,
    where=where,
  )
  logit = soft_weight * soft
  if not (is_number(hard_weight) and hard_weight == 0):
    if labels is None:
      raise ConfigError(f"hard_weight is {hard_weight} but no labels were given")
    logit = logit + hard_weight * cross_entropy(student_logits, labels, where=where)
  return Terms(logit=logit)
