"""Which values of a traced function belong to one example each, whatever the other examples are.

Values are followed equation by equation. One that is computed from per-example values by an
operation that keeps the examples apart is per example, too. Only operations that have a rule
(`jaxkd.train.halves.axis_rules`) are trusted; whatever has none (gathering other devices'
examples, random numbers, loops) gives something unknown, which is always safe to say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jax.extend import core
from jax.extend.core import primitives as p

from jaxkd.train.halves.axis_rules import (
  REDUCTIONS,
  RULES,
  Constant,
  Known,
  PerExample,
  constant_output,
  shape_of,
)

# Equations that call a function once on their inputs.
_CALLS = (p.jit_p, p.custom_jvp_call_p, p.custom_vjp_call_p, p.remat_p, p.closed_call_p)


def known_outputs(eqn: core.JaxprEqn, inputs: Sequence[Known | None]) -> list[Known | None]:
  """What is known of an equation's outputs; None is nothing.

  Args:
    eqn: of a jaxpr.
    inputs: what is known of its inputs, in their order. Literals are `Constant()`.
  """
  known = [one for one in inputs if one is not None]
  nothing: list[Known | None] = [None] * len(eqn.outvars)
  if len(known) < len(inputs) or eqn.effects:
    return nothing
  if eqn.primitive in _CALLS:
    return _through(called(eqn), known)
  if eqn.primitive is p.iota_p:
    axes = range(len(eqn.params["shape"]))
    return [Constant(frozenset(axes) - {eqn.params["dimension"]})]
  rule = RULES.get(eqn.primitive)
  if rule is None:
    return nothing
  if all(isinstance(one, Constant) for one in known):
    return [constant_output(eqn, known)] * len(eqn.outvars)
  axis = rule(eqn, known)
  return nothing if axis is None else [PerExample(axis)] * len(eqn.outvars)


def called(eqn: core.JaxprEqn) -> core.ClosedJaxpr | None:
  """The function that an equation calls once on its inputs, if it is one that does."""
  if eqn.primitive not in _CALLS:
    return None
  function: Any = eqn.params.get("call_jaxpr", eqn.params.get("jaxpr"))
  closed = isinstance(function, core.ClosedJaxpr)
  return function if closed else core.ClosedJaxpr(function, ())


def operations(eqn: core.JaxprEqn) -> int:
  """About how many operations an equation takes."""
  inner = called(eqn)
  if inner is not None:
    return sum(operations(one) for one in inner.jaxpr.eqns)
  [out, *_] = (math.prod(shape_of(var)) for var in eqn.outvars)
  if eqn.primitive is p.dot_general_p:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return 2 * out * math.prod(shape_of(eqn.invars[0])[axis] for axis in contracted)
  if eqn.primitive is p.conv_general_dilated_p:
    kernel, out_channel = shape_of(eqn.invars[1]), eqn.params["dimension_numbers"].rhs_spec[0]
    return 2 * out * math.prod(kernel) // kernel[out_channel]
  return max([out, *(math.prod(shape_of(eqn.invars[i])) for i in range(len(eqn.invars)))])


def splittable_reduction(eqn: core.JaxprEqn, inputs: Sequence[Known | None]) -> int | None:
  """The examples' axis, if an equation reduces it together with others.

  The others can then be reduced first, example by example.
  """
  [first, *_] = inputs or [None]
  if eqn.primitive not in REDUCTIONS or not isinstance(first, PerExample):
    return None
  axes = eqn.params["axes"]
  return first.axis if first.axis in axes and len(axes) > 1 else None


def _through(function: core.ClosedJaxpr | None, inputs: Sequence[Known]) -> list[Known | None]:
  """What is known of a function's outputs."""
  assert function is not None
  jaxpr = function.jaxpr
  found: dict[Any, Known | None] = dict.fromkeys(jaxpr.constvars, Constant())
  found.update(zip(jaxpr.invars, inputs, strict=True))

  def read(atom: Any) -> Known | None:
    return Constant() if isinstance(atom, core.Literal) else found[atom]

  for eqn in jaxpr.eqns:
    found.update(zip(eqn.outvars, known_outputs(eqn, [*map(read, eqn.invars)]), strict=True))
  return [read(atom) for atom in jaxpr.outvars]
