"""Parameters of a teacher that a loss reads, such as those of a batch normalisation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from jaxkd.errors import ConfigError
from jaxkd.methods.distillation import Distillation
from jaxkd.types import Batch, Participants


def with_parameters(
  distillation: Distillation, teacher: Any, participants: Participants, batch: Batch
) -> Any:
  """Return the teacher's Output with `Distillation.teacher_parameters` as further features.

  Raises:
    ConfigError: for several teachers, or a path that is none of the teacher's parameters.
  """
  wanted = distillation.teacher_parameters
  name = distillation.teacher
  where = f"distillation {distillation.name!r}"
  if not isinstance(name, str):
    raise ConfigError(f"{where} reads parameters of {distillation.teachers}: expected one teacher")
  held: Mapping[str, Any] = flatten_dict(dict(participants[name]["params"]), sep="/")
  found = {}
  for key, path in wanted.items():
    if path not in held:
      raise ConfigError(
        f"{where} reads the parameter {path!r} of {name!r}, which has no such parameter"
      )
    found[key] = jnp.broadcast_to(held[path], (len(batch.indices), *held[path].shape))
  return dataclasses.replace(teacher, features={**teacher.features, **found})
