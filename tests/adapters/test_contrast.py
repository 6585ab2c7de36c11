"""CRD's memory: negatives of other classes, rows that are written, equal bits on all devices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.adapters import ContrastMemory, ExampleTable
from jaxkd.adapters.memory import write_rows
from jaxkd.errors import ConfigError
from jaxkd.types import MEMORY, Batch, Output
from tests.methods.one_step import jit

LABELS = np.array([0, 1, 1, 2, 0, 2, 2, -1, 1, 0, 0, 1, 2])
# Not every index of the data set belongs to the examples.
INDICES = np.arange(len(LABELS))[::-1] * 3


def drawn(indices, count, seed=0):
  table = ExampleTable(INDICES, LABELS)
  rows = table.rows(jnp.asarray(indices))
  keys = jax.random.split(jax.random.key(seed), len(indices))
  return np.asarray(rows), np.asarray(table.others(keys, rows, count))


def test_negatives_are_different_and_of_other_classes():
  rows, others = drawn(np.tile(INDICES, 10), 9)
  assert ExampleTable(INDICES, LABELS).fewest == 9
  for row, found in zip(rows, others, strict=True):
    assert len(set(found)) == 9 and row not in found
    assert LABELS[row] == -1 or LABELS[row] not in LABELS[found]


def test_every_row_of_another_class_is_equally_likely():
  _, others = drawn(np.full(6000, INDICES[1]), 4)
  found = np.bincount(others.ravel(), minlength=len(LABELS)) / 6000
  np.testing.assert_allclose(found, np.where(LABELS == 1, 0, 4 / 9), atol=0.03)


def test_an_unlabelled_example_leaves_out_itself_alone():
  table = ExampleTable(range(5), -np.ones(5, int))
  assert table.fewest == 4
  several = ExampleTable(range(5), np.zeros((5, 3)))
  others = several.others(jax.random.split(jax.random.key(0), 5), jnp.arange(5), 4)
  assert all(set(found) == set(range(5)) - {row} for row, found in enumerate(others.tolist()))


@pytest.mark.parametrize(
  ("indices", "labels", "message"),
  [
    ([0, 1], [3, 3], "labels of 2 examples: expected more than one class"),
    ([0, 0], [1, 2], "indices of 2 examples: expected at least one, .* each of them once"),
    ([], [], "indices of 0 examples"),
  ],
)
def test_a_table_without_negatives_is_refused(indices, labels, message):
  with pytest.raises(ConfigError, match=message):
    ExampleTable(np.array(indices, int), np.array(labels, int))


def adapter(**changes):
  options = {"width": 3, "negatives": 4, "temperature": 0.1, **changes}
  return ContrastMemory(ExampleTable(INDICES, LABELS), **options)


def inputs(rows, seed=0, mask=None):
  rng = np.random.default_rng(seed)
  student, teacher = (
    Output(features={"pooled": rng.normal(size=(len(rows), width)).astype("float32")})
    for width in (4, 5)
  )
  batch = Batch(None, None, None, jnp.asarray(INDICES[rows]), mask=mask)
  return student, teacher, batch


def start(module, data):
  return jit(lambda data: module.init(jax.random.key(1), data, train=False))(data)


def applied(module, variables, data):
  return module.apply(variables, data, train=True, mutable=[MEMORY])


def step(module, variables, data):
  found, changes = jit(functools.partial(applied, module))(variables, data)
  return found, {**variables, **changes}


def test_rows_of_the_batch_move_towards_their_embeddings_by_the_momentum():
  rows = np.array([3, 5, 11])
  data = inputs(rows)
  before = start(adapter(momentum=0.9), data)
  found, after = step(adapter(momentum=0.9), before, data)
  for side, output in zip(("student", "teacher"), found, strict=True):
    old, new = before[MEMORY][side], after[MEMORY][side]
    moved = 0.9 * old[rows] + 0.1 * output.features["embedding"]
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    np.testing.assert_allclose(new[rows], moved, rtol=1e-5)
    others = np.delete(np.arange(len(LABELS)), rows)
    np.testing.assert_array_equal(new[others], old[others])
  # What was read is the memory before it was written.
  np.testing.assert_array_equal(
    found[0].features["contrasts"][:, 0], before[MEMORY]["student"][rows]
  )


def test_normalizers_are_those_of_the_first_batch_that_counts():
  first = inputs(np.array([3, 5, 11]))
  variables = start(adapter(), first)
  nothing = (*first[:2], Batch(None, None, None, first[2].indices, mask=jnp.zeros(3)))
  found, after = step(adapter(), variables, nothing)
  assert not after[MEMORY]["normalized"]
  _, after = step(adapter(), after, first)
  kept = after[MEMORY]["log_normalizers"]
  assert after[MEMORY]["normalized"] and np.isfinite(kept).all()
  found, later = step(adapter(), after, inputs(np.array([0, 1, 2]), seed=5))
  np.testing.assert_array_equal(later[MEMORY]["log_normalizers"], kept)
  assert found[0].features["log_normalizer"] == kept[0]


def test_padding_is_not_written():
  rows = np.array([3, 5, 11])
  data = inputs(rows, mask=jnp.array([1, 0, 1]))
  before = start(adapter(), data)
  _, after = step(adapter(), before, data)
  changed = np.any(before[MEMORY]["teacher"] != after[MEMORY]["teacher"], axis=1)
  assert set(np.flatnonzero(changed)) == {3, 11}


def test_negatives_change_with_the_step_and_not_with_the_batch():
  rows = np.array([3, 5, 11])
  module, data = adapter(), inputs(rows)
  first = start(module, data)
  found, second = step(module, first, data)
  (_, alone), _ = step(module, first, inputs(rows[1:2]))
  contrasts = found[1].features["contrasts"]
  np.testing.assert_array_equal(alone.features["contrasts"][0], contrasts[1])
  again, _ = step(module, {**second, MEMORY: {**first[MEMORY], "steps": 1}}, data)
  assert np.any(again[1].features["contrasts"] != contrasts)


def test_an_unknown_index_gives_nan():
  module, data = adapter(), inputs(np.array([3, 5]))
  variables = start(module, data)
  unknown = (*data[:2], Batch(None, None, None, jnp.array([1, 1000])))
  (found, _), _ = step(module, variables, unknown)
  assert np.isnan(found.features["contrasts"][:, 0]).all()


@pytest.mark.long
@pytest.mark.parametrize("devices", [2, 3, 8])
def test_memories_of_all_devices_have_the_same_bits_and_those_of_the_whole_batch(devices):
  rows = np.arange(2 * devices) % len(LABELS)
  data = inputs(rows, mask=(np.arange(2 * devices) != 1).astype("float32"))
  variables = start(adapter(), data)
  whole = step(adapter(), variables, data)[1][MEMORY]
  module = adapter(device_axis="device")
  split = jax.tree.map(lambda x: x.reshape(devices, 2, *x.shape[1:]), data)
  mapped = jax.pmap(
    lambda data: applied(module, variables, data)[1][MEMORY],
    "device",
    devices=jax.devices()[:devices],
  )(split)
  for name, leaf in mapped.items():
    for other in np.asarray(leaf)[1:]:
      np.testing.assert_array_equal(other, leaf[0])
    np.testing.assert_allclose(leaf[0], whole[name], rtol=1e-5, atol=1e-6)


def test_an_example_is_written_if_any_of_its_positions_counts():
  mask = jnp.array([[True, False], [False, False], [False, True]])
  bank = write_rows(jnp.zeros(4), jnp.array([3, 1, 0]), jnp.array([5.0, 6.0, 7.0]), mask)
  np.testing.assert_array_equal(bank, [7.0, 0.0, 0.0, 5.0])


def test_a_memory_of_numpy_is_written_without_jit():
  module, data = adapter(), inputs(np.array([3, 5, 11]))
  variables = start(module, data)
  _, wanted = step(module, variables, data)
  _, changes = applied(module, jax.device_get(variables), jax.device_get(data))
  for name, value in changes[MEMORY].items():
    np.testing.assert_allclose(value, wanted[MEMORY][name], rtol=1e-5)
