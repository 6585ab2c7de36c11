"""Class attention transfer (CAT-KD): where each class is seen in the image."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses._checks import Stages, check_maps, over_stages
from jaxkd.losses._counting import counted_examples, keep, mean
from jaxkd.losses._numerics import l2_norm, widen
from jaxkd.losses._resize import adaptive_average_pool
from jaxkd.types import Output, Terms

Transfer = Literal["all", "top", "lowest", "top_code", "lowest_code"]

_TRANSFERS: tuple[str, ...] = get_args(Transfer)
# Lower bound of the norm of a class's map.
_EPS = 1e-12
# The published code's largest index of a class.
_LAST = 99


def class_activation_mse(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  resolution: int = 2,
  normalize: bool = True,
  binarize: bool = False,
  transfer: Transfer = "all",
  count: int = 0,
  steep_zeros: bool = False,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Mean squared difference of pooled class activation maps.

  mean_{b,k,r} (N(P(s))_k - N(P(t))_k)^2; P average-pools to r x r, N divides the map of each class
  by max(L2 norm, 1e-12).

  Args:
    student: class activation maps (B, H, W, K), one for each class: the classifier without its
      bias, applied to every position.
    teacher: (B, H', W', K), constant.
    resolution: rows and columns r of the pooled maps.
    normalize: divide each map by its norm; without, the maps are compared as they are.
    binarize: the teacher's maps become 1 where they exceed the mean of their magnitude, else 0,
      before they are pooled.
    transfer: the classes that are compared: "all"; the `count` classes of the "top" or the "lowest"
      logits of the teacher (means of its maps) in each example, of equal ones the first. "top_code"
      and "lowest_code" are the published code's: logits above the `count`-th largest, so count - 1
      classes; those of at most the one of index 99 - count in falling order, so count + 1 of 100.
      With equal logits, whose number is no multiple of the number of examples, it compares all.
    count: number of classes, for a part of them.
    steep_zeros: an all-zero map of the student gets the code's gradient of a division by 1e-12;
      else it has none.
    where: mask (B,) of the examples that count; the others may hold any values. None: all count.
      With more axes, an example counts if any position does.

  Returns:
    The loss, a scalar, float32 or wider; 0 at equality, and if nothing counts. With `normalize` the
    scale of a class's map does not matter.

  Raises:
    ConfigError: if either is not (B, H, W, K), batch sizes or classes differ, `where` does not fit,
      or resolution, transfer or count is out of range.

  Source: Guo et al., "Class Attention Transfer Based Knowledge Distillation", CVPR 2023, eq. 3, as
  CAT_KD of CAT-KD.

  >>> x = jnp.eye(4).reshape(1, 2, 2, 4)
  >>> class_activation_mse(x, 1 - x).round(4)
  Array(0.5, dtype=float32)
  """
  _check_options(resolution, transfer)
  student, teacher = widen(student, lax.stop_gradient(teacher), what="class_activation_mse")
  check_maps("class_activation_mse", student, teacher)
  classes = student.shape[3]
  if classes != teacher.shape[3]:
    raise ConfigError(
      f"class_activation_mse: student {student.shape} and teacher {teacher.shape} differ in the "
      "number of classes"
    )
  counted = counted_examples("class_activation_mse", where, student)
  student, teacher = keep(counted, student, teacher)
  chosen = _chosen(jnp.mean(teacher, axis=(1, 2)), transfer, count, counted)
  if binarize:
    threshold = jnp.mean(jnp.abs(teacher), axis=(1, 2), keepdims=True)
    teacher = (teacher > threshold).astype(student.dtype)
  student, teacher = (adaptive_average_pool(x, resolution, resolution) for x in (student, teacher))
  if normalize:
    student, teacher = (_unit(x, steep_zeros) for x in (student, teacher))
  squares = jnp.square(student - teacher)
  if chosen is None:
    return mean(squares, counted)
  (squares,) = keep(counted, jnp.mean(squares, axis=(1, 2)) * chosen)
  each = mean(jnp.sum(chosen, axis=1), counted)
  return mean(jnp.sum(squares, axis=1), counted) / jnp.maximum(each, 1 / classes)


def class_attention(
  student: Output,
  teacher: Output,
  *,
  stages: Stages = ("class_maps",),
  stage_weights: Sequence[ArrayLike] | None = None,
  resolution: int = 2,
  normalize: bool = True,
  binarize: bool = False,
  transfer: Transfer = "all",
  count: int = 0,
  steep_zeros: bool = False,
  where: ArrayLike | None = None,
) -> Terms:
  """Class attention transfer (CAT-KD): the sum over stages of `class_activation_mse`.

  Args:
    student: Output with class activation maps (B, H, W, K) among its features.
    teacher: Output likewise, constant. Sizes may differ.
    stages: names, or (student's, teacher's) pairs of names.
    stage_weights: one weight per stage; None weights all by 1.
    resolution: see `class_activation_mse`.
    normalize: see `class_activation_mse`.
    binarize: see `class_activation_mse`.
    transfer: see `class_activation_mse`.
    count: see `class_activation_mse`.
    steep_zeros: see `class_activation_mse`.
    where: mask (B,) of the examples that count; see `class_activation_mse`.

  Returns:
    Terms(feature=...), float32 or wider. Weights: 400 by default, 0.5 to 600 for the published
    pairs; 50 without labels, 300 for a part of the classes or binarised maps.

  Raises:
    ConfigError: for arrays in place of Outputs, an unknown stage or option, or shapes that do not
      fit; it names the stage and both shapes.

  Source: Guo et al., "Class Attention Transfer Based Knowledge Distillation", CVPR 2023, as CAT-KD.

  >>> maps = Output(features={"class_maps": jnp.ones((2, 4, 4, 3))})
  >>> float(class_attention(maps, maps).total)
  0.0
  """
  kernel = functools.partial(
    class_activation_mse,
    resolution=resolution,
    normalize=normalize,
    binarize=binarize,
    transfer=transfer,
    count=count,
    steep_zeros=steep_zeros,
    where=where,
  )
  value = over_stages(
    kernel, student, teacher, stages, weights=stage_weights, what="class_attention"
  )
  return Terms(feature=value)


def _check_options(resolution: int, transfer: str) -> None:
  if transfer not in _TRANSFERS:
    raise unknown_name("transfer", transfer, _TRANSFERS)
  if resolution < 1:
    raise ConfigError(f"resolution is {resolution}: it must be an integer greater than 0")


def _chosen(
  logits: jax.Array, transfer: str, count: int, counted: jax.Array | None
) -> jax.Array | None:
  """Return 1 for the classes that are compared, (B, K); None for all."""
  if transfer == "all":
    return None
  batch, classes = logits.shape
  index = _LAST - count if transfer == "lowest_code" else count - 1
  if not 0 <= index < classes:
    raise ConfigError(f"count is {count}: transfer {transfer!r} of {classes} classes has no such")
  falling = -jnp.sort(-logits, axis=1)
  if transfer in ("top", "lowest"):
    order = -logits if transfer == "top" else logits
    rank = jnp.argsort(jnp.argsort(order, axis=1, stable=True), axis=1)
    return (rank < count).astype(logits.dtype)
  bound = falling[:, index : index + 1]
  chosen = logits > bound if transfer == "top_code" else logits <= bound
  examples = batch if counted is None else jnp.sum(counted)
  kept = jnp.sum(keep(counted, chosen)[0])
  chosen = jnp.where(kept % jnp.maximum(examples, 1) == 0, chosen, True)
  return chosen.astype(logits.dtype)


def _unit(x: jax.Array, steep_zeros: bool) -> jax.Array:
  """Return the map of each class divided by its norm over space."""
  norm = l2_norm(x, (1, 2), keepdims=True)
  units = x / jnp.maximum(norm, _EPS)
  return units if steep_zeros else jnp.where(norm > 0, units, 0.0)
