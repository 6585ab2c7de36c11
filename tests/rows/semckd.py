"""Rows of SemCKD."""

from __future__ import annotations

import functools

import jax.numpy as jnp

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_adapters.semckd import semckd, semckd_full
from tests.rows._counted import kernel
from tests.rows._mutation import Mutation
from tests.rows._networked import BOTH, of
from tests.rows._subject import B, Subject


def _calibration(s, t, **where):
  """Two pairs, whose weights come from the student's own features."""
  student, teacher = (Output(features={"x": x, "y": x[:, :1]}) for x in (s, t))
  first = s.astype(jnp.promote_types(s.dtype, "float32")).reshape(len(s), -1)[:, 0]
  weight = 1 / (1 + jnp.abs(jnp.where(jnp.isfinite(first), first, 0.0)))
  chosen = {"stages": ["x", "y"], "attention": [weight, 1 - weight], "layers": 2, **where}
  return losses.semantic_calibration(student, teacher, **chosen).total


SUBJECTS = {
  "semantic_calibration": Subject(
    _calibration,
    (B, 2, 2, 3),
    (B, 2, 2, 3),
    mapped=functools.partial(_calibration, axis_name="batch"),
  ),
}

COUNTED = [kernel("weighted_mse", (2, 3), (2, 3))]

BEHIND_A_NETWORK = {"semantic_calibration": of(losses.semantic_calibration, stages=BOTH)}

MUTATIONS = [
  Mutation(
    "SemCKD without attention",
    "semckd.py",
    "each = factors * each",
    "each = each + 0 * factors",
    "test_semckd.py",
    "semckd",
  ),
  Mutation(
    "SemCKD not divided by the number of the student's layers",
    "semckd.py",
    "return Terms(feature=total / layers)",
    "return Terms(feature=total)",
    "test_semckd.py",
    "semckd",
  ),
  Mutation(
    "SemCKD summed over the elements of an example",
    "semckd.py",
    "each = jnp.mean(squares, axis=1)",
    "each = jnp.sum(squares, axis=1)",
    "test_semckd.py",
    "semckd",
  ),
]

GOLDEN = {"semckd": semckd, "semckd_full": semckd_full}

RECORDED = ("semckd/slots=6/factor=2/temperature=2.0/teacher_stages=('stage2','stage3')",)
