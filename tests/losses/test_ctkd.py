"""CTKD: definition, the gradient for the temperature and its reversal, curricula, the adapter."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.adapters import LearnedTemperature
from jaxkd.errors import ConfigError
from jaxkd.losses import curriculum_temperature, soft_target_kl, temperature_kl
from jaxkd.losses.ctkd import scaled_gradient
from jaxkd.methods.ctkd import adversarial, curriculum
from jaxkd.types import Batch, Context, Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype("float32")


S, T = 3 * draw(6, 4), 3 * draw(6, 4, seed=1)
EACH = np.array([1.0, 2.0, 5.0, 8.0, 15.0, 21.0], "float32")


def expected(student, teacher, temperature, eps=0.0):
  """The loss by the published formula."""
  temperature = np.broadcast_to(np.float64(temperature), len(student))[:, None]

  def softmax(z):
    e = np.exp(z.astype("float64") / temperature)
    return e / e.sum(axis=1, keepdims=True)

  p, q = softmax(student), softmax(teacher) + eps
  return (temperature[:, 0] ** 2 * (q * np.log(q / p)).sum(axis=1)).mean()


@pytest.mark.parametrize("eps", [0.0, 1e-3])
@pytest.mark.parametrize("temperature", [1.5, np.ones(1, "float32") * 15.6, EACH])
def test_loss_equals_the_definition(temperature, eps):
  value = temperature_kl(S, T, temperature, target_eps=eps)
  np.testing.assert_allclose(value, expected(S, T, temperature, eps), rtol=2e-6)
  if np.size(temperature) == 1 and not eps:
    plain = soft_target_kl(S, T, temperature=float(np.sum(temperature)))
    np.testing.assert_allclose(value, plain, rtol=1e-6)


def test_gradient_for_the_temperature_is_that_of_the_whole_formula():
  slopes = jit(jax.grad(temperature_kl, argnums=2))(S, T, EACH)
  step = 1e-5
  for i, temperature in enumerate(map(float, EACH)):
    up, down = (expected(S[[i]], T[[i]], temperature + d) for d in (step, -step))
    np.testing.assert_allclose(slopes[i], (up - down) / (2 * step) / len(EACH), rtol=3e-5)


def test_equal_logits_give_no_value_and_no_gradient_for_anything():
  value, slopes = jit(jax.value_and_grad(temperature_kl, argnums=(0, 1, 2)))(S, S, EACH)
  assert value == 0 and not any(np.any(slope) for slope in slopes)


def test_impossible_classes_give_the_temperature_no_gradient():
  student, teacher = S.copy(), T.copy()
  student[:, 3] = teacher[:, 3] = -np.inf
  compute = jit(jax.value_and_grad(temperature_kl, argnums=(0, 2)))
  value, slopes = compute(student, teacher, EACH)
  wanted, (_, of_temperature) = compute(S[:, :3], T[:, :3], EACH)
  np.testing.assert_allclose(value, wanted, rtol=1e-6)
  np.testing.assert_allclose(slopes[1], of_temperature, rtol=1e-4, atol=1e-6)
  assert np.isfinite(slopes[0]).all()


def test_standardised_logits_ignore_scale_and_shift_of_either_side():
  value = curriculum_temperature(Output(S), Output(T), 2.0, standardize=True).logit
  moved = curriculum_temperature(Output(4 * S + 1), Output(T / 2), 2.0, standardize=True).logit
  np.testing.assert_allclose(moved, value, rtol=1e-5)


def test_scaled_gradient_changes_the_gradient_alone():
  value, slope = jax.value_and_grad(lambda x: scaled_gradient(x, -0.25) ** 3)(2.0)
  assert value == 8 and slope == -3


def test_curricula_start_and_end_where_they_should():
  epochs = np.arange(23)
  cosine = jax.vmap(curriculum("cosine", epochs=10))(epochs)
  wanted = (np.cos(np.pi * np.minimum(epochs, 10) / 10) + 1) / 2 - 1
  np.testing.assert_allclose(cosine, wanted, atol=1e-6)
  linear = jax.vmap(curriculum("linear", epochs=4, start=-0.5, end=-1.5))(epochs)
  np.testing.assert_allclose(linear[np.array([0, 2, 4, 20])], [-0.5, -1.0, -1.5, -1.5], rtol=1e-6)
  code = jax.vmap(curriculum("linear_code", epochs=10))(epochs)
  np.testing.assert_allclose(
    code[np.array([0, 3, 9, 10, 20])], [0, -0.3, -0.9, -0.9, -0.9], rtol=1e-6
  )
  assert curriculum("constant", epochs=1, end=-0.5)(jnp.int32(7)) == -0.5
  with pytest.raises(ConfigError, match="unknown curriculum 'sine'"):
    curriculum("sine", epochs=10)


def adapted(scope, logits=S, theta=None):
  adapter = LearnedTemperature(scope)
  inputs = Output(logits), Output(T), None
  variables = adapter.init(jax.random.key(0), inputs, False)
  if theta is not None:
    variables = {"params": {"theta": jnp.full(1, theta)}}
  (student, temperature), teacher = adapter.apply(variables, inputs, True)
  assert student is inputs[0] and teacher is inputs[1]
  return temperature


def test_temperatures_start_at_the_published_value_and_stay_in_their_range():
  np.testing.assert_allclose(adapted("global"), [15.6212], rtol=1e-5)
  np.testing.assert_allclose(adapted("instance"), [15.6212] * 6, rtol=1e-5)
  np.testing.assert_allclose(adapted("instance", 1e8 * S), [15.6212] * 6, rtol=1e-5)
  assert adapted("global", theta=-1e8) == 1 and adapted("global", theta=1e8) == 21


def test_descent_lowers_the_loss_by_the_student_and_raises_it_by_the_temperature():
  loss = adversarial(curriculum("constant", epochs=1), steps_per_epoch=2)
  batch = Batch(None, None, None, None)
  context = Context(jax.random.key(0), jnp.int32(3))

  def value(student, temperature):
    return loss((Output(student), temperature), Output(T), batch, context).total

  start = jnp.full(1, 3.0)
  before, (of_student, of_temperature) = jax.value_and_grad(value, argnums=(0, 1))(S, start)
  assert value(S - 0.1 * of_student, start) < before < value(S, start - 0.1 * of_temperature)


def test_the_curriculum_counts_epochs_from_one():
  loss = adversarial(curriculum("linear", epochs=10), steps_per_epoch=4)
  batch = Batch(None, None, None, None)

  def slope(step):
    context = Context(jax.random.key(0), jnp.int32(step))
    return jax.grad(
      lambda temperature: loss((Output(S), temperature), Output(T), batch, context).total
    )(3.0)

  first = slope(0)
  np.testing.assert_allclose([slope(3), slope(4), slope(99)], [first, 2 * first, 10 * first])


@pytest.mark.parametrize(
  ("temperature", "message"),
  [
    (0.0, "temperature is 0.0: it must be"),
    (np.ones(5), r"temperature \(5,\) does not belong to logits \(6, 4\): expected a scalar"),
  ],
)
def test_error_for_a_wrong_temperature_names_it(temperature, message):
  with pytest.raises(ConfigError, match=message):
    temperature_kl(S, T, temperature)
