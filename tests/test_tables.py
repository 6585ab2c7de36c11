"""Tables of stored logits: their values, their checks, and students that learn from them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, methods
from jaxkd.errors import ConfigError
from jaxkd.losses import soft_target_kl
from jaxkd.methods import Distillation, Table, TopK, per_example
from jaxkd.networks import infer
from jaxkd.train import Silent, TrainOptions, train_phase
from jaxkd.types import TABLE
from tests import tiny
from tests.train.every_scheme import assert_same_update, start, update
from tests.train.test_resume import Broken, StopAfter, assert_same

RNG = np.random.default_rng(0)
LOGITS = np.float32(3 * RNG.normal(size=(20, 3)))
KD = Distillation("kd", per_example(losses.knowledge_distillation), 0.9)
BATCH = dataclasses.replace(tiny.batch(8), indices=jnp.array([3, 19, 0, 7, 7, 2, 11, 5]))


def output(table, batch=BATCH, name="teacher"):
  return table.output(name, table.variables, batch).logits


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", ">f4", "fortran", "bfloat16"])
def test_output_is_the_row_of_each_index(kind):
  stored = {"fortran": np.asfortranarray(LOGITS), "bfloat16": np.asarray(jnp.bfloat16(LOGITS))}
  stored = stored[kind] if kind in stored else LOGITS.astype(kind)
  table = Table(stored)
  assert (len(table), table.num_classes) == (20, 3) and table.nbytes <= LOGITS.nbytes
  found = output(table)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, np.float32(stored)[np.asarray(BATCH.indices)], rtol=1e-6)
  fed = Table(stored, fed=True)
  rows = fed.rows(np.asarray(BATCH.indices))
  np.testing.assert_array_equal(
    output(fed, dataclasses.replace(BATCH, tables={"teacher": rows})), found
  )
  assert {k: v.shape for k, v in rows.items()} == {k: v.shape for k, v in fed.shapes((8,)).items()}


def test_each_epoch_has_the_row_of_its_view():
  views = np.stack([LOGITS, -LOGITS, 2 * LOGITS])
  epochs = np.arange(8)
  batch = dataclasses.replace(BATCH, epochs=jnp.asarray(epochs))
  want = views[epochs % 3, np.asarray(BATCH.indices)]
  np.testing.assert_array_equal(output(Table(views, views=3), batch), want)
  found = Table(views, views=3).rows(np.asarray(BATCH.indices), epochs)
  np.testing.assert_array_equal(found["logits"], want)
  with pytest.raises(ConfigError, match=r"^batch.epochs=None: expected \(B,\)"):
    output(Table(views, views=3))


def test_dense_predictions_have_the_axes_of_their_rows():
  stored = np.float32(RNG.normal(size=(20, 4, 3)))
  np.testing.assert_array_equal(output(Table(stored)), stored[np.asarray(BATCH.indices)])
  order = np.argsort(stored, -1)[..., :0:-1]
  values = np.take_along_axis(stored, order, -1)
  found = output(Table(TopK(order, values, 3)))
  assert found.shape == (8, 4, 3) and np.isneginf(found).sum() == 8 * 4


def test_missing_classes_have_no_probability_or_equal_shares_of_the_rest():
  exact = np.array(jax.nn.log_softmax(jnp.asarray(RNG.normal(size=(20, 6)))))
  order = np.argsort(-exact, -1)[:, :2]
  values = np.take_along_axis(exact, order, -1)
  at = np.asarray(BATCH.indices)
  none = np.asarray(jax.nn.softmax(output(Table(TopK(order, values, 6)))))
  np.testing.assert_allclose(none.sum(-1), 1, rtol=1e-6)
  assert (np.sort(none, -1)[:, :4] == 0).all()
  shared = np.asarray(jax.nn.softmax(output(Table(TopK(order, values, 6, "spread")))))
  kept = np.take_along_axis(shared, order[at], -1)
  np.testing.assert_allclose(kept, np.exp(values[at]), rtol=1e-5)
  rest = (1 - np.exp(values[at]).sum(-1)) / 4
  np.testing.assert_allclose(np.sort(shared, -1)[:, :4], rest[:, None].repeat(4, 1), rtol=1e-4)
  # With all of the probability in K classes there is none left, and no NaN.
  whole = np.log(np.full((20, 2), 0.5))
  found = output(Table(TopK(order, whole, 6, "spread")))
  np.testing.assert_allclose(np.sort(jax.nn.softmax(found), -1)[:, -2:], 0.5)


@pytest.mark.parametrize(
  ("logits", "message"),
  [
    (LOGITS[0], r"logits: expected \(N, C\), got shape \(3,\)"),
    (np.zeros((0, 3), np.float32), r"logits: expected \(N, C\), got shape \(0, 3\)"),
    (np.zeros((4, 3), np.int64), r"logits: expected floats, got int64 \(4, 3\)"),
    (np.zeros((4, 3), np.complex64), r"logits: expected floats, got complex64"),
    (np.array([[None, 1.0]]), r"logits: expected floats, got object"),
    (np.array([["a", "b"]]), r"logits: expected floats, got <U1"),
    (np.float32([[0, 1], [np.nan, 1]]), r"logits: row 1 has NaN"),
    (np.float64([[0, 1], [1e300, 1]]), r"logits: row 1 has inf"),
    (np.float32([[0, 1], [0, np.inf]]), r"logits: row 1 has inf"),
    (np.full((2, 2), -np.inf, np.float32), r"logits: row 0 has -inf for every class"),
    (TopK([[0, 3]], [[1.0, 2.0]], 3), r"indices: row 0 has a class that is not in 0..2: \[0, 3\]"),
    (TopK([[0, -1]], [[1.0, 2.0]], 3), r"indices: row 0 has a class that is not in 0..2"),
    (TopK([[0, 1], [2, 2]], np.ones((2, 2)), 3), r"indices: row 1 has a class twice: \[2, 2\]"),
    (TopK([[0.0, 1.0]], [[1.0, 2.0]], 3), r"indices: expected integers, got float64"),
    (TopK([[0, 1]], [[1, 2]], 3), r"values: expected floats, got int64"),
    (TopK([[0, 1]], [[1.0]], 3), r"indices \(1, 2\) and values \(1, 1\): expected one shape"),
    (TopK([[0, 1]], [[np.nan, 2.0]], 3), r"values: row 0 has NaN"),
    (TopK([[0]], [[1.0]], 0), r"num_classes: expected an integer >= 1, got 0"),
    (TopK([[0]], [[-1.0]], 2, "zero"), r"missing='zero': expected one of impossible, spread"),
    (TopK([[0, 1]], [[1.0, 2.0]], 3, "spread"), r"values: row 0 has probabilities that sum to 10"),
  ],
)
def test_a_wrong_table_is_a_one_line_error(logits, message):
  with pytest.raises(ConfigError, match=f"^{message}") as error:
    Table(logits)
  assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
  ("views", "message"),
  [
    (2, r"logits: expected \(V, N, C\) with V=2, got shape \(20, 3\)"),
    (-1, "views: expected an integer >= 0, got -1"),
    (True, "views: expected an integer >= 0, got True"),
  ],
)
def test_wrong_views_are_a_one_line_error(views, message):
  with pytest.raises(ConfigError, match=f"^{message}"):
    Table(LOGITS, views=views)
  with pytest.raises(ConfigError, match=r"^logits: 1 views, expected 2"):
    Table(LOGITS[None], views=2)
  wrong = np.stack([LOGITS, LOGITS])
  wrong[1, 7, 2] = np.nan
  with pytest.raises(ConfigError, match=r"^logits: view 1, row 7 has NaN"):
    Table(wrong, views=2)


def test_an_index_without_a_row_is_an_error_on_the_host_and_nan_on_a_device():
  for wrong in (20, -1):
    indices = BATCH.indices.at[2].set(wrong)
    found = output(Table(LOGITS), dataclasses.replace(BATCH, indices=indices))
    assert np.isnan(found[2]).all() and np.isfinite(np.delete(found, 2, 0)).all()
    with pytest.raises(ConfigError, match=rf"^indices: {wrong} has no row in a table of 20"):
      Table(LOGITS).rows(np.asarray(indices))
  top = TopK(np.tile([0, 2], (4, 1)), np.ones((4, 2), np.float32), 3)
  assert not np.isnan(output(Table(top))[0]).any()  # index 3 is there, 19 is not
  assert np.isnan(output(Table(top))[1]).all()


def scheme_of(table, *distillations):
  return methods.offline(tiny.TinyNet(), {"teacher": table}, distillations or (KD,))


def test_the_loss_is_that_of_the_logits_of_the_batch():
  scheme = scheme_of(Table(LOGITS))
  participants = start(scheme)
  targets = scheme.targets(participants, BATCH)
  assert_same(participants["teacher"][TABLE]["logits"][0], LOGITS)
  logits = LOGITS[np.asarray(BATCH.indices)]
  np.testing.assert_array_equal(targets["kd"].logits, logits)
  ours = 0.5 * logits[::-1]
  want = soft_target_kl(ours, logits)
  found = KD.loss(dataclasses.replace(targets["kd"], logits=ours), targets["kd"], BATCH, None)
  assert float(found.logit) == pytest.approx(float(want))


@pytest.mark.long
@pytest.mark.parametrize("mask", [False, True])
def test_parts_and_devices_give_the_update_of_the_whole_batch(mask):
  scheme = methods.offline(tiny.TinyNet(norm=False), {"teacher": Table(LOGITS)}, (KD,))
  participants = start(scheme)
  data = dataclasses.replace(BATCH, weights=jnp.float32([1, 0, 0, 1, 1, 0, 1, 1]))
  if mask:  # padding may have any index
    padded = data.indices.at[-2:].set(99)
    data = dataclasses.replace(data, indices=padded, mask=jnp.arange(8) < 6)
  expected = update(scheme, participants, data)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
  for parts, devices in ((4, 1), (2, 2), (1, 4)):
    assert_same_update(update(scheme, participants, data, parts=parts, devices=devices), expected)


def test_what_a_table_cannot_give_is_a_one_line_error():
  table = Table(LOGITS)
  gradients = dataclasses.replace(KD, gradients=((), ("images",)))
  with pytest.raises(ConfigError, match=r"^distillation 'kd' reads gradients .*: expected a"):
    scheme_of(table, gradients)
  with pytest.raises(ConfigError, match=r"^Table\(20 examples, 3 classes\) is a teacher without a"):
    infer(table, table.variables, BATCH.inputs)
  mixed = dataclasses.replace(BATCH, labels=jax.nn.one_hot(BATCH.labels, 3))
  with pytest.raises(ConfigError, match=r"^batch.labels \(8, 3\) are those of mixed examples"):
    output(table, mixed)
  with pytest.raises(ConfigError, match=r"^batch.tables has no 'teacher': expected"):
    output(Table(LOGITS, fed=True))


def phase_of(logits=LOGITS, **changes):
  table = Table(logits, fed=True)
  return tiny.phase(
    **{
      "scheme": scheme_of(table),
      "tables": {"teacher": table},
      "epochs": 3,
      "average_decay": None,
      **changes,
    }
  )


def train(directory, phase, *, devices=1, reporter=None, together=1):
  return train_phase(
    phase,
    directory=directory,
    devices=jax.local_devices()[:devices],
    reporter=reporter or Silent(),
    options=TrainOptions(checkpoint_seconds=0.0 if reporter else 1e9, steps_per_dispatch=together),
  )


@pytest.fixture(scope="module")
def resident(tmp_path_factory):
  return train(tmp_path_factory.mktemp("resident"), phase_of())


@pytest.mark.long
@pytest.mark.parametrize("how", ["host", "variables", "steps"])
def test_rows_from_devices_the_host_and_variables_train_alike(tmp_path, resident, how):
  table = Table(LOGITS)
  changes = {
    "host": {"resident_bytes": 10},
    "variables": {"scheme": scheme_of(table), "tables": {}},
    "steps": {},
  }[how]
  found = train(tmp_path, phase_of(**changes), together=2 if how == "steps" else 1)
  assert all(row["train"]["kd_logit"] > 0 for row in found.rows)
  for ours, theirs in zip(found.rows, resident.rows, strict=True):
    for name, value in theirs["train"].items():
      assert ours["train"][name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("limit", [pytest.param(10, marks=pytest.mark.long), 2**30])
def test_a_phase_resumes_and_refuses_another_table(tmp_path, limit):
  phase = phase_of(resident_bytes=limit)
  whole = train(tmp_path / "whole", phase, devices=2)
  with pytest.raises(Broken):
    train(tmp_path / "broken", phase, devices=2, reporter=StopAfter(5))
  with pytest.raises(ConfigError, match=r"^phase 'alone': the table of 'teacher' is not the one"):
    train(tmp_path / "broken", phase_of(LOGITS + 1, resident_bytes=limit), devices=2)
  resumed = train(tmp_path / "broken", phase, devices=2)
  assert_same(resumed.participants, whole.participants)
  assert resumed.rows == whole.rows


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"tables": {"teacher": Table(LOGITS)}}, "has fed=False"),
    ({"cached_targets": True}, "expected cached_targets=False"),
    ({"examples": tiny.examples(21)}, "has 20 rows: expected more than 20"),
    ({"tables": {"teacher": Table(LOGITS[None], views=1, fed=True)}}, "has 1 views, the phase 0"),
  ],
)
def test_a_table_that_does_not_fit_its_phase_is_a_one_line_error(tmp_path, changes, message):
  with pytest.raises(ConfigError, match=rf"^phase 'alone': the table of 'teacher'.* {message}"):
    train(tmp_path, phase_of(**changes))
