"""Rows of variational information distillation (VID)."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_adapters.vid import vid
from tests.rows._counted import Case
from tests.rows._mutation import Mutation
from tests.rows._networked import BOTH
from tests.rows._networked import Case as Networked
from tests.rows._subject import B, Subject, of_maps, of_tokens


def _with_variances(student):
  """Add variances of 1, 2, ... to an Output's features, for a loss that is not negative."""
  if not isinstance(student, Output):
    return student
  found = {
    f"{stage}_variance": 1.0 + jnp.arange(x.shape[-1], dtype=x.dtype)
    for stage, x in student.features.items()
  }
  return dataclasses.replace(student, features={**student.features, **found})


def _loss(student, teacher, **options):
  return losses.variational_information(_with_variances(student), teacher, **options)


def _kernel(s, t, **where):
  return losses.gaussian_log_loss(s, t, 1.0 + jnp.arange(2, dtype=s.dtype), **where)


SUBJECTS = {
  "variational_information": Subject(of_maps(_loss), (B, 2, 2, 3), (B, 3, 3, 3)),
  "variational_information_tokens": Subject(of_tokens(_loss), (B, 4, 3), (B, 4, 3), long=True),
}

COUNTED = [Case("gaussian_log_loss", _kernel)]

CALLS = {"variational_information": _loss}
MORE = {"gaussian_log_loss": (jnp.ones(3),)}

BEHIND_A_NETWORK = {
  "variational_information": Networked(lambda s, t, y: _loss(s, t, stages=BOTH).total)
}

MUTATIONS = [
  Mutation(
    "VID without the logarithm of the variance",
    "vid.py",
    "/ variance + jnp.log(variance)) / 2",
    "/ variance) / 2",
    "test_vid.py",
    "vid",
  ),
  Mutation(
    "VID divided by the deviation, not by the variance",
    "vid.py",
    "jnp.square(student - teacher) / variance",
    "jnp.square(student - teacher) / jnp.sqrt(variance)",
    "test_vid.py",
    "vid",
  ),
  Mutation(
    "VID's teacher not constant",
    "vid.py",
    "widen(student, lax.stop_gradient(teacher), variance, what=what)",
    "widen(student, teacher, variance, what=what)",
    "test_vid.py",
    "",
  ),
]

GOLDEN = {"vid": vid}

RECORDED = ("vid/eps=0.001/initial_variance=2.0",)
