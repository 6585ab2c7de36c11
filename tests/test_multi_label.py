"""Multi-hot labels: data, refusals, the objective of every method that takes them, scores."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from rich.console import Console

from jaxkd import data, losses, methods, networks, report
from jaxkd.data.multi_label import with_labels
from jaxkd.errors import ConfigError
from jaxkd.evaluate.multi_label import mean_average_precision, multi_label_score
from jaxkd.experiment import build
from jaxkd.experiment.config import base_config, check_config
from jaxkd.methods._soft_targets import soft_targets
from jaxkd.models import create
from jaxkd.train import Phase, train_phases
from jaxkd.train.state import TrainState
from jaxkd.train.step import StepOptions, monitored_step
from jaxkd.types import Batch, Context, Output
from tests.test_examples import FOLDER, load

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(40, 6)).astype(np.float32)
LABELS = (ROWS[:, :3] + ROWS[:, 1:4] > 0.5).astype(np.uint8)
EXAMPLES = data.MultiLabelExamples(ROWS, LABELS)
TAKE_THEM = {
  "teacher", "alone", "kd", "fitnets", "at", "nst", "fsp", "rkd", "sp", "pkt", "ft", "ab", "simkd",
  "cwd", "mgd", "catkd", "vitkd", "vkd", "cc", "ickd", "vid", "srrl", "kdsvd", "reviewkd", "crd",
  "ofd", "semckd",
}  # fmt: skip


class Model(nn.Module):
  width: int = 4

  @nn.compact
  def __call__(self, inputs, train=False):
    x = nn.relu(nn.Dense(self.width)(inputs))
    return Output(logits=nn.Dense(3)(x), features={"pooled": x})


def dataset(train=EXAMPLES, test=None, classes=3, **fields):
  return data.Dataset("own", train, None, test or train, num_classes=classes, **fields)


def multi_config(method="kd", **fields):
  config = base_config(method)
  config.data.update({"name": "own", "labels": "multi", "validation": 0.0, **fields})
  config.teacher.model = config.student.model = "mlp"
  return config


def batch_of(labels, weights=None, mask=None):
  size = len(labels)
  weights = jnp.ones((size, 3)) if weights is None else weights
  return Batch(
    jnp.asarray(ROWS[:size]), labels, weights, jnp.arange(size), mask=mask, multi_label=True
  )


@pytest.mark.parametrize("dtype", ["uint8", "bool", "int64", "float64"])
def test_labels_of_any_type_reach_the_batch_as_float32(dtype):
  examples = data.MultiLabelExamples(ROWS, LABELS.astype(dtype))
  batch = next(data.evaluation_batches(examples, batch_size=16))
  assert batch.multi_label and batch.labels.dtype == np.float32
  np.testing.assert_array_equal(batch.labels, LABELS[:16])
  assert batch.weights.shape == (16, 3) and batch.weights.all()


@pytest.mark.parametrize(
  ("labels", "message"),
  [
    ([[0, 1], [0, 2]], "labels: row 1 has 2 for class 1: expected numbers in 0..1"),
    ([[0.5, 1], [-0.1, 0]], "labels: row 1 has -0.1 for class 0"),
    ([[0.5, 1], [0, float("nan")]], "labels: row 1 has nan for class 1"),
    ([[0, 1], [-1, 1]], "labels: row 1 has -1 for class 0"),
    ([[0, 1], [0, 1, 1]], "labels: row 1 has 3 labels, row 0 2: expected one per class"),
    ([0, 1], r"expected \(N, C\) with a number in 0..1 for every class, got int64 \(2,\)"),
    (np.array([[0, 1], [None, 1]], object), r"expected \(N, C\) .* got object \(2, 2\)"),
    ([["a", "b"]], "expected .* got <U1"),
  ],
)
def test_rows_that_are_no_labels_are_refused_by_number(labels, message):
  with pytest.raises(ConfigError, match=message):
    data.MultiLabelExamples(np.zeros((len(labels), 4)), labels)


def test_subsets_keep_rows_and_hidden_rows_do_not_count():
  hidden = EXAMPLES.hide_labels(np.array([0, 2]))
  few = hidden.take(np.array([2, 3]))
  batch = next(data.evaluation_batches(few, batch_size=2))
  assert few.multi_label and batch.indices.tolist() == [2, 3]
  assert batch.weights.tolist() == [[0, 0, 0], [1, 1, 1]]


def test_option_decides_and_not_the_values():
  plain = dataset(data.TreeExamples(ROWS, LABELS))
  found = with_labels(plain, "multi")
  assert found.train.multi_label and found.test.multi_label
  assert with_labels(plain, "single") is plain
  with pytest.raises(ConfigError, match=r"data\.labels='single': expected 'multi'"):
    with_labels(dataset(), "single")
  for examples, message in (
    (data.TreeExamples(ROWS, LABELS[:, 0]), r"labels are \(40,\): expected \(N, 3\)"),
    (data.TreeExamples(ROWS, LABELS[:, :2]), "row 0 has 2 labels: expected 3, one per class"),
    (data.TreeExamples(ROWS, 3 * LABELS), "train labels: row 0 has 3"),
  ):
    with pytest.raises(ConfigError, match=message):
      with_labels(dataset(examples), "multi")
  with pytest.raises(ConfigError, match="test labels: row 1 has -1 alone"):
    with_labels(dataset(test=EXAMPLES.hide_labels(np.array([1]))), "multi")


@pytest.mark.parametrize("name", sorted(methods.METHODS))
def test_methods_that_need_single_labels_are_refused(name):
  if name in TAKE_THEM:
    check_config(multi_config(name))
    return
  with pytest.raises(
    ConfigError, match=rf"method\.name='{name}' needs single labels, and data.lab"
  ):
    check_config(multi_config(name))


@pytest.mark.parametrize("field", ["mixup", "per_class", "teacher_per_class", "test_per_class"])
def test_fields_of_single_labels_are_refused(field):
  value = 1.0 if field == "mixup" else 1
  with pytest.raises(ConfigError, match=rf"data\.{field}={value}: expected 0"):
    check_config(multi_config(**{field: value}))


def test_mixing_in_python_is_refused():
  images = jnp.zeros((4, 8, 8, 1))
  batch = dataclasses.replace(batch_of(jnp.float32(LABELS[:4])), inputs=images)
  mix = data.augmentation(mixup=0.2, num_classes=3)
  with pytest.raises(ConfigError, match=r"mixup=0\.2: expected 0 with multi-hot labels"):
    mix(jax.random.key(0), batch)
  # What moves pixels alone leaves the labels of an image as they are.
  moved = data.augmentation(flip=True, num_classes=3)(jax.random.key(0), batch)
  assert moved.multi_label and (moved.labels == batch.labels).all()


def objective(batch, scheme):
  everyone = scheme.init(jax.random.key(0), batch)
  context = Context(jax.random.key(1), jnp.int32(0))
  learning = networks.select(everyone, scheme.learners)
  targets = scheme.targets(everyone, batch)
  return scheme.loss(learning, everyone, batch, targets, context)[1], everyone


def test_objective_of_a_config_is_sigmoid_cross_entropy_and_sigmoid_distillation():
  config = multi_config("kd")
  phases = build.phases(config, with_labels(dataset(), "multi"), traced=False)
  batch = batch_of(jnp.float32(LABELS[:8]))
  aux, everyone = objective(batch, phases[-1].scheme)
  student, teacher = (
    create("mlp", num_classes=3).apply(everyone[name], batch.inputs, train=False).logits
    for name in ("student", "teacher")
  )
  wanted = losses.sigmoid_cross_entropy(student, batch.labels)
  np.testing.assert_allclose(aux.terms["labels"].logit, 0.1 * wanted, rtol=1e-5)
  wanted = losses.sigmoid_kl(student, teacher, temperature=config.method.temperature)
  np.testing.assert_allclose(aux.terms["kd"].logit, 0.9 * wanted, rtol=1e-4)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_of_a_batch_give_the_whole_whatever_they_count(parts):
  mask = jnp.array([1, 1, 0, 0, 1, 1, 1, 0])
  weights = jnp.ones((8, 3)).at[4:6].set(0.0).at[0, 1].set(0.0)
  batch = batch_of(jnp.float32(LABELS[:8]), weights, mask)
  batch = dataclasses.replace(batch, epochs=jnp.zeros(8, jnp.int32))
  kd = methods.Distillation("kd", soft_targets(temperature=2.0), 0.9)
  scheme = methods.offline(Model(), {"teacher": Model()}, [kd])

  def after(parts):
    everyone = scheme.init(jax.random.key(0), batch)
    optimizer = optax.sgd(0.1)
    learning = networks.select(everyone, scheme.learners)
    rng = jax.random.key_data(jax.random.key(0))
    state = TrainState(jnp.int32(0), rng, everyone, optimizer.init(learning), None)
    options = StepOptions(None, parts)
    step = monitored_step(scheme, optimizer, lambda keys, batch: batch, options)
    return jax.jit(step)(state, batch)[0].participants["student"]["params"]

  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), after(parts), after(1)
  )


def test_mean_average_precision_is_that_of_scikit_learn():
  metrics = pytest.importorskip("sklearn.metrics")
  rng = np.random.default_rng(1)
  scores = np.round(rng.normal(size=(50, 4)), 1)  # with ties
  labels = rng.integers(0, 2, (50, 4))
  wanted = metrics.average_precision_score(labels, scores, average="macro")
  np.testing.assert_allclose(mean_average_precision(scores, labels), wanted)
  # Neither the order nor a second copy of every example changes it, nor padding.
  order = rng.permutation(50)
  twice = np.concatenate([scores, scores[order]]), np.concatenate([labels, labels[order]])
  np.testing.assert_allclose(mean_average_precision(*twice), wanted)
  weights = np.concatenate([np.ones((50, 4)), np.zeros((50, 4))])
  other = np.concatenate([scores, -scores]), np.concatenate([labels, labels])
  np.testing.assert_allclose(mean_average_precision(*other, weights), wanted)


@pytest.mark.parametrize("score", [0.0, np.inf, -np.inf])
def test_equal_scores_are_one_threshold_whatever_their_order(score):
  scores = np.full((4, 1), score)
  for labels in ([1, 0, 0, 0], [0, 0, 0, 1]):
    assert mean_average_precision(scores, np.array(labels)[:, None]) == 0.25


def test_classes_without_an_example_are_left_out_of_the_mean():
  scores, labels = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[1, 0], [0, 0]])
  assert mean_average_precision(scores, labels) == 1.0
  assert np.isnan(mean_average_precision(scores, 0 * labels))


def test_score_counts_labels_and_names_what_is_no_label():
  logits = jnp.array([[1.0, -1.0, 1.0], [1.0, 1.0, 1.0], [jnp.nan] * 3])
  labels = jnp.array([[1, 0, 0], [1, 1, 1], [1, 1, 1]])
  found = multi_label_score(logits, labels, jnp.ones(3), where=jnp.array([1, 1, 0]))
  assert [float(x) for x in found["accuracy"]] == [5, 6]
  assert [float(x) for x in found["exact_match"]] == [1, 2]
  # A logit that is NaN would count as a class that does not apply.
  for wrong in ((logits[:2], 2 * labels[:2]), (logits, labels)):
    found = multi_label_score(*wrong, jnp.ones(len(wrong[0])))
    assert all(jnp.isnan(value) for value, _ in found.values())


def test_phases_learn_and_score_the_whole_split(tmp_path):
  kd = methods.Distillation("kd", soft_targets(temperature=2.0), 0.9)
  taught = methods.offline(Model(), {"teacher": Model(16)}, [kd], label_weight=0.1)
  both = {"optimizer": optax.adam(0.05), "epochs": 15, "examples": EXAMPLES, "batch_size": 8}
  first = Phase("teacher", methods.supervised(Model(16)), reported="student", **both)
  second = Phase(
    "student", taught, reported="student", inherit={"teacher": "teacher/student"}, **both
  )
  # 37 is no multiple of the batch: padding must not count.
  test = EXAMPLES.take(np.arange(37))
  results = train_phases([first, second], tmp_path, test=test)
  for result in results.values():
    scores = result.test["student"]
    logits = (
      Model(16 if result is results["teacher"] else 4)
      .apply(result.participants["student"], test.inputs)
      .logits
    )
    np.testing.assert_allclose(
      scores["mean_average_precision"], mean_average_precision(np.asarray(logits), test.labels)
    )
    np.testing.assert_allclose(scores["accuracy"], np.mean((logits > 0) == (test.labels > 0.5)))
    assert scores["accuracy"] > 0.9


def test_tables_show_mean_average_precision_in_place_of_the_accuracy():
  row = {"predictor": "student", "model": "mlp", "parameters": 5}
  scores = {"alone": (0.9, 0.5, "baseline"), "distilled": (0.8, 0.75, "student")}
  stages = {
    name: {**row, "accuracy": accuracy, "mean_average_precision": precision, "role": role}
    for name, (accuracy, precision, role) in scores.items()
  }
  assert report.comparison(stages) == {"difference": 0.25}
  config = {"method": {"name": "kd"}, "data": {"name": "own"}, "seed": 0}
  console = Console(record=True, width=100)
  summary = {"config": config, "stages": stages, "comparison": report.comparison(stages)}
  console.print(report.closing_table(summary))
  text = console.export_text()
  assert "test mAP" in text and "75.00%" in text and "+25.00 points" in text
  assert "accuracy" not in text


def test_example_has_at_most_40_lines():
  assert len((FOLDER / "multi_label.py").read_text().splitlines()) <= 40


@pytest.mark.long
def test_example_runs(tmp_path):
  summary = load(FOLDER / "multi_label.py").main(tmp_path / "run", epochs=3)
  for row in summary["stages"].values():
    assert row["test"][row["predictor"]]["mean_average_precision"] > 0.85
