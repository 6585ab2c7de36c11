"""PS-KD: labels softened by a table of the network's own past predictions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, methods
from jaxkd.errors import ConfigError
from jaxkd.runtime.mapping import AXIS_NAME
from jaxkd.train import Silent, TrainOptions, train_phase
from jaxkd.types import MEMORY
from tests.methods.one_step import assert_all_moved, loss_and_gradients, start
from tests.tiny import TinyNet, batch, examples, phase
from tests.train.every_scheme import assert_same_update, update

NETWORK = TinyNet(norm=False)
SCHEME = methods.progressive(NETWORK, rows=12, epochs=4, past_weight=0.6)
# Examples in three epochs; the numbers are not those of the places in the batch.
INDICES, EPOCHS = jnp.array([3, 1, 0, 7, 9, 11, 5, 2]), jnp.array([0, 1, 1, 2, 3, 3, 9, 1])
DATA = dataclasses.replace(batch(), indices=INDICES, epochs=EPOCHS)


def with_table(participants):
  """A table that has a prediction of every example but the one of index 2."""
  rows = jax.nn.softmax(3 * jax.random.normal(jax.random.key(7), (12, 3))).at[2].set(0)
  return {**participants, "past": {"params": {}, MEMORY: {"predictions": rows}}}


@pytest.fixture(scope="module")
def participants():
  return with_table(start(SCHEME, data=DATA))


def test_the_objective_softens_labels_by_the_past_of_each_example(participants):
  (scalar, aux), gradients = loss_and_gradients(SCHEME)(participants, DATA)
  table = participants["past"][MEMORY]["predictions"]
  weight = jnp.array([0, 0.3, 0.3, 0.45, 0.6, 0.6, 0.6, 0])
  logits = NETWORK.apply(participants["student"], DATA.inputs).logits
  wanted = losses.past_cross_entropy(logits, table[INDICES], DATA.labels, past_weight=weight)
  np.testing.assert_allclose(scalar, wanted, rtol=1e-5)
  np.testing.assert_allclose(aux.metrics["past_weight"], (weight.sum(), 8), rtol=1e-6)
  written = np.asarray(aux.state["past"][MEMORY]["predictions"])
  np.testing.assert_allclose(written[INDICES], jax.nn.softmax(logits), rtol=1e-5)
  others = np.setdiff1d(np.arange(12), INDICES)
  np.testing.assert_array_equal(written[others], table[others])
  assert not gradients["past"][MEMORY]["predictions"].any()
  assert_all_moved(gradients["student"], jax.tree.map(jnp.zeros_like, gradients["student"]))


@pytest.mark.parametrize(
  ("parts", "devices"), [(4, 1), (1, 2), pytest.param(1, 8, marks=pytest.mark.long)]
)
@pytest.mark.parametrize("masked", [pytest.param(False, marks=pytest.mark.long), True])
def test_table_and_update_are_those_of_the_whole_batch(participants, parts, devices, masked):
  mask = jnp.array([1, 1, 0, 1, 1, 0, 0, 1]) if masked else None
  data = dataclasses.replace(DATA, mask=mask)
  expected = update(SCHEME, participants, data)
  assert_same_update(update(SCHEME, participants, data, parts=parts, devices=devices), expected)
  if masked:
    kept, table = (x["past"][MEMORY]["predictions"] for x in (participants, expected[0]))
    same = (np.asarray(kept) == table).all(1)
    assert same[INDICES[mask == 0]].all() and not same[INDICES[mask == 1]].any()


def test_batches_that_have_no_class_numbers_or_epochs_are_refused(participants):
  run = loss_and_gradients(SCHEME)
  soft = dataclasses.replace(DATA, labels=jax.nn.one_hot(DATA.labels, 3))
  with pytest.raises(ConfigError, match=r"^batch.labels: expected class numbers with past"):
    run(participants, soft)
  with pytest.raises(ConfigError, match=r"^batch.epochs=None: expected \(B,\)"):
    run(participants, dataclasses.replace(DATA, epochs=None))
  for options in ({"rows": 0, "epochs": 1}, {"rows": 1, "epochs": 0}):
    with pytest.raises(ConfigError, match=r"=0: expected at least 1"):
      methods.progressive(NETWORK, **options)
  with pytest.raises(ConfigError, match=r"^past_weight is 2: it must lie between 0 and 1$"):
    methods.progressive(NETWORK, rows=1, epochs=1, past_weight=2)


class Stop(Silent):
  """Raises an error after so many updates."""

  def __init__(self, updates):
    self.left = updates

  def stepped(self, metrics, images):
    self.left -= 1
    if self.left == 0:
      raise KeyboardInterrupt


@pytest.mark.long
def test_a_resumed_run_has_the_same_table_and_weights(tmp_path):
  net = TinyNet(axis_name=AXIS_NAME)
  scheme = methods.progressive(net, rows=20, epochs=4)

  def train(folder, devices=2, reporter=None, resident=2**30):
    return train_phase(
      phase(scheme=scheme, average_decay=None, resident_bytes=resident),
      directory=folder,
      devices=jax.local_devices()[:devices],
      reporter=reporter or Silent(),
      validation=examples(9, seed=1),
      options=TrainOptions(checkpoint_seconds=0.0),
    )

  whole = train(tmp_path / "whole")
  with pytest.raises(KeyboardInterrupt):
    train(tmp_path / "resumed", reporter=Stop(7))
  resumed = train(tmp_path / "resumed")
  jax.tree.map(np.testing.assert_array_equal, resumed.participants, whole.participants)
  table = np.asarray(whole.participants["past"][MEMORY]["predictions"])
  np.testing.assert_allclose(table.sum(1), 1, rtol=1e-5)
  # A batch over the end of the first epoch has examples that have a past.
  weights = [row["train"]["past_weight"] for row in whole.rows]
  assert weights[0] < 0.1 and weights == sorted(weights) and 0.6 < weights[-1] <= np.float32(0.8)
  alike = train(tmp_path / "one", devices=1, resident=0)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    alike.participants,
    whole.participants,
  )
