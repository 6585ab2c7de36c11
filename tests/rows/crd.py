"""Rows of CRD."""

from __future__ import annotations

import functools

import jax.numpy as jnp

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_adapters.crd import crd
from tests.rows._counted import kernel
from tests.rows._mutation import Mutation
from tests.rows._networked import Case
from tests.rows._subject import B, Subject

_OPTIONS = {"examples": 20, "temperature": 0.5, "log_normalizer": 1.0}


def _contrast(s, t, **where):
  student, teacher = Output(features={"embedding": s}), Output(features={"contrasts": t})
  return losses.contrastive_representation(student, teacher, **{**_OPTIONS, **where}).total


def _behind_a_network(temperature):
  """A case of the network's pooled vectors, with those of other examples as contrasts."""

  def loss(s, t, y):
    theirs = t.features["pooled"]
    size = len(theirs)
    contrasts = jnp.stack([jnp.roll(theirs, k, axis=0) for k in range(min(size, 4))], axis=1)
    contrasts = jnp.concatenate([contrasts, -theirs[:, None]], axis=1)
    return _contrast(
      s.features["pooled"], contrasts, temperature=temperature, log_normalizer=None, examples=30
    )

  return Case(loss, of_logits=True)


SUBJECTS = {
  "contrastive_representation": Subject(
    _contrast, (B, 3), (B, 4, 3), mapped=functools.partial(_contrast, axis_name="batch")
  ),
}

COUNTED = [
  kernel("contrastive_nce", (3,), (4, 3), examples=20),
  kernel("contrastive_nce", (3,), (4, 3), examples=20, log_normalizer=1.0),
]


def _on_outputs(student, teacher):
  """The vectors of a student's Output against contrasts made of the teacher's."""
  if isinstance(student, Output):
    student = Output(features={"embedding": jnp.ones((2, 3))})
  if isinstance(teacher, Output):
    teacher = Output(features={"contrasts": jnp.ones((2, 4, 3))})
  return losses.contrastive_representation(student, teacher, examples=20)


MORE = {"contrastive_nce": (20,)}

CALLS = {"contrastive_representation": _on_outputs}

MUTATIONS = [
  Mutation(
    "CRD's negatives not weighted by their number",
    "crd.py",
    "noise = (contrasts.shape[1] - 1) / examples",
    "noise = 1 / examples",
    "test_crd.py",
    "crd",
  ),
  Mutation(
    "CRD's positive counted as a negative",
    "crd.py",
    "jax.nn.softplus(log_p[:, 1:] - bound)",
    "jax.nn.softplus(log_p - bound)[:, 1:] + jax.nn.softplus(log_p[:, :1] - bound)",
    "test_crd.py",
    "crd",
  ),
  Mutation(
    "CRD's normaliser not scaled by the number of examples",
    "crd.py",
    "+ math.log(examples) - jnp.log(number)",
    "- jnp.log(number)",
    "test_crd.py",
    "crd",
  ),
]

GOLDEN = {"crd": crd, "crd_steps": crd}

RECORDED = ("crd/negatives=3/width=5/temperature=0.01/momentum=0.9",)
