"""Applying a network's variables, as a learner or as a frozen teacher, for every scheme."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxkd.errors import ConfigError
from jaxkd.preprocessing import Converted, inputs_of, plain
from jaxkd.schemes.masked import counted_statistics, without_padding
from jaxkd.types import Array, Network


def key_for(rng: Array, participant: str) -> Array:
  """The key of one participant: the same whoever else takes part.

  A student alone and a distilled student of the same seed therefore start from equal weights.
  """
  return jax.random.fold_in(rng, zlib.crc32(participant.encode()) & 0x7FFFFFFF)


# A model, or one whose images are converted to those that it was trained on.
Model = nn.Module | Converted


def initialize(module: Model, rng: Array, participant: str, inputs: Array) -> dict[str, Any]:
  """Fresh variables for one participant."""
  key = key_for(rng, participant)
  keys = {"params": key, "dropout": key}
  return dict(plain(module).init(keys, inputs_of(module, inputs), train=False))


def network_of(module: Model, variables: Mapping[str, Any]) -> Network:
  """A model as it leaves a scheme, with what is known of the images it was trained on."""
  wanted = module.wanted if isinstance(module, Converted) else None
  return Network(plain(module), variables, wanted)


def learn(
  module: Model,
  variables: Mapping[str, Any],
  inputs: Array,
  rng: Array,
  *,
  from_stage: str | None = None,
  to_stage: str | None = None,
  where: Any = None,
) -> tuple[Any, dict[str, Any]]:
  """A learner's output in training mode, and its new non-parameter state.

  The state holds only what the module replaced: statistics of layers that did not run are left
  out, so that pooling over devices does not touch them.

  Args:
    module: a model, a model whose images are converted (`jaxkd.preprocessing`), a connector.
    variables: its Flax variables.
    inputs: images, or features.
    rng: for dropout.
    from_stage: the inputs are this stage's features: the model goes on from there.
    to_stage: the deepest stage that is needed: a model that has `encode` stops there, and any
      other runs to its end.
    where: `Batch.mask`: examples of which nothing counts are zeros to the module, and out of its
      batch statistics.

  Raises:
    ConfigError: if the model cannot go on from a stage.
  """
  mutable = [collection for collection in variables if collection != "params"]
  if from_stage is None:
    inputs = inputs_of(module, inputs)
  model = plain(module)
  with counted_statistics(where):
    output, changes = model.apply(
      variables,
      without_padding(inputs, where),
      train=True,
      mutable=mutable,
      rngs={"dropout": rng},
      **_part(model, from_stage, to_stage),
    )
  before = flatten_dict(dict(variables))
  replaced = {
    path: value
    for path, value in flatten_dict(dict(changes)).items()
    if value is not before.get(path)
  }
  return output, unflatten_dict(replaced)


def infer(
  module: Model,
  variables: Mapping[str, Any],
  inputs: Array,
  *,
  from_stage: str | None = None,
  to_stage: str | None = None,
) -> Any:
  """A network's output in evaluation mode; the arguments are those of `learn`."""
  if from_stage is None:
    inputs = inputs_of(module, inputs)
  model = plain(module)
  return model.apply(variables, inputs, train=False, **_part(model, from_stage, to_stage))


def _part(module: nn.Module, from_stage: str | None, to_stage: str | None) -> dict[str, Any]:
  """What makes a model run only a part of itself."""
  if from_stage is not None:
    if not hasattr(module, "resume"):
      raise ConfigError(
        f"{type(module).__name__} cannot go on from {from_stage!r}: give it a "
        "resume(features, from_stage, train) method (see jaxkd.models.CifarResNet)"
      )
    return {"from_stage": from_stage, "method": "resume"}
  if to_stage is not None and hasattr(module, "encode"):
    return {"to_stage": to_stage, "method": "encode"}
  return {}
