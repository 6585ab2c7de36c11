"""Views with another example of the same class: drawn by seed, epoch and example alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd.data import UNLABELLED, ArrayExamples, TreeExamples, training_batches
from jaxkd.data.partners import PartnerDraws
from jaxkd.data.views import with_views
from jaxkd.errors import ConfigError
from jaxkd.types import Batch


def make(labels):
  """Examples with images filled with their position."""
  labels = np.asarray(labels, np.int32)
  images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
  images = np.broadcast_to(images, (len(labels), 2, 2, 1)).copy()
  return ArrayExamples(images, labels, np.arange(len(labels), dtype=np.int32))


@given(labels=st.lists(st.integers(-1, 3), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_a_partner_is_another_example_of_the_class(labels, seed):
  labels = np.array(labels)
  positions, epochs = np.arange(len(labels)), np.arange(len(labels)) % 3
  found = PartnerDraws(make(labels), seed, ("partner",)).of(positions, epochs)["partner"]
  np.testing.assert_array_equal(labels[found], labels)
  sizes = np.array([(labels == label).sum() for label in labels])
  alone = (sizes == 1) | (labels == UNLABELLED)
  np.testing.assert_array_equal(found == positions, alone)


def test_every_other_example_of_the_class_is_drawn_equally_often():
  examples = make([0, 1, 0, 0, 1, 0])
  draws = PartnerDraws(examples, 0, ("partner",))
  found = [draws.of(np.array([2]), np.array([epoch]))["partner"][0] for epoch in range(600)]
  counts = np.bincount(found, minlength=6)
  assert counts[[1, 2, 4]].sum() == 0 and (abs(counts[[0, 3, 5]] - 200) < 50).all()


def test_views_have_draws_of_their_own():
  draws = PartnerDraws(make(np.arange(40) % 2), 0, ("one", "two"))
  found = draws.of(np.arange(40), np.zeros(40, int))
  assert (found["one"] != found["two"]).mean() > 0.8


@pytest.mark.parametrize("places", [False, True])
def test_partners_depend_on_no_process_and_resume(places):
  examples, options = make(np.arange(11) % 3), {"partners": ("partner",), "places": places}
  whole = training_batches(examples, batch_size=4, seed=5, **options)
  parts = [
    training_batches(examples, batch_size=2, seed=5, process_index=i, process_count=2, **options)
    for i in range(2)
  ]
  for _ in range(2):
    next(whole)
  for part in parts:
    part.set_state(whole.get_state())
  for _ in range(4):
    shares = [next(part) for part in parts]
    both = jax.tree.map(lambda *x: np.concatenate(x), *shares)
    chex.assert_trees_all_equal(both, next(whole))


def test_batches_have_the_inputs_of_the_partners():
  labels = np.arange(12) % 3
  batches = training_batches(make(labels), batch_size=5, seed=1, partners=("partner",))
  places = training_batches(make(labels), batch_size=5, seed=1, places=True, partners=("partner",))
  for _ in range(4):
    batch, at = next(batches), next(places)
    partners = batch.views["partner"][:, 0, 0, 0]
    np.testing.assert_array_equal(partners, at.partners["partner"])
    np.testing.assert_array_equal(labels[partners], batch.labels)
    assert (partners != batch.inputs[:, 0, 0, 0]).all()
    assert batch.views["partner"].dtype == np.uint8


def test_examples_without_one_class_each_are_refused_in_one_line():
  numbers = np.arange(4, dtype=np.int32)
  tokens = TreeExamples(np.zeros((4, 3)), np.zeros((4, 3), np.int32), numbers)
  with pytest.raises(ConfigError, match=r"^partners=\('p',\): expected one class per example, got"):
    training_batches(tokens, batch_size=2, seed=0, partners=("p",))
  padded = TreeExamples(np.zeros((4, 3)), numbers, numbers, mask=np.ones(4, bool))
  with pytest.raises(ConfigError, match=r"^partners=\('p',\): expected examples without a mask$"):
    training_batches(padded, batch_size=2, seed=0, partners=("p",))


def shifted(keys, batch):
  """Add a number in 0..1 of each key to the inputs."""
  return Batch(
    batch.inputs + jax.vmap(jax.random.uniform)(keys)[:, None], batch.labels, None, batch.indices
  )


def test_every_view_is_prepared_with_keys_of_its_own():
  x, numbers = jnp.zeros((3, 1)), jnp.arange(3)
  batch = Batch(x, numbers, None, numbers, views={"partner": x + 10})
  keys = jax.random.split(jax.random.key(0), 3)
  seen = with_views(keys, batch, ("one", "two"), shifted)
  np.testing.assert_array_equal(seen.inputs, x)
  assert set(seen.views) == {"one", "two", "partner"}
  assert (seen.views["partner"] >= 10).all() and (seen.views["one"] <= 1).all()
  values = [shifted(keys, batch).inputs, seen.views["one"], seen.views["two"]]
  values += [seen.views["partner"] - 10]
  assert len(np.unique(np.round(values, 5))) == 12
  # A view does not depend on other views, nor an example's on the others of the batch.
  alone = with_views(keys[1:2], jax.tree.map(lambda a: a[1:2], batch), ("two",), shifted)
  np.testing.assert_array_equal(alone.views["two"], seen.views["two"][1:2])
