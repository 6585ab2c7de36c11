"""Rules for the position of the examples' axis after each operation.

A rule maps an equation and what is known of its inputs to the output axis along which the operation
treats all slices alike and independently, or to None if there is no such axis. An axis is followed
through the operations, never recognised by its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.extend import core
from jax.extend.core import primitives as p

from jaxkd.jaxprs import shape_of


class PerExample(NamedTuple):
  """A value whose slice i along `axis` depends on the inputs of example i alone.

  The function is the same for every i: an example gives the same slice at any place in the batch.
  """

  axis: int


class Constant(NamedTuple):
  """A value that depends on no input; along the axes `uniform` all its slices are equal."""

  uniform: frozenset[int] = frozenset()


Known = PerExample | Constant

# (equation, what is known of each of its inputs, at least one of them PerExample) -> axis
_Rule = Callable[[core.JaxprEqn, Sequence[Known]], int | None]


def _uniform(eqn: core.JaxprEqn, number: int, known: Known, axis: int) -> bool:
  """Check whether an input is a constant whose slices along an axis are all equal."""
  if not isinstance(known, Constant):
    return False
  shape = shape_of(eqn.invars[number])
  return not shape or shape[axis] == 1 or axis in known.uniform


def constant_output(eqn: core.JaxprEqn, inputs: Sequence[Known]) -> Constant:
  """Infer what is known of the output of an equation that has a rule and constant inputs."""
  if eqn.primitive is p.broadcast_in_dim_p:
    return _broadcast_constant(eqn, inputs)
  return _elementwise_constant(eqn, inputs) if eqn.primitive in _ELEMENTWISE else Constant()


def _broadcast_constant(eqn: core.JaxprEqn, inputs: Sequence[Any]) -> Constant:
  places = eqn.params["broadcast_dimensions"]
  varying = {place for axis, place in enumerate(places) if not _uniform(eqn, 0, inputs[0], axis)}
  return Constant(frozenset(range(len(eqn.params["shape"]))) - varying)


def _elementwise_constant(eqn: core.JaxprEqn, inputs: Sequence[Any]) -> Constant:
  axes = range(len(shape_of(eqn.outvars[0])))
  return Constant(
    frozenset(a for a in axes if all(_uniform(eqn, i, k, a) for i, k in enumerate(inputs)))
  )


def _together(eqn: core.JaxprEqn, inputs: Sequence[Known]) -> int | None:
  """Elementwise operations: all inputs must have the examples along the same axis."""
  axes = {known.axis for known in inputs if isinstance(known, PerExample)}
  axis = axes.pop()
  same = all(
    isinstance(known, PerExample) or _uniform(eqn, number, known, axis)
    for number, known in enumerate(inputs)
  )
  return axis if same and not axes else None


def _along(parameter: str) -> _Rule:
  """Operations along an axis that is a parameter: sorting, cumulative sums, concatenation."""

  def rule(eqn: core.JaxprEqn, inputs: Sequence[Known]) -> int | None:
    axis = _together(eqn, inputs)
    # top_k works along the last axis where it has no such parameter (jax before 0.10).
    last = len(shape_of(eqn.invars[0])) - 1
    return None if axis == eqn.params.get(parameter, last) else axis

  return rule


def _of_first(move: Callable[[core.JaxprEqn, int], int | None]) -> _Rule:
  """Operations of which only the first input may be per example."""

  def rule(eqn: core.JaxprEqn, inputs: Sequence[Known]) -> int | None:
    [first, *others] = inputs
    if not isinstance(first, PerExample) or any(isinstance(one, PerExample) for one in others):
      return None
    return move(eqn, first.axis)

  return rule


def _reduced(eqn: core.JaxprEqn, axis: int) -> int | None:
  axes = eqn.params["axes"]
  return None if axis in axes else axis - sum(one < axis for one in axes)


def _squeezed(eqn: core.JaxprEqn, axis: int) -> int | None:
  axes = eqn.params["dimensions"]
  return None if axis in axes else axis - sum(one < axis for one in axes)


def _reversed(eqn: core.JaxprEqn, axis: int) -> int | None:
  return None if axis in eqn.params["dimensions"] else axis


def _transposed(eqn: core.JaxprEqn, axis: int) -> int | None:
  return tuple(eqn.params["permutation"]).index(axis)


def _reread(eqn: core.JaxprEqn, axis: int) -> int | None:
  # A type of another width adds or removes an axis.
  same = shape_of(eqn.invars[0]) == shape_of(eqn.outvars[0])
  return axis if same else None


def _broadcast(eqn: core.JaxprEqn, axis: int) -> int | None:
  place = eqn.params["broadcast_dimensions"][axis]
  return place if eqn.params["shape"][place] == shape_of(eqn.invars[0])[axis] else None


def _reshaped(eqn: core.JaxprEqn, axis: int) -> int | None:
  if eqn.params["dimensions"] is not None:
    return None
  before, after = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
  # Elements keep their order: an axis is kept if the sizes in front of it have the same product.
  for place, size in enumerate(after):
    if size == before[axis] and math.prod(after[:place]) == math.prod(before[:axis]):
      return place
  return None


def _sliced(eqn: core.JaxprEqn, axis: int) -> int | None:
  start, stop = eqn.params["start_indices"][axis], eqn.params["limit_indices"][axis]
  stride = 1 if eqn.params["strides"] is None else eqn.params["strides"][axis]
  return axis if (start, stop, stride) == (0, shape_of(eqn.invars[0])[axis], 1) else None


def _padded(eqn: core.JaxprEqn, axis: int) -> int | None:
  return axis if tuple(eqn.params["padding_config"][axis]) == (0, 0, 0) else None


def _windowed(eqn: core.JaxprEqn, axis: int) -> int | None:
  each = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
  alone = all(eqn.params[name][axis] == 1 for name in each)
  return axis if alone and tuple(eqn.params["padding"][axis]) == (0, 0) else None


def _convolved(eqn: core.JaxprEqn, axis: int) -> int | None:
  numbers = eqn.params["dimension_numbers"]
  whole = axis == numbers.lhs_spec[0] and eqn.params["batch_group_count"] == 1
  return numbers.out_spec[0] if whole else None


def _multiplied(eqn: core.JaxprEqn, inputs: Sequence[Known]) -> int | None:
  contracted, batch = eqn.params["dimension_numbers"]
  positions = []
  for number, known in enumerate(inputs):
    if not isinstance(known, PerExample):
      continue
    if known.axis in contracted[number]:
      return None
    if known.axis in batch[number]:
      place = tuple(batch[number]).index(known.axis)
      other = inputs[1 - number]
      partner = batch[1 - number][place]
      if other != PerExample(partner) and not _uniform(eqn, 1 - number, other, partner):
        return None
      positions.append(place)
    else:
      free = [_free(eqn, side) for side in range(2)]
      place = len(batch[0]) + number * len(free[0]) + free[number].index(known.axis)
      positions.append(place)
  return positions[0] if len(set(positions)) == 1 else None


def _free(eqn: core.JaxprEqn, side: int) -> list[int]:
  """Return the axes of a factor that are neither contracted nor batch axes."""
  contracted, batch = eqn.params["dimension_numbers"]
  taken = {*contracted[side], *batch[side]}
  return [axis for axis in range(len(shape_of(eqn.invars[side]))) if axis not in taken]


def _gathered(eqn: core.JaxprEqn, inputs: Sequence[Known]) -> int | None:
  values, indices = inputs
  numbers = eqn.params["dimension_numbers"]
  out_rank = len(shape_of(eqn.outvars[0]))
  if not isinstance(values, PerExample):
    return None
  if isinstance(indices, PerExample):
    # Indices of each example into that example.
    pairs = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    if (values.axis, indices.axis) not in pairs:
      return None
    return [axis for axis in range(out_rank) if axis not in numbers.offset_dims][indices.axis]
  # The same indices into every example.
  gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
  size = shape_of(eqn.invars[0])[values.axis]
  chosen = values.axis in (*gone, *numbers.start_index_map)
  if chosen or eqn.params["slice_sizes"][values.axis] != size:
    return None
  kept = [axis for axis in range(len(shape_of(eqn.invars[0]))) if axis not in gone]
  return sorted(numbers.offset_dims)[kept.index(values.axis)]


_ELEMENTWISE = (
  *(p.abs_p, p.acos_p, p.acosh_p, p.add_jaxvals_p, p.add_p, p.and_p, p.asin_p, p.asinh_p),
  *(p.atan2_p, p.atan_p, p.atanh_p, p.cbrt_p, p.ceil_p, p.clamp_p, p.convert_element_type_p),
  *(p.copy_p, p.cos_p, p.cosh_p, p.digamma_p, p.div_p, p.eq_p, p.erf_inv_p, p.erf_p, p.erfc_p),
  *(p.exp2_p, p.exp_p, p.expm1_p, p.floor_p, p.ge_p, p.gt_p, p.integer_pow_p, p.is_finite_p),
  *(p.le_p, p.lgamma_p, p.log1p_p, p.log_p, p.logistic_p, p.lt_p, p.max_p, p.min_p, p.mul_p),
  *(p.ne_p, p.neg_p, p.nextafter_p, p.not_p, p.or_p, p.pow_p, p.reduce_precision_p),
  *(p.rem_p, p.round_p, p.rsqrt_p, p.select_n_p, p.shift_left_p, p.shift_right_arithmetic_p),
  *(p.shift_right_logical_p, p.sign_p, p.sin_p, p.sinh_p, p.sqrt_p, p.square_p, p.sub_p),
  *(p.stop_gradient_p, p.tan_p, p.tanh_p, p.xor_p),
  # jax.ad_checkpoint.checkpoint_name; not every version of jax exports it.
  *((p.name_p,) if hasattr(p, "name_p") else ()),
)

# Reductions that can be split by axes.
REDUCTIONS = (
  *(p.reduce_and_p, p.reduce_max_p, p.reduce_min_p, p.reduce_or_p),
  *(p.reduce_prod_p, p.reduce_sum_p, p.reduce_xor_p),
)

_CUMULATIVE = (p.cumlogsumexp_p, p.cummax_p, p.cummin_p, p.cumprod_p, p.cumsum_p)

RULES: dict[core.Primitive, _Rule] = {
  **dict.fromkeys(_ELEMENTWISE, _together),
  **dict.fromkeys(_CUMULATIVE, _along("axis")),
  p.sort_p: _along("dimension"),
  p.concatenate_p: _along("dimension"),
  p.top_k_p: _along("axis"),
  **dict.fromkeys((*REDUCTIONS, p.argmax_p, p.argmin_p), _of_first(_reduced)),
  **dict.fromkeys(
    (p.reduce_window_max_p, p.reduce_window_min_p, p.reduce_window_sum_p), _of_first(_windowed)
  ),
  p.squeeze_p: _of_first(_squeezed),
  p.rev_p: _of_first(_reversed),
  p.transpose_p: _of_first(_transposed),
  p.bitcast_convert_type_p: _of_first(_reread),
  p.broadcast_in_dim_p: _of_first(_broadcast),
  p.reshape_p: _of_first(_reshaped),
  p.slice_p: _of_first(_sliced),
  p.pad_p: _of_first(_padded),
  p.conv_general_dilated_p: _of_first(_convolved),
  p.dot_general_p: _multiplied,
  p.gather_p: _gathered,
}
