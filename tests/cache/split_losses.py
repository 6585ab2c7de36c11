"""Schemes with only a loss, whose targets are the batch's images, for tests of split losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.types import Aux, Batch, Context, Scheme, Terms


def scheme_of(loss):
  """A scheme of loss(the student's parameters, targets, context) -> scalar or Terms."""

  def of_scheme(learning, participants, batch, targets, context):
    found = loss(learning["student"], targets, context)
    terms = found if isinstance(found, Terms) else Terms(feature=found)
    return jnp.asarray(terms.total), Aux({"loss": terms}, {}, {})

  return Scheme(
    init=lambda rng, batch: {},
    targets=lambda participants, batch: batch.inputs,
    loss=of_scheme,
    predict=lambda participants, images: {},
    learners=("student",),
    export=lambda participants: {},
  )


def participants_of(learned):
  return {"student": {"params": learned}}


def batch_of(targets, size=None):
  size = size or len(jax.tree.leaves(targets)[0])
  ones = np.ones(size, np.float32)
  return Batch(targets, np.zeros(size, np.int32), ones, np.arange(size, dtype=np.int32))


def context(axis_name=None):
  return Context(jax.random.key(2), jnp.int32(3), axis_name)


def normal(*shape, seed=0, dtype=np.float32):
  return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def assert_close(got, want, tolerance=1e-6):
  """Compare trees; each array with a tolerance relative to its largest value."""
  assert jax.tree.structure(got) == jax.tree.structure(want)
  paths = jax.tree.leaves_with_path(want)
  for a, (path, b) in zip(jax.tree.leaves(got), paths, strict=True):
    name = jax.tree_util.keystr(path)
    assert isinstance(a, jax.Array) == isinstance(b, jax.Array), name
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    allowed = tolerance * max(np.abs(b).max(initial=0.0), 1e-12)
    assert np.abs(a - b).max(initial=0.0) <= allowed, (name, a, b)
