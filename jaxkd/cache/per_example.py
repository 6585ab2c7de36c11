"""Per-example analysis of a traced function of a batch.

`flatten` inlines nested calls and finds the values whose slices depend on one example each; `Flat`
cuts the function at such values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence, Set
from typing import Any

import jax
from jax.extend import core
from jax.extend.core import primitives as p

from jaxkd.cache.axis_rules import (
  REDUCTIONS,
  RULES,
  Constant,
  Known,
  PerExample,
  constant_output,
)
from jaxkd.jaxprs import CALLS, called, is_variable, without_dead_code


def known_outputs(eqn: core.JaxprEqn, inputs: Sequence[Known | None]) -> list[Known | None]:
  """Infer what is known of an equation's outputs; None means nothing.

  Args:
    eqn: an equation.
    inputs: what is known of its inputs, in their order. Literals are `Constant()`.
  """
  known = [one for one in inputs if one is not None]
  nothing: list[Known | None] = [None] * len(eqn.outvars)
  if len(known) < len(inputs) or eqn.effects:
    return nothing
  if eqn.primitive.name in CALLS:
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


def splittable_reduction(eqn: core.JaxprEqn, inputs: Sequence[Known | None]) -> int | None:
  """Return the examples' axis if an equation reduces it together with other axes, else None.

  The other axes can then be reduced first, example by example.
  """
  [first, *_] = inputs or [None]
  if eqn.primitive not in REDUCTIONS or not isinstance(first, PerExample):
    return None
  axes = eqn.params["axes"]
  return first.axis if first.axis in axes and len(axes) > 1 else None


def _through(function: core.ClosedJaxpr | None, inputs: Sequence[Known]) -> list[Known | None]:
  """Infer what is known of a called function's outputs."""
  assert function is not None
  jaxpr = function.jaxpr
  found: dict[Any, Known | None] = dict.fromkeys(jaxpr.constvars, Constant())
  found.update(zip(jaxpr.invars, inputs, strict=True))

  def read(atom: Any) -> Known | None:
    return Constant() if isinstance(atom, core.Literal) else found[atom]

  for eqn in jaxpr.eqns:
    found.update(zip(eqn.outvars, known_outputs(eqn, [*map(read, eqn.invars)]), strict=True))
  return [read(atom) for atom in jaxpr.outvars]


@dataclasses.dataclass(frozen=True)
class Flat:
  """The equations of a traced function in one list, and what is known of their values.

  Functions called with per-example values are inlined. A reduction over the examples' axis and
  others is two equations, the other axes first. Equal equations of known values are one.

  Attributes:
    eqns: equations, each after those that compute its inputs.
    outputs: outputs of the function.
    known: value -> what is known of it.
    constants: value -> array.
  """

  eqns: Sequence[core.JaxprEqn]
  outputs: Sequence[Any]
  known: Mapping[core.Var, Known]
  constants: Mapping[core.Var, Any]
  _jaxpr: core.Jaxpr

  def of(self, atom: Any) -> Known | None:
    """Return what is known of an input of an equation, or of an output."""
    return Constant() if isinstance(atom, core.Literal) else self.known.get(atom)

  def axis(self, value: core.Var) -> int:
    """Return the examples' axis of a per-example value."""
    known = self.known[value]
    assert isinstance(known, PerExample)
    return known.axis

  def whole(self) -> core.ClosedJaxpr:
    """Return the whole function, without dead code."""
    return self.part(self._jaxpr.invars, self.outputs)

  def part(
    self, inputs: Sequence[core.Var], outputs: Sequence[Any], *, effects: bool = True
  ) -> core.ClosedJaxpr:
    """Return the function from some of the values to others, without dead code.

    Args:
      inputs: values that are given; the equations that compute them are not used.
      outputs: values to return.
      effects: keep equations with side effects, such as `jax.debug.print`.
    """
    given = set(inputs)
    eqns = [_cut(eqn, given) for eqn in self.eqns if effects or not eqn.effects]
    # Constants are the first inputs until the unused ones are removed: from jax 0.12 on, constants
    # without values are inputs anyway.
    constvars = list(self.constants)
    jaxpr = without_dead_code(
      self._jaxpr.replace(
        constvars=[],
        invars=[*constvars, *inputs],
        outvars=list(outputs),
        eqns=eqns,
        effects={effect for eqn in eqns for effect in eqn.effects},
      ),
      keep=[False] * len(constvars) + [True] * len(inputs),
    )
    used = jaxpr.invars[: len(jaxpr.invars) - len(inputs)]
    opened = jaxpr.replace(constvars=used, invars=list(inputs))
    return core.ClosedJaxpr(opened, [self.constants[var] for var in used])


def _cut(eqn: core.JaxprEqn, given: Set[core.Var]) -> core.JaxprEqn:
  """Replace the outputs of an equation that are given by unused variables."""
  if given.isdisjoint(eqn.outvars):
    return eqn
  return eqn.replace(outvars=[core.Var(v.aval) if v in given else v for v in eqn.outvars])


def flatten(function: core.ClosedJaxpr, given: Mapping[core.Var, Known]) -> Flat:
  """Flatten a function, with what is known of some of its inputs."""
  eqns: list[core.JaxprEqn] = []
  known: dict[core.Var, Known] = dict(given)
  constants: dict[core.Var, Any] = {}
  computed: dict[Any, list[Any]] = {}

  def of(atom: Any) -> Known | None:
    return Constant() if isinstance(atom, core.Literal) else known.get(atom)

  def keep(eqn: core.JaxprEqn) -> list[Any]:
    """Append an equation of which no known equal is there; return the outputs."""
    inputs = [of(atom) for atom in eqn.invars]
    outputs = known_outputs(eqn, inputs)
    kinds = {type(one) for one in outputs}
    # An equation belongs to one part of the loss as a whole: all its outputs must be known.
    if kinds == {PerExample} or (
      kinds == {Constant} and not any(isinstance(one, PerExample) for one in inputs)
    ):
      known.update(zip(eqn.outvars, outputs, strict=True))  # type: ignore[arg-type]
      # A loss and its metric may use the same function of the targets: it is stored once.
      same = _identity(eqn)
      if same in computed:
        return computed[same]
      if same is not None:
        computed[same] = eqn.outvars
    eqns.append(eqn)
    return eqn.outvars

  def add(function: core.ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
    """Append a call's equations, with new variables; return its outputs."""
    jaxpr = function.jaxpr
    names: dict[core.Var, Any] = dict(zip(jaxpr.invars, arguments, strict=True))
    for var, value in zip(jaxpr.constvars, function.consts, strict=True):
      names[var] = core.Var(var.aval)
      known[names[var]] = Constant()
      constants[names[var]] = value

    def read(atom: Any) -> Any:
      return atom if isinstance(atom, core.Literal) else names[atom]

    for eqn in jaxpr.eqns:
      invars = [read(atom) for atom in eqn.invars]
      inputs = [of(atom) for atom in invars]
      inner = called(eqn) if eqn.primitive is p.jit_p else None
      if inner is not None and any(isinstance(k, PerExample) for k in inputs):
        found = add(inner, invars)
      else:
        found = [core.Var(var.aval) for var in eqn.outvars]
        own = eqn.replace(invars=invars, outvars=found)
        axis = splittable_reduction(eqn, inputs)
        if axis is None:
          found = keep(own)
        else:
          others, last = _one_after_the_other(own, axis)
          found = keep(last.replace(invars=keep(others)))
      names.update(zip(eqn.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]

  outputs = add(function, function.jaxpr.invars)
  return Flat(eqns, outputs, known, constants, function.jaxpr)


def _identity(eqn: core.JaxprEqn) -> Any:
  """Return a key that is equal for equations that compute the same; None if it has no hash."""
  # Literals by their text: -0.0 equals 0.0, but is another number.
  invars: Sequence[Any] = eqn.invars
  atoms = [v if is_variable(v) else (repr(v.val), str(v.aval)) for v in invars]
  try:
    same = (eqn.primitive, *atoms, *sorted(eqn.params.items()))
    hash(same)
  except TypeError:
    return None
  return same


def _one_after_the_other(eqn: core.JaxprEqn, last: int) -> tuple[core.JaxprEqn, core.JaxprEqn]:
  """Split a reduction into two, of which the second is over the axis `last` alone."""
  operand: Any = eqn.invars[0]
  others = tuple(axis for axis in eqn.params["axes"] if axis != last)
  kept = tuple(n for axis, n in enumerate(operand.aval.shape) if axis not in others)
  between = core.Var(jax.core.ShapedArray(kept, operand.aval.dtype))
  place = last - sum(axis < last for axis in others)
  return (
    eqn.replace(outvars=[between], params={**eqn.params, "axes": others}),
    eqn.replace(invars=[between], params={**eqn.params, "axes": (place,)}),
  )
