"""ONE: branches on a shared trunk that learn from their gated ensemble."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, schemes
from jaxkd.connectors import Gate
from jaxkd.models import Branched, branch_network
from jaxkd.participants import update
from jaxkd.schemes import ramp
from jaxkd.types import Output
from tests.schemes.one_step import (
  assert_all_moved,
  assert_same,
  jit,
  loss_and_gradients,
  start,
  updated,
)
from tests.tiny import TinyNet, batch

NETWORK, GATE = TinyNet(), Gate(3)
SCHEME = schemes.native_ensemble(NETWORK, GATE, from_stage="stage1", weight=0.5)


@pytest.fixture(scope="module")
def participants():
  return start(SCHEME)


@pytest.fixture(scope="module")
def outcome(participants):
  return loss_and_gradients(SCHEME)(participants, batch())


def test_the_scalar_is_the_published_sum(participants, outcome):
  @jit
  def by_hand(participants):
    training = {"train": True, "mutable": ["batch_stats"]}
    outputs, _ = Branched(NETWORK, 3, "stage1").apply(
      participants["student"], batch().images, **training
    )
    shares, _ = GATE.apply(participants["gate"], outputs[0].features["stage1"], **training)
    ensemble = sum(shares[:, k, None] * output.logits for k, output in enumerate(outputs))
    labels = [losses.cross_entropy(z, batch().labels) for z in [o.logits for o in outputs]]
    taught = losses.native_ensemble(outputs, Output(logits=ensemble), temperature=3.0).total
    return sum(labels) + losses.cross_entropy(ensemble, batch().labels) + 0.5 * taught

  (scalar, aux), _ = outcome
  np.testing.assert_allclose(scalar, by_hand(participants), rtol=1e-5)
  np.testing.assert_allclose(sum(float(t.total) for t in aux.terms.values()), scalar, rtol=1e-6)


def test_trunk_branches_and_gate_learn(participants):
  after = updated(SCHEME, participants, batch())
  # Batch normalisation takes away whatever the bias before it adds.
  still = {"gate": {"params": {"linear": {"bias": jnp.inf}}}}
  assert_all_moved(participants, update(after, still))


def test_the_gate_learns_from_the_ensembles_labels_alone(participants, outcome):
  unweighted = schemes.native_ensemble(NETWORK, GATE, from_stage="stage1", weight=0.0)
  _, without = loss_and_gradients(unweighted)(participants, batch())
  assert_same(outcome[1]["gate"], without["gate"])
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), outcome[1]["student"], without["student"])
  assert any(jax.tree.leaves(moved))


def test_the_weight_rises_with_the_step(participants):
  rising = ramp("linear", steps=10)
  scheme = schemes.native_ensemble(NETWORK, GATE, from_stage="stage1", weight=rising)
  (_, aux), _ = loss_and_gradients(scheme)(participants, batch())
  assert float(aux.terms["ensemble"].total) == 0.0
  assert float(aux.terms["labels"].total) > 0.0


def test_one_branch_is_the_plain_network():
  single = schemes.native_ensemble(NETWORK, GATE, branches=1, from_stage="stage1")
  plain = schemes.supervised(NETWORK)
  before = start(single)
  assert set(before) == {"student"}
  module = Branched(NETWORK, 1, "stage1")
  own = {"student": branch_network(module, before["student"], 0).variables}
  after = updated(single, before, batch())
  same = updated(plain, own, batch())
  exported = branch_network(module, after["student"], 0).variables
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), exported, same["student"])
  assert set(single.predict(after, batch().images)) == {"branch_0"}


def test_every_predictor_leaves_as_what_it_predicted(participants):
  logits = jit(SCHEME.predict)(participants, batch().images)
  networks = SCHEME.export(participants)
  assert set(logits) == set(networks) == {"branch_0", "branch_1", "branch_2", "ensemble"}
  for name, network in networks.items():
    alone = jit(network.module.apply)(network.variables, batch().images).logits
    np.testing.assert_allclose(alone, logits[name], atol=1e-5)
  assert isinstance(networks["branch_1"].module, TinyNet)


def test_agreeing_branches_get_no_gradient_from_each_other(participants):
  def equal(path, leaf):
    names = [getattr(key, "key", None) for key in path]
    twin = participants["student"]
    for name in names:
      twin = twin["branches_0" if str(name).startswith("branches_") else name]
    return twin

  student = jax.tree_util.tree_map_with_path(equal, participants["student"])
  alike = {**participants, "student": student}

  def taught(weight):
    scheme = schemes.native_ensemble(
      NETWORK, GATE, from_stage="stage1", weight=weight, temperature=1.0
    )
    return loss_and_gradients(scheme)(alike, batch())[1]["student"]

  # The published smoothing of 1e-7 is all that is left.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), taught(1.0), taught(0.0)
  )
  assert jnp.isfinite(loss_and_gradients(SCHEME)(alike, batch())[0][0])
