"""Probabilistic knowledge transfer (PKT): each example's distribution over the batch."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.losses._checks import Stages, check_positive, check_samples, over_stages
from jaxkd.losses._counting import counted_examples, counted_tokens, keep
from jaxkd.losses._numerics import l2_norm, power_of_two, relative_entropy, widen
from jaxkd.losses._rkd_distances import AxisName
from jaxkd.types import Output, Terms


def cosine_similarity_kl(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  eps: float = 1e-7,
  axis_name: AxisName | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Divergence of each example's distribution over the batch, by cosine similarity.

  sum_ij P'_ij log((P'_ij + eps) / (P_ij + eps)) / B^2, where P_ij = K_ij / sum_k K_ik,
  K_ij = (1 + <u_i, u_j>) / 2, u = x / (|x| + eps), and P' is the teacher's.

  Args:
    student: (B, ...), flattened to one vector per example.
    teacher: (B, ...), constant. Its vectors may have another length.
    eps: the small number in the division and in the logarithm.
    axis_name: mapped axis (or axes) over which the batch is first gathered; see
      `probabilistic_knowledge_transfer`.
    where: mask (B,) of the examples that count; others may hold any values. None: all count. With
      more axes, (B, T), an example counts if any position does; of features (B, T, D), the tokens
      that do not count are left out.

  Returns:
    The loss, a scalar, float32 or wider; 0 where the similarities agree. It is invariant to
    rotation, and to scale where norms are far above eps. A zero vector is equally similar to all
    examples and takes no gradient.

  Raises:
    ConfigError: if the batch sizes differ, an array has no second axis, `where` does not fit, or
      eps is not positive.

  Source: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer",
  ECCV 2018, eq. 4, 6 and 7, as the authors' probabilistic_kt, RepDistiller, mdistiller and
  torchdistill; the Zoo has eps 1e-6. The paper leaves i = j out of a distribution, and sums over
  pairs; all these implementations include it, and take the mean over B^2 pairs. A zero vector of
  the student has the gradient NaN there.

  >>> x = jnp.array([[3.0, 4.0], [-4.0, 3.0]])
  >>> cosine_similarity_kl(x, jnp.ones((2, 5))).round(4)
  Array(0.0294, dtype=float32)
  """
  check_positive("eps", eps)
  student, teacher = widen(student, lax.stop_gradient(teacher), what="cosine_similarity_kl")
  check_samples("cosine_similarity_kl", student, teacher)
  own = counted_examples("cosine_similarity_kl", where, student)
  student, teacher = keep(own, student, teacher)
  student, teacher = (
    keep(counted_tokens("cosine_similarity_kl", where, x), x)[0] for x in (student, teacher)
  )
  student, teacher = (_probabilities(x, own, eps, axis_name) for x in (student, teacher))
  log_p, log_target = jnp.log(student + eps), jnp.log(teacher + eps)
  # sum_j q log(q / p) with q = P' + eps and p = P + eps, whose sums over j are equal, in a form
  # that does not cancel; less the eps in front of the logarithm.
  each = relative_entropy(log_p, log_target) - eps * jnp.sum(log_target - log_p, axis=1)
  (each,) = keep(own, each)
  total = jnp.sum(each)
  count = jnp.asarray(student.shape[1] if own is None else jnp.sum(own), total.dtype)
  if axis_name is not None:
    total = lax.psum(total, axis_name)
    count = count if own is None else lax.psum(count, axis_name)
  return total / jnp.square(jnp.maximum(count, 1))


def probabilistic_knowledge_transfer(
  student: Output,
  teacher: Output,
  *,
  stages: Stages = ("pooled",),
  stage_weights: Sequence[ArrayLike] | None = None,
  eps: float = 1e-7,
  axis_name: AxisName | None = None,
  where: ArrayLike | None = None,
) -> Terms:
  """Probabilistic knowledge transfer (PKT): the sum over stages of `cosine_similarity_kl`.

  Args:
    student: Output with features at `stages`, (B, D) or (B, H, W, C), flattened per example.
    teacher: Output likewise, constant. Sizes and channels may differ.
    stages: names, or (student's, teacher's) pairs of names.
    stage_weights: one weight per stage; None weights all by 1.
    eps: the small number in divisions and logarithms; the authors' is 1e-7, the Zoo's 1e-6.
    axis_name: mapped axis (or axes) of `pmap`, `shard_map(check_vma=False)` or `vmap`. The examples
      compared are then those of the global batch. Every device gets the loss of the global batch,
      and `lax.pmean` of the gradients is its gradient. None: those of each device alone.
    where: mask (B,) of the examples that count; see `cosine_similarity_kl`.

  Returns:
    Terms(feature=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, an unknown stage, or shapes that do not fit; it
      names the stage and both shapes.

  Source: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer",
  ECCV 2018. RepDistiller compares the pooled features, with weight 3e4.

  >>> features = Output(features={"pooled": jnp.eye(3)})
  >>> float(probabilistic_knowledge_transfer(features, features).total)
  0.0
  """
  kernel = functools.partial(cosine_similarity_kl, eps=eps, axis_name=axis_name, where=where)
  total = over_stages(
    kernel,
    student,
    teacher,
    stages,
    weights=stage_weights,
    what="probabilistic_knowledge_transfer",
  )
  return Terms(feature=total)


def _probabilities(
  x: jax.Array, own: jax.Array | None, eps: float, axis_name: AxisName | None
) -> jax.Array:
  """Return the distributions (A, B) of this device's examples (A, ...) over those of all."""
  x = x.reshape(x.shape[0], -1)
  scale = power_of_two(jnp.max(jnp.abs(x), axis=1, keepdims=True, initial=0.0))
  x = x / scale
  norm = l2_norm(x, 1, keepdims=True)
  # Without the `where`, a zero vector would get the gradient of a division by eps.
  x = x * jnp.where(norm > 0, 1.0 / (norm + eps / scale), 0.0)
  counted = own
  if axis_name is None:
    others = x
  else:
    # No stop_gradient: the student's gradient flows through the gathered examples, too.
    others = lax.all_gather(x, axis_name, tiled=True)
    counted = None if own is None else lax.all_gather(own, axis_name, tiled=True)
  # HIGHEST: GPUs and TPUs would otherwise round the operands.
  similarities = (jnp.matmul(x, others.T, precision=lax.Precision.HIGHEST) + 1.0) / 2.0
  if counted is not None:
    similarities = similarities * counted[None, :]
  total = jnp.sum(similarities, axis=1, keepdims=True)
  return similarities / jnp.where(total > 0, total, 1.0)
