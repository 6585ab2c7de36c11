"""Phases on tokens with a mask: any division of the work gives one result; what is refused."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxkd import losses, methods
from jaxkd.data import UNLABELLED, TreeExamples, augmentation
from jaxkd.errors import ConfigError
from jaxkd.methods import Distillation, per_example
from jaxkd.runtime.mapping import AXIS_NAME
from jaxkd.train import Phase, Silent, train_phase
from jaxkd.train.loop import TrainOptions
from jaxkd.types import Output

VOCABULARY = 5


class Tagger(nn.Module):
  """{"tokens": (B, T), "kind": (B,)} -> logits (B, T, V), or (B, V) of the whole text."""

  width: int = 4
  pooled: bool = False
  norm: bool = True

  @nn.compact
  def __call__(self, inputs, train=False):
    x = nn.Embed(VOCABULARY, self.width)(inputs["tokens"])
    x = nn.tanh(x + nn.Embed(2, self.width)(inputs["kind"])[:, None])
    if self.norm:
      x = nn.BatchNorm(use_running_average=not train, axis_name=AXIS_NAME)(x)
    return Output(
      logits=nn.Dense(VOCABULARY)(x.mean(1) if self.pooled else x), features={"tokens": x}
    )


def examples(count=24, seed=0, **changes):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(0, VOCABULARY, (count, 6))
  labels = (tokens + np.arange(count)[:, None] % 2) % VOCABULARY
  labels[:, 2] = UNLABELLED
  mask = np.arange(6) < rng.integers(1, 7, (count, 1))
  mask[3] = False  # an example of which nothing counts
  labels = np.where(mask, labels, 99)
  inputs = {"tokens": tokens, "kind": np.arange(count) % 2}
  return TreeExamples(**{"inputs": inputs, "labels": labels, "mask": mask, **changes})


@functools.cache
def teacher():
  variables = Tagger(6).init(jax.random.key(7), examples().fetch(np.arange(2)))
  return jax.tree.map(np.asarray, variables)


def phase(**changes):
  kd = Distillation("kd", per_example(losses.knowledge_distillation))
  hint = Distillation("hint", per_example(losses.fitnets, stages=("tokens",)))
  values = {
    "name": "student",
    "scheme": methods.offline(Tagger(6), {"teacher": Tagger(6)}, [kd, hint]),
    "optimizer": optax.sgd(0.1),
    "epochs": 2,
    "examples": examples(),
    "batch_size": 8,
    "reported": "student",
    "given": {"teacher": teacher()},
  }
  return Phase(**{**values, **changes})


def trained(folder, devices=1, options=None, test=None, **changes):
  return train_phase(
    phase(**changes),
    directory=folder,
    devices=jax.local_devices()[:devices],
    reporter=Silent(),
    test=test,
    options=options,
  )


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
  return trained(tmp_path_factory.mktemp("expected"), test=examples(9, seed=1))


def test_scores_are_means_over_the_labels_that_count(expected):
  test, student = examples(9, seed=1), expected.participants["student"]
  logits = np.asarray(Tagger(6).apply(student, test.inputs).logits, np.float64)
  counted = test.mask & (test.labels != UNLABELLED)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  found = expected.test["student"]
  np.testing.assert_allclose(
    found["accuracy"], (logits.argmax(-1) == test.labels)[counted].mean(), rtol=1e-6
  )
  nll = -np.take_along_axis(log_p, np.where(counted, test.labels, 0)[..., None], -1)[..., 0]
  np.testing.assert_allclose(found["cross_entropy"], nll[counted].mean(), rtol=1e-5)


@pytest.mark.parametrize(
  "changes",
  [
    {"resident_bytes": 0},
    {"cached_targets": True},
    pytest.param({"cached_targets": True, "resident_bytes": 0}, marks=pytest.mark.long),
    pytest.param({"devices": 2}, marks=pytest.mark.long),
    pytest.param({"cached_targets": True, "devices": 2}, marks=pytest.mark.long),
  ],
  ids=str,
)
def test_any_division_of_the_work_gives_the_same_student(expected, changes, tmp_path):
  options = TrainOptions(targets=tmp_path / "targets")
  found = trained(tmp_path / "run", options=options, test=examples(9, seed=1), **changes)
  chex.assert_trees_all_close(found.participants, expected.participants, rtol=2e-4, atol=2e-5)
  chex.assert_trees_all_close(found.test, expected.test, rtol=1e-4)
  for name, value in expected.rows[-1]["train"].items():
    np.testing.assert_allclose(found.rows[-1]["train"][name], value, rtol=1e-3, err_msg=name)


@pytest.mark.long
def test_parts_of_a_batch_give_the_student_of_the_whole(tmp_path):
  kd = Distillation("kd", per_example(losses.knowledge_distillation))
  own = {"scheme": methods.offline(Tagger(norm=False), {"teacher": Tagger(6)}, [kd])}
  whole, parts = (trained(tmp_path / str(n), accumulate=n, **own).participants for n in (1, 4))
  chex.assert_trees_all_close(parts["student"], whole["student"], rtol=2e-4, atol=2e-5)


def test_padding_may_hold_anything(expected, tmp_path):
  """Labels and tokens, as the network computes each token alone: also its features in the hint."""
  given = examples()
  tokens = np.where(given.mask, given.inputs["tokens"], 4)
  labels = np.where(given.mask, given.labels, -7)
  other = examples(inputs={**given.inputs, "tokens": tokens}, labels=labels)
  found = trained(tmp_path, examples=other)
  chex.assert_trees_all_close(found.participants, expected.participants, rtol=1e-5, atol=1e-6)


def test_splits_may_have_other_lengths_than_the_training_examples(tmp_path):
  longer = examples(
    5,
    inputs={"tokens": np.ones((5, 9), int), "kind": np.zeros(5, int)},
    labels=np.zeros((5, 9), int),
    mask=None,
  )
  found = train_phase(
    phase(),
    directory=tmp_path,
    devices=jax.local_devices()[:1],
    reporter=Silent(),
    validation=examples(9, seed=1),
    test=longer,
  )
  assert found.test["student"]["accuracy"] in (0.0, 1.0)  # all tokens are equal


def short(labels, **changes):
  return examples(labels=labels, mask=None, **changes)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"examples": short(np.zeros(24, int))},
      "phase 'student': training examples: the logits of 'student' of 2 examples are (2, 6, 5) and "
      "the labels (2,): expected labels (2, 6)",
    ),
    (
      {"examples": short(np.zeros((24, 4), int))},
      "are (2, 6, 5) and the labels (2, 4): expected labels (2, 6)",
    ),
    (
      {"scheme": methods.supervised(Tagger(pooled=True)), "given": {}},
      "are (2, 5) and the labels (2, 6): expected labels (2,)",
    ),
    (
      {"test": short(np.zeros(24, int))},
      "test examples: the logits of 'student' of 2 examples are (2, 6, 5) and the labels (2,)",
    ),
    (
      {"test": examples(inputs=np.zeros((24, 6), int))},
      "phase 'student': test examples do not fit the networks: ",
    ),
    (
      {"prepare_training": augmentation(flip=True, num_classes=5)},
      "augmentation: expected images (B, H, W, C) of floating point, got inputs['kind'] int32 (2,)",
    ),
    (
      {"prepare_training": lambda keys, batch: batch.images},
      "training examples cannot be prepared for training: 'Batch' object has no attribute",
    ),
  ],
)
def test_examples_that_do_not_fit_are_refused_before_anything_is_written(
  changes, message, tmp_path
):
  with pytest.raises(ConfigError) as error:
    trained(tmp_path / "run", **changes)
  assert message in str(error.value) and "\n" not in str(error.value)
  assert not (tmp_path / "run").exists()


def test_tables_of_floats_need_no_normalisation(tmp_path):
  class Table(nn.Module):
    @nn.compact
    def __call__(self, inputs, train=False):
      return Output(logits=nn.Dense(3)(jnp.concatenate([inputs["a"], inputs["b"]], -1)))

  rng = np.random.default_rng(0)
  labels = np.arange(48) % 3
  inputs = {"a": rng.normal(size=(48, 2)), "b": np.eye(3)[labels] + rng.normal(size=(48, 3)) / 9}
  table = TreeExamples(inputs, labels)
  own = {"scheme": methods.supervised(Table()), "given": {}, "epochs": 8}
  found = trained(tmp_path, examples=table, optimizer=optax.adam(0.1), test=table, **own)
  assert found.test["student"]["accuracy"] > 0.9
