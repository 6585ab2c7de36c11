"""CS-KD: pairs of one class through a scheme, its batches and a resumed run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, methods
from jaxkd.errors import ConfigError
from jaxkd.networks import update as with_state
from jaxkd.runtime.mapping import AXIS_NAME
from jaxkd.train import Silent, TrainOptions, train_phase
from tests.methods.one_step import loss_and_gradients, start
from tests.methods.test_pskd import Stop
from tests.tiny import TinyNet, batch, phase
from tests.train.every_scheme import assert_same_update, update

NETWORK = TinyNet()
SCHEME = methods.class_wise(NETWORK, weight=0.7)
DATA = dataclasses.replace(batch(), views={"partner": batch().inputs[::-1] + 0.1})


def test_the_objective_is_the_published_sum_and_statistics_move_twice():
  participants = start(SCHEME)
  (scalar, aux), gradients = loss_and_gradients(SCHEME)(participants, DATA)

  def by_hand(params):
    student = {**participants["student"], "params": params}
    training = {"train": True, "mutable": ["batch_stats"]}
    output, first = NETWORK.apply(student, DATA.inputs, **training)
    partner, second = NETWORK.apply(
      jax.lax.stop_gradient(with_state(student, first)), DATA.views["partner"], **training
    )
    taught = losses.soft_target_kl(output.logits, partner.logits, temperature=4.0)
    return losses.cross_entropy(output.logits, DATA.labels) + 0.7 * taught, second

  (wanted, state), slopes = jax.jit(jax.value_and_grad(by_hand, has_aux=True))(
    participants["student"]["params"]
  )
  np.testing.assert_allclose(scalar, wanted, rtol=1e-5)
  for found, expected in ((aux.state["student"], state), (gradients["student"]["params"], slopes)):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, dict(expected)
    )
  assert set(aux.terms) == {"labels", "class_wise"}


@pytest.mark.parametrize("masked", [pytest.param(False, marks=pytest.mark.long), True])
def test_parts_and_devices_give_the_update_of_the_whole_batch(masked):
  scheme = methods.class_wise(TinyNet(norm=False))
  mask = jnp.array([1, 1, 0, 1, 1, 0, 0, 1]) if masked else None
  data = dataclasses.replace(DATA, mask=mask)
  participants = start(scheme)
  expected = update(scheme, participants, data)
  for parts, devices in ((4, 1), (1, 2)):
    assert_same_update(update(scheme, participants, data, parts=parts, devices=devices), expected)


def test_a_batch_without_partners_is_refused_in_one_line():
  with pytest.raises(ConfigError, match=r"^batch.views=\[\]: expected 'partner', the inputs of an"):
    loss_and_gradients(SCHEME)(start(SCHEME), batch())


def test_equal_predictions_leave_the_labels_alone():
  scheme = methods.class_wise(TinyNet(norm=False))
  data = dataclasses.replace(batch(), views={"partner": batch().inputs})
  (_, aux), _ = loss_and_gradients(scheme)(start(scheme), data)
  assert float(aux.terms["class_wise"].total) == 0


@pytest.mark.long
def test_a_resumed_run_and_one_fed_from_the_host_have_the_same_pairs(tmp_path):
  def train(folder, devices=2, reporter=None, resident=2**30):
    scheme = methods.class_wise(TinyNet(axis_name=AXIS_NAME))
    views = {"scheme": scheme, "partners": ("partner",), "average_decay": None}
    return train_phase(
      phase(**views, resident_bytes=resident, prepare_training=prepared),
      directory=folder,
      devices=jax.local_devices()[:devices],
      reporter=reporter or Silent(),
      options=TrainOptions(checkpoint_seconds=0.0),
    ).participants

  whole = train(tmp_path / "whole")
  with pytest.raises(KeyboardInterrupt):
    train(tmp_path / "resumed", reporter=Stop(7))
  jax.tree.map(np.testing.assert_array_equal, train(tmp_path / "resumed"), whole)
  for devices, resident in ((2, 0), (1, 2**30)):
    found = train(tmp_path / f"{devices}_{resident}", devices, resident=resident)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found, whole)


def prepared(keys, data):
  """Normalise inputs and partners."""
  views = {name: x / 128.0 - 0.5 for name, x in data.views.items()}
  return dataclasses.replace(data, inputs=data.inputs / 128.0 - 0.5, views=views)
