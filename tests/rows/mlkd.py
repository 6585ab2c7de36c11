"""Rows of multi-level logit distillation (MLKD)."""

from __future__ import annotations

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_adapters.mlkd import mlkd
from tests.rows import _networked
from tests.rows._counted import LOGITS, kernel
from tests.rows._mutation import Mutation
from tests.rows._subject import B, Subject, total


def of_views(**options):
  """Five classes of a weak and of a strong view, side by side."""

  def apply(s, t, **where):
    views = (Output(logits=x) for x in (s[:, :5], t[:, :5], s[:, 5:], t[:, 5:]))
    return total(losses.multi_level(*views, **options, **where))

  return apply


def behind(**options):
  def loss(s, t, y):
    others = (Output(logits=2.0 * x.logits[:, ::-1]) for x in (s, t))
    return total(losses.multi_level(s, t, *others, **options))

  return _networked.Case(loss, of_logits=True)


AS_PUBLISHED = {
  "selection": "share",
  "strong_temperatures": (4.0, 3.0, 5.0),
  "repeated_temperatures": (2.0, 6.0),
}

SUBJECTS = {
  "multi_level": Subject(
    of_views(temperatures=(4.0, 2.0)),
    (B, 10),
    (B, 10),
    mapped=of_views(temperatures=(4.0, 2.0), axis_name="batch"),
  ),
  "multi_level_as_published": Subject(
    of_views(**AS_PUBLISHED),
    (B, 10),
    (B, 10),
    mapped=of_views(**AS_PUBLISHED, axis_name="batch"),
    long=True,
  ),
}

COUNTED = [
  kernel("class_correlation", *LOGITS),
  kernel("batch_correlation", *LOGITS, temperature=2.0),
]

BEHIND_A_NETWORK = {
  "multi_level": behind(),
  "multi_level as published": behind(**AS_PUBLISHED, standardize=True),
}

MUTATIONS = [
  Mutation(
    "MLKD's gradient stopped at examples gathered from other devices",
    "mlkd.py",
    "every = p if axis_name is None else lax.all_gather(p, axis_name, tiled=True)",
    "every = lax.stop_gradient(p if axis_name is None else lax.all_gather(p, axis_name))"
    ".reshape(-1, p.shape[1])",
    "test_mlkd.py",
    "mlkd",
  ),
  Mutation(
    "MLKD's class products of one device alone",
    "mlkd.py",
    "return found if axis_name is None else lax.psum(found, axis_name)",
    "return found",
    "test_mlkd.py",
    "",
  ),
  Mutation(
    "MLKD's shares of those below the percentile, not up to it",
    "mlkd.py",
    "counted & (values <= bound)",
    "counted & (values < bound)",
    "test_mlkd.py",
    "mlkd",
  ),
]

CALLS = {"multi_level": lambda s, t: losses.multi_level(s, t, s, t)}

GOLDEN = {"mlkd": mlkd}

RECORDED = (
  "mlkd/selection='share'/strong_temperatures=(4.0,3.0,5.0)/repeated_temperatures=(2.0,6.0)",
)
