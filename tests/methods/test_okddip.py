"""OKDDip: a trunk with peers and a leader, and the attention over them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, methods
from jaxkd.adapters import PeerAttention
from jaxkd.errors import ConfigError
from jaxkd.models import Branched
from jaxkd.networks import select
from jaxkd.types import Context
from tests.methods.one_step import assert_all_moved, jit, start, updated
from tests.tiny import TinyNet, batch
from tests.train.every_scheme import assert_same_update, update

NETWORK, ATTENTION = TinyNet(norm=False), PeerAttention(2)
SCHEME = methods.diverse_peers(
  NETWORK, ATTENTION, peers=2, from_stage="stage1", weight=lambda step: 0.5 * step
)


@pytest.fixture(scope="module")
def participants():
  return start(SCHEME)


def test_the_scalar_is_the_published_sum(participants):
  @jit
  def both(participants):
    learning = select(participants, SCHEME.learners)
    scalar, aux = SCHEME.loss(
      learning, participants, batch(), None, Context(jax.random.key(1), jnp.int32(1))
    )
    outputs = Branched(NETWORK, 3, "stage1").apply(participants["student"], batch().inputs)
    features = [output.features["pooled"] for output in outputs[:2]]
    attention = ATTENTION.apply(participants["attention"], features, train=True)
    terms = losses.diverse_peers(outputs[:2], outputs[2], attention)
    hard = sum(losses.cross_entropy(output.logits, batch().labels) for output in outputs)
    return scalar, aux, hard + 0.5 * (terms["peers"].total + terms["leader"].total)

  scalar, aux, wanted = both(participants)
  np.testing.assert_allclose(scalar, wanted, rtol=1e-5)
  assert set(aux.terms) == {"labels", "peers", "leader"}
  assert aux.metrics["accuracy"] == aux.metrics["accuracy_leader"]


def test_everything_learns_and_exports_predict_alike(participants):
  scheme = methods.diverse_peers(NETWORK, ATTENTION, peers=2, from_stage="stage1")
  after = updated(scheme, participants, batch())
  assert_all_moved(participants, after)
  logits, networks = jit(scheme.predict)(after, batch().inputs), scheme.export(after)
  assert set(logits) == set(networks) == {"peer_0", "peer_1", "leader", "ensemble"}
  for name, network in networks.items():
    found = network.module.apply(network.variables, batch().inputs).logits
    np.testing.assert_allclose(found, logits[name], rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_parts_and_devices_give_the_update_of_the_whole_batch(participants):
  expected = update(SCHEME, participants, batch())
  for parts, devices in ((4, 1), (1, 2)):
    found = update(SCHEME, participants, batch(), parts=parts, devices=devices)
    assert_same_update(found, expected)


def test_no_peer_is_refused():
  with pytest.raises(ConfigError, match=r"^peers=0: expected at least 1$"):
    methods.diverse_peers(NETWORK, ATTENTION, peers=0)
