"""CS-KD's loss: the definition, and pairs that agree."""

import numpy as np
import pytest

from jaxkd.losses import class_wise
from jaxkd.types import Output


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype("float32")


def softmax(x):
  x = np.exp(x.astype("float64") - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_loss_equals_the_definition(temperature, squared):
  s, t = draw(6, 5), 3 * draw(6, 5, seed=1)
  p, q = softmax(s / temperature), softmax(t / temperature)
  wanted = (q * np.log(q / p)).sum(1).mean() * (temperature**2 if squared else 1)
  options = {"temperature": temperature, "squared_temperature": squared}
  found = class_wise(Output(s), Output(t), **options)
  np.testing.assert_allclose(found.logit, wanted, rtol=1e-5)
  assert found.feature == 0


def test_pairs_that_agree_up_to_a_constant_give_0():
  s = draw(6, 5)
  assert float(class_wise(Output(s), Output(s)).total) == 0
  np.testing.assert_allclose(class_wise(Output(s), Output(s + 3)).total, 0, atol=1e-5)
