import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd.data import (
  UNLABELLED,
  ArrayExamples,
  MultiLabelExamples,
  TreeExamples,
  per_class,
  split_off,
  with_unlabelled,
)
from jaxkd.data.subsets import permutation
from jaxkd.errors import ConfigError


def examples_with(labels):
  labels = np.asarray(labels, np.int32)
  images = np.zeros((len(labels), 1, 1, 1), np.uint8)
  return ArrayExamples(images, labels, np.arange(len(labels), dtype=np.int32))


EXAMPLES = examples_with(np.tile([0, 1, 1, 2, 2, 2], 20))


@given(seed=st.integers(0, 2**40), small=st.integers(1, 20), large=st.integers(1, 20))
def test_per_class_subsets_are_balanced_nested_and_in_order(seed, small, large):
  small, large = sorted((small, large))
  few, many = per_class(EXAMPLES, small, seed=seed), per_class(EXAMPLES, large, seed=seed)
  np.testing.assert_array_equal(np.bincount(few.labels), [small] * 3)
  assert set(few.indices) <= set(many.indices)
  assert (np.diff(many.indices) > 0).all()


def test_per_class_subsets_depend_on_the_seed_alone():
  chosen = [per_class(EXAMPLES, 5, seed=seed).indices.tolist() for seed in (0, 0, 1)]
  assert chosen[0] == chosen[1] != chosen[2]


def test_per_class_error_names_the_class_with_too_few_examples():
  with pytest.raises(ConfigError, match="per_class=21: class 0 has only 20 examples"):
    per_class(EXAMPLES, 21, seed=0)
  for n in (0, -1, 2.0, True):
    with pytest.raises(ConfigError, match="per_class: expected an integer >= 1"):
      per_class(EXAMPLES, n, seed=0)


@given(seed=st.integers(0, 2**40), small=st.integers(1, 90), large=st.integers(1, 90))
def test_unlabelled_examples_follow_the_labelled_ones_and_nest(seed, small, large):
  labelled = per_class(EXAMPLES, 10, seed=seed)
  small, large = sorted((small, large))
  few, many = (with_unlabelled(labelled, EXAMPLES, n, seed=seed) for n in (small, large))
  for count, both in ((small, few), (large, many)):
    np.testing.assert_array_equal(both.indices[:30], labelled.indices)
    np.testing.assert_array_equal(both.labels[:30], labelled.labels)
    np.testing.assert_array_equal(both.labels[30:], np.full(count, UNLABELLED))
    assert (np.diff(both.indices[30:]) > 0).all()
    assert len(set(both.indices)) == 30 + count
  assert set(few.indices) <= set(many.indices)
  np.testing.assert_array_equal(EXAMPLES.labels[:6], [0, 1, 1, 2, 2, 2])


def test_unlabelled_examples_depend_on_the_seed_not_on_classes():
  labelled = per_class(EXAMPLES, 1, seed=0)
  chosen = [with_unlabelled(labelled, EXAMPLES, 60, seed=s).indices[3:] for s in (0, 0, 1)]
  np.testing.assert_array_equal(chosen[0], chosen[1])
  assert chosen[0].tolist() != chosen[2].tolist()
  # Other labels do not change the choice.
  other = ArrayExamples(EXAMPLES.images, EXAMPLES.labels[::-1].copy(), EXAMPLES.indices)
  again = with_unlabelled(other.take(labelled.indices), other, 60, seed=0)
  np.testing.assert_array_equal(again.indices[3:], chosen[0])


def test_too_many_unlabelled_examples_are_refused_with_the_number_left():
  labelled = per_class(EXAMPLES, 10, seed=0)
  assert len(with_unlabelled(labelled, EXAMPLES, 90, seed=0)) == len(EXAMPLES)
  with pytest.raises(ConfigError, match="unlabelled=91: only 90 examples are left"):
    with_unlabelled(labelled, EXAMPLES, 91, seed=0)
  for count in (0, -1, 2.0, True):
    with pytest.raises(ConfigError, match="unlabelled: expected an integer >= 1"):
      with_unlabelled(labelled, EXAMPLES, count, seed=0)


def test_unlabelled_examples_are_no_class():
  both = with_unlabelled(per_class(EXAMPLES, 10, seed=0), EXAMPLES, 5, seed=0)
  np.testing.assert_array_equal(np.bincount(per_class(both, 10, seed=0).labels), [10] * 3)


@given(
  seed=st.integers(0, 99),
  labels=st.lists(st.integers(0, 4), min_size=2, max_size=60),
  fraction=st.floats(0.01, 0.99),
)
def test_split_off_divides_every_class_in_proportion(seed, labels, fraction):
  examples = examples_with(labels)
  count = min(max(1, round(fraction * len(labels))), len(labels) - 1)
  rest, off = split_off(examples, count, seed=seed)
  assert len(off) == count
  together = np.concatenate([rest.indices, off.indices])
  np.testing.assert_array_equal(np.sort(together), np.arange(len(labels)))
  share = count / len(labels)
  for label in set(labels):
    assert abs((off.labels == label).sum() - share * labels.count(label)) < 1
  np.testing.assert_array_equal(off.labels, np.asarray(labels)[off.indices])


def test_split_off_accepts_fractions_and_counts():
  assert len(split_off(EXAMPLES, 0.1, seed=0)[1]) == 12
  assert len(split_off(EXAMPLES, 7, seed=0)[1]) == 7
  for size in (0, 0.0, 1.0, 120, -3, True, 0.001):
    with pytest.raises(ConfigError, match="split_off: "):
      split_off(EXAMPLES, size, seed=0)


@pytest.mark.parametrize("multi_label", [False, True])
def test_examples_without_a_label_stay_in_the_first_part(multi_label):
  labels = np.arange(20) % 2
  inputs = np.zeros((20, 3))
  some = TreeExamples(inputs, labels)
  if multi_label:
    some = MultiLabelExamples(inputs, np.eye(2)[labels])
  hidden = np.array([0, 7, 8, 19])
  rest, part = split_off(some.hide_labels(hidden), 0.25, seed=0)
  assert (len(rest), len(part)) == (16, 4)
  assert set(hidden) <= set(rest.indices) and list(rest.indices) == sorted(rest.indices)
  assert (part.labels != UNLABELLED).all()
  with pytest.raises(ConfigError, match="16 of 16 labelled examples"):
    split_off(some.hide_labels(hidden), 16, seed=0)


def test_seeds_must_be_non_negative_integers():
  for seed in (-1, 0.5, None, True):
    with pytest.raises(ConfigError, match="seed: expected an integer >= 0"):
      split_off(EXAMPLES, 0.1, seed=seed)


def test_permutations_are_frozen_and_neighbouring_keys_unrelated():
  # Values of NumPy 2.4.6; if they change, so does every subset and every run.
  assert permutation(8, 0, 1).tolist() == [3, 1, 0, 4, 5, 6, 7, 2]
  assert permutation(8, 1, 0).tolist() != permutation(8, 0, 1).tolist()
