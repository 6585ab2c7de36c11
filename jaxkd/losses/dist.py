"""DIST: correlations of predictions, within each example and within each class."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.losses._checks import check_positive, check_same_shape, logits_of
from jaxkd.losses._counting import counted_positions, keep, mean
from jaxkd.losses._numerics import beyond_rounding, l2_norm, log_probabilities, widen
from jaxkd.losses._rkd_distances import AxisName
from jaxkd.losses._standardization import standardized
from jaxkd.types import Output, Terms


def inter_class_correlation(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  temperature: float | jax.Array = 4.0,
  squared_temperature: bool = True,
  standardize: bool = False,
  eps: float = 1e-8,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Correlation distance of the probabilities of each example.

  T^2 * mean_b (1 - r_b), with r_b = <x, y> / (|x| |y| + eps), x and y the student's and the
  teacher's softmax(logits_b / T) minus its mean over the classes: Pearson's correlation.

  Args:
    student: logits (..., C), with any leading axes. A logit of -inf is an impossible class, of
      probability 0.
    teacher: logits of the same shape, constant: they take no gradient.
    temperature: T > 0, a number or a traced scalar.
    squared_temperature: multiply by T^2.
    standardize: both sides' logits first get mean 0 and standard deviation 1 over the classes; see
      `soft_target_kl`.
    eps: added to the product of the norms.
    where: mask (B,) or with all leading axes of the logits, nonzero where a position counts; the
      rest is padding and may hold any values. None: all count.

  Returns:
    The loss, a scalar between 0 and 2 T^2, float32 or wider; 0 if nothing counts. An example of
    equal probabilities has no correlation: its distance is 1, and takes no gradient.

  Raises:
    ConfigError: if the shapes differ, `where` does not fit them, or the temperature is a number
      that is not positive.

  Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, eq. 8, as
  the authors' DIST (hunto/image_classification_sota). torchdistill divides by
  max(|x|, eps) * max(|y|, eps). Equal probabilities have there a gradient of about 1e8.

  >>> inter_class_correlation(jnp.array([[9.0, 0.0]]), jnp.array([[0.0, 9.0]])).round(3)
  Array(32., dtype=float32)
  """
  what = "inter_class_correlation"
  student, teacher, counted = _probabilities(
    what, student, teacher, where, temperature=temperature, standardize=standardize
  )
  x, y = (_centred(p, jnp.mean(p, axis=-1, keepdims=True)) for p in (student, teacher))
  x_norm = beyond_rounding(l2_norm(x, -1), l2_norm(student, -1))
  y_norm = beyond_rounding(l2_norm(y, -1), l2_norm(teacher, -1))
  difference = _unit(x, x_norm[..., None]) - _unit(y, y_norm[..., None])
  apart = jnp.sum(jnp.square(difference), axis=-1)
  scale = temperature * temperature if squared_temperature else 1.0
  return scale * mean(_distance(apart, x_norm, y_norm, eps), counted)


def intra_class_correlation(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  temperature: float | jax.Array = 4.0,
  squared_temperature: bool = True,
  standardize: bool = False,
  eps: float = 1e-8,
  axis_name: AxisName | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Correlation distance of the probabilities of each class, over the examples of a batch.

  T^2 * mean_c (1 - r_c), r_c as in `inter_class_correlation`, of the columns of softmax(logits / T)
  in place of the rows.

  Args:
    student: logits (..., C); all leading axes are examples.
    teacher: logits of the same shape, constant.
    temperature: T > 0, a number or a traced scalar.
    squared_temperature: multiply by T^2.
    standardize: standardise both sides' logits first, each example over its classes.
    eps: added to the product of the norms.
    axis_name: mapped axis (or axes). The examples are then those of all devices: sums over them
      are completed by `lax.psum`. Every device gets the loss of the global batch, and `lax.pmean`
      of the gradients is its gradient.
    where: mask of what counts; see `inter_class_correlation`.

  Returns:
    The loss, a scalar, float32 or wider; 0 if nothing counts. A class of equal probabilities for
    all examples, as all classes in a batch of one, has the distance 1 and takes no gradient.

  Raises:
    ConfigError: as `inter_class_correlation`.

  Source: Huang et al., NeurIPS 2022, eq. 9, as `inter_class_correlation`. The authors' segmentation
  code has (B, C, H, W) with every position as an example, and no temperature (T = 1).

  >>> z = jnp.array([[9.0, 0.0], [0.0, 9.0]])
  >>> intra_class_correlation(z, -z).round(3)
  Array(32., dtype=float32)
  """
  what = "intra_class_correlation"
  student, teacher, counted = _probabilities(
    what, student, teacher, where, temperature=temperature, standardize=standardize
  )
  classes = student.shape[-1]
  rows = None if counted is None else counted.reshape(-1)
  number = jnp.float32(student.size // max(classes, 1)) if rows is None else jnp.sum(rows)
  number = _over_devices(number.astype(student.dtype), axis_name)

  def total(x: jax.Array) -> jax.Array:
    return _over_devices(jnp.sum(x, axis=0, keepdims=True), axis_name)

  pair = []
  for p in (student.reshape(-1, classes), teacher.reshape(-1, classes)):
    # Rows that do not count are 0 before and after.
    (centred,) = keep(rows, _centred(p, total(p) / jnp.maximum(number, 1)))
    norm = beyond_rounding(_root(total(centred * centred)), _root(total(p * p)))
    pair.append((centred, norm))
  (x, x_norm), (y, y_norm) = pair
  apart = total(jnp.square(_unit(x, x_norm) - _unit(y, y_norm)))
  scale = temperature * temperature if squared_temperature else 1.0
  distance = jnp.mean(_distance(apart, x_norm, y_norm, eps))
  return scale * jnp.where(number > 0, distance, 0.0)


def stronger_teacher(
  student: Output,
  teacher: Output,
  *,
  inter_weight: float | jax.Array = 1.0,
  intra_weight: float | jax.Array = 1.0,
  temperature: float | jax.Array = 4.0,
  squared_temperature: bool = True,
  standardize: bool = False,
  eps: float = 1e-8,
  axis_name: AxisName | None = None,
  where: ArrayLike | None = None,
) -> dict[str, Terms]:
  """DIST: correlations between classes and between examples, as two terms.

  beta * inter_class_correlation + gamma * intra_class_correlation. The teacher's probabilities are
  matched up to shift and scale, so that a much stronger teacher is no harder to match.

  Args:
    student: Output with logits (..., C).
    teacher: Output with logits (..., C), constant.
    inter_weight: beta, weight of the correlation within each example.
    intra_weight: gamma, weight of the correlation within each class.
    temperature: T > 0, of both.
    squared_temperature: multiply by T^2.
    standardize: standardise both sides' logits first.
    eps: added to the product of two norms.
    axis_name: mapped axis; see `intra_class_correlation`.
    where: mask of what counts; see `inter_class_correlation`.

  Returns:
    {"inter": Terms(logit=...), "intra": Terms(logit=...)}, weighted, float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, logits that are missing or differ in shape, or a
      temperature that is not positive.

  Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, as the
  authors' DIST (hunto/image_classification_sota): beta = gamma = 1, T = 4 on CIFAR-100 and 1 on
  ImageNet, the whole weighted by 2. DISTPlusLoss of torchdistill, which adds the correlation of
  classes in place of 1 minus it, is not this loss.

  >>> z = Output(logits=jnp.array([[9.0, 0.0], [0.0, 9.0]]))
  >>> {name: float(terms.logit.round(3)) for name, terms in stronger_teacher(z, z).items()}
  {'inter': 0.0, 'intra': 0.0}
  """
  what = "stronger_teacher"
  ours = logits_of(student, what=what, role="student")
  theirs = logits_of(teacher, what=what, role="teacher")
  # Widened once: the gradients of both terms are then added in float32.
  ours, theirs = widen(ours, theirs)
  inter = inter_class_correlation(
    ours,
    theirs,
    temperature=temperature,
    squared_temperature=squared_temperature,
    standardize=standardize,
    eps=eps,
    where=where,
  )
  if axis_name is not None:
    inter = _mean_over_devices(inter, jnp.asarray(ours), where, axis_name)
  intra = intra_class_correlation(
    ours,
    theirs,
    temperature=temperature,
    squared_temperature=squared_temperature,
    standardize=standardize,
    eps=eps,
    axis_name=axis_name,
    where=where,
  )
  return {"inter": Terms(logit=inter_weight * inter), "intra": Terms(logit=intra_weight * intra)}


def _probabilities(
  what: str,
  student: ArrayLike,
  teacher: ArrayLike,
  where: ArrayLike | None,
  *,
  temperature: float | jax.Array,
  standardize: bool,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """Return softmax(logits / T) of both sides, 0 where they do not count, and what counts."""
  check_positive("temperature", temperature)
  student, teacher = widen(student, lax.stop_gradient(teacher), what=what)
  check_same_shape(what, student, teacher, "both must score the same classes, (..., C)")
  counted = counted_positions(what, where, student)
  pair = keep(counted, student, teacher)
  if standardize:
    pair = tuple(standardized(z) for z in pair)
  found = keep(counted, *(jnp.exp(log_probabilities(z, temperature)) for z in pair))
  return found[0], found[1], counted


def _centred(p: jax.Array, mean_of_p: jax.Array) -> jax.Array:
  return p - mean_of_p


def _unit(x: jax.Array, norm: jax.Array) -> jax.Array:
  """Return x / norm; 0, without a gradient, where the norm is 0."""
  positive = norm > 0
  return jnp.where(positive, x / jnp.where(positive, norm, 1.0), 0.0)


def _distance(apart: jax.Array, x_norm: jax.Array, y_norm: jax.Array, eps: float) -> jax.Array:
  """Return 1 - <x, y> / (|x| |y| + eps), of |x / |x| - y / |y||^2.

  It does not cancel where both agree: 1 - cos is half of the squared distance of unit vectors.
  """
  product = x_norm * y_norm
  varies = product > 0
  close = (0.5 * apart * product + eps) / jnp.where(varies, product + eps, 1.0)
  return jnp.where(varies, close, 1.0)


def _root(squares: jax.Array) -> jax.Array:
  """Return the square root; 0 has the gradient 0."""
  positive = squares > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)


def _over_devices(x: jax.Array, axis_name: AxisName | None) -> jax.Array:
  return x if axis_name is None else lax.psum(x, axis_name)


def _mean_over_devices(
  value: jax.Array, logits: jax.Array, where: ArrayLike | None, axis_name: AxisName
) -> jax.Array:
  """Return the mean over what counts on all devices, of each device's mean."""
  counted = counted_positions("stronger_teacher", where, logits)
  if counted is None:
    return lax.pmean(value, axis_name)
  own = jnp.sum(counted).astype(value.dtype)
  total = lax.psum(own, axis_name)
  return lax.psum(own * value, axis_name) / jnp.maximum(total, 1)
