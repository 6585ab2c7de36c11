"""Rows of similarity-preserving distillation (SP)."""

from __future__ import annotations

from jaxkd import losses
from tests.golden_adapters.sp import sp
from tests.rows._counted import kernel
from tests.rows._mutation import Mutation
from tests.rows._networked import BOTH, of
from tests.rows._networked import of_tokens as networked_tokens
from tests.rows._subject import B, Subject, of_maps, of_tokens

SUBJECTS = {
  "similarity_preserving": Subject(
    of_maps(losses.similarity_preserving),
    (B, 1, 2, 2),
    (B, 3),
    mapped=of_maps(losses.similarity_preserving, axis_name="batch"),
  ),
  "similarity_preserving_l1": Subject(
    of_maps(losses.similarity_preserving, row_norm="l1"),
    (B, 1, 2, 2),
    (B, 3),
    mapped=of_maps(losses.similarity_preserving, row_norm="l1", axis_name="batch"),
  ),
  "similarity_preserving_tokens": Subject(
    of_tokens(losses.similarity_preserving),
    (B, 4, 2),
    (B, 4, 3),
    mapped=of_tokens(losses.similarity_preserving, axis_name="batch"),
  ),
}

COUNTED = [
  kernel("similarity_mse", (2, 2, 3), (4,)),
  kernel("similarity_mse", (2, 2, 3), (4,), row_norm="l1"),
]

BEHIND_A_NETWORK = {
  "similarity_preserving": of(losses.similarity_preserving, stages=BOTH),
  "similarity_preserving l1": of(losses.similarity_preserving, stages=BOTH, row_norm="l1"),
  "similarity_preserving tokens": networked_tokens(losses.similarity_preserving),
}

MUTATIONS = [
  Mutation(
    "SP's similarities not normalised",
    "sp.py",
    "return gram * jnp.where(norm > 0, 1.0 / jnp.maximum(norm, eps), 0.0)",
    "return gram",
    "test_sp.py",
    "sp",
  ),
  Mutation(
    "SP's gradient stopped at samples gathered from other devices",
    "sp.py",
    "lax.all_gather(x, axis_name, tiled=True)",
    "lax.stop_gradient(lax.all_gather(x, axis_name, tiled=True))",
    "test_sp.py",
    "",
  ),
]

GOLDEN = {"sp": sp}

RECORDED = ("sp/row_norm='l1'",)
