"""Rows of KDCL."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_adapters.kdcl import kdcl
from tests.rows._counted import LOGITS, Case
from tests.rows._mutation import Mutation
from tests.rows._networked import Case as Networked
from tests.rows._subject import B, Subject

LABELS = jnp.array([0, 1])


def _labels(t):
  """Return the last class in the order of t; padding has none."""
  return jax.lax.stop_gradient(jnp.where(jnp.isfinite(t[:, 0]), jnp.argmin(t, axis=-1), -1))


def _of_branches(**options):
  """A branch that learns and two constant ones; the target has a gradient, as its value moves."""

  def apply(s, t, **where):
    constant = jax.lax.stop_gradient(t)
    branches = [Output(s), Output(constant), Output(constant[:, ::-1])]
    loss = losses.collaborative_learning
    return loss(branches, _labels(t), detached=False, **options, **where).total

  return apply


def _of_kernel(s, t, *, ensemble, **given):
  branches = jnp.stack([s, t, s[:, ::-1]])
  return losses.collaborative_kl(branches, _labels(t), ensemble=ensemble, **given)


SUBJECTS = {
  "collaborative_learning": Subject(_of_branches(), (B, 5), (B, 5)),
  "collaborative_learning_mean": Subject(_of_branches(ensemble="mean"), (B, 5), (B, 5), long=True),
  "collaborative_learning_naive": Subject(
    _of_branches(ensemble="naive"), (B, 5), (B, 5), long=True
  ),
  "collaborative_learning_naive_batch": Subject(
    _of_branches(ensemble="naive_batch"),
    (B, 5),
    (B, 5),
    mapped=_of_branches(ensemble="naive_batch", axis_name="batch"),
    long=True,
  ),
}

COUNTED = [
  Case("collaborative_kl", functools.partial(_of_kernel, ensemble="minlogit"), *LOGITS),
  Case("collaborative_kl", functools.partial(_of_kernel, ensemble="linear"), *LOGITS),
]

CALLS = {"collaborative_learning": lambda s, t: losses.collaborative_learning([s, t], LABELS)}
MORE = {"collaborative_kl": (LABELS,)}
ONE_SIDED = ["collaborative_kl"]

BEHIND_A_NETWORK = {
  f"collaborative_learning {ensemble}": Networked(
    lambda s, t, y, ensemble=ensemble: (
      losses.collaborative_learning(
        [s, Output(t.logits), Output(-t.logits)], y, ensemble=ensemble
      ).total
    ),
    of_logits=True,
  )
  for ensemble in ("minlogit", "linear")
}

MUTATIONS = [
  Mutation(
    "MinLogit's logits not less that of the label",
    "_kdcl_target.py",
    "jnp.where(impossible, -jnp.inf, finite - own)",
    "jnp.where(impossible, -jnp.inf, finite)",
    "test_kdcl.py",
    "kdcl",
  ),
  Mutation(
    "KDCL's weights of the linear target not projected",
    "_kdcl_target.py",
    "return _PROJECTIONS[projection](a - rate * slopes, a), None",
    "return a - rate * slopes, None",
    "test_kdcl.py",
    "kdcl",
  ),
  Mutation(
    "KDCL's target with a gradient",
    "_kdcl_target.py",
    "branches = constant if detached else branches",
    "branches = branches if detached else branches",
    "test_kdcl.py",
    "kdcl",
  ),
]

GOLDEN = {"kdcl": kdcl}

RECORDED = ("kdcl/ensemble='linear'/peers=3", "kdcl/ensemble='naive'")
