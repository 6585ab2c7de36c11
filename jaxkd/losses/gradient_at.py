"""Gradients: what is matched is how the loss would change with the image, or with a stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses._checks import Stages, check_positive, over_stages, stage_arrays
from jaxkd.losses._counting import counted_examples, keep, mean
from jaxkd.losses._numerics import as_rows, l2_distance, l2_norm, widen
from jaxkd.losses._resize import match_sizes
from jaxkd.types import Output, Terms

GradientReduce = Literal["none", "abs_mean", "abs_sum", "abs_max"]
GradientNorm = Literal["l2", "mse"]

_REDUCTIONS: dict[str, Callable[..., jax.Array]] = {
  "abs_mean": jnp.mean,
  "abs_sum": jnp.sum,
  "abs_max": jnp.max,
}
_REDUCE: tuple[str, ...] = get_args(GradientReduce)


def gradient_l2(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  normalize: bool = False,
  reduce: GradientReduce = "none",
  eps: float = 1e-12,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Distance of two gradients: mean over B of |J_s - J_t|_2, the norm over all other axes.

  Args:
    student: gradients (B, H, W, C) or (B, D).
    teacher: likewise, constant. Of two maps the larger is average-pooled to the other's size
      (`match_sizes`), after `reduce`.
    normalize: divide every example's gradient by its L2 norm first, so that a confident network,
      whose gradients are small, compares with one that is not.
    reduce: "none" compares the whole gradients; "abs_mean", "abs_sum" and "abs_max" reduce |J| over
      channels to one map, as activation-based attention does, so that channels may differ.
    eps: with `normalize`, a gradient of at most this norm counts as 0, and takes no gradient.
    where: (B,), nonzero for the examples that count; the others may hold anything. None counts
      all. Of more axes, (B, T), an example counts if any position does.

  Returns:
    The loss, a scalar, float32 or wider; 0 if nothing counts. Like any norm it has a kink where
    both agree; the gradient is 0 there. Gradients that agree up to rounding, 16 machine epsilons
    of their norm, count as equal.

  Raises:
    ConfigError: if the shapes cannot be compared, `where` does not belong to them, `reduce` is
      unknown or meets features (B, D), or eps is not a positive number.

  Source: Zagoruyko & Komodakis, "Paying More Attention to Attention", ICLR 2017, section 3.2,
  which has one example and the factor beta / 2. There is no published code.

  >>> gradient_l2(jnp.array([[3.0, 0.0], [0.0, 2.0]]), jnp.array([[0.0, 4.0], [0.0, 2.0]]))
  Array(2.5, dtype=float32)
  """
  student, teacher, counted = _comparable(
    "gradient_l2", student, lax.stop_gradient(teacher), where, normalize, reduce, eps
  )
  return _mean_distance(student, teacher, counted)


def gradient_mse(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  normalize: bool = False,
  reduce: GradientReduce = "none",
  eps: float = 1e-12,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Mean squared difference of two gradients: mean over every element of (J_s - J_t)^2.

  Args:
    student: gradients (B, H, W, C) or (B, D).
    teacher: likewise, constant; sizes as in `gradient_l2`.
    normalize: divide every example's gradient by its L2 norm first.
    reduce: over channels, as in `gradient_l2`.
    eps: with `normalize`, a gradient of at most this norm counts as 0.
    where: (B,), the examples that count; see `gradient_l2`.

  Returns:
    The loss, a scalar, float32 or wider; 0 if nothing counts.

  Raises:
    ConfigError: as `gradient_l2`.

  Source: a smooth variant of Zagoruyko & Komodakis, ICLR 2017, section 3.2, whose own distance is
  `gradient_l2`. Czarnecki et al., "Sobolev Training for Neural Networks", NIPS 2017, match
  gradients of outputs by their squares.

  >>> gradient_mse(jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 4.0]]))
  Array(12.5, dtype=float32)
  """
  student, teacher, counted = _comparable(
    "gradient_mse", student, lax.stop_gradient(teacher), where, normalize, reduce, eps
  )
  return mean(jnp.square(student - teacher), counted)


def gradient_attention_transfer(
  student: Output,
  teacher: Output,
  *,
  stages: Stages = ("images",),
  stage_weights: Sequence[ArrayLike] | None = None,
  norm: GradientNorm = "l2",
  normalize: bool = False,
  reduce: GradientReduce = "none",
  eps: float = 1e-12,
  where: ArrayLike | None = None,
) -> Terms:
  """Gradient-based attention transfer: the student's loss is sensitive where the teacher's is.

  The sum over stages of `gradient_l2` (norm="l2") or `gradient_mse` (norm="mse"). The gradients
  are of the sum of the examples' cross-entropies, not of their mean, so that their size does not
  depend on the batch's. The student is trained through them: gradients of gradients.

  Args:
    student: Output with `gradients` at `stages`, as
      `jaxkd.methods._gradients.learn_with_gradients` gives them.
    teacher: Output likewise, constant.
    stages: "images", names of stages, or (student's, teacher's) pairs of names.
    stage_weights: one weight per stage; None weighs them all 1.
    norm: "l2" as the paper, mean over B of |J_s - J_t|_2; or "mse".
    normalize: divide every example's gradient by its L2 norm first.
    reduce: over channels: "none", or "abs_mean", "abs_sum", "abs_max" of |gradient|, which compare
      stages of different channels.
    eps: with `normalize`, a gradient of at most this norm counts as 0.
    where: (B,), the examples that count; see `gradient_l2`.

  Returns:
    Terms(feature=...), float32 or wider. The paper's factor beta / 2 is left to the caller.

  Raises:
    ConfigError: for arrays in place of Outputs, naming the stage and the shapes, the stages there
      are, or the option's value.

  Source: Zagoruyko & Komodakis, "Paying More Attention to Attention", ICLR 2017, section 3.2;
  the defaults are the paper's formula, at the input. There is no published code.
  `normalize`, `reduce`, norm="mse" and other stages than "images" are additions.

  >>> seen = Output(gradients={"images": jnp.ones((2, 4, 4, 3))})
  >>> float(gradient_attention_transfer(seen, seen).total)
  0.0
  """
  kernels = {"l2": gradient_l2, "mse": gradient_mse}
  if norm not in kernels:
    raise unknown_name("norm", norm, kernels)

  def kernel(s: jax.Array, t: jax.Array) -> jax.Array:
    return kernels[norm](s, t, normalize=normalize, reduce=reduce, eps=eps, where=where)

  value = over_stages(
    kernel,
    student,
    teacher,
    stages,
    weights=stage_weights,
    arrays="gradients",
    what="gradient_attention_transfer",
  )
  return Terms(feature=value)


def gradient_symmetry(
  student: Output,
  *,
  normalize: bool = False,
  eps: float = 1e-12,
  where: ArrayLike | None = None,
) -> Terms:
  """Symmetry of the gradients: a mirrored image has the mirrored gradient. Needs no teacher.

  mean over B of |g(x) - flip(g(flip(x)))|_2 with g = dL/dx and flip horizontal.

  Args:
    student: Output whose `gradients` have "images" and "flipped_images", (B, H, W, C), the latter
      taken at the mirrored images and mirrored back, as
      `jaxkd.methods._gradients.learn_with_gradients` gives them. Both take a gradient.
    normalize: divide every example's gradients by their L2 norms first.
    eps: with `normalize`, a gradient of at most this norm counts as 0.
    where: (B,), the examples that count; see `gradient_l2`.

  Returns:
    Terms(feature=...), float32 or wider. The paper's factor beta / 2 is left to the caller.

  Raises:
    ConfigError: for an array in place of an Output, if one of the two is missing, or their shapes
      differ.

  Source: Zagoruyko & Komodakis, "Paying More Attention to Attention", ICLR 2017, section 3.2.
  There is no published code. The defaults are the paper's formula.

  >>> mirrored = {"images": jnp.ones((2, 4, 4, 3)), "flipped_images": jnp.ones((2, 4, 4, 3))}
  >>> float(gradient_symmetry(Output(gradients=mirrored)).total)
  0.0
  """
  there, back = (
    stage_arrays(student, name, who="student", arrays="gradients", what="gradient_symmetry")
    for name in ("images", "flipped_images")
  )
  if there.shape != back.shape:
    raise ConfigError(f"gradients at images {there.shape} and flipped_images {back.shape} differ")
  sides = _comparable("gradient_symmetry", there, back, where, normalize, "none", eps)
  return Terms(feature=_mean_distance(*sides))


def _mean_distance(a: jax.Array, b: jax.Array, counted: jax.Array | None) -> jax.Array:
  # Three channels at a time are too few for a processor's registers.
  return mean(l2_distance(as_rows(a), as_rows(b), (1, 2)), counted)


def _comparable(
  what: str,
  student: ArrayLike,
  teacher: ArrayLike,
  where: ArrayLike | None,
  normalize: bool,
  reduce: GradientReduce,
  eps: float,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """Both sides reduced, at one size, and normalised, in this order; and what counts."""
  check_positive("eps", eps)
  if reduce not in _REDUCE:
    raise unknown_name("reduce", reduce, _REDUCE)
  student, teacher = widen(student, teacher, what=what)
  counted = counted_examples(what, where, student)
  if student.shape[:1] == teacher.shape[:1]:
    student, teacher = keep(counted, student, teacher)
  # Signs would cancel in pooling, so |gradient| comes before it.
  s, t = match_sizes(_reduced(student, reduce), _reduced(teacher, reduce))
  if s.shape != t.shape:
    raise ConfigError(
      f"gradients: student {student.shape} and teacher {teacher.shape} cannot be compared: batch "
      'sizes must agree, and channels unless reduce is "abs_mean", "abs_sum" or "abs_max"'
    )
  return (_unit(s, eps), _unit(t, eps), counted) if normalize else (s, t, counted)


def _reduced(x: jax.Array, reduce: GradientReduce) -> jax.Array:
  if reduce == "none":
    return x
  if x.ndim != 4:
    raise ConfigError(f"gradients: reduce={reduce!r} needs maps (B, H, W, C), not {x.shape}")
  return _REDUCTIONS[reduce](jnp.abs(x), axis=-1, keepdims=True)


def _unit(x: jax.Array, eps: float) -> jax.Array:
  """Every example over its norm.

  Not `l2_normalize`: below eps its slope is 1 / eps, and a classifier that starts at zero has
  gradients of exactly 0 that move with its weights.
  """
  norm = l2_norm(x, tuple(range(1, x.ndim)), keepdims=True)
  seen = norm > eps
  return jnp.where(seen, x / jnp.where(seen, norm, 1.0), 0.0)
