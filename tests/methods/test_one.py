"""ONE: branches on a shared trunk that learn from their gated ensemble."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, methods
from jaxkd.adapters import Gate
from jaxkd.models import Branched, branch_network
from jaxkd.networks import select, update
from jaxkd.types import Context, Output
from tests.methods.one_step import (
  assert_all_moved,
  assert_same,
  jit,
  start,
  updated,
)
from tests.tiny import TinyNet, batch

NETWORK, GATE = TinyNet(), Gate(3)
# The weight is half the step's number.
SCHEME = methods.native_ensemble(NETWORK, GATE, from_stage="stage1", weight=lambda step: 0.5 * step)


@pytest.fixture(scope="module")
def participants():
  return start(SCHEME)


@pytest.fixture(scope="module")
def differentiated():
  """(participants, step) -> ((scalar, Aux), gradients by the learners' parameters)."""

  def loss(learning, participants, step):
    context = Context(jax.random.key(1), step)
    return SCHEME.loss(learning, participants, batch(), None, context)

  compiled = jit(jax.value_and_grad(loss, has_aux=True))

  def run(participants, step):
    return compiled(select(participants, SCHEME.learners), participants, jnp.int32(step))

  return run


def test_the_scalar_is_the_published_sum(participants, differentiated):
  @jit
  def by_hand(participants):
    training = {"train": True, "mutable": ["batch_stats"]}
    outputs, _ = Branched(NETWORK, 3, "stage1").apply(
      participants["student"], batch().inputs, **training
    )
    shares, _ = GATE.apply(participants["gate"], outputs[0].features["stage1"], **training)
    ensemble = sum(shares[:, k, None] * output.logits for k, output in enumerate(outputs))
    labels = [losses.cross_entropy(output.logits, batch().labels) for output in outputs]
    taught = losses.native_ensemble(outputs, Output(logits=ensemble), temperature=3.0).total
    return sum(labels) + losses.cross_entropy(ensemble, batch().labels) + 0.5 * taught

  (scalar, aux), _ = differentiated(participants, 1)
  np.testing.assert_allclose(scalar, by_hand(participants), rtol=1e-5)
  np.testing.assert_allclose(sum(float(t.total) for t in aux.terms.values()), scalar, rtol=1e-6)


def test_trunk_branches_and_gate_learn(participants):
  after = updated(SCHEME, participants, batch())
  # Batch normalisation takes away whatever the bias before it adds.
  still = {"gate": {"params": {"linear": {"bias": jnp.inf}}}}
  assert_all_moved(participants, update(after, still))


def test_the_gate_learns_from_the_ensembles_labels_alone(participants, differentiated):
  (_, without), (_, with_it) = (differentiated(participants, step) for step in (0, 1))
  assert_same(with_it["gate"], without["gate"])
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), with_it["student"], without["student"])
  assert any(jax.tree.leaves(moved))


def test_the_weight_follows_the_step(participants, differentiated):
  terms = [differentiated(participants, step)[0][1].terms for step in (0, 1, 4)]
  none, one, four = (float(t["ensemble"].total) for t in terms)
  assert none == 0.0
  assert four == pytest.approx(4 * one)
  assert float(terms[0]["labels"].total) > 0.0


def test_one_branch_is_the_plain_network():
  single = methods.native_ensemble(NETWORK, GATE, branches=1, from_stage="stage1")
  plain = methods.supervised(NETWORK)
  before = start(single)
  assert set(before) == {"student"}
  module = Branched(NETWORK, 1, "stage1")
  own = {"student": branch_network(module, before["student"], 0).variables}
  after = updated(single, before, batch())
  same = updated(plain, own, batch())
  exported = branch_network(module, after["student"], 0).variables
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), exported, same["student"])
  assert set(single.predict(after, batch().inputs)) == {"branch_0"}


def test_exported_networks_give_the_predictors_logits(participants):
  logits = jit(SCHEME.predict)(participants, batch().inputs)
  networks = SCHEME.export(participants)
  assert set(logits) == set(networks) == {"branch_0", "branch_1", "branch_2", "ensemble"}
  for name, network in networks.items():
    alone = jit(network.module.apply)(network.variables, batch().inputs).logits
    np.testing.assert_allclose(alone, logits[name], atol=1e-5)
  assert isinstance(networks["branch_1"].module, TinyNet)


def test_agreeing_branches_get_no_gradient_from_each_other(participants, differentiated):
  def equal(path, leaf):
    twin = participants["student"]
    for key in path:
      twin = twin["branches_0" if str(key.key).startswith("branches_") else key.key]
    return twin

  student = jax.tree_util.tree_map_with_path(equal, participants["student"])
  alike = {**participants, "student": student}
  (_, without), (_, with_it) = (differentiated(alike, step) for step in (0, 2))
  # The published smoothing of 1e-7 is all that is left.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=3e-5),
    with_it["student"],
    without["student"],
  )
