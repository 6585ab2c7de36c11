"""Gradient-based attention transfer: gradients of the loss at the images or at a stage."""

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
  """Euclidean distance of gradients: mean over B of |J_s - J_t|_2, the norm over all other axes.

  Args:
    student: gradients (B, H, W, C) or (B, D).
    teacher: gradients, constant. The larger of two maps is average-pooled to the other's size
      (`match_sizes`), after `reduce`.
    normalize: first divide every example's gradient by its L2 norm, so that a confident network,
      whose gradients are small, is comparable with one that is not.
    reduce: "none" compares the whole gradients; "abs_mean", "abs_sum" and "abs_max" reduce |J| over
      channels to one map, as activation-based attention does, so that channels may differ.
    eps: with `normalize`, a gradient of at most this norm counts as 0, and takes no gradient.
    where: mask (B,), nonzero where an example counts; the others may hold any values. None: all
      count. With more axes, (B, T), an example counts if any position does.

  Returns:
    The loss, a scalar, float32 or wider; 0 if nothing counts. A norm has a kink where both agree;
    its gradient is 0 there. Gradients that agree up to rounding, 16 machine epsilons of their
    norm, count as equal.

  Raises:
    ConfigError: if the shapes cannot be compared, `where` does not fit them, `reduce` is
      unknown or is not "none" for (B, D), or eps is not a positive number.

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
    where: mask (B,) of the examples that count; see `gradient_l2`.

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
  """Gradient-based attention transfer: match the gradients of the losses of both networks.

  The sum over stages of `gradient_l2` (norm="l2") or `gradient_mse` (norm="mse"). The gradients
  are those of the sum of the examples' cross-entropies, not of their mean, so that they do not
  depend on the batch size. Training takes second derivatives: gradients of the student's gradients.

  Args:
    student: Output with `gradients` at `stages`, as
      `jaxkd.methods._gradients.learn_with_gradients` gives them.
    teacher: Output likewise, constant.
    stages: "images", names of stages, or (student's, teacher's) pairs of names.
    stage_weights: one weight per stage; None weights all by 1.
    norm: "l2" as the paper, mean over B of |J_s - J_t|_2; or "mse".
    normalize: divide every example's gradient by its L2 norm first.
    reduce: over channels: "none", or "abs_mean", "abs_sum", "abs_max" of |gradient|, with which
      stages of different channels are comparable.
    eps: with `normalize`, a gradient of at most this norm counts as 0.
    where: mask (B,) of the examples that count; see `gradient_l2`.

  Returns:
    Terms(feature=...), float32 or wider. The paper's factor beta / 2 is left to the caller.

  Raises:
    ConfigError: for arrays in place of Outputs, an unknown stage or option, or shapes that do not
      fit; it names the stage and both shapes.

  Source: Zagoruyko & Komodakis, "Paying More Attention to Attention", ICLR 2017, section 3.2;
  the defaults are the paper's formula, at the input. There is no published code.
  `normalize`, `reduce`, norm="mse" and other stages than "images" are additions.

  >>> output = Output(gradients={"images": jnp.ones((2, 4, 4, 3))})
  >>> float(gradient_attention_transfer(output, output).total)
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
  """Symmetry of gradients: match the gradient at an image and that at its mirror image.

  Mean over B of |g(x) - flip(g(flip(x)))|_2 with g = dL/dx and a horizontal flip. It needs no
  teacher.

  Args:
    student: Output with `gradients` at "images" and "flipped_images", (B, H, W, C), the latter
      computed at the mirrored images and mirrored back, as
      `jaxkd.methods.gradients.learn_with_gradients` gives them. Both take a gradient.
    normalize: divide every example's gradients by their L2 norms first.
    eps: with `normalize`, a gradient of at most this norm counts as 0.
    where: mask (B,) of the examples that count; see `gradient_l2`.

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
  original, mirrored = (
    stage_arrays(student, name, role="student", arrays="gradients", what="gradient_symmetry")
    for name in ("images", "flipped_images")
  )
  if original.shape != mirrored.shape:
    shapes = f"images {original.shape} and flipped_images {mirrored.shape}"
    raise ConfigError(f"gradients at {shapes} differ in shape")
  sides = _comparable("gradient_symmetry", original, mirrored, where, normalize, "none", eps)
  return Terms(feature=_mean_distance(*sides))


def _mean_distance(a: jax.Array, b: jax.Array, counted: jax.Array | None) -> jax.Array:
  """Mean over what counts of the distance of each example's gradients."""
  # As rows: reductions over the three channels of images use vector registers badly.
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
  """Return both sides reduced, resized and normalised, in this order, and the mask."""
  check_positive("eps", eps)
  if reduce not in _REDUCE:
    raise unknown_name("reduce", reduce, _REDUCE)
  student, teacher = widen(student, teacher, what=what)
  counted = counted_examples(what, where, student)
  if student.shape[:1] == teacher.shape[:1]:
    student, teacher = keep(counted, student, teacher)
  # Reduce before pooling, in which values of opposite sign cancel.
  s, t = match_sizes(_reduced(student, reduce), _reduced(teacher, reduce))
  if s.shape != t.shape:
    raise ConfigError(
      f"gradients: student {student.shape} and teacher {teacher.shape} cannot be compared: batch "
      'sizes must agree, and channels unless reduce is "abs_mean", "abs_sum" or "abs_max"'
    )
  return (_unit(s, eps), _unit(t, eps), counted) if normalize else (s, t, counted)


def _reduced(x: jax.Array, reduce: GradientReduce) -> jax.Array:
  """Reduce |x| over channels, or return x for "none"."""
  if reduce == "none":
    return x
  if x.ndim != 4:
    raise ConfigError(f"gradients: reduce={reduce!r} needs maps (B, H, W, C), not {x.shape}")
  return _REDUCTIONS[reduce](jnp.abs(x), axis=-1, keepdims=True)


def _unit(x: jax.Array, eps: float) -> jax.Array:
  """Divide every example by its norm; one of norm at most eps becomes 0, with gradient 0.

  `l2_normalize` does not fit here: below eps its slope is 1 / eps, and a classifier initialised to
  zero has gradients of exactly 0 that depend on its weights.
  """
  norm = l2_norm(x, tuple(range(1, x.ndim)), keepdims=True)
  large = norm > eps
  return jnp.where(large, x / jnp.where(large, norm, 1.0), 0.0)
