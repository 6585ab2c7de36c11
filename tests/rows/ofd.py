"""Rows of OFD, the overhaul of feature distillation."""

from __future__ import annotations

import jax.numpy as jnp

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_adapters.ofd import ofd
from tests.rows._counted import kernel
from tests.rows._mutation import Mutation
from tests.rows._networked import BOTH, Case
from tests.rows._subject import B, Subject

_MARGINS = [jnp.array([-0.2, -0.7])]


def _overhaul(margins, **options):
  def loss(s, t, **where):
    student, teacher = (Output(preactivations={"x": x}) for x in (s, t))
    chosen = {"stages": ["x"], "margins": margins, **options, **where}
    return losses.overhaul(student, teacher, **chosen).total

  return loss


def _behind_a_network(s, t, y):
  margins = [-0.3 * jnp.ones(8), -0.1 * jnp.ones(6)]
  return losses.overhaul(s, t, stages=BOTH, margins=margins, scale=1.0).total


SUBJECTS = {
  "overhaul": Subject(_overhaul(_MARGINS, scale=0.1), (B, 2, 2, 2), (B, 4, 4, 2)),
  "overhaul_batch_margins": Subject(
    _overhaul(None, reduction="mean", scale=1.0),
    (B, 2, 2, 2),
    (B, 2, 2, 2),
    mapped=_overhaul(None, reduction="mean", scale=1.0, axis_name="batch"),
    long=True,
  ),
}

COUNTED = [
  kernel("partial_l2", (3, 2), (3, 2), margin=jnp.array([-0.2, -0.7])),
  kernel("partial_l2", (3, 2), (3, 2), reduction="sum"),
]

BY_EXAMPLE = ("batch_norm_margin",)

BEHIND_A_NETWORK = {"overhaul": Case(_behind_a_network)}

MUTATIONS = [
  Mutation(
    "OFD's values below a target that the ReLU turns to 0 not left out",
    "ofd.py",
    "matters = (student > target) | (target > 0)",
    "matters = student == student",
    "test_ofd.py",
    "ofd",
  ),
  Mutation(
    "OFD's targets without a margin",
    "ofd.py",
    "target = jnp.maximum(teacher, bound)",
    "target = teacher + 0 * bound",
    "test_ofd.py",
    "ofd",
  ),
  Mutation(
    "OFD's margin with the sign of the scale",
    "ofd.py",
    "lax.stop_gradient(jnp.abs(scale))",
    "lax.stop_gradient(scale)",
    "test_ofd.py",
    "ofd",
  ),
]

GOLDEN = {"ofd": ofd}

RECORDED = ("ofd/margins='batch'/stages=('stage2','stage3')",)

_NO_PREACTIVATIONS = "compares preactivations, and the teacher has none"
REFUSED = {(variant, "vit-vgg"): _NO_PREACTIVATIONS for variant in ("ofd", *RECORDED)}
