"""CRD: noise-contrastive estimation between an embedding and a memory of the other network's."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError
from jaxkd.losses._checks import Stages, check_positive, over_stages
from jaxkd.losses._counting import counted_examples, keep
from jaxkd.losses._numerics import widen
from jaxkd.losses._rkd_distances import AxisName
from jaxkd.types import Output, Terms

# Added to the noise of a probability's denominator by the published code.
_EPS = 1e-7

_TEMPERATURE = 0.07


def contrastive_nce(
  student: ArrayLike,
  teacher: ArrayLike,
  examples: int,
  *,
  temperature: ArrayLike = _TEMPERATURE,
  log_normalizer: ArrayLike | None = None,
  eps: float = _EPS,
  axis_name: AxisName | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Noise-contrastive estimation of one positive among K negatives, for each example.

  -mean_b [log h(t_b0) + sum_k log(1 - h(t_bk))], h(t) = p / (p + K/N + eps) and 1 - h replaced by
  (K/N) / (p + K/N + eps), with p = exp(<s_b, t> / T) / Z. It is computed from logarithms: at
  T = 0.01 the exponential is not finite in float32.

  Args:
    student: anchors s (B, D), unit vectors as `jaxkd.adapters.ContrastMemory` gives them. They may
      be the teacher's embedding, whose contrasts are then the student's.
    teacher: contrasts t (B, 1 + K, D), constant: the positive first, then K negatives.
    examples: N, number of examples that negatives are drawn from.
    temperature: T > 0.
    log_normalizer: log Z; None computes it from this batch, without gradient: N times the mean of
      exp(<s, t> / T), as for the first batch of a training.
    eps: of the formula; the paper has none.
    axis_name: mapped axis (or axes) of `pmap`, `shard_map(check_vma=False)` or `vmap`: the mean is
      over the examples of all devices. Every device gets this loss, and `lax.pmean` of the
      gradients is its gradient.
    where: mask (B,) of the examples that count; others may hold any values. None: all count.

  Returns:
    The loss, a scalar, float32 or wider, not negative; 0 if nothing counts.

  Raises:
    ConfigError: if the shapes do not fit, or a number is not positive.

  Source: Tian et al., "Contrastive Representation Distillation", ICLR 2020, eq. 17 to 19, as
  ContrastLoss of RepDistiller and mdistiller, which agree.

  >>> s, t = jnp.eye(2), jnp.eye(2)[jnp.array([[0, 1], [1, 0]])]
  >>> contrastive_nce(s, t, examples=2, temperature=1.0).round(4)
  Array(0.9515, dtype=float32)
  """
  what = "contrastive_nce"
  anchors, contrasts, counted = _sides(what, student, teacher, where)
  check_positive("examples", examples)
  check_positive("temperature", temperature)
  scores = _scores(anchors, contrasts, temperature)
  if log_normalizer is None:
    found = _log_normalizer(lax.stop_gradient(scores), examples, axis_name, counted)
  else:
    found = jnp.asarray(log_normalizer, scores.dtype)
  noise = (contrasts.shape[1] - 1) / examples
  log_p = scores - lax.stop_gradient(found)
  bound = math.log(noise + eps)
  each = jax.nn.softplus(bound - log_p[:, 0])
  each += jnp.sum(jax.nn.softplus(log_p[:, 1:] - bound) + math.log1p(eps / noise), axis=1)
  (each,) = keep(counted, each)
  total = jnp.sum(each)
  count = jnp.asarray(len(each) if counted is None else jnp.sum(counted), total.dtype)
  if axis_name is not None:
    total, count = lax.psum((total, count), axis_name)
  return total / jnp.maximum(count, 1)


def contrastive_representation(
  student: Output,
  teacher: Output,
  *,
  examples: int,
  stages: Stages = (("embedding", "contrasts"),),
  stage_weights: Sequence[ArrayLike] | None = None,
  temperature: ArrayLike = _TEMPERATURE,
  log_normalizer: ArrayLike | None = None,
  axis_name: AxisName | None = None,
  where: ArrayLike | None = None,
) -> Terms:
  """CRD for one side as anchor: the sum over stages of `contrastive_nce`.

  The objective of the paper is that of both sides: this of (student, teacher) and this of
  (teacher, student), with the Outputs of `jaxkd.adapters.ContrastMemory`, whose embedding of the
  teacher learns, too.

  Args:
    student: Output of the anchor, with features "embedding" (B, D).
    teacher: Output of the other side, constant, with features "contrasts" (B, 1 + K, D): rows of
      its memory, the example's own first.
    examples: number of examples in the memory.
    stages: names, or (anchor's, other side's) pairs of names.
    stage_weights: one weight per stage; None weights all by 1.
    temperature: see `contrastive_nce`.
    log_normalizer: the anchor's; see `contrastive_nce`.
    axis_name: mapped axis (or axes) over which the examples of all devices count.
    where: mask (B,) of the examples that count; others may hold any values. None: all count.

  Returns:
    Terms(feature=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, an unknown stage, or shapes that do not fit; it
      names the stage and both shapes.

  Source: Tian et al., "Contrastive Representation Distillation", ICLR 2020, as RepDistiller and
  mdistiller: embeddings of 128 dimensions, K = 16384 negatives of other classes, T = 0.07, Z from
  the first batch. The paper's text fixes neither Z nor how the memory starts.

  >>> side = Output(features={"embedding": jnp.eye(2), "contrasts": jnp.ones((2, 3, 2))})
  >>> float(contrastive_representation(side, side, examples=10).total) > 0
  True
  """
  kernel = functools.partial(
    contrastive_nce,
    examples=examples,
    temperature=temperature,
    log_normalizer=log_normalizer,
    axis_name=axis_name,
    where=where,
  )
  total = over_stages(
    kernel, student, teacher, stages, weights=stage_weights, what="contrastive_representation"
  )
  return Terms(feature=total)


def log_normalizer_of(
  anchors: jax.Array,
  contrasts: jax.Array,
  *,
  examples: int,
  temperature: float,
  axis_name: AxisName | None,
  where: ArrayLike | None,
) -> jax.Array:
  """Return log Z from the batch of all devices, without gradient; -inf if nothing counts."""
  anchors, contrasts, counted = _sides("log_normalizer_of", anchors, contrasts, where)
  scores = lax.stop_gradient(_scores(anchors, contrasts, temperature))
  return _log_normalizer(scores, examples, axis_name, counted)


def _scores(anchors: jax.Array, contrasts: jax.Array, temperature: ArrayLike) -> jax.Array:
  # HIGHEST: GPUs and TPUs would otherwise round the operands.
  products = jnp.einsum("bd,bkd->bk", anchors, contrasts, precision=lax.Precision.HIGHEST)
  return products / temperature


def _log_normalizer(
  scores: jax.Array, examples: int, axis_name: AxisName | None, counted: jax.Array | None
) -> jax.Array:
  """Log of N times the mean of exp(scores) over the examples that count on all devices."""
  scores = scores if counted is None else jnp.where(counted[:, None], scores, -jnp.inf)
  count = jnp.asarray(len(scores) if counted is None else jnp.sum(counted), scores.dtype)
  largest = jnp.max(scores, initial=-jnp.inf)
  if axis_name is not None:
    largest, count = lax.pmax(largest, axis_name), lax.psum(count, axis_name)
  largest = jnp.where(jnp.isfinite(largest), largest, 0.0)
  total = jnp.sum(jnp.exp(scores - largest))
  if axis_name is not None:
    total = lax.psum(total, axis_name)
  number = jnp.maximum(count * scores.shape[1], 1)
  return jnp.log(total) + largest + math.log(examples) - jnp.log(number)


def _sides(
  what: str, anchors: ArrayLike, contrasts: ArrayLike, where: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  anchors, contrasts = widen(anchors, lax.stop_gradient(contrasts), what=what)
  shape = contrasts.shape
  fits = anchors.ndim == 2 and contrasts.ndim == 3 and shape[1] > 1
  if not fits or (shape[0], shape[2]) != anchors.shape:
    raise ConfigError(
      f"{what}: anchors {anchors.shape} and contrasts {shape} do not fit: expected (B, D) and "
      "(B, 1 + K, D) with K at least 1"
    )
  counted = counted_examples(what, where, anchors)
  anchors, contrasts = keep(counted, anchors, contrasts)
  return anchors, contrasts, counted
