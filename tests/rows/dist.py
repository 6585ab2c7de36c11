"""Rows of DIST."""

from __future__ import annotations

from jaxkd import losses
from tests.golden_adapters.dist import dist
from tests.rows._counted import LOGITS, kernel
from tests.rows._mutation import Mutation
from tests.rows._networked import Case
from tests.rows._subject import B, Subject, of_logits, total


def _summed(**options):
  def loss(student, teacher, **where):
    parts = losses.stronger_teacher(student, teacher, **options, **where)
    return parts["inter"] + parts["intra"]

  return loss


SUBJECTS = {
  "stronger_teacher": Subject(
    of_logits(_summed(temperature=1.0)),
    (B, 5),
    (B, 5),
    mapped=of_logits(_summed(temperature=1.0, axis_name="batch")),
  ),
  "stronger_teacher_standardized": Subject(
    of_logits(_summed(standardize=True, temperature=1.0)),
    (B, 5),
    (B, 5),
    mapped=of_logits(_summed(standardize=True, temperature=1.0, axis_name="batch")),
    long=True,
  ),
}

COUNTED = [
  kernel("inter_class_correlation", *LOGITS),
  kernel("intra_class_correlation", *LOGITS, temperature=1.0),
]

BEHIND_A_NETWORK = {
  "stronger_teacher": Case(
    lambda s, t, y: total(losses.stronger_teacher(s, t, temperature=1.0)), of_logits=True
  ),
}

MUTATIONS = [
  Mutation(
    "DIST's probabilities not centred",
    "dist.py",
    "return p - mean_of_p",
    "return p",
    "test_dist.py",
    "dist",
  ),
  Mutation(
    "DIST's classes correlated on each device alone",
    "dist.py",
    "return x if axis_name is None else lax.psum(x, axis_name)",
    "return x",
    "test_dist.py",
    "",
  ),
  Mutation(
    "DIST's mean over classes without the factor T^2",
    "dist.py",
    "return scale * jnp.where(number > 0, distance, 0.0)",
    "return jnp.where(number > 0, distance, 0.0)",
    "test_dist.py",
    "dist",
  ),
]

GOLDEN = {"dist": dist}
