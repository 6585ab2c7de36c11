"""Born-again networks: each generation learns from the previous one."""

import jax
import numpy as np
import pytest

from jaxkd import losses, methods
from jaxkd.errors import ConfigError
from jaxkd.methods import Distillation, per_example, whole_batch
from jaxkd.methods.born_again import permuted
from tests.methods.one_step import (
  assert_all_moved,
  assert_all_zero,
  assert_same,
  jit,
  loss_and_gradients,
  start,
  updated,
)
from tests.tiny import TinyNet, batch

STUDENT = TinyNet()
KD = per_example(losses.knowledge_distillation)


def generation(number, loss=KD, *, label_weight=1.0):
  distillation = Distillation("taught", loss, teacher=f"generation_{number - 1}")
  return methods.born_again(STUDENT, [distillation], generation=number, label_weight=label_weight)


SECOND = generation(2)


@pytest.fixture(scope="module")
def participants():
  return start(SECOND)


@pytest.fixture(scope="module")
def outcome(participants):
  return loss_and_gradients(SECOND)(participants, batch())


def test_it_learns_from_the_previous_generation_alone(participants, outcome):
  _, gradients = outcome
  for earlier in ("generation_0", "generation_1"):
    assert_all_zero(gradients[earlier])

  @jit
  def by_hand(participants):
    student, _ = STUDENT.apply(
      participants["student"], batch().inputs, train=True, mutable=["batch_stats"]
    )
    teacher = STUDENT.apply(participants["generation_1"], batch().inputs)
    labels = losses.cross_entropy(student.logits, batch().labels)
    return labels + losses.soft_target_kl(student.logits, teacher.logits)

  np.testing.assert_allclose(outcome[0][0], by_hand(participants), rtol=1e-5)


def test_earlier_generations_do_not_change(participants):
  after = updated(SECOND, participants, batch())
  assert_all_moved(participants["student"], after["student"])
  for earlier in ("generation_0", "generation_1"):
    assert_same(participants[earlier], after[earlier])


def test_generations_start_differently(participants):
  kernels = [variables["params"]["conv1"]["kernel"] for variables in participants.values()]
  assert len(kernels) == 3
  assert not any(np.array_equal(kernels[0], other) for other in kernels[1:])


def test_label_weight_0_needs_no_labels(participants):
  scheme = generation(2, label_weight=0.0)
  (_, aux), _ = loss_and_gradients(scheme)(participants, batch())
  assert list(aux.terms) == ["taught"]


def test_confidence_weighs_the_labels(participants):
  loss = whole_batch(losses.confidence_weighted_by_teacher_max, labels=True)
  scheme = generation(2, loss, label_weight=0.0)
  (scalar, _), _ = loss_and_gradients(scheme)(participants, batch())

  @jit
  def by_hand(participants):
    student, _ = STUDENT.apply(
      participants["student"], batch().inputs, train=True, mutable=["batch_stats"]
    )
    teacher = STUDENT.apply(participants["generation_1"], batch().inputs)
    sure = jax.nn.softmax(teacher.logits).max(axis=-1)
    return losses.cross_entropy(student.logits, batch().labels, sure)

  np.testing.assert_allclose(scalar, by_hand(participants), rtol=1e-5)


def test_permuted_knowledge_uses_a_key_of_the_step(participants):
  scheme = generation(2, permuted(1.0))
  (scalar, _), _ = loss_and_gradients(scheme)(participants, batch())
  again = loss_and_gradients(scheme)(participants, batch())[0][0]
  assert scalar == again


def test_the_ensemble_contains_all_generations(participants):
  logits = jit(SECOND.predict)(participants, batch().inputs)
  assert set(logits) == {"student", "ensemble"}
  each = [STUDENT.apply(v, batch().inputs).logits for v in participants.values()]
  mean = np.mean([jax.nn.softmax(z) for z in each], axis=0)
  np.testing.assert_allclose(jax.nn.softmax(logits["ensemble"]), mean, atol=1e-6)
  for name, network in SECOND.export(participants).items():
    alone = jit(network.module.apply)(network.variables, batch().inputs).logits
    np.testing.assert_allclose(alone, logits[name], atol=1e-5)


def test_generation_0_is_refused():
  with pytest.raises(ConfigError, match="generation is 0"):
    methods.born_again(STUDENT, [], generation=0)
