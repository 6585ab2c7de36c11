"""Rows of structured distillation (SKD)."""

from __future__ import annotations

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_adapters.dense import skd
from tests.rows._counted import LOGITS, Case, kernel
from tests.rows._mutation import Mutation
from tests.rows._networked import BOTH, of
from tests.rows._subject import B, Subject


def _both(**options):
  """Logits of every pixel and a map of its first channels."""

  def apply(s, t, **where):
    student, teacher = (Output(x[..., :3], {"x": x}) for x in (s, t))
    return losses.structured(student, teacher, stages=["x"], **options, **where).total

  return apply


_MAPS = ((B, 5, 5, 4), (B, 5, 5, 4))

SUBJECTS = {
  "structured": Subject(_both(), *_MAPS),
  "structured_code": Subject(
    _both(form="code", norm_detached=False, pool="average"),
    *_MAPS,
    mapped=_both(form="code", norm_detached=False, pool="average", axis_name="batch"),
    long=True,
  ),
}

COUNTED = [
  kernel("pixel_divergence", *LOGITS, form="code"),
  kernel("pair_wise_mse", (4, 4, 3), (2, 2, 2), pool="average"),
  Case("structured", _both(), (5, 5, 4), (5, 5, 4)),
]

BEHIND_A_NETWORK = {
  "structured": of(losses.structured, stages=BOTH),
  "structured code": of(losses.structured, stages=BOTH, form="code", norm_detached=True),
}

MUTATIONS = [
  Mutation(
    "SKD's regions not normalised",
    "skd.py",
    "units = jnp.where(norm > 0, x / (norm + _EPS), 0.0)",
    "units = x",
    "test_skd.py",
    "",
  ),
  Mutation(
    "SKD's entropy dropped from the code's cross-entropy",
    "skd.py",
    "keep(counted, values + entropy(log_p_teacher))",
    "keep(counted, values)",
    "test_skd.py",
    "skd",
  ),
  Mutation(
    "SKD's norms with a gradient in the code's form",
    "skd.py",
    "units = x / (lax.stop_gradient(norm) + _EPS)",
    "units = x / (norm + _EPS)",
    "test_skd.py",
    "skd",
  ),
]

GOLDEN = {"skd": skd}

RECORDED = ("skd/form='code'/norm_detached=True", "skd/pool='average'")
