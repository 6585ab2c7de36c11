"""Networks as parts of another network: copies of modules, checks of stages, variables by part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.models import imported
from jaxkd.shapes import InputShape, batched

Module = TypeVar("Module", bound=nn.Module)


def separate(module: Module) -> Module:
  """A copy of a module that shares no variables with the original, at any depth.

  linen shares the variables of a module instance that is given to several parents. A plain `clone`
  copies the outer module alone and still holds the same submodule instances.
  """
  copy = module.clone(_deep_clone=True, _reset_names=True)
  imported.copy_origins(module, copy)
  return copy


def check_staged(network: nn.Module, role: str) -> None:
  """Check that a network has `stages`, `encode` and `resume`.

  Raises:
    ConfigError: naming `role`, the class and what is missing.
  """
  lacking = [name for name in ("stages", "encode", "resume") if not hasattr(network, name)]
  if lacking:
    raise ConfigError(
      f"{role}: a {type(network).__name__} has no {', no '.join(lacking)}: only a model with "
      "stages can be split"
    )


def split_stages(
  model: nn.Module, stage: str, role: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """The stages before and after `stage`.

  Raises:
    ConfigError: for a stage that the model does not have; the message names `{role}_stage`.
  """
  if stage not in model.stages:
    raise unknown_name(f"{role}_stage", stage, model.stages)
  position = model.stages.index(stage)
  return model.stages[:position], model.stages[position + 1 :]


def signed_stages(model: nn.Module) -> tuple[str, ...]:
  """The stages whose features have both signs; () for a model that does not declare them."""
  return getattr(model, "signed_stages", ())


def merge_variables(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """Turn {part: {collection: tree}} into {collection: {part: tree}}."""
  collections = {collection for variables in parts.values() for collection in variables}
  return {
    collection: {
      part: variables[collection] for part, variables in parts.items() if collection in variables
    }
    for collection in sorted(collections)
  }


def needed_variables(
  module: nn.Module, parts: Mapping[str, Mapping[str, Any]], image_shape: InputShape
) -> dict[str, Any]:
  """The variables of a composed module, selected from those of the networks it consists of.

  Args:
    module: the composed module; its `init` is traced to find which variables it uses.
    parts: submodule name -> the variables of the whole network that the submodule is taken from.
    image_shape: (H, W, C), or the shapes of other inputs (`jaxkd.shapes`).

  Raises:
    ConfigError: for variables that are missing or of another shape.
  """
  images = batched(image_shape, (1,))
  needed = jax.eval_shape(module.init, jax.random.key(0), images)
  given = flatten_dict(merge_variables(parts))
  chosen = {}
  for path, like in flatten_dict(needed).items():
    collection, part, *rest = path
    found = f"of shape {jnp.shape(given[path])}" if path in given else "missing"
    if found != f"of shape {like.shape}":
      name = "/".join((collection, *rest))
      raise ConfigError(f"{part}_variables: {name} is {found}, not of shape {like.shape}")
    chosen[path] = given[path]
  return unflatten_dict(chosen)
