"""Costs of the trained networks."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.evaluate import multiply_adds
from reproduction.results import Runs


def costs(runs: Runs, setting: str, run: str, predictor: str = "") -> tuple[int, int]:
  """Parameters, and multiply-adds of one image, of a run's network; "" is the reported one."""
  seed = runs.seeds[setting][0]
  trained, description = runs.bundle(setting, run, seed, predictor)

  def logits(variables: object, images: jax.Array) -> jax.Array:
    return trained.module.apply(variables, images, False).logits

  image = jax.ShapeDtypeStruct((1, *description["image_shape"]), jnp.float32)
  parameters = sum(x.size for x in jax.tree.leaves(trained.variables["params"]))
  return parameters, multiply_adds(logits, trained.variables, image)


def cost(runs: Runs, setting: str, run: str) -> str:
  """Return both costs as text."""
  parameters, products = costs(runs, setting, run)
  return f"{parameters:,} parameters, {products / 1e6:.2f}M multiply-adds"
