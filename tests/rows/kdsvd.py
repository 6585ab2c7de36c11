"""Rows of KD-SVD."""

from __future__ import annotations

import jax.numpy as jnp

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_adapters.kdsvd import kdsvd
from tests.rows._counted import Case
from tests.rows._mutation import Mutation
from tests.rows._networked import BOTH, of
from tests.rows._subject import B, Subject

_LOSS = losses.singular_value_distillation


def _of_two(**options):
  def layers(x):
    return Output(features={"first": x, "second": x[:, 1:, ::-1, ::-1]})

  def apply(s, t, **where):
    return _LOSS(layers(s), layers(t), stages=["first", "second"], **options, **where).total

  return apply


def _vectors(s, t, **where):
  ours, theirs = losses.aligned_singular_vectors(s, t, **where)
  return jnp.sum(ours * theirs[:, ::-1])


SUBJECTS = {
  "singular_value_distillation": Subject(_of_two(), (B, 2, 2, 3), (B, 4, 2, 3)),
  "singular_value_distillation_columns": Subject(
    _of_two(layout="columns", count=2), (B, 4, 3, 2), (B, 2, 3, 4), long=True
  ),
}

COUNTED = [Case("aligned_singular_vectors", _vectors, (3, 3, 2), (2, 3, 2))]

BEHIND_A_NETWORK = {"singular_value_distillation": of(_LOSS, stages=BOTH)}

MUTATIONS = [
  Mutation(
    "KD-SVD's vectors not turned to the teacher's",
    "kdsvd.py",
    "sign = jnp.sign(jnp.take_along_axis(cosines, nearest, axis=1))",
    "sign = jnp.abs(jnp.sign(jnp.take_along_axis(cosines, nearest, axis=1)))",
    "test_kdsvd.py",
    "kdsvd",
  ),
  Mutation(
    "KD-SVD's gradient through equal singular values not left out",
    "_singular.py",
    "apart = jnp.abs(x) > smallest",
    "apart = jnp.abs(x) >= 0 * smallest",
    "test_kdsvd.py",
    "",
  ),
  Mutation(
    "KD-SVD's gradient without the vectors orthogonal to all rows",
    "_singular.py",
    "if x.shape[1] < x.shape[2]:",
    "if x.shape[1] > x.shape[2]:",
    "test_kdsvd.py",
    "",
  ),
]

GOLDEN = {"kdsvd": kdsvd}

RECORDED = ("kdsvd/count=2",)

REFUSED = {
  ("kdsvd", "vit-vgg"): "compares adjacent stages: expected two or more",
  ("kdsvd/count=2", "vit-vgg"): "compares adjacent stages: expected two or more",
}
