"""CRD: the loss by its definition, in logarithms, over devices, and on wrong arguments."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.losses import contrastive_nce, contrastive_representation
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def draw(*shape, seed=0):
  x = np.random.default_rng(seed).normal(size=shape)
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype("float32")


def expected(s, t, examples, temperature, z=None):
  """The loss by the paper's formula, with the 1e-7 of the code."""
  scores = np.exp(np.einsum("bd,bkd->bk", s.astype("float64"), t) / temperature)
  z = examples * scores.mean() if z is None else z
  noise = (t.shape[1] - 1) / examples
  p = scores / z
  positive = np.log(p[:, 0] / (p[:, 0] + noise + 1e-7))
  negatives = np.log(noise / (p[:, 1:] + noise + 1e-7)).sum(1)
  return -(positive + negatives).mean()


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("z", [None, 30.0])
def test_loss_equals_the_definition(temperature, z):
  s, t = draw(5, 4), draw(5, 7, 4, seed=1)
  found = contrastive_nce(
    s, t, 40, temperature=temperature, log_normalizer=z if z is None else np.log(z)
  )
  np.testing.assert_allclose(found, expected(s, t, 40, temperature, z), rtol=2e-5)


def test_a_low_temperature_stays_finite_in_float32():
  s, t = draw(5, 4), draw(5, 7, 4, seed=1)
  t[:, 0] = s
  for z in (None, 0.0):
    value, gradient = jit(
      jax.value_and_grad(
        lambda s: contrastive_nce(s, t, 40, temperature=0.001, log_normalizer=z)  # noqa: B023
      )
    )(s)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_gradient_pulls_to_the_positive_and_away_from_the_negatives():
  s, t = draw(1, 4), draw(1, 3, 4, seed=1)
  gradient = jax.grad(lambda s: contrastive_nce(s, t, 10, temperature=0.5, log_normalizer=1.0))(s)
  moved = contrastive_nce(
    s - 1e-2 * gradient, t, 10, temperature=0.5, log_normalizer=1.0
  ) < contrastive_nce(s, t, 10, temperature=0.5, log_normalizer=1.0)
  assert moved
  weights = np.linalg.lstsq(t[0].T, np.asarray(gradient[0]), rcond=None)[0]
  assert weights[0] < 0 and (weights[1:] > 0).all()


def test_normalizer_of_the_batch_takes_no_gradient_and_a_shift_of_all_scores_no_effect():
  s, t = draw(4, 3), draw(4, 5, 3, seed=1)
  # A common coordinate adds a constant to all scores.
  ones = [np.concatenate([x, np.ones_like(x[..., :1])], axis=-1) for x in (s, t)]
  np.testing.assert_allclose(contrastive_nce(*ones, 9), contrastive_nce(s, t, 9), rtol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_value_on_four_devices_is_that_of_the_global_batch(masked):
  s, t = draw(8, 3), draw(8, 5, 3, seed=1)
  where = np.arange(8) < (5 if masked else 8)  # the last device may have none that count

  def step(s, t, where):
    mask = where if masked else None
    return contrastive_nce(s, t, 9, axis_name="batch", where=mask)

  split = [x.reshape(4, 2, *x.shape[1:]) for x in (s, t, where)]
  found = jit(jax.vmap(step, axis_name="batch"))(*split)
  np.testing.assert_allclose(found, np.full(4, contrastive_nce(s[where], t[where], 9)), rtol=1e-5)


@pytest.mark.parametrize(
  ("student", "teacher", "options", "message"),
  [
    ((2, 3), (2, 4, 2), {}, r"anchors \(2, 3\) and contrasts \(2, 4, 2\) do not fit: expected"),
    ((2, 3), (2, 1, 3), {}, r"with K at least 1"),
    ((2, 3), (2, 4, 3), {"temperature": 0.0}, r"temperature is 0.0: it must be"),
    ((2, 3), (2, 4, 3), {"examples": 0}, r"examples is 0: it must be"),
  ],
)
def test_error_for_wrong_arguments_names_them(student, teacher, options, message):
  s = Output(features={"embedding": jnp.ones(student)})
  t = Output(features={"contrasts": jnp.ones(teacher)})
  with pytest.raises(ConfigError, match=message):
    contrastive_representation(s, t, **{"examples": 9, **options})
