"""Rows of ViTKD."""

from __future__ import annotations

import jax.numpy as jnp

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_adapters.generated import vitkd
from tests.rows._counted import Case
from tests.rows._mutation import Mutation
from tests.rows._networked import Case as Networked
from tests.rows._subject import B, Subject

_WEIGHTS = {"low_weight": 0.5, "high_weight": 0.25}


def _tokens(x):
  """One shallow feature and a deep one with half of its tokens generated."""
  masked = jnp.broadcast_to(jnp.arange(x.shape[1]) % 2, x.shape[:2])
  return Output(features={"low1": x[..., :1], "high": x[..., 1:], "masked": masked})


def _loss(s, t, **where):
  ours, theirs = _tokens(s), _tokens(t)
  return losses.vit_distillation(ours, theirs, low=["low1"], **_WEIGHTS, **where).total


def _networked(s, t, y):
  ours, theirs = (_tokens(x.features["stage1"].reshape(len(y), 36, -1)) for x in (s, t))
  return losses.vit_distillation(ours, theirs, low=["low1"], **_WEIGHTS).total


SUBJECTS = {"vit_distillation": Subject(_loss, (B, 4, 3), (B, 4, 3))}

COUNTED = [Case("vit_distillation", _loss, (4, 3), (4, 3))]

CALLS = {
  "vit_distillation": lambda s, t: losses.vit_distillation(
    s, t, low=["stage1", "stage2"], high_weight=0.0
  )
}

BEHIND_A_NETWORK = {"vit_distillation": Networked(_networked)}

MUTATIONS = [
  Mutation(
    "ViTKD's generated tokens not divided by their share",
    "vitkd.py",
    "positions=positions, where=where) / masked",
    "positions=positions, where=where)",
    "test_vitkd.py",
    "vitkd",
  ),
  Mutation(
    "ViTKD's weights exchanged",
    "vitkd.py",
    "total = total + low_weight * over_stages",
    "total = total + high_weight * over_stages",
    "test_vitkd.py",
    "vitkd",
  ),
  Mutation(
    "ViTKD compares unmasked tokens, too",
    "vitkd.py",
    "squared_error_sum(s, t, positions=positions, where=where)",
    "squared_error_sum(s, t, where=where)",
    "test_vitkd.py",
    "vitkd",
  ),
]

GOLDEN = {"vitkd": vitkd}

_REFUSAL = "method 'vitkd' compares tokens of blocks"
REFUSED = {
  ("vitkd", "resnets"): _REFUSAL,
  ("vitkd", "vit-vgg"): _REFUSAL,
}

RECORDED = ("vitkd/teacher.model='vit_tiny_p2'/student.model='deit_mini_p2'",)
