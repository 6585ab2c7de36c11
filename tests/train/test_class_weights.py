"""Class weights of a phase: on parts and devices, of positions, and from a config."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, methods
from jaxkd.data import ArrayExamples
from jaxkd.errors import ConfigError
from jaxkd.experiment import build, config
from jaxkd.methods._labels import label_terms
from jaxkd.runtime import mapping
from jaxkd.train import create_state
from jaxkd.types import Batch, Context
from tests.losses.test_cross_entropy import WEIGHTS, torchs
from tests.test_bad_input import dataset, settings_for
from tests.tiny import TinyNet, batch, phase

UNEVEN = dataclasses.replace(
  batch(8),
  labels=jnp.array([0, 0, 2, 2, 1, 1, -1, 0]),
  weights=jnp.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0]),
)


def updated(parts, devices, fed=UNEVEN, untrained=(), **changes):
  """The loss and the parameters after one update."""
  changes = {"average_decay": None, "scheme": methods.supervised(TinyNet(norm=False)), **changes}
  made = phase(accumulate=parts, prepare_training=lambda keys, batch: batch, **changes)
  chosen = jax.local_devices()[:devices]
  state = create_state(made.scheme, made.optimizer, jax.random.key(0), batch(), untrained=untrained)
  step = mapping.map_training_step(made.training_step(), chosen)
  after, metrics = step(
    mapping.replicate(state, chosen), mapping.shard(jax.tree.map(np.asarray, fed), chosen)
  )
  loss, count = metrics["loss"]
  return float(loss) / float(count), mapping.host_copy(after).participants["student"]["params"]


@pytest.mark.long
def test_parts_and_devices_give_the_update_of_the_whole_batch():
  whole = updated(1, 1, class_weights=WEIGHTS)
  for parts, devices in ((2, 1), (4, 1), (1, 2), (2, 2)):
    found = updated(parts, devices, class_weights=WEIGHTS)
    chex.assert_trees_all_close(found, whole, rtol=1e-5, atol=1e-6)
  masked = dataclasses.replace(UNEVEN, mask=jnp.array([1, 1, 1, 0, 1, 1, 1, 1]))
  chex.assert_trees_all_close(
    updated(2, 2, masked, class_weights=WEIGHTS),
    updated(1, 1, masked, class_weights=WEIGHTS),
    rtol=1e-5,
    atol=1e-6,
  )
  own = dataclasses.replace(UNEVEN, weights=UNEVEN.weights * jnp.array(WEIGHTS)[UNEVEN.labels])
  chex.assert_trees_all_close(updated(1, 1, own), whole, rtol=1e-5, atol=1e-6)
  assert abs(updated(1, 1)[0] - whole[0]) > 1e-3


@pytest.mark.long
def test_class_weights_weight_the_labels_of_distillations_too_on_parts_and_devices():
  decoupled = methods.per_label(losses.decoupled_distillation, what="decoupled distillation")
  net = TinyNet(norm=False)
  scheme = methods.offline(
    net, {"teacher": TinyNet(width=6, norm=False)}, [methods.Distillation("dkd", decoupled)]
  )
  options = {"class_weights": WEIGHTS, "scheme": scheme, "untrained": ("teacher",)}
  whole = updated(1, 1, **options)
  for parts, devices in ((4, 1), (2, 2)):
    found = updated(parts, devices, **options)
    chex.assert_trees_all_close(found, whole, rtol=1e-4, atol=1e-6)


def test_a_part_whose_labels_weigh_nothing_still_has_their_smoothing():
  fed = dataclasses.replace(UNEVEN, labels=jnp.array([0, 2, 1, 1, 2, 0, -1, 0]))
  options = {"class_weights": WEIGHTS, "label_smoothing": 0.3}
  whole = updated(1, 1, fed, **options)
  masked = dataclasses.replace(fed, mask=jnp.ones(8, bool))
  for parts, devices, data in ((4, 1, fed), (2, 2, fed), (1, 4, fed), (1, 4, masked)):
    chex.assert_trees_all_close(
      updated(parts, devices, data, **options), whole, rtol=1e-5, atol=1e-6
    )


def test_labels_of_positions_are_weighted_by_their_classes():
  labels = jnp.array([[0, 2, -1], [2, 2, 1]])
  fed = Batch(jnp.zeros((2, 3)), labels, jnp.float32(labels >= 0), jnp.arange(2))
  logits = jax.random.normal(jax.random.key(0), (2, 3, 3))
  context = Context(jax.random.key(0), jnp.int32(0), class_weights=WEIGHTS)
  found = label_terms(logits, fed, context).logit
  flat = np.asarray(labels).reshape(-1)
  expected = torchs(logits.reshape(-1, 3), np.maximum(flat, 0), WEIGHTS, 0.0, flat >= 0)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def weights_of(value, data=None, method="kd", role="student"):
  settings = settings_for(method, **{role: {"class_weights": value}})
  config.check_config(settings)
  found = build.phases(settings, data or dataset(classes=3), traced=False)
  return {p.role: p.class_weights for p in found}


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_each_section_has_its_own(role):
  found = weights_of(WEIGHTS, role=role)
  assert found[role] == WEIGHTS
  assert found["teacher" if role == "student" else "student"] == ()
  assert found["baseline"] == (WEIGHTS if role == "student" else ())


def test_balanced_weights_are_scikit_learns():
  labels = np.int32([0, 0, 0, 0, 0, 1, 1, -1])
  train = ArrayExamples(np.zeros((8, 8, 8, 1), np.uint8), labels, np.arange(8, dtype=np.int32))
  data = dataclasses.replace(dataset(classes=3), train=train)
  found = weights_of("balanced", data)
  assert found["student"] == found["baseline"] == (7 / 10, 7 / 4, 0.0)


@pytest.mark.parametrize(
  ("value", "message"),
  [
    ((1.0, 2.0), r"student\.class_weights=\(1\.0, 2\.0\): expected 3 numbers, one for each class"),
    ((0.0, 0.0, 0.0), r"student\.class_weights=\(0\.0, 0\.0, 0\.0\): expected \"balanced\", or"),
    ((1.0, -1.0, 1.0), r"student\.class_weights=\(1\.0, -1\.0, 1\.0\): expected"),
    ("balance", r"student\.class_weights='balance': expected"),
    (2.0, r"student\.class_weights=2\.0: expected"),
  ],
)
def test_other_values_are_refused_in_one_line(value, message):
  with pytest.raises(ConfigError, match=message) as caught:
    weights_of(value)
  assert len(str(caught.value).splitlines()) == 1


def test_mixed_labels_are_refused():
  settings = settings_for("alone", student={"class_weights": WEIGHTS}, data={"mixup": 0.2})
  with pytest.raises(ConfigError, match=r"expected \(\) with data\.mixup=0\.2"):
    build.phases(settings, dataset(classes=3), traced=False)
