"""Which parameters a part of a network needs, so that only those learn.

A layer that is not needed must not be among the learners: its gradient would be zero, but weight
decay and a moving average would still change it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import ClosedJaxpr, Var

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.schemes.networks import infer, initialize
from jaxkd.types import Output


def partial_learners(
  module: nn.Module, participant: str, to_stage: str, image_shape: tuple[int, int, int]
) -> tuple[str, ...]:
  """The parameters that a stage's features depend on.

  Found by tracing, in evaluation mode; nothing is computed. Works for any model, whether or not
  it can stop at a stage: what counts is what enters the features.

  Args:
    module: `__call__(images, train) -> Output`; its `encode` is used if it has one.
    participant: what the scheme calls it.
    to_stage: the deepest stage that is needed.
    image_shape: (H, W, C).

  Returns:
    Learners for a Scheme: the participant itself if every parameter is needed, else the largest
    subtrees of which all is, "student/stem_conv".

  Raises:
    ConfigError: if there is no such stage, or nothing to learn before it.

  >>> from jaxkd.models import create
  >>> partial_learners(create("resnet8", num_classes=3), "student", "stem", (8, 8, 1))
  ('student/stem_bn', 'student/stem_conv')
  """
  needed = _needed(module, image_shape, lambda output: _stage(output, to_stage), to_stage)
  return _nonempty(needed, participant, f"before stage {to_stage!r}")


def later_learners(
  module: nn.Module, participant: str, from_stage: str, image_shape: tuple[int, int, int]
) -> tuple[str, ...]:
  """The parameters that the logits depend on and a stage's features do not: what comes after it.

  The complement of `partial_learners`, but for what the logits do not need either; see there.

  >>> from jaxkd.models import create
  >>> later_learners(create("resnet8", num_classes=3), "student", "pooled", (8, 8, 1))
  ('student/classifier',)
  """
  before = _needed(module, image_shape, lambda output: _stage(output, from_stage))
  everything = _needed(module, image_shape, lambda output: output.logits)
  after = jax.tree.map(lambda needed, earlier: needed and not earlier, everything, before)
  return _nonempty(after, participant, f"after stage {from_stage!r}")


def _needed(
  module: nn.Module,
  image_shape: tuple[int, int, int],
  result: Callable[[Output], Any],
  to_stage: str | None = None,
) -> Any:
  """The tree of the module's parameters, True for those that `result` depends on."""
  images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  variables = jax.eval_shape(
    lambda rng, images: initialize(module, rng, "module", images), jax.random.key(0), images
  )
  traced = jax.make_jaxpr(lambda v, x: result(infer(module, v, x, to_stage=to_stage)))(
    variables, images
  )
  leaves, structure = jax.tree.flatten(variables)
  return jax.tree.unflatten(structure, _inputs_used(traced)[: len(leaves)])["params"]


def _inputs_used(traced: ClosedJaxpr) -> list[bool]:
  """Which inputs the results depend on. What a nested call takes counts as used if a result is."""
  jaxpr = traced.jaxpr
  used = {out for out in jaxpr.outvars if isinstance(out, Var)}
  for equation in reversed(jaxpr.eqns):
    if any(out in used for out in equation.outvars):
      used.update(value for value in equation.invars if isinstance(value, Var))
  return [value in used for value in jaxpr.invars]


def _stage(output: Output, stage: str) -> Any:
  if stage not in output.features:
    raise unknown_name("stage", stage, output.features)
  return output.features[stage]


def _nonempty(needed: Any, participant: str, where: str) -> tuple[str, ...]:
  learners = tuple(_subtrees(needed, participant))
  if not learners:
    raise ConfigError(f"{participant!r} has no parameters {where}: nothing would learn")
  return learners


def _subtrees(needed: Any, path: str) -> Iterator[str]:
  """The largest subtrees of which every leaf is needed."""
  leaves = jax.tree.leaves(needed)
  if leaves and all(leaves):
    yield path
  elif isinstance(needed, Mapping):
    for name, part in needed.items():
      yield from _subtrees(part, f"{path}/{name}")
