"""DeiT: the logits of a distillation token learn from the teacher, softly or by its decision."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import unknown_name
from jaxkd.losses._checks import check_same_shape, logits_of, stage_arrays
from jaxkd.losses._counting import counted_positions, keep, mean
from jaxkd.losses._numerics import log_probabilities, widen
from jaxkd.losses.kd import soft_target_kl
from jaxkd.types import Output, Terms

Kind = Literal["hard", "soft"]
Form = Literal["paper", "code"]

_KINDS: tuple[str, ...] = get_args(Kind)
_FORMS: tuple[str, ...] = get_args(Form)


def hard_target_cross_entropy(
  student: ArrayLike, teacher: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
  """Cross-entropy with the class that the teacher predicts: mean of -log p_s[argmax z_t].

  Args:
    student: logits (..., C). A logit of -inf is an impossible class.
    teacher: logits of the same shape, constant; of equal largest ones the first counts.
    where: mask (B,) or with all leading axes of the logits, nonzero where a position counts; the
      rest may hold any values. None: all count.

  Returns:
    The loss, a scalar, float32 or wider; 0 if nothing counts. It is inf if the class is impossible
    for the student.

  Raises:
    ConfigError: if the shapes differ, or `where` does not fit them.

  Source: Touvron et al., "Training data-efficient image transformers & distillation through
  attention", ICML 2021, eq. 3, as DistillationLoss of deit: without temperature or smoothing.

  >>> hard_target_cross_entropy(jnp.zeros((1, 2)), jnp.array([[0.0, 1.0]])).round(4)
  Array(0.6931, dtype=float32)
  """
  student, teacher = widen(student, lax.stop_gradient(teacher), what="hard_target_cross_entropy")
  check_same_shape("logits", student, teacher, "both must score the same classes, (..., C)")
  counted = counted_positions("hard_target_cross_entropy", where, student)
  student, teacher = keep(counted, student, teacher)
  chosen = jax.nn.one_hot(jnp.argmax(teacher, axis=-1), teacher.shape[-1], dtype=bool)
  # 0 times the -inf of another, impossible class would be NaN.
  log_p = jnp.where(chosen, log_probabilities(student), 0.0)
  return mean(-jnp.sum(log_p, axis=-1), counted)


def distillation_token(
  student: Output,
  teacher: Output,
  *,
  stage: str = "logits_dist",
  kind: Kind = "hard",
  temperature: float | jax.Array = 1.0,
  form: Form = "paper",
  where: ArrayLike | None = None,
) -> Terms:
  """DeiT's distillation: the logits of the distillation token against the teacher's.

  "hard" is `hard_target_cross_entropy`, "soft" T^2 KL(softmax(z_t / T) || softmax(z_s / T)).

  Args:
    student: Output with the logits (B, C) of the distillation token among its features.
    teacher: Output with logits (B, C), constant.
    stage: name of these features.
    kind: "hard" or "soft".
    temperature: T > 0, of "soft".
    form: of "soft": "paper", the sum over classes; "code", its mean, C times smaller.
    where: mask of what counts; see `soft_target_kl`.

  Returns:
    Terms(logit=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, logits that are missing or differ in shape, or an
      unknown kind or form.

  Source: Touvron et al., "Training data-efficient image transformers & distillation through
  attention", ICML 2021. The objective is (1 - a) CE(class token, labels) + a times this, with a =
  0.5, and T = 3, a = 0.1 for "soft" in the paper. The code divides "soft" by the number of
  elements, the paper by the batch size. Published models learn by "hard".

  >>> z = jnp.array([[1.0, 0.0]])
  >>> student = Output(features={"logits_dist": z})
  >>> float(distillation_token(student, Output(logits=z), kind="soft").total)
  0.0
  """
  if kind not in _KINDS:
    raise unknown_name("kind", kind, _KINDS)
  if form not in _FORMS:
    raise unknown_name("form", form, _FORMS)
  ours = stage_arrays(student, stage, role="student", what="distillation_token")
  theirs = logits_of(teacher, what="distillation_token", role="teacher")
  if kind == "hard":
    return Terms(logit=hard_target_cross_entropy(ours, theirs, where=where))
  soft = soft_target_kl(ours, theirs, temperature=temperature, where=where)
  return Terms(logit=soft / theirs.shape[-1] if form == "code" else soft)
