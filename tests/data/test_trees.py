"""Examples and data sets whose inputs are any pytree: batches, subsets, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxkd.data import (
  UNLABELLED,
  Dataset,
  MultiLabelExamples,
  TreeExamples,
  evaluation_batches,
  per_class,
  split_off,
  training_batches,
  unseen_classes,
  validate_dataset,
  with_unlabelled,
)
from jaxkd.errors import ConfigError
from jaxkd.train.input import resident_examples


def tokens(count=6, length=4):
  return np.arange(count * length).reshape(count, length) % 7


def language(count=6, length=4, **changes):
  values = {
    "inputs": {"tokens": tokens(count, length), "more": (np.ones((count, 2)),)},
    "labels": tokens(count, length) % 5,
    "mask": np.arange(length) < (np.arange(count) % length)[:, None],
  }
  return TreeExamples(**{**values, **changes})


def dataset(**changes):
  some = language()
  return dataclasses.replace(Dataset("own", some, None, some, 5), **changes)


def test_arrays_have_the_types_that_jax_has():
  examples = TreeExamples([tokens().astype("int64"), np.ones((6, 3))], np.arange(6, dtype="uint8"))
  assert [leaf.dtype for leaf in examples.inputs] == [np.int32, np.float32]
  assert examples.labels.dtype == examples.indices.dtype == np.int32
  assert examples.indices.tolist() == list(range(6))
  assert TreeExamples(jax.numpy.ones((2, 3)), [0, 1]).inputs.shape == (2, 3)


def test_batches_hold_the_tree_the_mask_and_a_weight_of_every_label():
  labels = tokens() % 5
  labels[0, 1] = UNLABELLED
  examples = language(labels=labels)
  first, last = evaluation_batches(examples, batch_size=4)
  np.testing.assert_array_equal(first.inputs["tokens"], tokens()[:4])
  assert first.weights.shape == first.labels.shape == first.mask.shape == (4, 4)
  assert first.weights[0].tolist() == [1, 0, 1, 1]
  assert last.weights[:2].all() and not last.weights[2:].any()
  drawn = next(training_batches(examples, batch_size=3, seed=0))
  for place, index in enumerate(drawn.indices):
    np.testing.assert_array_equal(drawn.inputs["tokens"][place], tokens()[index])
    np.testing.assert_array_equal(drawn.mask[place], examples.mask[index])


def test_subsets_keep_indices_and_mask():
  examples = language(count=20)
  rest, part = split_off(examples, 0.25, seed=0)
  assert (len(rest), len(part)) == (15, 5)
  for place, index in enumerate(part.indices):
    np.testing.assert_array_equal(part.inputs["tokens"][place], examples.inputs["tokens"][index])
    np.testing.assert_array_equal(part.mask[place], examples.mask[index])
  mixed = with_unlabelled(part, examples, 3, seed=0)
  assert (mixed.labels == UNLABELLED).all(axis=1).sum() == 3


def test_devices_hold_trees_that_fit_into_the_limit():
  examples = language()
  held = resident_examples(examples, examples.nbytes)
  assert held.mask is examples.mask and held.weights.shape == (6, 4)
  assert resident_examples(examples, examples.nbytes - 1) is None


def test_valid_data_set_is_returned_and_padding_may_hold_anything():
  labels = np.where(language().mask, tokens() % 5, -100)
  floats = np.ones((6, 2))
  floats[0] = np.nan  # nothing of the first example counts
  some = language(labels=labels, inputs={"x": floats, "tokens": tokens()})
  data = dataset(train=some, test=some)
  assert validate_dataset(data) is data
  assert data.input_shape["tokens"] == jax.ShapeDtypeStruct((4,), np.int32)
  data = dataset(num_classes=6, train=language(mask=None))
  assert unseen_classes(data) == "class 5 of 6 has no training example"


def test_numbers_are_finite_in_the_type_that_they_have():
  with jax.enable_x64(True):
    large = TreeExamples(np.full((6, 2), 1e300), np.arange(6) % 5)
    data = Dataset("own", large, None, large, 5)
    assert validate_dataset(data) is data and large.inputs.dtype == np.float64
  for dtype in (jax.numpy.bfloat16, jax.numpy.int4, np.complex64):
    some = TreeExamples(np.ones((6, 2)).astype(dtype), np.arange(6) % 5)
    assert validate_dataset(Dataset("own", some, None, some, 5))


def test_classes_of_padding_are_not_seen():
  inputs, mask = np.zeros((6, 2)), np.arange(6) < 5
  single = TreeExamples(inputs, np.array([0, 1, 0, 1, 0, 2]), mask=mask.astype("float32"))
  multi = MultiLabelExamples(inputs, np.eye(3)[[0, 1, 0, 1, 0, 2]], mask=mask)
  for some in (single, multi):
    data = Dataset("own", some, None, some, 3)
    assert unseen_classes(data) == "class 2 of 3 has no training example"


def with_label(value, place=(1, 0)):
  labels = tokens() % 5
  labels[place] = value
  return language(labels=labels)


def with_number(value):
  floats = np.ones((6, 2))
  floats[3, 1] = value
  return language(inputs={"tokens": tokens(), "more": (floats,)})


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"train": with_label(9)}, "train: label of example 1 at position (0,) is 9, not in 0..4"),
    ({"train": with_label(-100)}, "label of example 1 at position (0,) is -100, not in 0..4"),
    ({"test": with_label(2**40)}, "test: label of example 1 at position (0,) is 2147483647"),
    ({"test": with_number(np.nan)}, "test: inputs['more'][0], row 3: nan: expected finite"),
    ({"train": with_number(1e300)}, "train: inputs['more'][0], row 3: inf: expected finite"),
    ({"test": language(length=3)}, "test: labels are (3,) per example, those of the training"),
    (
      {"test": language(inputs={"tokens": tokens(), "more": (np.ones((6, 3)),)})},
      "test: inputs['more'][0] is float32 (3,), that of the training examples is float32 (2,)",
    ),
    (
      {"test": language(inputs={"tokens": tokens()})},
      "test: inputs['more'][0] is missing, that of the training examples is float32 (2,)",
    ),
    (
      {"test": language(inputs={"tokens": tokens(), "more": [np.ones((6, 2))]})},
      "test: inputs are PyTreeDef(",
    ),
    ({"train": language(labels=np.full((6, 4), UNLABELLED))}, "train: no example has a label"),
    ({"test": language(mask=np.zeros(6))}, "test: no example has a label"),
    ({"mean": (0.5,)}, "mean=(0.5,), std=(): expected () without an image_shape"),
    (
      {"image_shape": (2, 2, 1), "mean": (0.5,), "std": (0.5,)},
      "train: inputs are a dict, expected images (2, 2, 1); a data set of other inputs has no",
    ),
  ],
)
def test_data_set_that_contradicts_itself_is_refused(changes, message):
  with pytest.raises(ConfigError) as error:
    validate_dataset(dataset(**changes))
  assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"inputs": {"a": np.ones((5, 2))}}, "inputs['a'] has 5 rows and labels 6"),
    ({"inputs": [[1, 2], [3, 4]]}, "inputs[0][0]=1: expected an array with a row per example"),
    ({"inputs": {}}, "inputs={}: expected at least one array"),
    ({"inputs": {"a": np.array(["x"] * 6)}}, "inputs['a']: expected numbers, got <U1 (6,)"),
    ({"inputs": {"a": np.array([None] * 6)}}, "inputs['a']: expected numbers, got object (6,)"),
    ({"inputs": np.full((6, 2), 2**40)}, "inputs, row 0: 1099511627776 has no place in int32"),
    ({"labels": np.ones(6)}, "labels: expected integers (N,), or of every position"),
    ({"labels": np.int32(3)}, "labels: expected integers (N,)"),
    ({"mask": np.ones((6, 3))}, "mask: expected (6,) or (6, 4), the axes of labels (6, 4)"),
    ({"labels": np.zeros(6, int)}, "mask: expected (6,), the axes of labels (6,), got bool (6, 4)"),
    ({"indices": np.arange(5)}, "indices: expected integers (6,), got int64 (5,)"),
  ],
)
def test_arrays_that_do_not_belong_together_are_refused(changes, message):
  with pytest.raises(ConfigError) as error:
    language(**changes)
  assert message in str(error.value) and "\n" not in str(error.value)


def test_examples_with_labels_of_every_position_have_no_class():
  with pytest.raises(ConfigError, match=r"per_class=2: the examples have labels \(4,\) each"):
    per_class(language(), 2, seed=0)
