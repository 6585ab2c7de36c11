"""Rows of scale-decoupled distillation (SDD)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_adapters.sdd import sdd
from tests.rows._counted import Case
from tests.rows._mutation import Mutation
from tests.rows._networked import Case as Networked
from tests.rows._subject import B, Subject


def _labels(t):
  """Return the last of the whole image's largest classes: right for some teachers' regions."""
  return jax.lax.stop_gradient(jnp.argmax(t[..., 0, :], axis=-1))


def _of_regions(**options):
  def apply(s, t, **where):
    return losses.scale_decoupled(Output(s), Output(t), _labels(t), **options, **where).total

  return apply


def _counted(**options):
  def call(s, t, **where):
    labels = jnp.where(jnp.isfinite(t[:, 0, 0]), _labels(t), -1)
    return losses.region_divergence(s, t, labels, **options, **where)

  return Case("region_divergence", call, (3, 4), (3, 4))


def _networked(**options):
  """Make a case of the logits of three regions, of a student and a teacher."""

  def loss(s, t, y):
    sides = (jnp.stack([z.logits, z.logits[:, ::-1], 0.5 * z.logits], axis=1) for z in (s, t))
    return losses.scale_decoupled(*map(Output, sides), y, **options).total

  return Networked(loss, of_logits=True)


SUBJECTS = {
  "scale_decoupled": Subject(
    _of_regions(), (B, 3, 4), (B, 3, 4), mapped=_of_regions(axis_name="batch")
  ),
  "scale_decoupled_dkd": Subject(_of_regions(form="dkd"), (B, 3, 4), (B, 3, 4), long=True),
  "scale_decoupled_nkd": Subject(_of_regions(form="nkd"), (B, 3, 4), (B, 3, 4), long=True),
}

COUNTED = [_counted(), _counted(form="dkd"), _counted(form="nkd")]

_REGIONS = jnp.ones((2, 5, 3))
CALLS = {
  "scale_decoupled": lambda s, t: losses.scale_decoupled(_whole(s), _whole(t), jnp.array([0, 1]))
}
MORE = {"region_divergence": (jnp.array([0, 1]),)}


def _whole(output):
  """Return the Output with the regions of another of single logits."""
  has_logits = isinstance(output, Output) and output.logits is not None
  return Output(_REGIONS) if has_logits else output


BEHIND_A_NETWORK = {
  "scale_decoupled": _networked(),
  "scale_decoupled dkd": _networked(form="dkd"),
  "scale_decoupled nkd": _networked(form="nkd", temperature=1.0),
}

MUTATIONS = [
  Mutation(
    "regions weighted by whether they are right, not whether they differ",
    "sdd.py",
    "same = right == right[..., :1]",
    "same = right",
    "test_sdd.py",
    "sdd",
  ),
  Mutation(
    "SDD's decisions are the student's",
    "sdd.py",
    "w = region_weights(teacher, targets, complementary_weight)",
    "w = region_weights(student, targets, complementary_weight)",
    "test_sdd.py",
    "sdd",
  ),
  Mutation(
    "SD-NKD's target class left in the second term",
    "sdd.py",
    "  if mask_target:\n",
    "  if not mask_target:\n",
    "test_sdd.py",
    "sdd",
  ),
]

GOLDEN = {"sdd": sdd}

RECORDED = (
  "sdd/form='dkd'/warmup_epochs=2.0",
  "sdd/form='nkd'/temperature=1.0/scales=(1, 2, 4)",
)
