"""KD-SVD: relations between the singular vectors of adjacent stages."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses._checks import Stages, check_maps, stage_arrays, stage_label, stage_pairs
from jaxkd.losses._counting import counted_examples, keep
from jaxkd.losses._numerics import l2_norm, power_of_two, widen
from jaxkd.losses._singular import right_singular_vectors
from jaxkd.losses._units import unit_vectors
from jaxkd.losses.fitnets import hint_mse
from jaxkd.types import Output, Terms

Layout = Literal["channels", "columns"]

_LAYOUTS: tuple[str, ...] = get_args(Layout)

# The student's vectors that a teacher's may be matched with, besides as many as the teacher has.
_MORE = 3


def aligned_singular_vectors(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  count: int = 1,
  layout: Layout = "channels",
  directions: ArrayLike | None = None,
  where: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Right singular vectors of two maps, the student's matched with the teacher's.

  Each of the teacher's first `count` vectors is matched with that of the student's first count + 3
  whose cosine with it has the largest magnitude, turned to a positive cosine. Both are multiplied
  by the teacher's singular value, divided by the norm of all `count` of them.

  Args:
    student: map (B, H, W, C).
    teacher: map (B, H', W', C), constant. The size may differ.
    count: the teacher's vectors, at most.
    layout: the matrix of an example. "channels": (H W, C), so that vectors have C numbers.
      "columns": (H C, W), so that vectors have W numbers; W must be equal then, not C.
    directions: (B, C, count): each teacher's vector is turned to a positive inner product with its
      direction. None: y'|y| is positive, where y = x v are the positions' projections, that is, it
      is turned to where most positions are.
    where: mask (B,) of the examples that count; others may hold any values, and get zeros. None:
      all count. With more axes, an example counts if any position does.

  Returns:
    The student's and the teacher's vectors, (B, C, n), n <= count. Equal singular values take a
    finite gradient: the part that mixes their vectors is left out.

  Raises:
    ConfigError: if one is not a map, batch sizes or the vectors' lengths differ, count is not
      positive, layout is unknown, or `where` does not fit.

  Source: as `singular_value_distillation`. The signs of the teacher's vectors are those of LAPACK
  in published code, which another library or another rounding turns, and the loss depends on them;
  None is after Bro et al., "Resolving the sign ambiguity in the singular value decomposition",
  J. Chemometrics 2008.

  >>> s, t = aligned_singular_vectors(-jnp.ones((1, 2, 2, 4)), jnp.ones((1, 2, 2, 4)))
  >>> s[0, :, 0].round(4), t[0, :, 0].round(4)
  (Array([0.5, 0.5, 0.5, 0.5], dtype=float32), Array([0.5, 0.5, 0.5, 0.5], dtype=float32))
  """
  what = "aligned_singular_vectors"
  if layout not in _LAYOUTS:
    raise unknown_name("layout", layout, _LAYOUTS)
  if count < 1:
    raise ConfigError(f"count is {count}: expected 1 or more")
  student, teacher = widen(student, lax.stop_gradient(teacher), what=what)
  check_maps(what, student, teacher)
  axis = 3 if layout == "channels" else 2
  if student.shape[axis] != teacher.shape[axis]:
    raise ConfigError(
      f"{what}: student {student.shape} and teacher {teacher.shape} differ in {layout}, which are "
      f"compared; an adapter (jaxkd.adapters) brings one to the other"
    )
  counted = counted_examples(what, where, student)
  ours, theirs = (_matrices(x, layout) for x in keep(counted, student, teacher))
  target = right_singular_vectors(theirs, count)
  projected = jnp.matmul(theirs, target, precision=lax.Precision.HIGHEST)
  values = l2_norm(projected, 1)
  if directions is None:
    side = jnp.sum(projected * jnp.abs(projected), axis=1, keepdims=True)
  else:
    side = jnp.sum(target * jnp.asarray(directions, target.dtype), axis=1, keepdims=True)
  target = lax.stop_gradient(jnp.where(side < 0, -target, target))
  weights = lax.stop_gradient(unit_vectors(values, 1))[:, None, :]
  found = right_singular_vectors(ours, count + _MORE)
  cosines = jnp.einsum(
    "bci,bcj->bij", lax.stop_gradient(found), target, precision=lax.Precision.HIGHEST
  )
  nearest = jnp.argmax(jnp.abs(cosines), axis=1)[:, None, :]
  sign = jnp.sign(jnp.take_along_axis(cosines, nearest, axis=1))
  return jnp.take_along_axis(found, nearest, axis=2) * sign * weights, target * weights


def singular_value_distillation(
  student: Output,
  teacher: Output,
  *,
  stages: Stages = ("stage1", "stage2", "stage3"),
  stage_weights: Sequence[ArrayLike] | None = None,
  count: int = 1,
  layout: Layout = "channels",
  directions: Sequence[ArrayLike] | None = None,
  where: ArrayLike | None = None,
) -> Terms:
  """KD-SVD: squared differences of the relations between adjacent stages' singular vectors.

  The sum over pairs of adjacent stages of mean over B of sum_ijk (R_ijk - R'_ijk)^2, where R_ijk =
  exp(-(v_ik - u_jk)^2 / 8), v and u are the `aligned_singular_vectors` of the deeper and of the
  shallower stage, and R' is the teacher's.

  Args:
    student: Output with maps at `stages`, each of the teacher's channels.
    teacher: Output likewise, constant. Sizes may differ.
    stages: at least two names, shallow to deep, or (student's, teacher's) pairs of names.
    stage_weights: one weight per pair of adjacent stages; None weights all by 1.
    count: vectors of a stage; see `aligned_singular_vectors`.
    layout: "channels", or "columns" of mdistiller; see `aligned_singular_vectors`.
    directions: one (B, C, count) per stage, to which the teacher's vectors are turned; None turns
      them to where most positions are.
    where: mask (B,) of the examples that count.

  Returns:
    Terms(feature=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, less than two stages, an unknown stage or option,
      or shapes that do not fit; it names the stage and both shapes.

  Source: Lee et al., "Self-supervised Knowledge Distillation Using Singular Value Decomposition",
  ECCV 2018, as RepDistiller's KDSVD, of all stages with count 1. mdistiller reshapes maps (C, H, W)
  to matrices (C H, W), which is `layout="columns"`. Both replace gradients that are NaN by zeros.

  >>> maps = Output(features={"a": jnp.ones((2, 2, 2, 3)), "b": jnp.ones((2, 2, 2, 3))})
  >>> float(singular_value_distillation(maps, maps, stages=["a", "b"]).total)
  0.0
  """
  pairs = stage_pairs(stages)
  for name, given, expected in (
    ("stage_weights", stage_weights, len(pairs) - 1),
    ("directions", directions, len(pairs)),
  ):
    if given is not None and len(given) != expected:
      raise ConfigError(f"{name} are {len(given)}: expected {expected} for {len(pairs)} stages")
  if len(pairs) < 2:
    raise ConfigError(f"stages is {stages!r}: two adjacent ones are compared, name at least two")
  vectors = []
  for i, pair in enumerate(pairs):
    what = "singular_value_distillation"
    s = stage_arrays(student, pair[0], role="student", what=what)
    t = stage_arrays(teacher, pair[1], role="teacher", what=what)
    direction = None if directions is None else directions[i]
    try:
      aligned = aligned_singular_vectors(
        s, t, count=count, layout=layout, directions=direction, where=where
      )
    except ConfigError as error:
      raise ConfigError(f"{stage_label(pair)}: {error}") from error
    vectors.append(aligned)
  total = jnp.float32(0)
  for i, (shallow, deep) in enumerate(itertools.pairwise(vectors)):
    ours, theirs = (_relations(v, u) for v, u in zip(deep, shallow, strict=True))
    value = hint_mse(ours, theirs, where=where) * (ours.size // max(ours.shape[0], 1))
    total = total + (value if stage_weights is None else stage_weights[i] * value)
  return Terms(feature=total)


def _matrices(x: jax.Array, layout: Layout) -> jax.Array:
  """Reshape maps to matrices (B, H W, C) or (B, H C, W), with largest magnitudes from 1 to 2."""
  x = x / power_of_two(jnp.max(jnp.abs(x), axis=(1, 2, 3), keepdims=True, initial=0.0))
  x = x if layout == "channels" else jnp.swapaxes(x, 2, 3)
  return x.reshape(x.shape[0], -1, x.shape[3])


def _relations(v: jax.Array, u: jax.Array) -> jax.Array:
  """Return the relations (B, C, C', n) of the entries of vectors (B, C, m) and (B, C', m)."""
  n = min(v.shape[2], u.shape[2])
  return jnp.exp(-jnp.square(v[:, :, None, :n] - u[:, None, :, :n]) / 8)
