"""Applying a network's variables, as a learner or as a frozen teacher, for every scheme."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from jaxkd.types import Array


def key_for(rng: Array, participant: str) -> Array:
  """The key of one participant: the same whoever else takes part.

  A student alone and a distilled student of the same seed therefore start from equal weights.
  """
  return jax.random.fold_in(rng, zlib.crc32(participant.encode()) & 0x7FFFFFFF)


def initialize(module: nn.Module, rng: Array, participant: str, inputs: Array) -> dict[str, Any]:
  """Fresh variables for one participant."""
  key = key_for(rng, participant)
  return dict(module.init({"params": key, "dropout": key}, inputs, train=False))


def learn(
  module: nn.Module, variables: Mapping[str, Any], inputs: Array, rng: Array
) -> tuple[Any, dict[str, Any]]:
  """A learner's output in training mode, and its new non-parameter state."""
  mutable = [collection for collection in variables if collection != "params"]
  output, changes = module.apply(
    variables, inputs, train=True, mutable=mutable, rngs={"dropout": rng}
  )
  return output, dict(changes)


def infer(module: nn.Module, variables: Mapping[str, Any], inputs: Array) -> Any:
  """A network's output in evaluation mode."""
  return module.apply(variables, inputs, train=False)
