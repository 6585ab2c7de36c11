"""DeiT: hard and soft targets of the distillation token, and the head that the labels train."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.losses import distillation_token, hard_target_cross_entropy, soft_target_kl
from jaxkd.methods import Distillation, offline, per_example
from jaxkd.models import ClassTokenTransformer
from jaxkd.networks import select
from jaxkd.types import Batch, Context, Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype("float32")


def test_hard_target_is_the_teachers_first_largest_class():
  s, t = draw(3, 5), draw(3, 5, seed=1)
  t[0, 1] = t[0, 3] = 9.0
  classes = np.argmax(t, axis=1)
  assert classes[0] == 1
  wanted = -np.mean(np.asarray(jax.nn.log_softmax(s))[np.arange(3), classes])
  np.testing.assert_allclose(hard_target_cross_entropy(s, t), wanted, rtol=1e-6)
  np.testing.assert_allclose(hard_target_cross_entropy(s, 7 * t + 1), wanted, rtol=1e-6)


def test_soft_targets_are_kl_and_divided_by_the_classes_in_the_code():
  s, t = draw(3, 5), draw(3, 5, seed=1)
  sides = Output(features={"logits_dist": s}), Output(logits=t)
  kl = soft_target_kl(s, t, temperature=3.0)
  for form, divisor in (("paper", 1), ("code", 5)):
    value = distillation_token(*sides, kind="soft", temperature=3.0, form=form).logit
    np.testing.assert_allclose(value, kl / divisor, rtol=1e-6)
  np.testing.assert_allclose(distillation_token(*sides).logit, hard_target_cross_entropy(s, t))


def test_an_impossible_class_has_no_gradient():
  s, t = draw(2, 4), draw(2, 4, seed=1)
  s[:, 1] = t[:, 1] = -np.inf
  value, gradient = jit(jax.value_and_grad(hard_target_cross_entropy))(s, t)
  np.testing.assert_allclose(value, hard_target_cross_entropy(s[:, [0, 2, 3]], t[:, [0, 2, 3]]))
  assert np.isfinite(gradient).all() and not gradient[:, 1].any()


@pytest.mark.long
def test_labels_train_the_head_of_the_class_token_and_the_teacher_the_other():
  student = ClassTokenTransformer(4, 8, 2, 4, 3, 1e-6, True, True)
  batch = Batch(draw(2, 8, 8, 1), np.array([0, 2]), np.ones(2, "float32"), np.arange(2))
  loss = per_example(distillation_token)

  def gradients(label_weight, weight):
    term = Distillation("deit", loss, weight, labelled="logits_cls")
    scheme = offline(student, {"teacher": student}, [term], label_weight=label_weight)
    participants = jit(scheme.init)(jax.random.key(0), batch)
    participants["teacher"] = jax.tree.map(lambda x: x + 0.1, participants["teacher"])
    context = Context(jax.random.key(1), jnp.int32(0))
    targets = jit(scheme.targets)(participants, batch)

    def loss_of(learning):
      return scheme.loss(learning, participants, batch, targets, context)[0]

    found = jit(jax.grad(loss_of))(select(participants, scheme.learners))["student"]
    heads = ("classifier", "distillation_classifier")
    return [bool(np.any(found[head]["kernel"])) for head in heads]

  assert gradients(1.0, 0.0) == [True, False]
  assert gradients(0.0, 1.0) == [False, True]


@pytest.mark.parametrize(
  ("options", "message"),
  [({"kind": "none"}, "unknown kind 'none'"), ({"form": "papers"}, "unknown form 'papers'")],
)
def test_error_for_wrong_arguments_names_them(options, message):
  with pytest.raises(ConfigError, match=message):
    distillation_token(
      Output(features={"logits_dist": jnp.ones((2, 3))}), Output(logits=jnp.ones((2, 3))), **options
    )


def test_two_heads_for_the_labels_are_refused():
  terms = [
    Distillation(name, per_example(distillation_token), labelled=head)
    for name, head in (("a", "logits_cls"), ("b", "logits_dist"))
  ]
  net = ClassTokenTransformer(4, 8, 2, 4, 3, 1e-6, True, True)
  with pytest.raises(ConfigError, match="the labels' term can take one head of the student"):
    offline(net, {"teacher": net}, terms)
