"""KDCL: peers with augmentations of their own and one target."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, methods
from jaxkd.errors import ConfigError
from tests.methods.one_step import loss_and_gradients, start
from tests.tiny import TinyNet, batch
from tests.train.every_scheme import assert_same_update, update

PEERS = {"peer_0": TinyNet(norm=False), "peer_1": TinyNet(width=3, norm=False)}
WEIGHTS = jnp.array([1.0, 1.0, 0.5, 0.0, 0.0, 1.0, 0.0, 2.0])
VIEW = batch().inputs[:, ::-1] * 0.9
DATA = dataclasses.replace(batch(), weights=WEIGHTS, views={"peer_1": VIEW})


@pytest.mark.long
def test_a_peer_sees_the_view_of_its_name():
  scheme = methods.collaborative(PEERS, weight=0.5, label_weight=0.25, ensemble="naive")
  participants = start(scheme)
  (scalar, aux), _ = loss_and_gradients(scheme)(participants, DATA)
  seen = {"peer_0": DATA.inputs, "peer_1": VIEW}
  outputs = [PEERS[n].apply(participants[n], x, train=True).logits for n, x in seen.items()]
  hard = sum(losses.cross_entropy(z, DATA.labels, WEIGHTS) for z in outputs)
  taught = losses.collaborative_kl(jnp.stack(outputs), DATA.labels, WEIGHTS, ensemble="naive")
  np.testing.assert_allclose(scalar, 0.25 * hard + 0.5 * taught, rtol=1e-5)
  assert set(aux.terms) == {"labels", "collaborative"}
  same = loss_and_gradients(scheme)(participants, dataclasses.replace(DATA, views={}))
  assert float(same[0][0]) != float(scalar)
  assert set(scheme.export(participants)) == {"peer_0", "peer_1", "ensemble"}


@pytest.mark.long
@pytest.mark.parametrize(
  "ensemble", ["minlogit", *(pytest.param(x, marks=pytest.mark.long) for x in ("naive", "mean"))]
)
def test_parts_and_devices_give_the_update_of_the_whole_batch(ensemble):
  scheme = methods.collaborative(PEERS, ensemble=ensemble)
  participants = start(scheme)
  expected = update(scheme, participants, DATA)
  for parts, devices in ((4, 1), (1, 2)):
    assert_same_update(update(scheme, participants, DATA, parts=parts, devices=devices), expected)


@pytest.mark.parametrize(
  "ensemble", [pytest.param(name, marks=pytest.mark.long) for name in ("linear", "naive_batch")]
)
def test_targets_of_the_whole_batch_are_those_of_all_devices(ensemble):
  scheme = methods.collaborative(PEERS, ensemble=ensemble)
  participants = start(scheme)
  expected = update(scheme, participants, DATA)
  assert_same_update(update(scheme, participants, DATA, devices=4), expected)
  with pytest.raises(ConfigError, match=rf"^accumulate=2: expected 1 with ensemble='{ensemble}'"):
    update(scheme, participants, DATA, parts=2)


def test_equal_peers_learn_from_labels_alone():
  scheme = methods.collaborative({"peer_0": PEERS["peer_0"], "peer_1": PEERS["peer_0"]})
  participants = start(scheme)
  participants = {"peer_0": participants["peer_0"], "peer_1": participants["peer_0"]}
  (_, aux), _ = loss_and_gradients(scheme)(participants, batch())
  assert float(aux.terms["collaborative"].total) == 0
