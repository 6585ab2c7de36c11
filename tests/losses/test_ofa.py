"""OFA: definition, unknown labels, soft labels, impossible classes, heads of any rank."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.adapters import ExitsAtStages
from jaxkd.errors import ConfigError
from jaxkd.losses import cross_entropy, enhanced_cross_entropy, one_for_all
from jaxkd.models.compose.stage_head import StageHead
from jaxkd.types import Batch, Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype("float32")


S, T = draw(6, 4), 2 * draw(6, 4, seed=1)
LABELS = np.array([0, 3, 1, 1, 2, 0])


def expected(student, teacher, labels, exponent, temperature):
  """The loss by the paper's equation 7, and no label for -1."""

  def softmax(z):
    e = np.exp(z.astype("float64") / temperature)
    return e / e.sum(axis=1, keepdims=True)

  mask = np.arange(student.shape[1]) == labels[:, None]
  target = (softmax(teacher) + mask) ** exponent - mask
  return -(target * np.log(softmax(student))).sum(axis=1).mean()


@pytest.mark.parametrize(("exponent", "temperature"), [(1.0, 1.0), (1.5, 4.0), (0.5, 2.0)])
def test_loss_equals_the_definition(exponent, temperature):
  options = {"exponent": exponent, "temperature": temperature}
  value = enhanced_cross_entropy(S, T, LABELS, **options)
  np.testing.assert_allclose(value, expected(S, T, LABELS, exponent, temperature), rtol=1e-5)


def test_exponent_of_one_is_the_cross_entropy_with_the_teacher():
  value = enhanced_cross_entropy(S, T, LABELS)
  np.testing.assert_allclose(value, cross_entropy(S, jax.nn.softmax(T)), rtol=1e-6)


def test_a_label_of_weight_zero_is_not_enhanced():
  weights, unknown = np.array([1, 0, 2, 0, 1, 1.0]), np.where([1, 0, 1, 0, 1, 1], LABELS, -1)
  value = enhanced_cross_entropy(S, T, unknown, weights, exponent=2.0)
  np.testing.assert_allclose(value, expected(S, T, unknown, 2.0, 1.0), rtol=1e-5)
  assert np.isnan(enhanced_cross_entropy(S, T, unknown, exponent=2.0))


def test_of_probabilities_the_largest_is_the_label():
  mixed = 0.6 * np.eye(4)[LABELS] + 0.4 * np.eye(4)[LABELS[::-1]]
  value = enhanced_cross_entropy(S, T, mixed, exponent=1.5)
  assert value == enhanced_cross_entropy(S, T, LABELS, exponent=1.5)


def test_impossible_classes_add_nothing_and_differ_by_side():
  student, teacher = S.copy(), T.copy()
  student[:, 3] = teacher[:, 3] = -np.inf
  labels = np.minimum(LABELS, 2)
  compute = jit(jax.value_and_grad(functools.partial(enhanced_cross_entropy, exponent=1.5)))
  value, gradient = compute(student, teacher, labels)
  np.testing.assert_allclose(
    value, enhanced_cross_entropy(S[:, :3], T[:, :3], labels, exponent=1.5), rtol=1e-6
  )
  assert np.isfinite(gradient).all() and not gradient[:, 3].any()
  value, gradient = compute(student, T, labels)
  assert value == np.inf and np.isfinite(gradient).all()


def test_underflowing_probabilities_stay_finite_where_the_published_logarithm_is_infinite():
  value, gradient = jax.value_and_grad(enhanced_cross_entropy)(1e3 * S, -1e3 * S, LABELS)
  assert np.isfinite(value) and np.isfinite(gradient).all()


def test_every_exit_has_its_exponent():
  exits = [Output(S), Output(-S), Output(2 * S)]
  parts = one_for_all(exits, Output(T), LABELS, exponent=1.5, stage_exponents=(1.0, 2.0))
  wanted = expected(S, T, LABELS, 1.0, 1.0) + expected(-S, T, LABELS, 2.0, 1.0)
  np.testing.assert_allclose(parts["stages"].logit, wanted, rtol=1e-5)
  np.testing.assert_allclose(parts["logits"].logit, expected(2 * S, T, LABELS, 1.5, 1.0), rtol=1e-5)
  assert one_for_all(exits[2:], Output(T), LABELS)["stages"].logit == 0


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: enhanced_cross_entropy(S, T, LABELS, exponent=0.0), "exponent is 0.0: it must be"),
    (lambda: enhanced_cross_entropy(S, T, LABELS / 2), r"labels \(6,\) of float32 do not belong"),
    (lambda: one_for_all([], Output(T), LABELS), "there are no exits"),
    (
      lambda: one_for_all([Output(S)] * 2, Output(T), LABELS, stage_exponents=(1, 2)),
      "stage_exponents are 2, heads 1",
    ),
  ],
)
def test_error_for_wrong_arguments_names_them(call, message):
  with pytest.raises(ConfigError, match=message):
    call()


def test_heads_take_maps_tokens_and_vectors_and_leave_out_padded_tokens():
  features = {"maps": draw(2, 4, 4, 3), "tokens": draw(2, 3, 5), "vectors": draw(2, 6)}
  heads = {stage: StageHead(4, 8, halvings=2) for stage in features}
  adapter = ExitsAtStages(heads)
  mask = np.array([[1, 1, 0], [1, 1, 1]])

  def run(tokens):
    found = Output(draw(2, 4), features | {"tokens": tokens})
    batch = Batch(None, None, None, None, mask=mask)
    variables = adapter.init(jax.random.key(0), (found, None, batch), False)
    exits, _ = adapter.apply(variables, (found, None, batch), False)
    return [x.logits for x in exits], variables["params"]

  exits, parameters = run(features["tokens"])
  assert [x.shape for x in exits] == [(2, 4)] * 4
  assert set(parameters["heads_maps"]) == {"separable1", "separable2", "classifier"}
  changed = features["tokens"].copy()
  changed[0, 2] = 1e6
  np.testing.assert_array_equal(exits[1], run(changed)[0][1])
  with pytest.raises(ConfigError, match=r"features \(2,\) are no maps, tokens or vectors"):
    StageHead(4, 8, 0).init(jax.random.key(0), jnp.ones(2))
