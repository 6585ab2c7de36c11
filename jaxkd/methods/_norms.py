"""The batch normalisations whose outputs are a network's preactivations, found by tracing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from jaxkd.networks import Model, infer, initialize
from jaxkd.shapes import InputShape, batched

_MARK = "batch normalisation of jaxkd: "
# What may lie between a normalisation and a preactivation.
_PASSED = ("add", "add_any", "convert_element_type", "copy", "reshape")


def norms_before(model: Model, input_shape: InputShape, stages: Sequence[str]) -> dict[str, str]:
  """Return stage -> path of the batch normalisation that makes its preactivation.

  That of a residual sum is the first summand's, its main branch. A stage without one is left out.

  Args:
    model: `__call__(inputs, train) -> Output`.
    input_shape: of its inputs.
    stages: names in `Output.preactivations`.

  >>> from jaxkd.models import create
  >>> norms_before(create("resnet8", num_classes=3), (8, 8, 1), ["stem", "stage3"])
  {'stem': 'stem_bn', 'stage3': 'stage3_0/bn2'}
  """
  images = batched(input_shape, (2,))
  variables = jax.eval_shape(
    lambda key, x: initialize(model, key, "model", x), jax.random.key(0), images
  )

  def marked(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    out = call(*args, **kwargs)
    if not isinstance(context.module, nn.BatchNorm) or context.method_name != "__call__":
      return out
    return checkpoint_name(out, _MARK + "/".join(context.module.path))

  def run(variables: Any, x: Any) -> Mapping[str, Any]:
    with nn.intercept_methods(marked):
      found = infer(model, variables, x).preactivations
    return {stage: found[stage] for stage in stages}

  traced, shape = jax.make_jaxpr(run, return_shape=True)(variables, images)
  order = [path[0].key for path, _ in jax.tree.leaves_with_path(shape)]
  made_by = {out: eqn for eqn in traced.jaxpr.eqns for out in eqn.outvars}
  found = {
    stage: _norm(var, made_by) for stage, var in zip(order, traced.jaxpr.outvars, strict=True)
  }
  return {stage: found[stage] for stage in stages if found[stage]}


def _norm(var: Any, made_by: Mapping[Any, Any]) -> str:
  """Return the path of the first marked normalisation that an array is, or is a sum of."""
  eqn = None if hasattr(var, "val") else made_by.get(var)  # a literal has a value
  if eqn is None:
    return ""
  if eqn.primitive.name == "name":
    name = eqn.params["name"]
    return name.removeprefix(_MARK) if name.startswith(_MARK) else ""
  if eqn.primitive.name not in _PASSED:
    return ""
  return next(filter(None, (_norm(x, made_by) for x in eqn.invars)), "")
