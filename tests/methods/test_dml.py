"""Deep mutual learning: peers learn from labels and from each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import losses, methods
from jaxkd.errors import ConfigError
from jaxkd.networks import select
from jaxkd.train import take_turns
from jaxkd.types import Context
from tests.methods.one_step import (
  assert_all_moved,
  assert_all_zero,
  assert_same,
  jit,
  loss_and_gradients,
  start,
  updated,
)
from tests.tiny import TinyNet, batch

SMALL, LARGE = TinyNet(), TinyNet(width=6)
PEERS = {"peer_0": SMALL, "peer_1": LARGE, "peer_2": SMALL}
SCHEME = methods.mutual(PEERS, weight=2.0, temperature=3.0)


@pytest.fixture(scope="module")
def participants():
  return start(SCHEME)


@pytest.fixture(scope="module")
def differentiated():
  return loss_and_gradients(SCHEME)


@pytest.fixture(scope="module")
def outcome(participants, differentiated):
  """((scalar, Aux), gradients) of the first batch."""
  return differentiated(participants, batch())


def test_the_scalar_sums_the_label_and_mutual_terms_of_every_peer(participants, outcome):
  @jit
  def by_hand(participants):
    outputs = [
      model.apply(participants[name], batch().inputs, train=True, mutable=["batch_stats"])[0]
      for name, model in PEERS.items()
    ]
    total = 0.0
    for i, own in enumerate(outputs):
      total += losses.cross_entropy(own.logits, batch().labels)
      for j, other in enumerate(outputs):
        if i != j:
          total += 2.0 * losses.soft_target_kl(own.logits, other.logits, temperature=3.0)
    return total

  (scalar, aux), _ = outcome
  np.testing.assert_allclose(scalar, by_hand(participants), rtol=1e-5)
  np.testing.assert_allclose(aux.terms["labels"].total + aux.terms["mutual"].total, scalar)


def test_every_peer_learns_and_keeps_its_own_statistics(participants):
  after = updated(SCHEME, participants, batch())
  assert_all_moved(participants, after)


@pytest.mark.long
def test_the_order_of_the_peers_does_not_matter(participants, outcome):
  turned = methods.mutual(dict(reversed(PEERS.items())), weight=2.0, temperature=3.0)
  (scalar, _), gradients = outcome
  (other, _), turned_gradients = loss_and_gradients(turned)(participants, batch())
  np.testing.assert_allclose(scalar, other, rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), gradients, turned_gradients
  )
  assert_same(start(turned), participants)


@pytest.mark.long
def test_exchanging_two_peers_exchanges_their_updates(participants):
  exchanged = {**participants, "peer_0": participants["peer_2"], "peer_2": participants["peer_0"]}
  after = updated(SCHEME, participants, batch())
  other = updated(SCHEME, exchanged, batch())
  for one, two in (("peer_0", "peer_2"), ("peer_2", "peer_0"), ("peer_1", "peer_1")):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after[one], other[two])


def test_other_peers_get_no_gradient_from_a_peers_objective(participants, outcome):
  """Its gradient is that of its own objective alone, whatever it teaches the others."""

  def own(params):
    variables = {**participants["peer_0"], "params": params}
    images, training = batch().inputs, {"train": True, "mutable": ["batch_stats"]}
    output = SMALL.apply(variables, images, **training)[0]
    total = losses.cross_entropy(output.logits, batch().labels)
    for name in ("peer_1", "peer_2"):
      other = PEERS[name].apply(participants[name], images, **training)[0]
      total += 2.0 * losses.soft_target_kl(output.logits, other.logits, temperature=3.0)
    return total

  expected = jit(jax.grad(own))(participants["peer_0"]["params"])
  found = outcome[1]["peer_0"]["params"]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), found, expected)


@pytest.mark.long
def test_one_peer_alone_is_supervised_training():
  alone, plain = methods.mutual({"student": SMALL}), methods.supervised(SMALL)
  first = start(plain)
  assert_same(start(alone), first)
  assert_same(updated(alone, first, batch()), updated(plain, first, batch()))
  assert set(alone.predict(first, batch().inputs)) == {"student"}


PAIR = {"peer_0": SMALL, "peer_1": LARGE}
ALTERNATING = methods.mutual(PAIR, updates="alternating")


@pytest.fixture(scope="module")
def pair(participants):
  return {name: participants[name] for name in PAIR}


@pytest.fixture(scope="module")
def by_step(pair):
  """step -> (gradients, Aux)."""

  def loss(learning, step):
    return ALTERNATING.loss(learning, pair, batch(), None, Context(jax.random.key(1), step))

  compiled = jit(jax.grad(loss, has_aux=True))
  return lambda step: compiled(select(pair, PAIR), jnp.int32(step))


def test_alternating_one_peer_at_a_step_has_a_gradient_and_new_statistics(pair, by_step):
  for step, name, other in ((2, "peer_0", "peer_1"), (3, "peer_1", "peer_0")):
    found, aux = by_step(step)
    assert_all_zero(found[other])
    assert any(np.any(leaf) for leaf in jax.tree.leaves(found[name]))
    assert_same(aux.state[other]["batch_stats"], pair[other]["batch_stats"])
    assert_all_moved(aux.state[name], {"batch_stats": pair[name]["batch_stats"]})


@pytest.mark.long
def test_alternating_only_one_peer_changes_per_step(pair):
  optimizer = take_turns(optax.sgd(0.1, momentum=0.9), tuple(PAIR))
  after = updated(ALTERNATING, pair, batch(), optimizer=optimizer)
  assert_all_moved(pair["peer_0"], after["peer_0"])
  assert_same(after["peer_1"], pair["peer_1"])


def test_alternating_its_gradient_is_that_of_synchronous_updates(pair, by_step):
  _, together = loss_and_gradients(methods.mutual(PAIR))(pair, batch())
  found, _ = by_step(0)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
    found["peer_0"],
    together["peer_0"]["params"],
  )


def test_unlabelled_images_count_in_the_mutual_term(participants, differentiated):
  silent = dataclasses.replace(batch(), weights=jnp.zeros(8))
  (_, aux), gradients = differentiated(participants, silent)
  assert float(aux.terms["labels"].total) == 0.0
  assert float(aux.terms["mutual"].total) > 0.0
  assert any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_predictors_are_every_peer_and_their_mean_probability(participants):
  logits = jit(SCHEME.predict)(participants, batch().inputs)
  assert set(logits) == {"peer_0", "peer_1", "peer_2", "ensemble"}
  mean = np.mean([jax.nn.softmax(logits[name]) for name in PEERS], axis=0)
  np.testing.assert_allclose(jax.nn.softmax(logits["ensemble"]), mean, atol=1e-6)
  networks = SCHEME.export(participants)
  for name, network in networks.items():
    alone = jit(network.module.apply)(network.variables, batch().inputs).logits
    np.testing.assert_allclose(alone, logits[name], atol=1e-5)


def test_invalid_arguments_are_refused():
  with pytest.raises(ConfigError, match="peers is empty"):
    methods.mutual({})
  with pytest.raises(ConfigError, match="unknown updates 'sometimes'"):
    methods.mutual(PEERS, updates="sometimes")
